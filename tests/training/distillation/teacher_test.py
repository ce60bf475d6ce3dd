"""A teacher adds the divergence from its probabilities to the loss and is never trained; off, nothing changes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5flan import sharding, tasks
from t5flan.data.config import DataConfig
from t5flan.data.corpus_config import FileTask
from t5flan.errors import UserError
from t5flan.mesh import MeshConfig
from t5flan.models.build import build_model
from t5flan.models.parameters import logical_axes, parameter_count
from t5flan.training import throughput
from t5flan.training.checkpoints.folder import Description
from t5flan.training.config import CheckpointConfig, LossConfig, OptimizerConfig, RunConfig
from t5flan.training.distillation.teacher import Teacher, abstract_teacher, teacher_config
from t5flan.training.metric_writer import read_metrics
from t5flan.training.optimizer import make_optimizer
from t5flan.training.state import create_state
from t5flan.training.step import make_train_step
from t5flan.training.trainer import train
from tests.training import examples
from tests.training.examples import make_batch, make_model

DECODER = dataclasses.replace(examples.DECODER, num_decoder_layers=1)
STUDENT = dataclasses.replace(examples.ENCODER_DECODER, num_encoder_layers=1, num_decoder_layers=1)
SGD_LIKE = OptimizerConfig(name='adamw', learning_rate=0.01)


def new_teacher(config, **more):
    return Teacher(jax.jit(lambda: build_model(config, jax.random.key(5)))(), eos_id=1, **more)


def gradients_of(config, loss, batch, teacher):
    """The metrics of a step, and its gradients by way of an optimizer's first moment."""
    optimizer = make_optimizer(SGD_LIKE, logical_axes(make_model(config)), 100)
    state = create_state(make_model(config), optimizer)
    state, metrics = jax.jit(make_train_step(SGD_LIKE, loss, optimizer, 0))(state, batch, teacher)
    return state, metrics


