"""(IA)3, infused adapter by inhibiting and amplifying inner activations (https://arxiv.org/abs/2205.05638).

y = (x W) * l        keys and values
y = (x * l) W        the last projection of the MLP, whose input is the inner activation
"""

import jax
import jax.numpy as jnp

from t5flan.adapters.config import Ia3
from t5flan.adapters.projection import AdaptedProjection, one_layer, replace_projections, with_leading_axes
from t5flan.models.layers import Projection
from t5flan.models.model import Model
from t5flan.models.parameters import Scope


class Ia3Projection(AdaptedProjection):
    """A projection whose outputs, or inputs, are multiplied by a trained vector."""

    def __init__(self, base: Projection, scope: Scope, *, on_inputs: bool):
        super().__init__(base)
        self.on_inputs = on_inputs
        shape, axes = one_layer(base)
        side = slice(None, base.num_inputs) if on_inputs else slice(base.num_inputs, None)
        self.ia3 = scope.parameter('ia3', shape[side], axes[side], jax.nn.initializers.ones)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., *inputs] -> [..., *outputs] in the compute dtype."""
        scales = self.ia3[...].astype(self.dtype)
        if self.on_inputs:
            return super().__call__(x.astype(self.dtype) * with_leading_axes(scales, x.ndim))
        y = super().__call__(x)
        return y * with_leading_axes(scales, y.ndim)

    def merged_kernel(self) -> jax.Array:
        """The kernel with its rows or columns rescaled, float32."""
        scales, outputs = self.ia3[...], self.kernel.ndim - self.num_inputs
        if self.on_inputs:
            scales = jnp.expand_dims(scales, tuple(range(scales.ndim, scales.ndim + outputs)))
        return self.kernel[...] * with_leading_axes(scales, self.kernel.ndim)


def adapt(model: Model, settings: Ia3, scope: Scope) -> Model:
    """The model with (IA)3 on the projections that the settings name; its base arrays are the given ones.

    Raises:
        UserError: a target matches nothing.
    """
    for field, on_inputs in (('targets', False), ('input_targets', True)):

        def make(_: str, projection: Projection, place: Scope, on_inputs: bool = on_inputs) -> Ia3Projection:
            return Ia3Projection(projection, place, on_inputs=on_inputs)

        model = replace_projections(model, getattr(settings, field), f'Ia3.{field}', scope, make)
    return model
