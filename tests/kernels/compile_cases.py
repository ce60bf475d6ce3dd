"""Attention and whole models compiled for devices that nothing runs on."""

import jax
import jax.numpy as jnp

from t5flan import sharding
from t5flan.kernels.attention import RelativeBias
from t5flan.mesh import MeshConfig
from t5flan.models.build import abstract_model
from t5flan.models.config import ModelConfig
from t5flan.models.parameters import logical_axes
from tests.kernels.attention_cases import attention_step

EVERYTHING = dict(causal=True, prefix=True, dropped=True, soft_cap=30.0, scale=0.125)


def compile_attention(
    devices, length, heads=8, kv_heads=None, head_dim=64, dtype=jnp.bfloat16, reach=128, ids=True, **options
):
    """Output and gradients, compiled for one row on each device; fails if a kernel needs too much on-chip memory."""
    rows = len(devices)
    with sharding.use(sharding.create_sharding(MeshConfig(data=rows), devices)) as placed:

        def shaped(kind, *shape, by_row=True):
            axes = ('batch' if by_row else None,) + (None,) * (len(shape) - 1)
            return jax.ShapeDtypeStruct(shape, kind, sharding=placed.named(axes))

        q, k = (shaped(dtype, rows, length, n, head_dim) for n in (heads, kv_heads or heads))
        table, ids_BT = shaped(jnp.float32, heads, 32, by_row=False), shaped(jnp.int32, rows, length)
        step = attention_step(RelativeBias(True, 32, reach) if reach else None, ids=ids, **options)
        return jax.jit(step).lower(q, k, k, table, q, ids_BT).compile()


GEMMAS = dict(
    architecture='encoder_decoder',
    num_encoder_layers=2,
    num_heads=8,
    num_kv_heads=4,
    position='rope',
    rope_local_base=1e3,
    layer_pattern=('window', 'full'),
    attention_window=300,
    encoder=dict(attention_window=200, attention_window_ahead=200),
    scale_attention=True,
    query_pre_attn_scalar=50.0,
    attention_soft_cap=30.0,
    logits_soft_cap=20.0,
    attention_bias=True,
    qk_norm=True,
    norm_scale_plus_one=True,
    post_norms=True,
)
"""Every option of attention of T5Gemma and T5Gemma 2, but for `merged_attention`."""
GEMMA_ATTENTIONS = {False: 6, True: 4}
"""With `merged_attention` or without: for each kind of layer one in encoder, decoder and cross-attention."""


def compile_model(devices, mesh, source=1024, **fields):
    """Loss and gradients of a small model split over `mesh`, compiled for `devices`; `source` tokens of input."""
    sizes = dict(vocab_size=512, emb_dim=128, head_dim=64, mlp_dim=256, num_decoder_layers=2, scan_layers=True)
    config = ModelConfig(**sizes, dropout_rate=0.1, remat='minimal', **fields)
    with sharding.use(sharding.create_sharding(mesh, devices)) as placed:
        model = abstract_model(config)
        places = sharding.tree_shardings(placed, model, logical_axes(model))
        model = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), model, places)
        sides = ('encoder', 'decoder') if config.architecture == 'encoder_decoder' else ('decoder',)
        names = [f'{side}_{name}' for side in sides for name in ('input_tokens', 'segment_ids', 'positions')]
        tokens = lambda length: jax.ShapeDtypeStruct((4, length), jnp.int32, sharding=placed.named(('batch', None)))
        batch = {name: tokens(source if name.startswith('encoder') else 1024) for name in names}
        batch['decoder_target_tokens'] = tokens(1024)
        loss = lambda model, batch: jnp.mean(model(batch, dropout_key=jax.random.key(0)))
        return jax.jit(jax.value_and_grad(loss)).lower(model, batch).compile()
