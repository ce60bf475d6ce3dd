"""Super-NaturalInstructions (arXiv:2204.07705): each JSON file of its folder becomes a task, with mixtures of them.

    DataConfig.natural_instructions = %NATURAL_INSTRUCTIONS_DIR  a folder with tasks/*.json and splits/, or of the files
    NaturalInstructionsConfig.languages = ('English',)
    DataConfig.mixture = 'natural_instructions'

Task ni_task023_NAME is made of task023_NAME.json: its definition, its positive examples as exemplars, its negative
examples in a share of the prompts (InstructionConfig.negative_examples), and one of an instance's outputs, drawn anew
in each epoch; metrics accept any of them. InstructionConfig.natural_instructions_layout = 'tk_instruct' words them
exactly as Tk-Instruct does. Mixtures: natural_instructions (all tasks that the settings select), and one for each
official list of names: natural_instructions_train and natural_instructions_test (splits/default),
natural_instructions_xlingual_test (from another folder).

Splits of a task: 'validation' is a share held out by a hash, 'train' the rest. A task of a test list also has 'test',
its first 100 instances, which the paper measures; the other splits do not have them.

Instances whose outputs are all empty are left out and reported; with --skip_broken, so are instances that do not follow
the schema. A file beside the tasks that is none (test.json) is named and not read.

A start does not read the files: a summary of each is kept in ~/.cache/t5flan until its size or modification time
changes.
"""

import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5flan.data.instruction_config import NaturalInstructionsConfig
from t5flan.data.mixtures.mixing import ByExamples
from t5flan.data.preprocessing.examples import Context, Example, Result
from t5flan.data.preprocessing.tokenization import append_eos, tokenize
from t5flan.data.prompting.instructions import INVERTED, Instruct, Item, Prompt
from t5flan.data.skipped import Problems, leave_out, report, skip_on_error
from t5flan.errors import UserError
from t5flan.scoring.metrics import exact_match, squad
from t5flan.tasks.families import family
from t5flan.tasks.natural_instructions_files import NO_OUTPUT, Summary, TaskFile, read_folder
from t5flan.tasks.registry import add_task, is_registered, replace_mixture, safe_name
from t5flan.tasks.tk_instruct import LAYOUT, follow_tk_instruct

MIXTURE, PREFIX = 'natural_instructions', 'ni_'
SETTING = 'DataConfig.natural_instructions'
TESTED = 100
_SPLIT_NAMES = ('train', 'validation', 'valid', 'dev', 'test', 'eval')
_EVERYTHING = NaturalInstructionsConfig()
_mixtures: list[str] = []


# -- A file as a task --------------------------------------------------------------------------------------------------


class Instances:
    """The instances of a split: records {'id', 'input', 'outputs'}. Their number is known without opening the file."""

    def __init__(self, file: TaskFile, summary: Summary, split: str, tested: bool) -> None:
        first = min(TESTED, summary.instances) if tested else 0
        is_held_out = np.zeros(summary.instances, bool)
        is_held_out[list(summary.held_out)] = True
        chosen = is_held_out if split == 'validation' else ~is_held_out
        numbers = np.arange(first) if split == 'test' else first + np.flatnonzero(chosen[first:])
        self._file, self._numbers = file, numbers.astype(np.int32)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Example:
        return self._file.instance(int(self._numbers[index]))


class FollowDefinition(Instruct):
    """Words an instance with its task's definition, after positive examples and in some prompts a negative one."""

    def __init__(self, file: TaskFile) -> None:
        self._file = file
        super().__init__(family('natural_instructions'), exemplars=functools.partial(positive_items, file))

    def prompt(self, example: Example, context: Context) -> Prompt | None:
        """The prompt of an instance."""
        draw, other, wrong = context.rng.random(3).tolist()
        answer = draw_output(example, draw, context)
        item = {'input': example['input'], 'definition': self._file.definition(), 'answer': answer}
        made = super().prompt(item, context)
        if made is None or wrong >= context.instructions.negative_examples or made.variant == INVERTED:
            return made
        if negative := self._file.examples('Negative Examples'):
            made.head += f'{_wrong(negative[int(other * len(negative))])}\n\n'
            made.variant = [*made.variant, 'negative example']
        return made

    def apply_block(self, examples: Sequence[Example], contexts: Sequence[Context]) -> list[Result]:
        """Words many instances; 'answers' has all right outputs of each."""
        if contexts and contexts[0].instructions.natural_instructions_layout == LAYOUT:
            draws = [
                draw_output(one, context.rng.random(), context) for one, context in zip(examples, contexts, strict=True)
            ]
            made: list[Result] = [*follow_tk_instruct(self._file, examples, draws, contexts)]
        else:
            made = super().apply_block(examples, contexts)
        answers = ({'answers': example['outputs']} for example in examples)
        return [result | answer if isinstance(result, dict) else result for result, answer in zip(made, answers)]


