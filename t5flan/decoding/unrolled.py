"""The decoding step unrolled over layers: every layer's parameters and cache are separate arrays.

`Model.decode_step` scans over stacked layers: at every token it slices each layer's parameters and cache out of the
stack, which on a CPU copies them (T5 1.1 small, 8 rows: 200 MB read and written per token). Here they are sliced, and
cast to the compute dtype, once before the first batch; projections of the same input become one product, and caches
are stored in the order in which products read them. The numbers are the same, except that a 16-bit compute dtype also
rounds the kernel of untied logits, which halves the time of that product. Compile time grows with the number of
layers, and the decoder's parameters are in memory twice.

Shapes: L layers, B prompts, W rows of a prompt (its beams or samples), R = B W rows, P slots of the prompt, T new
steps, M = P + T W cache slots, S source length, K key-value heads, H head_dim, I inputs and O outputs of a product.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5flan.adapters.projection import AdaptedProjection
from t5flan.kernels.cached import cached_attention
from t5flan.kernels.relative_bias import RelativeBias, relative_buckets
from t5flan.models.attention import KV, Mask
from t5flan.models.cache import Cache
from t5flan.models.config import LayerKind, ModelConfig
from t5flan.models.layers import Projection, add_bias
from t5flan.models.model import Model
from t5flan.models.stack import DecoderBlock


class Layer(NamedTuple):
    """A layer's parameters.

    Attributes:
        block: the block, with empty arrays as kernels.
        kernels: those of `_products`, matrices in the compute dtype.
        bias_table_NR: relative bias per head and bucket, or None.
    """

    block: DecoderBlock
    kernels: tuple[jax.Array, ...]
    bias_table_NR: jax.Array | None


class Product(NamedTuple):
    """Projections of one module that read the same input and are computed as one product."""

    module: Any
    names: tuple[str, ...]

    def projections(self) -> list[Projection]:
        """The projections."""
        return [getattr(self.module, name) for name in self.names]


def _products(block: DecoderBlock) -> Iterator[Product]:
    """The products of a step, in a fixed order. Keys and values of the encoder's output are computed before."""
    yield Product(block.self_attention, ('query', 'key', 'value'))
    yield Product(block.self_attention, ('out',))
    if hasattr(block, 'encoder_decoder_attention'):
        yield Product(block.encoder_decoder_attention, ('query',))
        yield Product(block.encoder_decoder_attention, ('out',))
    yield Product(block.mlp, tuple(block.mlp.inner_names()))
    yield Product(block.mlp, ('wo',))


