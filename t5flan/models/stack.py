"""Transformer blocks, and the encoder and decoder stacks built from them.

A stack holds ONE block whose parameters have a leading axis of layers; `run_layers` scans over it, or unrolls the loop.

B batch, T target length, S source length, D emb_dim, N heads, R relative buckets, L layers, K key-value heads,
H head_dim.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t5flan.kernels.operands import SAVED_NAMES
from t5flan.models.attention import KV, Attention, Before, FirstKV, LayerCache, Mask
from t5flan.models.cache import Cache
from t5flan.models.config import LayerKind, ModelConfig
from t5flan.models.layers import MLP, PROJECTION, PROJECTIONS, Norm, Projection, TokenEmbedder, dropout, fold
from t5flan.models.parameters import Scope
from t5flan.models.positions import RelativeTable
from t5flan.sharding import constrain, platform

Key = jax.Array | None  # the dropout key; None turns dropout off
Table = jax.Array | None  # relative bias per head and bucket

# What `remat='minimal'` saves. On a CPU, whose memory is large beside its speed, the outputs of all projections, as T5X
# does (which saves each layer's whole relative bias too). Elsewhere those of the inner projections of MLPs and the keys
# and values of the encoder's output are left out, which saves half of the memory for a sixth more work.
_SAVE_MINIMAL = jax.checkpoint_policies.save_only_these_names(PROJECTION, *SAVED_NAMES)
_SAVE_MINIMAL_ON_CPU = jax.checkpoint_policies.save_only_these_names(*PROJECTIONS, *SAVED_NAMES)

_LAYERS_OF_A_LOOP = 2
"""Stacks of at most so many are not scanned by default: on a CPU, a step of the model of `quickstart` takes a fifth
less time so, and compiles a tenth faster."""


class EncoderBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); with `post_norms` x + norm(f(norm(x)))."""

    def __init__(self, config: ModelConfig, scope: Scope):
        self.config = config
        self.pre_attention_layer_norm = Norm(config, scope / 'pre_attention_layer_norm')
        self.attention = Attention(config, scope / 'attention', bidirectional=True)
        self.pre_mlp_layer_norm = Norm(config, scope / 'pre_mlp_layer_norm')
        self.mlp = MLP(config, scope / 'mlp')
        if config.post_norms:
            self.post_attention_layer_norm = Norm(config, scope / 'post_attention_layer_norm')
            self.post_mlp_layer_norm = Norm(config, scope / 'post_mlp_layer_norm')

    def __call__(
        self,
        x_BSD: jax.Array,
        *,
        kind: LayerKind,
        mask: Mask,
        positions_BS: jax.Array,
        bias_table_NR: Table,
        dropout_key: Key,
    ) -> jax.Array:
        """[B, S, D] -> [B, S, D]."""
        drop = functools.partial(_residual, self.config, dropout_key)
        y_BSD = self.pre_attention_layer_norm(x_BSD)
        kv, key = self.attention.project_kv(y_BSD, positions_BS, kind), fold(dropout_key, 'attention')
        where: dict[str, Any] = dict(kind=kind, positions_BT=positions_BS, bias_table_NR=bias_table_NR)
        y_BSD = self.attention(y_BSD, kv, mask, **where, dropout_key=key)
        if self.config.post_norms:
            y_BSD = self.post_attention_layer_norm(y_BSD)
        x_BSD = drop('after attention', x_BSD, y_BSD)
        y_BSD = self.mlp(self.pre_mlp_layer_norm(x_BSD), fold(dropout_key, 'mlp'))
        if self.config.post_norms:
            y_BSD = self.post_mlp_layer_norm(y_BSD)
        return drop('after mlp', x_BSD, y_BSD)


