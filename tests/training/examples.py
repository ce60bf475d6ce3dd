"""Tiny models and batches for the tests of training."""

import functools
from typing import Any

import jax
import numpy as np

from t5flan.models.build import build_model
from t5flan.models.config import ModelConfig

SIZES: dict[str, Any] = dict(
    vocab_size=64,
    emb_dim=32,
    num_heads=4,
    head_dim=8,
    mlp_dim=48,
    num_decoder_layers=2,
    scan_layers=True,  # as deep models do
    dtype='float32',
)
ENCODER_DECODER = ModelConfig(architecture='encoder_decoder', num_encoder_layers=2, **SIZES)
DECODER = ModelConfig(
    architecture='decoder_only',
    position='rope',
    norm='layer',
    mlp_activations=('silu', 'linear'),
    num_kv_heads=1,
    tie_embeddings=True,
    scale_attention=True,
    parallel_block=True,
    **SIZES,
)


@functools.cache
def make_model(config: ModelConfig):
    """New parameters of key 0."""
    return jax.jit(lambda: build_model(config, jax.random.key(0)))()


def make_batch(
    config: ModelConfig, seed: int = 0, rows: int = 8, inputs: int = 12, targets: int = 10
) -> dict[str, np.ndarray]:
    """Random tokens in rows of different lengths, padded, with loss weights of 0, 0.5 and 1."""
    rng = np.random.default_rng(seed)

    def tokens(length: int) -> np.ndarray:
        lengths = rng.integers(length // 3, length + 1, (rows, 1))
        words = rng.integers(2, config.vocab_size, (rows, length), dtype=np.int32)
        return np.where(np.arange(length)[None] < lengths, words, np.int32(0))

    target_BT = tokens(targets)
    batch = {
        'decoder_input_tokens': np.pad(target_BT, ((0, 0), (1, 0)))[:, :-1],
        'decoder_target_tokens': target_BT,
        'decoder_loss_weights': ((target_BT > 0) * rng.choice([0.0, 0.5, 1.0], target_BT.shape)).astype(np.float32),
    }
    if config.architecture == 'encoder_decoder':
        return batch | {'encoder_input_tokens': tokens(inputs)}
    positions_BT = np.broadcast_to(np.arange(targets, dtype=np.int32), target_BT.shape)
    return batch | {'decoder_segment_ids': (target_BT > 0).astype(np.int32), 'decoder_positions': positions_BT}
