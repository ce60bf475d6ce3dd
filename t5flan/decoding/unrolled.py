"""One decoding step as straight code: every layer's parameters and memory are arrays of their own.

`Model.decode_step` scans a stack: at every token it cuts each layer's parameters and memory out of it, which on a CPU
copies them (T5 1.1 small, 8 rows: 200 MB read and written at every token). Here they are cut out once, before the loop
over tokens, and cast to the compute dtype then; the numbers are the same. It costs compile time in proportion to the
layers, and a second copy of the decoder's parameters while it runs.

Shapes: L layers, B rows, M places, S source length, K key-value heads, H head_dim.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from t5flan.models.attention import KeysValues, Mask, Past, remember
from t5flan.models.cache import Cache
from t5flan.models.model import Model
from t5flan.models.stack import DecoderBlock


class Layer(NamedTuple):
    """A layer's parameters, and the keys and values of the encoder's output as it reads them ([B, K, S, H])."""

    block: DecoderBlock
    bias_table_NR: jax.Array | None
    cross_BKSH: KeysValues | None


class Memory(NamedTuple):
    """What changes from token to token: the place of the next, and each layer's keys and values [B, M, K, H]."""

    index: jax.Array
    layers: tuple[KeysValues, ...]


def unroll(model: Model, cache: Cache) -> tuple[Callable[[Memory, jax.Array], tuple[jax.Array, Memory]], Memory]:
    """The decoding step, as `Model.decode_step` without the cuts, and the memory that goes in and comes out of it.

    `step(memory, tokens_B1)` gives float32 logits [B, V] of the token after `tokens_B1`, and the memory with it.
    """
    layers = _layers(model, cache)
    memory = tuple((cache.k_LBMKH[i], cache.v_LBMKH[i]) for i in range(len(layers)))

    def step(memory: Memory, tokens_B1: jax.Array) -> tuple[jax.Array, Memory]:
        now = dataclasses.replace(cache, index=memory.index)  # of the cache, what does not change: paddings and masks
        mask = Mask(causal=True, kv_segment_ids_BS=now.segment_ids_BM())
        x_B1D, written = model.token_embedder(tokens_B1), []
        for layer, keys_values in zip(layers, memory.layers, strict=True):
            past = Past(*keys_values, memory.index)
            cross = None if layer.cross_BKSH is None else tuple(x_BKSH.swapaxes(1, 2) for x_BKSH in layer.cross_BKSH)
            x_B1D, present = layer.block(
                x_B1D,
                mask=mask,
                positions_BT=now.positions_B1(),
                past=past,
                cross=cross,
                cross_mask=now.cross_mask(),
                bias_table_NR=layer.bias_table_NR,
            )
            written.append(remember(past, present))  # the same write as inside the block: XLA does it once
        x_B1D = model.decoder.decoder_norm(x_B1D)
        return model.logits(x_B1D)[:, 0], Memory(memory.index + 1, tuple(written))

    return step, Memory(cache.index, memory)


def _layers(model: Model, cache: Cache) -> tuple[Layer, ...]:
    """The decoder cut into layers."""
    config, decoder = model.config, model.decoder
    table = None if decoder.relpos_bias is None else decoder.relpos_bias.rel_embedding[...]

    def layer(i: int) -> Layer:
        block = jax.tree_util.tree_map_with_path(
            lambda path, x: x[i].astype(config.dtype) if _is_kernel(path) else x[i], decoder.layers
        )
        bias_table_NR = table if table is None or not config.relative_bias_per_layer else table[i]
        cross_BKSH = None
        if cache.cross_k_LBSKH is not None:
            cross_BKSH = _heads_first(cache.cross_k_LBSKH[i]), _heads_first(cache.cross_v_LBSKH[i])
        return Layer(block, bias_table_NR, cross_BKSH)

    return tuple(layer(i) for i in range(config.num_decoder_layers))


def _heads_first(x_BSKH: jax.Array) -> jax.Array:
    """[B, K, S, H], in memory too: the order that products over S or H read. Without the barrier XLA would turn it back
    here and copy it at every token.
    """
    return jax.lax.optimization_barrier(x_BSKH.swapaxes(1, 2))


def _is_kernel(path: tuple[Any, ...]) -> bool:
    return any(getattr(key, 'name', getattr(key, 'key', None)) == 'kernel' for key in path)
