"""Training an adapter: small checkpoints that name their base, exact resume, and every command takes the folder."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import t5flan
from t5flan.adapters.adapter import adapter_arrays
from t5flan.adapters.config import METHODS
from t5flan.adapters.methods.lora import Lora
from t5flan.adapters.methods.p_tuning import PTuning
from t5flan.adapters.methods.prefix_tuning import PrefixTuning
from t5flan.adapters.methods.prompt_tuning import PromptTuning
from t5flan.conversion import convert
from t5flan.errors import UserError
from t5flan.mesh import MeshConfig
from t5flan.models.parameters import named_parameters
from t5flan.training import checkpoints as checkpoints_lib
from t5flan.training.config import CheckpointConfig, EvaluationConfig, OptimizerConfig, RunConfig
from t5flan.training.metric_writer import read_metrics
from t5flan.training.trainer import train
from tests.training.reversed_words import MODEL, run_settings

BATCH = {'decoder_input_tokens': np.arange(1, 21, dtype=np.int32).reshape(2, 10)}

pytestmark = pytest.mark.slow  # every run compiles its steps


@pytest.fixture(scope='module')
def settings(tmp_path_factory):
    """Arguments of train(): two steps, saved at the end."""
    shared = run_settings(tmp_path_factory.mktemp('data'), 'reverse_adapter_test', 'causal_lm', validation=True)
    return shared | dict(
        run=RunConfig(steps=2, log_every=1),
        optimizer=OptimizerConfig(name='adamw', learning_rate=0.01),
        checkpoints=CheckpointConfig(every=2, keep=5),
    )


@pytest.fixture(scope='module')
def folders(tmp_path_factory, settings):
    """(the base, its state, the adapter's workdir, its state, its settings): four steps of LoRA, saved every two."""
    root = tmp_path_factory.mktemp('runs')
    base_state = train(str(root / 'base'), **settings)
    changed = settings | {
        'run': RunConfig(steps=4, log_every=1, adapter=Lora(rank=2)),
        'checkpoints': CheckpointConfig(every=2, keep=5, initialize_from=str(root / 'base')),
        'evaluation': EvaluationConfig(every=4, batches=1),
    }
    state = train(str(root / 'lora'), **changed)
    return root / 'base', base_state, root / 'lora', state, changed


def assert_same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def size_of(folder):
    return sum(file.stat().st_size for file in folder.rglob('*') if file.is_file())


def test_only_the_adapter_is_trained_and_saved(folders):
    base, base_state, workdir, state, _ = folders
    after = named_parameters(state.model)
    for name, x in named_parameters(base_state.model).items():
        np.testing.assert_array_equal(np.asarray(x), np.asarray(after[name]), err_msg=name)
    losses = [row['loss'] for row in read_metrics(workdir) if 'loss' in row]
    assert losses[-1] < losses[0]
    assert [row['step'] for row in read_metrics(workdir) if 'eval/loss' in row] == [0, 4]
    saved = json.loads((workdir / 'checkpoints' / '4' / 'parameters' / '_METADATA').read_text())['tree_metadata']
    assert len(saved) == len(adapter_arrays(state.model)) and 'kernel' not in str(saved)


def test_a_resumed_adapter_has_the_same_bits(tmp_path, folders):
    base, _, workdir, state, changed = folders
    shutil.copytree(base, tmp_path / 'base')  # the pair may move together
    again = shutil.copytree(workdir, tmp_path / 'lora')
    shutil.rmtree(again / 'checkpoints' / '4')
    resumed = train(str(again), **changed)
    assert_same_bits(resumed, state)


def test_the_folder_loads_and_converts_like_a_model(tmp_path, folders):
    _, _, workdir, state, _ = folders
    expected = np.asarray(jax.jit(lambda model: model(BATCH))(jax.device_get(state.model)))
    np.testing.assert_allclose(t5flan.load(workdir).logits(BATCH), expected, atol=1e-5)
    assert t5flan.load(workdir, step=2).step == 2
    convert.write(convert.read(workdir, 't5flan'), tmp_path / 'merged', 't5flan')
    merged = t5flan.load(tmp_path / 'merged')
    np.testing.assert_allclose(merged.logits(BATCH), expected, atol=1e-5)
    assert checkpoints_lib.read_description(tmp_path / 'merged').adapter is None


def test_another_base_is_refused(tmp_path, folders, settings):
    base, _, workdir, _, changed = folders
    shutil.copytree(workdir, tmp_path / 'lora')
    other = settings | {'run': RunConfig(steps=2, seed=1)}
    train(str(tmp_path / 'other'), **other)
    path = tmp_path / 'lora' / 't5flan.json'
    fields = json.loads(path.read_text())
    fields['adapter']['base'] = str(tmp_path / 'other')
    path.write_text(json.dumps(fields))
    with pytest.raises(UserError, match='lora is an adapter of another base: the parameters of .*other have changed'):
        t5flan.load(tmp_path / 'lora')
    fields['adapter'] |= {'base': str(tmp_path / 'gone'), 'base_from_here': '../gone'}
    path.write_text(json.dumps(fields))
    with pytest.raises(UserError, match='is an adapter of .*gone, which is not there'):
        t5flan.load(tmp_path / 'lora')


@pytest.mark.parametrize('name', [name for name in METHODS if METHODS[name].packed and name != 'Lora'])
def test_every_method_trains_resumes_and_loads(name, tmp_path, folders):
    _, base_state, _, _, changed = folders
    changed = changed | {'run': RunConfig(steps=4, adapter=METHODS[name]()), 'evaluation': EvaluationConfig()}
    state = train(str(tmp_path / 'run'), **changed)
    after = named_parameters(state.model)
    for path, x in named_parameters(base_state.model).items():
        np.testing.assert_array_equal(np.asarray(x), np.asarray(after[path]), err_msg=path)
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '4')
    assert_same_bits(train(str(tmp_path / 'run'), **changed), state)
    expected = np.asarray(jax.jit(lambda model: model(BATCH))(jax.device_get(state.model)))
    np.testing.assert_allclose(t5flan.load(tmp_path / 'run').logits(BATCH), expected, atol=1e-5)


