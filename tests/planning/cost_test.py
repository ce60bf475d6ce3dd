"""t5flan/planning/cost.py: counts from formulas are those of the model's own shapes."""

import dataclasses

import pytest

from t5flan import configurables
from t5flan.errors import UserError
from t5flan.mesh import MeshConfig
from t5flan.models.build import abstract_model
from t5flan.models.config import ModelConfig
from t5flan.models.parameters import parameter_count
from t5flan.planning.cost import Batch, batch_of, count_parameters, flops_per_token, memory_of
from t5flan.training.config import OptimizerConfig

FSDP = MeshConfig(data=1, fsdp=-1)


def model(name: str) -> ModelConfig:
    return configurables.parse([f'models/{name}']).read(ModelConfig)


@pytest.mark.parametrize('name', ['t5_1_0_3b', 'umt5_xxl', 'palm_540b', 'gemma_2b', 'llama2_7b', 'ul2_20b', 'byt5_xl'])
def test_parameters_are_those_of_the_model(name):
    config = model(name)
    assert count_parameters(config) == parameter_count(abstract_model(config))


def test_flops_of_a_decoder_are_6_per_parameter_and_more_for_attention():
    config = model('llama2_7b')
    batch = batch_of(config, 8, {'targets': 2048})
    ratio = flops_per_token(config, batch) / (6 * count_parameters(config))
    assert 1.0 < ratio < 1.15  # table A4 of Chinchilla: 0.99 to 1.10
    assert batch.tokens == 8 * 2048


def test_a_token_of_an_encoder_decoder_passes_half_of_it():
    config = model('t5_1_1_xxl')
    batch = batch_of(config, 8, {'inputs': 512, 'targets': 512})
    assert 0.45 < flops_per_token(config, batch) / (6 * count_parameters(config)) < 0.65


def test_memory_of_t5_xxl_is_near_the_compilers():
    """The TPU compiler's peak: 96 rows of (1024, 256) of T5 XXL, 64 chips of v5p, fsdp=32, tensor=2, is 4.7 GiB."""
    config = dataclasses.replace(model('t5_1_1_xxl'), remat='minimal')
    memory = memory_of(config, Batch(96, (1024, 256)), OptimizerConfig(), MeshConfig(1, 32, 2), 64)
    assert memory.parameters * 64 == pytest.approx(4 * count_parameters(config), rel=0.01)
    assert memory.gradients == memory.parameters and memory.optimizer < 0.05 * memory.parameters
    assert memory.gib()['total'] == pytest.approx(4.7, rel=0.25)


def test_more_devices_less_memory_and_adam_holds_two_moments():
    config = model('t5_1_1_small')
    batch = Batch(64, (512, 114))
    one = memory_of(config, batch, OptimizerConfig(name='adamw'), FSDP, 1)
    eight = memory_of(config, batch, OptimizerConfig(name='adamw'), FSDP, 8)
    assert one.optimizer == pytest.approx(2 * one.parameters, rel=1e-3)
    assert eight.parameters < 0.2 * one.parameters and eight.activations < 0.3 * one.activations
    replicated = memory_of(config, batch, OptimizerConfig(), MeshConfig(data=8), 8)
    assert replicated.parameters == one.parameters
    assert replicated.total == pytest.approx(sum(dataclasses.astuple(replicated)))


def test_remat_and_microbatches_save_activations():
    config, batch = model('t5_1_1_small'), Batch(64, (512, 114))
    of = lambda remat, **settings: (
        memory_of(dataclasses.replace(config, remat=remat), batch, OptimizerConfig(**settings), FSDP, 1).activations
    )
    assert of('full') < of('minimal') < of('none')
    assert of('none', microbatches=4) < 0.5 * of('none')


def test_frozen_parameters_have_no_gradient():
    memory = memory_of(model('t5_1_1_small'), Batch(8, (8, 8)), OptimizerConfig(freeze=('encoder/.*',)), FSDP, 1)
    assert memory.gradients < 0.9 * memory.parameters


def test_a_mesh_that_does_not_divide_is_one_line():
    with pytest.raises(UserError, match='does not divide 6 devices'):
        memory_of(model('t5_1_1_small'), Batch(8, (8, 8)), OptimizerConfig(), MeshConfig(data=4), 6)
    with pytest.raises(UserError, match='emb_dim=512 does not divide'):
        memory_of(model('t5_1_1_small'), Batch(12, (8, 8)), OptimizerConfig(), FSDP, 6)
    with pytest.raises(UserError, match='batch_size=7 does not divide'):
        memory_of(model('t5_1_1_small'), Batch(7, (8, 8)), OptimizerConfig(), FSDP, 8)


def test_a_teacher_adds_its_parameters():
    config, batch, teacher = model('t5_1_1_small'), Batch(8, (8, 8)), model('t5_1_1_base')
    alone = memory_of(config, batch, OptimizerConfig(), FSDP, 8)
    taught = memory_of(config, batch, OptimizerConfig(), FSDP, 8, teacher)
    assert taught.teacher * 8 == pytest.approx(4 * count_parameters(teacher), rel=0.01)
    assert taught.total == alone.total + taught.teacher and alone.teacher == 0