@pytest.mark.slow
@pytest.mark.parametrize(
    'config, of_teacher', [(STUDENT, DECODER), (DECODER, DECODER)], ids=['encoder_decoder', 'decoder']
)
def test_the_gradient_is_that_of_the_divergence(config, of_teacher):
    """With weight 1 nothing else is left: as of the textbook KL of whole logits, in parts of two tokens too."""
    batch, teacher = make_batch(config), new_teacher(of_teacher)
    weights_BT, temperature = batch['decoder_loss_weights'], 2.0
    loss = LossConfig(teacher='x', teacher_weight=1.0, temperature=temperature, chunk_tokens=16)

    @jax.jit
    def expected(model):
        p_BTV = jax.nn.softmax(teacher.model.logits(teacher.hidden(batch)) / temperature)
        q_BTV = jax.nn.softmax(model.logits(model.hidden(batch)) / temperature)
        kl_BT = jnp.sum(p_BTV * jnp.log(p_BTV / q_BTV), axis=-1)
        return temperature**2 * jnp.sum(weights_BT * kl_BT) / weights_BT.sum()

    value, gradient = jax.value_and_grad(expected)(make_model(config))
    state, metrics = gradients_of(config, loss, batch, teacher)
    np.testing.assert_allclose(metrics['loss'], value, rtol=1e-5)
    np.testing.assert_allclose(metrics['teacher_divergence'] * temperature**2, value, rtol=1e-5)
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(gradient)))
    np.testing.assert_allclose(metrics['grad_norm'], norm, rtol=1e-4)
    moments = [
        one for one in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, 'mu')) if hasattr(one, 'mu')
    ]
    for moment, x in zip(jax.tree.leaves(moments[0].mu), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(moment, 0.1 * x, atol=1e-6 * max(1.0, float(jnp.abs(x).max())), rtol=1e-4)


@pytest.mark.slow
def test_a_weight_of_0_is_the_loss_without_a_teacher():
    batch, teacher = make_batch(STUDENT), new_teacher(DECODER)
    plain, expected = gradients_of(STUDENT, LossConfig(), batch, None)
    taught, metrics = gradients_of(STUDENT, LossConfig(teacher='x', teacher_weight=0.0), batch, teacher)
    np.testing.assert_allclose(metrics['loss'], expected['loss'], rtol=1e-6)
    np.testing.assert_allclose(metrics['cross_entropy'], expected['cross_entropy'], rtol=1e-6)
    assert 'teacher_divergence' not in expected and metrics['teacher_divergence'] > 0
    for x, y in zip(jax.tree.leaves(taught.model), jax.tree.leaves(plain.model), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


@pytest.mark.slow
def test_a_decoder_reads_input_and_target_as_one_text():
    """Its probabilities of a target do not depend on how input and target are divided into features or packed."""
    teacher = new_teacher(dataclasses.replace(DECODER, attention_window=6))
    text = np.array([2, 20, 21, 22, 23, 24, 25, 26])
    whole = teacher.model.hidden({'decoder_input_tokens': text[None]})
    batch = {
        'encoder_input_tokens': np.array([[20, 21, 22, 1, 0, 0]]),
        'decoder_input_tokens': np.array([[2, 23, 24, 25, 26, 0]]),
        'decoder_target_tokens': np.array([[23, 24, 25, 26, 1, 0]]),
    }
    np.testing.assert_allclose(teacher.hidden(batch)[0, :5], whole[0, 3:8], atol=2e-5)
    packed = {
        'encoder_input_tokens': np.array([[30, 31, 1, 20, 21, 22, 1, 0]]),
        'encoder_segment_ids': np.array([[1, 1, 1, 2, 2, 2, 2, 0]]),
        'decoder_input_tokens': np.array([[2, 33, 2, 23, 24, 25, 26, 0]]),
        'decoder_target_tokens': np.array([[33, 1, 23, 24, 25, 26, 1, 0]]),
        'decoder_segment_ids': np.array([[1, 1, 2, 2, 2, 2, 2, 0]]),
        'decoder_positions': np.array([[0, 1, 0, 1, 2, 3, 4, 0]]),
    }
    np.testing.assert_allclose(teacher.hidden(packed)[0, 2:7], whole[0, 3:8], atol=2e-5)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Arguments of train() for a tiny encoder-decoder, and the folder of a decoder with the same vocabulary."""
    folder = tmp_path_factory.mktemp('runs')
    rows = [json.dumps({'inputs': word, 'targets': word[::-1]}) + '\n' for word in ('abc', 'bcd efg', 'hi') * 40]
    (folder / 'rows.jsonl').write_text(''.join(rows))
    data = DataConfig(
        mixture='teacher_test',
        batch_size=4,
        feature_lengths={'inputs': 16, 'targets': 16},
        format='causal_lm',
        vocabulary='bytes',
        extra_ids=0,
        file_tasks=(FileTask(name='teacher_test', train=str(folder / 'rows.jsonl')),),
    )
    tasks.register_all(data)
    sizes = dict(vocab_size=384, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16, num_decoder_layers=1)
    shared = dict(data=data, optimizer=OptimizerConfig(learning_rate=0.01), mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    shared |= dict(checkpoints=CheckpointConfig(every=2))
    decoder = dataclasses.replace(DECODER, **sizes)
    train(str(folder / 'teacher'), **shared, model=decoder, run=RunConfig(steps=2))
    student = dataclasses.replace(STUDENT, **sizes)
    data = dataclasses.replace(data, format='encoder_decoder')
    return folder, shared | dict(data=data, model=student, loss=LossConfig(teacher=str(folder / 'teacher')))


@pytest.mark.slow
def test_a_resumed_run_has_the_same_bits_and_the_teacher_is_not_saved(runs, tmp_path):
    folder, settings = runs
    train(str(tmp_path / 'whole'), **settings, run=RunConfig(steps=4, log_every=1))
    whole = [(row['loss'], row['teacher_divergence']) for row in read_metrics(tmp_path / 'whole') if 'loss' in row]
    train(str(tmp_path / 'parts'), **settings, run=RunConfig(steps=2, log_every=1))
    state = train(str(tmp_path / 'parts'), **settings, run=RunConfig(steps=4, log_every=1))
    parts = [(row['loss'], row['teacher_divergence']) for row in read_metrics(tmp_path / 'parts') if 'loss' in row]
    assert whole == parts and len(whole) == 4
    assert jax.tree.structure(state.model) == jax.tree.structure(build_shapes(settings['model']))


def build_shapes(config):
    return jax.eval_shape(lambda: build_model(config, jax.random.key(0)))


@pytest.mark.slow
@pytest.mark.parametrize(
    'change, message',
    [
        ({'loss': LossConfig(teacher='/none')}, '/none'),
        ({'model': dataclasses.replace(STUDENT, vocab_size=400)}, 'has 384 rows in its embedding, the model 400'),
    ],
)
def test_a_teacher_that_does_not_fit_is_one_line(runs, tmp_path, change, message):
    _, settings = runs
    with pytest.raises(UserError, match=message) as error:
        train(str(tmp_path / 'run'), **settings | change, run=RunConfig(steps=1))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'fields, message',
    [
        ({'teacher_weight': 1.5}, 'LossConfig.teacher_weight=1.5, expected a number from 0 to 1'),
        ({'temperature': 0.0}, 'LossConfig.temperature=0.0, expected a number above 0'),
        ({'teacher': ''}, "LossConfig.teacher='', expected a non-empty string"),
    ],
)
def test_settings_out_of_range_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        LossConfig(**fields)


def write_teacher(folder, config):
    """A folder that describes a checkpoint, without its parameters."""
    folder.mkdir()
    Description(config, 'causal_lm', {}, {'size': config.vocab_size, 'fingerprint': '-'}).write(folder)
    return LossConfig(teacher=str(folder))


def test_a_run_whose_teacher_does_not_fit_is_refused_before_anything_is_built(tmp_path, monkeypatch):
    data = DataConfig(mixture='-', vocabulary='bytes', batch_size=8, feature_lengths={'inputs': 8, 'targets': 8})
    large = dataclasses.replace(DECODER, vocab_size=STUDENT.vocab_size, emb_dim=4096, num_heads=32, head_dim=128)
    loss = write_teacher(tmp_path / 'teacher', large)
    monkeypatch.setattr(throughput, 'memory_left', lambda devices: (4.0 * large.kernel_size, 'each device', 1e12))
    given = dict(model=STUDENT, data=data, run=RunConfig(steps=1), mesh=MeshConfig(data=8))
    with pytest.raises(UserError, match='this run needs at least .* GiB of teacher.*, but each device has') as error:
        train(str(tmp_path / 'run'), **given, loss=loss)
    assert '\n' not in str(error.value) and not (tmp_path / 'run').exists()
    monkeypatch.setattr(throughput, 'memory_left', lambda devices: (5.0 * large.kernel_size, 'each device', 1e12))
    require = lambda teacher: throughput.require_memory(
        STUDENT, data, RunConfig(steps=1), OptimizerConfig(), given['mesh'], teacher
    )
    require(teacher_config(loss, STUDENT))
    assert teacher_config(LossConfig(), STUDENT) is None


def test_a_teacher_of_shapes_is_placed_as_one_that_is_read(tmp_path):
    loss = write_teacher(tmp_path / 'teacher', dataclasses.replace(DECODER, vocab_size=STUDENT.vocab_size))
    with sharding.use(sharding.create_sharding(MeshConfig(data=1, fsdp=4, tensor=2))) as placed:
        found = abstract_teacher(loss, STUDENT, placed)
    leaves = jax.tree.leaves(found.model)
    assert sum(x.size for x in leaves) == parameter_count(found.model)
    assert any(x.sharding.shard_shape(x.shape) != x.shape for x in leaves) and not found.prefix_lm
