"""`t5flan adapt`: an encoder-decoder from a decoder (T5Gemma, arXiv:2504.06225; T5Gemma 2, arXiv:2512.14856).

    decoder's block           encoder's block       decoder's block: cross attention     merged attention
    self_attention            attention             self_attention                       self_attention
                                                    encoder_decoder_attention (a copy)
    mlp                       mlp                   mlp                                  mlp

With merged attention nothing is new: of an empty input the result computes the decoder's own logits.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from t5flan.conversion import convert, names
from t5flan.conversion import folder as own_folder
from t5flan.conversion.checkpoint import Checkpoint
from t5flan.errors import UserError
from t5flan.models.build import build_model
from t5flan.models.config import ENCODER_FIELDS, ModelConfig, shortest_period
from t5flan.models.parameters import named_parameters

FRESH = ('none', 'encoder', 'decoder', 'all')
_TOKENIZER_ONLY = ('config.json', 'generation_config.json')  # of Hugging Face's folder: they describe a decoder
_OUTPUT_NORM = 'encoder/encoder_norm/scale'
_READ_NORM = 'decoder/layers/pre_self_attention_layer_norm/scale'
_OPENING = 1 / 32
"""With merged attention, the encoder's output begins at this share of the size of what the decoder's layers read."""
_NORMS = {'pre_attention': 'pre_self_attention', 'post_attention': 'post_self_attention'}


class Place(NamedTuple):
    """Where an array comes from: a checkpoint, the name there, and the layers that are taken (None: not in a layer)."""

    source: Checkpoint
    name: str
    layers: Sequence[int] | None


def main(
    source: str,
    destination: str,
    *,
    encoder_from: str | None = None,
    attention: str = 'merged',
    encoder_layers: str | None = None,
    decoder_layers: str | None = None,
    fresh: str = 'none',
    add_tokens: Sequence[str] = (),
) -> None:
    """Writes the encoder-decoder as a checkpoint folder, and prints what is new in it.

    Args:
        source: the decoder, a checkpoint folder.
        destination: the new folder.
        encoder_from: another decoder with the same vocabulary, from which the encoder is built; None: `source`.
        attention: 'merged', or 'cross': cross-attention in each layer, a copy of its self-attention.
        encoder_layers, decoder_layers: which layers are taken, see `chosen_layers`; None: all.
        fresh: 'encoder' or 'decoder' draws the layers of that stack anew, 'all' every parameter, to compare with.
        add_tokens: tokens to add to the vocabulary, with rows in the embedding.

    Raises:
        UserError: a checkpoint is not a decoder, the two do not fit together, or `destination` exists.
    """
    decoder = own_folder.read(source)
    encoder = None if encoder_from is None else own_folder.read(encoder_from)
    if add_tokens:
        decoder = decoder.with_added_tokens(add_tokens)
        encoder = encoder and encoder.with_added_tokens(add_tokens)
    adapted = adapt(decoder, encoder, attention, encoder_layers, decoder_layers, fresh)
    target = convert.new_folder(destination)
    convert.write(adapted, target, 't5flan')
    count = sum(math.prod(shape.whole) for shape in names.shapes(adapted.config).values())
    config = adapted.config
    layers = f'{config.num_encoder_layers} encoder and {config.num_decoder_layers} decoder layers'
    print(f'{destination}: {count:,} parameters, {layers}, {attention} attention')
    for note in adapted.notes:
        print(f'note: {note}')


def adapt(
    decoder: Checkpoint,
    encoder: Checkpoint | None = None,
    attention: str = 'merged',
    encoder_layers: str | None = None,
    decoder_layers: str | None = None,
    fresh: str = 'none',
) -> Checkpoint:
    """The encoder-decoder as a checkpoint that reads the decoders' arrays; see `main` for the arguments.

    Raises:
        UserError: see `main`.
    """
    first = decoder if encoder is None else encoder
    for one in (decoder, first):
        _require_adaptable(one)
    if encoder is not None:
        _require_one_vocabulary(decoder, encoder)
    from_encoder = chosen_layers(encoder_layers, first.config.num_decoder_layers, '--encoder_layers')
    from_decoder = chosen_layers(decoder_layers, decoder.config.num_decoder_layers, '--decoder_layers')
    if attention == 'merged' and first.config.emb_dim != decoder.config.emb_dim:
        sizes = f'{first.where} has emb_dim={first.config.emb_dim}, {decoder.where} {decoder.config.emb_dim}'
        raise UserError(f'{sizes}: merged attention reads both with the same projections. Set --attention=cross.')
    config = _config(decoder.config, first.config, attention, from_encoder, from_decoder, encoder is None)
    places: dict[str, Place] = {}
    new = []
    for name, shape in names.shapes(config).items():
        place = _place(name, decoder, first, from_encoder, from_decoder)
        if fresh == 'all' or name.startswith(f'{fresh}/layers/'):
            continue
        if shape.one == names.shapes(place.source.config)[place.name].one:
            places[name] = place
        else:
            new.append(name)

    drawn = _drawn(config)

    def read(shape: names.Shape, layer: int | None) -> np.ndarray:
        place = places.get(shape.name)
        if shape.name == _OUTPUT_NORM and attention == 'merged' and place is not None:
            return _opening_norm(decoder, from_decoder).astype(place.source.dtypes[place.name])
        if place is None:
            return drawn(shape.name) if layer is None else drawn(shape.name)[layer]
        theirs = names.shapes(place.source.config)[place.name]
        return place.source.read(theirs, None if place.layers is None or layer is None else place.layers[layer])

    dtype = lambda place: np.dtype(np.float32) if place is None else place.source.dtypes[place.name]
    notes = decoder.notes if encoder is None else (*decoder.notes, *encoder.notes)
    if new:
        ours = f'{new[0]} and {len(new) - 1} more' if len(new) > 1 else new[0]
        fix = "train them alone first: --gin.OptimizerConfig.freeze=['(?!.*encoder_decoder_attention).*']"
        notes = (*notes, f'{ours} are drawn anew, because the encoder has another emb_dim; {fix}')
    return dataclasses.replace(
        decoder,
        config=config,
        dtypes={name: dtype(places.get(name)) for name in names.shapes(config)},
        read=read,
        format='encoder_decoder',
        step=0,
        feature_lengths={},
        extras={name: data for name, data in decoder.extras.items() if name not in _TOKENIZER_ONLY},
        notes=notes,
    )


def _opening_norm(decoder: Checkpoint, layers: Sequence[int]) -> np.ndarray:
    """The scale of the encoder's last norm where merged attention reads it.

    The decoder's own last norm is made for the logits. Its output has several times the size of what the projections
    of self-attention read, which hides the decoder's tokens: the loss of SmolLM2 rises from 4 to 15 nats. From a small
    scale, training opens the way to the encoder.
    """
    shape = names.shapes(decoder.config)[_READ_NORM]
    one = 1.0 if decoder.config.norm_scale_plus_one else 0.0
    scales = [np.asarray(decoder.read(shape, layer), np.float32) + one for layer in layers]
    return np.asarray(_OPENING * np.mean(scales, axis=0) - one)


def _require_adaptable(checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    if config.architecture != 'decoder_only':
        raise UserError(f'{checkpoint.where} is an encoder-decoder already. Give the checkpoint of a decoder.')
    if config.position == 'relative_bias':
        problem = f"{checkpoint.where}: ModelConfig.position='relative_bias', whose decoders know no later tokens"
        raise UserError(f"{problem}. Give a decoder with position='rope' or 'none'.")
    if config.parallel_block:
        problem = f'{checkpoint.where}: ModelConfig.parallel_block=True, but blocks of an encoder-decoder are not'
        raise UserError(f'{problem}. Give a decoder without.')


def _require_one_vocabulary(decoder: Checkpoint, encoder: Checkpoint) -> None:
    theirs = [one.vocabulary.fingerprint for one in (decoder, encoder)]
    if theirs[0] != theirs[1]:
        problem = f'{encoder.where} and {decoder.where} have different vocabularies'
        raise UserError(f'{problem}. Give two decoders with the same tokenizer.')
    rows = [one.config.vocab_size for one in (decoder, encoder)]
    if rows[0] != rows[1]:
        problem = f'{encoder.where} has {rows[1]:,} rows in its embedding, {decoder.where} {rows[0]:,}'
        raise UserError(f'{problem}. Give two decoders with embeddings of one size.')
    positions = [one.config.position for one in (decoder, encoder)]
    if positions[0] != positions[1]:
        problem = f'ModelConfig.position is {positions[1]!r} in {encoder.where}, {positions[0]!r} in {decoder.where}'
        raise UserError(f'{problem}. Give two decoders with the same.')


def chosen_layers(given: str | None, layers: int, flag: str) -> list[int]:
    """The layers that are taken: all, so many in even steps from the first to the last, or those of a list.

    >>> chosen_layers('3', 9, '--encoder_layers'), chosen_layers('0,1,8', 9, '--encoder_layers')
    ([0, 4, 8], [0, 1, 8])

    Raises:
        UserError: they are not in order, or the decoder does not have them.
    """
    if given is None:
        return list(range(layers))
    parts = [part.strip() for part in given.split(',')]
    expected = f'a number from 1 to {layers}, or layers from 0 to {layers - 1} in order, such as 0,1,2'
    if all(part.isdecimal() for part in parts):
        numbers = [int(part) for part in parts]
        if len(numbers) == 1 and 1 <= numbers[0] <= layers:
            steps = max(numbers[0] - 1, 1)
            return [round(i * (layers - 1) / steps) for i in range(numbers[0])]
        if len(numbers) > 1 and numbers == sorted(set(numbers)) and numbers[-1] < layers:
            return numbers
    raise UserError(f'{flag}={given}, expected {expected}.')


def _config(
    decoder: ModelConfig,
    encoder: ModelConfig,
    attention: str,
    from_encoder: Sequence[int],
    from_decoder: Sequence[int],
    shared: bool,
) -> ModelConfig:
    """The configuration of the result."""
    of_encoder = {name: getattr(encoder, name) for name in ENCODER_FIELDS} | _pattern(encoder, from_encoder)
    return dataclasses.replace(
        decoder,
        architecture='encoder_decoder',
        num_encoder_layers=len(from_encoder),
        num_decoder_layers=len(from_decoder),
        merged_attention=attention == 'merged',
        share_embeddings=shared,
        encoder=of_encoder,
        **_pattern(decoder, from_decoder),
    )


def _pattern(config: ModelConfig, layers: Sequence[int]) -> dict[str, Any]:
    """The settings that say how the chosen layers differ from each other."""
    if config.layer_pattern is None:
        return {}
    pattern = shortest_period([config.layer_pattern[i % len(config.layer_pattern)] for i in layers])
    found: dict[str, Any] = {'layer_pattern': None if pattern in (('full',), ('window',)) else pattern}
    if not any('window' in name for name in pattern):
        found |= {'attention_window': None, 'rope_local_base': None}
    return found


def _place(
    name: str, decoder: Checkpoint, encoder: Checkpoint, from_encoder: Sequence[int], from_decoder: Sequence[int]
) -> Place:
    """Where a parameter of the encoder-decoder comes from."""
    side, _, rest = name.partition('/')
    if side != 'encoder':
        rest = name.replace('encoder_decoder_attention', 'self_attention').replace('_cross_', '_self_')
        return Place(decoder, rest, from_decoder if '/layers/' in name else None)
    if rest == 'encoder_norm/scale':
        return Place(encoder, 'decoder/decoder_norm/scale', None)
    if rest.startswith('token_embedder/'):
        return Place(encoder, rest, None)
    rest = rest.replace('layers/attention/', 'layers/self_attention/')
    for ours, theirs in _NORMS.items():
        rest = rest.replace(f'layers/{ours}_', f'layers/{theirs}_')
    return Place(encoder, f'decoder/{rest}', from_encoder)


def _drawn(config: ModelConfig) -> Callable[[str], np.ndarray]:
    """Name -> the parameter as a new model has it, with its axis of layers."""

    @functools.lru_cache(maxsize=1)  # its layers are read one after the other
    def parameter(name: str) -> np.ndarray:
        draw = jax.jit(lambda: named_parameters(build_model(config, jax.random.key(0)))[name])
        return np.asarray(draw())

    return parameter
