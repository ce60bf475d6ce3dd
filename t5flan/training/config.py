"""Settings of training: optimizer, loss, checkpoints, evaluation while training, and the run. Standard library only.

Each is a frozen dataclass whose fields are gin bindings (`OptimizerConfig.learning_rate = 1e-3`). An invalid value
raises a `UserError` at construction, before anything expensive is loaded.
"""

import dataclasses
import os

from t5flan.adapters.config import Adapter
from t5flan.config.checks import (
    BelowOne,
    Count,
    CountFrom0,
    NonNegative,
    Positive,
    Seed,
    Share,
    check_limits,
    require,
    require_bools,
    require_one_of,
    require_patterns,
    require_text,
)

OPTIMIZERS = ('adafactor', 'adamw')
SCHEDULES = ('constant', 'rsqrt', 'linear', 'cosine')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How gradients become updates.

    Attributes:
        name: 'adafactor' (T5, PaLM; https://arxiv.org/abs/1804.04235) or 'adamw' (https://arxiv.org/abs/1711.05101).
        learning_rate: the schedule's base. With `multiply_by_parameter_scale`, Adafactor's updates are relative to each
            parameter's size, so T5's 1e-3 to 1e-2 are usual.
        schedule: how the rate changes; `training/optimizer.py` has the formulas. 'constant', 'linear' and 'cosine' warm
            up linearly over `warmup_steps`; 'rsqrt' is T5X's learning_rate / sqrt(max(step, warmup_steps)).
        warmup_steps: see schedule.
        decay_steps: the step at which 'linear' and 'cosine' reach `final_ratio`; None = the run's steps.
        final_ratio: the last rate over the base, for 'linear' and 'cosine'.
        clip_by_global_norm: gradients are scaled down to this L2 norm before the optimizer; None = no clipping.
        weight_decay: each step subtracts weight_decay * rate ** weight_decay_lr_exponent of the parameter.
        weight_decay_lr_exponent: 1 is AdamW's usual form, 2 PaLM's (with weight_decay = 1.0), 0 a constant share.
        no_weight_decay: regular expressions of parameter paths that do not decay; each matches whole paths
            ('.*/scale').
        b1: momentum; None = 0.9 for AdamW, and no momentum (and no memory for it) for Adafactor.
        b2, epsilon: AdamW's.
        decay_rate: Adafactor's second moment decays by 1 - (step - step_offset + 1) ** -decay_rate.
        step_offset: Adafactor's second moment restarts at this step (as in T5X; for finetuning that keeps the step).
        clipping_threshold: Adafactor scales an update down to this root mean square; None = no clipping.
        multiply_by_parameter_scale: Adafactor's updates are relative to the parameter's root mean square.
        factored: False keeps full second moments ("Adafactor without factoring", as in PaLM).
        min_dim_to_factor: second moments with fewer rows or columns than this are not factored.
        freeze: regular expressions of parameter paths that are not trained; each matches whole paths ('encoder/.*').
            Frozen parameters have no gradient and no optimizer state.
        microbatches: the batch is split into this many parts, whose gradients are summed before the update.
    """

    name: str = 'adafactor'
    learning_rate: NonNegative = 1e-3
    schedule: str = 'constant'
    warmup_steps: CountFrom0 = 0
    decay_steps: Count | None = None
    final_ratio: Share = 0.0
    clip_by_global_norm: Positive | None = None
    weight_decay: NonNegative = 0.0
    weight_decay_lr_exponent: NonNegative = 1.0
    no_weight_decay: tuple[str, ...] = ()
    b1: BelowOne | None = None
    b2: BelowOne = 0.999
    epsilon: Positive = 1e-8
    decay_rate: NonNegative = 0.8
    step_offset: CountFrom0 = 0
    clipping_threshold: Positive | None = 1.0
    multiply_by_parameter_scale: bool = True
    factored: bool = True
    min_dim_to_factor: Count = 128
    freeze: tuple[str, ...] = ()
    microbatches: Count = 1

    def __post_init__(self) -> None:
        check_limits(self)
        require_one_of('OptimizerConfig.name', self.name, OPTIMIZERS)
        require_one_of('OptimizerConfig.schedule', self.schedule, SCHEDULES)
        require_bools(self, 'multiply_by_parameter_scale', 'factored')
        for field in ('freeze', 'no_weight_decay'):
            require_patterns(f'OptimizerConfig.{field}', getattr(self, field))
            object.__setattr__(self, field, tuple(getattr(self, field)))


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The loss that is minimised.

    Attributes:
        z_loss: weight of log(Z)^2 per token (T5X, PaLM: 1e-4), which keeps the softmax's normaliser Z near 1.
        label_smoothing: probability spread over the wrong words.
        normalize: True divides by the sum of the batch's loss weights; False minimises the sum, as T5X does (no
            difference to Adafactor, but to `clip_by_global_norm`). Reported losses are per token in both cases.
        chunk_tokens: how many tokens' float32 logits are in memory at once, over all devices; None chooses by device.
        teacher: a checkpoint folder of a frozen model with the same vocabulary; the model learns its probabilities too
            (distillation, arXiv:1503.02531). An encoder-decoder may learn from a decoder, which reads input and target
            as one text. None = no teacher.
        teacher_weight: with a teacher, the loss is (1 - teacher_weight) times the loss without one + teacher_weight *
            temperature^2 times the divergence of the model from the teacher (Kullback-Leibler).
        temperature: divides the logits of both in the divergence; above 1, unlikely words count more.
    """

    z_loss: NonNegative = 1e-4
    label_smoothing: BelowOne = 0.0
    normalize: bool = True
    chunk_tokens: Count | None = None
    teacher: str | None = None
    teacher_weight: Share = 0.5
    temperature: Positive = 1.0

    def __post_init__(self) -> None:
        check_limits(self)
        require_bools(self, 'normalize')
        if self.teacher is not None:
            require_text('LossConfig.teacher', self.teacher)
            object.__setattr__(self, 'teacher', os.path.expanduser(self.teacher))


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved, and where a new run takes its first state from.

    Attributes:
        every: steps between checkpoints.
        keep: how many of the newest checkpoints to keep.
        best_metric: also keep the best checkpoint by this metric of the evaluation, such as 'eval/loss' or, with
            EvaluationConfig.generate, 'exact_match'; 'auto' = 'eval/loss' if the run evaluates; None = only the newest
            ones.
        best_mode: 'min' or 'max'; None = 'min' for losses, 'max' for other metrics.
        patience: stop the run after this many evaluations without a better `best_metric`; None = never.
        initialize_from: a checkpoint folder whose parameters a new run starts from; ignored when the run resumes from a
            checkpoint of its own.
        initialize: 'parameters' takes only the parameters, 'all' also the optimizer state and the step.
    """

    every: Count = 1000
    keep: Count = 3
    best_metric: str | None = 'auto'
    best_mode: str | None = None
    patience: Count | None = None
    initialize_from: str | None = None
    initialize: str = 'parameters'

    def __post_init__(self) -> None:
        check_limits(self)
        if self.best_mode is not None:
            require_one_of('CheckpointConfig.best_mode', self.best_mode, ('min', 'max'))
        expected = 'None without CheckpointConfig.best_metric'
        require(
            self.patience is None or self.best_metric is not None, 'CheckpointConfig.patience', self.patience, expected
        )
        require_one_of('CheckpointConfig.initialize', self.initialize, ('parameters', 'all'))
        for field in ('best_metric', 'initialize_from'):
            if getattr(self, field) is not None:
                require_text(f'CheckpointConfig.{field}', getattr(self, field))
        if self.initialize_from is not None:
            object.__setattr__(self, 'initialize_from', os.path.expanduser(self.initialize_from))
        if self.best_metric not in (None, 'auto') and not str(self.best_metric).startswith('eval/'):
            object.__setattr__(self, 'best_metric', f'eval/{self.best_metric}')

    def resolved(self, evaluates: bool) -> 'CheckpointConfig':
        """The same settings with the metric that 'auto' stands for.

        Args:
            evaluates: whether the run evaluates while it trains.
        """
        if self.best_metric != 'auto':
            return self
        return dataclasses.replace(self, best_metric='eval/loss' if evaluates else None)

    @property
    def best_is_lowest(self) -> bool:
        """Whether lower values of `best_metric` are better."""
        return (self.best_mode or ('min' if 'loss' in str(self.best_metric) else 'max')) == 'min'


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation while training on a held-out split: eval/loss, the cross-entropy in nats per token, and eval/accuracy.

    Attributes:
        every: steps between evaluations; 0 = none.
        batches: how many batches of the split are evaluated each time.
        split: the split.
        tasks: tasks to evaluate separately as well, as eval/loss/TASK; a mixture stands for all of its tasks (the
            denoisers of 'c4_ul2').
        generate: also generate text (greedily) for the first N examples of each task and compute the task's own
            metrics: eval/exact_match and so on; 0 = none.
    """

    every: CountFrom0 = 0
    batches: Count = 8
    split: str = 'validation'
    tasks: tuple[str, ...] = ()
    generate: CountFrom0 = 0

    def __post_init__(self) -> None:
        check_limits(self)
        require_text('EvaluationConfig.split', self.split)
        object.__setattr__(self, 'tasks', tuple(self.tasks))


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How long a run is and how often it reports.

    Attributes:
        steps: optimizer steps in total, including those before a restart.
        seed: seed of parameters and dropout; the data order has its own (`DataConfig.seed`).
        log_every: steps between rows of metrics.jsonl and progress lines; a row holds the metrics of its own step.
        multi_host: connects to the other hosts of a TPU slice or GPU cluster first, which the cluster names; not needed
            with `--coordinator` or T5FLAN_COORDINATOR.
        epochs: passes over the training data; if set, they determine the number of steps, whatever `steps` says.
        adapter: train this adapter, such as @Lora(), beside the parameters of CheckpointConfig.initialize_from, which
            stay as they are; None = train the parameters.
        base_dtype: dtype in memory of the parameters beside an adapter. 'bfloat16' halves them: they are rounded after
            they are read, and computations are as ModelConfig.dtype says. The adapter, its optimizer state and merged
            models are float32, and the adapter's checkpoints name the parameters that were read.
    """

    steps: Count
    seed: Seed = 0
    log_every: Count = 10
    multi_host: bool = False
    epochs: Positive | None = None
    adapter: Adapter | None = None
    base_dtype: str = 'float32'

    def __post_init__(self) -> None:
        check_limits(self)
        require_one_of('RunConfig.base_dtype', self.base_dtype, ('float32', 'bfloat16'))
        if self.adapter is None:
            require_one_of('RunConfig.base_dtype without RunConfig.adapter', self.base_dtype, ('float32',))
        require_bools(self, 'multi_host')
