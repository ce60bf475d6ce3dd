"""The weighted sum of adapters of one base as one adapter, by two conventions.

    cat       exactly the sum of what the adapters add to the base, each times its weight
    linear    the sum of the parameters themselves, as PEFT's add_weighted_adapter

                   cat                                              linear
    LoRA           A = [w1 s1 A1 | w2 s2 A2], B = [B1 ; B2]         A = sum sqrt(wi si) Ai,  B = sum sqrt(wi si) Bi
    (IA)3          l = 1 + sum wi (li - 1)                          l = sum wi li
    bottlenecks    side by side, as one whose sizes add up

w is an adapter's weight, s its scale; the result has the scale 1. AdaLoRA and DyLoRA add up as LoRA, with each other
too: scale * A diag(e) B is a product of two factors. With `cat` the ranks add up; with `linear` the rank stays, and the
products of different adapters mix. Of a negative weight, `linear` takes the root of the absolute value, and the sign
goes to A. What one adapter leaves out has the sum of the others. The biases of `Lora.bias` are added with their weights
and scales, which PEFT leaves out.

DoRA has no sum: it divides by the lengths of its own W + scale * A B. Neither have prompts and prefixes, which change
what attention reads.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from t5flan.adapters.config import Adapter
from t5flan.adapters.methods.ada_lora import AdaLora
from t5flan.adapters.methods.bottleneck import Bottleneck
from t5flan.adapters.methods.dy_lora import DyLora
from t5flan.adapters.methods.ia3 import Ia3
from t5flan.adapters.methods.lora import Lora, rank_and_scale
from t5flan.errors import UserError

CONVENTIONS = ('cat', 'linear')

Arrays = dict[str, np.ndarray]


class Weighted(NamedTuple):
    """An adapter and its weight in a sum.

    Attributes:
        name: for messages, such as its folder.
        weight: its factor, which may be negative.
        settings: of a method in `SUMS`.
        arrays: those of `adapter_arrays`, by name.
    """

    name: str
    weight: float
    settings: Adapter
    arrays: Mapping[str, np.ndarray]

    @property
    def method(self) -> str:
        """The name of its method."""
        return type(self.settings).__name__

    def modules(self) -> Iterator[tuple[str, Arrays]]:
        """The arrays of each module that it adapts, by their last names: 'decoder/layers/mlp/wo', {'lora_a': ...}."""
        found: dict[str, Arrays] = {}
        for name in sorted(self.arrays):
            path, _, part = name.rpartition('/')
            found.setdefault(path, {})[part] = self.arrays[name]
        return iter(found.items())


def combine(adapters: Sequence[Weighted], convention: str = 'cat') -> tuple[Adapter, Arrays]:
    """The settings and the arrays of the weighted sum.

    Raises:
        UserError: the method of an adapter has no sum, the methods differ, or the convention needs more in common.
    """
    if convention not in CONVENTIONS:
        raise UserError(f'convention={convention!r} is not one of {", ".join(CONVENTIONS)}. Set --combine.')
    first, *others = adapters
    for one in adapters:
        if type(one.settings) not in SUMS:
            known = ', '.join(kind.__name__ for kind in SUMS)
            problem = f'{one.name} has the method {one.method}, expected one of {known}'
            raise UserError(f'{problem}: adapters of other methods do not add up. Leave it out.')
    add_up = SUMS[type(first.settings)]
    for one in others:
        if SUMS[type(one.settings)] is not add_up:
            problem = f'{first.name} has the method {first.method}, {one.name} the method {one.method}'
            raise UserError(f'{problem}: they do not add up. Combine adapters of one method.')
    return add_up(adapters, convention)


# -- LoRA, AdaLoRA, DyLoRA ------------------------------------------------------------------------------------------


class _Product(NamedTuple):
    """One adapter's arrays in one projection, and the factor weight * scale of its product."""

    name: str
    factor: float
    a: np.ndarray
    b: np.ndarray
    bias: np.ndarray | None


