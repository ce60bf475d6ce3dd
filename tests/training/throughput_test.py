"""Model FLOPs counted from the matrix products, peaks by device kind, and rates with a fake clock."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5flan.models.build import abstract_model
from t5flan.models.config import ModelConfig
from t5flan.training import throughput
from t5flan.training.throughput import (
    Throughput,
    cpu_peak_tflops,
    decode_flops,
    device_peak_tflops,
    model_flops,
    prefill_flops,
)

SMALL = dict(vocab_size=32128, emb_dim=512, num_heads=6, head_dim=64, mlp_dim=1024, num_decoder_layers=8)


@pytest.mark.parametrize(
    'kind, peak',
    [
        ('TPU v4', 275),
        ('TPU v5 lite', 197),
        ('TPU v5e', 197),
        ('TPU v5', 459),
        ('TPU v5p', 459),
        ('TPU v6 lite', 918),
        ('TPU v6e', 918),
        ('TPU7x', 1153.5),
        ('NVIDIA H100 80GB HBM3', 989),
        ('NVIDIA H200', 989),
        ('cpu', None),
    ],
)
def test_peak_of_each_device_kind(kind, peak):
    assert device_peak_tflops(kind) == peak


def test_flops_of_t5_small_by_hand():
    """8 x (512, 114), every product written out."""
    config = ModelConfig(architecture='encoder_decoder', num_encoder_layers=8, **SMALL)
    S, T, inner = 512, 114, 384
    encoder = S * (4 * 512 * inner + 3 * 512 * 1024) + 2 * S * S * inner
    decoder = T * (6 * 512 * inner + 3 * 512 * 1024) + S * 2 * 512 * inner + 2 * (T * T + T * S) * inner
    expected = 6 * 8 * (8 * encoder + 8 * decoder + T * 512 * 32128)
    given = model_flops(config, {'encoder_input_tokens': (8, S), 'decoder_target_tokens': (8, T)})
    assert given == expected
    assert 600e9 < given < 900e9


def test_flops_of_generation_are_those_of_the_forward_pass():
    """A third of a training step, with the logits of one token instead of all, and attention to all slots."""
    decoder = ModelConfig(architecture='decoder_only', num_kv_heads=2, **SMALL)
    logits = 2 * 4 * 512 * 32128
    forward = lambda config, **shapes: model_flops(config, {name: (4, size) for name, size in shapes.items()}) / 3
    whole = forward(decoder, decoder_target_tokens=100)
    assert prefill_flops(decoder, 4, 100) == pytest.approx(whole - 99 * logits)
    more_slots = 2 * 4 * 8 * 2 * 59 * 6 * 64
    assert decode_flops(decoder, 4, 60, 0) == pytest.approx(forward(decoder, decoder_target_tokens=1) + more_slots)

    both = ModelConfig(architecture='encoder_decoder', num_encoder_layers=8, **SMALL)
    one_token = forward(both, encoder_input_tokens=100, decoder_target_tokens=1)
    assert prefill_flops(both, 4, 100) == pytest.approx(one_token)
    encoder = 2 * 4 * 8 * (100 * (4 * 512 * 384 + 3 * 512 * 1024) + 2 * 100 * 100 * 384)
    keys_and_values = 2 * 4 * 8 * 100 * 2 * 512 * 384
    assert decode_flops(both, 4, 1, 100) == pytest.approx(one_token - encoder - keys_and_values)


def dot_flops(jaxpr) -> int:
    """FLOPs of all matrix products in a jaxpr and its inner jaxprs."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == 'dot_general':
            (contracted, _), _ = equation.params['dimension_numbers']
            inner = np.prod([equation.invars[0].aval.shape[i] for i in contracted])
            total += 2 * int(np.prod(equation.outvars[0].aval.shape) * inner)
        trips = equation.params.get('length', 1) if equation.primitive.name == 'scan' else 1
        for value in equation.params.values():
            for one in value if isinstance(value, tuple) else (value,):
                inner_jaxpr = getattr(one, 'jaxpr', one)
                if hasattr(inner_jaxpr, 'eqns'):
                    total += trips * dot_flops(inner_jaxpr)
    return total


