r"""Wordings as data: a family's JSON file holds templates and layouts for options and for solved examples.

A family is the fields and wordings that data sets of one kind share (nli, summarization, …). Its file:

    {"family": "nli",
     "fields": ["premise", "hypothesis"],               every template names all of them
     "optional": ["title"],                             a template that names one is used for items that have it
     "templates": ["{premise} Does it follow that {hypothesis}?{options}",
                   {"head": "Compare the two.\n\n", "inputs": "…", "targets": "{answer}", "options": true}],
     "inverted": [{"inputs": "Write a sentence that …: {premise}", "targets": "{hypothesis}"}],
     "options": [{"before": "Options:\n", "option": "({letter}) {option}", "between": "\n", "answer": "({letter})"}],
     "exemplars": [{"inputs": "Q: {inputs}\nA:", "targets": " {targets}", "between": "\n\n"}]}

A template may also name `{answer}` (in targets, and in the inputs of inverted ones), `{rationale}` (inverted ones) and
`{options}`, the place of the listed options. Without `{options}` the list goes on its own line at the end (above a last
line that only asks, "Answer:"); if options are not listed, the place and the white space before it are removed.
`"options": true` marks a wording that needs the list, `false` one that must not have it. "head" is written once, before
the exemplars; "inputs" is repeated for each of them. The file's "options" and "exemplars" override those of the shared
`layouts.json`.
"""

import dataclasses
import functools
import os
import pathlib
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from t5flan.data.records.json_files import load_json
from t5flan.errors import UserError

SPECIAL = ('answer', 'options', 'rationale')
LAYOUTS = 'layouts.json'
CUES = (':', '=', '->')
_GROUPS = ('templates', 'inverted', 'options', 'exemplars')
_OPTIONS_PLACE = re.compile(r'\s*\{options\}')


@dataclasses.dataclass(frozen=True)
class Template:
    """One wording: `listed` is the input with listed options, `inputs` the input without."""

    inputs: str
    targets: str
    listed: str
    options: bool | None
    """Whether it must (True) or must not (False) list the options; None allows both."""
    needs: frozenset[str]
    """Fields that an item must have."""
    head: str = ''
    """Text before the exemplars and the question."""

    @functools.cached_property
    def cued(self) -> bool:
        """Whether it ends with a cue for the answer ("Answer:"), so that the layout needs none."""
        return self.inputs.rstrip().endswith(CUES)


@dataclasses.dataclass(frozen=True)
class OptionLayout:
    r"""How options are listed, and how the answer is then given.

    Worked example: before 'Options:\n', option '({letter}) {option}', between '\n', answer '({letter})'. The options
    yes and no are listed as 'Options:\n(A) yes\n(B) no', and the answer no is '(B)'.
    """

    before: str = ''
    option: str = '- {option}'
    between: str = '\n'
    after: str = ''
    answer: str = '{option}'

    def listing(self, options: Sequence[str]) -> str:
        """The options as they are listed in the prompt."""
        rows = [self.option.format(letter=_letter(i), number=i + 1, option=option) for i, option in enumerate(options)]
        return f'{self.before}{self.between.join(rows)}{self.after}'

    def shown(self, options: Sequence[str], answer: str) -> str:
        """One of the options as the answer in this layout."""
        number = options.index(answer)
        return self.answer.format(letter=_letter(number), number=number + 1, option=answer)


@dataclasses.dataclass(frozen=True)
class ExemplarLayout:
    """How solved examples precede the question: `before`, then the exemplars and the question joined by `between`."""

    inputs: str
    targets: str
    between: str = '\n\n'
    before: str = ''

    @functools.cached_property
    def cues(self) -> bool:
        """Whether it adds a cue after the question ("A:")."""
        return bool(self.inputs.partition('{inputs}')[2].strip())


