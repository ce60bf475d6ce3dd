"""The training step and the evaluation step, as pure functions of (state, batch), and both jitted, in `Trainer`.

Everything random is folded from the seed, the step and the microbatch, so a step depends on nothing but its arguments.
"""

import concurrent.futures
import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import unflatten_dict

from t5flan import sharding as sharding_lib
from t5flan.adapters.adapter import adapter_arrays, apply, base_names
from t5flan.adapters.config import Adapter
from t5flan.config.memory import require_memory
from t5flan.data.batches.converter import make_batch
from t5flan.data.config import DataConfig
from t5flan.data.preprocessing.features import row_capacity
from t5flan.errors import UserError
from t5flan.models.build import abstract_model, build_model
from t5flan.models.config import ModelConfig
from t5flan.models.layers import fold
from t5flan.models.parameters import logical_axes, named_parameters, parameter_count
from t5flan.training.config import LossConfig, OptimizerConfig, RunConfig
from t5flan.training.distillation.teacher import Teacher
from t5flan.training.losses import LossSums, cross_entropy, divergence
from t5flan.training.optimizer import Optimizer, make_optimizer, state_axes, with_parameters
from t5flan.training.state import TrainState, create_state

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
_Sums = tuple[LossSums, jax.Array | None, jax.Array | None]  # of the loss, an adapter's penalty, and the divergence


def _once_options(platform: str) -> dict[str, int] | None:
    """Compiler options of a program that runs once, with the same results.

    On a CPU, LLVM's second level of optimization nearly doubles the compile time of the initialization. A level in
    XLA_FLAGS wins.
    """
    if platform != 'cpu' or 'xla_backend_optimization_level' in os.environ.get('XLA_FLAGS', ''):
        return None
    return {'xla_backend_optimization_level': 1}


