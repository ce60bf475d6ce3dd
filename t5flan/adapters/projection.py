"""Replaces projections of a model by adapted ones, and merges adapted ones back into plain kernels.

    before                                    after, with LoRA
    decoder/layers/mlp/wo/kernel [L, F, D]    decoder/layers/mlp/wo/kernel [L, F, D]
                                              decoder/layers/mlp/wo/lora_a [L, F, R]
                                              decoder/layers/mlp/wo/lora_b [L, R, D]

An adapted model is an ordinary model with more parameters: it is scanned, sharded and differentiated like any other.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx

from t5flan.errors import UserError
from t5flan.models.build import abstract_model
from t5flan.models.layers import Projection
from t5flan.models.model import Model
from t5flan.models.parameters import Scope, named_parameters, replace_parameters


class Terms(NamedTuple):
    """An adapted projection in general: y = outputs * (W (inputs * x) + (x A) B + bias). What is None is left out.

    Arrays of one layer: `a` [*inputs, R], `b` [R, *outputs], `inputs` [*inputs], `outputs` and `bias` [*outputs].
    """

    a: Any = None
    b: Any = None
    inputs: Any = None
    outputs: Any = None
    bias: Any = None


class AdaptedProjection(Projection):
    """Base class of projections with an adapter: the kernel of `base`, and parameters of the method's own.

    Attributes:
        reads_kernel: whether `__call__` needs the kernel besides its product with the input.
        product: computes that product in the place of the kernel; `decoding/unrolled.py` sets it.
    """

    reads_kernel = False
    product: Callable[[jax.Array], jax.Array] | None = None

    def __init__(self, base: Projection):
        self.dtype = base.dtype
        self.num_inputs = base.num_inputs
        self.kept_as = base.kept_as
        self.kernel = base.kernel
        if base.bias is not None:
            self.bias = base.bias

    def __call__(self, x: jax.Array) -> jax.Array:
        """The base alone: its product with the kernel, and its bias."""
        return super().__call__(x) if self.product is None else self.product(x)

    def terms(self) -> Terms | None:
        """The adapter of one layer, to be chosen for each row of a batch; None if the method has no such form."""
        return None

    def merged_kernel(self) -> jax.Array:
        """The kernel of one layer, [*inputs, *outputs], with the adapter merged into it."""
        raise NotImplementedError

    def merged_bias(self) -> jax.Array:
        """The bias of one layer, [*outputs], with the adapter merged into it; called if there is one."""
        assert self.bias is not None
        return self.bias[...]


Make = Callable[[str, Projection, Scope], AdaptedProjection]


def replace_projections(model: Model, targets: Sequence[str], setting: str, scope: Scope, make: Make) -> Model:
    """A copy of `model`, the same arrays, in which `make(path, projection, scope)` replaces each targeted projection.

    Args:
        targets: regular expressions; each matches whole paths of kernels.
        setting: where the targets come from, for messages: 'Lora.targets'.
        scope: the position of the model; `make` gets that of the projection, where it creates parameters.

    Raises:
        UserError: a target matches no kernel of a projection.
    """
    model = jax.tree.map(lambda x: x, model)  # new modules, the same arrays
    found = {f'{path}/kernel': (parent, name) for path, parent, name in projections(model)}
    for path in matching(targets, found, setting):
        parent, name = found[path]
        projection, place = getattr(parent, name), scope
        if isinstance(projection, AdaptedProjection):
            raise UserError(f'{setting} names {path}, which has an adapter already. Set {setting} in your .gin.')
        for part in path.split('/')[:-1]:
            place /= part
        if is_stacked(projection):
            place = place.stacked(projection.kernel.shape[0])
        setattr(parent, name, make(path, projection, place))
    return model


def projections(module: nnx.Module, path: str = '') -> Iterator[tuple[str, nnx.Module, str]]:
    """Every projection of a module, as (its path, the module that holds it, its name there)."""
    for name, value in sorted(vars(module).items()):
        here = f'{path}/{name}' if path else name
        if isinstance(value, Projection):
            yield here, module, name
        elif isinstance(value, nnx.Module):
            yield from projections(value, here)


def matching(
    patterns: Sequence[str], paths: Sequence[str] | Any, setting: str, which: str = 'can be adapted'
) -> list[str]:
    """The paths that some pattern matches as a whole, in their own order.

    Args:
        which: what distinguishes the kernels of `paths`, for messages.

    Raises:
        UserError: a pattern matches no path; the message names the nearest ones.
    """
    for pattern in patterns:
        if not any(re.fullmatch(pattern, path) for path in paths):
            near = difflib.get_close_matches(pattern, sorted(paths), n=3, cutoff=0.0)
            problem = f'{setting} contains {pattern!r}, which matches no kernel that {which}'
            raise UserError(f'{problem}; the nearest are {", ".join(near)}. Set {setting} in your .gin.')
    return [path for path in paths if any(re.fullmatch(pattern, path) for pattern in patterns)]


def is_stacked(projection: Projection) -> bool:
    """Whether its parameters have a leading axis of layers."""
    return projection.kernel.get_metadata('axes')[0] == 'layers'


def one_layer(projection: Projection) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Shape and logical axes of one layer's kernel."""
    first = 1 if is_stacked(projection) else 0
    return tuple(projection.kernel.shape[first:]), tuple(projection.kernel.get_metadata('axes')[first:])


def with_leading_axes(x: jax.Array, ndim: int) -> jax.Array:
    """`x` with axes of size 1 before its own, `ndim` in all, so that it can be combined with such an array."""
    return x.reshape((1,) * (ndim - x.ndim) + x.shape)


def merge(model: Model) -> Model:
    """The plain model that computes the same: adapters are merged into the kernels. Sums are float32.

    Raises:
        UserError: the adapter has parts that no kernel can hold.
    """
    plain = abstract_model(model.config)
    arrays = dict(named_parameters(model))
    for path, parent, name in projections(model):
        projection = getattr(parent, name)
        if isinstance(projection, AdaptedProjection):
            of_layers = jax.vmap if is_stacked(projection) else lambda merged: merged
            arrays[f'{path}/kernel'] = of_layers(type(projection).merged_kernel)(projection)
            if projection.bias is not None:
                arrays[f'{path}/bias'] = of_layers(type(projection).merged_bias)(projection)
    return replace_parameters(plain, {name: arrays[name] for name in named_parameters(plain)})
