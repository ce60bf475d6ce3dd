"""Whether a checkpoint is what was saved: every file of a step has its checksum in the step's checksums.json.

Steps of earlier releases have no checksums; they are read with a note.
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from t5flan.errors import UserError
from t5flan.files import PathLike, checksums
from t5flan.files.buckets import epath
from t5flan.files.checksums import Damaged
from t5flan.training.checkpoints.folder import (
    CHECKPOINTS,
    DESCRIPTION,
    HUGGING_FACE,
    SETTINGS,
    VOCABULARY,
    Description,
    named_step,
    not_steps,
    read_description,
    read_meta,
    saved_steps,
)
from t5flan.training.checkpoints.shards import take_digests

ITEMS = ('parameters', 'optimizer', 'meta')
RUN_FIELDS = ('dtype', 'dropout_rate', 'scan_layers', 'remat', 'attention')
"""Fields of ModelConfig that say how a model runs; they do not change the meaning of its parameters."""
_BESIDE = (SETTINGS, VOCABULARY, HUGGING_FACE)
"""What belongs to every step of a folder, and may be changed on purpose."""
_OF_COMMIT = ('_CHECKPOINT_METADATA', 'commit_success.txt')
"""Files that Orbax writes last."""
_TEMPORARY = '.orbax-checkpoint-tmp'


# -- Writing --------------------------------------------------------------------------------------------------------


class LocalPath(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """Orbax's temporary folder of a step, which gets its checksums before it gets its name."""

    async def finalize(self, **options: Any) -> None:
        """Completes the step; runs in Orbax's thread, on the first host, once all hosts have written."""
        final = self.get_final()
        if not final.name.isdigit():  # an item of the step
            return await super().finalize(**options)
        self._final_path = whole = final.parent / f'{final.name}.whole{_TEMPORARY}'
        try:
            await super().finalize(**options)
        finally:
            self._final_path = final
        write_checksums(whole, final.parent.parent, int(final.name), digests=take_digests(whole))
        whole.rename(final)
        return None


class BucketPath(ocp.path.atomicity.CommitFileTemporaryPath):
    """A step in a bucket, which is complete once it has a commit file."""

    async def finalize(self, **options: Any) -> None:
        """Completes the step; see `LocalPath`."""
        final = self.get_final()
        if final.name.isdigit():  # not an item of the step
            write_checksums(final, final.parent.parent, int(final.name), ignored=_OF_COMMIT)
        await super().finalize(**options)


def temporary_path_class(folder: PathLike) -> type:
    """The class for Orbax."""
    return BucketPath if '://' in os.fspath(folder) else LocalPath


def write_checksums(
    step_folder: PathLike,
    root: PathLike,
    step: int,
    ignored: Collection[str] = (),
    digests: Mapping[str, str] | None = None,
) -> None:
    """Writes the checksums of a complete step, and what the folder around it says about it.

    Args:
        root: the workdir.
        ignored: files that are not complete yet.
        digests: see `checksums.scan`.
    """
    path = epath.Path(root) / DESCRIPTION
    description = read_description(root).to_dict() if path.exists() else None
    beside = checksums.scan(root, _BESIDE)
    checksums.write(step_folder, {'step': step, 'description': description, 'beside': beside}, ignored, digests)


# -- Checking -------------------------------------------------------------------------------------------------------


def find_step(folder: PathLike, step: int | None = None) -> int:
    """`step` if given, else the step that a step folder names, else the description's, else the latest.

    Raises:
        UserError: there is no such checkpoint, its files are not those that were saved, or a link in it leads out of
            the folder.
    """
    found = named_step(folder, step)
    root = epath.Path(folder)
    root = root if (root / DESCRIPTION).exists() else root.parent.parent
    for name in not_steps(root):
        tell(f'{root / CHECKPOINTS / name} is not a complete checkpoint: ignored')
    require_whole(root, found, ('parameters', 'meta'), sizes_only=True)
    for line in changed_beside(root, found):
        tell(line)
    return found


