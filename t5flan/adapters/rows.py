"""Several adapters over one base, chosen for each row of a batch.

model = stack(base, {'de': (settings, arrays), 'fr': (settings, arrays)})
model = choose(model, np.array([1, 2, 0]))    # row 0 with 'de', row 1 with 'fr', row 2 without an adapter

The adapters of a projection are computed as one: their A stand side by side, and so do their B. A row keeps the part of
x A that is its own adapter's; the rest is multiplied by zero. So a row's result is that of its adapter alone, and one
without an adapter has the numbers of the base. Ranks may differ, and an adapter may leave out projections. Methods that
add something else combine their adapters themselves, in `Adapter.by_row`.

B rows, G adapters, R sum of ranks, L layers. Number 0 is no adapter, number i the i-th.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from t5flan.adapters.adapter import adapter_arrays, apply, with_arrays
from t5flan.adapters.choice import Chooser, choose
from t5flan.adapters.config import Adapter
from t5flan.adapters.projection import AdaptedProjection, Terms, is_stacked, projections
from t5flan.errors import UserError
from t5flan.models.layers import Projection
from t5flan.models.model import Model

__all__ = ['choose', 'stack']


class RowProjection(Chooser, AdaptedProjection):
    """A projection with the terms of several adapters, of which each row of its input takes those of one."""

    def __init__(self, base: Projection, adapters: list[Terms | None]):
        """`adapters`: the terms of each adapter, in a stack with a leading axis of layers; None has none here."""
        AdaptedProjection.__init__(self, base)
        first = 1 if is_stacked(base) else 0
        names: tuple[str, ...] = base.kernel.get_metadata('axes')
        layer, last = names[:first], first + base.num_inputs
        lead = tuple(base.kernel.shape[:first])
        shape_in, shape_out = tuple(base.kernel.shape[first:last]), tuple(base.kernel.shape[last:])
        found = [(number, terms) for number, terms in enumerate(adapters, 1) if terms is not None]

        def table(values: dict[int, Any], shape: tuple[int, ...], default: float, axes: tuple[str, ...]) -> nnx.Param:
            """[L, 1 + G, *shape]: the value of each adapter, and the default without one."""
            rows = [jnp.broadcast_to(values.get(i, default), (*lead, *shape)) for i in range(1 + len(adapters))]
            return nnx.Param(jnp.stack(rows, first), axes=(*layer, 'adapters', *axes))

        low_rank = [(number, terms) for number, terms in found if terms.a is not None]
        if low_rank:
            a, b = ([getattr(terms, part) for _, terms in low_rank] for part in 'ab')
            self.rows_a = nnx.Param(jnp.concatenate(a, last), axes=(*names[:last], 'rank'))
            self.rows_b = nnx.Param(jnp.concatenate(b, first), axes=(*layer, 'rank', *names[last:]))
            owner = np.concatenate([np.full(terms.a.shape[-1], number) for number, terms in low_rank])
            own = {number: jnp.asarray(owner == number, jnp.float32) for number, _ in low_rank}
            self.rows_own = table(own, owner.shape, 0.0, ('rank',))
        for part, shape, default, axes in (
            ('inputs', shape_in, 1.0, names[first:last]),
            ('outputs', shape_out, 1.0, names[last:]),
            ('bias', shape_out, 0.0, names[last:]),
        ):
            values = {number: getattr(terms, part) for number, terms in found if getattr(terms, part) is not None}
            if values:
                setattr(self, f'rows_{part}', table(values, shape, default, axes))
        self.hold_choice(lead)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, ..., *inputs] -> [B, ..., *outputs] in the compute dtype."""
        chosen_B = self.chosen(x.shape[0])

        def of_rows(name: str, ndim: int) -> jax.Array:
            values = getattr(self, name)[...][chosen_B].astype(self.dtype)
            return values.reshape(len(chosen_B), *[1] * (ndim - values.ndim), *values.shape[1:])

        x = x.astype(self.dtype)
        if hasattr(self, 'rows_inputs'):
            x = x * of_rows('rows_inputs', x.ndim)
        y = super().__call__(x)
        if hasattr(self, 'rows_a'):
            a, b = (getattr(self, name)[...].astype(self.dtype) for name in ('rows_a', 'rows_b'))
            h = jnp.tensordot(x, a, self.num_inputs)
            y = y + jnp.tensordot(h * of_rows('rows_own', h.ndim), b, 1)
        if hasattr(self, 'rows_bias'):
            y = y + of_rows('rows_bias', y.ndim)
        return y * of_rows('rows_outputs', y.ndim) if hasattr(self, 'rows_outputs') else y


def stack(base: Model, adapters: Mapping[str, tuple[Adapter, Mapping[str, Any]]]) -> Model:
    """The base with several adapters, each given as its settings and its arrays; at first every row has none.

    Raises:
        UserError: an adapter does not fit the base, or its method cannot be chosen for each row.
    """
    found: list[dict[str, Terms]] = []  # of each adapter, empty for other methods
    others: dict[Callable[..., Model], dict[int, Model]] = {}
    for number, (name, (settings, arrays)) in enumerate(adapters.items(), 1):
        adapted = with_arrays(apply(base, settings, jax.random.key(0)), arrays)
        found.append(_all_terms(adapted) or {})
        if settings.by_row is not Adapter.by_row:
            others.setdefault(settings.by_row, {})[number] = adapted
        elif not found[-1]:
            problem = f'the adapter {name!r} has the method {type(settings).__name__}, which cannot be chosen by row'
            raise UserError(f'{problem}. Load its folder alone.')
    model = jax.tree.map(lambda x: x, base)  # new modules, the same arrays
    for path, parent, last in list(projections(model)):
        here = [terms.get(path) for terms in found]
        if any(one is not None for one in here):
            setattr(parent, last, RowProjection(getattr(parent, last), here))
    for by_row, adapted_models in others.items():
        model = by_row(model, adapted_models)
    return model


def _all_terms(adapted: Model) -> dict[str, Terms] | None:
    """The terms of each projection with an adapter; None if there is more to the adapter than such terms."""
    own = {path: getattr(parent, last) for path, parent, last in projections(adapted)}
    own = {path: one for path, one in own.items() if isinstance(one, AdaptedProjection)}
    terms = {path: _terms(one) for path, one in own.items()}
    inside = {name.rpartition('/')[0] for name in adapter_arrays(adapted)} <= own.keys()
    return (
        {path: one for path, one in terms.items() if one is not None} if inside and None not in terms.values() else None
    )


def _terms(projection: AdaptedProjection) -> Terms | None:
    """Its terms, in a stack with a leading axis of layers."""
    terms = type(projection).terms
    return (jax.vmap(terms) if is_stacked(projection) else terms)(projection)
