"""What all adapters share: `apply` an adapter to a model, take its parameters out, and put others in.

model = apply(base, Lora(rank=8), jax.random.key(0))    # a model with more parameters
arrays = adapter_arrays(model)                          # those of the adapter alone, by name
model = with_arrays(model, arrays)
plain = merge(model)                                    # an ordinary model again
"""

import hashlib
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5flan.adapters.config import METHODS, Adapter
from t5flan.adapters.projection import merge
from t5flan.errors import UserError
from t5flan.models.build import abstract_model
from t5flan.models.config import ModelConfig
from t5flan.models.model import Model
from t5flan.models.parameters import Scope, named_parameters

__all__ = [
    'adapter_arrays',
    'apply',
    'base_names',
    'fingerprint',
    'fingerprint_of_pieces',
    'from_record',
    'merge',
    'with_arrays',
]

_FACTOR = 2654435761
"""Of the place of a number in its array: a step along an axis multiplies it."""


def apply(model: Model, settings: Adapter, key: jax.Array) -> Model:
    """The model with a new adapter: the given arrays, and the adapter's beside them.

    A new adapter leaves the outputs unchanged, except for a prompt or a prefix. Its parameters depend on the key and
    their paths only.

    Raises:
        UserError: the settings do not fit the model.
    """
    return settings.adapt(model, Scope(key))


def base_names(config: ModelConfig) -> frozenset[str]:
    """The names of the parameters that a model has without an adapter."""
    return frozenset(named_parameters(abstract_model(config)))


def adapter_arrays(model: Model) -> dict[str, Any]:
    """The adapter's parameters by name: 'decoder/layers/mlp/wo/lora_a' -> array."""
    base = base_names(model.config)
    return {name: leaf for name, leaf in named_parameters(model).items() if name not in base}


def with_arrays(model: Model, arrays: Mapping[str, Any]) -> Model:
    """The model with these parameters in the place of its own of the same names.

    Raises:
        UserError: an adapter's array is missing or unknown, or has another shape.
    """
    own = adapter_arrays(model)
    for name in sorted(own.keys() | arrays.keys()):
        given, expected = (tuple(x[name].shape) if name in x else 'absent' for x in (arrays, own))
        if given != expected:
            fix = 'Read it with the settings it was trained with.'
            raise UserError(f'the adapter has {name} {given}, expected {expected}. {fix}')
    leaves = [arrays.get(name, leaf) for name, leaf in named_parameters(model).items()]
    return jax.tree.unflatten(jax.tree.structure(model), leaves)


def from_record(record: Mapping[str, Any]) -> Adapter:
    """The settings that a checkpoint's t5flan.json has: {'method': 'Lora', 'settings': {...}, ...}.

    Raises:
        UserError: the method is unknown.
    """
    method = str(record['method'])
    if method not in METHODS:
        expected = f'expected one of {", ".join(METHODS)}. Update t5flan.'
        raise UserError(f'the adapter has the method {method!r}, {expected}')
    fields = {name: tuple(x) if isinstance(x, list) else x for name, x in record['settings'].items()}
    return METHODS[method](**fields)


def fingerprint(model: Any) -> str:
    """A hash of every bit of a model's parameters, 16 hexadecimal digits; the same on any mesh."""
    sums = jax.device_get(jax.jit(_checksums)(dict(named_parameters(model))))
    return _digest({name: int(x) for name, x in sums.items()})


def fingerprint_of_pieces(pieces: Iterable[tuple[str, int | None, Any]]) -> str:
    """The `fingerprint` of a model of which only a piece is in memory at a time.

    Args:
        pieces: the name of a parameter, a layer, and that layer's array; layer None for a parameter without layers.
    """
    sums: dict[str, int] = {}
    for name, layer, piece in pieces:
        seed = zlib.crc32(name.encode())
        if layer is not None:
            seed = (seed * _FACTOR + layer) % 2**32
        sums[name] = (sums.get(name, 0) + int(_checksum_of_piece(piece, np.uint32(seed)))) % 2**32
    return _digest(sums)


def _digest(sums: Mapping[str, int]) -> str:
    text = ' '.join(f'{name}:{sums[name]}' for name in sorted(sums))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _checksums(arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: _checksum(x, zlib.crc32(name.encode())) for name, x in arrays.items()}


@jax.jit
def _checksum_of_piece(x: jax.Array, seed: jax.Array) -> jax.Array:
    return _checksum(x, seed)


def _checksum(x: jax.Array, seed: int | jax.Array) -> jax.Array:
    """A sum modulo 2^32 of mixed bits and places, so that the order of addition does not matter: uint32 []."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    place = jnp.full(x.shape, seed, jnp.uint32)
    for axis in range(x.ndim):
        place = place * jnp.uint32(_FACTOR) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    mixed = (bits ^ (place * jnp.uint32(2246822519))) * jnp.uint32(3266489917)
    return jnp.sum(mixed ^ (mixed >> 15), dtype=jnp.uint32)
