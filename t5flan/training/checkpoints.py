"""The checkpoint folder: what a run was, and its state at some steps.

    WORKDIR/
      t5flan.json               what the model is: its configuration, format, feature lengths, vocabulary
      vocabulary/               the vocabulary itself
      config.gin                the operative gin
      checkpoints/STEP/
        parameters/             by T5X's names: encoder/layers/attention/query/kernel …
        optimizer/              the optimizer's state
        meta/                   step, seed, data position

`evaluate`, `infer` and `convert` need only this folder. A step appears under its own name when it is whole (Orbax writes
elsewhere and renames), so a run killed while saving finds the step before.
"""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from t5flan.errors import UserError
from t5flan.files import write_json
from t5flan.models.config import ModelConfig
from t5flan.training.config import CheckpointConfig
from t5flan.training.state import TrainState

DESCRIPTION = 't5flan.json'
CHECKPOINTS = 'checkpoints'
VOCABULARY = 'vocabulary'


@dataclasses.dataclass(frozen=True)
class Description:
    """What makes a checkpoint folder usable without the gin that made it."""

    model: ModelConfig
    format: str
    """'encoder_decoder', 'prefix_lm' or 'causal_lm': how inputs and targets become model features."""
    feature_lengths: Mapping[str, int]
    vocabulary: Mapping[str, Any]
    """Size and fingerprint of the vocabulary in the folder."""
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The settings on which the data position depends (mixture, batch size, seed …)."""
    step: int | None = None
    """The step to use when none is asked for; None is the latest."""

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes t5flan.json whole or not at all."""
        fields = dataclasses.asdict(self) | {'model': self.model.to_dict()}
        write_json(epath.Path(folder) / DESCRIPTION, fields, indent=2)


def read_description(folder: str | os.PathLike[str]) -> Description:
    """What the checkpoint folder says of itself.

    Raises:
        UserError: there is no such folder, or it is not one that t5flan wrote.
    """
    path = checkpoint_root(folder) / DESCRIPTION
    try:
        fields = json.loads(path.read_text())
        return Description(**fields | {'model': ModelConfig.from_dict(fields['model'])})
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f'{path} is not the description of a checkpoint ({error}).') from None


def checkpoint_root(folder: str | os.PathLike[str]) -> epath.Path:
    """The folder that holds t5flan.json, given it or one of its steps (WORKDIR/checkpoints/1000)."""
    folder = epath.Path(folder)
    for candidate in (folder, folder.parent.parent):
        if (candidate / DESCRIPTION).exists():
            return candidate
    what = 'has no t5flan.json in it' if folder.exists() else 'does not exist'
    raise UserError(f'{os.fspath(folder)} {what}; expected the workdir of a `t5flan train` run. Set --checkpoint.')


def latest_step(folder: str | os.PathLike[str]) -> int | None:
    """The newest whole checkpoint's step, or None."""
    steps = saved_steps(folder)
    return steps[-1] if steps else None


def saved_steps(folder: str | os.PathLike[str]) -> list[int]:
    """Steps of all whole checkpoints, ascending."""
    root = epath.Path(folder) / CHECKPOINTS
    if not root.exists():
        return []
    return sorted(
        int(path.name) for path in root.iterdir() if path.name.isdigit() and ocp.utils.is_checkpoint_finalized(path)
    )