class DecoderBlock(nnx.Module):
    """Self-attention, cross-attention if there is an encoder, and MLP: each x + f(norm(x)).

    With `merged_attention` self-attention reads the encoder's output as keys and values before its own (`cache`).

    With `parallel_block` (PaLM) self-attention and MLP read one norm: x + attention(norm(x)) + mlp(norm(x)). With
    `post_norms` (Gemma 2) each is x + norm(f(norm(x))).
    """

    def __init__(self, config: ModelConfig, scope: Scope):
        self.config = config
        self.pre_self_attention_layer_norm = Norm(config, scope / 'pre_self_attention_layer_norm')
        self.self_attention = Attention(config, scope / 'self_attention', bidirectional=False)
        if config.has_cross_attention:
            self.pre_cross_attention_layer_norm = Norm(config, scope / 'pre_cross_attention_layer_norm')
            across = scope / 'encoder_decoder_attention'
            self.encoder_decoder_attention = Attention(config, across, bidirectional=True, across=True)
        if not config.parallel_block:
            self.pre_mlp_layer_norm = Norm(config, scope / 'pre_mlp_layer_norm')
        self.mlp = MLP(config, scope / 'mlp')
        if config.post_norms:
            self.post_self_attention_layer_norm = Norm(config, scope / 'post_self_attention_layer_norm')
            if config.has_cross_attention:
                self.post_cross_attention_layer_norm = Norm(config, scope / 'post_cross_attention_layer_norm')
            self.post_mlp_layer_norm = Norm(config, scope / 'post_mlp_layer_norm')

    def __call__(
        self,
        x_BTD: jax.Array,
        *,
        kind: LayerKind,
        mask: Mask,
        positions_BT: jax.Array,
        bias_table_NR: Table = None,
        cross_kv: KV | None = None,
        cross_mask: Mask | None = None,
        cache: Before | None = None,
        dropout_key: Key = None,
    ) -> tuple[jax.Array, KV]:
        """[B, T, D] -> [B, T, D], and the keys and values of x ([B, T, K, H] each).

        With `cache`, x are the tokens after it. `cross_kv` and `cross_mask` are those of the encoder's output; they may
        have fewer rows than x, if several rows in turn continue one prompt.
        """
        drop, post_norms = functools.partial(_residual, self.config, dropout_key), self.config.post_norms
        normed_BTD = self.pre_self_attention_layer_norm(x_BTD)
        new_kv = self.self_attention.project_kv(normed_BTD, positions_BT, kind)
        kv, q_offset = (new_kv, 0) if cache is None else (cache.updated(new_kv), cache.cache_index)
        where: dict[str, Any] = dict(positions_BT=positions_BT, bias_table_NR=bias_table_NR, q_offset=q_offset)
        where |= dict(kind=kind, dropout_key=fold(dropout_key, 'self_attention'))
        y_BTD = self.self_attention(normed_BTD, kv, mask, **where)
        if post_norms:
            y_BTD = self.post_self_attention_layer_norm(y_BTD)
        x_BTD = drop('after self_attention', x_BTD, y_BTD)
        if cross_kv is not None and cross_mask is not None:
            normed_BTD = self.pre_cross_attention_layer_norm(x_BTD)
            # Rows of one prompt (its beams or samples) are queries of one row, which reads the prompt's keys once.
            normed_BTD = normed_BTD.reshape(cross_kv[0].shape[0], -1, x_BTD.shape[-1])
            key = fold(dropout_key, 'encoder_decoder_attention')
            y_BTD = self.encoder_decoder_attention(normed_BTD, cross_kv, cross_mask, dropout_key=key)
            if post_norms:
                y_BTD = self.post_cross_attention_layer_norm(y_BTD)
            x_BTD = drop('after encoder_decoder_attention', x_BTD, y_BTD.reshape(x_BTD.shape))
        if not self.config.parallel_block:
            normed_BTD = self.pre_mlp_layer_norm(x_BTD)
        y_BTD = self.mlp(normed_BTD, fold(dropout_key, 'mlp'))
        if post_norms:
            y_BTD = self.post_mlp_layer_norm(y_BTD)
        return drop('after mlp', x_BTD, y_BTD), new_kv


def _residual(config: ModelConfig, key: Key, name: str, x_BTD: jax.Array, y_BTD: jax.Array) -> jax.Array:
    """Returns x + dropout(y)."""
    x_BTD = x_BTD + dropout(y_BTD, config.dropout_rate, fold(key, name))
    return constrain(x_BTD, ('batch', 'length', 'act_embed'))