@pytest.mark.parametrize(
    'fields',
    [
        # Without positions, since a product looks up the bias table.
        dict(architecture='encoder_decoder', num_encoder_layers=3, position='none'),
        dict(architecture='decoder_only', num_kv_heads=2, mlp_activations=('relu',), position='rope'),
        dict(architecture='decoder_only', position='rope', tie_embeddings=True),
    ],
)
def test_flops_are_those_of_the_products_in_the_forward_pass(fields):
    sizes = dict(SMALL, vocab_size=96, emb_dim=16, head_dim=8, mlp_dim=24, num_decoder_layers=2)
    config = ModelConfig(**sizes, attention='xla', **fields)
    tokens = lambda length: jax.ShapeDtypeStruct((4, length), jnp.int32)
    batch = {'decoder_input_tokens': tokens(10), 'decoder_target_tokens': tokens(10)}
    if config.architecture == 'encoder_decoder':
        batch['encoder_input_tokens'] = tokens(12)
    jaxpr = jax.make_jaxpr(lambda model, batch: model(batch))(abstract_model(config), batch)
    assert 3 * dot_flops(jaxpr.jaxpr) == model_flops(config, {name: x.shape for name, x in batch.items()})


def test_throughput_counts_tokens_without_compilation_and_pauses():
    config = ModelConfig(architecture='decoder_only', **SMALL)
    times: Iterator[float] = iter([100.0, 104.0, 200.0, 210.0])
    mesh = jax.make_mesh((2,), ('data',), devices=jax.devices()[:2])
    meter = Throughput(config, 16, mesh, peak_tflops=0.5, total_steps=20, clock=lambda: next(times))
    batch = {'decoder_target_tokens': np.array([[5, 6, 0, 0]] * 8)}  # this host's half of the global batch
    flops = model_flops(config, {'decoder_target_tokens': (16, 4)})
    meter.count(batch)
    assert meter.read() == {} and meter.seconds_left(1) is None  # 100: the first step, with compilation
    meter.count(batch), meter.count(batch)
    rates = meter.read()  # 104
    assert rates['steps_per_second'] == 0.5 and rates['tokens_per_second'] == 2 * 32 / 4
    assert rates['tflops_per_second_per_device'] == pytest.approx(2 * flops / 4 / 2 / 1e12)
    assert rates['model_flops_utilisation'] == pytest.approx(2 * flops / 4 / (2 * 0.5e12))
    assert meter.seconds_left(10) == 20.0
    meter.pause()  # 200: 96 seconds of saving
    meter.count(batch), meter.count(batch)
    assert meter.read()['steps_per_second'] == 0.2  # 210
    assert meter.seconds_left(10) == pytest.approx(10 * (0.7 * 2 + 0.3 * 5))


def test_the_peak_of_a_cpu_is_the_most_that_any_start_has_measured(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    measured = iter([0.2, 0.1, 0.4, 0.1, 0.3])
    monkeypatch.setattr(throughput, '_measured_tflops', lambda dtype: next(measured))
    mesh = jax.make_mesh((1,), ('data',), devices=jax.devices()[:1])
    assert [cpu_peak_tflops(mesh, 'float32') for _ in range(4)] == [0.2, 0.2, 0.4, 0.4]
    assert cpu_peak_tflops(mesh, 'bfloat16') == 0.3  # another dtype
    (tmp_path / 't5flan' / 'cpu_peak.json').write_text('[')
    measured = iter([0.1])
    assert cpu_peak_tflops(mesh, 'float32') == 0.1


def test_the_peak_of_a_cpu_is_shared_by_its_devices(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    (tmp_path / 'file').write_text('not a folder, so nothing is remembered')
    mesh = jax.make_mesh((4,), ('data',), devices=jax.devices()[:4])
    one, four = throughput._measured_tflops('float32', 64), cpu_peak_tflops(mesh, 'float32')
    assert one > 0 and four > 0


def test_there_is_no_utilisation_if_the_peak_is_unknown():
    mesh = jax.make_mesh((1,), ('data',), devices=jax.devices()[:1])
    meter = Throughput(ModelConfig(architecture='decoder_only', **SMALL), 1, mesh, None, 10)
    batch = {'decoder_target_tokens': np.ones((1, 4), np.int32)}
    for _ in range(2):
        meter.count(batch)
        rates = meter.read()
    assert 'steps_per_second' in rates and 'model_flops_utilisation' not in rates
