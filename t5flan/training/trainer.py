"""Trains a model: read this file first, top to bottom.

    t5flan train --workdir=DIR --gin_file=runs/finetune --gin.MIXTURE=practice

The loop owns every side effect; the step is one pure, jitted function of (state, batch). Everything random is folded
from the seed and the step (and, for data, the example's index), so a run killed anywhere goes on to the same numbers.
"""

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from t5flan import sharding as sharding_lib
from t5flan.data.batches.pipeline import TrainPipeline, eval_batches, merge_positions
from t5flan.data.config import DataConfig
from t5flan.data.mixtures.mixing import find_mixture
from t5flan.data.preprocessing.features import row_capacity
from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.errors import UserError
from t5flan.mesh import MeshConfig
from t5flan.models.build import abstract_model, build_model
from t5flan.models.config import ModelConfig
from t5flan.models.parameters import logical_axes, parameter_count
from t5flan.preemption import Preemption
from t5flan.training import checkpoints as checkpoints_lib
from t5flan.training.config import CheckpointConfig, EvaluationConfig, LossConfig, OptimizerConfig, RunConfig
from t5flan.training.description import check_workdir, describe, write_description
from t5flan.training.metric_writer import Journal
from t5flan.training.throughput import Throughput
from t5flan.training.optimizer import make_optimizer, state_axes
from t5flan.training.state import TrainState, create_state
from t5flan.training.step import make_eval_step, make_train_step


def train(
    workdir: str,
    *,
    model: ModelConfig,
    data: DataConfig,
    run: RunConfig,
    optimizer: OptimizerConfig = OptimizerConfig(),
    loss: LossConfig = LossConfig(),
    mesh: MeshConfig = MeshConfig(),
    checkpoints: CheckpointConfig = CheckpointConfig(),
    evaluation: EvaluationConfig = EvaluationConfig(),
    gin: str = '',
) -> TrainState:
    """Trains `model` on `data` for `run.steps` steps, or goes on where `workdir` stopped.

    Args:
        workdir: the checkpoint folder to write; local or gs://.
        gin: the operative gin, kept in the folder for people to read.

    Returns:
        The last state.

    Raises:
        UserError: a setting is wrong, the workdir is another run's, the loss is not finite, the disk is full, or the run
            was told to stop (SIGTERM, SIGINT) after saving.
    """
    started = time.monotonic()
    if run.multi_host:
        jax.distributed.initialize()
    first_host = jax.process_index() == 0

    # -- What to train, on what, where ------------------------------------------------------------------------------
    vocabulary = load_vocabulary(data.vocabulary, data.extra_ids, data.mode_tokens)
    check_vocabulary(vocabulary, model)
    sharding = sharding_lib.create_sharding(mesh)
    for length in row_capacity(data.format, data.feature_lengths):
        sharding_lib.check_divides(sharding, 'length', length)
    rows = sharding_lib.host_rows(sharding, data.batch_size)
    host_rows = rows.stop - rows.start
    pipeline = TrainPipeline(
        data, vocabulary, process_index=rows.start // host_rows, process_count=data.batch_size // host_rows
    )

    evaluated_tasks(evaluation)  # a wrong name ends the run here, not at its first evaluation

    # -- The workdir: is it this run's? -----------------------------------------------------------------------------
    description = describe(model, data, vocabulary)
    check_workdir(workdir, description)
    if first_host:
        write_description(workdir, description, vocabulary, gin)
    keeper = checkpoints_lib.Checkpoints(workdir, checkpoints)

    with sharding_lib.use(sharding):
        # -- The state: restored, initialised from another checkpoint, or new, in this order ------------------------
        trainer = Trainer(model, optimizer, loss, run, sharding)
        position = None
        if keeper.last_whole_step is not None:
            state, meta = keeper.restore(trainer.abstract_state)
            position = meta['position']
            origin = f'going on from step {int(state.step)} of {workdir}'
        elif checkpoints.initialize_from is not None:
            state, origin = initialize_from(checkpoints, trainer, model, vocabulary)
        else:
            state, origin = trainer.new_state(), 'new parameters'
        first_step = int(state.step)
        pipeline.start(position)

        # -- The loop -----------------------------------------------------------------------------------------------
        journal = Journal(workdir, first_step=first_step, total_steps=run.steps, active=first_host)
        journal.say(
            f'{parameter_count(state.model):,} parameters on {jax.device_count()} x '
            f'{jax.devices()[0].device_kind}, {origin}'
        )
        throughput = Throughput(model, data.batch_size, sharding.mesh, mesh.peak_tflops, run.steps)
        in_flight: tuple[int, Any] | None = None
        with Preemption() as preemption:
            for step, (batch, position) in zip(range(first_step + 1, run.steps + 1), pipeline):
                state, metrics = trainer.train_step(state, sharding_lib.put_batch(sharding, batch, data.batch_size))
                if in_flight is not None:  # one step is always under way while the host prepares the next
                    check_finite(*in_flight, keeper)
                in_flight = step, metrics
                throughput.count(batch)
                last, stop = step == run.steps, preemption.asked(step)
                due = lambda every: every and step % every == 0

                if due(run.log_every) or last or step == first_step + 1:
                    values = check_finite(step, metrics, keeper)
                    if step == first_step + 1:
                        journal.say(f'first step {time.monotonic() - started:.1f} s after the start')
                    values |= throughput.read()
                    if due(run.log_every) or last:
                        journal.write(step, values)
                    journal.progress(step, values, throughput.seconds_left(step))
                measured = {}
                if due(evaluation.every) or (last and evaluation.every):
                    measured = evaluate_loss(trainer, state, data, evaluation, vocabulary, sharding)
                    journal.write(step, measured)
                    journal.say('  '.join([f'step {step}'] + [f'{k} {v:.4f}' for k, v in measured.items()]))
                    throughput.pause()
                if due(checkpoints.every) or last or stop:
                    check_finite(step, metrics, keeper)
                    keeper.save(state, {'seed': run.seed, 'position': gather_position(position)}, measured)
                    throughput.pause()
                if stop and not last:
                    keeper.close()
                    journal.close()
                    raise UserError(
                        f'stopped by {preemption.signal_name} at step {step} of {run.steps}; the state is '
                        f'saved in {workdir} and the same command goes on from there.'
                    )

        # -- The end ------------------------------------------------------------------------------------------------
        keeper.close()
        for line in pipeline.report_lines():
            journal.say(line)
        journal.close()
        pipeline.close()
    return state


