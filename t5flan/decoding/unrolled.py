"""The decoding step unrolled over layers: every layer's parameters and cache are separate arrays.

`Model.decode_step` scans over stacked layers: at every token it slices each layer's parameters and cache out of the
stack, which on a CPU copies them (T5 1.1 small, 8 rows: 200 MB read and written per token). Here they are sliced, and
cast to the compute dtype, once before the first batch; projections of the same input become one product, and caches
are stored in the order in which products read them. The numbers are the same, except that a 16-bit compute dtype also
rounds the kernel of untied logits, which halves the time of that product. Compile time grows with the number of
layers, and the decoder's parameters are in memory twice.

Shapes: L layers, B rows, M cache slots, S source length, K key-value heads, H head_dim, I inputs and O outputs of a
product.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5flan.adapters.projection import AdaptedProjection
from t5flan.models.attention import KV, LayerCache, Mask, update_cache
from t5flan.models.cache import Cache, reorder_rows
from t5flan.models.layers import Projection
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

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., *inputs] -> [..., *outputs]."""
        rows = x.shape[: x.ndim - self.num_inputs]
        x_RI = x.reshape(math.prod(rows), -1).astype(self.dtype)
        inputs = (1,) if _transposed(self.dtype) else (0,)
        dimensions = (((1,), inputs), ((), ()))
        y_RO = jax.lax.dot_general(x_RI, self.kernel, dimensions, preferred_element_type=jnp.float32)
        y_RO = y_RO.astype(self.result or self.dtype)
        return y_RO[:, self.start : self.start + math.prod(self.shape)].reshape(*rows, *self.shape)


def _transposed(dtype: Any) -> bool:
    """Whether kernels are stored [O, I], which XLA's 16-bit products on a CPU read faster."""
    return jnp.dtype(dtype).itemsize == 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UnrolledCache:
    """A `Cache` whose layers are separate arrays.

    Attributes:
        index: the slot of the next token, scalar int32.
        pad_B: how many slots at the left are padding, int32.
        layers: each layer's keys and values, [B, K, M, H].
        cross_layers: those of the encoder's output, [B, K, S, H]; empty in a decoder-only model. They may have fewer
            rows: as many as there are prompts.
        cross_segment_ids_BS: 0 where the encoder's input is padding.
    """

    index: jax.Array
    pad_B: jax.Array
    layers: tuple[KV, ...]
    cross_layers: tuple[KV, ...]
    cross_segment_ids_BS: jax.Array | None

    def repeated(self, count: int) -> 'UnrolledCache':
        """The cache with `count` rows for each row, which share the keys and values of the encoder's output."""
        repeat = lambda x: jnp.repeat(x, count, axis=0)
        return dataclasses.replace(self, pad_B=repeat(self.pad_B), layers=jax.tree.map(repeat, self.layers))

    def taken(self, rows_R: jax.Array, prompts_Q: jax.Array) -> 'UnrolledCache':
        """The cache of only the rows `rows_R`, those of the prompts `prompts_Q`."""
        layers = jax.tree.map(lambda x: x[rows_R], self.layers)
        cross_layers, ids_BS = jax.tree.map(lambda x: x[prompts_Q], (self.cross_layers, self.cross_segment_ids_BS))
        return UnrolledCache(self.index, self.pad_B[rows_R], layers, cross_layers, ids_BS)

    def reordered(self, parents_BW: jax.Array, new_slots: int) -> 'UnrolledCache':
        """The cache of rows [B * W] in which row w of each W becomes a copy of row parents_BW[b, w] (beams).

        Only the last `new_slots` slots may differ between the rows of a prompt.
        """
        reorder = lambda x: reorder_rows(x, parents_BW, new_slots, rows=0, slots=2)
        return dataclasses.replace(self, layers=jax.tree.map(reorder, self.layers))


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


