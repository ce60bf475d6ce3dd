"""Every model of gin/models, as shapes only; and properties of building."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from t5flan.configurables import parse
from t5flan.mesh import MeshConfig
from t5flan.models.build import abstract_model, build_model
from t5flan.models.config import ModelConfig
from t5flan.models.parameters import logical_axes, named_parameters, parameter_count
from t5flan.sharding import create_sharding, tree_shardings, use
from tests.models.small_models import random_batch, small_config, small_model

FILES = sorted((Path(__file__).resolve().parents[2] / 'gin' / 'models').glob('*.gin'))

# As published, or as counted by Hugging Face's model of that name.
KNOWN = {
    't5_1_0_small': 60_506_624,
    't5_1_0_base': 222_903_552,
    't5_1_0_large': 737_668_096,
    't5_1_0_3b': 2_851_598_336,
    't5_1_0_11b': 11_307_321_344,
    't5_1_1_small': 76_961_152,
    't5_1_1_base': 247_577_856,
    't5_1_1_large': 783_150_080,
    't5_1_1_xl': 2_849_757_184,
    't5_1_1_xxl': 11_135_332_352,
    'flan_t5_small': 76_961_152,
    'flan_t5_base': 247_577_856,
    'flan_t5_large': 783_150_080,
    'flan_t5_xl': 2_849_757_184,
    'flan_t5_xxl': 11_135_332_352,
    'mt5_small': 300_176_768,
    'mt5_base': 582_401_280,
    'mt5_large': 1_229_581_312,
    'mt5_xl': 3_742_619_648,
    'mt5_xxl': 12_921_057_280,
    'byt5_small': 299_637_760,
    'byt5_base': 581_653_248,
    'llama2_7b': 6_738_415_616,
    'gemma_2b': 2_506_172_416,
    'qwen2_0_5b': 494_032_768,
    'qwen2_7b': 7_615_616_512,
    'qwen3_0_6b': 596_049_920,
    'qwen3_8b': 8_190_735_360,
    'llama3_1_8b': 8_030_261_248,
    'llama3_2_1b': 1_235_814_400,
    'mistral_7b': 7_241_732_096,
    'smollm2_135m': 134_515_008,
    'smollm3_3b': 3_075_098_624,
    'gemma2_2b': 2_614_341_888,
    'gemma2_9b': 9_241_705_984,
    'gemma2_27b': 27_227_128_320,
    'gemma3_270m': 268_098_176,
    'gemma3_1b': 999_885_952,
    'gemma3_4b': 3_880_263_168,
    't5gemma_2b_2b': 5_596_853_760,
    't5gemma_9b_2b': 12_292_375_296,
    't5gemma2_270m_270m': 368_424_832,
}
# Rounded in the papers, in billions.
ROUNDED = {
    'palm_8b': 8.63,
    'palm_62b': 62.50,
    'palm_540b': 540.35,
    'byt5_large': 1.23,
    'byt5_xl': 3.74,
    'byt5_xxl': 12.9,
    'ul2_20b': 19.5,
    'flan_ul2': 19.5,
    'umt5_xxl': 13.0,
    'umt5_xl': 3.7,
    'gemma3_27b': 27.0,
}


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_every_model_has_the_published_number_of_parameters(file):
    config = parse([f'models/{file.name}']).read(ModelConfig)
    count = parameter_count(abstract_model(config))
    said = re.search(r'([\d,]+) parameters', file.read_text())
    if said or file.stem in KNOWN or file.stem in ROUNDED:
        assert said and int(said.group(1).replace(',', '')) == count
    if file.stem in KNOWN:
        assert count == KNOWN[file.stem]
    if file.stem in ROUNDED:
        assert count / 1e9 == pytest.approx(ROUNDED[file.stem], rel=0.02)


def test_known_models_exist():
    assert KNOWN.keys() | ROUNDED.keys() <= {file.stem for file in FILES}


@pytest.mark.parametrize('name', ['t5_1_1_xxl', 'palm_540b', 'gemma_2b', 'gemma3_27b', 't5gemma2_4b_4b'])
def test_the_largest_models_run_in_shapes(name):
    config = parse([f'models/{name}']).read(ModelConfig)
    tokens = jax.ShapeDtypeStruct((2, 512), np.int32)
    batch = {'encoder_input_tokens': tokens, 'decoder_input_tokens': tokens}
    logits = jax.eval_shape(lambda model, batch: model(batch), abstract_model(config), batch)
    assert logits.shape == (2, 512, config.vocab_size) and logits.dtype == np.float32


def test_a_key_gives_the_same_parameters_on_any_mesh():
    config, key = small_config('relative'), jax.random.key(7)
    plain = jax.jit(build_model, static_argnums=0)(config, key)
    shapes = abstract_model(config)
    sharding = create_sharding(MeshConfig(data=2, fsdp=2, tensor=2))
    build = jax.jit(build_model, static_argnums=0, out_shardings=tree_shardings(sharding, shapes, logical_axes(shapes)))
    with use(sharding):
        placed = build(config, key)
    kernel = placed.decoder.layers.mlp.wi_0.kernel[...]
    assert kernel.addressable_shards[0].data.shape == (2, 16, 24)  # embed over fsdp, mlp over tensor
    for (name, x), y in zip(named_parameters(plain).items(), jax.tree.leaves(placed), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


@pytest.mark.parametrize('family', ['t5_1_1', 'palm', 'modern'])
def test_a_model_split_over_eight_devices_has_the_same_logits(family):
    model, batch = small_model(family), random_batch(family, rows=4)
    sharding = create_sharding(MeshConfig(data=2, fsdp=2, tensor=2))
    with use(sharding):
        placed = jax.device_put(model, tree_shardings(sharding, model, logical_axes(model)))
        logits_BTV = jax.jit(lambda model, batch: model(batch))(placed, batch)
    assert logits_BTV.sharding.shard_shape(logits_BTV.shape) == (1, 7, 32)
    np.testing.assert_allclose(logits_BTV, jax.jit(lambda model, batch: model(batch))(model, batch), atol=2e-5)


@pytest.mark.parametrize('family', ['relative', 'palm', 'gemma'])
def test_a_new_model_has_logits_of_unit_variance(family):
    """Logits start at unit variance for every way of tying and scaling; otherwise an initializer is wrong."""
    config = small_config(family, emb_dim=128, num_heads=8, head_dim=16, mlp_dim=256)
    model = jax.jit(build_model, static_argnums=0)(config, jax.random.key(0))
    logits_BTV = jax.jit(lambda model, batch: model(batch))(model, random_batch(family))
    assert 0.7 < np.std(logits_BTV) < 1.6
