"""The decoding step unrolled over layers: every layer's parameters and cache are separate arrays.

`Model.decode_step` scans over stacked layers: at every token it slices each layer's parameters and cache out of the
stack, which on a CPU copies them (T5 1.1 small, 8 rows: 200 MB read and written per token). Here they are sliced, and
cast to the compute dtype, once before the loop over tokens; the numbers are the same. Compile time grows with the
number of layers, and the decoder's parameters are in memory twice.

Shapes: L layers, B rows, M cache slots, S source length, K key-value heads, H head_dim.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from t5flan.models.attention import KV, LayerCache, Mask, update_cache
from t5flan.models.cache import Cache
from t5flan.models.model import Model
from t5flan.models.stack import DecoderBlock


class Layer(NamedTuple):
    """A layer's parameters, and the encoder's keys and values in the order it reads them ([B, K, S, H])."""

    block: DecoderBlock
    bias_table_NR: jax.Array | None
    cross_BKSH: KV | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCaches:
    """The part of the cache that changes at every token.

    Attributes:
        index: the slot of the next token, scalar int32.
        layers: each layer's keys and values, [B, M, K, H].
    """

    index: jax.Array
    layers: tuple[KV, ...]


def unroll(
    model: Model, cache: Cache
) -> tuple[Callable[[LayerCaches, jax.Array], tuple[jax.Array, LayerCaches]], LayerCaches]:
    """Returns the unrolled counterparts of `model.decode_step` and `cache`.

    `step(caches, tokens_B1)` returns float32 logits [B, V] of the next token, and the updated caches.
    """
    layers = _layers(model, cache)

    def step(caches: LayerCaches, tokens_B1: jax.Array) -> tuple[jax.Array, LayerCaches]:
        now = dataclasses.replace(cache, index=caches.index)  # for padding and masks, which do not change
        mask = Mask(causal=True, kv_segment_ids_BS=now.segment_ids_BM())
        x_B1D, updated = model.token_embedder(tokens_B1), []
        for layer, kv in zip(layers, caches.layers, strict=True):
            layer_cache = LayerCache(*kv, caches.index)
            x_B1D, new_kv = layer.block(
                x_B1D,
                mask=mask,
                positions_BT=now.positions_B1(),
                cache=layer_cache,
                cross_kv=_swap_heads(layer.cross_BKSH),
                cross_mask=now.cross_mask(),
                bias_table_NR=layer.bias_table_NR,
            )
            updated.append(update_cache(layer_cache, new_kv))  # the same write as inside the block: XLA does it once
        x_B1D = model.decoder.decoder_norm(x_B1D)
        return model.logits(x_B1D)[:, 0], LayerCaches(caches.index + 1, tuple(updated))

    return step, LayerCaches(cache.index, tuple((cache.k_LBMKH[i], cache.v_LBMKH[i]) for i in range(len(layers))))


def _layers(model: Model, cache: Cache) -> tuple[Layer, ...]:
    """The decoder's stack as separate layers."""
    config, decoder = model.config, model.decoder
    table = None if decoder.relpos_bias is None else decoder.relpos_bias.rel_embedding[...]

    def layer(i: int) -> Layer:
        block = jax.tree_util.tree_map_with_path(
            lambda path, x: x[i].astype(config.dtype) if _is_kernel(path) else x[i], decoder.layers
        )
        bias_table_NR = table if table is None or not config.relative_bias_per_layer else table[i]
        # Heads first in memory too, as products over S or H read them: without the barrier XLA would move the transpose
        # into the loop and copy the array at every token.
        return Layer(block, bias_table_NR, jax.lax.optimization_barrier(_swap_heads(cache.cross_kv(i))))

    return tuple(layer(i) for i in range(config.num_decoder_layers))


def _swap_heads(keys_values: KV | None) -> KV | None:
    """[B, S, K, H] <-> [B, K, S, H]."""
    return None if keys_values is None else (keys_values[0].swapaxes(1, 2), keys_values[1].swapaxes(1, 2))


def _is_kernel(path: tuple[Any, ...]) -> bool:
    return any(getattr(key, 'name', getattr(key, 'key', None)) == 'kernel' for key in path)