def run_layers(
    config: ModelConfig,
    body: Callable | Sequence[Callable],
    carry: Any,
    stacked: Any,
    layers: int,
    *,
    differentiated: bool = True,
) -> tuple[Any, Any]:
    """Runs `carry, out = body(carry, layer_number, slice of stacked)` for each layer.

    This is a scan (one block is compiled) or a loop, as `config.scan_layers` says; the numbers are the same. Where
    layers differ (`config.layer_kinds`), a step of the scan is one layer of each kind in turn, so that each is compiled
    for its own kind; layers left over at the end follow the scan. With `config.remat` the backward pass recomputes a
    block from its input ('full'), or from outputs of its projections and of attention ('minimal').

    Args:
        body: one for all layers, or a list with one for each of `config.layer_kinds`.
        stacked: a pytree whose leaves have a leading axis of layers.
        layers: their number.
        differentiated: False turns remat off.

    Returns:
        The last carry, and the stacked outputs.
    """
    of_kinds = [body] if callable(body) else list(body)

    def bodies(scanned: bool) -> list[Callable]:
        if not differentiated or config.remat == 'none':
            return of_kinds
        minimal = _SAVE_MINIMAL_ON_CPU if platform() == 'cpu' else _SAVE_MINIMAL
        policy = minimal if config.remat == 'minimal' else None
        # A scan's forward and backward bodies share nothing, so no barrier against common subexpressions is needed.
        return [jax.checkpoint(one, policy=policy, prevent_cse=not scanned) for one in of_kinds]

    scans = layers > _LAYERS_OF_A_LOOP if config.scan_layers is None else config.scan_layers
    if scans and len(of_kinds) == 1:
        (one,) = bodies(scanned=True)
        return jax.lax.scan(lambda carry, x: one(carry, *x), carry, (jnp.arange(layers), stacked))
    scanned = layers // len(of_kinds) if scans else 0
    outs = None
    if scanned > 0:
        first = jax.tree.map(lambda x: x[: scanned * len(of_kinds)], (jnp.arange(layers), stacked))
        carry, outs = _scan_groups(bodies(scanned=True), carry, first, scanned)
    left, rest = range(scanned * len(of_kinds), layers), []
    in_loop = bodies(scanned=False) if left else []
    for layer in left:
        carry, out = in_loop[layer % len(of_kinds)](carry, layer, jax.tree.map(operator.itemgetter(layer), stacked))
        rest.append(out)
    if not rest:
        return carry, outs
    outs_rest = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rest)
    return carry, outs_rest if scanned == 0 else jax.tree.map(lambda *x: jnp.concatenate(x), outs, outs_rest)


def _scan_groups(bodies: list[Callable], carry: Any, stacked: Any, groups: int) -> tuple[Any, Any]:
    """A scan over `groups` of len(bodies) layers; `stacked` includes their numbers."""

    def group(carry: Any, layers: Any) -> tuple[Any, Any]:
        outs = []
        for i, body in enumerate(bodies):
            carry, out = body(carry, *jax.tree.map(operator.itemgetter(i), layers))
            outs.append(out)
        return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs)

    grouped = jax.tree.map(lambda x: x.reshape(groups, -1, *x.shape[1:]), stacked)
    carry, outs = jax.lax.scan(group, carry, grouped)
    return carry, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outs)


class _Stack(nnx.Module):
    """What both stacks share: the layers, and the bias table of all of them or of each."""

    config: ModelConfig
    layers: Any  # one block, whose parameters have a leading axis of layers
    relpos_bias: RelativeTable | None

    def stacked_layers(self) -> Any:
        """The layers that run: one block, whose arrays have a leading axis of layers."""
        return self.layers

    def _run_layers(self, body: Callable, carry: Any, layers: int, *, differentiated: bool = True) -> tuple[Any, Any]:
        """`run_layers` with `body(kind, carry, layer_number, block, bias_table_NR)`."""
        table = None if self.relpos_bias is None else self.relpos_bias.rel_embedding[...]
        shared, per_layer = (None, table) if self.config.relative_bias_per_layer else (table, None)

        def run_block(kind: LayerKind, carry: Any, layer: jax.Array, parameters: tuple) -> tuple[Any, Any]:
            block, table_NR = parameters
            return body(kind, carry, layer, block, shared if table_NR is None else table_NR)

        stacked = self.stacked_layers(), per_layer
        bodies = [functools.partial(run_block, kind) for kind in self.config.layer_kinds]
        return run_layers(self.config, bodies, carry, stacked, layers, differentiated=differentiated)


