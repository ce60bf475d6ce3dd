"""Small models for tests, one for each family, and batches for them."""

import jax
import jax.numpy as jnp
import numpy as np

from t5flan.models.build import abstract_model
from t5flan.models.config import ModelConfig
from t5flan.models.model import Model
from t5flan.models.parameters import named_parameters, replace_parameters

VOCABULARY = 64
_SIZES = {
    'vocab_size': VOCABULARY,
    'emb_dim': 32,
    'num_heads': 4,
    'head_dim': 8,
    'mlp_dim': 48,
    'num_decoder_layers': 2,
    'scan_layers': True,  # as deep models do
    'dtype': 'float32',
}
ENCODER_DECODERS = {
    't5_1_1': {},
    't5_1_0': {'mlp_activations': ('relu',), 'tie_embeddings': True},
    'umt5': {'relative_bias_per_layer': True, 'num_kv_heads': 1},
    'rotary': {'position': 'rope', 'num_kv_heads': 2, 'attention_soft_cap': 5.0},
    'windowed': {
        'position': 'rope',
        'attention_window': 3,
        'layer_pattern': ('window', 'full'),
        'post_norms': True,
        'qk_norm': True,
        'attention_bias': True,
    },
    'two_sizes': {  # T5Gemma, with an encoder of another shape
        'position': 'rope',
        'num_kv_heads': 2,
        'attention_window': 3,
        'post_norms': True,
        'share_embeddings': False,
        'tie_embeddings': True,
        'encoder': {
            'emb_dim': 24,
            'num_heads': 2,
            'head_dim': 12,
            'mlp_dim': 20,
            'attention_window': 5,
            'layer_pattern': ('window', 'full'),
            'rope_base': 100.0,
            'rope_scaling': {'rope_type': 'linear', 'factor': 2.0},
        },
    },
    'merged': {
        'position': 'rope',
        'num_kv_heads': 2,
        'qk_norm': True,
        'attention_window': 3,
        'layer_pattern': ('window', 'full'),
        'merged_attention': True,
        'tie_embeddings': True,
        'scale_tied_logits': False,
    },
    't5gemma2': {
        'position': 'rope',
        'num_kv_heads': 2,
        'qk_norm': True,
        'post_norms': True,
        'attention_window': 3,
        'layer_pattern': ('window', 'full'),
        'encoder': {'attention_window': 2, 'attention_window_ahead': 3},
        'merged_attention': True,
        'tie_embeddings': True,
        'scale_tied_logits': False,
        'scale_embedding': True,
        'unscaled_token': 9,
    },
    'longt5': {'encoder': {'attention_window': 3}},
}
DECODERS = {
    'relative': {'relative_buckets': 8, 'relative_max_distance': 12},
    'palm': {
        'position': 'rope',
        'num_kv_heads': 1,
        'parallel_block': True,
        'norm': 'layer',
        'tie_embeddings': True,
        'scale_attention': True,
        'mlp_activations': ('silu', 'linear'),
    },
    'gemma': {
        'position': 'rope',
        'num_kv_heads': 2,
        'norm_scale_plus_one': True,
        'tie_embeddings': True,
        'scale_tied_logits': False,
        'scale_embedding': True,
        'scale_attention': True,
        'logits_soft_cap': 10.0,
    },
    'positionless': {'position': 'none'},
    'modern': {  # every option of Gemma 2 and 3, Qwen and SmolLM3 at once
        'position': 'rope',
        'rope_local_base': 50.0,
        'rope_scaling': {'rope_type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 4, 'beta_fast': 2.0},
        'num_kv_heads': 2,
        'scale_attention': True,
        'query_pre_attn_scalar': 5.0,
        'attention_soft_cap': 4.0,
        'logits_soft_cap': 20.0,
        'attention_bias': True,
        'attention_out_bias': True,
        'qk_norm': True,
        'post_norms': True,
        'attention_window': 3,
        'layer_pattern': ('window', 'nope'),
    },
}
FAMILIES = {**ENCODER_DECODERS, **DECODERS}


def small_config(family: str, **fields) -> ModelConfig:
    """The configuration of a family at test size, with some fields changed."""
    if family in ENCODER_DECODERS:
        shape = {'architecture': 'encoder_decoder', 'num_encoder_layers': 2}
    else:
        shape = {'architecture': 'decoder_only'}
    return ModelConfig(**{**_SIZES, **shape, **FAMILIES[family], **fields})


def small_model(family: str, **fields) -> Model:
    """A model of the family, filled by numpy (no compilation); norm scales are random, so that tests notice them."""
    model, random = abstract_model(small_config(family, **fields)), np.random.default_rng(1)

    def value(name: str, shape: tuple[int, ...]) -> jax.Array:
        x = random.normal(size=shape)
        x = x if name.endswith('embedding') else 0.2 * x if name.endswith('kernel') else 0.2 * x + 1
        return jnp.asarray(x, jnp.float32)

    return replace_parameters(model, {name: value(name, x.shape) for name, x in named_parameters(model).items()})


def random_batch(family: str, rows: int = 3, source: int = 9, target: int = 7, seed: int = 0) -> dict[str, np.ndarray]:
    """An unpacked batch; row r has r tokens of padding at the end of its input and of its target."""
    random = np.random.default_rng(seed)

    def tokens(length: int) -> np.ndarray:
        x = random.integers(3, VOCABULARY, (rows, length), dtype=np.int32)
        return np.where(np.arange(length)[None, :] < length - np.arange(rows)[:, None], x, 0).astype(np.int32)

    target_BT = tokens(target)
    batch = {
        'decoder_input_tokens': np.pad(target_BT[:, :-1], ((0, 0), (1, 0))),
        'decoder_target_tokens': target_BT,
        'decoder_loss_weights': (target_BT > 0).astype(np.float32),
    }
    return {**batch, 'encoder_input_tokens': tokens(source)} if family in ENCODER_DECODERS else batch


def mean_loss(model: Model, batch: dict[str, np.ndarray], dropout_key: jax.Array | None = None) -> jax.Array:
    """Cross-entropy per weighted token."""
    log_p_BTV = jax.nn.log_softmax(model(batch, dropout_key=dropout_key))
    loss_BT = -jnp.take_along_axis(log_p_BTV, jnp.asarray(batch['decoder_target_tokens'])[..., None], axis=-1)[..., 0]
    return jnp.sum(loss_BT * batch['decoder_loss_weights']) / jnp.sum(batch['decoder_loss_weights'])
