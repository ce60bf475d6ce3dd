"""DoRA, weight-decomposed low-rank adaptation (https://arxiv.org/abs/2402.09353).

    y = m / |V| * (x V)        V = W + scale * A B; |V| is the length of each column; m is trained

As in the paper (section 4.3) and in PEFT, |V| counts as a constant in the gradient.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from t5flan.adapters.methods.lora import Lora, LoraProjection
from t5flan.adapters.projection import Terms, is_stacked, with_leading_axes
from t5flan.config.checks import require
from t5flan.errors import UserError
from t5flan.models.layers import Projection
from t5flan.models.parameters import Scope


@dataclasses.dataclass(frozen=True)
class Dora(Lora):
    """Weight-decomposed low-rank adaptation (https://arxiv.org/abs/2402.09353): LoRA changes the direction only.

    The columns of W + alpha / rank * A B are scaled to lengths that are trained, at first those of W's columns.

    Attributes:
        rank, alpha, rslora, targets, rank_pattern, alpha_pattern: as of `Lora`.
        bias: False; DoRA has none.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not self.bias, 'Dora.bias', self.bias, 'False')

    def make(self, projection: Projection, scope: Scope, rank: int, scale: float) -> 'DoraProjection':
        """One adapted projection."""
        return DoraProjection(projection, scope, rank, scale)


class DoraProjection(LoraProjection):
    """A projection whose columns have trained lengths, and directions that a low-rank product changes."""

    reads_kernel = True

    def __init__(self, base: Projection, scope: Scope, rank: int, scale: float):
        super().__init__(base, scope, rank, scale)
        if base.bias is not None:
            kernels = '@Dora() cannot adapt projections with biases (ModelConfig.attention_bias)'
            raise UserError(f'{kernels}. Set Dora.targets to others, or use @Lora().')
        stacked = is_stacked(base)
        axes = base.kernel.get_metadata('axes')
        first = 1 if stacked else 0
        inputs = tuple(range(first, first + base.num_inputs))
        kept = tuple(name for i, name in enumerate(axes) if i not in inputs)
        self.dora_magnitude = nnx.Param(_lengths(base.kernel[...], inputs), axes=kept)

    def _scales(self) -> jax.Array:
        """The factor m / |V| of each column of one layer, float32 [*outputs]."""
        lengths = _lengths(super().merged_kernel(), tuple(range(self.num_inputs)))
        return self.dora_magnitude[...] / jax.lax.stop_gradient(lengths)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., *inputs] -> [..., *outputs] in the compute dtype."""
        y = super().__call__(x)
        return y * with_leading_axes(self._scales().astype(self.dtype), y.ndim)

    def terms(self) -> Terms:
        """LoRA's, and the scales of the outputs."""
        return super().terms()._replace(outputs=self._scales())

    def merged_kernel(self) -> jax.Array:
        """V with columns of length m, float32."""
        return super().merged_kernel() * with_leading_axes(self._scales(), self.kernel.ndim)


def _lengths(kernel: jax.Array, inputs: tuple[int, ...]) -> jax.Array:
    """The lengths of a kernel's columns, summed over its axes `inputs`."""
    return jnp.sqrt(jnp.sum(jnp.square(kernel.astype(jnp.float32)), inputs))