@dataclasses.dataclass(frozen=True)
class Part:
    """A projection as columns of a product; XLA computes the product once for all its parts."""

    kernel: jax.Array
    dtype: Any
    num_inputs: int
    start: int
    shape: tuple[int, ...]
    result: Any = None  # dtype; None: the compute dtype
    bias: Any = None  # [*outputs]; None without one

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., *inputs] -> [..., *outputs]."""
        rows = x.shape[: x.ndim - self.num_inputs]
        x_RI = x.reshape(math.prod(rows), -1).astype(self.dtype)
        inputs = (1,) if _transposed(self.dtype) else (0,)
        dimensions = (((1,), inputs), ((), ()))
        y_RO = jax.lax.dot_general(x_RI, self.kernel, dimensions, preferred_element_type=jnp.float32)
        y_RO = y_RO.astype(self.result or self.dtype)
        y = y_RO[:, self.start : self.start + math.prod(self.shape)].reshape(*rows, *self.shape)
        return add_bias(y, self.bias)


def _transposed(dtype: Any) -> bool:
    """Whether kernels are stored [O, I], which XLA's 16-bit products on a CPU read faster."""
    return jnp.dtype(dtype).itemsize == 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UnrolledCache:
    """A `Cache` whose layers are separate arrays, and which W rows (the beams or samples of a prompt) may share.

    The slots of the prompt come first. Then each step has W slots, one for each of the W rows: where a beam was copied
    from another, it reads the other's slots, and nothing is moved.

    Attributes:
        index: the slot of the next token if W were 1, scalar int32: the number of steps so far and of prompt slots.
        pad_B: how many slots at the left are padding, int32.
        layers: each layer's keys [B, K, H, M] and values [B, K, M, H], in the order in which products read them.
        branches_BWT: int32: the token of row w at new step t is in slot branches_BWT[b, w, t] of the step's W.
        cross_layers: those of the encoder's output, [B, K, H, S] and [B, K, S, H]; empty in a decoder-only model.
        cross_segment_ids_BS: 0 where the encoder's input is padding.
        encoded: with merged attention, how many slots at the left are the encoder's output.
    """

    index: jax.Array
    pad_B: jax.Array
    layers: tuple[KV, ...]
    branches_BWT: jax.Array
    cross_layers: tuple[KV, ...]
    cross_segment_ids_BS: jax.Array | None
    encoded: int = dataclasses.field(default=0, metadata={'static': True})

    @property
    def prompt_slots(self) -> int:
        """P."""
        _, width, steps = self.branches_BWT.shape
        return self.layers[0][0].shape[3] - width * steps

    def repeated(self, count: int) -> 'UnrolledCache':
        """The cache of a prompt for `count` rows of each row; none of them has new tokens yet."""
        batch, _, steps = self.branches_BWT.shape
        none, more = (0, 0), (0, (count - 1) * steps)
        pad = lambda kv: (jnp.pad(kv[0], (none, none, none, more)), jnp.pad(kv[1], (none, none, more, none)))
        layers = tuple(map(pad, self.layers))
        branches_BWT = jnp.broadcast_to(jnp.arange(count)[None, :, None], (batch, count, steps))
        return dataclasses.replace(self, layers=layers, branches_BWT=branches_BWT)

    def taken(self, rows_R: jax.Array, prompts_Q: jax.Array) -> 'UnrolledCache':
        """The cache of only the prompts `prompts_Q`, with all of their rows `rows_R`."""
        names = ('pad_B', 'layers', 'branches_BWT', 'cross_layers', 'cross_segment_ids_BS')
        parts = {name: getattr(self, name) for name in names}
        return dataclasses.replace(self, **jax.tree.map(lambda x: x[prompts_Q], parts))

    def reordered(self, parents_BW: jax.Array, new_slots: int) -> 'UnrolledCache':
        """The cache in which row w of each W goes on from row parents_BW[b, w] (beams)."""
        branches_BWT = jnp.take_along_axis(self.branches_BWT, parents_BW[:, :, None], axis=1)
        # Of its new tokens, every row writes its own slot.
        own_W = jnp.arange(parents_BW.shape[1], dtype=jnp.int32)
        is_new_T = self.prompt_slots + jnp.arange(branches_BWT.shape[2]) >= self.index
        return dataclasses.replace(
            self, branches_BWT=jnp.where(is_new_T[None, None, :], own_W[None, :, None], branches_BWT)
        )

    def next_slot(self) -> jax.Array:
        """The first of the W slots of the next step."""
        return self.prompt_slots + (self.index - self.prompt_slots) * self.branches_BWT.shape[1]

    def distances(self) -> jax.Array:
        """How far the token in each slot is from the next one: slot's position - query's, int32 [P + T W]."""
        _, width, steps = self.branches_BWT.shape
        new = self.prompt_slots + jnp.repeat(jnp.arange(steps, dtype=jnp.int32), width)
        return jnp.concatenate([jnp.arange(self.prompt_slots, dtype=jnp.int32), new]) - self.index

    def seen(self, window: int | None = None) -> jax.Array:
        """Which slots the next token of each row sees, bool [B, W, P + T W]; those nearer than `window`."""
        batch, width, steps = self.branches_BWT.shape
        prompt_BP = jnp.arange(self.prompt_slots)[None, :] >= self.pad_B[:, None]
        prompt_BWP = jnp.broadcast_to(prompt_BP[:, None], (batch, width, self.prompt_slots))
        branch_BWTW = self.branches_BWT[..., None] == jnp.arange(width)[None, None, None, :]
        seen_BWM = jnp.concatenate([prompt_BWP, branch_BWTW.reshape(batch, width, -1)], axis=-1)
        distance_M = self.distances()
        near_M = distance_M <= 0 if window is None else (distance_M <= 0) & (distance_M > -window)
        if self.encoded:
            near_M |= jnp.arange(near_M.shape[0]) < self.encoded
        return seen_BWM & near_M[None, None, :]


class StepCache(NamedTuple):
    """One layer of an `UnrolledCache`; the next W tokens go to slots `cache_index` and after it."""

    k_BKHM: jax.Array
    v_BKMH: jax.Array
    cache_index: jax.Array

    def updated(self, new_kv: KV) -> KV:
        """The cached keys [B, K, H, M] and values [B, K, M, H], with the new ones ([B W, 1, K, H]) in their slots."""
        write = jax.lax.dynamic_update_slice_in_dim
        by_prompt = lambda x: x.reshape(self.k_BKHM.shape[0], -1, *x.shape[2:]).astype(self.k_BKHM.dtype)
        k_BKHW, v_BKWH = _keys_last((by_prompt(new_kv[0]), by_prompt(new_kv[1])))
        return write(self.k_BKHM, k_BKHW, self.cache_index, 3), write(self.v_BKMH, v_BKWH, self.cache_index, 2)


