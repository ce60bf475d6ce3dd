"""Gin in, frozen dataclasses out. gin_syntax.py parses the text; this file gives names their meaning.

    settings = Settings(['runs/finetune'], ['MIXTURE=practice', 'ModelConfig.dropout_rate=0.05'], classes, {})
    model = settings.read(ModelConfig)
    text = settings.operative_config()

Parsing is gin-config's. Binding and checking are done here, because the dataclasses declare the type of each setting: a
bare word on the command line is read as its field requires (`007` stays '007' for a str), and a wrong name or type is
reported in one line, before JAX or TensorFlow is imported. A field that is itself settings (DataConfig.instructions) is
read from its own bindings (InstructionConfig.few_shot = ...) without a reference. Old names are understood for one
release (renames.py). There is no global state.
"""

import dataclasses
import functools
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from t5flan.config import annotations, gin_syntax, renames
from t5flan.config.gin_files import find_gin_file, read_text
from t5flan.errors import UsageError, nearest
from t5flan.version import __version__

Names = Mapping[str, str]
_REQUIRED = ('REQUIRED', 'gin.REQUIRED')


@dataclasses.dataclass(frozen=True)
class _Bound:
    """A value and where it was given: 'runs/finetune.gin:12' or '--gin.STEPS'."""

    value: Any
    origin: str


class _Missing(UsageError):
    """Required settings without a value, each as (setting, the flag that sets it, where it comes from)."""

    def __init__(self, missing: Sequence[tuple[str, str, str]], command: str) -> None:
        self.missing = list(missing)
        by = f" by '{command}'" if command else ''
        names = ', '.join(f'{setting}{why}' for setting, _, why in missing)
        flags = ' '.join(dict.fromkeys(flag for _, flag, _ in missing))
        super().__init__(f'{names} {"is" if len(missing) == 1 else "are"} required{by} and not given: set {flags}')


