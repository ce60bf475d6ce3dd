"""The files of a checkpoint folder beside its arrays: what the model is, which steps there are, and which to load."""

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import orbax.checkpoint as ocp

from t5flan.config.renames import current_settings
from t5flan.data.config import DataConfig
from t5flan.errors import UserError
from t5flan.files import PathLike, check_links, read_object, write_json
from t5flan.files.buckets import epath
from t5flan.files.checksums import NAME as CHECKSUMS
from t5flan.models.config import ModelConfig

DESCRIPTION = 't5flan.json'
CHECKPOINTS = 'checkpoints'
VOCABULARY = 'vocabulary'
HUGGING_FACE = 'huggingface'
SETTINGS = 'config.gin'

_STEP = re.compile(r'(0|[1-9][0-9]{0,9})')  # a step is an int32


@dataclasses.dataclass(frozen=True)
class Description:
    """What makes a checkpoint folder usable without the gin that made it.

    Attributes:
        model: the model's configuration.
        format: 'encoder_decoder', 'prefix_lm' or 'causal_lm': how inputs and targets become model features.
        feature_lengths: tokens of each feature.
        vocabulary: size and fingerprint of the vocabulary in the folder.
        data: the settings on which the data position depends (mixture, batch size, seed …).
        step: the step to load by default; None is the latest.
        started_in: the folder in which the run was started, absolute and seen from the workdir: relative paths of its
            settings begin there.
        adapter: if the folder holds an adapter, its method and settings, and path, step and fingerprint of its base.
    """

    model: ModelConfig
    format: str
    feature_lengths: Mapping[str, int]
    vocabulary: Mapping[str, Any]
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    step: int | None = None
    started_in: Sequence[str] = ()
    adapter: Mapping[str, Any] | None = None

    def write(self, folder: PathLike) -> None:
        """Writes t5flan.json atomically."""
        write_json(epath.Path(folder) / DESCRIPTION, self.to_dict(), indent=2)

    def to_dict(self) -> dict[str, Any]:
        """The fields, JSON-able."""
        fields = dataclasses.asdict(self) | {'model': self.model.to_dict()}
        if self.adapter is None:
            del fields['adapter']
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> 'Description':
        """The description with these fields, some of which may have the names of older releases.

        Raises:
            KeyError, TypeError, AttributeError, ValueError: they are not those of a description.
        """
        data = current_settings(DataConfig, fields.get('data', {}))
        model = ModelConfig.from_dict(current_settings(ModelConfig, fields['model']))
        made = cls(**{**fields, 'model': model, 'data': data})
        made._check_types()
        return made

    def _check_types(self) -> None:
        """Requires the types that JSON does not promise."""
        numbers = all(type(size) is int and 0 < size < 2**31 for size in self.feature_lengths.values())
        fits = {
            'format': isinstance(self.format, str),
            'feature_lengths': isinstance(self.feature_lengths, Mapping) and numbers,
            'vocabulary': isinstance(self.vocabulary, Mapping),
            'step': self.step is None or type(self.step) is int,
            'started_in': isinstance(self.started_in, list | tuple) and {*map(type, self.started_in)} <= {str},
            'adapter': self.adapter is None or {'method', 'settings', 'base', 'step', 'fingerprint'} <= {*self.adapter},
        }
        for name, fit in fits.items():
            if not fit:
                raise TypeError(f'{name} is {json.dumps(getattr(self, name))[:80]}')


def read_description(folder: PathLike) -> Description:
    """Reads t5flan.json of a workdir, or of one of its steps.

    Raises:
        UserError: the folder does not exist, or t5flan did not write it.
    """
    path = checkpoint_root(folder) / DESCRIPTION
    try:
        return Description.from_dict(read_object(path, 'the description of a checkpoint'))
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f'{path} is not the description of a checkpoint ({error}).') from None


def checkpoint_root(folder: PathLike) -> epath.Path:
    """The folder that holds t5flan.json, given that folder or one of its steps (WORKDIR/checkpoints/1000).

    Raises:
        UserError: neither holds a t5flan.json; an adapter of PEFT is named as such.
    """
    path = epath.Path(folder)
    for candidate in (path, path.parent.parent):
        if (candidate / DESCRIPTION).exists():
            return candidate
    if (path / 'adapter_config.json').exists():
        fix = f'Convert it with `t5flan convert --from=peft --to=t5flan --base=BASE {os.fspath(folder)} NEW`'
        raise UserError(f'{os.fspath(folder)} is an adapter in the format of PEFT, expected one of t5flan. {fix}.')
    problem = 'has no t5flan.json in it' if path.exists() else 'does not exist'
    raise UserError(f'{os.fspath(folder)} {problem}; expected the workdir of a `t5flan train` run. Set --checkpoint.')


