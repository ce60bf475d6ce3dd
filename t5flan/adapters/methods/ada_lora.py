"""AdaLoRA, adaptive budget allocation (https://arxiv.org/abs/2303.10512): LoRA whose ranks training gives to kernels.

    y = x W + scale * ((x A) * e) B         scale = alpha / (init_rank + 1e-5), as in PEFT

R initial rank, L layers. One layer's W is [*inputs, *outputs], A [*inputs, R], e [R], B [R, *outputs]. A column of A,
an entry of e and a row of B are a triplet. Its score says how much the loss depends on it; entries of e with the lowest
scores are set to zero, more and more of them, until `target_rank` triplets are left per kernel on average:

    t <= tinit                     all are trained
    tinit < t < T - tfinal         each `delta_t` steps all but b(t) triplets are pruned; a pruned one may come back
    t = T - tfinal                 all but the target are pruned, and stay so

    b(t) = target + (initial - target) * (1 - (t - tinit) / (T - tfinal - tinit)) ** 3        t counts steps from 1

A and B are kept near orthogonal by a term of the loss, so that e are singular values.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from t5flan.adapters.config import QUERY_AND_VALUE, Adapter, check_targets
from t5flan.adapters.methods.lora import check_rank
from t5flan.adapters.projection import AdaptedProjection, Terms, one_layer, replace_projections, with_leading_axes
from t5flan.config.checks import is_count, is_number, require, require_count, require_positive
from t5flan.errors import UserError
from t5flan.models.layers import Projection
from t5flan.models.model import Model
from t5flan.models.parameters import Scope, named_parameters

Arrays = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class AdaLora(Adapter):
    """AdaLoRA (https://arxiv.org/abs/2303.10512): LoRA that moves its ranks to the kernels where they matter most.

    Training starts with `init_rank` for every kernel and ends with `target_rank` on average. Names are PEFT's.

    Attributes:
        init_rank: the rank of every kernel at first.
        target_rank: the mean rank of the kernels in the end.
        alpha: the product is scaled by alpha / init_rank.
        targets: regular expressions of the kernels to adapt; each matches whole parameter paths.
        tinit: steps before the first rank is taken away.
        tfinal: steps at the end in which ranks stay as they are.
        delta_t: steps between two allocations of ranks.
        beta1: decay of the mean importance of a number, |w * gradient|.
        beta2: decay of the mean deviation from it.
        orth_reg_weight: weight of the term of the loss that keeps A and B orthogonal.
        total_steps: steps of the schedule; None = those of the run.
    """

    init_rank: int = 12
    target_rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = QUERY_AND_VALUE
    tinit: int = 0
    tfinal: int = 0
    delta_t: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    orth_reg_weight: float = 0.5
    total_steps: int | None = None

    def __post_init__(self) -> None:
        check_targets(self)
        require_count('AdaLora.init_rank', self.init_rank)
        fits = is_count(self.target_rank, 1) and self.target_rank <= self.init_rank
        expected = f'an integer from 1 to {self.init_rank} (AdaLora.init_rank)'
        require(fits, 'AdaLora.target_rank', self.target_rank, expected)
        require_positive('AdaLora.alpha', self.alpha)
        for name, least in (('tinit', 0), ('tfinal', 0), ('delta_t', 1)):
            require_count(f'AdaLora.{name}', getattr(self, name), least)
        for name in ('beta1', 'beta2'):
            require_positive(f'AdaLora.{name}', getattr(self, name), below=1)
        weighted = is_number(self.orth_reg_weight) and self.orth_reg_weight >= 0
        require(weighted, 'AdaLora.orth_reg_weight', self.orth_reg_weight, 'a number of 0 or more')
        if self.total_steps is not None:
            require_count('AdaLora.total_steps', self.total_steps)
            self._check_schedule(self.total_steps, 'AdaLora.total_steps')

    def _check_schedule(self, steps: int, setting: str) -> None:
        if self.tinit + self.tfinal >= steps:
            given = f'AdaLora.tinit={self.tinit} and AdaLora.tfinal={self.tfinal}'
            problem = f'{given} leave no step for taking ranks away, expected a sum below {setting}={steps}'
            raise UserError(f'{problem}. Set AdaLora.tinit and AdaLora.tfinal in your .gin.')

    @property
    def mergeable(self) -> bool:
        """True: the product of the three is added to the kernel."""
        return True

    @property
    def scale(self) -> float:
        """The factor of the product, with PEFT's small number."""
        return self.alpha / (self.init_rank + 1e-5)

    def adapt(self, model: Model, scope: Scope) -> Model:
        """The model with three factors on the projections that `targets` name.

        Raises:
            UserError: a target matches nothing, or the initial rank is above that of its kernel.
        """

        def make(path: str, projection: Projection, place: Scope) -> AdaLoraProjection:
            check_rank('AdaLora.init_rank', self.init_rank, path, projection)
            return AdaLoraProjection(projection, place, self.init_rank, self.scale)

        return replace_projections(model, self.targets, 'AdaLora.targets', scope, make)

    def penalty(self, model: Model) -> jax.Array:
        """The mean distance of all A^T A and B B^T from the identity (Frobenius), times its weight."""
        arrays = named_parameters(model)
        distances = []
        for name in arrays:
            if name.endswith('/lora_e'):
                a, e, b = (arrays[f'{name.removesuffix("lora_e")}{part}'] for part in ('lora_a', 'lora_e', 'lora_b'))
                a_LIR = a.reshape(*e.shape[:-1], -1, e.shape[-1])
                b_LRO = b.reshape(*e.shape, -1)
                for products in (jnp.swapaxes(a_LIR, -1, -2) @ a_LIR, b_LRO @ jnp.swapaxes(b_LRO, -1, -2)):
                    off = products - with_leading_axes(jnp.eye(e.shape[-1]), products.ndim)
                    squares = jnp.maximum(jnp.sum(jnp.square(off), (-1, -2)), 1e-30)  # a root has no gradient at 0
                    distances.append(jnp.sqrt(squares).ravel())
        return self.orth_reg_weight * jnp.mean(jnp.concatenate(distances))

    def wrap_optimizer(self, optimizer: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
        """The optimizer, and after each of its updates the scores of the triplets and the allocation of ranks.

        Raises:
            UserError: the schedule does not fit into the steps of the run.
        """
        total = self.total_steps or steps
        self._check_schedule(total, 'AdaLora.total_steps' if self.total_steps else 'RunConfig.steps')

        def init(parameters: Any) -> RankState:
            zeros = jax.tree.map(jnp.zeros_like, parameters)
            return RankState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.copy, zeros), optimizer.init(parameters))

        def update(gradients: Any, state: RankState, parameters: Any) -> tuple[Any, RankState]:
            updates, inner = optimizer.update(gradients, state.inner, parameters)
            step = state.count + 1
            after = optax.apply_updates(parameters, updates)
            seen = lambda new, old: jnp.where(step < total - self.tfinal, new, old)
            importance = jax.tree.map(
                lambda mean, w, g: seen(self.beta1 * mean + (1 - self.beta1) * jnp.abs(w * g), mean),
                state.importance,
                after,
                gradients,
            )
            deviation = jax.tree.map(
                lambda mean, i, w, g: seen(self.beta2 * mean + (1 - self.beta2) * jnp.abs(jnp.abs(w * g) - i), mean),
                state.deviation,
                importance,
                after,
                gradients,
            )
            scores = _triplet_scores(named_parameters(jax.tree.map(jnp.multiply, importance, deviation)))
            pruned = self._pruned(step, total, scores, named_parameters(parameters))
            old, new = named_parameters(parameters), named_parameters(updates)
            leaves = [jnp.where(pruned[name], -old[name], x) if name in pruned else x for name, x in new.items()]
            updates = jax.tree.unflatten(jax.tree.structure(updates), leaves)
            return updates, RankState(step, importance, deviation, inner)

        return optax.GradientTransformation(init, update)

    def _pruned(self, step: jax.Array, total: int, scores: Arrays, parameters: Arrays) -> dict[str, jax.Array]:
        """Name of e -> which of its entries are zero after this step, bool [L, R]."""
        every = jnp.concatenate([x.ravel() for x in scores.values()])
        target, end = every.size // self.init_rank * self.target_rank, total - self.tfinal
        left = 1.0 - (step - self.tinit) / (end - self.tinit)
        budget = (target + (every.size - target) * left**3).astype(jnp.int32)
        threshold = jnp.sort(every)[jnp.maximum(every.size - budget, 1) - 1]
        now = ((step > self.tinit) & (step < end) & (step % self.delta_t == 0)) | (step == end)
        now &= budget < every.size
        was_zero = lambda name: (step > end) & (parameters[name] == 0)
        return {name: (now & (x <= threshold)) | was_zero(name) for name, x in scores.items()}


