"""GGUF models are the Hugging Face models that they came from, number by number; what is not converted is one line."""

import dataclasses
import json
import re

import numpy as np
import pytest

from t5flan.conversion import convert
from t5flan.conversion.gguf import file as gguf_file
from t5flan.conversion.gguf import model
from t5flan.data.vocabulary.byte_level import IdsVocabulary
from t5flan.errors import UserError
from t5flan.language_model import load
from tests.conversion.gguf import tiny

GOLDEN = tiny.GOLDEN


def golden(family: str):
    """A golden model; its epsilon is a float32 in GGUF."""
    checkpoint = convert.read(GOLDEN / family, 'hf')
    epsilon = float(np.float32(checkpoint.config.norm_epsilon))
    return dataclasses.replace(checkpoint, config=dataclasses.replace(checkpoint.config, norm_epsilon=epsilon))


def pieces(checkpoint) -> dict:
    return {(shape.name, layer): array for shape, layer, array in checkpoint.pieces()}


@pytest.mark.parametrize('family', ['llama', 't5_1_1', 't5_1_0', 'umt5'])
def test_a_model_is_that_of_the_hugging_face_folder(tmp_path, family):
    file = tiny.golden(tmp_path / 'model.gguf', family)
    convert.compare(golden(family), convert.read(file, 'gguf'), 'the file')


@pytest.mark.parametrize(
    'name',
    ['gguf_qwen2_f16', *(pytest.param(f'gguf_llama_{type}', marks=pytest.mark.slow) for type in ('q4_0', 'q8_0'))],
)
def test_logits_are_those_that_llama_cpps_format_stands_for(name, tmp_path, shared):
    """QKV biases, and quantized numbers; recorded by transformers, from the same files."""
    folder = shared / 'fixtures' / 'hf' / name
    convert.write(model.read(folder / 'model.gguf', IdsVocabulary(128, 1, 2)), tmp_path / 'own', 't5flan')
    expected = np.load(folder / 'expected.npz')
    logits_BTV = load(tmp_path / 'own').logits({'decoder_input_tokens': expected['input_ids']})
    np.testing.assert_allclose(logits_BTV, expected['logits'], atol=2e-4, rtol=0)


def test_gemmas_norms_are_one_less(tmp_path):
    found, expected = (
        convert.read(tiny.golden(tmp_path / 'g.gguf', 'gemma'), 'gguf'),
        golden('gemma'),
    )
    assert found.config == expected.config
    for key, array in pieces(expected).items():
        array = array + np.float32(1) - np.float32(1) if 'norm' in key[0] else array
        np.testing.assert_array_equal(pieces(found)[key], array)


WINDOWED = {'gemma2.attention.sliding_window': 6, 'gemma2.attn_logit_softcapping': 3.0}
FAMILIES = {
    'qwen3': {'qwen3.rope.freq_base': 50000.0},
    'gemma2': {**WINDOWED, 'gemma2.final_logit_softcapping': 8.0, 'gemma2.rope.freq_base': 5000.0},
    'gemma3': {
        'gemma3.attention.sliding_window': 6,
        'gemma3.attention.sliding_window_pattern': 3,
        'gemma3.rope.freq_base': 90000.0,
        'gemma3.rope.freq_base_swa': 700.0,
    },
}


@pytest.mark.parametrize('family', FAMILIES)
def test_other_families_are_those_of_their_folders(family, tmp_path, shared):
    """But for query_pre_attn_scalar, which no file holds: llama.cpp has that of the published sizes."""
    folder = shared / 'fixtures' / 'hf' / family
    expected = convert.read(folder, 'hf')
    found = convert.read(tiny.of_folder(tmp_path / 'model.gguf', folder, family, FAMILIES[family]), 'gguf')
    epsilon = float(np.float32(expected.config.norm_epsilon))
    config = dataclasses.replace(expected.config, norm_epsilon=epsilon, query_pre_attn_scalar=None)
    assert found.config == config
    for key, array in pieces(expected).items():
        shifted = family != 'qwen3' and 'norm' in key[0]
        np.testing.assert_array_equal(pieces(found)[key], array + np.float32(1) - np.float32(1) if shifted else array)