@pytest.mark.parametrize(
    ('adapter', 'format', 'mesh'),
    [
        (PromptTuning(tokens=3), 'encoder_decoder', MeshConfig(data=8)),
        (PrefixTuning(tokens=3), 'prefix_lm', MeshConfig(data=2, fsdp=2, tensor=2)),
        (PTuning(tokens=3, encoder='lstm'), 'causal_lm', MeshConfig(data=2, context=4)),
        (PrefixTuning(tokens=3, projection_size=8), 'encoder_decoder', MeshConfig(data=4, fsdp=2)),
    ],
    ids=['prompt', 'prefix', 'p-tuning', 'prefix of a network'],
)
def test_virtual_tokens_train_resume_and_load(tmp_path, settings, adapter, format, mesh):
    name, model = type(adapter).__name__, dataclasses.replace(MODEL, num_decoder_layers=1)
    if format == 'encoder_decoder':
        model = dataclasses.replace(model, architecture='encoder_decoder', num_encoder_layers=1)
    data = dataclasses.replace(settings['data'], format=format, pack=False)
    changed = settings | {'model': model, 'data': data, 'mesh': mesh}
    train(str(tmp_path / 'base'), **changed)
    changed |= {
        'checkpoints': CheckpointConfig(every=2, initialize_from=str(tmp_path / 'base')),
        'run': RunConfig(steps=4, adapter=adapter),
    }
    state = train(str(tmp_path / 'prompt'), **changed)
    base = t5flan.load(tmp_path / 'base').model
    for path, x in named_parameters(base).items():
        np.testing.assert_array_equal(np.asarray(x), np.asarray(named_parameters(state.model)[path]), err_msg=path)
    shutil.rmtree(tmp_path / 'prompt' / 'checkpoints' / '4')
    assert_same_bits(train(str(tmp_path / 'prompt'), **changed), state)
    batch = BATCH | {'encoder_input_tokens': BATCH['decoder_input_tokens']}
    expected = np.asarray(jax.jit(lambda model: model(batch))(jax.device_get(state.model)))
    model = t5flan.load(tmp_path / 'prompt')
    np.testing.assert_allclose(model.logits(batch), expected, atol=1e-5)
    assert len(model.generate(['ant'], max_new_tokens=2)) == 1
    with pytest.raises(UserError, match='has no kernel to be merged into'):
        convert.read(tmp_path / 'prompt', 't5flan')
    changed['checkpoints'] = CheckpointConfig(initialize_from=str(tmp_path / 'prompt'))
    with pytest.raises(UserError, match=f'is an adapter of the method {name}, which cannot be merged'):
        train(str(tmp_path / 'more'), **changed | {'run': RunConfig(steps=2)})


def test_other_settings_do_not_resume_and_a_base_is_required(tmp_path, folders):
    _, _, workdir, _, changed = folders
    run = dataclasses.replace(changed['run'], adapter=Lora(rank=3))
    with pytest.raises(UserError, match="holds a run with RunConfig.adapter=.*'rank': 2.*given is .*'rank': 3"):
        train(str(workdir), **changed | {'run': run})
    with pytest.raises(UserError, match=r'RunConfig.adapter=@Lora\(\), but there is no model to adapt'):
        train(str(tmp_path), **changed | {'checkpoints': CheckpointConfig(every=2)})
    run = dataclasses.replace(changed['run'], adapter=PromptTuning())
    with pytest.raises(UserError, match=r'RunConfig.adapter=@PromptTuning\(\), but DataConfig.pack=True'):
        train(str(tmp_path), **changed | {'run': run})


def test_a_rounded_base_resumes_exactly_and_is_named_by_its_own_parameters(tmp_path, folders):
    base, base_state, workdir, state, changed = folders
    shutil.copytree(base, tmp_path / 'base')
    changed = changed | {'run': dataclasses.replace(changed['run'], base_dtype='bfloat16')}
    changed['checkpoints'] = dataclasses.replace(changed['checkpoints'], initialize_from=str(tmp_path / 'base'))
    rounded = train(str(tmp_path / 'lora'), **changed)
    losses = [[row['loss'] for row in read_metrics(folder) if 'loss' in row] for folder in (tmp_path / 'lora', workdir)]
    np.testing.assert_allclose(*losses, rtol=1e-2)
    records = [checkpoints_lib.read_description(folder).adapter for folder in (tmp_path / 'lora', workdir)]
    assert records[0]['fingerprint'] == records[1]['fingerprint']
    shutil.rmtree(tmp_path / 'lora' / 'checkpoints' / '4')
    assert_same_bits(train(str(tmp_path / 'lora'), **changed), rounded)
    loaded = named_parameters(t5flan.load(tmp_path / 'lora').model)
    for name, x in named_parameters(base_state.model).items():
        assert loaded[name].dtype == np.float32
        if '/query/' not in name and '/value/' not in name:
            np.testing.assert_array_equal(np.asarray(loaded[name]), np.asarray(x), err_msg=name)
