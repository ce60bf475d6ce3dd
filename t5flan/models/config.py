"""The configuration of a model: every model family is a choice of settings, never a fork of the code."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from t5flan.config import annotations
from t5flan.config.checks import BelowOne, Count, CountFrom0, Positive, check_limits, require
from t5flan.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies change so that a model reads longer rows, in the words of Hugging Face's config.json.

    Attributes:
        rope_type: 'linear': all frequencies are divided by `factor` (arXiv:2306.15595). 'llama3': only those of long
            wavelengths (arXiv:2407.21783). 'yarn': by the number of rotations, and logits grow (arXiv:2309.00071).
        factor: how much longer rows become.
        original_max_position_embeddings: the length before; required by 'llama3' and 'yarn'.
        low_freq_factor: 'llama3': a frequency with fewer rotations over the original length is divided.
        high_freq_factor: 'llama3': one with more rotations is kept; between both it is interpolated.
        beta_fast: 'yarn': rotations from which a frequency is kept.
        beta_slow: 'yarn': rotations up to which it is divided.
        attention_factor: 'yarn': of queries and keys; None computes it from `factor`.
        mscale: 'yarn': with `mscale_all_dim`, another way to compute the attention factor (DeepSeek).
        mscale_all_dim: see `mscale`.
        truncate: 'yarn': the bounds of the ramp are whole numbers.
    """

    rope_type: Literal['linear', 'llama3', 'yarn']
    factor: float
    original_max_position_embeddings: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    IN_WORDS = "dict such as {'rope_type': 'linear', 'factor': 8.0}"

    def __post_init__(self) -> None:
        fit_fields(self, 'ModelConfig.rope_scaling')
        for name in ('factor', 'low_freq_factor', 'beta_slow'):
            self._require(getattr(self, name) > 0, name, 'a number above 0')
        if self.rope_type != 'linear':
            length = self.original_max_position_embeddings
            self._require(length is not None and length > 0, 'original_max_position_embeddings', 'a number above 0')
        more = f'more than low_freq_factor={self.low_freq_factor}'
        self._require(self.high_freq_factor > self.low_freq_factor, 'high_freq_factor', more)
        self._require(self.beta_fast > self.beta_slow, 'beta_fast', f'more than beta_slow={self.beta_slow}')

    def _require(self, holds: bool, field: str, expected: str) -> None:
        require(holds, f'ModelConfig.rope_scaling.{field}', getattr(self, field), expected)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> 'RopeScaling':
        """The scaling that a dict describes; fields of other types of scaling are ignored if None.

        Raises:
            UserError: an unknown field or type, a missing field, or a value out of range.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                raise UserError(f'ModelConfig.rope_scaling has {name!r}; expected fields of {", ".join(known)}.')
        for name in ('rope_type', 'factor'):
            require(name in fields, f'ModelConfig.rope_scaling.{name}', None, 'a value')
        return cls(**fields)

    @property
    def magnitude(self) -> float:
        """The factor of rotated queries and of rotated keys."""
        if self.rope_type != 'yarn':
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        grown = lambda scale: 1.0 if self.factor <= 1.0 else 0.1 * scale * math.log(self.factor) + 1.0
        return grown(self.mscale) / grown(self.mscale_all_dim) if self.mscale and self.mscale_all_dim else grown(1.0)


class LayerKind(NamedTuple):
    """What may differ between the layers of a stack.

    Attributes:
        window: keys at this distance or more are hidden; None: none are.
        rotary: queries and keys are rotated.
        rope_base: base of the rotary frequencies.
        rope_scaling: of the rotary frequencies, or None.
        window_ahead: in an encoder, how many keys after a query the window holds; None: as many as before it.
    """

    window: int | None
    rotary: bool
    rope_base: float
    rope_scaling: RopeScaling | None
    window_ahead: int | None = None

    def seen(self, bidirectional: bool) -> int | tuple[int, int] | None:
        """The window as `attend()` takes it."""
        if self.window is None or self.window_ahead is None or not bidirectional:
            return self.window
        return self.window - 1, self.window_ahead


class FrozenDict(dict[str, Any]):
    """A dict that nobody changes, so that it has a hash."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