@dataclasses.dataclass(frozen=True)
class StepReader:
    """How an `Attention` reads keys and values in a step: the T = W rows of a prompt are queries to one cache.

    Attributes:
        seen_BTM: which slots a row sees, bool.
        buckets_M: the bucket of each slot's distance; None without relative bias.
    """

    seen_BTM: jax.Array
    buckets_M: jax.Array | None = None

    def __call__(
        self, config: ModelConfig, q: jax.Array, kv: KV, bias_table_NR: jax.Array | None, window: int | None
    ) -> jax.Array:
        """Queries [B, T, N, H] or [B T, 1, N, H] -> what they read, like q; `seen_BTM` includes the window."""
        bias_NM = None
        if bias_table_NR is not None and self.buckets_M is not None:
            bias_NM = bias_table_NR[:, self.buckets_M]
        y_BTNH = cached_attention(
            q.reshape(self.seen_BTM.shape[0], -1, *q.shape[2:]),
            *kv,
            self.seen_BTM,
            bias_NM=bias_NM,
            scale=config.attention_scale,
            soft_cap=config.attention_soft_cap,
        )
        return y_BTNH.reshape(q.shape)


class Layers(NamedTuple):
    """What a step reads of the decoder.

    Attributes:
        layers: its stack.
        logits_kernel: of the logits in the compute dtype, if that has 16 bits and embeddings are not tied; or None.
    """

    layers: tuple[Layer, ...]
    logits_kernel: jax.Array | None


def unroll_layers(model: Model) -> Layers:
    """The decoder's stack as separate layers."""
    config, decoder = model.config, model.decoder
    table = None if decoder.relpos_bias is None else decoder.relpos_bias.rel_embedding[...]
    stack = decoder.stacked_layers()

    def layer(i: int) -> Layer:
        block = jax.tree.map(lambda x: x[i], stack)
        kernels = tuple(_kernel(product.projections()) for product in _products(block))
        empty = lambda path, x: jnp.zeros(0, x.dtype) if _is_kernel(path) else x
        whole, block = block, jax.tree_util.tree_map_with_path(empty, block)
        for product, old in zip(_products(block), _products(whole), strict=True):
            for projection, given in zip(product.projections(), old.projections(), strict=True):
                if isinstance(given, AdaptedProjection) and given.reads_kernel:
                    projection.kernel = given.kernel
        return Layer(block, kernels, table if table is None or not config.relative_bias_per_layer else table[i])

    logits_kernel = None
    if not config.tie_embeddings and _transposed(config.dtype):
        logits_kernel = decoder.logits_dense.kernel[...].astype(config.dtype).T
    return Layers(tuple(layer(i) for i in range(config.num_decoder_layers)), logits_kernel)


def _kernel(projections: list[Projection]) -> jax.Array:
    """The kernels side by side as one matrix: [I, O], or [O, I] where that is read faster."""
    matrices = []
    for projection in projections:
        kernel = projection.kernel[...].astype(projection.dtype)
        matrices.append(kernel.reshape(math.prod(kernel.shape[: projection.num_inputs]), -1))
    kernel_IO = jnp.concatenate(matrices, axis=1)
    return kernel_IO.T if _transposed(kernel_IO.dtype) else kernel_IO


def _assemble(
    stack: DecoderBlock, layer: Layer, seen: tuple[jax.Array, jax.Array | None], buckets_M: jax.Array | None
) -> DecoderBlock:
    """The block of `layer`, whose projections are parts of the products. `seen` is as in `_layer_step`."""
    block = jax.tree.map(lambda x: x, layer.block)
    for product, whole, kernel in zip(_products(block), _products(stack), layer.kernels, strict=True):
        start = 0
        for name, projection in zip(product.names, whole.projections(), strict=True):
            shape = projection.kernel[...].shape[1 + projection.num_inputs :]  # after the axis of layers
            bias = getattr(product.module, name).bias
            part = Part(kernel, projection.dtype, projection.num_inputs, start, shape, bias=bias)
            _set_product(product.module, name, part)
            start += math.prod(shape)
    seen_BWM, cross_seen_B1S = seen
    block.self_attention.reader = StepReader(seen_BWM, buckets_M)
    if cross_seen_B1S is not None:
        block.encoder_decoder_attention.reader = StepReader(cross_seen_B1S)
    return block


def _set_product(module: Any, name: str, part: Part) -> None:
    """Puts a part in the place of a projection, or of its kernel if it has an adapter, which stays."""
    projection = getattr(module, name)
    if isinstance(projection, AdaptedProjection):
        projection.product = part
    else:
        setattr(module, name, part)


