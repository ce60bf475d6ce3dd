"""Trains a model. Read this file first, top to bottom.

    t5flan train --workdir=DIR --gin_file=runs/finetune --gin.MIXTURE=practice

`train` sets a run up, `Loop` takes its steps. The loop owns every side effect; a step is one pure, jitted function of
(state, batch). Everything random is folded from the seed and the step (for data, also from the example's index), so a
run killed at any moment resumes with the same numbers.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol

import jax
import numpy as np

from t5flan import processes
from t5flan import sharding as sharding_lib
from t5flan.data import skipped
from t5flan.data.batches.epochs import steps_of_epochs
from t5flan.data.batches.pipeline import HeldOut, TrainPipeline
from t5flan.data.batches.streams import Position
from t5flan.data.config import DataConfig
from t5flan.data.mixtures.unknown_pieces import unknown_lines
from t5flan.data.preprocessing.features import row_capacity
from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.errors import UserError, did_you_mean
from t5flan.files.locks import Lock
from t5flan.mesh import MeshConfig
from t5flan.models.config import ModelConfig
from t5flan.preemption import Preemption
from t5flan.signals import saving
from t5flan.training import checkpoints as checkpoints_lib
from t5flan.training import description as description_lib
from t5flan.training.config import CheckpointConfig, EvaluationConfig, LossConfig, OptimizerConfig, RunConfig
from t5flan.training.distillation.teacher import read_teacher, teacher_config
from t5flan.training.metric_writer import MetricWriter, read_metrics
from t5flan.training.profiling.profiler import Profiler
from t5flan.training.start import (
    few_collections,
    restore_or_initialize,
    takes_long_on_a_cpu,
    wait_for_each_program_on_a_cpu,
)
from t5flan.training.state import TrainState, gather_position
from t5flan.training.step import Trainer, abstract_batch
from t5flan.training.throughput import Throughput, peak_memory, peak_tflops, require_memory

MEASURED = {'loss': 'cross_entropy', 'accuracy': 'accuracy'}
"""Metrics of the evaluation, and the sums they come from: eval/loss has neither z-loss nor label smoothing."""


class GeneratedMetrics(Protocol):
    """Metrics of generated text; evaluation/evaluator.py has the class that computes them."""

    names: tuple[str, ...]
    """The metrics it returns, such as 'eval/exact_match'."""
    samples: list[dict[str, Any]]
    """Some rows of the last evaluation: task, input, target, prediction."""

    def __call__(self, model: Any, sharding: sharding_lib.Sharding) -> dict[str, float]:
        """The metrics of a model."""
        ...


def train(
    workdir: str,
    *,
    model: ModelConfig,
    data: DataConfig,
    run: RunConfig,
    optimizer: OptimizerConfig | None = None,
    loss: LossConfig | None = None,
    mesh: MeshConfig | None = None,
    checkpoints: CheckpointConfig | None = None,
    evaluation: EvaluationConfig | None = None,
    gin: str = '',
    generated: Callable[[DataConfig, EvaluationConfig, Vocabulary], GeneratedMetrics] | None = None,
    profile: int = 0,
) -> TrainState:
    """Trains `model` on `data` for `run.steps` steps, or resumes the run in `workdir`.

    Args:
        workdir: the checkpoint folder to write, local or gs://.
        model, data, run, optimizer, loss, mesh, checkpoints, evaluation: the settings; None takes the defaults.
        gin: the operative gin, stored in the folder.
        generated: makes the metrics of generated text that EvaluationConfig.generate asks for:
            `evaluation.evaluator.GeneratedMetrics`.
        profile: steps to trace, see `training.profiling.profiler`.

    Returns:
        The last state.

    Raises:
        UserError: a setting is wrong, `workdir` belongs to another run, the loss is not finite, a checkpoint cannot be
            written, or SIGTERM or SIGINT stopped the run (after saving).
    """
    started = time.monotonic()
    if takes_long_on_a_cpu(model, data):
        wait_for_each_program_on_a_cpu()
    evaluation = evaluation or EvaluationConfig()
    checkpoints = (checkpoints or CheckpointConfig()).resolved(evaluates=evaluation.every > 0)
    optimizer, loss, mesh = optimizer or OptimizerConfig(), loss or LossConfig(), mesh or MeshConfig()
    if run.multi_host:
        processes.connect()
    require_memory(model, data, run, optimizer, mesh, teacher_config(loss, model))
    with Preemption() as preemption, description_lib.hold_workdir(workdir) as lock, few_collections() as end_start:
        settings = _Settings(model, data, run, optimizer, loss, mesh, checkpoints, evaluation, gin, generated)
        return _train(workdir, settings, Context(preemption, lock, started, profile, end_start))


@dataclasses.dataclass(frozen=True)
class _Settings:
    """The settings of a run; see `train`."""

    model: ModelConfig
    data: DataConfig
    run: RunConfig
    optimizer: OptimizerConfig
    loss: LossConfig
    mesh: MeshConfig
    checkpoints: CheckpointConfig
    evaluation: EvaluationConfig
    gin: str
    generated: Callable[[DataConfig, EvaluationConfig, Vocabulary], GeneratedMetrics] | None


def _train(workdir: str, settings: _Settings, context: 'Context') -> TrainState:
    """`train`, once no other run can write the workdir."""
    model, data, run = settings.model, settings.data, settings.run
    initial = settings.checkpoints.initialize_from
    first_host = jax.process_index() == 0
    # -- The data, the devices, and the workdir ---------------------------------------------------------------------
    vocabulary = load_vocabulary(data.vocabulary, data.extra_ids, data.mode_tokens, data.added_tokens)
    check_vocabulary(vocabulary, model)
    data = description_lib.continued(workdir, data, vocabulary, initial)
    sharding = sharding_lib.create_sharding(settings.mesh)
    pipeline = make_pipeline(data, vocabulary, sharding)
    description = description_lib.describe(model, data, vocabulary)
    description = description_lib.with_adapter(description, run.adapter, workdir, initial)
    told = description_lib.check_workdir(workdir, description, settings.gin, initial)
    evaluator = Evaluator(settings.evaluation, data, vocabulary, sharding, settings.generated)
    evaluator.check(settings.checkpoints)
    if run.epochs is not None:
        steps, line = steps_of_epochs(run.epochs, data, vocabulary, pipeline.plan)
        run, told = dataclasses.replace(run, steps=steps, epochs=None), [line, *told]
    trainer = make_trainer(model, settings.optimizer, settings.loss, run, sharding, vocabulary)
    if first_host:
        description_lib.write_description(workdir, description, vocabulary, settings.gin, initial)
    manager = checkpoints_lib.CheckpointManager(workdir, settings.checkpoints)

    with sharding_lib.use(sharding):
        # -- The state to start from --------------------------------------------------------------------------------
        batch = abstract_batch(data, sharding)
        state, position, origin = restore_or_initialize(trainer, manager, vocabulary, batch)
        pipeline.start(position)
        writer = MetricWriter(workdir, start_step=int(state.step), total_steps=run.steps, active=first_host)
        writer.log(f'{trainer.count(state)} on {jax.device_count()} x {jax.devices()[0].device_kind}, {origin}')
        lost = unknown_lines(data, vocabulary, pipeline.plan) if first_host else []
        for line in [*manager.lines, *told, *skipped.summary(pipeline.plan.skipped), *skipped.left_out_lines(), *lost]:
            writer.log(line)

        # -- The steps ----------------------------------------------------------------------------------------------
        peak = peak_tflops(settings.mesh, sharding, model)
        throughput = Throughput(model, data.batch_size, sharding.mesh, peak, run.steps)
        try:
            state = Loop(run, trainer, pipeline, evaluator, manager, writer, throughput, context).train(state)
        except BaseException:
            if jax.process_count() == 1:  # else the other processes do not wait for this save
                with contextlib.suppress(UserError), saving():
                    manager.wait()
            raise
        manager.close()
        writer.write_data(pipeline.report())
        for line in pipeline.report_lines():
            writer.log(line)
        writer.close()
        pipeline.close()
    return state


def make_trainer(
    model: ModelConfig,
    optimizer: OptimizerConfig,
    loss: LossConfig,
    run: RunConfig,
    sharding: sharding_lib.Sharding,
    vocabulary: Vocabulary,
) -> Trainer:
    """The steps of a run, with the teacher that LossConfig.teacher names.

    Raises:
        UserError: the teacher does not fit the model, or the state does not fit in memory.
    """
    trainer = Trainer(model, optimizer, loss, run, sharding)
    if loss.teacher is not None:
        with sharding_lib.use(sharding):
            teacher = read_teacher(loss, model, vocabulary.fingerprint, vocabulary.eos_id, sharding)
        trainer.teacher = (teacher,)
    return trainer


@dataclasses.dataclass(frozen=True)
class Context:
    """What holds from the start of a run to its end."""

    preemption: Preemption
    lock: Lock | None
    """The lock of the workdir, on the first host."""
    started: float
    """`time.monotonic()` at the start."""
    profile: int
    """Steps to trace."""
    end_start: Callable[[], None]
    """Called after the first step."""


@dataclasses.dataclass
class Loop:
    """Takes the steps of a run; after a step it writes metrics, saves and evaluates where due."""

    run: RunConfig
    trainer: Trainer
    pipeline: TrainPipeline
    evaluator: 'Evaluator'
    manager: checkpoints_lib.CheckpointManager
    writer: MetricWriter
    throughput: Throughput
    context: Context

    def train(self, state: TrainState) -> TrainState:
        """Steps from `state` to the last step of the run.

        Raises:
            UserError: the loss is not finite, a checkpoint cannot be written, or a signal stopped the run.
        """
        sharding, batch_size = self.trainer.sharding, self.pipeline.config.batch_size
        first = int(state.step) + 1
        if first > self.run.steps:
            place = f'step {first - 1} of {self.run.steps}'
            self.writer.log(f'{self.manager.workdir} is complete: {place}. Set RunConfig.steps to go on.')
        if self._resume_evaluation(state):
            return state
        in_flight: tuple[int, Any] | None = None
        preemption = self.context.preemption
        profile = self.context.profile if jax.process_index() == 0 else 0
        with preemption.loop(), Profiler(self.manager.workdir, profile, self.writer.log) as profiler:
            batches = profiler.waiting(self.pipeline)
            for step, (batch, position) in zip(range(first, self.run.steps + 1), batches):
                placed = sharding_lib.put_batch(sharding, batch, batch_size)
                state, metrics = self.trainer.train_step(state, placed, *self.trainer.teacher)
                if profiler.after(metrics, functools.partial(self.trainer.compiled_text, placed)):
                    self.throughput.pause()
                if in_flight is not None:  # the device always has a step to run while the host prepares the next
                    self._check_finite(*in_flight)
                in_flight = step, metrics
                self.throughput.count(batch)
                stop = preemption.should_stop(step)
                if step == first or self._due(step, self.run.log_every):
                    self._log(step, metrics, first)
                saved = stop or self._due(step, self.manager.config.every)
                with saving() if stop else contextlib.nullcontext():
                    if saved:
                        self._save(step, state, metrics, position)
                    if stop and step < self.run.steps:
                        self._stop(step, preemption.signal_name)
                if self._due(step, self.evaluator.every):  # after saving: an error here loses no step
                    with preemption.interruptible():
                        self._evaluate(step, state)
                    if step < self.run.steps and self._is_over(step):
                        if not saved:
                            self._save(step, state, metrics, position)
                        break
            with saving():
                self.manager.wait()
        return state

    def _resume_evaluation(self, state: TrainState) -> bool:
        """Evaluates the initial checkpoint, or the step to resume from if the run was killed before its evaluation.

        Returns:
            Whether the run has stopped early.
        """
        step = int(state.step)
        rows = read_metrics(self.manager.workdir)
        is_new = self.manager.latest_step is None
        for row in [] if is_new else rows:
            self.manager.record(int(row['step']), row)
        due = self.manager.config.initialize_from if is_new else self._due(step, self.evaluator.every)
        if not (due and self.evaluator.every) or step > self.run.steps:
            return False
        if not any(row['step'] == step and 'eval/loss' in row for row in rows):
            self._evaluate(step, state)
        return self._is_over(step)

    def _save(self, step: int, state: TrainState, metrics: Mapping[str, jax.Array], position: Position) -> None:
        self._check_finite(step, metrics)
        if self.context.lock is not None:
            self.context.lock.require()
        self.writer.flush()
        self.manager.save(self.trainer.saved(state), {'seed': self.run.seed, 'position': gather_position(position)})
        self.throughput.pause()

    def _is_over(self, step: int) -> bool:
        """Whether `best_metric` has not improved for CheckpointConfig.patience evaluations."""
        config = self.manager.config
        if config.patience is None or self.manager.evaluations_without_gain() < config.patience:
            return False
        best = self.manager.best_step()
        self.writer.log(
            f'stopped at step {step}: no better {config.best_metric} since step {best} (patience {config.patience})'
        )
        return True

    def _due(self, step: int, every: int) -> bool:
        """Whether this step is a multiple of `every` (0: never) or the last."""
        return every > 0 and (step % every == 0 or step == self.run.steps)

    def _log(self, step: int, metrics: Mapping[str, jax.Array], first: int) -> None:
        values = self._check_finite(step, metrics)
        if step == first:
            self.writer.log(f'first step {time.monotonic() - self.context.started:.1f} s after the start')
            self.context.end_start()
        values |= self.throughput.read() | peak_memory()
        if self._due(step, self.run.log_every):
            self.writer.write(step, values)
        self.writer.progress(step, values, self.throughput.seconds_left(step))

    def _evaluate(self, step: int, state: TrainState) -> dict[str, float]:
        try:
            measured = self.evaluator.evaluate(self.trainer, state)
        except BaseException:
            self.manager.wait()  # the step before it is not lost
            raise
        if self.manager.latest_step is not None or step:  # there is no checkpoint before the first step
            self.manager.record(step, measured)
        self.writer.write_evaluation(step, measured, self.evaluator.samples)
        self.throughput.pause()
        return measured

    def _check_finite(self, step: int, metrics: Mapping[str, jax.Array]) -> dict[str, float]:
        """Waits for a step's metrics; stops the run if the loss or the gradient norm is not finite."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if np.isfinite(values['loss']) and np.isfinite(values['grad_norm']):
            return values
        self.manager.wait()
        good = self.manager.latest_step
        raise UserError(
            f'the loss is {values["loss"]} and the gradient norm {values["grad_norm"]} at step {step}; the last good '
            f'checkpoint is {"none yet" if good is None else f"step {good} in {self.manager.workdir}"}. '
            'Lower OptimizerConfig.learning_rate or set OptimizerConfig.clip_by_global_norm.'
        )

    def _stop(self, step: int, signal_name: str) -> NoReturn:
        self.manager.close()
        self.writer.close()
        raise UserError(
            f'stopped by {signal_name} at step {step} of {self.run.steps}; the state is saved in '
            f'{self.manager.workdir}. Run the same command to resume.'
        )