def require_whole(folder: PathLike, step: int, items: Collection[str] = ITEMS, sizes_only: bool = False) -> None:
    """Requires a step to be what was saved.

    Args:
        folder: the workdir.
        items: the folders in the step to check.
        sizes_only: whether to check names and sizes of the files, but not their bytes.

    Raises:
        UserError: it is not; the message names the file, and the newest step that is whole.
    """
    try:
        line = check_step(folder, step, items, sizes_only)
    except UserError as error:
        whole = next((one for one in reversed(saved_steps(folder)) if one != step and is_whole(folder, one)), None)
        other = epath.Path(folder) / CHECKPOINTS / str(whole)
        fix = 'no other step is whole' if whole is None else f'step {whole} is whole (set {other})'
        raise UserError(f'step {step} is damaged: {_reason(error)}. Restore the file; {fix}.') from None
    check_description(folder, step)
    if line is not None:
        tell(line)


def _reason(error: UserError) -> str:
    return str(error).removesuffix('Restore it.').rstrip('. ')


def is_whole(folder: PathLike, step: int) -> bool:
    """Whether a step is what was saved, as far as it says."""
    try:
        check_step(folder, step)
    except UserError:
        return False
    return True


def check_step(folder: PathLike, step: int, items: Collection[str] = ITEMS, sizes_only: bool = False) -> str | None:
    """Requires a step to be what was saved; see `require_whole`.

    Returns:
        A line, if it has no checksums.

    Raises:
        UserError: it is not.
    """
    path = epath.Path(folder) / CHECKPOINTS / str(step)
    content = checksums.read(path)
    line = None
    if content is None:
        line = f'{path} has no {checksums.NAME} (an earlier version of t5flan saved it): its files are not verified'
    elif content['step'] != step:
        raise Damaged(f'{path} is a copy of step {content["step"]}')
    else:
        checksums.compare(path, content, items, sizes_only)
    read_meta(folder, step)
    return line


def check_description(folder: PathLike, step: int) -> None:
    """Requires t5flan.json to describe the model that the step was saved with.

    Raises:
        UserError: it has changed.
    """
    recorded, now = _recorded(folder, step), read_description(folder)
    if recorded is None:
        return
    before, after = _meaning(recorded), _meaning(now)
    for name in before:
        if before[name] != after.get(name):
            path = epath.Path(folder) / DESCRIPTION
            was, now_is = repr(before[name])[:100], repr(after.get(name))[:100]
            problem = f'{path} is damaged: {name} is {now_is}, it was {was} when step {step} was saved'
            raise UserError(f'{problem}. Set it back.')


def changed_beside(folder: PathLike, step: int) -> list[str]:
    """Lines about files of the folder that have changed since a step was saved, and may have on purpose."""
    root = epath.Path(folder)
    content = checksums.read(root / CHECKPOINTS / str(step))
    if content is None:
        return []
    before = {name: tuple(entry) for name, entry in content['beside'].items()}
    after = checksums.scan(root, _BESIDE, known=before)
    names = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
    lines = [f'{root / name} has changed since step {step} was saved' for name in names]
    recorded = _recorded(folder, step)
    if recorded is not None:
        was, now = recorded.model.to_dict(), read_description(folder).model.to_dict()
        lines += [
            f'{root / DESCRIPTION}: {name} is {now[name]!r}, it was {was[name]!r} when step {step} was saved'
            for name in RUN_FIELDS
            if now[name] != was[name]
        ]
    return lines


def changed_settings(folder: PathLike) -> list[str]:
    """A line if config.gin is not what it was when the latest step was saved; `folder` has a step."""
    content = checksums.read(epath.Path(folder) / CHECKPOINTS / str(saved_steps(folder)[-1]))
    after = checksums.scan(folder, (SETTINGS,))
    if content is None or SETTINGS not in content['beside']:
        return []
    if tuple(content['beside'][SETTINGS]) == after.get(SETTINGS):
        return []
    return [f'{epath.Path(folder) / SETTINGS} has changed since step {content["step"]} was saved']