def _assemble(stack: DecoderBlock, layer: Layer) -> DecoderBlock:
    """The block of `layer`, whose projections are parts of the products."""
    block = jax.tree.map(lambda x: x, layer.block)
    for product, whole, kernel in zip(_products(block), _products(stack), layer.kernels, strict=True):
        start = 0
        for name, projection in zip(product.names, whole.projections(), strict=True):
            shape = projection.kernel[...].shape[1 + projection.num_inputs :]  # after the axis of layers
            _set_product(product.module, name, Part(kernel, projection.dtype, projection.num_inputs, start, shape))
            start += math.prod(shape)
    return block


def _set_product(module: Any, name: str, part: Part) -> None:
    """Puts a part in the place of a projection, or of its kernel if it has an adapter, which stays."""
    projection = getattr(module, name)
    if isinstance(projection, AdaptedProjection):
        projection.product = part
    else:
        setattr(module, name, part)


def unroll_cache(cache: Cache) -> UnrolledCache:
    """The cache as separate layers."""
    layers = range(cache.k_LBMKH.shape[0])
    own = tuple(_swap_heads((cache.k_LBMKH[i], cache.v_LBMKH[i])) for i in layers)
    cross = tuple(_swap_heads(kv) for i in layers if (kv := cache.cross_kv(i)) is not None)
    # Heads first in memory too, as products over S, M or H read them: without the barrier XLA would move the transpose
    # into the loop and copy the arrays at every token.
    own, cross = jax.lax.optimization_barrier((own, cross))
    return UnrolledCache(cache.index, cache.pad_B, own, cross, cache.cross_segment_ids_BS)


def unrolled_step(
    model: Model, layers: Layers, cache: UnrolledCache, tokens_B1: jax.Array
) -> tuple[jax.Array, UnrolledCache]:
    """`model.decode_step`: reads one more token in each row -> float32 logits [B, V], and the updated cache."""
    slots = cache.layers[0][0].shape[2]
    seen_BM = (jnp.arange(slots)[None, :] >= cache.pad_B[:, None]).astype(jnp.int32)
    masks = seen_BM, cache.cross_segment_ids_BS
    # Only shapes are read of the stack.
    step_of_layer = jax.jit(lambda *arrays: _layer_step(model.decoder.layers, *arrays))
    x_B1D, updated = model.token_embedder(tokens_B1), []
    for i, (layer, kv) in enumerate(zip(layers.layers, cache.layers, strict=True)):
        cross_kv = cache.cross_layers[i] if cache.cross_layers else None
        x_B1D, kv = step_of_layer(layer, x_B1D, kv, cross_kv, cache.index, cache.pad_B, masks)
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
    layer: Layer,
    x_B1D: jax.Array,
    kv: KV,
    cross_kv: KV | None,
    index: jax.Array,
    pad_B: jax.Array,
    masks: tuple[jax.Array, jax.Array | None],
) -> tuple[jax.Array, KV]:
    """One layer's output and updated cache [B, K, M, H]. As a function of its own it is traced once for all layers.

    `masks` are the segments of the cache's slots [B, M] and of the encoder's output [B, S].
    """
    seen_BM, cross_ids_BS = masks
    cache = LayerCache(*kv, index, heads_first=True)
    x_B1D, new_kv = _assemble(stack, layer)(
        x_B1D,
        mask=Mask(causal=True, kv_segment_ids_BS=seen_BM),
        positions_BT=(index - pad_B)[:, None],
        cache=cache,
        cross_kv=None if cross_kv is None else _swap_heads(cross_kv),
        cross_mask=None if cross_ids_BS is None else Mask(causal=False, kv_segment_ids_BS=cross_ids_BS),
        bias_table_NR=layer.bias_table_NR,
    )
    # The same write as inside the block: XLA does it once.
    return x_B1D, _swap_heads(update_cache(cache, new_kv))


def _swap_heads(keys_values: KV) -> KV:
    """[B, S, K, H] <-> [B, K, S, H]."""
    return keys_values[0].swapaxes(1, 2), keys_values[1].swapaxes(1, 2)


def _is_kernel(path: tuple[Any, ...]) -> bool:
    return any(getattr(key, 'name', getattr(key, 'key', None)) == 'kernel' for key in path)