class Evaluator:
    """Measures a held-out split: cross-entropy and accuracy per token, teacher-forced, and metrics of generated text.

    Measured are the run's mixture, as eval/loss and eval/accuracy, and each of `config.tasks`, as eval/loss/TASK.

    Raises:
        UserError: `config.tasks` has a name without a task or mixture.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        data: DataConfig,
        vocabulary: Vocabulary,
        sharding: sharding_lib.Sharding,
        generated: Callable[[DataConfig, EvaluationConfig, Vocabulary], GeneratedMetrics] | None = None,
    ):
        self.every = config.every
        self._batches, self._sharding = config.batches, sharding
        self._held_out = HeldOut(dataclasses.replace(data, split=config.split), vocabulary, config.tasks)
        self.samples: list[dict[str, Any]] = []
        self._generated: GeneratedMetrics | None = None
        if config.every and config.generate:
            if generated is None:
                raise UserError('EvaluationConfig.generate needs train(..., generated=GeneratedMetrics). Pass it.')
            self._generated = generated(data, config, vocabulary)

    def check(self, checkpoints: CheckpointConfig) -> None:
        """Opens the split and makes its first batch, so that what is wrong with it is reported before the first step.

        Raises:
            UserError: the split or a row is faulty, or CheckpointConfig.best_metric is not measured.
        """
        best, every = checkpoints.best_metric, self.every
        if not every:
            if best:
                raise UserError(
                    f'CheckpointConfig.best_metric={best!r}, but EvaluationConfig.every=0. Set it to N steps.'
                )
            return
        for task in (None, *self._held_out.tasks):
            self._held_out.check_split(task)
            batch = next(self._held_out.batches(task), None)
            if batch is None:
                raise self._nothing_to_measure(task)
        generated = self._generated.names if self._generated else ()
        names = [f'eval/{name}' for name in MEASURED] + [*generated]
        names += [f'{name}/{task}' for name in names[: len(MEASURED)] for task in self._held_out.tasks]
        if best and best not in names:
            hint = did_you_mean(best, names) or '.'
            listed = ', '.join(names)
            more = (
                ''
                if generated
                else ' Metrics of generated text, such as exact_match, need EvaluationConfig.generate = N.'
            )
            raise UserError(f'CheckpointConfig.best_metric={best!r} is not measured; measured are {listed}{hint}{more}')

    def _nothing_to_measure(self, task: str | None) -> UserError:
        data = self._held_out.config
        problem = f'split {data.split!r} of {task or data.mixture!r} has no tokens to evaluate'
        return UserError(f'{problem}. Set EvaluationConfig.split, or EvaluationConfig.every = 0.')

    def evaluate(self, trainer: Trainer, state: TrainState) -> dict[str, float]:
        """The measurements of `state`.

        Raises:
            UserError: the split holds no target tokens.
        """
        measured = self._measure(trainer, state, None)
        for task in self._held_out.tasks:
            measured |= self._measure(trainer, state, task)
        if self._generated is not None:
            measured |= self._generated(state.model, self._sharding)
            self.samples = self._generated.samples
        return measured

    def _measure(self, trainer: Trainer, state: TrainState, task: str | None) -> dict[str, float]:
        data = self._held_out.config
        rows = sharding_lib.host_rows(self._sharding, data.batch_size)
        totals: dict[str, float] = {}
        for _, batch in zip(range(self._batches), self._held_out.batches(task)):
            host_batch = {name: x[rows] for name, x in batch.items()}
            placed = sharding_lib.put_batch(self._sharding, host_batch, data.batch_size)
            for name, value in jax.device_get(trainer.eval_step(state.model, placed)).items():
                totals[name] = totals.get(name, 0.0) + float(value)
        if not totals.get('tokens'):
            raise self._nothing_to_measure(task)
        suffix = f'/{task}' if task else ''
        return {f'eval/{name}{suffix}': totals[source] / totals['tokens'] for name, source in MEASURED.items()}


def check_vocabulary(vocabulary: Vocabulary, model: ModelConfig) -> None:
    """Requires the model to embed every id of the vocabulary."""
    if vocabulary.vocab_size > model.vocab_size:
        raise UserError(
            f'ModelConfig.vocab_size={model.vocab_size}, but the vocabulary has {vocabulary.vocab_size} ids. '
            'Set ModelConfig.vocab_size to that or more, or DataConfig.vocabulary.'
        )


def make_pipeline(data: DataConfig, vocabulary: Vocabulary, sharding: sharding_lib.Sharding) -> TrainPipeline:
    """The batches of this host.

    Raises:
        UserError: a feature length or the batch size does not divide over the mesh, or the data settings are wrong.
    """
    for length in row_capacity(data.format, data.feature_lengths):
        sharding_lib.check_divides(sharding, 'length', length)
    rows = sharding_lib.host_rows(sharding, data.batch_size)
    host_rows = rows.stop - rows.start
    return TrainPipeline(
        data, vocabulary, process_index=rows.start // host_rows, process_count=data.batch_size // host_rows
    )
