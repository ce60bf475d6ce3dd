"""The state that a run starts from: its own latest checkpoint, another run's, or new parameters."""

import contextlib
import dataclasses
import functools
import gc
from collections.abc import Callable, Iterator, Mapping

import jax

from t5flan.adapters.adapter import with_arrays
from t5flan.data.batches.streams import Position
from t5flan.data.config import DataConfig
from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.errors import UserError
from t5flan.models.config import ModelConfig
from t5flan.models.parameters import named_parameters
from t5flan.training import checkpoints as checkpoints_lib
from t5flan.training.state import TrainState, saved_position
from t5flan.training.step import Trainer

_LONG_STEP = 1e11  # FLOPs; a parameter takes about six for each token


def takes_long_on_a_cpu(model: ModelConfig, data: DataConfig) -> bool:
    """Whether a training step takes about half a second or more on a CPU."""
    tokens = data.batch_size * sum(data.feature_lengths.values())
    return 6.0 * model.kernel_size * tokens > _LONG_STEP


def wait_for_each_program_on_a_cpu() -> None:
    """Makes JAX's CPU device return from a program when it has ended; call it before JAX finds its devices.

    A step that is queued behind another one gets its memory for temporaries before that one has given its own back. For
    short steps, which need little memory, the queue is worth more: the device does not wait for the next batch.
    """
    jax.config.update('jax_cpu_enable_async_dispatch', False)


@contextlib.contextmanager
def few_collections() -> Iterator[Callable[[], None]]:
    """Searches for cycles of garbage after 20,000 new objects instead of 700, until the yielded function is called.

    Tracing a step makes tens of thousands of objects that stay, beside half a million of imported modules; searching
    all of them again and again slows the start down. Later searches must be frequent: a cycle may hold large arrays.
    """
    before = gc.get_threshold()
    if 0 < before[0] < 20_000:
        gc.set_threshold(20_000)
    restore = functools.partial(gc.set_threshold, *before)
    try:
        yield restore
    finally:
        restore()


def restore_or_initialize(
    trainer: Trainer,
    manager: checkpoints_lib.CheckpointManager,
    vocabulary: Vocabulary,
    batch: Mapping[str, jax.ShapeDtypeStruct],
) -> tuple[TrainState, Position | None, str]:
    """The state a run starts from: its own latest checkpoint, else another run's, else new parameters.

    Args:
        batch: the batches of the run; the training step is compiled for them meanwhile, unless the run is complete.

    Returns:
        The state, the data position (None: the beginning), and where the state comes from, for the log.
    """
    if trainer.adapter is not None:
        return start_adapter(trainer, manager, vocabulary, batch)
    if manager.latest_step is not None:
        with compiling(trainer, batch, manager):
            state, meta = manager.restore(trainer.abstract_state)
        position = saved_position(meta, manager.workdir)
        return state, position, f'resuming from step {int(state.step)} of {manager.workdir}'
    source, items = manager.config.initialize_from, manager.config.initialize
    if source is None:
        with compiling(trainer, batch, manager):
            return trainer.new_state(), None, 'new parameters'
    step = checkpoints_lib.find_step(source)
    known = checkpoints_lib.read_description(source)
    root = checkpoints_lib.checkpoint_root(source)
    added: tuple[str, ...] | None = ()
    if known.vocabulary['fingerprint'] != vocabulary.fingerprint:
        added = vocabulary.tokens_added_to(load_vocabulary(root / checkpoints_lib.VOCABULARY))
    if added is None:
        raise UserError(
            f'{source} was trained with another vocabulary ({known.vocabulary["size"]} ids) than '
            f'DataConfig.vocabulary ({vocabulary.vocab_size} ids). Set DataConfig.vocabulary to '
            f'{root / checkpoints_lib.VOCABULARY}; DataConfig.added_tokens may add tokens to it.'
        )
    if added and items == 'all':
        problem = f"CheckpointConfig.initialize='all', but {len(added)} tokens are new to {source}"
        raise UserError(f"{problem}: its optimizer state has no rows for them. Set it to 'parameters'.")
    with compiling(trainer, batch, manager):
        if items == 'all':
            state, _ = checkpoints_lib.restore_state(root, step, trainer.abstract_state)
        elif added:
            rows, new_ids = known.model.vocab_size, (known.vocabulary['size'], vocabulary.vocab_size)
            abstract = trainer.abstract_state.model
            model = checkpoints_lib.restore_grown_parameters(source, abstract, step, rows, new_ids)
            state = trainer.state_with(model)
        else:
            model = checkpoints_lib.restore_parameters(source, trainer.abstract_state.model, step)
            state = trainer.state_with(model)
    grown = f', with {len(added)} new tokens' if added else ''
    return state, None, f'initialized ({items}) from step {step} of {source}{grown}'


@contextlib.contextmanager
def compiling(
    trainer: Trainer, batch: Mapping[str, jax.ShapeDtypeStruct], manager: checkpoints_lib.CheckpointManager
) -> Iterator[None]:
    """`trainer.compiling(batch)`, unless the run of `manager` has no step left."""
    is_over = manager.latest_step is not None and manager.latest_step >= trainer.steps
    with contextlib.nullcontext() if is_over else trainer.compiling(batch):
        yield


def start_adapter(
    trainer: Trainer,
    manager: checkpoints_lib.CheckpointManager,
    vocabulary: Vocabulary,
    batch: Mapping[str, jax.ShapeDtypeStruct],
) -> tuple[TrainState, Position | None, str]:
    """The state of a run that trains an adapter: its base, and a new adapter or that of its latest checkpoint.

    Raises:
        UserError: the base is not there, is not the one the adapter was trained with, or has another vocabulary.
    """
    workdir, description = manager.workdir, checkpoints_lib.read_description(manager.workdir)
    base = checkpoints_lib.base_folder(workdir, description)
    if checkpoints_lib.read_description(base).vocabulary['fingerprint'] != vocabulary.fingerprint:
        problem = f'RunConfig.adapter is set, but DataConfig.vocabulary is not the vocabulary of {base}'
        raise UserError(f'{problem}: an adapter adds no tokens. Remove DataConfig.vocabulary and added_tokens.')
    with compiling(trainer, batch, manager):
        model = checkpoints_lib.restore_base(workdir, description, trainer.abstract_base)
        checkpoints_lib.write_fingerprint(workdir, description, model)
        state = trainer.state_with(model)
        if manager.latest_step is None:
            return state, None, f'a new {type(trainer.adapter).__name__} adapter of {base}'
        saved, meta = manager.restore(trainer.saved(trainer.abstract_state))
    state = dataclasses.replace(saved, model=with_arrays(state.model, named_parameters(saved.model)))
    position = saved_position(meta, workdir)
    return state, position, f'resuming from step {int(state.step)} of {workdir}, an adapter of {base}'