class Encoder(_Stack):
    """The encoder stack: embedded tokens [B, S, D] -> normed hidden states [B, S, D].

    Attributes:
        token_embedder: its own token embedding; None if it shares the decoder's.
    """

    token_embedder: TokenEmbedder | None = None

    def __init__(self, config: ModelConfig, scope: Scope):
        if not config.share_embeddings:
            self.token_embedder = TokenEmbedder(config.encoder_config, scope / 'token_embedder')
        self.config = config = config.encoder_config
        self.layers = EncoderBlock(config, (scope / 'layers').stacked(config.num_encoder_layers))
        self.relpos_bias = _relative_table(config, scope, config.num_encoder_layers)
        self.encoder_norm = Norm(config, scope / 'encoder_norm')

    def __call__(self, x_BSD: jax.Array, *, mask: Mask, positions_BS: jax.Array, dropout_key: Key = None) -> jax.Array:
        """[B, S, D] -> [B, S, D]. Dropout is on exactly if there is a key."""
        config = self.config

        def body(kind: LayerKind, x_BSD: jax.Array, layer: Any, block: EncoderBlock, table_NR: Table) -> Any:
            key = fold(dropout_key, layer)
            where: dict[str, Any] = dict(kind=kind, mask=mask, positions_BS=positions_BS)
            return block(x_BSD, **where, bias_table_NR=table_NR, dropout_key=key), None

        x_BSD = dropout(x_BSD, config.dropout_rate, fold(dropout_key, 'embedded'))
        x_BSD, _ = self._run_layers(body, x_BSD, config.num_encoder_layers)
        # As in T5X, only this dropout is not broadcast along the length.
        return dropout(self.encoder_norm(x_BSD), config.dropout_rate, fold(dropout_key, 'normed'), along_length=False)


