"""(IA)3, infused adapter by inhibiting and amplifying inner activations (https://arxiv.org/abs/2205.05638).

y = (x W) * l        keys and values
y = (x * l) W        the last projection of the MLP, whose input is the inner activation
"""

import dataclasses

import jax
import jax.numpy as jnp

from t5flan.adapters.config import Adapter
from t5flan.adapters.projection import AdaptedProjection, Terms, one_layer, replace_projections, with_leading_axes
from t5flan.config.checks import require, require_patterns
from t5flan.models.layers import Projection
from t5flan.models.model import Model
from t5flan.models.parameters import Scope


@dataclasses.dataclass(frozen=True)
class Ia3(Adapter):
    """(IA)3 (https://arxiv.org/abs/2205.05638): a trained vector rescales activations; it begins as ones.

    Attributes:
        targets: regular expressions of the kernels whose outputs are rescaled; each matches whole parameter paths.
        input_targets: the same for kernels whose inputs are rescaled.
    """

    targets: tuple[str, ...] = ('.*attention/(key|value)/kernel',)
    input_targets: tuple[str, ...] = ('.*/mlp/wo/kernel',)

    def __post_init__(self) -> None:
        for field in ('targets', 'input_targets'):
            require_patterns(f'Ia3.{field}', getattr(self, field))
            object.__setattr__(self, field, tuple(getattr(self, field)))
        require(bool(self.targets or self.input_targets), 'Ia3.targets', self.targets, 'a regular expression')

    @property
    def mergeable(self) -> bool:
        """True: rows or columns of the kernels are rescaled."""
        return True

    def adapt(self, model: Model, scope: Scope) -> Model:
        """The model with vectors that rescale the outputs of `targets` and the inputs of `input_targets`.

        Raises:
            UserError: a target matches nothing.
        """
        for field, on_inputs in (('targets', False), ('input_targets', True)):

            def make(_: str, projection: Projection, place: Scope, on_inputs: bool = on_inputs) -> Ia3Projection:
                return Ia3Projection(projection, place, on_inputs=on_inputs)

            model = replace_projections(model, getattr(self, field), f'Ia3.{field}', scope, make)
        return model


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

    def terms(self) -> Terms:
        """The vector, on the inputs or on the outputs."""
        return Terms(inputs=self.ia3[...]) if self.on_inputs else Terms(outputs=self.ia3[...])

    def merged_kernel(self) -> jax.Array:
        """The kernel with its rows or columns rescaled, float32."""
        scales, outputs = self.ia3[...], self.kernel.ndim - self.num_inputs
        if self.on_inputs:
            scales = jnp.expand_dims(scales, tuple(range(scales.ndim, scales.ndim + outputs)))
        return self.kernel[...] * with_leading_axes(scales, self.kernel.ndim)

    def merged_bias(self) -> jax.Array:
        """The bias, rescaled with the outputs, float32."""
        bias = super().merged_bias()
        return bias if self.on_inputs else bias * self.ia3[...]
