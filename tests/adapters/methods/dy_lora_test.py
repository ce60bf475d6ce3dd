"""DyLoRA: a step trains the adapter cut to a random rank, and `t5flan convert --rank` cuts it to any."""

import jax
import numpy as np
import pytest

import t5flan
from t5flan.adapters import adapter as adapters
from t5flan.adapters.methods.dy_lora import DyLora
from t5flan.adapters.methods.lora import Lora
from t5flan.conversion import convert
from t5flan.conversion.adapters import folder as adapter_folder
from t5flan.errors import UserError
from tests.adapters import properties
from tests.adapters.properties import DECODER, base_model, make_batch
from tests.saved_model import byte_model, save_folder

SETTINGS = DyLora(rank=4, rank_pattern={'.*/value/kernel': 2})


def cut(arrays, settings, rank, base):
    """The model with the adapter's first columns and rows, by LoRA's own code."""
    lora = adapters.apply(base, settings.at_rank(rank), jax.random.key(0))
    shapes = {name: x.shape for name, x in adapters.adapter_arrays(lora).items()}
    return adapters.with_arrays(lora, {name: x[tuple(map(slice, shapes[name]))] for name, x in arrays.items()})


@pytest.mark.parametrize('rslora', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_step_sees_the_adapter_cut_to_any_rank(rslora):
    settings = DyLora(rank=4, rank_pattern={'.*/value/kernel': 2}, rslora=rslora)
    base, batch = base_model(DECODER), make_batch(DECODER)
    model = properties.moved(adapters.apply(base, settings, jax.random.key(1)))
    run = jax.jit(lambda model, key: settings.in_step(model, key)(batch))
    found = {}
    for seed in range(40):
        logits = np.asarray(run(model, jax.random.key(seed)))
        found.setdefault(float(logits[0, -1, 0]), logits)
    arrays = adapters.adapter_arrays(model)
    expected = [properties.logits(cut(arrays, settings, rank, base), batch) for rank in (1, 2, 3, 4)]
    assert len(found) == 4, 'the rank is not drawn from 1 to 4'
    for logits in found.values():
        assert min(np.abs(logits - one).max() for one in expected) < 1e-5


@pytest.mark.parametrize('only_last', [False, True])
def test_a_step_trains_the_first_columns_or_the_last_of_them(only_last):
    settings = DyLora(rank=4, only_last=only_last)
    model = properties.moved(adapters.apply(base_model(DECODER), settings, jax.random.key(1)))

    @jax.jit
    def gradients(model, key):
        total = lambda model: sum(x.sum() for x in adapters.adapter_arrays(settings.in_step(model, key)).values())
        return adapters.adapter_arrays(jax.grad(total)(model))

    trained = set()
    for seed in range(20):
        found = gradients(model, jax.random.key(seed))
        columns = np.any(np.asarray(found['decoder/layers/self_attention/query/lora_a']) != 0, axis=(0, 1))
        rows = np.any(np.asarray(found['decoder/layers/self_attention/query/lora_b']) != 0, axis=(0, 2, 3))
        assert columns.tolist() == rows.tolist()
        trained.add(tuple(columns.tolist()))
    at = lambda rank: tuple(i == rank - 1 if only_last else i < rank for i in range(4))
    assert trained == {at(rank) for rank in (1, 2, 3, 4)}


@pytest.mark.slow
def test_convert_cuts_it_to_a_rank(tmp_path):
    base = save_folder(tmp_path / 'base', byte_model())
    model = t5flan.load(base).model
    adapted = properties.moved(adapters.apply(model, SETTINGS, jax.random.key(1)))
    arrays = {name: np.asarray(x) for name, x in adapters.adapter_arrays(adapted).items()}
    (tmp_path / 'dylora').mkdir()
    adapter_folder.write(tmp_path / 'dylora', str(base), SETTINGS, arrays, {})
    convert.main(str(tmp_path / 'dylora'), str(tmp_path / 'cut'), 't5flan', 't5flan', rank=3)
    settings, found = adapter_folder.read_arrays(str(tmp_path / 'cut'))
    assert settings == Lora(rank=3, rank_pattern={'.*/value/kernel': 2})
    batch = make_batch(model.config)
    expected = properties.logits(cut(arrays, SETTINGS, 3, model), batch)
    np.testing.assert_allclose(t5flan.load(tmp_path / 'cut').logits(batch), expected, atol=1e-5)
    for source, rank, words in (
        ('dylora', 5, '--rank=5, expected a rank from 1 to 4, that of the adapter'),
        ('cut', 2, 'is for an adapter of DyLora, but .*cut is an adapter of the method Lora'),
        ('base', 2, 'but .*base is a whole model'),
    ):
        with pytest.raises(UserError, match=words):
            convert.main(str(tmp_path / source), str(tmp_path / 'out'), 't5flan', 't5flan', rank=rank)


def test_wrong_settings_are_one_clear_line():
    with pytest.raises(UserError, match='DyLora.only_last=3, expected True or False'):
        DyLora(only_last=3)
    with pytest.raises(UserError, match='DyLora.rank=0, expected an integer of 1 or more'):
        DyLora(rank=0)