def draw_output(example: Example, draw: float, context: Context) -> str:
    """The output to learn, by a number in [0, 1); the first one outside of training."""
    outputs = example['outputs']
    is_train = context.key[2].partition('/')[0] == 'train'
    return outputs[int(draw * len(outputs))] if is_train else outputs[0]


def positive_items(file: TaskFile) -> list[Item]:
    """The positive examples as exemplars."""
    definition, examples = file.definition(), file.examples('Positive Examples')
    return [{'input': one['input'], 'definition': definition, 'answer': one['outputs'][0]} for one in examples]


def _wrong(example: Example) -> str:
    reason = f'\nWhy it is wrong: {example["explanation"].strip()}' if example['explanation'] else ''
    given, answer = example['input'].strip(), example['outputs'][0].strip()
    return f'An answer that is not wanted\nInput: {given}\nOutput: {answer}{reason}'


def postprocess(text: str, is_target: bool = False, example: Mapping[str, Any] | None = None, **_: object) -> Any:
    """The right answers, or a model's output."""
    return list(example['answers']) if is_target and example is not None and 'answers' in example else text


# -- A folder as tasks and mixtures ------------------------------------------------------------------------------------


def register(folder: str | None, config: NaturalInstructionsConfig = _EVERYTHING, skip_broken: bool = False) -> None:
    """Registers the tasks of a folder, and mixtures of those that `config` selects; again replaces the mixtures only.

    Raises:
        UserError: there is no such folder or no task in it, a file does not follow the schema, two tasks have one name,
            or nothing is selected.
    """
    if folder is None:
        return
    files = task_files(folder)
    lists = official_lists(folder)
    tested = {name for key, names in lists.items() if key.endswith('test') for name in names}
    known, rows = read_folder(files)
    files = {name: path for name, path in files.items() if not _is_stray(path, known[name])}
    if not files:
        raise UserError(
            f'{folder}: none of its .json files is a task. Set {SETTING} to the folder of Natural Instructions.'
        )
    selected = []
    for name, path in files.items():
        summary = known[name]
        _report(path, summary, skip_broken)
        with skip_on_error(PREFIX + name, skip_broken):
            if summary.error:
                raise UserError(summary.error)
            file = TaskFile(path, rows[summary.first : summary.first + summary.instances])
            register_task(name, file, summary, name in tested)
            if is_selected(summary, config):
                selected.append(name)
    check_selection([known[name] for name in files], config, folder, bool(selected))
    mixtures = {MIXTURE: selected, **{f'{MIXTURE}_{key}': names for key, names in lists.items()}}
    for mixture in dict.fromkeys([*mixtures, *_mixtures]):
        members = sorted(PREFIX + name for name in set(selected) & set(mixtures.get(mixture, ())))
        replace_mixture(mixture, members, ByExamples(config.cap))
    _mixtures[:] = mixtures


def register_task(name: str, file: TaskFile, summary: Summary, tested: bool) -> None:
    """Registers the task ni_NAME.

    Args:
        tested: whether an official test list has it.
    """
    from t5flan.data.records.sources import IndexedSource

    if is_registered(PREFIX + name, file.path):
        return
    splits = ('train', 'validation', *['test'] * tested)
    makers = {split: functools.partial(Instances, file, summary, split, tested) for split in splits}
    add_task(
        PREFIX + name,
        file.path,
        source=IndexedSource({split: make for split, make in makers.items() if len(make())}),
        preprocessors=[FollowDefinition(file), tokenize, append_eos],
        postprocess_fn=postprocess,
        metric_fns=[exact_match, squad],
    )