@dataclasses.dataclass(frozen=True)
class Family:
    """The wordings of one kind of task."""

    name: str
    fields: tuple[str, ...]
    optional: tuple[str, ...]
    templates: tuple[Template, ...]
    inverted: tuple[Template, ...]
    options: tuple[OptionLayout, ...]
    exemplars: tuple[ExemplarLayout, ...]


def _letter(number: int) -> str:
    return string.ascii_uppercase[number] if number < 26 else str(number + 1)


def load_templates(path: str | os.PathLike) -> Family:
    """Loads the family of a JSON file; layouts that the file lacks come from `layouts.json` beside it.

    Raises:
        UserError: the file is missing or not as described above; names the file and the field.
    """
    path = pathlib.Path(path)
    content = _read_object(path)
    _check_keys(path, content, (*_GROUPS, 'family', 'purpose', 'fields', 'optional'))
    fields, optional = (_words(path, key, content.get(key, [])) for key in ('fields', 'optional'))
    if not fields:
        raise UserError(f'{path}: "fields" is empty. List the fields that its templates name.')
    if taken := {*fields, *optional} & set(SPECIAL):
        raise UserError(f'{path}: "fields" lists {sorted(taken)[0]!r}, a reserved name. Choose another one.')
    shared = path.parent / LAYOUTS
    layouts = {**(_read_object(shared) if shared.is_file() else {}), **content}
    made = {
        group: tuple(
            _template(f'{path}: {group}[{i}]', given, fields, optional, group == 'inverted')
            for i, given in enumerate(_list(path, group, content.get(group, [])))
        )
        for group in ('templates', 'inverted')
    }
    if not made['templates']:
        raise UserError(f'{path}: "templates" is empty. Add at least one wording.')
    texts = [template.head + template.listed for group in made.values() for template in group]
    for text in texts:
        if texts.count(text) > 1:
            raise UserError(f'{path}: the wording {text[:60]!r} appears {texts.count(text)} times. Keep one of them.')
    return Family(
        name=str(content.get('family', path.stem)),
        fields=fields,
        optional=optional,
        options=_layouts(path, 'options', layouts, OptionLayout, ('letter', 'number', 'option')),
        exemplars=_layouts(path, 'exemplars', layouts, ExemplarLayout, ('inputs', 'targets')),
        **made,
    )


def make_template(inputs: str, targets: str = '{answer}', options: bool | None = None, head: str = '') -> Template:
    """A template from texts with `{field}` and `{options}` as in a file; nothing is checked."""
    needs = {*names_in(head), *names_in(inputs), *names_in(targets)} - {'options'}
    return Template(_OPTIONS_PLACE.sub('', inputs), targets, _listed(inputs), options, frozenset(needs), head)


def _listed(inputs: str) -> str:
    """The input with a place for the options: its own, else the end, or above a last line that only asks."""
    if '{options}' in inputs:
        return inputs
    text, line, last = inputs.rpartition('\n')
    if line and last.rstrip().endswith(CUES) and not names_in(last):
        return f'{text}\n{{options}}\n{last}'
    return inputs.rstrip() + '\n{options}'


def names_in(text: str) -> list[str]:
    """The fields that a template names, in order.

    Raises:
        ValueError: braces do not match, or contain more than a name.
    """
    names = []
    for _, name, spec, conversion in string.Formatter().parse(text):
        if name is not None:
            if not name.isidentifier() or spec or conversion:
                raise ValueError(f'{{{name}}} is not the name of a field')
            names.append(name)
    return names


