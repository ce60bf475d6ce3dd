"""The shape of a model as one frozen record: every family is a choice of these fields, never a fork of the code."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from t5flan.config import annotations
from t5flan.config.checks import require
from t5flan.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """One Transformer. Names are T5X's where T5X has one; defaults are T5 1.1's.

    | family     | position      | mlp_activations  | norm  | further                                                   |
    |------------|---------------|------------------|-------|-----------------------------------------------------------|
    | T5 1.0     | relative_bias | relu             | rms   | tie_embeddings                                            |
    | T5 1.1     | relative_bias | gelu, linear     | rms   |                                                           |
    | UMT5       | relative_bias | gelu, linear     | rms   | relative_bias_per_layer                                   |
    | PaLM       | rope          | silu, linear     | layer | tie_embeddings, parallel_block, num_kv_heads=1, scale_... |
    | Llama 2    | rope          | silu, linear     | rms   | scale_attention                                           |
    | Gemma      | rope          | gelu, linear     | rms   | norm_scale_plus_one, scale_embedding, tied, unscaled      |
    """

    # Required: the sizes.
    architecture: Literal['encoder_decoder', 'decoder_only']
    vocab_size: int
    emb_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    num_decoder_layers: int
    num_encoder_layers: int = 0  # 0 exactly for a decoder_only model

    # Attention.
    num_kv_heads: int | None = None  # None: as many as num_heads; 1: multi-query; between: grouped-query
    scale_attention: bool = (
        False  # True: logits x head_dim^-0.5. As in T5, False: it is in the initialiser of the query
    )
    attention_soft_cap: float | None = None  # cap * tanh(logits / cap)
    attention: Literal['auto', 'xla', 'chunked', 'flash_tpu', 'flash_gpu'] = 'auto'  # the form of `attend` that runs

    # Positions.
    position: Literal['relative_bias', 'rope', 'none'] = 'relative_bias'
    relative_buckets: int = 32
    relative_max_distance: int = 128
    relative_bias_per_layer: bool = False  # True: a table for each layer (UMT5); False: one for the stack (T5)
    relative_bias_init: float = 1.0  # variance scale of the first table; larger, a small model finds positions sooner
    rope_base: float = 10000.0

    # Block.
    # One projection each, multiplied; gelu is the tanh form.
    mlp_activations: tuple[Literal['gelu', 'relu', 'silu', 'linear'], ...] = ('gelu', 'linear')
    parallel_block: bool = False  # attention and MLP read the same normed input (PaLM)
    norm: Literal['rms', 'layer'] = 'rms'  # 'layer' is without bias (PaLM)
    norm_epsilon: float = 1e-6
    norm_scale_plus_one: bool = False  # the parameter is the scale minus 1 (Gemma)

    # Embedding and logits.
    tie_embeddings: bool = False  # logits by the token embedding
    scale_tied_logits: bool = True  # if tied: logits x emb_dim^-0.5 (T5 1.0, PaLM)
    scale_embedding: bool = False  # embedded tokens x emb_dim^0.5 (Gemma)
    logits_soft_cap: float | None = None

    # How it runs; none of these changes what the parameters mean.
    dropout_rate: float = 0.0
    dtype: Literal['bfloat16', 'float32', 'float16'] = (
        'bfloat16'  # of the computation; parameters, softmax, norms and logits are float32
    )
    scan_layers: bool = True  # False unrolls the loop over the same stacked parameters
    # What the backward pass computes again: nothing, all but projections and attention's result, everything.
    remat: Literal['none', 'minimal', 'full'] = 'none'

    def __post_init__(self) -> None:
        for field, annotation in annotations.fields(ModelConfig):
            given = getattr(self, field.name)
            try:
                object.__setattr__(self, field.name, annotations.fit(given, annotation))
            except annotations.Mismatch:
                require(False, f'ModelConfig.{field.name}', given, annotations.words(annotation))
        self._check_sizes()
        self._check_combinations()

    def _check_sizes(self) -> None:
        for name in ('vocab_size', 'emb_dim', 'num_heads', 'head_dim', 'mlp_dim', 'num_decoder_layers'):
            require(getattr(self, name) > 0, f'ModelConfig.{name}', getattr(self, name), 'a number above 0')
        for name in ('norm_epsilon', 'rope_base', 'relative_bias_init', 'attention_soft_cap', 'logits_soft_cap'):
            value = getattr(self, name)
            require(value is None or value > 0, f'ModelConfig.{name}', value, 'a number above 0')
        require(0 <= self.dropout_rate < 1, 'ModelConfig.dropout_rate', self.dropout_rate, 'a number from 0 to below 1')
        require(
            self.kv_heads > 0 and self.num_heads % self.kv_heads == 0,
            'ModelConfig.num_kv_heads',
            self.num_kv_heads,
            f'a divisor of num_heads={self.num_heads}',
        )
        require(
            self.relative_buckets >= 4 and self.relative_buckets % 4 == 0,
            'ModelConfig.relative_buckets',
            self.relative_buckets,
            'a multiple of 4',
        )
        require(
            self.relative_max_distance > self.relative_buckets // 2,
            'ModelConfig.relative_max_distance',
            self.relative_max_distance,
            f'more than relative_buckets / 2 = {self.relative_buckets // 2}',
        )
        require(
            self.position != 'rope' or self.head_dim % 2 == 0, 'ModelConfig.head_dim', self.head_dim, 'even, for rope'
        )

    def _check_combinations(self) -> None:
        encoder_decoder = self.architecture == 'encoder_decoder'
        require(
            self.num_encoder_layers > 0 if encoder_decoder else self.num_encoder_layers == 0,
            'ModelConfig.num_encoder_layers',
            self.num_encoder_layers,
            'above 0' if encoder_decoder else '0 for a decoder_only model',
        )
        require(
            not (encoder_decoder and self.parallel_block),
            'ModelConfig.parallel_block',
            True,
            'False for an encoder_decoder model: its decoder has a third sub-layer',
        )
        require(len(self.mlp_activations) > 0, 'ModelConfig.mlp_activations', self.mlp_activations, 'at least one')

    @property
    def kv_heads(self) -> int:
        """Key-value heads in number: `num_kv_heads`, or `num_heads` where that is None."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def attention_scale(self) -> float:
        """What attention logits are multiplied by."""
        return self.head_dim**-0.5 if self.scale_attention else 1.0

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON-able; `ModelConfig.from_dict` reads it back."""
        return {**dataclasses.asdict(self), 'mlp_activations': list(self.mlp_activations)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> 'ModelConfig':
        """The inverse of `to_dict`.

        Raises:
            UserError: an unknown field, a missing one, or a value out of its range.
        """
        known = {field.name: field for field in dataclasses.fields(cls)}
        for name in fields:
            if name not in known:
                near = nearest(name, known)
                raise UserError(f'ModelConfig has no field {name!r}' + (f'; did you mean {near!r}?' if near else '.'))
        for name, field in known.items():
            if annotations.is_required(field) and name not in fields:
                raise UserError(f'ModelConfig.{name} is missing. Set it, or include a file of gin/models.')
        return cls(**fields)