def _one_flag_for_a_model(cls: type, missing: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Replaces the many sizes of a model by the one flag that gives them all."""
    if cls.__name__ == 'ModelConfig' and len(missing) > 2:
        return [('ModelConfig', '--gin_file=models/NAME', '')]
    return missing


class Settings:
    """Reads gin files in order, then bindings; a later value replaces an earlier one.

    Args:
        gin_files: paths, or names of packaged files ('runs/finetune').
        gin_bindings: `NAME=value`, as after `--gin.` on the command line.
        configurables: the dataclasses that can be set.
        imported_later: more of them by name, which are looked up when they are named: their files are slow to import.
        renamed_classes: old -> present name of dataclasses that were renamed.
        stored: the config.gin of a checkpoint folder, which is read first and is not trusted: it includes no files, and
            fields that a class lists in `TRUSTED` cannot be set in it.

    Raises:
        UsageError: a file cannot be read or is not gin, or a name is unknown.
    """

    def __init__(
        self,
        gin_files: Iterable[str],
        gin_bindings: Iterable[str],
        configurables: Iterable[type],
        renamed_classes: Names,
        imported_later: Mapping[str, type] = types.MappingProxyType({}),
        stored: str | None = None,
    ) -> None:
        self._configurables = {cls.__name__: cls for cls in configurables}
        self._imported_later = imported_later
        self._renamed_classes = renamed_classes
        self._nested = {  # (class, field) -> the class of settings that the field is
            (name, field.name): annotation.__name__
            for name, cls in self._configurables.items()
            for field, annotation in annotations.fields(cls)
            if annotation in self._configurables.values()
        }
        self._macros: dict[str, _Bound] = {}
        self._bindings: dict[tuple[str, str, str], _Bound] = {}  # (scope, configurable, field)
        self._seen: set[gin_syntax.Macro | gin_syntax.Reference] = set()  # in any value, also in one replaced later
        self._all_is_used = False  # not checked yet
        self._reading: tuple[str, ...] = ()  # the references that are being read, outermost first
        self._files: list[str] = []
        self._read: dict[tuple[str, str], dict[str, Any]] = {}  # (scope, configurable) -> resolved values
        self._macro_values: dict[str, Any] = {}  # as read for the first field that used them
        self._stored = stored
        for name in (*([stored] if stored else []), *gin_files):
            self._add_file(name, origin='--gin_file')
        given = [self._add_binding(binding) for binding in gin_bindings]
        self._check_macros_are_used([name for name in given if name is not None])

    # -- Reading ----------------------------------------------------------------------------------------------------

    def read(self, cls: type, command: str = '', scope: str = '') -> Any:
        """Returns a `cls` with every binding applied and checked against its annotation.

        Args:
            cls: one of the configurables.
            command: the command that needs it, for error messages.
            scope: the gin scope; bindings of the scopes around it apply too.

        Raises:
            UsageError: a required field has no value, a macro is undefined, a value has the wrong type, references form
                a cycle, or a macro or a setting in the files is used by nothing.
            UserError: `cls` itself rejects a value.
        """
        values: dict[str, Any] = {}
        missing = []
        for field, annotation in annotations.fields(cls):
            setting = f'{scope}/{cls.__name__}.{field.name}' if scope else f'{cls.__name__}.{field.name}'
            bound = self._find(scope, cls.__name__, field.name)
            flag, why = f'--gin.{setting}={annotations.placeholder(annotation)}', ''
            if bound is not None:
                unset = self._unset_macro(bound.value)
                if unset is None:
                    try:
                        values[field.name] = self._typed(setting, bound, annotation, command)
                    except _Missing as error:  # of a @reference() inside
                        missing.extend(error.missing)
                    continue
                if unset not in _REQUIRED:
                    flag, why = f'--gin.{unset}={annotations.placeholder(annotation)}', self._why_unset(unset, bound)
            elif not annotations.is_required(field):
                continue
            missing.append((setting, flag, why))
        if missing:
            raise _Missing(_one_flag_for_a_model(cls, missing), command)
        if not self._all_is_used:
            self._check_all_is_used()
        defaults = {field.name: annotations.default(field) for field, _ in annotations.fields(cls)}
        self._read[scope, cls.__name__] = defaults | values
        return cls(**values)

    def read_all(self, classes: Sequence[type], command: str = '') -> list[Any]:
        """Reads several classes and reports everything that is missing in one error."""
        found, missing = [], []
        for cls in classes:
            try:
                found.append(self.read(cls, command))
            except _Missing as error:
                missing.extend(error.missing)
        if missing:
            raise _Missing(missing, command)
        return found

    def binds(self, cls: type, field: str | None = None) -> bool:
        """Whether `cls` (or one field of it) is bound."""
        return any(name == cls.__name__ and field in (None, bound) for _, name, bound in self._bindings)

    def can_read(self, cls: type) -> bool:
        """Whether every required field of `cls` has a value."""
        try:
            self.read(cls)
        except _Missing:
            return False
        return True

    def set_defaults(self, cls: type, values: Mapping[str, Any], origin: str) -> None:
        """Binds the fields of `cls` that have no value yet; a field bound to an undefined macro has none.

        Names in `values` that `cls` lacks are ignored; `origin` says where the values come from, for error messages.
        """
        known = {field.name for field, _ in annotations.fields(cls)}
        for field, value in values.items():
            bound = self._find('', cls.__name__, field)
            if field in known and (bound is None or self._unset_macro(bound.value)):
                self._bindings['', cls.__name__, field] = _Bound(value, origin)

    def use_recipe(self, recipe: str, instead_of: str, values: Mapping[str, Any]) -> None:
        """Replaces macros that still have the value they got in one gin file.

        Args:
            recipe: the gin file with their new values.
            instead_of: the gin file whose values are replaced.
            values: more new values, macro -> value.
        """
        path, replaced = find_gin_file(recipe, ''), find_gin_file(instead_of, '')
        given = {name: _Bound(value, path) for name, value in values.items()}
        for statement in gin_syntax.statements(read_text(path), path):
            place = f'{path}:{statement.location.line_num}'
            given[gin_syntax.scoped_name(statement)] = _Bound(statement.value, place)
        for name, bound in given.items():
            if name in self._macros and self._macros[name].origin.rpartition(':')[0] == replaced:
                self._macros[name] = bound
                self._macro_values.pop(name, None)

    def operative_config(self) -> str:
        """Everything read so far, defaults included, as gin that can be read again; macros stay macros."""
        macros: dict[str, str] = {}
        settings = []
        for (scope, name), values in sorted(self._read.items()):
            key = f'{scope}/{name}' if scope else name
            settings.append(f'\n# {key}')
            for field, value in values.items():
                bound = self._find(scope, name, field)
                expression = bound.value if bound is not None and any(gin_syntax.marks(bound.value)) else value
                self._collect_macros(expression, macros)
                settings.append(f'{key}.{field} = {gin_syntax.to_gin(expression)}')
        head = [f'# The settings of this run, written by t5flan {__version__}. Change one with --gin.NAME=value.']
        return '\n'.join([*head, '', *(f'{name} = {text}' for name, text in sorted(macros.items())), *settings, ''])

    def _find(self, scope: str, name: str, field: str) -> _Bound | None:
        parts = scope.split('/') if scope else []
        for length in range(len(parts), -1, -1):  # the innermost scope wins
            if bound := self._bindings.get(('/'.join(parts[:length]), name, field)):
                return bound
        if inner := self._nested.get((name, field)):
            return _Bound(gin_syntax.Reference(scope, inner, called=True), inner)
        return None

    def _unset_macro(self, value: Any, seen: tuple[str, ...] = ()) -> str | None:
        """The first macro in `value` that is undefined or %gin.REQUIRED."""
        for macro in gin_syntax.macros_in(value):
            if macro in seen:
                raise UsageError(f'the macro {macro} is defined by itself: {" = ".join((*seen, macro))}')
            if macro not in self._macros:
                return macro
            inner = self._unset_macro(self._macros[macro].value, (*seen, macro))
            if inner is not None:
                return macro if inner in _REQUIRED else inner
        return None

    def _why_unset(self, macro: str, bound: _Bound) -> str:
        text = f' (taken from {macro} in {bound.origin}'
        near = None if macro in self._macros else nearest(macro, self._macros, cutoff=0.8)
        return f'{text}; did you mean {near}?)' if near else f'{text})'

    def _typed(self, setting: str, bound: _Bound, annotation: Any, command: str) -> Any:
        value = self._expand(bound.value, annotation, command)
        self._check_trusted(setting, bound, value)
        try:
            return annotations.fit(value, annotation)
        except annotations.Mismatch:
            given, expected = annotations.with_type(value), annotations.describe(annotation)
            raise UsageError(f'{setting} is given {given}, expected {expected} (from {self._origin(bound)})') from None

    def _check_trusted(self, setting: str, bound: _Bound, value: Any) -> None:
        """Requires a setting that runs code not to come from a checkpoint folder."""
        name, _, field = setting.rpartition('/')[2].partition('.')
        if not value or self._stored is None or field not in getattr(self._configurables.get(name), 'TRUSTED', ()):
            return
        macros = {*gin_syntax.macros_in(bound.value)}
        while more := {one for name in macros for one in gin_syntax.macros_in(self._macros[name].value)} - macros:
            macros |= more
        for one in (bound, *(self._macros[name] for name in macros)):
            if one.origin.startswith(f'{self._stored}:'):
                problem = f'{one.origin} sets {setting}, which runs Python code, in the settings of a checkpoint folder'
                fix = f'Set --gin.{setting}="{value}" if you trust the code, or --gin.{setting}=[] to go without it'
                raise UsageError(f'{problem}. {fix}')

    def _origin(self, bound: _Bound) -> str:
        if isinstance(bound.value, gin_syntax.Macro):
            return f'{bound.value.name}, {self._origin(self._macros[bound.value.name])}'
        return bound.origin

    def _expand(self, value: Any, annotation: Any, command: str) -> Any:
        """Replaces macros and references by their values, and bare words by what `annotation` makes of them."""
        if isinstance(value, gin_syntax.Bare):
            return self._expand(gin_syntax.from_bare(value.text, annotation), annotation, command)
        if isinstance(value, gin_syntax.Macro):
            expanded = self._expand(self._macros[value.name].value, annotation, command)
            self._macro_values.setdefault(value.name, expanded)
            return expanded
        if isinstance(value, gin_syntax.Reference):
            return self._read_reference(value, command)
        item = annotations.item_type(annotation)
        if isinstance(value, (list, tuple)):
            return type(value)(self._expand(one, item, command) for one in value)
        if isinstance(value, dict):
            return {self._expand_key(k, command): self._expand(v, item, command) for k, v in value.items()}
        return value

    def _expand_key(self, key: Any, command: str) -> Any:
        expanded = self._expand(key, Any, command)
        if not isinstance(expanded, (str, int, float, bool, type(None))):
            raise UsageError(f'{gin_syntax.to_gin(key)} is the key of a dict, expected a name or a number')
        return expanded

    def _read_reference(self, reference: gin_syntax.Reference, command: str) -> Any:
        text, before = gin_syntax.to_gin(reference), self._reading
        if text in before:
            raise UsageError(f'{text} contains itself: {" in ".join((text, *reversed(before)))}')
        self._reading = (*before, text)
        try:
            return self.read(self._class(reference.name), command, reference.scope)
        finally:
            self._reading = before

    def _collect_macros(self, expression: Any, into: dict[str, str]) -> None:
        for name in gin_syntax.macros_in(expression):
            value = self._macros[name].value
            if isinstance(value, gin_syntax.Bare) or not any(gin_syntax.marks(value)):
                value = self._macro_values[name]
            into[name] = gin_syntax.to_gin(value)
            self._collect_macros(value, into)

    # -- Binding ----------------------------------------------------------------------------------------------------

    def _add_file(self, name: str, origin: str, including: tuple[str, ...] = ()) -> None:
        path = find_gin_file(name, origin)
        if path in including:
            raise UsageError(f'{origin}: {path} includes itself')
        for statement in gin_syntax.statements(read_text(path), path):
            place = f'{path}:{statement.location.line_num}'
            if isinstance(statement, gin_syntax.Include) and name == self._stored:
                raise UsageError(
                    f'{place}: the settings of a checkpoint folder include no other files. Remove the line'
                )
            if isinstance(statement, gin_syntax.Include):
                self._add_file(statement.filename, place, (*including, path))
            elif isinstance(statement, gin_syntax.Import):
                hint = f"list modules that register your own SeqIO tasks in DataConfig.modules = ['{statement.module}']"
                raise UsageError(f'{place}: gin imports are not supported; {hint}')
            elif isinstance(statement, gin_syntax.Binding):
                self._bind(statement, statement.value, place)
        self._files.append(path)

    def _add_binding(self, text: str) -> str | None:
        """Binds one `NAME=value` of the command line; returns the name if it is a macro."""
        key, equals, value = text.partition('=')
        key = key.strip()
        flag = f'--gin.{key}'
        if not equals:
            raise UsageError(f'{flag} has no value: write {flag}=VALUE')
        if not re.fullmatch(r'(\w+/)*\w+(\.\w+)?', key):
            raise UsageError(f'{flag} is not a setting: write --gin.MACRO=VALUE or --gin.ModelConfig.emb_dim=VALUE')
        statement = next(iter(gin_syntax.statements(f'{key} = None\n', flag)))
        self._bind(statement, gin_syntax.Bare(value.strip()), flag)
        return None if statement.arg_name else gin_syntax.scoped_name(statement)

    def _bind(self, statement: gin_syntax.Binding, value: Any, origin: str) -> None:
        value = gin_syntax.map_references(value, lambda reference: self._checked(reference, origin))
        self._seen.update(gin_syntax.marks(value))
        if not statement.arg_name:
            self._macros[gin_syntax.scoped_name(statement)] = _Bound(value, origin)
            return
        cls, field, annotation = self._find_field(statement.selector, statement.arg_name, origin)
        if isinstance(value, gin_syntax.Bare):
            value = gin_syntax.from_bare(value.text, annotation)
        self._bindings[statement.scope, cls.__name__, field] = _Bound(value, origin)

    def _find_field(self, selector: str, name: str, origin: str) -> tuple[type, str, Any]:
        """The class, the present field name and the annotation of `selector.name`."""
        setting = f'{selector}.{name}'
        cls = self._class(self._current_class(selector))
        field = renames.current_name(cls, name)
        known = {} if cls is None else {one.name: annotation for one, annotation in annotations.fields(cls)}
        if cls is None or field not in known:
            prefix = '' if origin.startswith('--') else f'{origin}: '
            raise UsageError(f'{prefix}there is no setting {setting}{self._did_you_mean(setting)}')
        if field != name:
            renames.warn(setting, f'{cls.__name__}.{field}')
        return cls, field, known[field]

    def _class(self, name: str) -> Any:
        """The configurable of this name, or None."""
        if name not in self._configurables and name in self._imported_later:
            self._configurables[name] = self._imported_later[name]
        return self._configurables.get(name)

    def _current_class(self, name: str) -> str:
        if name in self._renamed_classes:
            renames.warn(name, self._renamed_classes[name])
        return self._renamed_classes.get(name, name)

    def _checked(self, reference: gin_syntax.Reference, origin: str) -> gin_syntax.Reference:
        """The reference under the present name of its class."""
        name = self._current_class(reference.name)
        known = {*self._configurables, *self._imported_later}
        if name not in known:
            near = nearest(name, sorted(known))
            raise UsageError(f'{origin}: there is no @{name}{f": did you mean @{near}()?" if near else ""}')
        if not reference.called:
            raise UsageError(f'{origin}: write @{name}() with parentheses')
        return dataclasses.replace(reference, name=name)

    def _check_macros_are_used(self, given: Sequence[str]) -> None:
        """Rejects a macro from the command line that no value uses: its name is probably misspelled."""
        used = self._used_macros()
        for name in given:
            if name not in used:
                files = f'no value in {", ".join(self._files)} uses it' if self._files else 'no --gin_file was given'
                raise UsageError(f'there is no setting {name}{self._did_you_mean(name, used)}; {files}')

    def _used_macros(self) -> set[str]:
        """The macros in values that apply."""
        bound = (*self._bindings.values(), *self._macros.values())
        return {name for one in bound for name in gin_syntax.macros_in(one.value)}

    def _check_all_is_used(self) -> None:
        """Rejects what no value uses, not even one that another file replaces: its name is probably misspelled.

        These are macros, and settings of a scope, or of a class such as FileTask, that no reference reads.
        """
        seen = {mark.name for mark in self._seen if isinstance(mark, gin_syntax.Macro)}
        for name, one in self._macros.items():
            if name not in seen:
                hint = self._did_you_mean(name, self._used_macros()) or '. Remove it.'
                raise UsageError(f'{one.origin}: no value uses {name}{hint}')
        read = {(mark.scope, mark.name) for mark in self._seen if isinstance(mark, gin_syntax.Reference)}
        read |= {(scope, inner) for scope, outer in read for (cls, _), inner in self._nested.items() if cls == outer}
        for (scope, name, field), one in self._bindings.items():
            scopes = sorted(of for of, cls in read if cls == name)
            is_read = any(not scope or f'{of}/'.startswith(f'{scope}/') for of in scopes)
            if not is_read and (scope or name in self._holders):
                raise self._unread(scope, name, field, one.origin, scopes)
        self._all_is_used = True

    def _unread(self, scope: str, name: str, field: str, origin: str, scopes: Sequence[str]) -> UsageError:
        setting = f'{scope}/{name}.{field}' if scope else f'{name}.{field}'
        reference = gin_syntax.to_gin(gin_syntax.Reference(scope, name, called=True))
        near, holder = nearest(scope, scopes) if scope else None, self._holders.get(name)
        hint = f'; did you mean {near}/{name}.{field}?' if near else f'. Add it to {holder}.' if holder else '.'
        prefix = '' if origin.startswith('--') else f'{origin}: '
        return UsageError(f'{prefix}{setting} is not read: no value uses {reference}{hint}')

    @functools.cached_property
    def _holders(self) -> dict[str, str]:
        """Class that references name -> the setting they belong to: 'FileTask' -> 'DataConfig.file_tasks'."""
        found: dict[str, str] = {}
        for outer in self._configurables.values():
            for field, annotation in annotations.fields(outer):
                if (outer.__name__, field.name) in self._nested:
                    continue
                kinds = [annotations.item_type(annotation), *annotations.options(annotation)]
                kinds += map(annotations.item_type, tuple(kinds))
                classes = [kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
                names = {kind.__name__ for kind in classes}
                if any('IN_WORDS' in vars(kind) for kind in classes):  # a base class, such as Adapter
                    names |= set(self._imported_later)
                found |= dict.fromkeys(names, f'{outer.__name__}.{field.name}')
        return found

    def _did_you_mean(self, name: str, macros: Iterable[str] = ()) -> str:
        near = nearest(name.partition('.')[0], [*self._configurables, *self._imported_later])
        if near:
            self._class(near)  # among those that are imported later, only this one is
        classes = self._configurables.values()
        settings = [f'{cls.__name__}.{field.name}' for cls in classes for field, _ in annotations.fields(cls)]
        near = nearest(name, [*macros, *settings])
        return f': did you mean {near}?' if near else ''
