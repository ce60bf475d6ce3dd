"""The configuration of a model: every model family is a choice of settings, never a fork of the code."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from t5flan.config import annotations
from t5flan.config.checks import BelowOne, Count, CountFrom0, Positive, check_limits, require
from t5flan.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The configuration of one Transformer. Names are T5X's where T5X has one; defaults are T5 1.1's.

    | family     | position      | mlp_activations  | norm  | further settings                                         |
    |------------|---------------|------------------|-------|----------------------------------------------------------|
    | T5 1.0     | relative_bias | relu             | rms   | tie_embeddings                                           |
    | T5 1.1     | relative_bias | gelu, linear     | rms   |                                                          |
    | UMT5       | relative_bias | gelu, linear     | rms   | relative_bias_per_layer                                  |
    | PaLM       | rope          | silu, linear     | layer | tie_embeddings, parallel_block, num_kv_heads=1, ...      |
    | Llama 2    | rope          | silu, linear     | rms   | scale_attention                                          |
    | Gemma      | rope          | gelu, linear     | rms   | norm_scale_plus_one, scale_embedding, tied, unscaled     |

    Attributes:
        architecture: 'encoder_decoder' or 'decoder_only'.
        vocab_size: tokens in the embedding and the logits, at least those of the vocabulary.
        emb_dim: size of hidden states.
        num_heads: query heads.
        head_dim: size of a head.
        mlp_dim: inner size of the MLP.
        num_decoder_layers: layers of the decoder.
        num_encoder_layers: layers of the encoder; 0 for a decoder_only model.
        num_kv_heads: key-value heads. None: as many as num_heads; 1: multi-query; between: grouped-query.
        scale_attention: True: logits x head_dim^-0.5. False, as in T5: that factor is in the initializer of the query.
        attention_soft_cap: attention logits become cap * tanh(logits / cap); None for no cap.
        attention: the implementation of `attend()`; 'auto' chooses one for the device and the lengths.
        position: how positions enter: T5's relative bias, rotary embeddings, or not at all.
        relative_buckets: buckets of distances of the relative bias.
        relative_max_distance: the distance from which keys share the last bucket.
        relative_bias_per_layer: True: a bias table for each layer (UMT5). False: one for the stack (T5).
        relative_bias_init: variance scale of the initial bias table; larger, small models learn positions sooner.
        rope_base: base of the rotary frequencies.
        mlp_activations: one projection for each, multiplied; 'gelu' is the tanh approximation.
        parallel_block: attention and MLP read the same normed input (PaLM).
        norm: 'rms', or 'layer' without bias (PaLM).
        norm_epsilon: added to the variance.
        norm_scale_plus_one: the parameter is the scale minus 1 (Gemma).
        tie_embeddings: compute logits with the token embedding.
        scale_tied_logits: with tie_embeddings: logits x emb_dim^-0.5 (T5 1.0, PaLM).
        scale_embedding: embedded tokens x emb_dim^0.5 (Gemma).
        logits_soft_cap: as attention_soft_cap, for the output logits.
        dropout_rate: during training; 0 turns dropout off.
        dtype: of the computation; parameters, softmax, norms and logits are float32.
        scan_layers: True compiles one layer and scans over the stack; False unrolls the loop over the same parameters.
        remat: what the backward pass recomputes: nothing ('none'), all but the outputs of projections and attention
            ('minimal'), or everything ('full').
    """

    architecture: Literal['encoder_decoder', 'decoder_only']
    vocab_size: Count
    emb_dim: Count
    num_heads: Count
    head_dim: Count
    mlp_dim: Count
    num_decoder_layers: Count
    num_encoder_layers: CountFrom0 = 0

    num_kv_heads: int | None = None
    scale_attention: bool = False
    attention_soft_cap: Positive | None = None
    attention: Literal['auto', 'xla', 'chunked', 'flash_tpu', 'flash_gpu'] = 'auto'

    position: Literal['relative_bias', 'rope', 'none'] = 'relative_bias'
    relative_buckets: Count = 32
    relative_max_distance: Count = 128
    relative_bias_per_layer: bool = False
    relative_bias_init: Positive = 1.0
    rope_base: Positive = 10000.0

    mlp_activations: tuple[Literal['gelu', 'relu', 'silu', 'linear'], ...] = ('gelu', 'linear')
    parallel_block: bool = False
    norm: Literal['rms', 'layer'] = 'rms'
    norm_epsilon: Positive = 1e-6
    norm_scale_plus_one: bool = False

    tie_embeddings: bool = False
    scale_tied_logits: bool = True
    scale_embedding: bool = False
    logits_soft_cap: Positive | None = None

    # None of these changes what the parameters mean.
    dropout_rate: BelowOne = 0.0
    dtype: Literal['bfloat16', 'float32', 'float16'] = 'bfloat16'
    scan_layers: bool = True
    remat: Literal['none', 'minimal', 'full'] = 'none'

    def __post_init__(self) -> None:
        for field, annotation in annotations.fields(ModelConfig):
            given = getattr(self, field.name)
            try:
                object.__setattr__(self, field.name, annotations.fit(given, annotation))
            except annotations.Mismatch:
                require(False, f'ModelConfig.{field.name}', given, annotations.describe(annotation))
        self._check_sizes()
        self._check_combinations()

    def _check_sizes(self) -> None:
        check_limits(self)
        divides = self.kv_heads > 0 and self.num_heads % self.kv_heads == 0
        self._require(divides, 'num_kv_heads', f'a divisor of num_heads={self.num_heads}')
        buckets = self.relative_buckets
        self._require(buckets >= 4 and buckets % 4 == 0, 'relative_buckets', 'a multiple of 4')
        more = f'more than relative_buckets / 2 = {buckets // 2}'
        self._require(self.relative_max_distance > buckets // 2, 'relative_max_distance', more)
        pairs = self.position != 'rope' or self.head_dim % 2 == 0
        self._require(pairs, 'head_dim', "an even number with position='rope'")

    def _check_combinations(self) -> None:
        if self.architecture == 'encoder_decoder':
            self._require(self.num_encoder_layers > 0, 'num_encoder_layers', 'a number above 0')
            without = 'False for an encoder_decoder model: its decoder has a third sub-layer'
            self._require(not self.parallel_block, 'parallel_block', without)
        else:
            self._require(self.num_encoder_layers == 0, 'num_encoder_layers', '0 for a decoder_only model')
        self._require(len(self.mlp_activations) > 0, 'mlp_activations', 'at least one')

    def _require(self, holds: bool, field: str, expected: str) -> None:
        require(holds, f'ModelConfig.{field}', getattr(self, field), expected)

    @property
    def kv_heads(self) -> int:
        """The number of key-value heads: `num_kv_heads`, or `num_heads` if that is None."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def kernel_size(self) -> int:
        """The parameters of embeddings, projections and position tables: nearly all of them."""
        attention = 2 * self.emb_dim * self.head_dim * (self.num_heads + self.kv_heads)
        mlp = (len(self.mlp_activations) + 1) * self.emb_dim * self.mlp_dim
        crossing = attention if self.architecture == 'encoder_decoder' else 0
        layers = self.num_encoder_layers * (attention + mlp) + self.num_decoder_layers * (attention + crossing + mlp)
        tables = self.num_decoder_layers if self.relative_bias_per_layer else 1
        bias = tables * self.relative_buckets * self.num_heads if self.position == 'relative_bias' else 0
        return bias + layers + self.vocab_size * self.emb_dim * (1 if self.tie_embeddings else 2)

    @property
    def itemsize(self) -> int:
        """Bytes of a number in `dtype`."""
        return 4 if self.dtype == 'float32' else 2

    @property
    def attention_scale(self) -> float:
        """The factor of attention logits."""
        return self.head_dim**-0.5 if self.scale_attention else 1.0

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON types; `ModelConfig.from_dict` reads them back."""
        return {**dataclasses.asdict(self), 'mlp_activations': list(self.mlp_activations)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> 'ModelConfig':
        """The inverse of `to_dict`.

        Raises:
            UserError: an unknown field, a missing field, or a value out of range.
        """
        known = {field.name: field for field in dataclasses.fields(cls)}
        for name in fields:
            if name not in known:
                near = nearest(name, known)
                raise UserError(f'ModelConfig has no field {name!r}' + (f'; did you mean {near!r}?' if near else '.'))
        for name, field in known.items():
            if annotations.is_required(field) and name not in fields:
                raise UserError(f'ModelConfig.{name} is missing. Set it in your .gin, or include a file of gin/models.')
        return cls(**fields)
