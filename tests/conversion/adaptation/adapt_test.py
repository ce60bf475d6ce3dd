"""Encoder-decoders from decoders: what is copied, the exact property, and what is refused."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from t5flan.conversion import convert
from t5flan.conversion.adaptation.adapt import adapt, chosen_layers, main
from t5flan.errors import UserError
from t5flan.models.build import abstract_model, build_model
from t5flan.models.config import ModelConfig
from t5flan.models.parameters import named_parameters, replace_parameters

GOLDEN = Path(__file__).parent.parent / 'golden'


def arrays_of(checkpoint):
    parts = {}
    for shape, layer, array in checkpoint.pieces():
        parts.setdefault(shape.name, []).append(np.asarray(array, np.float32) if layer is None else array[None])
    return {name: np.concatenate(x) for name, x in parts.items()}


def logits_of(checkpoint, batch):
    model = replace_parameters(abstract_model(checkpoint.config), arrays_of(checkpoint))
    return np.asarray(jax.jit(lambda model, batch: model(batch))(model, batch))


@pytest.fixture
def decoder():
    return lambda family, **fields: dataclasses.replace(
        read := convert.read(GOLDEN / family, 'hf'), config=dataclasses.replace(read.config, **fields)
    )


@pytest.mark.parametrize('family', ['llama', pytest.param('gemma3_linear', marks=pytest.mark.slow), 'smollm3'])
def test_of_an_empty_input_merged_attention_computes_the_decoders_logits(family, decoder):
    source = decoder(family)
    adapted = adapt(source)
    tokens_BT = np.random.default_rng(0).integers(3, source.config.vocab_size, (2, 12)).astype(np.int32)
    empty = {'encoder_input_tokens': np.zeros((2, 5), np.int32), 'decoder_input_tokens': tokens_BT}
    expected = logits_of(source, {'decoder_input_tokens': tokens_BT})
    np.testing.assert_allclose(logits_of(adapted, empty), expected, atol=1e-4, rtol=0)
    other = logits_of(adapted, {'encoder_input_tokens': tokens_BT[:, :5], 'decoder_input_tokens': tokens_BT})
    assert np.abs(other - expected).max() > 1e-2  # an input is read


def test_blocks_are_copied_to_both_stacks_and_to_cross_attention(decoder):
    source = decoder('gemma3_linear')
    theirs, ours = arrays_of(source), arrays_of(adapt(source, attention='cross'))
    for name, array in ours.items():
        copied = name.replace('encoder_decoder_attention', 'self_attention').replace('_cross_', '_self_')
        copied = copied.replace('layers/attention/', 'layers/self_attention/').replace('encoder', 'decoder')
        for when in ('pre', 'post'):
            copied = copied.replace(f'layers/{when}_attention', f'layers/{when}_self_attention')
        np.testing.assert_array_equal(array, theirs[copied], name)
    assert sum('encoder_decoder_attention' in name for name in ours) == 6  # four kernels and two norms of heads
    merged = adapt(source)
    assert merged.config.merged_attention and not any('encoder_decoder' in name for name in arrays_of(merged))
    assert merged.config.share_embeddings and merged.format == 'encoder_decoder'
    assert merged.vocabulary is source.vocabulary


def test_layers_are_chosen_with_their_kind(decoder):
    source = decoder('gemma3_linear')
    layers, pattern = source.config.num_decoder_layers, source.config.layer_pattern
    full = [i for i in range(layers) if pattern[i % len(pattern)] == 'full']
    adapted = adapt(source, encoder_layers='1', decoder_layers=','.join(map(str, range(layers))))
    assert (adapted.config.num_encoder_layers, adapted.config.num_decoder_layers) == (1, layers)
    np.testing.assert_array_equal(
        arrays_of(adapted)['encoder/layers/mlp/wo/kernel'][0], arrays_of(source)['decoder/layers/mlp/wo/kernel'][0]
    )
    assert full and chosen_layers(None, 3, '') == [0, 1, 2]
    encoder = adapted.config.encoder_config
    assert encoder.layer_kinds[0] == source.config.layer_kinds[0]


@pytest.mark.parametrize('fresh', ['encoder', 'decoder', 'all'])
def test_fresh_parameters_are_those_of_a_new_model_and_the_others_are_copied(fresh, decoder):
    source = decoder('llama')
    found, copied = arrays_of(adapt(source, fresh=fresh)), arrays_of(adapt(source))
    config = adapt(source).config
    new = named_parameters(jax.jit(lambda: build_model(config, jax.random.key(0)))())
    assert found.keys() == new.keys()
    for name, array in found.items():
        is_new = fresh == 'all' or name.startswith(f'{fresh}/layers/')
        np.testing.assert_allclose(array, new[name] if is_new else copied[name], atol=1e-6, err_msg=name)
        assert name.endswith('/scale') or np.array_equal(array, copied[name]) != is_new, name


@pytest.mark.parametrize('given', ['0', '5', '-1', 'a', '', '1,0', '0,0', '0,4', '1.5'])
def test_layers_that_are_not_there_are_refused(given):
    with pytest.raises(UserError, match=r'--encoder_layers=.*, expected a number from 1 to 4, or layers from 0 to 3'):
        chosen_layers(given, 4, '--encoder_layers')


def wider(checkpoint, **fields):
    """A decoder of another shape with the same vocabulary; its arrays are zeros."""
    config = dataclasses.replace(checkpoint.config, **fields)
    read = lambda shape, layer: np.zeros(shape.one, checkpoint.dtypes[shape.name])
    return dataclasses.replace(checkpoint, where='wider', config=config, read=read)


def test_two_decoders_of_different_sizes(decoder):
    source = decoder('llama')
    other = wider(source, emb_dim=source.config.emb_dim + 8, mlp_dim=5)
    adapted = adapt(source, other, 'cross')
    config = adapted.config
    assert not config.share_embeddings and config.encoder_config.mlp_dim == 5
    arrays = arrays_of(adapted)
    assert arrays['encoder/token_embedder/embedding'].shape[1] == source.config.emb_dim + 8
    assert arrays['decoder/layers/encoder_decoder_attention/key/kernel'].any()  # drawn anew
    query = arrays['decoder/layers/encoder_decoder_attention/query/kernel']
    np.testing.assert_array_equal(query, arrays['decoder/layers/self_attention/query/kernel'])
    assert 'key/kernel and 1 more are drawn anew' in adapted.notes[-1] and 'OptimizerConfig.freeze' in adapted.notes[-1]
    with pytest.raises(UserError, match='merged attention reads both with the same projections. Set --attention=cross'):
        adapt(source, other)


def test_what_does_not_fit_is_refused_in_one_line(decoder, tmp_path):
    source = decoder('llama')
    with pytest.raises(UserError, match='is an encoder-decoder already'):
        adapt(convert.read(GOLDEN / 't5_1_1', 'hf'))
    with pytest.raises(UserError, match="position='relative_bias', whose decoders know no later tokens"):
        adapt(decoder('llama', position='relative_bias'))
    with pytest.raises(UserError, match='parallel_block=True, but blocks of an encoder-decoder are not'):
        adapt(decoder('llama', parallel_block=True))
    with pytest.raises(UserError, match='rows in its embedding'):
        adapt(source, wider(source, vocab_size=source.config.vocab_size + 64))
    with pytest.raises(UserError, match="ModelConfig.position is 'none' in wider, 'rope' in"):
        adapt(source, wider(source, position='none'))


def test_the_folder_is_whole_and_never_replaces_another(decoder, tmp_path, capsys):
    convert.write(decoder('llama'), tmp_path / 'decoder', 't5flan')
    main(str(tmp_path / 'decoder'), str(tmp_path / 'adapted'), decoder_layers='1')
    assert '2 encoder and 1 decoder layers, merged attention' in capsys.readouterr().out
    again = convert.read(tmp_path / 'adapted', 't5flan')
    assert isinstance(again.config, ModelConfig) and again.config.num_decoder_layers == 1
    with pytest.raises(UserError, match='exists already'):
        main(str(tmp_path / 'decoder'), str(tmp_path / 'adapted'))


@pytest.mark.parametrize('family, one', [('llama', 0.0), ('gemma3_linear', 1.0)])
def test_merged_attention_begins_with_little_of_the_encoder(family, one, decoder):
    """With cross-attention the last norm is a copy; with merged attention it has the size that the layers read."""
    source = decoder(family)
    theirs, merged = arrays_of(source), arrays_of(adapt(source))
    layers = theirs['decoder/layers/pre_self_attention_layer_norm/scale'].astype(np.float32) + one
    np.testing.assert_allclose(merged['encoder/encoder_norm/scale'] + one, layers.mean(0) / 32, rtol=1e-2, atol=1e-6)
    crossed = arrays_of(adapt(source, attention='cross'))['encoder/encoder_norm/scale']
    np.testing.assert_array_equal(crossed, theirs['decoder/decoder_norm/scale'])
