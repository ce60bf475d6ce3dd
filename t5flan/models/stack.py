"""Blocks, and the stacks of them that make an encoder and a decoder.

A stack holds ONE block whose parameters have a leading axis of layers; `run_layers` scans over it, or unrolls the same.

B batch, T target length, S source length, M places in the memory, D emb_dim, N heads, R relative buckets, L layers,
K key-value heads, H head_dim.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t5flan.kernels.chunked import SAVED_NAMES
from t5flan.models.attention import Attention, KeysValues, Mask, Past, remember
from t5flan.models.cache import Cache
from t5flan.models.config import ModelConfig
from t5flan.models.layers import MLP, PROJECTION, Norm, Projection, dropout, fold
from t5flan.models.parameters import Scope
from t5flan.models.positions import RelativeTable
from t5flan.sharding import constrain

Key = jax.Array | None  # of dropout; None turns it off

_SAVE_MINIMAL = jax.checkpoint_policies.save_only_these_names(PROJECTION, *SAVED_NAMES)


class EncoderBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, scope: Scope):
        self.config = config
        self.pre_attention_layer_norm = Norm(config, scope / 'pre_attention_layer_norm')
        self.attention = Attention(config, scope / 'attention', bidirectional=True)
        self.pre_mlp_layer_norm = Norm(config, scope / 'pre_mlp_layer_norm')
        self.mlp = MLP(config, scope / 'mlp')

    def __call__(
        self,
        x_BSD: jax.Array,
        *,
        mask: Mask,
        positions_BS: jax.Array,
        bias_table_NR: jax.Array | None,
        dropout_key: Key,
    ) -> jax.Array:
        drop = functools.partial(_residual, self.config, dropout_key)
        y_BSD = self.pre_attention_layer_norm(x_BSD)
        y_BSD = self.attention(
            y_BSD,
            self.attention.keys_values(y_BSD, positions_BS),
            mask,
            positions_BT=positions_BS,
            bias_table_NR=bias_table_NR,
            dropout_key=fold(dropout_key, 'attention'),
        )
        x_BSD = drop('after attention', x_BSD, y_BSD)
        y_BSD = self.mlp(self.pre_mlp_layer_norm(x_BSD), fold(dropout_key, 'mlp'))
        return drop('after mlp', x_BSD, y_BSD)


class DecoderBlock(nnx.Module):
    """Self-attention, attention to the encoder where there is one, MLP: each x + f(norm(x)).

    With `parallel_block` (PaLM) self-attention and MLP read one norm: x + attention(norm(x)) + mlp(norm(x)).
    """

    def __init__(self, config: ModelConfig, scope: Scope):
        self.config = config
        self.pre_self_attention_layer_norm = Norm(config, scope / 'pre_self_attention_layer_norm')
        self.self_attention = Attention(config, scope / 'self_attention', bidirectional=False)
        if config.architecture == 'encoder_decoder':
            self.pre_cross_attention_layer_norm = Norm(config, scope / 'pre_cross_attention_layer_norm')
            self.encoder_decoder_attention = Attention(
                config, scope / 'encoder_decoder_attention', bidirectional=True, across=True
            )
        if not config.parallel_block:
            self.pre_mlp_layer_norm = Norm(config, scope / 'pre_mlp_layer_norm')
        self.mlp = MLP(config, scope / 'mlp')

    def __call__(
        self,
        x_BTD: jax.Array,
        *,
        mask: Mask,
        positions_BT: jax.Array,
        bias_table_NR: jax.Array | None = None,
        cross: KeysValues | None = None,
        cross_mask: Mask | None = None,
        past: Past | None = None,
        dropout_key: Key = None,
    ) -> tuple[jax.Array, KeysValues]:
        """Gives the block's output and the keys and values of its input; with `past`, x is the one token after it."""
        drop = functools.partial(_residual, self.config, dropout_key)
        normed_BTD = self.pre_self_attention_layer_norm(x_BTD)
        present = self.self_attention.keys_values(normed_BTD, positions_BT)
        y_BTD = self.self_attention(
            normed_BTD,
            present if past is None else remember(past, present),
            mask,
            positions_BT=positions_BT,
            bias_table_NR=bias_table_NR,
            q_offset=0 if past is None else past.index,
            dropout_key=fold(dropout_key, 'self_attention'),
        )
        x_BTD = drop('after self_attention', x_BTD, y_BTD)
        if cross is not None:
            y_BTD = self.encoder_decoder_attention(
                self.pre_cross_attention_layer_norm(x_BTD),
                cross,
                cross_mask,
                dropout_key=fold(dropout_key, 'encoder_decoder_attention'),
            )
            x_BTD = drop('after encoder_decoder_attention', x_BTD, y_BTD)
        if not self.config.parallel_block:
            normed_BTD = self.pre_mlp_layer_norm(x_BTD)
        y_BTD = self.mlp(normed_BTD, fold(dropout_key, 'mlp'))
        return drop('after mlp', x_BTD, y_BTD), present