def test_smollm3_has_layers_without_positions(tmp_path):
    file = tiny.of_folder(tmp_path / 'model.gguf', GOLDEN / 'smollm3', 'smollm3', {'smollm3.rope.freq_base': 5e6})
    found, expected = convert.read(file, 'gguf'), pieces(convert.read(GOLDEN / 'smollm3', 'hf'))
    assert (found.config.layer_pattern, found.config.rope_base) == (None, 5e6)  # three layers: the fourth has none
    for key, array in pieces(found).items():
        np.testing.assert_array_equal(array, expected[key])


def test_llama_3s_factors_of_frequencies_are_its_rope_scaling(tmp_path):
    base, size = 500000.0, 128
    frequency = base ** (-np.arange(size // 2) / (size // 2))
    smooth = np.clip((8192 * frequency / (2 * np.pi) - 1) / 3, 0, 1)
    factors = (1 / ((1 - smooth) / 32 + smooth)).astype(np.float32)
    model_of = lambda factors: tiny.golden(
        tmp_path / 'model.gguf',
        'llama',
        {'llama.attention.key_length': size, 'llama.rope.freq_base': base},
        lambda held: {'token_embd.weight': held['token_embd.weight'], 'rope_freqs.weight': factors},
    )
    fields = model.to_fields(gguf_file.read(model_of(factors)))
    assert fields['rope_scaling'] == {
        'rope_type': 'llama3',
        'factor': 32.0,
        'low_freq_factor': 1.0,
        'high_freq_factor': 4.0,
        'original_max_position_embeddings': 8192,
    }
    with pytest.raises(UserError, match='with other numbers than theirs. Convert the Hugging Face folder'):
        model.to_fields(gguf_file.read(model_of(np.sqrt(factors))))


@pytest.mark.parametrize('type', ['F16', 'BF16'])
def test_floats_of_16_bits_stay_as_they_are(tmp_path, type):
    found = convert.read(tiny.golden(tmp_path / 'model.gguf', 'llama', types=type), 'gguf')
    expected = convert.read(GOLDEN / 'llama', 'hf').cast({'F16': 'float16', 'BF16': 'bfloat16'}[type])
    for key, array in pieces(found).items():
        if 'norm' in key[0]:
            assert array.dtype == np.float32
        else:
            np.testing.assert_array_equal(array.view(np.uint16), pieces(expected)[key].view(np.uint16))


def test_there_and_back_through_every_command(tmp_path, monkeypatch, capsys):
    """Converted to each format, used as a checkpoint, and converted once for that."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    file = tiny.golden(tmp_path / 'model.gguf', 'llama')
    convert.main(str(file), str(tmp_path / 'hf'), 'gguf', 'hf', check=True)
    convert.compare(golden('llama'), convert.read(tmp_path / 'hf', 'hf'), 'hf')
    assert json.loads((tmp_path / 'hf' / 'config.json').read_text())['max_position_embeddings'] == 32
    capsys.readouterr()
    folder = convert.as_checkpoint_folder(str(file))
    assert 'model.gguf has no tokenizer: the result takes and returns token ids' in capsys.readouterr().err
    assert load(folder).generate_ids([[3, 4]], max_new_tokens=2)
    assert convert.as_checkpoint_folder(str(file)) == folder and not capsys.readouterr().err
    with pytest.raises(UserError, match='none.gguf does not exist. Give a GGUF file'):
        convert.as_checkpoint_folder(str(tmp_path / 'none.gguf'))
    with pytest.raises(UserError, match='model.gguf is not a folder. Set --from=gguf'):
        convert.read(file, 'hf')


@pytest.mark.parametrize(
    'family, change, message',
    [
        (
            'llama',
            {'general.architecture': 'mamba'},
            "architecture 'mamba' is not converted; expected one of llama, ge",
        ),
        ('llama', {'llama.expert_count': 8}, 'llama.expert_count=8 is an option that is not converted'),
        ('llama', {'llama.attention.causal': False}, 'llama.attention.causal=False is an option that is not converted'),
        ('llama', {'llama.attention.sliding_window': 7}, 'llama.attention.sliding_window=7 is an option that'),
        ('llama', {'llama.attn_logit_softcapping': 9.0}, 'llama.attn_logit_softcapping=9.0 is an option that'),
        ('gemma', {'gemma.attention.sliding_window': 9}, 'gemma.attention.sliding_window=9 is an option that'),
        ('llama', {'llama.rope.scaling.type': 'odd', 'llama.rope.scaling.factor': 2.0}, "rope_type 'odd' is not conv"),
        ('llama', {'llama.rope.dimension_count': 2}, 'llama.rope.dimension_count=2 differs from the size of a head, 4'),
        ('llama', {'llama.block_count': None}, 'lacks llama.block_count. Download'),
        ('llama', {'llama.block_count': 0}, 'llama.block_count=0, expected a size'),
        ('llama', {'llama.block_count': 2**31 - 1}, 'the metadata has 2,147,483,647 layers, too many for its arrays'),
        ('llama', {'llama.block_count': 4000000000}, 'llama.block_count=4000000000, expected a size'),
        (
            'llama',
            {'llama.block_count': 3},
            r'lacks blk.2.[a-z_]+.weight .*, which the metadata \(llama\) requires',
        ),
        ('llama', {'llama.block_count': 1}, 'holds blk.1.attn_k.weight, which the metadata .llama. does not have'),
        (
            'llama',
            {'llama.embedding_length': 2**31 - 1},
            r'has shape \[16\], but the metadata \(llama\) requires \[2147483647\]',
        ),
        ('llama', {'llama.attention.head_count': [4, 2]}, 'llama.attention.head_count=an array of 2, expected a size'),
        ('llama', {'llama.attention.head_count': 3}, 'num_kv_heads=2, expected a divisor of num_heads=3'),
        ('llama', {'llama.attention.layer_norm_rms_epsilon': float('nan')}, '=nan, expected a number above 0'),
        ('llama', {'llama.context_length': 'long'}, "llama.context_length='long', expected a size"),
        ('t5_1_1', {'t5.attention.head_count_kv': 1}, 't5.attention.head_count_kv=1, expected 3: a T5 has no other'),
    ],
)
def test_settings_that_are_not_converted_are_one_line(tmp_path, family, change, message):
    file = tiny.golden(tmp_path / 'model.gguf', family, change)
    with pytest.raises(UserError, match=message) as error:
        convert.main(str(file), str(tmp_path / 'out'), 'gguf', 't5flan')
    text = str(error.value)
    assert '\n' not in text and text.startswith(str(file)) and text.endswith('.') and len(text) < len(str(file)) + 300
    assert sorted(path.name for path in tmp_path.iterdir()) == ['model.gguf'], 'nothing is left behind'


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda held: held | {'rope_freqs.weight': np.ones(2, np.float32)}, 'rope_freqs.weight, the scaled rotary'),
        (lambda held: held | {'blk.0.attn_q.bias': np.ones(16, np.float32)}, 'holds blk.0.attn_q.bias, which the'),
        (lambda held: {k: v for k, v in held.items() if k != 'token_embd.weight'}, 'lacks token_embd.weight, the tok'),
        (lambda held: {k: v for k, v in held.items() if k != 'output_norm.weight'}, 'lacks output_norm.weight .16.'),
        (lambda held: held | {'output_norm.weight': np.full(16, np.nan, np.float32)}, 'NaN'),
    ],
)
def test_tensors_that_do_not_fit_are_one_line(tmp_path, change, message):
    file = tiny.golden(tmp_path / 'model.gguf', 'llama', tensors=change)
    with pytest.raises(UserError, match=message) as error:
        convert.main(str(file), str(tmp_path / 'out'), 'gguf', 't5flan')
    assert '\n' not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ['model.gguf']


def test_the_library_is_named_if_it_is_missing(tmp_path, monkeypatch):
    file = tiny.golden(tmp_path / 'model.gguf', 'llama')
    monkeypatch.setitem(__import__('sys').modules, 'gguf', None)
    with pytest.raises(UserError, match=re.escape("needs the gguf package: pip install 't5flan[convert]'.")):
        convert.read(file, 'gguf')
