"""AdaLoRA in PEFT's format: a file holds the ranks that are left, and only these come back."""

import json

import jax
import numpy as np
import pytest

from t5flan.adapters import adapter as adapters
from t5flan.adapters.methods.ada_lora import AdaLora
from t5flan.conversion import convert
from t5flan.conversion.adapters import folder as adapter_folder
from t5flan.conversion.adapters import peft
from t5flan.conversion.safetensors_files import read_header
from t5flan.errors import UserError
from tests.saved_model import byte_model, save_folder

SETTINGS = AdaLora(init_rank=3, target_rank=2, tinit=1, tfinal=2)
QUERY = 'decoder/layers/self_attention/query/'


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    return save_folder(tmp_path_factory.mktemp('base'), byte_model())


@pytest.mark.parametrize('kind', ['new', 'pruned'])
def test_what_is_left_comes_back(kind, base, tmp_path):
    model = adapters.apply(byte_model(), SETTINGS, jax.random.key(1))
    arrays = {name: np.asarray(x) for name, x in adapters.adapter_arrays(model).items()}
    if kind == 'pruned':
        rng = np.random.default_rng(0)
        singular = lambda x: np.where(rng.random(x.shape) < 0.5, 0, rng.normal(size=x.shape)).astype(np.float32)
        arrays = {name: singular(x) if name.endswith('lora_e') else x for name, x in arrays.items()}
    (tmp_path / 'ours').mkdir()
    adapter_folder.write(tmp_path / 'ours', str(base), SETTINGS, arrays, {})
    convert.main(str(tmp_path / 'ours'), str(tmp_path / 'peft'), 't5flan', 'peft')
    settings, found, fields = peft.read(tmp_path / 'peft', str(base))
    assert settings.total_steps == fields['total_step'] == 4, 'the least that PEFT accepts'
    assert (settings.init_rank, settings.target_rank, settings.alpha) == (3, 2, 16.0)
    for name, x in arrays.items():
        e = arrays[f'{name.rpartition("/")[0]}/lora_e']
        axis = x.ndim - 1 if name.endswith('lora_a') else 1
        left = (e != 0).reshape([len(e)] + [-1 if i == axis else 1 for i in range(1, x.ndim)])
        np.testing.assert_array_equal(found[name], x if kind == 'new' else np.where(left, x, 0))
    stored = read_header(tmp_path / 'peft' / peft.WEIGHTS)
    name = 'base_model.model.decoder.block.0.layer.0.SelfAttention.q.lora_E'
    assert stored[name].shape[0] == (3 if kind == 'new' else np.count_nonzero(arrays[f'{QUERY}lora_e'][0]))


def test_arrays_of_another_rank_are_one_clear_line(base, tmp_path):
    model = adapters.apply(byte_model(), SETTINGS, jax.random.key(1))
    (tmp_path / 'ours').mkdir()
    arrays = {name: np.asarray(x) for name, x in adapters.adapter_arrays(model).items()}
    adapter_folder.write(tmp_path / 'ours', str(base), SETTINGS, arrays, {})
    convert.main(str(tmp_path / 'ours'), str(tmp_path / 'peft'), 't5flan', 'peft')
    file = tmp_path / 'peft' / peft.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | {'init_r': 5}))
    with pytest.raises(
        UserError, match=r'lora_A has shape \[3, 32\], but adapter_config.json requires \[5, 32\]'
    ) as error:
        peft.read(tmp_path / 'peft', str(base))
    assert '\n' not in str(error.value)