def make_train_step(
    config: OptimizerConfig, loss: LossConfig, optimizer: Optimizer, seed: int, adapter: Adapter | None = None
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns the function (state, batch, teacher) -> (state after one update, metrics); `teacher` is None without one.

    Metrics are float32 scalars: `loss`, which is minimised, its parts `cross_entropy`, `z_loss` and `label_smoothing`,
    and `accuracy`, each per weighted token of the batch; `tokens`, the sum of loss weights; `grad_norm`, the L2 norm of
    the gradient before clipping; and `learning_rate`. With a teacher, `teacher_divergence` is a part of
    `loss`. An adapter may add a term to the loss, `adapter_penalty`, which `loss` does not contain.

    Raises:
        UserError: when traced, if `config.microbatches` does not divide the rows of the batch.
    """

    def train_step(state: TrainState, batch: Batch, teacher: Teacher | None = None) -> tuple[TrainState, Metrics]:
        parameters = optimizer.trained_parameters(state.model)
        dropout_key = jax.random.fold_in(jax.random.key(seed), state.step)
        tokens = jnp.sum(loss_weights(batch))
        divisor = jnp.where(tokens > 0, tokens, 1.0)  # a batch of padding alone has loss 0, not 0 / 0
        # The loss weights are divided instead of the gradients, which saves a pass over the large ones.
        scale = 1.0 / divisor if loss.normalize else 1.0

        def objective(parameters: Any, part: Batch, key: jax.Array | None) -> tuple[jax.Array, _Sums]:
            model, penalty = with_parameters(state.model, parameters), None
            if adapter is not None:
                penalty = adapter.penalty(model)
                model = adapter.in_step(model, fold(dropout_key, 'adapter'))
            sums, apart = sums_and_divergence(model, part, scale * loss_weights(part), loss, key, teacher)
            total = sums.loss if apart is None else distilled(sums.loss, apart, loss)
            if penalty is None:
                return total, (sums, None, apart)
            penalty *= scale * divisor / config.microbatches  # as much of it as of the loss
            return total + penalty, (sums, penalty, apart)

        def gradients_and_sums(part: Batch, index: jax.Array | int) -> tuple[Any, _Sums]:
            key = jax.random.fold_in(dropout_key, index) if state.model.config.dropout_rate else None
            gradients, sums = jax.grad(objective, has_aux=True)(parameters, part, key)
            return optimizer.constrain(gradients), sums

        if config.microbatches == 1:
            gradients, (sums, penalty, apart) = gradients_and_sums(batch, 0)
        else:
            gradients, (sums, penalty, apart) = _accumulate(gradients_and_sums, batch, config.microbatches)
        with jax.named_scope('optimizer'):
            updates, opt_state = optimizer.transformation.update(gradients, state.opt_state, parameters)
            model = with_parameters(state.model, optax.apply_updates(parameters, updates))
        per_token = per_token_sums(sums) | ({} if penalty is None else {'adapter_penalty': penalty})
        if apart is not None:
            per_token |= {'loss': distilled(sums.loss, apart, loss), 'teacher_divergence': apart}
        metrics = {name: value / (scale * divisor) for name, value in per_token.items()}
        metrics |= {'tokens': tokens, 'grad_norm': optax.global_norm(gradients)}
        metrics['learning_rate'] = optimizer.schedule(state.step)
        return TrainState(step=state.step + 1, model=model, opt_state=opt_state), metrics

    return train_step


def make_eval_step(loss: LossConfig) -> Callable[[Any, Batch], Metrics]:
    """Returns the function (model, batch) -> sums over the batch, float32 [], as `per_token_sums`, and `tokens`.

    Add up the sums of all batches and divide by the sum of `tokens`. There is no dropout.
    """

    def eval_step(model: Any, batch: Batch) -> Metrics:
        sums = loss_sums(model, batch, loss_weights(batch), loss, None)
        return per_token_sums(sums) | {'tokens': sums.weight}

    return eval_step


def per_token_sums(sums: LossSums) -> Metrics:
    """The sums that are reported per token: the loss, its parts, and correct predictions."""
    cross_entropy = sums.loss - sums.z_loss - sums.smoothing
    parts = {'cross_entropy': cross_entropy, 'z_loss': sums.z_loss, 'label_smoothing': sums.smoothing}
    return {'loss': sums.loss, **parts, 'accuracy': sums.correct}


def distilled(loss: jax.Array, apart: jax.Array, config: LossConfig) -> jax.Array:
    """The loss with a teacher, from the loss without one and the divergence from it."""
    share = config.teacher_weight
    return (1.0 - share) * loss + share * config.temperature**2 * apart


def loss_sums(
    model: Any, batch: Batch, weights_BT: jax.Array, loss: LossConfig, dropout_key: jax.Array | None
) -> LossSums:
    """Sums the loss over a batch with these weights; without a key there is no dropout."""
    return sums_and_divergence(model, batch, weights_BT, loss, dropout_key, None)[0]


def sums_and_divergence(
    model: Any,
    batch: Batch,
    weights_BT: jax.Array,
    loss: LossConfig,
    dropout_key: jax.Array | None,
    teacher: Teacher | None,
) -> tuple[LossSums, jax.Array | None]:
    """`loss_sums`, and the divergence from a teacher (None without one)."""
    x_BTD = model.hidden(batch, dropout_key=dropout_key)
    with jax.named_scope('loss'):
        sums = cross_entropy(model.logits, x_BTD, batch['decoder_target_tokens'], weights_BT, loss)
    if teacher is None:
        return sums, None
    with jax.named_scope('teacher'):
        x_BTE = teacher.hidden(batch)
        return sums, divergence(model.logits, x_BTD, teacher.model.logits, x_BTE, weights_BT, loss)


def loss_weights(batch: Batch) -> jax.Array:
    """The batch's loss weights, float32 [B, T]; by default 1 for every target that is not padding."""
    if 'decoder_loss_weights' in batch:
        return batch['decoder_loss_weights'].astype(jnp.float32)
    return (batch['decoder_target_tokens'] > 0).astype(jnp.float32)


def _accumulate(
    gradients_and_sums: Callable[[Batch, jax.Array], tuple[Any, _Sums]], batch: Batch, parts: int
) -> tuple[Any, _Sums]:
    """Gradients and sums over the batch, computed in `parts` microbatches one after the other.

    Microbatch i has rows i, i + parts, …: every device has rows of each microbatch, so no row is moved.
    """
    rows = batch['decoder_target_tokens'].shape[0]
    if rows % parts:
        problem = f'OptimizerConfig.microbatches={parts} does not divide the batch of {rows} rows'
        raise UserError(f'{problem}. Set OptimizerConfig.microbatches to a divisor of DataConfig.batch_size.')

    def split(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x.reshape(rows // parts, parts, *x.shape[1:]), 1, 0)
        return sharding_lib.constrain(x, (None, *sharding_lib.batch_axes(x.ndim - 1)))

    batch_parts = jax.tree.map(split, dict(batch))
    first = jax.tree.map(lambda x: x[0], batch_parts)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradients_and_sums, first, 0))

    def body(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradients_and_sums(*part)), None

    return jax.lax.scan(body, zeros, (batch_parts, jnp.arange(parts)))[0]


def abstract_batch(data: DataConfig, sharding: sharding_lib.Sharding) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape, dtype and sharding of each model feature of a global batch, as the pipeline makes it.

    Raises:
        UserError: the rows, or their lengths, do not divide over the mesh.
    """
    sharding_lib.check_divides(sharding, 'batch', data.batch_size)
    for length in row_capacity(data.format, data.feature_lengths):
        sharding_lib.check_divides(sharding, 'length', length)
    row = make_batch(data.format, data.feature_lengths, [[]], data.pack)

    def place(x: Any) -> jax.ShapeDtypeStruct:
        shape = (data.batch_size, *x.shape[1:])
        placed = sharding.named(sharding_lib.batch_axes(x.ndim), shape)
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=placed)

    return {name: place(x) for name, x in row.items()}


class Trainer:
    """The jitted steps and the state they work on, placed on the mesh. Make and use it inside `sharding.use(...)`.

    Attributes:
        steps: of the whole run.
        adapter: the settings of the adapter that is trained, or None.
        abstract_base: shape, dtype and sharding of every parameter of the model without its adapter.
        abstract_state: the same of every array of the state.
        state_shardings: the shardings alone.
        train_step: (state, batch, *teacher) -> (state, metrics), see `make_train_step`; the given state is donated. A
            jitted function, which `compiling` replaces by a compiled one.
        teacher: the frozen model that LossConfig.teacher names, or nothing; read by whoever makes the Trainer.
        eval_step: (model, batch) -> sums, see `make_eval_step`.
    """

    def __init__(
        self,
        model: ModelConfig,
        optimizer: OptimizerConfig,
        loss: LossConfig,
        run: RunConfig,
        sharding: sharding_lib.Sharding,
    ):
        self.sharding, self.steps, self.adapter = sharding, run.steps, run.adapter
        self.teacher: tuple[Teacher, ...] = ()
        self._model_config, self._seed, self._base_dtype = model, run.seed, run.base_dtype
        base = abstract_model(model)
        axes = logical_axes(jax.eval_shape(self._adapted, base))
        names = frozenset() if run.adapter is None else base_names(model)
        self._optimizer = make_optimizer(optimizer, axes, run.steps, names)
        if run.adapter is not None:
            wrapped = run.adapter.wrap_optimizer(self._optimizer.transformation, run.steps)
            self._optimizer = dataclasses.replace(self._optimizer, transformation=wrapped)
        abstract = jax.eval_shape(self._create)
        place = lambda tree, names: sharding_lib.tree_shardings(sharding, tree, names)
        self.state_shardings = TrainState(
            step=sharding.replicated(),
            model=place(abstract.model, axes),
            opt_state=place(abstract.opt_state, state_axes(abstract.opt_state, axes)),
        )
        placed = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
        self.abstract_base = jax.tree.map(placed, base, place(base, logical_axes(base)))
        self.abstract_state: TrainState = jax.tree.map(placed, abstract, self.state_shardings)
        self._check_memory()
        self.train_step: Any = jax.jit(
            make_train_step(optimizer, loss, self._optimizer, run.seed, run.adapter),
            donate_argnums=0,
            out_shardings=(self.state_shardings, None),
        )
        self.eval_step = jax.jit(make_eval_step(loss))

    def _check_memory(self) -> None:
        """Requires the memory of the whole state, which a large adapter may dominate."""
        parts = {'model': self.abstract_state.model, 'optimizer state': self.abstract_state.opt_state}
        size = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        sizes = {name: float(sum(map(size, jax.tree.leaves(tree)))) for name, tree in parts.items()}
        left, where, _ = sharding_lib.memory_left(list(self.sharding.mesh.local_devices))
        fix = 'Set a smaller model or adapter, or more devices with MeshConfig.fsdp.'
        require_memory('the state of this run', sizes, left, where, fix)

    def _create(self) -> TrainState:
        model = build_model(self._model_config, jax.random.key(self._seed))
        return create_state(self._adapted(model), self._optimizer)

    def _adapted(self, model: Any) -> Any:
        """The model with a new adapter, if there is one, and its own parameters in RunConfig.base_dtype."""
        if self.adapter is None:
            return model
        model = apply(model, self.adapter, jax.random.key(self._seed))
        names = base_names(self._model_config)
        leaves = [
            leaf.astype(self._base_dtype) if name in names else leaf for name, leaf in named_parameters(model).items()
        ]
        return jax.tree.unflatten(jax.tree.structure(model), leaves)

    def new_state(self) -> TrainState:
        """New parameters, each drawn in its place on the mesh; the same numbers on any mesh."""
        options = _once_options(self.sharding.mesh.devices.flat[0].platform)
        return jax.jit(self._create, out_shardings=self.state_shardings, compiler_options=options)()

    @contextlib.contextmanager
    def compiling(self, batch: Mapping[str, jax.ShapeDtypeStruct]) -> Iterator[None]:
        """Compiles the training step while the body runs, which makes or reads the state.

        From then on, the step takes only batches like `batch`.
        """
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            compiled = thread.submit(lambda: self.train_step.lower(self.abstract_state, batch, *self.teacher).compile())
            yield
            self.train_step = compiled.result()

    def compiled_text(self, batch: Batch) -> str:
        """The compiled training step for batches of these shapes, as HLO text."""
        step = self.train_step
        if not isinstance(step, jax.stages.Compiled):
            step = step.lower(self.abstract_state, batch, *self.teacher).compile()
        return step.as_text() or ''

    def state_with(self, model: Any) -> TrainState:
        """A new adapter, if there is one, and optimizer state for the parameters of `model`.

        They are donated, unless RunConfig.base_dtype changes them.
        """
        create = lambda model: create_state(self._adapted(model), self._optimizer)
        donated = 0 if self._base_dtype == 'float32' else ()  # others have no place in the result
        return jax.jit(create, out_shardings=self.state_shardings, donate_argnums=donated)(model)

    def count(self, state: TrainState) -> str:
        """How many parameters there are, and with an adapter how many of them are trained, for the log."""
        trained = '' if self.adapter is None else f'{parameter_count(self.saved(state).model):,} trained of '
        return f'{trained}{parameter_count(state.model):,} parameters'

    def saved(self, state: TrainState) -> TrainState:
        """What a checkpoint holds: the state; with an adapter, of the model only the adapter, as a nested dict."""
        if self.adapter is None:
            return state
        return dataclasses.replace(state, model=unflatten_dict(adapter_arrays(state.model), sep='/'))