ENCODER_FIELDS = (
    'emb_dim',
    'num_heads',
    'head_dim',
    'mlp_dim',
    'num_kv_heads',
    'scale_attention',
    'query_pre_attn_scalar',
    'attention_soft_cap',
    'attention_bias',
    'attention_out_bias',
    'qk_norm',
    'attention_window',
    'attention_window_ahead',
    'layer_pattern',
    'rope_base',
    'rope_local_base',
    'rope_scaling',
    'mlp_activations',
    'norm',
    'post_norms',
    'norm_epsilon',
    'norm_scale_plus_one',
    'scale_embedding',
)
"""Fields of ModelConfig in which an encoder may differ from its decoder."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The configuration of one Transformer. Names are T5X's where T5X has one; defaults are T5 1.1's.

    | family     | position      | mlp_activations  | norm  | further settings                                         |
    |------------|---------------|------------------|-------|----------------------------------------------------------|
    | T5 1.0     | relative_bias | relu             | rms   | tie_embeddings                                           |
    | T5 1.1     | relative_bias | gelu, linear     | rms   |                                                          |
    | UMT5       | relative_bias | gelu, linear     | rms   | relative_bias_per_layer                                  |
    | LongT5     | relative_bias | gelu, linear     | rms   | encoder={'attention_window': ...} (local attention)      |
    | PaLM       | rope          | silu, linear     | layer | tie_embeddings, parallel_block, num_kv_heads=1, ...      |
    | Llama 2    | rope          | silu, linear     | rms   | scale_attention                                          |
    | Gemma      | rope          | gelu, linear     | rms   | norm_scale_plus_one, scale_embedding, tied, unscaled     |
    | Gemma 2    | as Gemma      |                  |       | layer_pattern, attention_window, post_norms, soft caps   |
    | Gemma 3    | as Gemma      |                  |       | layer_pattern, rope_local_base, post_norms, qk_norm      |
    | Llama 3    | as Llama 2    |                  |       | rope_scaling                                             |
    | Mistral    | as Llama 2    |                  |       | attention_window                                         |
    | Qwen 2     | as Llama 2    |                  |       | attention_bias                                           |
    | Qwen 3     | as Llama 2    |                  |       | qk_norm                                                  |
    | SmolLM 3   | as Llama 2    |                  |       | layer_pattern                                            |
    | T5Gemma    | as Gemma 2    |                  |       | encoder_decoder, share_embeddings=False                  |
    | T5Gemma 2  | as Gemma 3    |                  |       | encoder_decoder, merged_attention, unscaled_token, ...   |

    Attributes:
        architecture: 'encoder_decoder' or 'decoder_only'.
        vocab_size: tokens in the embedding and the logits, at least those of the vocabulary.
        emb_dim: size of hidden states.
        num_heads: query heads.
        head_dim: size of a head.
        mlp_dim: inner size of the MLP.
        num_decoder_layers: layers of the decoder.
        num_encoder_layers: layers of the encoder; 0 for a decoder_only model.
        encoder: a dict of the settings in which the encoder differs from the decoder, such as {'emb_dim': 512}; those
            of `ENCODER_FIELDS` may. None: it differs in none.
        share_embeddings: encoder and decoder read one table of token embeddings (T5). False: the encoder has its own
            (T5Gemma), which may have another emb_dim.
        num_kv_heads: key-value heads. None: as many as num_heads; 1: multi-query; between: grouped-query.
        scale_attention: True: logits x head_dim^-0.5. False, as in T5: that factor is in the initializer of the query.
        query_pre_attn_scalar: with scale_attention: logits x query_pre_attn_scalar^-0.5 instead of head_dim^-0.5.
        attention_soft_cap: attention logits become cap * tanh(logits / cap); None for no cap.
        attention_bias: the projections of queries, keys and values have a bias (Qwen 2).
        attention_out_bias: the projection of the output of attention has one.
        qk_norm: an RMS norm of each head's queries and keys, before they are rotated (Qwen 3, Gemma 3).
        merged_attention: the decoder's self-attention reads the encoder's output too, in one softmax and with the same
            projections, in place of cross-attention (T5Gemma 2). The encoder's output has no positions there, and a
            window does not hide it.
        attention_window: a token sees only those at a distance less than this, in 'window' layers; None for no window.
        attention_window_ahead: of an encoder: a token sees so many tokens after it in 'window' layers (T5Gemma 2);
            None: as many as before it. A decoder sees none.
        layer_pattern: how layers differ, over and over from the first: 'full' attention, 'window', 'nope' (full and
            without positions) or 'window_nope'. None: all alike, with the attention_window if there is one.
        attention: the implementation of `attend()`; 'auto' chooses one for the device and the lengths.
        position: how positions enter: T5's relative bias, rotary embeddings, or not at all.
        relative_buckets: buckets of distances of the relative bias.
        relative_max_distance: the distance from which keys share the last bucket.
        relative_bias_per_layer: True: a bias table for each layer (UMT5). False: one for the stack (T5).
        relative_bias_init: variance scale of the initial bias table; larger, small models learn positions sooner.
        rope_base: base of the rotary frequencies.
        rope_local_base: that of 'window' layers, which rope_scaling does not change then (Gemma 3); None: rope_base.
        rope_scaling: a dict of Hugging Face's config.json that scales the rotary frequencies, see `RopeScaling`.
        mlp_activations: one projection for each, multiplied; 'gelu' is the tanh approximation.
        parallel_block: attention and MLP read the same normed input (PaLM).
        norm: 'rms', or 'layer' without bias (PaLM).
        post_norms: the output of each sub-layer is normed too, before it is added (Gemma 2).
        norm_epsilon: added to the variance.
        norm_scale_plus_one: the parameter is the scale minus 1 (Gemma).
        tie_embeddings: compute logits with the token embedding, that of the decoder.
        scale_tied_logits: with tie_embeddings: logits x emb_dim^-0.5 (T5 1.0, PaLM).
        scale_embedding: embedded tokens x emb_dim^0.5 (Gemma).
        unscaled_token: the id of a token whose embedding is a vector of its own, which scale_embedding does not change
            (the end of an image in T5Gemma 2); its row of the table serves the logits only. None: no such token.
        logits_soft_cap: as attention_soft_cap, for the output logits.
        dropout_rate: during training; 0 turns dropout off.
        dtype: of the computation; parameters, softmax, norms and logits are float32.
        scan_layers: True compiles one layer and scans over the stack; False unrolls the loop over the same parameters;
            None scans stacks of more than two layers. Shorter ones compile and run faster in a loop: a scan stacks what
            the backward pass needs.
        remat: what the backward pass recomputes: nothing ('none'), all but the outputs of projections and attention
            ('minimal'; on TPUs and GPUs it also recomputes the inner projections of the MLP and the keys and values of
            the encoder's output), or everything ('full').
    """

    architecture: Literal['encoder_decoder', 'decoder_only']
    vocab_size: Count
    emb_dim: Count
    num_heads: Count
    head_dim: Count
    mlp_dim: Count
    num_decoder_layers: Count
    num_encoder_layers: CountFrom0 = 0
    encoder: Mapping[str, Any] | None = None
    share_embeddings: bool = True

    num_kv_heads: int | None = None
    scale_attention: bool = False
    query_pre_attn_scalar: Positive | None = None
    attention_soft_cap: Positive | None = None
    attention_bias: bool = False
    attention_out_bias: bool = False
    qk_norm: bool = False
    merged_attention: bool = False
    attention_window: int | None = None
    attention_window_ahead: CountFrom0 | None = None
    layer_pattern: tuple[Literal['full', 'window', 'nope', 'window_nope'], ...] | None = None
    attention: Literal['auto', 'xla', 'chunked', 'flash_tpu', 'flash_gpu'] = 'auto'

    position: Literal['relative_bias', 'rope', 'none'] = 'relative_bias'
    relative_buckets: Count = 32
    relative_max_distance: Count = 128
    relative_bias_per_layer: bool = False
    relative_bias_init: Positive = 1.0
    rope_base: Positive = 10000.0
    rope_local_base: Positive | None = None
    rope_scaling: RopeScaling | Mapping[str, Any] | None = None

    mlp_activations: tuple[Literal['gelu', 'relu', 'silu', 'linear'], ...] = ('gelu', 'linear')
    parallel_block: bool = False
    norm: Literal['rms', 'layer'] = 'rms'
    post_norms: bool = False
    norm_epsilon: Positive = 1e-6
    norm_scale_plus_one: bool = False

    tie_embeddings: bool = False
    scale_tied_logits: bool = True
    scale_embedding: bool = False
    unscaled_token: CountFrom0 | None = None
    logits_soft_cap: Positive | None = None

    # None of these changes what the parameters mean.
    dropout_rate: BelowOne = 0.0
    dtype: Literal['bfloat16', 'float32', 'float16'] = 'bfloat16'
    scan_layers: bool | None = None
    remat: Literal['none', 'minimal', 'full'] = 'none'

    def __post_init__(self) -> None:
        fit_fields(self, 'ModelConfig')
        if isinstance(self.rope_scaling, Mapping):
            object.__setattr__(self, 'rope_scaling', RopeScaling.from_dict(self.rope_scaling))
        self._check_sizes()
        self._check_combinations()
        self._check_layers()
        self._check_encoder()

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
        scaled = self.query_pre_attn_scalar is None or self.scale_attention
        self._require(scaled, 'query_pre_attn_scalar', 'None with scale_attention=False')
        self._require(not (self.post_norms and self.parallel_block), 'post_norms', 'False with parallel_block')

    def _check_layers(self) -> None:
        window, pattern = self.attention_window, self.layer_pattern
        self._require(window is None or window > 0, 'attention_window', 'a number above 0, or None for no window')
        self._require(pattern is None or len(pattern) > 0, 'layer_pattern', 'at least one layer, or None')
        windows = any('window' in name for name in pattern or ())
        self._require(not windows or window is not None, 'attention_window', "a number for layer_pattern's windows")
        unread = 'None, because layer_pattern has no window'
        self._require(window is None or pattern is None or windows, 'attention_window', unread)
        if window is not None and self.attention_window_ahead == window - 1:
            object.__setattr__(self, 'attention_window_ahead', None)  # as far as before: one spelling
        ahead = self.attention_window_ahead is None or (window is not None and self.architecture == 'encoder_decoder')
        self._require(ahead, 'attention_window_ahead', "None without an encoder's attention_window")
        rotary = f'None with position={self.position!r}'
        for name in ('rope_local_base', 'rope_scaling'):
            self._require(self.position == 'rope' or getattr(self, name) is None, name, rotary)
        local = self.rope_local_base is None or window is not None
        self._require(local, 'rope_local_base', 'None without attention_window')
        nope = any('nope' in name for name in pattern or ())
        self._require(not nope or self.position == 'rope', 'layer_pattern', "no 'nope' without position='rope'")

    def _check_encoder(self) -> None:
        if self.architecture == 'decoder_only':
            self._require(self.encoder is None, 'encoder', 'None for a decoder_only model')
            self._require(self.share_embeddings, 'share_embeddings', 'True for a decoder_only model')
            self._require(not self.merged_attention, 'merged_attention', 'False for a decoder_only model')
        for name in self.encoder or ():
            if name not in ENCODER_FIELDS:
                raise UserError(f'ModelConfig.encoder has {name!r}; expected fields of {", ".join(ENCODER_FIELDS)}.')
        try:
            encoder = self.encoder_config
        except UserError as error:
            raise UserError(f'ModelConfig.encoder: {error}') from None
        names = [name for name in ENCODER_FIELDS if getattr(encoder, name) != getattr(self, name)]
        differing = FrozenDict({name: getattr(encoder, name) for name in names})
        object.__setattr__(self, 'encoder', differing or None)
        alike = self.emb_dim == encoder.emb_dim and self.scale_embedding == encoder.scale_embedding
        own = 'False, because emb_dim or scale_embedding of the encoder differs'
        self._require(alike or not self.share_embeddings, 'share_embeddings', own)
        if self.merged_attention:
            rotary = "False with position='relative_bias', which has no distance to the encoder's output"
            self._require(self.position != 'relative_bias', 'merged_attention', rotary)
            wider = 'False, because emb_dim of the encoder differs'
            self._require(self.emb_dim == encoder.emb_dim, 'merged_attention', wider)

    def _require(self, holds: bool, field: str, expected: str) -> None:
        require(holds, f'ModelConfig.{field}', getattr(self, field), expected)

    @property
    def encoder_config(self) -> 'ModelConfig':
        """The configuration of the encoder's layers: this one, with the changes of `encoder`."""
        return dataclasses.replace(self, encoder=None, **self.encoder) if self.encoder else self

    @property
    def has_cross_attention(self) -> bool:
        """Whether the decoder has cross-attention: a sub-layer of its own that reads the encoder's output."""
        return self.architecture == 'encoder_decoder' and not self.merged_attention

    @property
    def kv_heads(self) -> int:
        """The number of key-value heads: `num_kv_heads`, or `num_heads` if that is None."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def kernel_size(self) -> int:
        """The parameters of embeddings, projections and position tables: nearly all of them."""
        encoder, across = self.encoder_config, 0
        if self.has_cross_attention:
            across = 2 * self.head_dim * (self.emb_dim * self.num_heads + encoder.emb_dim * self.kv_heads)
        layers = self.num_decoder_layers * (self._block_size + across) + self.num_encoder_layers * encoder._block_size
        tables = self.num_decoder_layers if self.relative_bias_per_layer else 1
        bias = tables * self.relative_buckets * self.num_heads if self.position == 'relative_bias' else 0
        embeddings = self.emb_dim * (1 if self.tie_embeddings else 2)
        embeddings += 0 if self.share_embeddings else encoder.emb_dim
        return bias + layers + self.vocab_size * embeddings

    @property
    def _block_size(self) -> int:
        """The kernels of self-attention and MLP of a layer."""
        attention = 2 * self.head_dim * (self.num_heads + self.kv_heads)
        return self.emb_dim * (attention + (len(self.mlp_activations) + 1) * self.mlp_dim)

    @property
    def itemsize(self) -> int:
        """Bytes of a number in `dtype`."""
        return 4 if self.dtype == 'float32' else 2

    @property
    def attention_scale(self) -> float:
        """The factor of attention logits."""
        return (self.query_pre_attn_scalar or self.head_dim) ** -0.5 if self.scale_attention else 1.0

    @property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """The kinds of layers in turn, over and over from the first layer: one if all are alike."""
        pattern = self.layer_pattern or ('full' if self.attention_window is None else 'window',)
        return tuple(map(self._kind, shortest_period(pattern)))

    def _kind(self, name: str) -> LayerKind:
        windowed, scaling = 'window' in name, self.rope_scaling
        assert scaling is None or isinstance(scaling, RopeScaling)  # since __post_init__
        rotary = self.position == 'rope' and 'nope' not in name
        if windowed and self.rope_local_base is not None:
            return LayerKind(self.attention_window, rotary, self.rope_local_base, None, self.attention_window_ahead)
        window, ahead = (self.attention_window, self.attention_window_ahead) if windowed else (None, None)
        return LayerKind(window, rotary, self.rope_base, scaling, ahead)

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON types; `ModelConfig.from_dict` reads them back."""
        return _as_json(dataclasses.asdict(self))

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


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_json(one) for name, one in value.items()}
    return [_as_json(one) for one in value] if isinstance(value, tuple) else value


def fit_fields(settings: Any, name: str) -> None:
    """Converts the fields of a frozen dataclass to their annotations: an int to a float, a list to a tuple.

    Raises:
        UserError: a value does not fit; `name` is that of the settings.
    """
    cls: type = type(settings)
    for field, annotation in annotations.fields(cls):
        given = getattr(settings, field.name)
        try:
            object.__setattr__(settings, field.name, annotations.fit(given, annotation))
        except annotations.Mismatch:
            require(False, f'{name}.{field.name}', given, annotations.describe(annotation))


def shortest_period(pattern: Sequence[Any]) -> tuple[Any, ...]:
    """The shortest beginning of a sequence that, repeated, is the sequence (the last time perhaps in part).

    >>> shortest_period('aabaabaa')
    ('a', 'a', 'b')
    """
    for period in range(1, len(pattern)):
        if all(pattern[i] == pattern[i % period] for i in range(len(pattern))):
            return tuple(pattern[:period])
    return tuple(pattern)
