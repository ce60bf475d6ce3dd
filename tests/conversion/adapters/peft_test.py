"""Adapters of PEFT: the outputs it recorded, there and back bit for bit, and errors in one clear line."""

import functools
import json
import shutil

import numpy as np
import pytest

import t5flan
from t5flan.conversion import convert
from t5flan.conversion.adapters import peft
from t5flan.conversion.safetensors_files import FolderWriter, read_header
from t5flan.errors import UserError

ADAPTERS = {'peft_lora': 't5_v1_1', 'peft_lora_llama': 'llama', 'peft_dora': 't5_v1_1', 'peft_ia3': 't5_v1_1'}
ADAPTERS |= {'peft_prompt': 't5_v1_1', 'peft_prefix': 't5_v1_1', 'peft_adalora': 't5_v1_1'}
every_adapter = pytest.mark.parametrize('name', ADAPTERS)


@pytest.fixture(scope='module')
def converted(tmp_path_factory, shared):
    """Converts a recorded adapter and its base, once for all tests: (the adapter's folder, the base's)."""

    @functools.cache
    def base_of(name):
        folder = tmp_path_factory.mktemp('base') / name
        convert.write(convert.read(shared / 'fixtures' / 'hf' / name, 'hf'), folder, 't5flan')
        return folder

    @functools.cache
    def convert_one(name):
        base = base_of(ADAPTERS[name])
        folder = tmp_path_factory.mktemp('adapter') / name
        convert.main(str(shared / 'fixtures' / 'hf' / name), str(folder), 'peft', 't5flan', base=str(base))
        return folder, base

    return convert_one


def features(expected):
    if 'labels' not in expected:
        return {'decoder_input_tokens': expected['input_ids'].astype(np.int32)}
    names = {'encoder_input_tokens': 'input_ids', 'decoder_input_tokens': 'decoder_input_ids'}
    start = np.pad(np.maximum(expected['labels'], 0), ((0, 0), (1, 0)))[:, :-1]
    return {ours: expected.get(theirs, start).astype(np.int32) for ours, theirs in names.items()}


@every_adapter
def test_logits_are_pefts(name, converted, shared):
    expected = dict(np.load(shared / 'fixtures' / 'hf' / name / 'expected.npz'))
    model = t5flan.load(converted(name)[0])
    np.testing.assert_allclose(model.logits(features(expected)), expected['logits'], atol=2e-4, rtol=0)


@pytest.mark.parametrize('name', ['peft_prompt', 'peft_prefix', 'peft_lora'])
def test_greedy_tokens_are_pefts(name, converted, shared):
    expected = np.load(shared / 'fixtures' / 'hf' / name / 'expected.npz')
    model = t5flan.load(converted(name)[0])
    prompts = [[int(token) for token in row if token] for row in expected['input_ids']]
    rows = expected['greedy'][:, 1:]  # without the start token, which transformers returns
    for (result,), row in zip(model.generate_ids(prompts, rows.shape[1]), rows, strict=True):
        written = result.tokens.tolist()
        assert written + [0] * (len(row) - len(written)) == row.tolist()


@every_adapter
def test_there_and_back_is_the_same_file(name, converted, shared, tmp_path):
    source = shared / 'fixtures' / 'hf' / name
    folder, _ = converted(name)
    for kept in (True, False):
        copy = shutil.copytree(folder, tmp_path / f'kept {kept}')
        if not kept:
            (copy / peft.CONFIG).unlink()
        back = tmp_path / f'back {kept}'
        convert.main(str(folder if kept else copy), str(back), 't5flan', 'peft')
        before, after = (read_header(one / peft.WEIGHTS) for one in (source, back))
        assert before.keys() == after.keys()
        for key in before:
            np.testing.assert_array_equal(before[key].read(), after[key].read())
        fields, written = (json.loads((one / peft.CONFIG).read_text()) for one in (source, back))
        for field, value in written.items():
            given = fields[field]
            same = sorted(given) == sorted(value) if isinstance(given, list) else given == value
            assert same or field == 'base_model_name_or_path', field


def test_a_merged_adapter_is_a_whole_model(converted, shared, tmp_path):
    source = shared / 'fixtures' / 'hf' / 'peft_lora_llama'
    folder, base = converted('peft_lora_llama')
    expected = np.load(source / 'expected.npz')
    batch = {'decoder_input_tokens': expected['input_ids'].astype(np.int32)}
    convert.main(str(source), str(tmp_path / 'merged'), 'peft', 't5flan', base=str(base), merge=True)
    convert.main(str(folder), str(tmp_path / 'hf'), 't5flan', 'hf')
    for merged in (tmp_path / 'merged', convert.as_checkpoint_folder(str(tmp_path / 'hf'))):
        logits = t5flan.load(merged).logits(batch)
        np.testing.assert_allclose(logits, expected['merged_logits'], atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ('pickle', r'adapter_model.bin, a pickle file: loading one can run any code'),
        ('no weights', r'has no adapter_model.safetensors'),
        ('other base', r'has no array of a layer of the base'),
        ('method', r"peft_type='VERA' is not supported, expected LORA, ADALORA, IA3, PROMPT_TUNING"),
        ('modules_to_save', r"modules_to_save=\['lm_head'\] is not supported"),
        ('missing', r'lacks base_model.model.*lora_magnitude_vector'),
        ('other shapes', r'lora_A.weight.* has shape \[4, 31\].*set --base to the model it was trained on'),
    ],
)
def test_a_faulty_adapter_is_one_clear_line(change, words, converted, shared, tmp_path):
    folder = shutil.copytree(shared / 'fixtures' / 'hf' / 'peft_lora', tmp_path / 'adapter')
    base = converted('peft_lora_llama' if change == 'other base' else 'peft_lora')[1]
    fields = json.loads((folder / peft.CONFIG).read_text())
    if change == 'pickle':
        (folder / peft.WEIGHTS).rename(folder / 'adapter_model.bin')
    elif change == 'no weights':
        (folder / peft.WEIGHTS).unlink()
    elif change == 'other shapes':
        before = read_header(folder / peft.WEIGHTS)
        arrays = {name: x.read()[..., :-1] if '.lora_A.' in name else x.read() for name, x in before.items()}
        writer = FolderWriter(folder, {name: (x.shape, x.dtype) for name, x in arrays.items()}, 2**62)
        for name, array in arrays.items():
            writer.write(name, np.ascontiguousarray(array))
        writer.close()
        (folder / 'model.safetensors').rename(folder / peft.WEIGHTS)
    changed = {'method': {'peft_type': 'VERA'}, 'modules_to_save': {'modules_to_save': ['lm_head']}}
    changed['missing'] = {'use_dora': True}
    (folder / peft.CONFIG).write_text(json.dumps(fields | changed.get(change, {})))
    with pytest.raises(UserError, match=words) as error:
        convert.main(str(folder), str(tmp_path / 'out'), 'peft', 't5flan', base=str(base))
    assert '\n' not in str(error.value) and not (tmp_path / 'out').exists()