def _residual(config: ModelConfig, key: Key, name: str, x_BTD: jax.Array, y_BTD: jax.Array) -> jax.Array:
    """x + dropout(y)."""
    x_BTD = x_BTD + dropout(y_BTD, config.dropout_rate, fold(key, name))
    return constrain(x_BTD, ('batch', 'length', 'act_embed'))


def run_layers(
    config: ModelConfig,
    body: Callable[..., tuple[Any, Any]],
    carry: Any,
    stacked: Any,
    layers: int,
    *,
    differentiated: bool = True,
) -> tuple[Any, Any]:
    """`carry, out = body(carry, layer_number, slice of stacked)` for each layer; gives the carry and the stacked outs.

    A scan (one block is compiled), or a loop where `config.scan_layers` is False; the numbers are the same. Under
    `config.remat` the backward pass computes a block again from its input ('full'), or from the results of its
    projections and of attention ('minimal').
    """
    if differentiated and config.remat != 'none':
        policy = _SAVE_MINIMAL if config.remat == 'minimal' else None
        # In a scan nothing can be shared between the forward and the backward body, so no barrier is needed.
        body = jax.checkpoint(body, policy=policy, prevent_cse=not config.scan_layers)
    if config.scan_layers:
        return jax.lax.scan(lambda carry, x: body(carry, *x), carry, (jnp.arange(layers), stacked))
    outs = []
    for layer in range(layers):
        carry, out = body(carry, layer, jax.tree.map(lambda leaf: leaf[layer], stacked))
        outs.append(out)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs)


class Encoder(nnx.Module):
    """Embedded tokens [B, S, D] -> what the decoder reads [B, S, D]."""

    def __init__(self, config: ModelConfig, scope: Scope):
        self.config = config
        self.layers = EncoderBlock(config, (scope / 'layers').stacked(config.num_encoder_layers))
        self.relpos_bias = _relative_table(config, scope, config.num_encoder_layers)
        self.encoder_norm = Norm(config, scope / 'encoder_norm')

    def __call__(self, x_BSD: jax.Array, *, mask: Mask, positions_BS: jax.Array, dropout_key: Key = None) -> jax.Array:
        config = self.config
        shared, per_layer = _split_table(config, self.relpos_bias)

        def body(x_BSD: jax.Array, layer: jax.Array, parameters: tuple) -> tuple[jax.Array, None]:
            block, table_NR = parameters
            x_BSD = block(
                x_BSD,
                mask=mask,
                positions_BS=positions_BS,
                bias_table_NR=shared if table_NR is None else table_NR,
                dropout_key=fold(dropout_key, layer),
            )
            return x_BSD, None

        x_BSD = dropout(x_BSD, config.dropout_rate, fold(dropout_key, 'embedded'))
        x_BSD, _ = run_layers(config, body, x_BSD, (self.layers, per_layer), config.num_encoder_layers)
        # As in T5X, this dropout alone is not broadcast along the length.
        return dropout(self.encoder_norm(x_BSD), config.dropout_rate, fold(dropout_key, 'normed'), along_length=False)