class Trainer:
    """The jitted step and the state it works on, placed on the mesh. Make and use it inside `sharding.use(...)`."""

    def __init__(
        self,
        model: ModelConfig,
        optimizer: OptimizerConfig,
        loss: LossConfig,
        run: RunConfig,
        sharding: sharding_lib.Sharding,
    ):
        self._model_config, self._seed = model, run.seed
        shapes = abstract_model(model)
        axes = logical_axes(shapes)
        self._optimizer = make_optimizer(optimizer, axes, run.steps)
        abstract = jax.eval_shape(lambda: self._create())
        place = lambda tree, names: sharding_lib.tree_shardings(sharding, tree, names)
        self.state_shardings = TrainState(
            step=sharding.replicated(),
            model=place(abstract.model, axes),
            opt_state=place(abstract.opt_state, state_axes(abstract.opt_state, axes)),
        )
        self.abstract_state: TrainState = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, self.state_shardings
        )
        self.train_step = jax.jit(
            make_train_step(optimizer, loss, self._optimizer, run.seed),
            donate_argnums=0,
            out_shardings=(self.state_shardings, None),
        )
        self.eval_step = jax.jit(make_eval_step(loss))

    def _create(self) -> TrainState:
        return create_state(build_model(self._model_config, jax.random.key(self._seed)), self._optimizer)

    def new_state(self) -> TrainState:
        """Fresh parameters, each drawn in its place on the mesh; the same numbers on any mesh."""
        return jax.jit(self._create, out_shardings=self.state_shardings)()

    def state_with(self, model: Any) -> TrainState:
        """A fresh optimizer around given parameters."""
        return jax.jit(
            lambda model: create_state(model, self._optimizer), out_shardings=self.state_shardings, donate_argnums=0
        )(model)


def check_vocabulary(vocabulary: Vocabulary, model: ModelConfig) -> None:
    """Refuses a vocabulary with more ids than the model embeds."""
    if vocabulary.vocab_size > model.vocab_size:
        raise UserError(
            f'the vocabulary has {vocabulary.vocab_size} ids, ModelConfig.vocab_size={model.vocab_size} '
            'embeds fewer. Set ModelConfig.vocab_size to that or more, or DataConfig.vocabulary.'
        )


