"""Gin in, frozen dataclasses out; gin_syntax.py has the language, this file what the names mean.

    settings = parse(['runs/finetune'], ['MIXTURE=practice', 'ModelConfig.dropout_rate=0.05'])
    model = settings.read(ModelConfig)
    text = settings.operative_config()

The parser is gin-config's; binding and checking are done here, because the dataclasses say what type each setting has: a
bare word on the command line becomes what its field wants (`007` stays '007' for a str), and a wrong name or type is
answered in one line, before JAX or TensorFlow is imported. A field that is itself settings (DataConfig.instructions) is
read from its own bindings (InstructionConfig.few_shot = …) without a reference. There is no global state.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from t5flan.config import annotations, gin_syntax
from t5flan.config.gin_files import find_gin_file, read_text
from t5flan.errors import UsageError, nearest
from t5flan.version import __version__

_REQUIRED = ('REQUIRED', 'gin.REQUIRED')


@dataclasses.dataclass(frozen=True)
class _Bound:
    """A value and where it was given: 'runs/finetune.gin:12' or '--gin.STEPS'."""

    value: Any
    origin: str


class _Missing(UsageError):
    """Required settings that nothing gives: (setting, the flag that would, why)."""

    def __init__(self, missing: Sequence[tuple[str, str, str]], command: str):
        self.missing = list(missing)
        by = f" by '{command}'" if command else ''
        names = ', '.join(f'{setting}{why}' for setting, _, why in missing)
        flags = ' '.join(dict.fromkeys(flag for _, flag, _ in missing))
        super().__init__(f'{names} {"is" if len(missing) == 1 else "are"} required{by} and not given: set {flags}')


def _together(cls: type, missing: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """The many sizes of a model as the one thing that gives them all."""
    if cls.__name__ == 'ModelConfig' and len(missing) > 2:
        return [('ModelConfig', '--gin_file=models/NAME', '')]
    return missing


def parse(gin_files: Iterable[str], gin_bindings: Iterable[str], configurables: Iterable[type]) -> 'Settings':
    """Reads gin files in order, then bindings (`NAME=value`, as after `--gin.`); what comes later wins.

    Raises:
        UsageError: a file that cannot be read or is not gin, or a name that nothing knows; one line.
    """
    settings = Settings(configurables)
    for name in gin_files:
        settings._add_file(name, asked_by='--gin_file')
    given = [settings._add_binding(binding) for binding in gin_bindings]
    settings._check_macros_are_used([name for name in given if name is not None])
    return settings


class Settings:
    """What gin files and the command line give, to be read as dataclasses."""

    def __init__(self, configurables: Iterable[type]) -> None:
        self._configurables = {cls.__name__: cls for cls in configurables}
        self._nested = {  # (class, field) -> the class of settings that the field is
            (name, field.name): annotation.__name__
            for name, cls in self._configurables.items()
            for field, annotation in annotations.fields(cls)
            if annotation in self._configurables.values()
        }
        self._macros: dict[str, _Bound] = {}
        self._bindings: dict[tuple[str, str, str], _Bound] = {}  # (scope, configurable, field)
        self._files: list[str] = []
        self._read: dict[tuple[str, str], dict[str, Any]] = {}  # (scope, configurable) -> resolved values
        self._macro_values: dict[str, Any] = {}  # as the field that took them wanted them

    # -- Reading ----------------------------------------------------------------------------------------------------

    def read(self, cls: type, command: str = '', scope: str = '') -> Any:
        """A `cls` with every field bound, checked against its annotation.

        Raises:
            UsageError: a required field is not given, a macro is not defined, or a value has the wrong type.
            UserError: `cls` itself refuses a value.
        """
        values, missing = {}, []
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
            raise _Missing(_together(cls, missing), command)
        self._read[scope, cls.__name__] = {
            field.name: values.get(field.name, annotations.default(field)) for field, _ in annotations.fields(cls)
        }
        return cls(**values)

    def read_all(self, classes: Sequence[type], command: str = '') -> list[Any]:
        """`read` of each, with all that is missing told at once."""
        found, missing = [], []
        for cls in classes:
            try:
                found.append(self.read(cls, command))
            except _Missing as error:
                missing.extend(error.missing)
        if missing:
            raise _Missing(missing, command)
        return found

    def gives(self, cls: type, field: str | None = None) -> bool:
        """Whether anything binds `cls` (or one field of it)."""
        return any(name == cls.__name__ and field in (None, bound) for _, name, bound in self._bindings)

    def can_read(self, cls: type) -> bool:
        """Whether nothing that `cls` requires is missing."""
        try:
            self.read(cls)
        except _Missing:
            return False
        return True

    def offer(self, cls: type, values: Mapping[str, Any], origin: str) -> None:
        """Binds those fields of `cls` that nothing gives yet (a macro that nothing defines gives nothing)."""
        known = {field.name for field, _ in annotations.fields(cls)}
        for field, value in values.items():
            bound = self._find('', cls.__name__, field)
            if field in known and (bound is None or self._unset_macro(bound.value)):
                self._bindings['', cls.__name__, field] = _Bound(value, origin)

    def operative_config(self) -> str:
        """All that was read so far, defaults included, as gin that `parse` takes again; macros stay macros."""
        macros, settings = {}, []
        for (scope, name), values in sorted(self._read.items()):
            key = f'{scope}/{name}' if scope else name
            settings.append(f'\n# {key}')
            for field, value in values.items():
                bound = self._find(scope, name, field)
                expression = bound.value if bound is not None and gin_syntax.mentions(bound.value) else value
                self._collect_macros(expression, macros)
                settings.append(f'{key}.{field} = {gin_syntax.written(expression)}')
        head = [f'# The settings of this run, written by t5flan {__version__}. Change one with --gin.NAME=value.']
        return '\n'.join([*head, '', *(f'{name} = {text}' for name, text in sorted(macros.items())), *settings, ''])

    def _find(self, scope: str, name: str, field: str) -> _Bound | None:
        parts = scope.split('/') if scope else []
        for length in range(len(parts), -1, -1):  # the innermost scope wins
            bound = self._bindings.get(('/'.join(parts[:length]), name, field))
            if bound is not None:
                return bound
        if inner := self._nested.get((name, field)):
            return _Bound(gin_syntax.Reference(scope, inner, called=True), inner)
        return None

    def _unset_macro(self, value: Any, seen: tuple[str, ...] = ()) -> str | None:
        """The first macro in `value` that nothing defines, or that is %gin.REQUIRED."""
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
        try:
            return annotations.fit(value, annotation)
        except annotations.Mismatch:
            raise UsageError(
                f'{setting} is given {annotations.shown(value)}, expected {annotations.words(annotation)} '
                f'(from {self._origin(bound)})'
            ) from None

    def _origin(self, bound: _Bound) -> str:
        if isinstance(bound.value, gin_syntax.Macro):
            return f'{bound.value.name}, {self._origin(self._macros[bound.value.name])}'
        return bound.origin

    def _expand(self, value: Any, annotation: Any, command: str) -> Any:
        """Macros and references replaced by what they stand for, bare words by what `annotation` wants."""
        if isinstance(value, gin_syntax.Bare):
            return self._expand(gin_syntax.from_bare(value.text, annotation), annotation, command)
        if isinstance(value, gin_syntax.Macro):
            expanded = self._expand(self._macros[value.name].value, annotation, command)
            self._macro_values.setdefault(value.name, expanded)
            return expanded
        if isinstance(value, gin_syntax.Reference):
            return self.read(self._configurables[value.name], command, value.scope)
        if isinstance(value, (list, tuple)):
            return type(value)(self._expand(item, annotations.item_type(annotation), command) for item in value)
        if isinstance(value, dict):
            return {
                self._expand(k, Any, command): self._expand(v, annotations.item_type(annotation), command)
                for k, v in value.items()
            }
        return value

    def _collect_macros(self, expression: Any, into: dict[str, str]) -> None:
        for name in gin_syntax.macros_in(expression):
            value = self._macros[name].value
            if isinstance(value, gin_syntax.Bare) or not gin_syntax.mentions(value):
                value = self._macro_values[name]
            into[name] = gin_syntax.written(value)
            self._collect_macros(value, into)

    # -- Giving -----------------------------------------------------------------------------------------------------

    def _add_file(self, name: str, asked_by: str, including: tuple[str, ...] = ()) -> None:
        path = find_gin_file(name, asked_by)
        if path in including:
            raise UsageError(f'{asked_by}: {path} includes itself')
        text = read_text(path)
        for statement in gin_syntax.statements(text, path):
            origin = f'{path}:{statement.location.line_num}'
            if isinstance(statement, gin_syntax.Include):
                self._add_file(statement.filename, origin, (*including, path))
            elif isinstance(statement, gin_syntax.Import):
                raise UsageError(
                    f'{origin}: t5flan reads no import from gin; modules that register your own SeqIO tasks '
                    f"go into DataConfig.modules = ['{statement.module}']"
                )
            elif isinstance(statement, gin_syntax.Binding):
                self._bind(statement, statement.value, origin)
        self._files.append(path)

    def _add_binding(self, text: str) -> str | None:
        """One `NAME=value` of the command line; returns the macro's name if it is one."""
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
        for reference in gin_syntax.parts(value, gin_syntax.Reference):
            self._check_reference(reference, origin)
        if not statement.arg_name:
            self._macros[gin_syntax.scoped_name(statement)] = _Bound(value, origin)
            return
        setting = f'{statement.selector}.{statement.arg_name}'
        prefix = '' if origin.startswith('--') else f'{origin}: '
        cls = self._configurables.get(statement.selector)
        if cls is None:
            raise UsageError(f'{prefix}there is no setting {setting}{self._did_you_mean(setting)}')
        if statement.arg_name not in (field.name for field, _ in annotations.fields(cls)):
            raise UsageError(f'{prefix}there is no setting {setting}{self._did_you_mean(setting)}')
        if isinstance(value, gin_syntax.Bare):
            annotation = dict((field.name, hint) for field, hint in annotations.fields(cls))[statement.arg_name]
            value = gin_syntax.from_bare(value.text, annotation)
            for reference in gin_syntax.parts(value, gin_syntax.Reference):
                self._check_reference(reference, origin)
        self._bindings[statement.scope, statement.selector, statement.arg_name] = _Bound(value, origin)

    def _check_reference(self, reference: gin_syntax.Reference, origin: str) -> None:
        if reference.name not in self._configurables:
            near = nearest(reference.name, self._configurables)
            raise UsageError(f'{origin}: there is no @{reference.name}{f": did you mean @{near}()?" if near else ""}')
        if not reference.called:
            raise UsageError(f'{origin}: write @{reference.name}() with brackets: the settings themselves are wanted')

    def _check_macros_are_used(self, given: Sequence[str]) -> None:
        """A macro of the command line that no value mentions would do nothing: a misspelt name."""
        used = {
            name
            for bound in (*self._bindings.values(), *self._macros.values())
            for name in gin_syntax.macros_in(bound.value)
        }
        for name in given:
            if name not in used:
                files = (
                    f'; no value in {", ".join(self._files)} takes it' if self._files else '; no --gin_file was given'
                )
                raise UsageError(f'there is no setting {name}{self._did_you_mean(name, used)}{files}')

    def _did_you_mean(self, name: str, macros: Iterable[str] = ()) -> str:
        settings = [
            f'{cls}.{field.name}' for cls, kind in self._configurables.items() for field, _ in annotations.fields(kind)
        ]
        near = nearest(name, [*macros, *settings])
        return f': did you mean {near}?' if near else ''