def saved_steps(folder: PathLike) -> list[int]:
    """Steps of all complete checkpoints, ascending."""
    return [step for step, complete in _entries(folder).values() if complete and step is not None]


def not_steps(folder: PathLike) -> list[str]:
    """The names in checkpoints/ that look like a step, but are not one: absurd numbers, files, half a checkpoint.

    In a bucket, half a checkpoint is not among them: a run that was killed leaves it.
    """
    half = '://' not in os.fspath(folder)
    return [name for name, (step, complete) in _entries(folder).items() if step is None or (half and not complete)]


def _entries(folder: PathLike) -> dict[str, tuple[int | None, bool]]:
    """Name of each entry that is a number -> (its step, or None if it is absurd; whether it is complete), in order."""
    root = epath.Path(folder) / CHECKPOINTS
    if not root.is_dir():
        return {}
    found: dict[str, tuple[int | None, bool]] = {}
    for path in root.iterdir():
        if path.name.isdigit():
            step = int(path.name) if _STEP.fullmatch(path.name) and int(path.name) < 2**31 else None
            found[path.name] = step, step is not None and _is_complete(path)
    return dict(sorted(found.items(), key=lambda entry: (entry[1][0] is None, entry[1][0] or 0, entry[0])))


def _is_complete(path: epath.Path) -> bool:
    try:
        if not path.is_dir():
            return False
        has_checksums = '://' not in str(path) and (path / CHECKSUMS).exists()  # the last file of a local save
        return has_checksums or bool(ocp.utils.is_checkpoint_finalized(path))
    except (OSError, ValueError):
        if not path.exists():  # a run removed it meanwhile
            return False
        raise


def saved_at(folder: PathLike, step: int) -> int | None:
    """When a checkpoint was saved, in nanoseconds since 1970: another run may have a checkpoint of the same step.

    Args:
        folder: the workdir.

    Returns:
        The time, or None if the checkpoint does not say or is gone.
    """
    path = epath.Path(folder) / CHECKPOINTS / str(step) / '_CHECKPOINT_METADATA'
    try:
        return json.loads(path.read_text()).get('init_timestamp_nsecs')
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def latest_step(folder: PathLike) -> int | None:
    """The newest complete checkpoint's step, or None."""
    return max(saved_steps(folder), default=None)


def named_step(folder: PathLike, step: int | None = None) -> int:
    """`step` if given, else the step that a step folder names, else the description's, else the latest.

    Raises:
        UserError: there is no such checkpoint, or a link in it leads out of the folder.
    """
    root = checkpoint_root(folder)
    if step is None and epath.Path(folder) != root:
        name = epath.Path(folder).name
        if not _STEP.fullmatch(name):
            raise UserError(f'{os.fspath(folder)} is not a step, expected {root / CHECKPOINTS}/N. Set --checkpoint.')
        step = int(name)
    if step is None:
        step = read_description(root).step
    steps = saved_steps(root)
    if not steps:
        raise UserError(f'{root / CHECKPOINTS} has no complete checkpoint yet.')
    if step is not None and step not in steps:
        raise UserError(f'{root / CHECKPOINTS} has no step {step}; it has {steps}.')
    found = steps[-1] if step is None else step
    check_links(root, (DESCRIPTION, SETTINGS, VOCABULARY, HUGGING_FACE, f'{CHECKPOINTS}/{found}'))
    return found


def read_meta(folder: PathLike, step: int) -> dict[str, Any]:
    """What a step was saved with: its number, the seed and the data position.

    Raises:
        UserError: the file is damaged, or is that of another step.
    """
    path = epath.Path(folder) / CHECKPOINTS / str(step) / 'meta' / 'metadata'
    meta = read_object(path, 'what a step was saved with')
    if type(meta.get('step')) is not int or meta['step'] != step:
        raise UserError(f'{path} is of step {meta.get("step")!r}, expected {step}: the folder is that of another step.')
    return meta