class Decoder(_Stack):
    """The decoder stack: embedded tokens [B, T, D] -> normed hidden states [B, T, D], at once or token by token."""

    def __init__(self, config: ModelConfig, scope: Scope):
        self.config = config
        self.layers = DecoderBlock(config, (scope / 'layers').stacked(config.num_decoder_layers))
        self.relpos_bias = _relative_table(config, scope, config.num_decoder_layers)
        self.decoder_norm = Norm(config, scope / 'decoder_norm')
        if not config.tie_embeddings:
            sizes = {'embed': config.emb_dim}, {'vocab': config.vocab_size}
            self.logits_dense = Projection(dataclasses.replace(config, dtype='float32'), scope / 'logits_dense', *sizes)

    def __call__(
        self,
        x_BTD: jax.Array,
        *,
        mask: Mask,
        positions_BT: jax.Array,
        encoded_BSD: jax.Array | None = None,
        cross_mask: Mask | None = None,
        dropout_key: Key = None,
        return_kv: bool = False,
        pad_B: jax.Array | None = None,
    ) -> tuple[jax.Array, KV | None]:
        """[B, T, D] -> [B, T, D], and if `return_kv` the keys and values of every layer, two of [L, B, T, K, H].

        `encoded_BSD` and `cross_mask` are those of the encoder's output; with `merged_attention` `mask` covers it too.
        `pad_B` tells how many tokens at the left of a row are padding. Dropout is on exactly if there is a key.
        """
        config = self.config

        def body(kind: LayerKind, x_BTD: jax.Array, layer: Any, block: DecoderBlock, table_NR: Table) -> Any:
            cross_kv, cache = None, self.first_cache(layer, x_BTD.shape[0], pad_B)
            if encoded_BSD is not None and config.merged_attention:
                cache = FirstKV(*block.self_attention.project_kv(encoded_BSD, rotated=False))
            elif encoded_BSD is not None:
                cross_kv = block.encoder_decoder_attention.project_kv(encoded_BSD)
            x_BTD, new_kv = block(
                x_BTD,
                kind=kind,
                mask=mask,
                positions_BT=positions_BT,
                bias_table_NR=table_NR,
                cross_kv=cross_kv,
                cross_mask=cross_mask,
                cache=cache,
                dropout_key=fold(dropout_key, layer),
            )
            return x_BTD, new_kv if return_kv else None

        x_BTD = dropout(x_BTD, config.dropout_rate, fold(dropout_key, 'embedded'))
        x_BTD, kv = self._run_layers(body, x_BTD, config.num_decoder_layers)
        return dropout(self.decoder_norm(x_BTD), config.dropout_rate, fold(dropout_key, 'normed')), kv

    def first_kv(self, rows: int) -> KV | None:
        """Keys and values before the first token, two of [L, B, P, K, H]; None unless an adapter has some."""
        return None

    def first_cache(self, layer: jax.Array, rows: int, pad_B: jax.Array | None) -> FirstKV | None:
        """One layer's part of `first_kv`, for rows with this much padding at the left."""
        return None

    def with_unread(self, pad_B: jax.Array) -> jax.Array:
        """How many slots at the left of each row are padding, with those of `first_kv` that the row does not read."""
        return pad_B

    def step(self, x_B1D: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Embedding of the token after those in the cache -> its hidden state [B, 1, D], and the updated cache."""
        mask = cache.mask()
        positions_B1 = cache.positions_B1()

        def body(kind: LayerKind, carry: Any, layer: Any, block: DecoderBlock, table_NR: Table) -> tuple[Any, None]:
            x_B1D, cache = carry
            x_B1D, new_kv = block(
                x_B1D,
                kind=kind,
                mask=mask,
                positions_BT=positions_B1,
                bias_table_NR=table_NR,
                cross_kv=cache.cross_kv(layer),
                cross_mask=cache.cross_mask(),
                cache=cache.layer(layer),
            )
            return (x_B1D, cache.updated(layer, new_kv)), None

        layers = self.config.num_decoder_layers
        (x_B1D, cache), _ = self._run_layers(body, (x_B1D, cache), layers, differentiated=False)
        return self.decoder_norm(x_B1D), cache.advanced()

    def read_after(self, x_RTD: jax.Array, cache: Cache, rows_R: jax.Array) -> jax.Array:
        """Embeddings of T tokens that follow those in row rows_R[r] of a full cache -> hidden states [R, T, D].

        Several rows may follow one row of the cache, which stays as it is: the options of a question share its context.
        """
        tokens, of_rows = x_RTD.shape[1], functools.partial(jnp.take, indices=rows_R, axis=0)
        mask, more = cache.mask(), ((0, 0), (0, tokens))
        ids_RM = jnp.pad(of_rows(cache.segment_ids_BM()), more, constant_values=1)
        prefix_RM = None if mask.prefix_BS is None else jnp.pad(of_rows(mask.prefix_BS), more)
        mask = mask._replace(kv_segment_ids_BS=ids_RM, prefix_BS=prefix_RM)
        positions_RT = of_rows(cache.positions_B1()) + jnp.arange(tokens, dtype=jnp.int32)[None, :]
        source_BS, cross_mask = cache.cross_segment_ids_BS, None
        if source_BS is not None:
            cross_mask = Mask(causal=False, kv_segment_ids_BS=of_rows(source_BS))

        def body(kind: LayerKind, x_RTD: jax.Array, layer: Any, block: DecoderBlock, table_NR: Table) -> Any:
            seen = cache.layer(layer)
            widths = ((0, 0), (0, tokens), (0, 0), (0, 0))
            k_RMKH, v_RMKH = (jnp.pad(of_rows(x), widths) for x in (seen.k_BMKH, seen.v_BMKH))
            x_RTD, _ = block(
                x_RTD,
                kind=kind,
                mask=mask,
                positions_BT=positions_RT,
                bias_table_NR=table_NR,
                cross_kv=jax.tree.map(of_rows, cache.cross_kv(layer)),
                cross_mask=cross_mask,
                cache=LayerCache(k_RMKH, v_RMKH, seen.cache_index),
            )
            return x_RTD, None

        x_RTD, _ = self._run_layers(body, x_RTD, self.config.num_decoder_layers, differentiated=False)
        return self.decoder_norm(x_RTD)


def _relative_table(config: ModelConfig, scope: Scope, layers: int) -> RelativeTable | None:
    return RelativeTable(config, scope / 'relpos_bias', layers) if config.position == 'relative_bias' else None