def _recorded(folder: PathLike, step: int) -> Description | None:
    """The description with which a step was saved, if it has checksums."""
    content = checksums.read(epath.Path(folder) / CHECKPOINTS / str(step))
    fields = None if content is None else content['description']
    return None if fields is None else Description.from_dict(fields)


def _meaning(description: Description) -> dict[str, Any]:
    """The fields on which the meaning of the arrays depends, which no start of a run may change."""
    model = {f'model.{name}': value for name, value in description.model.to_dict().items() if name not in RUN_FIELDS}
    adapter = dict(description.adapter or {})
    for name in ('base', 'base_from_here', 'fingerprint'):  # the base may have moved; the fingerprint is added later
        adapter.pop(name, None)
    return {
        **model,
        'format': description.format,
        'feature_lengths': dict(description.feature_lengths),
        'vocabulary': dict(description.vocabulary),
        **{f'data.{name}': value for name, value in description.data.items() if name != 'batch_size'},
        'adapter': adapter,
    }


# -- Resuming -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Newest:
    """The newest whole step of a run, and lines about what is newer than it."""

    step: int | None
    lines: tuple[str, ...] = ()


def set_damaged_aside(folder: PathLike) -> Newest:
    """Finds the newest whole step, and renames what is newer or no step: Orbax would count it among the steps.

    The first host reads; all hosts call it.

    Raises:
        UserError: there are steps, and none is whole.
    """
    step, lines, problem = -1, [], None
    if jax.process_index() == 0:
        try:
            newest = _set_damaged_aside(epath.Path(folder))
            step, lines = -1 if newest.step is None else newest.step, [*newest.lines]
        except (UserError, OSError) as error:
            problem = error
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        found = multihost_utils.broadcast_one_to_all(np.array([step, problem is not None], np.int64))
        step = int(found[0])
        if found[1] and problem is None:
            problem = UserError(f'{os.fspath(folder)} cannot be resumed; the first process of the run says why.')
    if problem is not None:
        raise problem
    return Newest(None if step < 0 else step, tuple(lines))


def _set_damaged_aside(root: epath.Path) -> Newest:
    strays, problems, lines = not_steps(root), {}, []
    for step in reversed(saved_steps(root)):
        try:
            line = check_step(root, step)
        except UserError as error:
            problems[step] = f'step {step} is damaged: {_reason(error)}'
            continue
        for name in [*strays, *map(str, problems)]:
            reason = problems.get(int(name), f'{root / CHECKPOINTS / name} is not a complete checkpoint')
            lines.append(f'{reason}; it is now {_rename(root / CHECKPOINTS / name).name}')
        if problems:
            lines.append(f'the newest whole checkpoint is that of step {step}')
        return Newest(step, (*lines, *([line] if line else ())))
    if problems or strays:
        first = next(iter(problems.values()), f'{root / CHECKPOINTS / [*strays, ""][0]} is not a complete checkpoint')
        fix = f'Restore its files, remove {root / CHECKPOINTS} to train from the beginning, or set another --workdir'
        raise UserError(f'{first}, and no other step is whole. {fix}.')
    return Newest(None)


def _rename(path: epath.Path) -> epath.Path:
    """Renames a folder to NAME.damaged, or NAME.damaged.2 and so on."""
    names = (f'{path.name}.damaged' + (f'.{number}' if number > 1 else '') for number in range(1, 10**6))
    free = next(path.parent / name for name in names if not (path.parent / name).exists())
    path.rename(free)
    return free


@functools.cache
def tell(line: str) -> None:
    """Prints a note to the terminal, once."""
    print(f'note: {line}', file=sys.stderr)
