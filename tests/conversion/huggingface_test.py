"""Hugging Face folders: tied and copied embeddings, options of config.json, and the error for each broken folder."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from t5flan.conversion import convert, huggingface, names
from t5flan.conversion.safetensors_files import FolderWriter, read_folder
from t5flan.errors import UserError
from tests.vocabulary import small_vocabulary_model

GOLDEN = Path(__file__).parent / 'golden'


@pytest.fixture
def folder(tmp_path):
    """Copies a golden folder with its config and arrays changed."""

    def make(family: str, config: dict | None = None, arrays=None) -> Path:
        made = tmp_path / f'{family}_{len(list(tmp_path.iterdir()))}'
        made.mkdir()
        fields = json.loads((GOLDEN / family / 'config.json').read_text()) | (config or {})
        (made / 'config.json').write_text(
            json.dumps({name: value for name, value in fields.items() if value is not ...})
        )
        held = {name: stored.read() for name, stored in read_folder(GOLDEN / family).items()}
        held = held if arrays is None else arrays(held)
        writer = FolderWriter(made, {name: (x.shape, x.dtype) for name, x in held.items()}, 10**9)
        for name, array in held.items():
            writer.write(name, array)
        writer.close()
        return made

    return make


def test_embeddings_are_tied_where_the_numbers_say_so(folder):
    untied = folder('t5_1_1', {'tie_word_embeddings': True})  # as transformers 5 writes it
    assert not convert.read(untied, 'hf').config.tie_embeddings
    tied = folder(
        't5_1_0',
        arrays=lambda held: (
            held | {'lm_head.weight': held['shared.weight'], 'encoder.embed_tokens.weight': held['shared.weight']}
        ),
    )
    config = convert.read(tied, 'hf').config
    assert config.tie_embeddings and config.scale_tied_logits
    unscaled = folder('t5_1_0', {'scale_decoder_outputs': False})
    assert not convert.read(unscaled, 'hf').config.scale_tied_logits
    with pytest.raises(UserError, match='scale_decoder_outputs is true, but lm_head.weight differs'):
        convert.read(folder('t5_1_1', {'scale_decoder_outputs': True}), 'hf')


@pytest.mark.parametrize(
    'given, scaled',
    [
        ({'tie_word_embeddings': True}, True),
        ({'tie_word_embeddings': True, 'scale_decoder_outputs': False}, False),  # as transformers 5.24 writes it
        ({'tie_word_embeddings': ..., 'scale_decoder_outputs': True}, True),
    ],
)
def test_logits_of_a_tied_umt5_are_scaled_where_the_file_says_so(given, scaled, folder, tmp_path):
    tied = lambda held: {name: array for name, array in held.items() if name != 'lm_head.weight'}
    source = convert.read(folder('umt5', given, arrays=tied), 'hf')
    assert source.config.tie_embeddings and source.config.scale_tied_logits == scaled
    convert.write(source, tmp_path / 'hf', 'hf')
    assert convert.read(tmp_path / 'hf', 'hf').config == source.config
    with pytest.raises(UserError, match='scale_decoder_outputs is true, but lm_head.weight differs'):
        convert.read(folder('umt5', {'scale_decoder_outputs': True}), 'hf')


@pytest.mark.parametrize(
    'family, config', [('t5_1_1', {'tie_word_embeddings': False}), ('llama', {'tie_word_embeddings': ...})]
)
def test_logits_of_their_own_must_be_there(folder, family, config):
    """A T5Model saved without its head, and a Llama, which is untied unless its config.json says otherwise."""
    without = lambda held: {name: x for name, x in held.items() if name != 'lm_head.weight'}
    with pytest.raises(UserError, match='not tied to the embedding, but lm_head.weight is missing') as error:
        convert.read(folder(family, config, without), 'hf')
    assert '\n' not in str(error.value)


def test_a_tokenizer_with_more_ids_than_rows_is_refused(folder, tmp_path):
    small_vocabulary_model(tmp_path / 'spiece.model')  # 318 ids with its sentinels
    made = folder('t5_1_1')
    shutil.copy(tmp_path / 'spiece.model', made / 'spiece.model')
    rows = json.loads((made / 'config.json').read_text())['vocab_size']
    with pytest.raises(UserError, match=rf'ids, but the embedding has {rows} rows. (Set .extra_ids|Resize)') as error:
        convert.read(made, 'hf')
    assert '\n' not in str(error.value)


def test_an_embedding_with_only_its_second_name_is_found(folder):
    def renamed(held):
        held['decoder.embed_tokens.weight'] = held.pop('shared.weight')
        return held | {names.HF_T5_UNREAD[0]: np.zeros((8, 3), np.float32)}

    made = convert.read(folder('t5_1_0', arrays=renamed), 'hf')
    convert.compare(convert.read(GOLDEN / 't5_1_0', 'hf'), made, 'renamed')
    other = folder('t5_1_0', arrays=lambda held: held | {'encoder.embed_tokens.weight': held['shared.weight'] + 1})
    with pytest.raises(UserError, match='encoder and decoder have different token embeddings'):
        convert.read(other, 'hf')


@pytest.mark.parametrize(
    'family, config, message',
    [
        ('t5_1_1', {'model_type': 'bart'}, "'bart' is not converted; expected one of t5, mt5, umt5, longt5, llama,"),
        ('t5_1_1', {'model_type': ...}, 'model_type None'),
        ('t5_1_1', {'d_ff': ...}, "lacks 'd_ff'"),
        ('t5_1_1', {'d_ff': 25}, r'wi_0.weight has shape \[24, 16\], but config.json \(t5\) requires \[25, 16\]'),
        ('t5_1_1', {'num_layers': 3}, 'lacks encoder.block.2'),
        ('t5_1_1', {'num_layers': 1}, r'holds encoder.block.1.*\(9 such arrays\)'),
        ('t5_1_1', {'feed_forward_proj': 'gelu'}, "feed_forward_proj 'gelu' is not converted"),
        ('t5_1_1', {'feed_forward_proj': 'relu'}, 'lacks .*wi.weight'),
        ('t5_1_1', {'d_model': 'many'}, 'ModelConfig.emb_dim'),
        ('t5_1_1', {'is_causal': False}, 'is_causal is false'),
        ('llama', {'attention_bias': True}, r'lacks model.layers.0.self_attn.\w_proj.bias \[\d+\]'),
        ('llama', {'mlp_bias': True}, 'mlp_bias is true'),
        ('llama', {'rope_parameters': {'rope_type': 'dynamic', 'factor': 2.0}}, "rope_type 'dynamic' is not converted"),
        ('llama', {'rope_parameters': ..., 'rope_scaling': {'type': 'longrope'}}, "rope_type 'longrope'"),
        ('llama', {'rope_parameters': ..., 'rope_scaling': {'type': 'linear'}}, 'the linear scaling .* has no factor'),
        ('llama', {'rope_scaling': {'type': 'linear', 'factor': -1}}, r'rope_scaling.factor=-1.0, expected a number'),
        ('llama', {'rope_scaling': {'type': 'yarn', 'factor': 2, 'slope': 3}}, "rope_scaling has 'slope'"),
        ('llama', {'partial_rotary_factor': 0.5}, 'partial_rotary_factor is not converted'),
        ('llama', {'model_type': 'mistral', 'sliding_window': 0}, 'sliding_window is 0, expected a number of tokens'),
        ('llama', {'model_type': 'mistral', 'sliding_window': 'x'}, "sliding_window is 'x', expected a number of"),
        ('llama', {'model_type': 'qwen3', 'layer_types': ['full_attention']}, 'layer_types has 1 layers'),
        (
            'llama',
            {'model_type': 'qwen3', 'layer_types': ['linear_attention'] * 2},
            "layer_types has 'linear_attention'",
        ),
        ('llama', {'model_type': 'smollm3', 'no_rope_layers': [1]}, 'no_rope_layers has 1 layers'),
        ('gemma', {'use_bidirectional_attention': True}, 'use_bidirectional_attention is true'),
        ('llama', {'hidden_act': 'relu'}, "hidden_act 'relu' of a llama model"),
        ('llama', {'model_type': 't5'}, "lacks 'd_model'|lacks 'vocab"),
        ('gemma', {'model_type': 'gemma2'}, 'lacks .*post_feedforward_layernorm.weight'),
        ('gemma', {'model_type': 'gemma3n'}, "model_type 'gemma3n'"),
        (
            'llama',
            {'head_dim': ..., 'num_attention_heads': 3},
            '=3 do not divide hidden_size=16, and head_dim is not set',
        ),
        ('llama', {'quantization_config': {'bits': 4}}, 'has a quantization_config, and quantized weights are not'),
        ('gemma', {'model_type': 'gemma2', 'hidden_activation': 'gelu'}, "hidden_act 'gelu' of a gemma2 model is not"),
        ('t5_1_1', {'model_type': 'longt5', 'encoder_attention_type': 'transient-global'}, "'transient-global', whose"),
        ('t5_1_1', {'model_type': 'longt5', 'local_radius': 0}, 'local_radius is 0, expected a number of tokens'),
    ],
)
def test_a_config_that_is_not_supported_or_of_another_model_is_refused(folder, family, config, message):
    with pytest.raises(UserError, match=message):
        convert.read(folder(family, config), 'hf')


def test_a_folder_that_save_pretrained_did_not_write_is_refused(tmp_path, folder):
    with pytest.raises(UserError, match='is not a folder'):
        convert.read(tmp_path / 'nowhere', 'hf')
    with pytest.raises(UserError, match='has no config.json'):
        convert.read(tmp_path, 'hf')
    broken = folder('t5_1_1')
    (broken / 'config.json').write_text('{')
    with pytest.raises(UserError, match='config.json is not a JSON object'):
        convert.read(broken, 'hf')
    whole = folder('t5_1_1', arrays=lambda held: held | {'lm_head.weight': np.zeros((64, 16), np.int8)})
    with pytest.raises(UserError, match='holds int8 numbers; expected float32, bfloat16 or float16'):
        convert.read(whole, 'hf')


def test_layers_of_different_dtypes_take_the_wider(folder):
    def mixed(held):
        name = 'encoder.block.0.layer.1.DenseReluDense.wo.weight'
        return held | {name: held[name].astype(np.float32)}

    checkpoint = convert.read(folder('byt5', arrays=mixed), 'hf')
    assert checkpoint.dtypes['encoder/layers/mlp/wo/kernel'] == np.float32
    assert checkpoint.dtypes['decoder/layers/mlp/wo/kernel'] == np.float16
    original = convert.read(GOLDEN / 'byt5', 'hf')
    for (_, _, before), (_, _, after) in zip(original.pieces(), checkpoint.pieces(), strict=True):
        np.testing.assert_array_equal(before.astype(np.float32), after.astype(np.float32))


def test_a_model_that_hugging_face_does_not_have_is_refused(tmp_path):
    llama = convert.read(GOLDEN / 'llama', 'hf')
    for field, value, expected in (
        ('attention_soft_cap', 30.0, 'None'),
        ('norm', 'layer', "'rms'"),
        ('parallel_block', True, 'False'),
    ):
        changed = dataclasses.replace(llama, config=dataclasses.replace(llama.config, **{field: value}))
        message = f"ModelConfig.{field}={value!r}, but Hugging Face's llama has {expected}: the model cannot be written"
        with pytest.raises(UserError, match=re.escape(message)):
            convert.write(changed, tmp_path / 'x', 'hf')
    assert list(tmp_path.iterdir()) == []


def test_other_files_of_the_folder_are_kept_there_and_back(tmp_path, folder):
    source = folder('umt5', {'task_specific_params': {'x': 1}})
    (source / 'tokenizer_config.json').write_text('{"tokenizer_class": "T5Tokenizer"}')
    (source / 'generation_config.json').write_text('{"max_new_tokens": 5}')
    convert.write(convert.read(source, 'hf'), tmp_path / 'own', 't5flan')
    convert.write(convert.read(tmp_path / 'own', 't5flan'), tmp_path / 'back', 'hf')
    for name in ('tokenizer_config.json', 'generation_config.json'):
        assert (tmp_path / 'back' / name).read_bytes() == (source / name).read_bytes()
    fields = json.loads((tmp_path / 'back' / 'config.json').read_text())
    assert fields['task_specific_params'] == {'x': 1} and fields['tie_word_embeddings'] is False


def test_large_folders_are_written_in_shards(tmp_path):
    source = convert.read(GOLDEN / 'ul2', 'hf')
    convert.write(source, tmp_path / 'x', 'hf', shard_size=10_000)
    assert len(list((tmp_path / 'x').glob('model-*.safetensors'))) > 2
    convert.compare(source, convert.read(tmp_path / 'x', 'hf'), 'x')
    shutil.rmtree(tmp_path / 'x')


@pytest.mark.parametrize('family', ['t5_1_1', 'umt5', 'llama'])
def test_every_parameter_has_a_unique_name(family):
    checkpoint = convert.read(GOLDEN / family, 'hf')
    table = huggingface.table_of(json.loads((GOLDEN / family / 'config.json').read_text())['model_type'])
    theirs = [names.hf_name(table, shape, layer) for shape, layer in names.all_pieces(checkpoint.config)]
    assert len(set(theirs)) == len(theirs)
    if family != 'llama':
        for name in (names.t5x_name, lambda shape, layer: (names.t5x_scanned_name(shape), layer)):
            made = [name(shape, layer) for shape, layer in names.all_pieces(checkpoint.config)]
            assert len(set(made)) == len(made)