class Decoder(nnx.Module):
    """Embedded tokens [B, T, D] -> normed hidden states [B, T, D], for training, for a prompt, and token by token."""

    def __init__(self, config: ModelConfig, scope: Scope):
        self.config = config
        self.layers = DecoderBlock(config, (scope / 'layers').stacked(config.num_decoder_layers))
        self.relpos_bias = _relative_table(config, scope, config.num_decoder_layers)
        self.decoder_norm = Norm(config, scope / 'decoder_norm')
        if not config.tie_embeddings:
            self.logits_dense = Projection(
                dataclasses.replace(config, dtype='float32'),
                scope / 'logits_dense',
                {'embed': config.emb_dim},
                {'vocab': config.vocab_size},
            )

    def __call__(
        self,
        x_BTD: jax.Array,
        *,
        mask: Mask,
        positions_BT: jax.Array,
        encoded_BSD: jax.Array | None = None,
        cross_mask: Mask | None = None,
        dropout_key: Key = None,
        keep: bool = False,
    ) -> tuple[jax.Array, KeysValues | None]:
        """Gives hidden states, and if `keep` the keys and values of every layer, two of [L, B, T, K, H]."""
        config = self.config
        shared, per_layer = _split_table(config, self.relpos_bias)

        def body(x_BTD: jax.Array, layer: jax.Array, parameters: tuple) -> tuple[jax.Array, KeysValues | None]:
            block, table_NR = parameters
            cross = None if encoded_BSD is None else block.encoder_decoder_attention.keys_values(encoded_BSD)
            x_BTD, present = block(
                x_BTD,
                mask=mask,
                positions_BT=positions_BT,
                cross=cross,
                cross_mask=cross_mask,
                bias_table_NR=shared if table_NR is None else table_NR,
                dropout_key=fold(dropout_key, layer),
            )
            return x_BTD, present if keep else None

        x_BTD = dropout(x_BTD, config.dropout_rate, fold(dropout_key, 'embedded'))
        x_BTD, present = run_layers(config, body, x_BTD, (self.layers, per_layer), config.num_decoder_layers)
        return dropout(self.decoder_norm(x_BTD), config.dropout_rate, fold(dropout_key, 'normed')), present

    def step(self, x_B1D: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """One token after those in the cache -> its hidden state [B, 1, D], and the cache with it."""
        config = self.config
        shared, per_layer = _split_table(config, self.relpos_bias)
        mask = Mask(causal=True, kv_segment_ids_BS=cache.segment_ids_BM())
        positions_B1 = cache.positions_B1()

        def body(carry: tuple, layer: jax.Array, parameters: tuple) -> tuple[tuple, None]:
            x_B1D, cache = carry
            block, table_NR = parameters
            x_B1D, present = block(
                x_B1D,
                mask=mask,
                positions_BT=positions_B1,
                past=cache.past(layer),
                cross=cache.cross(layer),
                cross_mask=cache.cross_mask(),
                bias_table_NR=shared if table_NR is None else table_NR,
            )
            return (x_B1D, cache.written(layer, present)), None

        (x_B1D, cache), _ = run_layers(
            config, body, (x_B1D, cache), (self.layers, per_layer), config.num_decoder_layers, differentiated=False
        )
        return self.decoder_norm(x_B1D), cache.advanced()


def _relative_table(config: ModelConfig, scope: Scope, layers: int) -> RelativeTable | None:
    return RelativeTable(config, scope / 'relpos_bias', layers) if config.position == 'relative_bias' else None


def _split_table(config: ModelConfig, table: RelativeTable | None) -> tuple[jax.Array | None, jax.Array | None]:
    """(the table all layers share [N, R] or None, a table for each layer [L, N, R] or None)."""
    if table is None:
        return None, None
    rel_embedding = table.rel_embedding[...]
    return (None, rel_embedding) if config.relative_bias_per_layer else (rel_embedding, None)