class RankState(NamedTuple):
    """The state of AdaLoRA's optimizer.

    Attributes:
        count: steps so far, int32 [].
        importance: mean of |w * gradient| of each number, a tree like the parameters.
        deviation: mean deviation from it.
        inner: the state of the optimizer inside.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as in optax's own states
    importance: Any
    deviation: Any
    inner: Any


def _triplet_scores(scores: Arrays) -> dict[str, jax.Array]:
    """Name of e -> the scores of its triplets [L, R]: those of e, and the means of A's columns and B's rows."""
    found = {}
    for name, e in scores.items():
        if name.endswith('/lora_e'):
            path, layers = name.removesuffix('lora_e'), e.ndim - 1
            a, b = scores[f'{path}lora_a'], scores[f'{path}lora_b']
            of_a, of_b = jnp.mean(a, tuple(range(layers, a.ndim - 1))), jnp.mean(b, tuple(range(layers + 1, b.ndim)))
            found[name] = e + of_a + of_b
    return found


class AdaLoraProjection(AdaptedProjection):
    """A projection plus the product of three factors."""

    def __init__(self, base: Projection, scope: Scope, rank: int, scale: float):
        super().__init__(base)
        self.scale = scale
        shape, axes = one_layer(base)
        inputs, outputs = slice(None, base.num_inputs), slice(base.num_inputs, None)
        init = jax.nn.initializers.normal(0.02)  # as in PEFT
        self.lora_a = scope.parameter('lora_a', (*shape[inputs], rank), (*axes[inputs], 'rank'), init)
        self.lora_e = scope.parameter('lora_e', (rank,), ('rank',), jax.nn.initializers.zeros)
        self.lora_b = scope.parameter('lora_b', (rank, *shape[outputs]), ('rank', *axes[outputs]), init)

    def _factors(self) -> tuple[jax.Array, jax.Array]:
        """Two factors of one layer: scale * A * e and B, float32 [*inputs, R] and [R, *outputs]."""
        e = self.scale * self.lora_e[...]
        return self.lora_a[...] * with_leading_axes(e, self.num_inputs + 1), self.lora_b[...]

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., *inputs] -> [..., *outputs] in the compute dtype."""
        a, b = (factor.astype(self.dtype) for factor in self._factors())
        return super().__call__(x) + jnp.tensordot(jnp.tensordot(x.astype(self.dtype), a, self.num_inputs), b, 1)

    def terms(self) -> Terms:
        """The two factors."""
        return Terms(*self._factors())

    def merged_kernel(self) -> jax.Array:
        """W + scale * A diag(e) B, float32."""
        return self.kernel[...] + jnp.tensordot(*self._factors(), 1, precision=jax.lax.Precision.HIGHEST)
