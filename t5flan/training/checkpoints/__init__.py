"""The checkpoint folder: the configuration of a run, and its state at some steps.

    WORKDIR/
      t5flan.json               model configuration, format, feature lengths, vocabulary size and fingerprint
      vocabulary/               the vocabulary itself
      huggingface/              config and tokenizer files of the Hugging Face folder that the model came from
      config.gin                the operative gin
      checkpoints/STEP/
        parameters/             by T5X's names: encoder/layers/attention/query/kernel …; of an adapter only its own
        optimizer/              the optimizer's state
        meta/                   step, seed, data position
        checksums.json          size and checksum of every file of the step, see whole.py

`evaluate`, `infer` and `convert` need only this folder. A step gets its name when it is complete (Orbax writes to a
temporary folder and renames it), so a run killed while saving resumes from the step before.
"""

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint.checkpoint_managers import preservation_policy

from t5flan import sharding as sharding_lib
from t5flan.adapters.adapter import adapter_arrays, apply, fingerprint, from_record, merge
from t5flan.adapters.config import Adapter
from t5flan.errors import UserError, disk_problem
from t5flan.files import PathLike, remove_folders
from t5flan.files.buckets import bound_tensorstore, epath
from t5flan.models.parameters import logical_axes, named_parameters
from t5flan.training.checkpoints import whole
from t5flan.training.checkpoints.folder import (
    CHECKPOINTS,
    DESCRIPTION,
    HUGGING_FACE,
    SETTINGS,
    VOCABULARY,
    Description,
    checkpoint_root,
    latest_step,
    read_description,
    read_meta,
    saved_at,
    saved_steps,
)
from t5flan.training.checkpoints.shards import tree_handler
from t5flan.training.checkpoints.whole import find_step
from t5flan.training.config import CheckpointConfig
from t5flan.training.state import TrainState

__all__ = [
    'CHECKPOINTS',
    'DESCRIPTION',
    'HUGGING_FACE',
    'SETTINGS',
    'VOCABULARY',
    'CheckpointManager',
    'Description',
    'base_folder',
    'base_record',
    'changed_base',
    'check_is_model',
    'checkpoint_root',
    'find_step',
    'latest_step',
    'read_description',
    'read_meta',
    'restore_adapted',
    'restore_adapter',
    'restore_base',
    'restore_grown_parameters',
    'restore_parameters',
    'restore_state',
    'saved_at',
    'saved_steps',
    'to_names',
    'write_fingerprint',
]