def _low_rank_sum(adapters: Sequence[Weighted], convention: str) -> tuple[Lora, Arrays]:
    found: dict[str, list[_Product]] = {}
    for one in adapters:
        for path, own in one.modules():
            found.setdefault(path, []).append(_product(one, path, own))
    arrays: Arrays = {}
    has_bias = any(product.bias is not None for products in found.values() for product in products)
    for path, products in found.items():
        axis = _first_axis(path)  # of the rank in B
        a, b = (_concatenated if convention == 'cat' else _summed)(path, products, axis)
        arrays |= {f'{path}/lora_a': a, f'{path}/lora_b': b}
        if has_bias:
            biases = [product.factor * product.bias for product in products if product.bias is not None]
            zero = np.zeros((*b.shape[:axis], *b.shape[axis + 1 :]), np.float32)
            arrays[f'{path}/lora_bias'] = np.asarray(sum(biases, zero), np.float32)
    return _lora({path: arrays[f'{path}/lora_a'].shape[-1] for path in found}, has_bias), arrays


def _product(adapter: Weighted, path: str, own: Arrays) -> _Product:
    settings, a = adapter.settings, own['lora_a']
    if isinstance(settings, AdaLora):
        scale, e = settings.scale, own['lora_e']
        a = a * e.reshape(*e.shape[:-1], *[1] * (a.ndim - e.ndim), e.shape[-1])
    else:
        assert isinstance(settings, Lora)
        _, scale = rank_and_scale(settings, f'{path}/kernel')
    return _Product(adapter.name, adapter.weight * scale, a, own['lora_b'], own.get('lora_bias'))


def _lora(ranks: Mapping[str, int], bias: bool) -> Lora:
    """The settings with these ranks and the scale 1."""
    usual = max(ranks.values())
    others = {f'{re.escape(path)}/kernel': rank for path, rank in ranks.items() if rank != usual}
    alphas = {path: float(rank) for path, rank in others.items()}
    return Lora(usual, float(usual), targets=_kernels(ranks), rank_pattern=others, alpha_pattern=alphas, bias=bias)


def _concatenated(path: str, products: Sequence[_Product], axis: int) -> tuple[np.ndarray, np.ndarray]:
    a = np.concatenate([np.float32(product.factor) * product.a for product in products], axis=-1)
    b = np.concatenate([product.b for product in products], axis=axis)
    rank, rows, columns = a.shape[-1], math.prod(a.shape[axis:-1]), math.prod(b.shape[axis + 1 :])
    if rank > min(rows, columns):
        problem = f'the ranks add up to {rank} in {path}, a matrix of {rows} x {columns}'
        raise UserError(f'{problem}: no adapter may have a rank above it. Set --combine=linear.')
    return a, b


def _summed(path: str, products: Sequence[_Product], axis: int) -> tuple[np.ndarray, np.ndarray]:
    ranks = {product.a.shape[-1]: product.name for product in products}
    if len(ranks) > 1:
        (one, first), (other, second), *_ = ranks.items()
        problem = f'{first} has rank {one} in {path}, {second} has rank {other}'
        raise UserError(f'{problem}, expected equal ranks for a linear combination. Set --combine=cat.')
    roots = [np.float32(math.sqrt(abs(product.factor))) for product in products]
    signs = [np.float32(math.copysign(1, product.factor)) for product in products]
    a = sum(sign * root * product.a for sign, root, product in zip(signs, roots, products, strict=True))
    b = sum(root * product.b for root, product in zip(roots, products, strict=True))
    return np.asarray(a), np.asarray(b)


# -- (IA)3 ----------------------------------------------------------------------------------------------------------


