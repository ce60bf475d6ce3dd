"""Bottleneck adapters: a small MLP after each sublayer, or beside it.

    series      x + a(f(norm(x)))                           Houlsby et al. (https://arxiv.org/abs/1902.00751)
    parallel    x + f(norm(x)) + scale * b(norm(x))         He et al. (https://arxiv.org/abs/2110.04366)

    b(x) = act(x W_down + c_down) W_up + c_up               a(x) = x + scale * b(x)

f is attention or the MLP of a block. B batch, T length, D emb_dim, R size of the bottleneck.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t5flan.adapters.choice import Extension, copy_attributes, extended
from t5flan.adapters.config import Adapter
from t5flan.adapters.projection import is_stacked
from t5flan.config.checks import require, require_count, require_one_of, require_positive
from t5flan.models.attention import Attention
from t5flan.models.layers import ACTIVATIONS, MLP
from t5flan.models.model import Model
from t5flan.models.parameters import Scope, fan_in

SUBLAYERS: dict[str, type[nnx.Module]] = {'attention': Attention, 'mlp': MLP}


@dataclasses.dataclass(frozen=True)
class Bottleneck(Adapter):
    """Bottleneck adapters (https://arxiv.org/abs/1902.00751): a small MLP after each sublayer, or beside it.

    The matrix that leads out of the bottleneck is zero at first, so that the adapted model begins as the base.

    Attributes:
        size: the width of the bottleneck.
        kind: 'series' reads the output of a sublayer (Houlsby), 'parallel' its normed input
            (https://arxiv.org/abs/2110.04366).
        sublayers: which sublayers have one: 'attention' (that of the decoder to the encoder too), 'mlp' or both.
        activation: 'relu', 'gelu' or 'silu'.
        scale: the output of the bottleneck is multiplied by it; He et al. use 4 for 'parallel'.
    """

    size: int = 64
    kind: str = 'series'
    sublayers: tuple[str, ...] = ('attention', 'mlp')
    activation: str = 'relu'
    scale: float = 1.0

    def __post_init__(self) -> None:
        require_count('Bottleneck.size', self.size)
        require_one_of('Bottleneck.kind', self.kind, ('series', 'parallel'))
        require_one_of('Bottleneck.activation', self.activation, ('relu', 'gelu', 'silu'))
        require_positive('Bottleneck.scale', self.scale)
        known = len(self.sublayers) > 0 and set(self.sublayers) <= set(SUBLAYERS)
        require(known, 'Bottleneck.sublayers', self.sublayers, "'attention', 'mlp' or both, in a list")
        object.__setattr__(self, 'sublayers', tuple(self.sublayers))

    def adapt(self, model: Model, scope: Scope) -> Model:
        """The model with a bottleneck at each of `sublayers`."""
        model = jax.tree.map(lambda x: x, model)  # new modules, the same arrays
        chosen = tuple(SUBLAYERS[name] for name in self.sublayers)
        for parent, name, place in list(_sublayers(model, scope, chosen)):
            base = getattr(parent, name)
            out = base.wo if isinstance(base, MLP) else base.out
            if is_stacked(out):
                place = place.stacked(out.kernel.shape[0])
            adapted = AdaptedMLP if isinstance(base, MLP) else AdaptedAttention
            setattr(parent, name, adapted(base, BottleneckMLP(model.config.emb_dim, place / 'bottleneck', self)))
        return model

    @staticmethod
    def by_row(model: Model, adapted: Mapping[int, Model]) -> Model:
        """The model with the bottlenecks of several adapters."""
        model = jax.tree.map(lambda x: x, model)  # new modules, the same arrays
        kinds, at_root = tuple(SUBLAYERS.values()), Scope(jax.random.key(0))
        others = {number: list(_sublayers(one, at_root, kinds)) for number, one in adapted.items()}
        for i, (parent, name, _) in enumerate(list(_sublayers(model, at_root, kinds))):
            here = {number: getattr(sublayers[i][0], name) for number, sublayers in others.items()}
            found = {number: one.bottleneck for number, one in here.items() if hasattr(one, 'bottleneck')}
            if found:
                setattr(parent, name, extended(getattr(parent, name), RowBottlenecks).with_all(found))
        return model


def _sublayers(
    module: nnx.Module, scope: Scope, kinds: tuple[type[nnx.Module], ...]
) -> Iterator[tuple[nnx.Module, str, Scope]]:
    """Every module of one of `kinds`, as (the module that holds it, its name there, its position)."""
    for name, value in sorted(vars(module).items()):
        if isinstance(value, kinds):
            yield module, name, scope / name
        elif isinstance(value, nnx.Module):
            yield from _sublayers(value, scope / name, kinds)


class BottleneckMLP(nnx.Module):
    """Down to R features, an activation, and up again."""

    def __init__(self, emb_dim: int, scope: Scope, settings: Bottleneck):
        self.activation, self.scale, self.kind = settings.activation, settings.scale, settings.kind
        zeros, size = jax.nn.initializers.zeros, settings.size
        self.down = scope.parameter('down', (emb_dim, size), ('embed', 'rank'), fan_in(1))
        self.down_bias = scope.parameter('down_bias', (size,), ('rank',), zeros)
        self.up = scope.parameter('up', (size, emb_dim), ('rank', 'embed'), zeros)
        self.up_bias = scope.parameter('up_bias', (emb_dim,), ('embed',), zeros)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D] in the dtype of x."""
        down, down_bias, up, up_bias = (
            parameter[...].astype(x_BTD.dtype) for parameter in (self.down, self.down_bias, self.up, self.up_bias)
        )
        x_BTR = ACTIVATIONS[self.activation](x_BTD @ down + down_bias[None, None])
        return (x_BTR @ up + up_bias[None, None]) * jnp.asarray(self.scale, x_BTD.dtype)

    def beside(self, x_BTD: jax.Array, y_BTD: jax.Array) -> jax.Array:
        """The output y of a sublayer with input x, and what the bottleneck adds to it."""
        return y_BTD + self(x_BTD if self.kind == 'parallel' else y_BTD)


class AdaptedAttention(Attention):
    """Attention with a bottleneck."""

    def __init__(self, base: Attention, bottleneck: BottleneckMLP):
        copy_attributes(base, self)
        self.bottleneck = bottleneck

    def __call__(self, x_BTD: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        """[B, T, D] -> [B, T, D], with the arguments of `Attention`."""
        return self.bottleneck.beside(x_BTD, super().__call__(x_BTD, *args, **kwargs))


class AdaptedMLP(MLP):
    """The MLP of a block with a bottleneck."""

    def __init__(self, base: MLP, bottleneck: BottleneckMLP):
        copy_attributes(base, self)
        self.bottleneck = bottleneck

    def __call__(self, x_BTD: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        """[B, T, D] -> [B, T, D]; a `dropout_key` of None turns dropout off."""
        return self.bottleneck.beside(x_BTD, super().__call__(x_BTD, dropout_key))


class RowBottlenecks(Extension):
    """A sublayer with the bottlenecks of several adapters, of which each row has one or none."""

    def with_all(self, bottlenecks: Mapping[int, BottleneckMLP]) -> 'RowBottlenecks':
        """The module itself, with these: number of the adapter -> its bottleneck."""
        self.bottleneck_numbers = tuple(bottlenecks)
        for number, bottleneck in bottlenecks.items():
            setattr(self, f'bottleneck_{number}', bottleneck)
        self.hold_choice(bottleneck.up.shape[:-2])
        return self

    def __call__(self, x_BTD: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        """[B, T, D] -> [B, T, D], with the arguments of the sublayer."""
        y_BTD = without_BTD = super().__call__(x_BTD, *args, **kwargs)
        chosen_B11 = self.chosen(x_BTD.shape[0])[:, None, None]
        for number in self.bottleneck_numbers:
            with_BTD = getattr(self, f'bottleneck_{number}').beside(x_BTD, without_BTD)
            y_BTD = jnp.where(chosen_B11 == number, with_BTD, y_BTD)
        return y_BTD