class Checkpoints:
    """Saves a run's state and finds it again.

    Saving is asynchronous: `save` returns once the arrays are copied off the devices; `wait` or the next `save`
    reports what went wrong while writing.
    """

    def __init__(self, workdir: str | os.PathLike[str], config: CheckpointConfig):
        self.workdir = epath.Path(workdir)
        self.config = config
        keep: list[preservation_policy.PreservationPolicy] = [preservation_policy.LatestN(config.keep)]
        if config.best_metric is not None:
            keep.append(
                preservation_policy.BestN(
                    get_metric_fn=lambda metrics: metrics[config.best_metric],
                    reverse=config.best_mode == 'min',
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._manager = ocp.CheckpointManager(
            (self.workdir / CHECKPOINTS).absolute() if '://' not in str(workdir) else self.workdir / CHECKPOINTS,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(keep),
                cleanup_tmp_directories=True,
                create=True,
            ),
        )
        self._last_whole = self._manager.latest_step()

    @property
    def last_whole_step(self) -> int | None:
        """The newest step known to be whole on disk."""
        return self._last_whole

    def save(self, state: TrainState, meta: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        """Starts saving `state`; `metrics` decide which checkpoint is best.

        Raises:
            UserError: this save or the one before it could not be written (a full disk, say).
        """
        step = int(state.step)
        if self.config.best_metric and metrics and self.config.best_metric not in metrics:
            raise UserError(
                f'CheckpointConfig.best_metric={self.config.best_metric!r} is not measured; '
                f'there are {sorted(metrics)}.'
            )
        try:
            self.wait()
            if step in self._manager.all_steps():
                return
            self._manager.save(
                step,
                metrics=dict(metrics) if metrics else None,
                force=True,
                args=ocp.args.Composite(
                    parameters=ocp.args.PyTreeSave(to_names(state.model)),
                    optimizer=ocp.args.PyTreeSave(to_names(state.opt_state)),
                    meta=ocp.args.JsonSave(dict(meta) | {'step': step}),
                ),
            )
        except UserError:
            raise
        except Exception as error:
            raise self._failed(step, error) from error

    def wait(self) -> None:
        """Blocks until the last save is whole on disk.

        Raises:
            UserError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(None, error) from error
        self._last_whole = self._manager.latest_step()

    def _failed(self, step: int | None, error: Exception) -> UserError:
        cause = ' '.join(str(error).split())
        named = re.search(r'No space left on device|Disk quota exceeded|File too large|Permission denied', cause)
        self._last_whole = latest_step(self.workdir)
        last = f'step {self._last_whole}' if self._last_whole is not None else 'none'
        return UserError(
            f'saving {f"step {step}" if step is not None else "a checkpoint"} to '
            f'{self.workdir / CHECKPOINTS} failed: {named.group(0) if named else cause[:300]}. '
            f'The last whole checkpoint is {last}; mend the disk and start the same command again.'
        )

    def close(self) -> None:
        """Waits for the last save and releases Orbax's threads."""
        self.wait()
        self._manager.close()

    def restore(self, abstract: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
        """The state at `step` (default: the latest) and its meta.

        Args:
            abstract: the state's shapes, dtypes and shardings; the mesh may be another than the one that saved it.
        """
        step = self._manager.latest_step() if step is None else step
        state, meta = restore_state(self.workdir, step, abstract)
        return state, meta


def restore_state(folder: str | os.PathLike[str], step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Model, optimizer state and meta of one step, each array placed as `abstract` says."""
    model = _restore_item(folder, step, 'parameters', abstract.model)
    opt_state = _restore_item(folder, step, 'optimizer', abstract.opt_state)
    meta = read_meta(folder, step)
    counter = jax.device_put(jax.numpy.asarray(meta['step'], abstract.step.dtype), abstract.step.sharding)
    return TrainState(step=counter, model=model, opt_state=opt_state), meta


def restore_parameters(folder: str | os.PathLike[str], abstract_model: Any, step: int | None = None) -> Any:
    """The parameters alone, for evaluation, generation and initialising another run.

    Raises:
        UserError: no whole checkpoint, an absent step, or parameters of other names or shapes.
    """
    root = checkpoint_root(folder)
    return _restore_item(root, find_step(folder, step), 'parameters', abstract_model)


def find_step(folder: str | os.PathLike[str], step: int | None = None) -> int:
    """The step asked for, the one that a step folder names, or the latest.

    Raises:
        UserError: it is not there.
    """
    root = checkpoint_root(folder)
    if step is None and epath.Path(folder) != root:
        step = int(epath.Path(folder).name)
    if step is None:
        step = read_description(root).step
    steps = saved_steps(root)
    if not steps:
        raise UserError(f'{root / CHECKPOINTS} holds no whole checkpoint yet.')
    if step is not None and step not in steps:
        raise UserError(f'{root / CHECKPOINTS} has no step {step}; it has {steps}.')
    return steps[-1] if step is None else step


def read_meta(folder: str | os.PathLike[str], step: int) -> dict[str, Any]:
    """Step, seed and data position of one checkpoint."""
    path = epath.Path(folder) / CHECKPOINTS / str(step) / 'meta' / 'metadata'
    return json.loads(path.read_text())


def to_names(tree: Any) -> dict[str, Any]:
    """A module or optimizer state -> nested dict by name: {'encoder': {'layers': {…: array}}}."""
    nested: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        *parents, name = path_names(path)
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = leaf
    return nested


def path_names(path: tuple[Any, ...]) -> list[str]:
    """A JAX key path as words; the `.value` that ends an nnx.Param's is left out."""
    words = [str(getattr(key, 'name', getattr(key, 'key', getattr(key, 'idx', key)))) for key in path]
    return words[:-1] if len(words) > 1 and words[-1] in ('value', 'raw_value') else words


def from_names(nested: Mapping[str, Any], like: Any) -> Any:
    """The inverse of `to_names`, with the structure of `like`."""

    def leaf(path: tuple[Any, ...], _: Any) -> Any:
        value: Any = nested
        for word in path_names(path):
            value = value[word]
        return value

    return jax.tree_util.tree_map_with_path(leaf, like)


def _restore_item(folder: str | os.PathLike[str], step: int, item: str, abstract: Any) -> Any:
    path = epath.Path(folder) / CHECKPOINTS / str(step) / item
    target = to_names(abstract)
    if not jax.tree.leaves(target):  # an optimizer without state
        return abstract
    path = path.absolute() if '://' not in str(path) else path
    handler = ocp.PyTreeCheckpointHandler()  # not a Checkpointer: that looks for the metadata of a step, one folder up
    try:
        _check_names(path, handler.metadata(path).tree, target)
        restored = handler.restore(
            path,
            args=ocp.args.PyTreeRestore(item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target)),
        )
    finally:
        handler.close()
    return from_names(restored, abstract)


def _check_names(path: epath.Path, saved: Any, target: Any) -> None:
    """Refuses a checkpoint whose arrays are not those of the model, naming the first that differs."""
    shapes = lambda tree: {
        '/'.join(path_names(where)): tuple(leaf.shape) for where, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    saved_shapes, target_shapes = shapes(saved), shapes(target)
    for name in sorted(saved_shapes.keys() | target_shapes.keys()):
        given, expected = saved_shapes.get(name), target_shapes.get(name)
        if given != expected:
            say = lambda shape: 'absent' if shape is None else f'of shape {list(shape)}'
            setting = 'OptimizerConfig' if path.name == 'optimizer' else 'ModelConfig'
            raise UserError(
                f'{path}: {name} is {say(given)} in the checkpoint, {say(expected)} in this run. '
                f'Set {setting} to what it was when the checkpoint was written.'
            )