def _sum_of_scales(adapters: Sequence[Weighted], convention: str) -> tuple[Ia3, Arrays]:
    found: dict[str, list[tuple[Weighted, np.ndarray]]] = {}
    on_inputs: dict[str, bool] = {}
    for one in adapters:
        assert isinstance(one.settings, Ia3)
        for path, own in one.modules():
            of_one = any(re.fullmatch(pattern, f'{path}/kernel') for pattern in one.settings.input_targets)
            if on_inputs.setdefault(path, of_one) is not of_one:
                sides = 'the inputs of {}, {} its outputs' if of_one else 'the outputs of {}, {} its inputs'
                problem = f'{one.name} rescales {sides.format(path, found[path][0][0].name)}'
                raise UserError(f'{problem}: they do not add up. Leave one of them out.')
            found.setdefault(path, []).append((one, own['ia3']))
    arrays: Arrays = {}
    for path, given in found.items():
        if convention == 'linear' and len(given) < len(adapters):
            without = next(one.name for one in adapters if f'{path}/ia3' not in one.arrays)
            problem = f'{given[0][0].name} rescales {path}, {without} does not'
            raise UserError(f'{problem}, expected the same for a linear combination. Set --combine=cat.')
        rest = 0.0 if convention == 'linear' else 1.0
        total = sum(np.float32(one.weight) * (scales - np.float32(rest)) for one, scales in given)
        arrays[f'{path}/ia3'] = np.asarray(np.float32(rest) + total, np.float32)
    outputs, inputs = ([path for path in found if on_inputs[path] is side] for side in (False, True))
    return Ia3(targets=_kernels(outputs), input_targets=_kernels(inputs)), arrays


# -- Bottlenecks ----------------------------------------------------------------------------------------------------


def _joint_bottlenecks(adapters: Sequence[Weighted], convention: str) -> tuple[Bottleneck, Arrays]:
    if convention == 'linear':
        raise UserError('Bottleneck has an activation inside, so its parameters do not add up. Set --combine=cat.')
    first = _bottleneck(adapters[0])
    found: dict[str, list[tuple[Weighted, Arrays]]] = {}
    for one in adapters:
        for field in ('kind', 'activation'):
            values = getattr(first, field), getattr(one.settings, field)
            if values[0] != values[1]:
                problem = f'{adapters[0].name} has Bottleneck.{field}={values[0]!r}, {one.name} {values[1]!r}'
                raise UserError(f'{problem}: they do not add up. Leave one of them out.')
        for path, own in one.modules():
            found.setdefault(path, []).append((one, own))
    size = sum(_bottleneck(one).size for one in adapters)
    arrays: Arrays = {}
    for path, given in found.items():
        factors = [np.float32(one.weight * _bottleneck(one).scale) for one, _ in given]
        missing = size - sum(own['down'].shape[-1] for _, own in given)  # of adapters without this sublayer: zeros
        for part, axis in (('down', -1), ('down_bias', -1), ('up', -2)):
            parts = [own[part] * factor if part == 'up' else own[part] for factor, (_, own) in zip(factors, given)]
            shape = list(parts[0].shape)
            shape[axis] = missing
            arrays[f'{path}/{part}'] = np.concatenate([*parts, np.zeros(shape, np.float32)], axis)
        total = sum(factor * own['up_bias'] for factor, (_, own) in zip(factors, given))
        arrays[f'{path}/up_bias'] = np.asarray(total, np.float32)
    sublayers = tuple(dict.fromkeys(name for one in adapters for name in _bottleneck(one).sublayers))
    return Bottleneck(size, first.kind, sublayers, first.activation), arrays


def _bottleneck(adapter: Weighted) -> Bottleneck:
    assert isinstance(adapter.settings, Bottleneck)
    return adapter.settings


# -------------------------------------------------------------------------------------------------------------------


def _kernels(paths: Sequence[str] | Mapping[str, Any]) -> tuple[str, ...]:
    """Regular expressions that match the kernels of these projections."""
    return tuple(f'{re.escape(path)}/kernel' for path in paths)


def _first_axis(path: str) -> int:
    """The first axis of an array of one layer."""
    return 1 if '/layers/' in path else 0


SUMS: Mapping[type[Adapter], Callable[[Sequence[Weighted], str], tuple[Adapter, Arrays]]] = {
    Lora: _low_rank_sum,
    AdaLora: _low_rank_sum,
    DyLora: _low_rank_sum,
    Ia3: _sum_of_scales,
    Bottleneck: _joint_bottlenecks,
}
"""Method -> the sum of its adapters."""
