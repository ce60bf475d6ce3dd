"""Settings of training: optimizer, loss, mesh, checkpoints, evaluation while training. Standard library only.

Each is a frozen dataclass whose fields are gin bindings (`OptimizerConfig.learning_rate = 1e-3`). A value that cannot
be right is a `UserError` at construction, before anything heavy is loaded.
"""

import dataclasses

from t5flan.config.checks import is_count, is_number, require, require_patterns

OPTIMIZERS = ('adafactor', 'adamw')
SCHEDULES = ('constant', 'rsqrt', 'linear', 'cosine')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How gradients become updates.

    Attributes:
        name: 'adafactor' (T5, PaLM; https://arxiv.org/abs/1804.04235) or 'adamw' (https://arxiv.org/abs/1711.05101).
        learning_rate: the schedule's base. Adafactor's is relative to each parameter's size when
            `multiply_by_parameter_scale`, so that T5's 1e-3 to 1e-2 are usual.
        schedule: how the rate moves; `training/optimizer.py` has the formulas. 'constant', 'linear' and 'cosine' ramp up
            linearly over `warmup_steps`; 'rsqrt' is T5X's learning_rate / sqrt(max(step, warmup_steps)): flat, then falling.
        warmup_steps: see schedule.
        decay_steps: the step at which 'linear' and 'cosine' have come down to `final_ratio`; None = the run's steps.
        final_ratio: the last rate over the base, for 'linear' and 'cosine'.
        clip_by_global_norm: gradients are scaled down to this L2 norm before the optimizer sees them; None = never.
        weight_decay: each step takes weight_decay * rate ** weight_decay_lr_exponent of the parameter away.
        weight_decay_lr_exponent: 1 is AdamW's usual form, 2 PaLM's (with weight_decay = 1.0), 0 a fixed share.
        no_weight_decay: regexes of parameter paths, matched from end to end ('.*/scale'), that do not decay.
        b1: momentum; None = 0.9 for AdamW, and no momentum (and no memory for it) for Adafactor.
        b2, epsilon: AdamW's.
        decay_rate: Adafactor's second moment forgets by 1 - (step - step_offset + 1) ** -decay_rate.
        step_offset: Adafactor's second moment starts anew at this step (T5X's; for finetuning with the step kept).
        clipping_threshold: Adafactor scales an update down to this root mean square; None = never.
        multiply_by_parameter_scale: Adafactor's updates are relative to the parameter's root mean square.
        factored: False keeps whole second moments ("Adafactor without factoring", as PaLM).
        min_dim_to_factor: second moments with fewer rows or columns than this stay whole.
        freeze: regexes of parameter paths, matched from end to end ('encoder/.*'), that are not trained: no gradient, no
            optimizer state.
        microbatches: the batch is split into so many parts, whose gradients are summed before the one update.
    """

    name: str = 'adafactor'
    learning_rate: float = 1e-3
    schedule: str = 'constant'
    warmup_steps: int = 0
    decay_steps: int | None = None
    final_ratio: float = 0.0
    clip_by_global_norm: float | None = None
    weight_decay: float = 0.0
    weight_decay_lr_exponent: float = 1.0
    no_weight_decay: tuple[str, ...] = ()
    b1: float | None = None
    b2: float = 0.999
    epsilon: float = 1e-8
    decay_rate: float = 0.8
    step_offset: int = 0
    clipping_threshold: float | None = 1.0
    multiply_by_parameter_scale: bool = True
    factored: bool = True
    min_dim_to_factor: int = 128
    freeze: tuple[str, ...] = ()
    microbatches: int = 1

    def __post_init__(self):
        name = 'OptimizerConfig'
        require(self.name in OPTIMIZERS, f'{name}.name', self.name, f'one of {", ".join(OPTIMIZERS)}')
        require(self.schedule in SCHEDULES, f'{name}.schedule', self.schedule, f'one of {", ".join(SCHEDULES)}')
        require(
            is_number(self.learning_rate) and self.learning_rate >= 0,
            f'{name}.learning_rate',
            self.learning_rate,
            'a number of 0 or more',
        )
        require(is_count(self.warmup_steps, 0), f'{name}.warmup_steps', self.warmup_steps, 'a count of 0 or more')
        require(
            self.decay_steps is None or is_count(self.decay_steps, 1),
            f'{name}.decay_steps',
            self.decay_steps,
            'a count of 1 or more, or None',
        )
        require(
            is_number(self.final_ratio) and 0 <= self.final_ratio <= 1,
            f'{name}.final_ratio',
            self.final_ratio,
            'a number from 0 to 1',
        )
        for field in ('clip_by_global_norm', 'clipping_threshold'):
            value = getattr(self, field)
            require(
                value is None or (is_number(value) and value > 0), f'{name}.{field}', value, 'a number above 0, or None'
            )
        for field in ('weight_decay', 'weight_decay_lr_exponent', 'decay_rate'):
            value = getattr(self, field)
            require(is_number(value) and value >= 0, f'{name}.{field}', value, 'a number of 0 or more')
        require(is_number(self.epsilon) and self.epsilon > 0, f'{name}.epsilon', self.epsilon, 'a number above 0')
        require(
            self.b1 is None or (is_number(self.b1) and 0 <= self.b1 < 1),
            f'{name}.b1',
            self.b1,
            'a number from 0 to below 1, or None',
        )
        require(is_number(self.b2) and 0 <= self.b2 < 1, f'{name}.b2', self.b2, 'a number from 0 to below 1')
        require(is_count(self.step_offset, 0), f'{name}.step_offset', self.step_offset, 'a count of 0 or more')
        require(
            is_count(self.min_dim_to_factor, 1),
            f'{name}.min_dim_to_factor',
            self.min_dim_to_factor,
            'a count of 1 or more',
        )
        require(is_count(self.microbatches, 1), f'{name}.microbatches', self.microbatches, 'a count of 1 or more')
        for field in ('multiply_by_parameter_scale', 'factored'):
            require(isinstance(getattr(self, field), bool), f'{name}.{field}', getattr(self, field), 'True or False')
        for field in ('freeze', 'no_weight_decay'):
            require_patterns(f'{name}.{field}', getattr(self, field))
            object.__setattr__(self, field, tuple(getattr(self, field)))


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What is minimised.

    Attributes:
        z_loss: weight of log(Z)^2 per token (T5X, PaLM: 1e-4), which keeps the softmax's normaliser Z near 1.
        label_smoothing: probability spread over the wrong words.
        normalize: True divides by the sum of the loss weights of the whole batch; False minimises the sum, as T5X does
            (Adafactor does not notice, `clip_by_global_norm` does). Reported losses are per token in both cases.
        chunk_tokens: how many tokens' float32 logits are held at once, over all devices; None picks by device.
    """

    z_loss: float = 1e-4
    label_smoothing: float = 0.0
    normalize: bool = True
    chunk_tokens: int | None = None

    def __post_init__(self):
        require(is_number(self.z_loss) and self.z_loss >= 0, 'LossConfig.z_loss', self.z_loss, 'a number of 0 or more')
        require(
            is_number(self.label_smoothing) and 0 <= self.label_smoothing < 1,
            'LossConfig.label_smoothing',
            self.label_smoothing,
            'a number from 0 to below 1',
        )
        require(isinstance(self.normalize, bool), 'LossConfig.normalize', self.normalize, 'True or False')
        require(
            self.chunk_tokens is None or is_count(self.chunk_tokens, 1),
            'LossConfig.chunk_tokens',
            self.chunk_tokens,
            'a count of 1 or more, or None',
        )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved and where the first one comes from.

    Attributes:
        every: steps between checkpoints.
        keep: how many of the newest are kept.
        best_metric: the best checkpoint by this metric of the evaluation is kept besides; None = only the newest are.
        best_mode: 'min' or 'max'.
        initialize_from: a checkpoint folder whose parameters a new run starts from; a run that has a checkpoint of its own
            goes on from that one and does not look here.
        initialize: 'parameters' takes parameters alone, 'all' also optimizer state and step.
    """

    every: int = 1000
    keep: int = 3
    best_metric: str | None = None
    best_mode: str = 'min'
    initialize_from: str | None = None
    initialize: str = 'parameters'

    def __post_init__(self):
        require(is_count(self.every, 1), 'CheckpointConfig.every', self.every, 'a count of 1 or more')
        require(is_count(self.keep, 1), 'CheckpointConfig.keep', self.keep, 'a count of 1 or more')
        require(self.best_mode in ('min', 'max'), 'CheckpointConfig.best_mode', self.best_mode, "'min' or 'max'")
        require(
            self.initialize in ('parameters', 'all'),
            'CheckpointConfig.initialize',
            self.initialize,
            "'parameters' or 'all'",
        )
        for field in ('best_metric', 'initialize_from'):
            value = getattr(self, field)
            require(
                value is None or (isinstance(value, str) and value != ''),
                f'CheckpointConfig.{field}',
                value,
                'a name, or None',
            )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation while training: loss and accuracy on a held-out split.

    Attributes:
        every: steps between evaluations; 0 = none.
        batches: how many batches of the split are read each time.
        split: which split.
        tasks: tasks measured besides, each by itself, as eval/loss/TASK; a mixture stands for all of its tasks (the
            denoisers of 'c4_ul2').
    """

    every: int = 0
    batches: int = 8
    split: str = 'validation'
    tasks: tuple[str, ...] = ()

    def __post_init__(self):
        require(is_count(self.every, 0), 'EvaluationConfig.every', self.every, 'a count of 0 or more')
        require(is_count(self.batches, 1), 'EvaluationConfig.batches', self.batches, 'a count of 1 or more')
        require(
            isinstance(self.split, str) and self.split != '',
            'EvaluationConfig.split',
            self.split,
            'the name of a split',
        )
        object.__setattr__(self, 'tasks', tuple(self.tasks))


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How long a run is and how it reports.

    Attributes:
        steps: optimizer steps in all, those before a restart included.
        seed: parameters and dropout; the data's order has its own (`DataConfig.seed`).
        log_every: steps between rows of metrics.jsonl and lines of progress; a row holds the numbers of its own step.
        multi_host: joins the other hosts of a TPU slice or GPU cluster before anything else (`jax.distributed`).
    """

    steps: int
    seed: int = 0
    log_every: int = 10
    multi_host: bool = False

    def __post_init__(self):
        require(is_count(self.steps, 1), 'RunConfig.steps', self.steps, 'a count of 1 or more')
        require(is_count(self.seed, 0), 'RunConfig.seed', self.seed, 'a count of 0 or more')
        require(is_count(self.log_every, 1), 'RunConfig.log_every', self.log_every, 'a count of 1 or more')
        require(isinstance(self.multi_host, bool), 'RunConfig.multi_host', self.multi_host, 'True or False')