class CheckpointManager:
    """Saves the state of a run and restores its latest checkpoint; keeps the newest checkpoints and the best one.

    Saving is asynchronous: `save` returns once the arrays are copied off the devices. An error while writing is raised
    by the next `save`, `wait` or `close`. A step is saved before it is evaluated; `record` says how good it is.

    Steps that are not what was saved get another name, NAME.damaged.

    Attributes:
        lines: what to tell about such steps.

    Raises:
        UserError: there are steps, and none is whole.
    """

    def __init__(self, workdir: PathLike, config: CheckpointConfig):
        self.workdir = epath.Path(workdir)
        self.config = config
        self._measured: dict[int, float] = {}  # step -> best_metric
        self._policy = preservation_policy.AnyPreservationPolicy(
            [preservation_policy.LatestN(config.keep), _KeepBest(self)]
        )
        newest = whole.set_damaged_aside(self.workdir)
        self.lines, self._latest_step = newest.lines, newest.step
        bound_tensorstore()
        # Arrays of floats hardly compress, and on a CPU compression takes the cores from the steps that follow.
        in_bucket = lambda: ocp.PyTreeCheckpointHandler(use_compression=False)
        arrays = in_bucket if '://' in os.fspath(workdir) else tree_handler
        self._manager = ocp.CheckpointManager(
            _absolute(self.workdir / CHECKPOINTS),
            item_handlers={'parameters': arrays(), 'optimizer': arrays(), 'meta': ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy,
                cleanup_tmp_directories=True,
                create=True,
                temporary_path_class=whole.temporary_path_class(self.workdir),
            ),
        )

    @property
    def latest_step(self) -> int | None:
        """The newest step known to be complete on disk."""
        return self._latest_step

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the evaluation of a step, which decides which checkpoint is best."""
        best = self.config.best_metric
        if best is not None and best in metrics:
            self._measured[step] = metrics[best]

    def best_step(self, steps: Collection[int] | None = None) -> int | None:
        """The evaluated step with the best `best_metric`, the earliest of equals; among `steps` if they are given."""
        known = {step: value for step, value in self._measured.items() if steps is None or step in steps}
        sign = 1 if self.config.best_is_lowest else -1
        return min(known, key=lambda step: (sign * known[step], step), default=None)

    def evaluations_without_gain(self) -> int:
        """Number of evaluations after the best one."""
        best = self.best_step()
        return 0 if best is None else sum(step > best for step in self._measured)

    def save(self, state: TrainState, meta: Mapping[str, Any]) -> None:
        """Starts saving `state`.

        Raises:
            UserError: this save or the one before it could not be written (a full disk, for example).
        """
        step = int(state.step)
        self.wait()
        try:
            if step in self._manager.all_steps():
                return
            self._manager.save(
                step,
                force=True,
                args=ocp.args.Composite(
                    parameters=ocp.args.PyTreeSave(to_names(state.model)),
                    optimizer=ocp.args.PyTreeSave(to_names(state.opt_state)),
                    meta=ocp.args.JsonSave(dict(meta) | {'step': step}),
                ),
            )
        except Exception as error:
            raise self._save_error(f'step {step}', error) from error

    def wait(self) -> None:
        """Blocks until the last save is complete on disk.

        Raises:
            UserError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._save_error('a checkpoint', error) from error
        self._latest_step = self._manager.latest_step()

    def close(self) -> None:
        """Waits for the last save, removes checkpoints that are neither new nor the best, and stops Orbax's threads."""
        self.wait()
        steps = sorted(self._manager.all_steps())
        kept = {*steps[-self.config.keep :], self.best_step(steps)}
        for step in set(steps) - kept if self._measured else ():
            self._manager.delete(step)
        self._manager.close()

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state at the latest step, and its meta.

        Args:
            abstract: the state's shapes, dtypes and shardings; the mesh may differ from the one that saved it.
        """
        step = self._latest_step
        assert step is not None, self.workdir
        return restore_state(self.workdir, step, abstract, verify=False)  # `__init__` has

    def _save_error(self, subject: str, error: Exception) -> UserError:
        known = disk_problem(error) or ' '.join(str(error).split())[:300]
        if jax.process_count() == 1:  # they fill the disk
            # Orbax raises the first error of several writes, and the others go on.
            remove_folders(self.workdir / CHECKPOINTS, '.orbax-checkpoint-tmp', quiet=0.5)
        self._latest_step = latest_step(self.workdir)
        last = f'step {self._latest_step}' if self._latest_step is not None else 'none'
        return UserError(
            f'saving {subject} to {self.workdir / CHECKPOINTS} failed: {known.partition(": /")[0]}. '
            f'The last complete checkpoint is {last}; fix the disk and run the same command again.'
        )


class _KeepBest(preservation_policy.PreservationPolicy):
    """Keeps the best of the evaluated checkpoints."""

    def __init__(self, manager: CheckpointManager) -> None:
        self._manager = manager

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        best = self._manager.best_step(steps)
        return [step == best for step in steps]


def restore_state(
    folder: PathLike, step: int, abstract: TrainState, verify: bool = True
) -> tuple[TrainState, dict[str, Any]]:
    """The state at one step, each array placed as `abstract` says, and its meta: step, seed and data position.

    Raises:
        UserError: the step is damaged, or its arrays have other names or shapes.
    """
    if verify:
        whole.require_whole(folder, step)
    model = _restore_item(folder, step, 'parameters', abstract.model)
    opt_state = _restore_item(folder, step, 'optimizer', abstract.opt_state)
    meta = read_meta(folder, step)
    counter = jax.device_put(jax.numpy.asarray(meta['step'], abstract.step.dtype), abstract.step.sharding)
    return TrainState(step=counter, model=model, opt_state=opt_state), meta


def restore_parameters(folder: PathLike, abstract_model: Any, step: int | None = None) -> Any:
    """The parameters alone, for evaluation, generation and initializing another run.

    An adapter is merged into its base; if kernels cannot hold it, the model has it beside its parameters.

    Raises:
        UserError: there is no such checkpoint, it is damaged, or its parameters have other names or shapes.
    """
    root, found = checkpoint_root(folder), find_step(folder, step)
    record = read_description(root).adapter
    if record is None:
        whole.require_whole(root, found, ('parameters', 'meta'))
        return _restore_item(root, found, 'parameters', abstract_model)
    if not from_record(record).mergeable:
        return restore_adapted(root, abstract_model, found)
    shardings = jax.tree.map(lambda x: x.sharding, abstract_model)
    return jax.jit(merge, out_shardings=shardings)(restore_adapted(root, abstract_model, found))


def restore_adapted(folder: PathLike, abstract_model: Any, step: int | None = None) -> Any:
    """The model of an adapter's folder, with the adapter beside the parameters of its base.

    Args:
        abstract_model: the base; shapes, dtypes and shardings.

    Raises:
        UserError: the base is not there or not the adapter's, or the adapter does not fit it.
    """
    root = checkpoint_root(folder)
    base = restore_base(root, read_description(root), abstract_model)
    settings, saved = restore_adapter(folder, abstract_model, step)
    abstract = jax.eval_shape(lambda model: apply(model, settings, jax.random.key(0)), abstract_model)
    leaves = named_parameters(base) | saved
    return jax.tree.unflatten(jax.tree.structure(abstract), [leaves[name] for name in named_parameters(abstract)])


def restore_adapter(folder: PathLike, abstract_model: Any, step: int | None = None) -> tuple[Adapter, dict[str, Any]]:
    """The settings of an adapter and its arrays by name; for the arguments and errors see `restore_adapted`."""
    root, found = checkpoint_root(folder), find_step(folder, step)
    whole.require_whole(root, found, ('parameters', 'meta'))
    settings = from_record(read_description(root).adapter or {})
    placed = jax.tree.leaves(abstract_model)[0].sharding
    if isinstance(placed, jax.sharding.NamedSharding):
        placed = jax.sharding.NamedSharding(placed.mesh, jax.sharding.PartitionSpec())
    abstract = jax.eval_shape(lambda model: apply(model, settings, jax.random.key(0)), abstract_model)
    arrays = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed) for name, x in adapter_arrays(abstract).items()
    }
    where = f'the adapter of {DESCRIPTION}'
    saved = _restore_item(root, found, 'parameters', unflatten_dict(arrays, sep='/'), where)
    return settings, named_parameters(saved)


def check_is_model(folder: PathLike) -> None:
    """Requires parameters that training can start from: a whole model, or an adapter that merges into its base.

    Raises:
        UserError: `folder` holds another adapter.
    """
    record = read_description(folder).adapter
    if record is not None and not from_record(record).mergeable:
        problem = f'{os.fspath(folder)} is an adapter of the method {record["method"]}, which cannot be merged'
        raise UserError(f'{problem}. Set CheckpointConfig.initialize_from to its base, {record["base"]}.')


def base_record(source: PathLike, folder: PathLike) -> dict[str, Any]:
    """Where the base of a new adapter in `folder` is: its path and step; its fingerprint is known once it is read."""
    root, step = checkpoint_root(source), find_step(source)
    paths = {'base': os.fspath(root)}
    if '://' not in f'{root}{folder}':
        paths = {'base': os.path.abspath(root), 'base_from_here': os.path.relpath(root, folder)}
    return paths | {'step': step, 'fingerprint': None}


def base_folder(folder: PathLike, description: Description) -> epath.Path:
    """The checkpoint folder of an adapter's base: where it was, or as far from `folder` as it was.

    Raises:
        UserError: it is in neither place.
    """
    record = description.adapter or {}
    places = [epath.Path(record['base'])]
    if 'base_from_here' in record:
        places.append(epath.Path(os.path.normpath(os.path.join(folder, record['base_from_here']))))
    for place in places:
        if (place / DESCRIPTION).exists():
            return place
    problem = f'{os.fspath(folder)} is an adapter of {places[0]}, which is not there'
    raise UserError(f'{problem}. Put it back, or set adapter.base in {os.fspath(folder)}/{DESCRIPTION}.')


def restore_base(folder: PathLike, description: Description, abstract_model: Any) -> Any:
    """The parameters of an adapter's base.

    Raises:
        UserError: they are not there, or are not the ones the adapter was trained with.
    """
    record = description.adapter or {}
    base = base_folder(folder, description)
    model = restore_parameters(base, abstract_model, record['step'])
    if record['fingerprint'] not in (None, fingerprint(model)):
        raise changed_base(folder, base)
    return model


def changed_base(folder: PathLike, base: PathLike) -> UserError:
    """The error for an adapter whose base does not have the parameters that it was trained with."""
    problem = f'{os.fspath(folder)} is an adapter of another base: the parameters of {os.fspath(base)} have changed'
    return UserError(f'{problem}. Put the ones it was trained with back, or train the adapter again.')


def write_fingerprint(folder: PathLike, description: Description, model: Any) -> None:
    """Adds the fingerprint of its base to the description of a new adapter."""
    record = description.adapter or {}
    known = record['fingerprint'] or fingerprint(model)  # on every host: the parameters may be spread over them
    if record['fingerprint'] is None and jax.process_index() == 0:
        dataclasses.replace(description, adapter={**record, 'fingerprint': known}).write(folder)


def restore_grown_parameters(
    folder: PathLike, abstract_model: Any, step: int, old_rows: int, new_ids: tuple[int, int]
) -> Any:
    """The parameters of a checkpoint whose vocabulary is smaller, with embeddings and logits for the new ids.

    New rows are the mean of all `old_rows` rows, as of transformers' `resize_token_embeddings` (without the noise of
    1e-9 of their covariance that it adds), so that a new token starts as likely as an average one. Old rows and the
    logits of old tokens are unchanged.

    Args:
        abstract_model: the model with the larger vocabulary; shapes, dtypes and shardings.
        old_rows: ModelConfig.vocab_size of the checkpoint.
        new_ids: the first new id, and the end of the new ids. Those below `old_rows` have rows already, which were
            padding.
    """
    axes, sharding = logical_axes(abstract_model), sharding_lib.current()

    def before(x: jax.ShapeDtypeStruct, names: tuple[str | None, ...]) -> jax.ShapeDtypeStruct:
        if 'vocab' not in names:
            return x
        shape = tuple(old_rows if name == 'vocab' else size for name, size in zip(names, x.shape, strict=True))
        others = [None if name == 'vocab' else name for name in names]  # the old size may not divide over the mesh
        placed = x.sharding if sharding is None else sharding.named(others, shape)
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=placed)

    def grown(x: jax.Array, names: tuple[str | None, ...], target: jax.ShapeDtypeStruct) -> jax.Array:
        if 'vocab' not in names:
            return x
        axis = names.index('vocab')
        size = target.shape[axis]
        widths = [(0, size - old_rows if i == axis else 0) for i in range(x.ndim)]
        ids = jnp.arange(size).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        is_new = ((ids >= new_ids[0]) & (ids < new_ids[1])) | (ids >= old_rows)
        return jnp.where(is_new, jnp.mean(x, axis, keepdims=True), jnp.pad(x, widths))

    old = restore_parameters(folder, jax.tree.map(before, abstract_model, axes), step)
    grow = lambda model: jax.tree.map(grown, model, axes, abstract_model)
    return jax.jit(grow, out_shardings=jax.tree.map(lambda x: x.sharding, abstract_model))(old)


def to_names(tree: Any) -> dict[str, Any]:
    """A module or optimizer state as a nested dict by name: {'encoder': {'layers': {…: array}}}."""
    return unflatten_dict(named_parameters(tree), sep='/')


def _restore_item(folder: PathLike, step: int, item: str, abstract: Any, setting: str = 'ModelConfig') -> Any:
    path = _absolute(epath.Path(folder) / CHECKPOINTS / str(step) / item)
    target = to_names(abstract)
    if not target:  # an optimizer without state
        return abstract
    handler = ocp.PyTreeCheckpointHandler()  # a Checkpointer would look for the step's metadata one folder up
    try:
        _check_names(path, handler.metadata(path).tree, target, setting)
        restored = handler.restore(
            path,
            args=ocp.args.PyTreeRestore(item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target)),
        )
    except UserError:
        raise
    except _UNREADABLE as error:
        problem = ' '.join(str(error).split())[:200].rstrip('. ')
        raise UserError(f'{path} cannot be read: {type(error).__name__}: {problem}. Restore the checkpoint.') from None
    finally:
        handler.close()
    arrays = flatten_dict(restored, sep='/')
    return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in named_parameters(abstract)])


_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, OSError, ArithmeticError, AssertionError, EOFError)
"""What Orbax and TensorStore raise for files that are missing or damaged."""


def _absolute(path: epath.Path) -> epath.Path:
    return path if '://' in str(path) else path.absolute()


def _check_names(path: epath.Path, saved: Any, target: Any, setting: str) -> None:
    """Requires the checkpoint's arrays to be those of the model; the error names the first that differs."""
    saved_shapes, target_shapes = (
        {name: list(leaf.shape) for name, leaf in named_parameters(tree).items()} for tree in (saved, target)
    )
    for name in sorted(saved_shapes.keys() | target_shapes.keys()):
        given, expected = saved_shapes.get(name), target_shapes.get(name)
        if given != expected:
            describe = lambda shape: 'absent' if shape is None else f'of shape {shape}'
            setting = 'OptimizerConfig' if path.name == 'optimizer' else setting
            raise UserError(
                f'{path}: {name} is {describe(given)} in the checkpoint, {describe(expected)} in this run. '
                f'Set {setting} to its values when the checkpoint was written.'
            )
