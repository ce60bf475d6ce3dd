"""LoRA, low-rank adaptation (https://arxiv.org/abs/2106.09685), with rank-stabilised scaling (arXiv:2312.03732).

    y = x W + scale * (x A) B        scale = alpha / rank, or alpha / sqrt(rank)

R rank. One layer's W is [*inputs, *outputs], A [*inputs, R], B [R, *outputs].
"""

import functools
import math
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from t5flan.adapters.config import Lora
from t5flan.adapters.projection import AdaptedProjection, one_layer, replace_projections, with_leading_axes
from t5flan.errors import UserError
from t5flan.models.layers import Projection
from t5flan.models.model import Model
from t5flan.models.parameters import Scope


def uniform_fan_in(num_inputs: int) -> jax.nn.initializers.Initializer:
    """Uniform within 1 / sqrt(inputs), PEFT's initializer of A (`kaiming_uniform_(a=sqrt(5))`)."""
    axes = tuple(range(num_inputs))
    return jax.nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform', axes, (num_inputs,))


class LoraProjection(AdaptedProjection):
    """A projection plus the product of two thin ones."""

    def __init__(self, base: Projection, scope: Scope, rank: int, scale: float, *, bias: bool = False):
        super().__init__(base)
        self.scale = scale
        shape, axes = one_layer(base)
        inputs, outputs = shape[: base.num_inputs], shape[base.num_inputs :]
        in_axes, out_axes = axes[: base.num_inputs], axes[base.num_inputs :]
        zeros = jax.nn.initializers.zeros
        self.lora_a = scope.parameter('lora_a', (*inputs, rank), (*in_axes, 'rank'), uniform_fan_in(base.num_inputs))
        self.lora_b = scope.parameter('lora_b', (rank, *outputs), ('rank', *out_axes), zeros)
        if bias:
            self.lora_bias = scope.parameter('lora_bias', outputs, out_axes, zeros)

    def low_rank(self, x: jax.Array) -> jax.Array:
        """The low-rank product and the bias: [..., *inputs] -> [..., *outputs] in the compute dtype."""
        a, b = (parameter[...].astype(self.dtype) for parameter in (self.lora_a, self.lora_b))
        # The scale multiplies the smallest of the arrays.
        h = jnp.tensordot(x.astype(self.dtype), a, self.num_inputs) * jnp.asarray(self.scale, self.dtype)
        y = jnp.tensordot(h, b, 1)
        if not hasattr(self, 'lora_bias'):
            return y
        return y + self.scale * with_leading_axes(self.lora_bias[...].astype(self.dtype), y.ndim)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., *inputs] -> [..., *outputs] in the compute dtype."""
        return super().__call__(x) + self.low_rank(x)

    def merged_kernel(self) -> jax.Array:
        """W + scale * A B, float32.

        Raises:
            UserError: there is a bias, which no kernel can hold.
        """
        if hasattr(self, 'lora_bias'):
            raise UserError('an adapter with Lora.bias=True cannot be merged: the model has no bias vectors.')
        delta = jnp.tensordot(self.lora_a[...], self.lora_b[...], 1, precision=jax.lax.Precision.HIGHEST)
        return self.kernel[...] + self.scale * delta


def value_of(patterns: dict[str, float] | dict[str, int], path: str, default: float) -> float:
    """The value of the first pattern that matches the whole path."""
    return next((value for pattern, value in patterns.items() if re.fullmatch(pattern, path)), default)


def rank_and_scale(settings: Lora, path: str) -> tuple[int, float]:
    """The rank of a kernel and the factor of its low-rank product."""
    rank = int(value_of(dict(settings.rank_pattern), path, settings.rank))
    alpha = value_of(dict(settings.alpha_pattern), path, settings.alpha)
    return rank, alpha / math.sqrt(rank) if settings.rslora else alpha / rank


def check_rank(settings: Lora, rank: int, path: str, projection: Projection) -> None:
    """Requires the rank to be at most that of the kernel.

    Raises:
        UserError: it is larger.
    """
    shape, _ = one_layer(projection)
    rows, columns = math.prod(shape[: projection.num_inputs]), math.prod(shape[projection.num_inputs :])
    if rank > min(rows, columns):
        name = type(settings).__name__
        problem = f'{name}.rank={rank}, but {path} is a matrix of {rows} x {columns}'
        raise UserError(f'{problem}, expected a rank of {min(rows, columns)} or less. Set {name}.rank in your .gin.')


def adapt(model: Model, settings: Lora, scope: Scope) -> Model:
    """The model with LoRA on the projections that `settings.targets` name; its base arrays are the given ones.

    Raises:
        UserError: a target matches nothing, or a rank is above that of its kernel.
    """
    kind = functools.partial(LoraProjection, bias=settings.bias)
    return adapt_low_rank(model, settings, scope, kind)


def adapt_low_rank(model: Model, settings: Lora, scope: Scope, kind: Callable[..., LoraProjection]) -> Model:
    """The model with `kind(projection, scope, rank, scale)` on the projections that `settings.targets` name.

    Raises:
        UserError: a target matches nothing, or a rank is above that of its kernel.
    """

    def make(path: str, projection: Projection, place: Scope) -> LoraProjection:
        rank, scale = rank_and_scale(settings, path)
        check_rank(settings, rank, path, projection)
        return kind(projection, place, rank, scale)

    return replace_projections(model, settings.targets, f'{type(settings).__name__}.targets', scope, make)