def task_files(folder: str) -> dict[str, str]:
    """Task -> path of every .json file in the folder, or in its subfolder tasks.

    Raises:
        UserError: there is no such folder, or no file in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f'{folder}: no such folder. Set {SETTING} to the folder of Natural Instructions.')
    inside = root / 'tasks' if (root / 'tasks').is_dir() else root
    paths = [path for path in sorted(inside.glob('*.json')) if not path.name.startswith('.')]
    if any(re.match(r'task\d', path.name) for path in paths):
        for path in [path for path in paths if path.stem.lower() in _SPLIT_NAMES]:
            leave_out(str(path), ['is named like a split and lies beside tasks; it is not read'])
            paths.remove(path)
    files = {safe_name(path.stem): str(path) for path in paths}
    if not files:
        raise UserError(f'{inside}: no .json file. Set {SETTING} to the folder of Natural Instructions.')
    return files


def _is_stray(path: str, summary: Summary) -> bool:
    if summary.stray:
        leave_out(path, [f'is not a task and is not read: {summary.stray.removeprefix(path).lstrip(": ")}'])
    return bool(summary.stray)


def _report(path: str, summary: Summary, skip_broken: bool) -> None:
    """Reports the instances of a file that are skipped and left out; without skip_broken, raises the first error."""
    problems = Problems(skip_broken)
    if not summary.error:
        for where, why in summary.broken.items():
            problems.on_error(where, UserError(why))
    for number in summary.without_output:
        problems.on_left_out(f'{path} instance {number}', NO_OUTPUT)
    report(path, problems.to_json())


def check_selection(
    known: Sequence[Summary], config: NaturalInstructionsConfig, folder: str, is_any_selected: bool
) -> None:
    """Checks that the settings name categories and languages of the folder's tasks.

    Raises:
        UserError: a name is almost that of one, or nothing is selected.
    """
    categories = sorted({category for summary in known for category in summary.categories})
    languages = sorted({language for summary in known for language in summary.languages})
    unknown = []
    for field, names in (('categories', categories), ('exclude_categories', categories), ('languages', languages)):
        for given in [given for given in getattr(config, field) if given not in names]:
            # A name that is not similar may be a category that this part of the data lacks.
            by_fold = {name.lower(): name for name in names}
            cutoff = 0.85 if is_any_selected else 0.6
            if near := difflib.get_close_matches(given.lower(), by_fold, 1, cutoff):
                setting, name = f'NaturalInstructionsConfig.{field}', by_fold[near[0]]
                raise UserError(f'{setting} has {given!r}, which no task has; did you mean {name!r}? Set {setting}.')
            unknown.append(f'NaturalInstructionsConfig.{field} has {given!r}, which no task has')
    leave_out(folder, unknown)
    if not is_any_selected:
        setting = (
            f'NaturalInstructionsConfig.{"languages" if not config.categories and config.languages else "categories"}'
        )
        found = ', '.join(languages if setting.endswith('languages') else categories) or 'none'
        raise UserError(f'{folder}: none of its {len(known)} tasks is selected. Set {setting}; there are {found}.')


def official_lists(folder: str) -> dict[str, list[str]]:
    """'train', 'test', 'xlingual_test' … -> the task names in splits/default/train_tasks.txt and so on.

    Raises:
        UserError: a list is not UTF-8.
    """
    root = Path(folder)
    splits = next((path for path in (root / 'splits', root.parent / 'splits') if path.is_dir()), None)
    lists = {}
    for path in sorted(splits.glob('*/*_tasks.txt')) if splits else []:
        group = '' if path.parent.name == 'default' else f'{path.parent.name}_'
        try:
            names = path.read_text('utf-8-sig').split()
        except UnicodeDecodeError:
            raise UserError(f'{path}: not UTF-8. Save the file as UTF-8.') from None
        lists[group + path.name.removesuffix('_tasks.txt')] = names
    return lists


def is_selected(summary: Summary, config: NaturalInstructionsConfig) -> bool:
    """Whether the settings select a task for the mixtures."""
    categories, languages = {*summary.categories}, {*summary.languages}
    if categories & {*config.exclude_categories} or (config.categories and not categories & {*config.categories}):
        return False
    return not config.languages or languages <= {*config.languages}
