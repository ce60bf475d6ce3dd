"""The weighted sum of LoRA adapters of one base as one LoRA adapter, by two conventions of PEFT's add_weighted_adapter.

    cat      A = [w1 s1 A1 | w2 s2 A2], B = [B1 ; B2]: exactly the sum of the products; the ranks add up
    linear   A = sum sqrt(wi si) Ai,    B = sum sqrt(wi si) Bi: the rank stays; the products of different adapters mix

s is an adapter's scale, w its weight; the result has the scale 1. Of a negative weight, `linear` takes the root of the
absolute value, and the sign goes to A. A projection that one adapter lacks has the sum of the others. The biases of
`Lora.bias` are added with their weights and scales, which PEFT leaves out.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from t5flan.adapters.config import Adapter
from t5flan.adapters.methods.lora import Lora, rank_and_scale
from t5flan.errors import UserError

CONVENTIONS = ('cat', 'linear')


class Weighted(NamedTuple):
    """An adapter and its weight in a sum.

    Attributes:
        name: for messages, such as its folder.
        weight: its factor, which may be negative.
        settings: a `Lora`.
        arrays: those of `adapter_arrays`, by name.
    """

    name: str
    weight: float
    settings: Adapter
    arrays: Mapping[str, np.ndarray]


class _Part(NamedTuple):
    """One adapter's arrays in one projection, and the factor weight * scale of its product."""

    name: str
    factor: float
    a: np.ndarray
    b: np.ndarray
    bias: np.ndarray | None


def combine(adapters: Sequence[Weighted], convention: str = 'cat') -> tuple[Lora, dict[str, np.ndarray]]:
    """The settings and the arrays of the weighted sum.

    Raises:
        UserError: an adapter is not a LoRA adapter, or with `linear` two have different ranks in a projection.
    """
    if convention not in CONVENTIONS:
        raise UserError(f'convention={convention!r} is not one of {", ".join(CONVENTIONS)}. Set --combine.')
    found: dict[str, list[_Part]] = {}
    for one in adapters:
        if type(one.settings) is not Lora:
            problem = f'{one.name} has the method {type(one.settings).__name__}, expected Lora'
            raise UserError(f'{problem}: adapters of other methods do not add up. Leave it out.')
        for path in sorted(name.removesuffix('/lora_a') for name in one.arrays if name.endswith('/lora_a')):
            _, scale = rank_and_scale(one.settings, f'{path}/kernel')
            parts: Any = (one.arrays.get(f'{path}/{part}') for part in ('lora_a', 'lora_b', 'lora_bias'))
            found.setdefault(path, []).append(_Part(one.name, one.weight * scale, *parts))
    arrays: dict[str, np.ndarray] = {}
    has_bias = any(part.bias is not None for parts in found.values() for part in parts)
    for path, parts in found.items():
        axis = 1 if '/layers/' in path else 0  # of the rank in B
        a, b = (_concatenated if convention == 'cat' else _summed)(path, parts, axis)
        arrays |= {f'{path}/lora_a': a, f'{path}/lora_b': b}
        if has_bias:
            biases = [part.factor * part.bias for part in parts if part.bias is not None]
            zero = np.zeros((*b.shape[:axis], *b.shape[axis + 1 :]), np.float32)
            arrays[f'{path}/lora_bias'] = np.asarray(sum(biases, zero), np.float32)
    ranks = {path: arrays[f'{path}/lora_a'].shape[-1] for path in found}
    return _settings(ranks, has_bias), arrays


def _settings(ranks: Mapping[str, int], bias: bool) -> Lora:
    """The settings with these ranks and the scale 1."""
    usual = max(ranks.values())
    others = {f'{re.escape(path)}/kernel': rank for path, rank in ranks.items() if rank != usual}
    targets = tuple(f'{re.escape(path)}/kernel' for path in ranks)
    alphas = {path: float(rank) for path, rank in others.items()}
    return Lora(usual, float(usual), targets=targets, rank_pattern=others, alpha_pattern=alphas, bias=bias)


def _concatenated(path: str, parts: Sequence[_Part], axis: int) -> tuple[np.ndarray, np.ndarray]:
    a = np.concatenate([np.float32(part.factor) * part.a for part in parts], axis=-1)
    return a, np.concatenate([part.b for part in parts], axis=axis)


def _summed(path: str, parts: Sequence[_Part], axis: int) -> tuple[np.ndarray, np.ndarray]:
    ranks = {part.a.shape[-1]: part.name for part in parts}
    if len(ranks) > 1:
        (one, first), (other, second), *_ = ranks.items()
        problem = f'{first} has rank {one} in {path}, {second} has rank {other}'
        raise UserError(f'{problem}, expected equal ranks for a linear combination. Set --combine=cat.')
    roots = [np.float32(math.sqrt(abs(part.factor))) for part in parts]
    signs = [np.float32(math.copysign(1, part.factor)) for part in parts]
    a = sum(sign * root * part.a for sign, root, part in zip(signs, roots, parts, strict=True))
    b = sum(root * part.b for root, part in zip(roots, parts, strict=True))
    return np.asarray(a), np.asarray(b)