def initialize_from(
    config: CheckpointConfig, trainer: Trainer, model: ModelConfig, vocabulary: Vocabulary
) -> tuple[TrainState, str]:
    """The first state of a run that starts from another run's checkpoint: parameters alone, or all."""
    source = config.initialize_from
    step = checkpoints_lib.find_step(source)
    known = checkpoints_lib.read_description(source)
    if known.vocabulary['fingerprint'] != vocabulary.fingerprint:
        raise UserError(
            f'{source} was trained with another vocabulary ({known.vocabulary["size"]} ids) than '
            f'DataConfig.vocabulary ({vocabulary.vocab_size} ids). Set DataConfig.vocabulary to '
            f'{checkpoints_lib.checkpoint_root(source) / checkpoints_lib.VOCABULARY}.'
        )
    if config.initialize == 'all':
        root = checkpoints_lib.checkpoint_root(source)
        state, _ = checkpoints_lib.restore_state(root, step, trainer.abstract_state)
    else:
        state = trainer.state_with(checkpoints_lib.restore_parameters(source, trainer.abstract_state.model, step))
    return state, f'initialised ({config.initialize}) from step {step} of {source}'


def check_finite(step: int, metrics: Mapping[str, jax.Array], keeper: checkpoints_lib.Checkpoints) -> dict[str, float]:
    """Waits for a step's metrics; stops the run if its loss or gradient is not finite.

    Raises:
        UserError: with the step, the loss and the last good checkpoint.
    """
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if np.isfinite(values['loss']) and np.isfinite(values['grad_norm']):
        return values
    keeper.wait()
    good = keeper.last_whole_step
    raise UserError(
        f'the loss is {values["loss"]} and the gradient norm {values["grad_norm"]} at step {step}; the last '
        f'good checkpoint is {f"step {good} in {keeper.workdir}" if good is not None else "none yet"}. '
        'Lower OptimizerConfig.learning_rate or set OptimizerConfig.clip_by_global_norm.'
    )


def evaluate_loss(
    trainer: Trainer,
    state: TrainState,
    data: DataConfig,
    evaluation: EvaluationConfig,
    vocabulary: Vocabulary,
    sharding: sharding_lib.Sharding,
) -> dict[str, float]:
    """Mean loss and accuracy per token over the held-out split, teacher-forced; of `evaluation.tasks` each by itself too."""
    data = dataclasses.replace(data, split=evaluation.split, shuffle=False)
    measured = {}
    for task in (None, *evaluated_tasks(evaluation)):
        one = data if task is None else dataclasses.replace(data, mixture=task, stages=(), mixed_in={})
        totals: dict[str, float] = {}
        for _, batch in zip(range(evaluation.batches), _host_batches(one, vocabulary, sharding)):
            for name, value in jax.device_get(trainer.eval_step(state.model, batch)).items():
                totals[name] = totals.get(name, 0.0) + float(value)
        if not totals.get('tokens'):
            raise UserError(
                f'split {evaluation.split!r} of {one.mixture!r} gave no tokens to evaluate. '
                'Set EvaluationConfig.split, or EvaluationConfig.every = 0.'
            )
        end = '' if task is None else f'/{task}'
        measured |= {f'eval/{name}{end}': totals[name] / totals['tokens'] for name in ('loss', 'accuracy')}
    return measured


def evaluated_tasks(evaluation: EvaluationConfig) -> list[str]:
    """The tasks that `evaluation.tasks` names, each once.

    Raises:
        UserError: there is no task or mixture of a name.
    """
    found = [find_mixture(name, 'EvaluationConfig.tasks') for name in evaluation.tasks]
    return list(dict.fromkeys(task.name for one in found for task in (getattr(one, 'tasks', None) or [one])))


def _host_batches(
    data: DataConfig, vocabulary: Vocabulary, sharding: sharding_lib.Sharding
) -> Iterator[dict[str, jax.Array]]:
    rows = sharding_lib.host_rows(sharding, data.batch_size)
    for batch in eval_batches(data, vocabulary):
        yield sharding_lib.put_batch(sharding, {name: x[rows] for name, x in batch.items()}, data.batch_size)


def gather_position(position: Mapping[str, Any]) -> Mapping[str, Any]:
    """The data position over all hosts, each of which knows only its own streams."""
    if jax.process_count() == 1:
        return position
    from jax.experimental import multihost_utils

    text = json.dumps(position).encode()
    sizes = multihost_utils.process_allgather(np.array(len(text), np.int32))
    padded = np.frombuffer(text.ljust(int(sizes.max()), b' '), np.uint8)
    return merge_positions([json.loads(bytes(row)) for row in multihost_utils.process_allgather(padded)])
