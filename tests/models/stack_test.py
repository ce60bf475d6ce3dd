import jax
import numpy as np
import pytest

from t5flan.models import stack
from t5flan.models.layers import fold
from t5flan.models.stack import run_layers
from tests.models.small_models import mean_loss, random_batch, small_config, small_model

LONG = 13  # a length that differs from every size of the model


@pytest.mark.parametrize(
    'family, ways',
    [
        pytest.param('umt5', [(False, 'minimal')], marks=pytest.mark.slow),
        ('relative', [(True, 'minimal'), (True, 'full'), (False, 'none'), (None, 'none')]),
    ],
)
def test_scan_unrolled_and_every_remat_match(family, ways):
    batch, step = random_batch(family), jax.jit(jax.value_and_grad(mean_loss))
    loss, gradient = step(small_model(family, dropout_rate=0.1), batch, jax.random.key(3))
    for scan_layers, remat in ways:
        model = small_model(family, scan_layers=scan_layers, remat=remat, dropout_rate=0.1)
        other_loss, other_gradient = step(model, batch, jax.random.key(3))
        np.testing.assert_allclose(other_loss, loss, rtol=1e-6)
        for x, y in zip(jax.tree.leaves(gradient), jax.tree.leaves(other_gradient), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(x).max(), rtol=0)


@pytest.mark.parametrize(
    'layers, pattern, others',
    [
        pytest.param(3, ('window', 'nope'), [{'scan_layers': False}], marks=pytest.mark.slow),  # one layer left over
        pytest.param(
            7,
            ('window', 'full', 'window_nope'),
            [{'scan_layers': False}, {'remat': 'minimal'}, {'remat': 'full'}],
            marks=pytest.mark.slow,
        ),
        pytest.param(2, ('window', 'full', 'nope'), [{'remat': 'full'}], marks=pytest.mark.slow),  # no whole group
    ],
)
def test_layers_of_several_kinds_scan_in_groups(layers, pattern, others):
    fields = {'layer_pattern': pattern, 'num_decoder_layers': layers, 'dropout_rate': 0.1}
    batch, step = random_batch('modern'), jax.jit(jax.value_and_grad(mean_loss))
    loss, gradient = step(small_model('modern', **fields), batch, jax.random.key(3))
    for other in others:
        other_loss, other_gradient = step(small_model('modern', **fields, **other), batch, jax.random.key(3))
        np.testing.assert_allclose(other_loss, loss, rtol=1e-6)
        for x, y in zip(jax.tree.leaves(gradient), jax.tree.leaves(other_gradient), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(x).max(), rtol=0)


@pytest.mark.slow
def test_each_layer_has_its_own_kind():
    """By gradient: which tokens the last hidden state depends on. All tokens are different words."""
    batch = {'decoder_input_tokens': np.arange(10, 19)[None]}

    def seen(*pattern: str, layers: int) -> int:
        fields = {'layer_pattern': pattern, 'num_decoder_layers': layers, 'attention_window': 3}
        model = small_model('modern', **fields, rope_local_base=None)
        gradient = jax.jit(jax.grad(lambda model: model.hidden(batch)[0, -1].sum()))(model)
        return np.count_nonzero(np.abs(gradient.token_embedder.embedding[...]).max(axis=1))

    assert seen('window', layers=3) == 7
    assert seen('window', 'window', 'nope', layers=2) == 5
    assert seen('window', 'window', 'nope', layers=3) == 9


def test_remat_saves_the_documented_arrays():
    """By the arrays that the backward pass receives."""
    batch = random_batch('relative', target=LONG)

    def kept(remat: str) -> list[tuple[int, ...]]:
        model = small_model('relative', remat=remat, attention='xla')
        _, backward = jax.vjp(lambda model: model.hidden(batch).sum(), model)
        return [x.shape for x in jax.tree.leaves(backward)]

    shapes = {remat: kept(remat) for remat in ('none', 'minimal', 'full')}
    numbers = {remat: sum(int(np.prod(shape)) for shape in shapes[remat]) for remat in shapes}
    assert numbers['full'] < numbers['minimal'] < numbers['none']
    # Neither the relative bias nor attention's probabilities: nothing with two lengths.
    assert any(shape.count(LONG) == 2 for shape in shapes['none'])
    assert not any(shape.count(LONG) == 2 for shape in (*shapes['minimal'], *shapes['full']))
    # 'minimal' saves the inner projections of the MLP of all layers, 'full' does not.
    assert (2, 3, LONG, 48) in shapes['minimal'] and (2, 3, LONG, 48) not in shapes['full']


def test_remat_minimal_on_an_accelerator_leaves_out_the_largest_projections(monkeypatch):
    batch = random_batch('t5_1_1', source=11, target=LONG)

    def kept(remat: str) -> list[tuple[int, ...]]:
        model = small_model('t5_1_1', remat=remat, attention='xla')
        backward = jax.eval_shape(lambda model: jax.vjp(lambda model: model.hidden(batch).sum(), model)[1], model)
        return [x.shape for x in jax.tree.leaves(backward)]

    on_cpu = kept('minimal')
    monkeypatch.setattr(stack, 'platform', lambda: 'tpu')
    shapes, full = kept('minimal'), kept('full')
    inner = (2, 3, LONG, 48)
    of_heads = lambda shapes, length: sum(shape[:3] == (2, 3, length) and len(shape) == 5 for shape in shapes)
    assert on_cpu.count(inner) - shapes.count(inner) == 2 and inner not in shapes
    assert of_heads(on_cpu, 11) - of_heads(shapes, 11) == 2  # keys and values of the encoder's output
    assert of_heads(on_cpu, LONG) == of_heads(shapes, LONG) > of_heads(full, LONG) == 0


def test_dropout_differs_by_layer_and_by_key():
    batch = random_batch('positionless')
    model = small_model('positionless', dropout_rate=0.5)
    hidden = jax.jit(lambda model, key: model.hidden(batch, dropout_key=key))
    first, second = hidden(model, jax.random.key(0)), hidden(model, jax.random.key(1))
    np.testing.assert_array_equal(first, hidden(model, jax.random.key(0)))
    assert np.abs(first - second).max() > 0.1

    def body(carry: None, layer: jax.Array, _: None) -> tuple[None, jax.Array]:
        return carry, jax.random.bernoulli(fold(jax.random.key(0), layer), 0.5, (64,))

    _, drawn = run_layers(model.config, body, None, None, 2)
    assert (drawn[0] != drawn[1]).any()


@pytest.mark.parametrize(
    'scan_layers, layers, scans', [(None, 2, False), (None, 3, True), (True, 2, True), (False, 3, False)]
)
def test_only_stacks_of_more_than_two_layers_are_scanned_by_default(scan_layers, layers, scans):
    config = small_config('t5_1_1', scan_layers=scan_layers)
    traced = jax.make_jaxpr(lambda x: run_layers(config, lambda carry, layer, x: (carry + x, None), 0.0, x, layers))
    assert ('scan' in str(traced(np.ones(layers)))) == scans