def unroll_cache(config: ModelConfig, cache: Cache, new_slots: int) -> UnrolledCache:
    """The cache as separate layers, before any of its `new_slots` is filled."""
    layers = range(cache.k_LBMKH.shape[0])
    own = tuple(_keys_last((cache.k_LBMKH[i], cache.v_LBMKH[i])) for i in layers)
    cross = tuple(_keys_last(kv) for i in layers if (kv := cache.cross_kv(i)) is not None)
    if config.num_heads == config.kv_heads:
        # XLA's CPU computes the product of a cache with a single query in float32, and would convert all of a 16-bit
        # cache at every token. The numbers are the same.
        own, cross = jax.tree.map(lambda x: x.astype(jnp.float32), (own, cross))
    # Without the barrier XLA would move the transpose into the loop and copy the arrays at every token.
    own, cross = jax.lax.optimization_barrier((own, cross))
    branches_B1T = jnp.zeros((cache.pad_B.shape[0], 1, new_slots), jnp.int32)
    return UnrolledCache(cache.index, cache.pad_B, own, branches_B1T, cross, cache.cross_segment_ids_BS, cache.encoded)


def unrolled_step(
    model: Model, layers: Layers, cache: UnrolledCache, tokens_B1: jax.Array
) -> tuple[jax.Array, UnrolledCache]:
    """`model.decode_step`: reads one more token in each row -> float32 logits [B, V], and the updated cache."""
    config, ids_BS = model.config, cache.cross_segment_ids_BS
    kinds = config.layer_kinds
    seen_of = {window: cache.seen(window) for window in dict.fromkeys(kind.window for kind in kinds)}
    cross_seen_B1S = None if ids_BS is None else ids_BS[:, None, :] > 0
    buckets_M = None
    if model.decoder.relpos_bias is not None:
        bias = RelativeBias(False, config.relative_buckets, config.relative_max_distance)
        buckets_M = relative_buckets(cache.distances(), bias)
    first_B = jnp.full_like(cache.pad_B, cache.encoded) if cache.encoded else cache.pad_B
    positions_B1 = jnp.repeat(cache.index - first_B, cache.branches_BWT.shape[1])[:, None]
    # Only shapes are read of the stack.
    steps = [jax.jit(lambda *arrays, kind=kind: _layer_step(model.decoder.layers, kind, *arrays)) for kind in kinds]
    x_B1D, updated = model.token_embedder(tokens_B1), []
    for i, (layer, kv) in enumerate(zip(layers.layers, cache.layers, strict=True)):
        cross_kv = cache.cross_layers[i] if cache.cross_layers else None
        kind, step_of_layer = kinds[i % len(kinds)], steps[i % len(kinds)]
        seen = seen_of[kind.window], cross_seen_B1S
        x_B1D, kv = step_of_layer(layer, x_B1D, kv, cross_kv, cache.next_slot(), positions_B1, seen, buckets_M)
        updated.append(kv)
    x_B1D = model.decoder.decoder_norm(x_B1D)
    if layers.logits_kernel is not None:
        model = jax.tree.map(lambda x: x, model)
        shape = layers.logits_kernel.shape[:1]
        part = Part(layers.logits_kernel, model.config.dtype, 1, 0, shape, jnp.float32)
        _set_product(model.decoder, 'logits_dense', part)
    return model.logits(x_B1D)[:, 0], dataclasses.replace(cache, index=cache.index + 1, layers=tuple(updated))


def _layer_step(
    stack: DecoderBlock,
    kind: LayerKind,
    layer: Layer,
    x_R1D: jax.Array,
    kv: KV,
    cross_kv: KV | None,
    slot: jax.Array,
    positions_R1: jax.Array,
    seen: tuple[jax.Array, jax.Array | None],
    buckets_M: jax.Array | None,
) -> tuple[jax.Array, KV]:
    """One layer's output and updated keys and values. As a function of its own it is traced once for all of a kind.

    `seen` are the cache's slots that each row sees [B, W, M], and those of the encoder's output [B, 1, S].
    """
    cache, all_of_them = StepCache(*kv, slot), Mask(causal=False)
    x_R1D, new_kv = _assemble(stack, layer, seen, buckets_M)(
        x_R1D,
        kind=kind,
        mask=all_of_them,
        positions_BT=positions_R1,
        cache=cache,
        cross_kv=cross_kv,
        cross_mask=None if cross_kv is None else all_of_them,
        bias_table_NR=layer.bias_table_NR,
    )
    # The same write as inside the block: XLA does it once.
    return x_R1D, cache.updated(new_kv)


def _keys_last(kv: KV) -> KV:
    """Keys and values [B, S, K, H] -> keys [B, K, H, S] and values [B, K, S, H]."""
    return kv[0].transpose(0, 2, 3, 1), kv[1].swapaxes(1, 2)


def _is_kernel(path: tuple[Any, ...]) -> bool:
    return any(getattr(key, 'name', getattr(key, 'key', None)) == 'kernel' for key in path)
