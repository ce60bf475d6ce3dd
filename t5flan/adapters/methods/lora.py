"""LoRA, low-rank adaptation (https://arxiv.org/abs/2106.09685), with rank-stabilised scaling (arXiv:2312.03732).

    y = x W + scale * (x A) B        scale = alpha / rank, or alpha / sqrt(rank)

R rank. One layer's W is [*inputs, *outputs], A [*inputs, R], B [R, *outputs].
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from t5flan.adapters.config import QUERY_AND_VALUE, Adapter, check_targets
from t5flan.adapters.projection import (
    AdaptedProjection,
    Terms,
    matching,
    one_layer,
    replace_projections,
    with_leading_axes,
)
from t5flan.config.checks import is_count, is_number, require, require_count, require_patterns, require_positive
from t5flan.errors import UserError
from t5flan.models.layers import Projection
from t5flan.models.model import Model
from t5flan.models.parameters import Scope


@dataclasses.dataclass(frozen=True)
class Lora(Adapter):
    """Low-rank adaptation (https://arxiv.org/abs/2106.09685): a kernel W becomes W + alpha / rank * A B.

    A is drawn uniformly, as in PEFT, and B is zero, so that the adapted model begins as the base.

    Attributes:
        rank: columns of A and rows of B.
        alpha: the product is scaled by alpha / rank.
        rslora: scale by alpha / sqrt(rank) instead (https://arxiv.org/abs/2312.03732).
        targets: regular expressions of the kernels to adapt; each matches whole parameter paths
            ('decoder/.*/(query|value)/kernel').
        rank_pattern: regular expression -> the rank of the kernels that it matches; the first that matches applies.
        alpha_pattern: the same for alpha.
        bias: also train a vector that is added to the output of B (PEFT's `lora_bias`).
    """

    rank: int = 8
    alpha: float = 16.0
    rslora: bool = False
    targets: tuple[str, ...] = QUERY_AND_VALUE
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
    bias: bool = False

    def __post_init__(self) -> None:
        name = type(self).__name__
        require_count(f'{name}.rank', self.rank)
        require_positive(f'{name}.alpha', self.alpha)
        require(isinstance(self.bias, bool), f'{name}.bias', self.bias, 'True or False')
        require(isinstance(self.rslora, bool), f'{name}.rslora', self.rslora, 'True or False')
        check_targets(self)
        for field, kind, holds in (
            ('rank_pattern', 'integers of 1 or more', lambda x: is_count(x, 1)),
            ('alpha_pattern', 'numbers above 0', lambda x: is_number(x) and x > 0),
        ):
            given: Mapping[str, Any] = getattr(self, field)
            require_patterns(f'{name}.{field}', list(given))
            require(all(map(holds, given.values())), f'{name}.{field}', given, f'regular expressions to {kind}')

    @property
    def mergeable(self) -> bool:
        """Whether the kernels can hold it: they cannot hold a bias."""
        return not self.bias

    def adapt(self, model: Model, scope: Scope) -> Model:
        """The model with low-rank products on the projections that `targets` name.

        Raises:
            UserError: a target or a pattern matches nothing, or a rank is above that of its kernel.
        """
        name, adapted = type(self).__name__, []

        def make(path: str, projection: Projection, place: Scope) -> LoraProjection:
            adapted.append(path)
            rank, scale = rank_and_scale(self, path)
            check_rank(f'{name}.rank', rank, path, projection)
            return self.make(projection, place, rank, scale)

        model = replace_projections(model, self.targets, f'{name}.targets', scope, make)
        for field in ('rank_pattern', 'alpha_pattern'):
            matching(list(getattr(self, field)), adapted, f'{name}.{field}', 'is adapted')
        return model

    def make(self, projection: Projection, scope: Scope, rank: int, scale: float) -> 'LoraProjection':
        """One adapted projection."""
        return LoraProjection(projection, scope, rank, scale, bias=self.bias)


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

    def terms(self) -> Terms:
        """A, and B and the bias with the scale."""
        bias = self.scale * self.lora_bias[...] if hasattr(self, 'lora_bias') else None
        return Terms(self.lora_a[...], self.scale * self.lora_b[...], bias=bias)

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


def check_rank(setting: str, rank: int, path: str, projection: Projection) -> None:
    """Requires the rank to be at most that of the kernel.

    Raises:
        UserError: it is larger.
    """
    shape, _ = one_layer(projection)
    rows, columns = math.prod(shape[: projection.num_inputs]), math.prod(shape[projection.num_inputs :])
    if rank > min(rows, columns):
        problem = f'{setting}={rank}, but {path} is a matrix of {rows} x {columns}'
        raise UserError(f'{problem}, expected a rank of {min(rows, columns)} or less. Set {setting} in your .gin.')