def _template(where: str, given: Any, fields: Sequence[str], optional: Sequence[str], inverted: bool) -> Template:
    given = {'inputs': given} if isinstance(given, str) else given
    if not isinstance(given, dict) or not isinstance(given.get('inputs'), str):
        raise UserError(f'{where} is neither a text nor an object with "inputs". Write one of them.')
    _check_keys(where, given, ('head', 'inputs', 'targets', 'options'))
    targets, options = given.get('targets', None if inverted else '{answer}'), given.get('options')
    head = given.get('head', '')
    if not isinstance(targets, str) or not isinstance(head, str) or options not in (None, True, False):
        raise UserError(f'{where}: "head" and "targets" must be texts, "options" true, false or absent. Fix it.')
    parts, known = {'head': head, 'inputs': given['inputs'], 'targets': targets}, (*fields, *optional, *SPECIAL)
    named = {part: _known_names(f'{where}.{part}', text, known) for part, text in parts.items()}
    if fault := _fault([*named['head'], *named['inputs']], named['targets'], fields, inverted):
        raise UserError(f'{where}: {fault}. Fix the template.')
    return make_template(given['inputs'], targets, False if inverted else options, head)


def _known_names(where: str, text: str, known: Sequence[str]) -> list[str]:
    try:
        names = names_in(text)
    except ValueError as error:
        raise UserError(f'{where}: {error}. Write {{{{ and }}}} for braces that are not fields.') from None
    if unknown := [name for name in names if name not in known]:
        raise UserError(f'{where} names {{{unknown[0]}}}; it may name {", ".join(known)}. Fix the file.')
    return names


def _fault(inputs: Sequence[str], targets: Sequence[str], fields: Sequence[str], inverted: bool) -> str | None:
    """The problem with the fields that a template names, if there is one."""
    if inverted:
        if not {'answer', 'rationale'} & set(inputs):
            return 'an inverted wording must have {answer} or {rationale} in "inputs"'
        return '"targets" names no field' if not targets else None
    if given_away := {'answer', 'rationale'} & set(inputs):
        return f'"inputs" gives away {{{sorted(given_away)[0]}}}'
    if 'answer' not in targets:
        return '"targets" has no {answer}'
    missing = [name for name in fields if name not in inputs]
    return f'"inputs" lacks {{{missing[0]}}}' if missing else None


def _layouts(path: pathlib.Path, key: str, content: Mapping[str, Any], kind: Any, names: Sequence[str]) -> tuple:
    made = []
    for i, given in enumerate(_list(path, key, content.get(key, []))):
        where = f'{path}: {key}[{i}]'
        parts = [field.name for field in dataclasses.fields(kind)]
        if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
            raise UserError(f'{where} must be an object of texts ({", ".join(parts)}). Fix the layout.')
        _check_keys(where, given, parts)
        for part, text in given.items():
            _known_names(f'{where}.{part}', text, names)
        needed = {'inputs': '{inputs}', 'targets': '{targets}', 'option': '{option}'}
        for part in set(parts) & set(needed):
            if needed[part] not in given.get(part, '{option}'):
                raise UserError(f'{where}.{part} has no {needed[part]}. Fix the layout.')
        made.append(kind(**given))
    if not made:
        raise UserError(f'{path}: "{key}" is empty here and in {LAYOUTS} beside it. Add a layout.')
    return tuple(made)


def _read_object(path: pathlib.Path) -> dict[str, Any]:
    content = load_json(path)
    if not isinstance(content, dict):
        raise UserError(f'{path}: is a JSON {type(content).__name__}, it must be an object. Fix the file.')
    return content


def _check_keys(where: str | pathlib.Path, given: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in given:
        if key not in known:
            raise UserError(f'{where} has the key {key!r}; it may have {", ".join(known)}. Fix the file.')


def _list(path: pathlib.Path, key: str, value: Any) -> list:
    if not isinstance(value, list):
        raise UserError(f'{path}: "{key}" is {type(value).__name__}, it must be a list. Fix the file.')
    return value


def _words(path: pathlib.Path, key: str, value: Any) -> tuple[str, ...]:
    if not all(isinstance(word, str) and word.isidentifier() for word in _list(path, key, value)):
        raise UserError(f'{path}: "{key}" must be a list of names (letters, digits, _). Fix the file.')
    return tuple(value)
