"""The weighted sum of adapters is the sum of their products, in memory and in folders; others are refused."""

import json
import shutil

import jax
import numpy as np
import pytest

import t5flan
from t5flan.adapters import adapter as adapters
from t5flan.adapters.combine import Weighted, combine
from t5flan.adapters.methods.ada_lora import AdaLora
from t5flan.adapters.methods.bottleneck import Bottleneck
from t5flan.adapters.methods.dora import Dora
from t5flan.adapters.methods.dy_lora import DyLora
from t5flan.adapters.methods.ia3 import Ia3
from t5flan.adapters.methods.lora import Lora, rank_and_scale
from t5flan.adapters.methods.prompt_tuning import PromptTuning
from t5flan.commands import COMMANDS
from t5flan.commands.arguments import parse_arguments
from t5flan.conversion import convert
from t5flan.errors import UsageError, UserError
from t5flan.models.parameters import named_parameters
from tests.adapters.properties import write_adapter
from tests.saved_model import byte_model, save_folder

ONE = Lora(rank=2, alpha=6, rank_pattern={'.*/value/kernel': 3})
OTHER = Lora(rank=4, rslora=True, targets=['.*attention/(query|out)/kernel'])
WEIGHTS = (0.7, -0.4)


def weighted(settings, seed, weight, name='one'):
    """An adapter of random numbers."""
    new = lambda: adapters.adapter_arrays(adapters.apply(byte_model(), settings, jax.random.key(0)))
    rng = np.random.default_rng(seed)
    arrays = {path: rng.normal(size=x.shape).astype(np.float32) for path, x in jax.eval_shape(new).items()}
    return Weighted(name, weight, settings, arrays)


def product(settings, arrays, path):
    """scale * A B of every layer; 0 where there is none."""
    if f'{path}/lora_a' not in arrays:
        return 0.0
    _, scale = rank_and_scale(settings, f'{path}/kernel')
    a, b = arrays[f'{path}/lora_a'], arrays[f'{path}/lora_b']
    return scale * np.stack([np.tensordot(one, other, 1) for one, other in zip(a, b)])


def test_cat_is_the_sum_of_the_products():
    pair = [weighted(ONE, 1, WEIGHTS[0]), weighted(OTHER, 2, WEIGHTS[1])]
    settings, arrays = combine(pair)
    paths = {name.rpartition('/')[0] for one in pair for name in one.arrays}
    assert len(paths) == 9 and paths == {name.rpartition('/')[0] for name in arrays}  # query, value, out
    for path in paths:
        expected = sum(one.weight * product(one.settings, one.arrays, path) for one in pair)
        np.testing.assert_allclose(product(settings, arrays, path), expected, rtol=1e-5, atol=1e-4)
    assert settings.rank == 6 and set(settings.rank_pattern.values()) == {3, 4}
    adapted = jax.eval_shape(lambda: adapters.apply(byte_model(), settings, jax.random.key(0)))
    assert {name: x.shape for name, x in adapters.adapter_arrays(adapted).items()} == {
        name: x.shape for name, x in arrays.items()
    }


def test_linear_is_the_sum_of_the_roots_and_exact_for_one():
    one = weighted(ONE, 1, 0.5)
    settings, arrays = combine([one], 'linear')
    for path in {name.rpartition('/')[0] for name in arrays}:
        expected = 0.5 * product(one.settings, one.arrays, path)
        np.testing.assert_allclose(product(settings, arrays, path), expected, rtol=1e-5, atol=1e-5)
    both = [weighted(OTHER, 1, 0.5), weighted(OTHER, 2, -2.0)]
    _, arrays = combine(both, 'linear')
    scale = 16 / np.sqrt(4)
    for name, x in arrays.items():
        a, b = (one.arrays[name] for one in both)
        sign = -1 if name.endswith('lora_a') else 1
        np.testing.assert_allclose(x, np.sqrt(0.5 * scale) * a + sign * np.sqrt(2 * scale) * b, rtol=1e-5, atol=1e-6)


def test_biases_add_up():
    with_bias = Lora(rank=4, targets=OTHER.targets, bias=True)
    pair = [weighted(with_bias, 1, 0.5), weighted(OTHER, 2, 1.0)]
    settings, arrays = combine(pair)
    assert settings.bias
    for name in (name for name in arrays if name.endswith('bias')):
        np.testing.assert_allclose(arrays[name], 0.5 * 4 * pair[0].arrays[name], rtol=1e-6)


SCALES = Ia3(targets=['.*self_attention/(key|value)/kernel'])
PAIRS = {
    'AdaLora': (AdaLora(init_rank=3, target_rank=2), AdaLora(init_rank=2, target_rank=1, targets=OTHER.targets)),
    'DyLora and Lora': (DyLora(rank=2), OTHER),
    'AdaLora and Lora': (AdaLora(init_rank=3, target_rank=2), ONE),
    'Ia3': (Ia3(), SCALES),
}


def merged_kernels(settings, arrays):
    model = adapters.with_arrays(adapters.apply(byte_model(), settings, jax.random.key(0)), arrays)
    return named_parameters(adapters.merge(model))


@pytest.mark.parametrize('name', PAIRS)
def test_kernels_change_by_the_weighted_sum_of_the_changes(name):
    pair = [weighted(one, seed, w) for seed, (one, w) in enumerate(zip(PAIRS[name], WEIGHTS))]
    base, alone = named_parameters(byte_model()), [merged_kernels(one.settings, one.arrays) for one in pair]
    for path, kernel in merged_kernels(*combine(pair)).items():
        expected = base[path] + sum(w * (each[path] - base[path]) for w, each in zip(WEIGHTS, alone))
        np.testing.assert_allclose(kernel, expected, rtol=1e-5, atol=1e-4, err_msg=path)


def added_by_bottleneck(settings, arrays, x_BTD):
    """What the bottleneck of the first layer's MLP adds to its output."""
    model = adapters.with_arrays(adapters.apply(byte_model(), settings, jax.random.key(0)), arrays)
    mlp = model.decoder.layers.mlp
    if not hasattr(mlp, 'bottleneck'):
        return 0.0
    return jax.tree.map(lambda x: x[0], mlp.bottleneck).beside(x_BTD, x_BTD) - x_BTD


@pytest.mark.parametrize('kind', ['series', 'parallel'])
def test_bottlenecks_stand_side_by_side(kind):
    both = Bottleneck(size=3, kind=kind, scale=2.0), Bottleneck(size=2, kind=kind, sublayers=('attention',))
    pair = [weighted(one, seed, w) for seed, (one, w) in enumerate(zip((*both, both[0]), (*WEIGHTS, 1.5)))]
    settings, arrays = combine(pair)
    assert settings == Bottleneck(size=8, kind=kind)
    x_BTD = jax.random.normal(jax.random.key(1), (2, 3, byte_model().config.emb_dim))
    expected = sum(one.weight * added_by_bottleneck(one.settings, one.arrays, x_BTD) for one in pair)
    np.testing.assert_allclose(added_by_bottleneck(settings, arrays, x_BTD), expected, rtol=1e-5, atol=1e-4)


def test_linear_adds_the_scales_of_ia3_as_peft():
    pair = [weighted(Ia3(), 1, WEIGHTS[0]), weighted(Ia3(), 2, WEIGHTS[1])]
    settings, arrays = combine(pair, 'linear')
    for name, x in arrays.items():
        np.testing.assert_allclose(x, sum(one.weight * one.arrays[name] for one in pair), rtol=1e-5, atol=1e-6)
    assert arrays.keys() == pair[0].arrays.keys() and len(settings.input_targets) == 2


@pytest.mark.parametrize('settings', [Dora(rank=2), PromptTuning()])
def test_other_methods_do_not_add_up(settings):
    method = type(settings).__name__
    known = 'Lora, AdaLora, DyLora, Ia3, Bottleneck'
    with pytest.raises(UserError, match=f'two has the method {method}, expected one of {known}: adapters of other'):
        combine([weighted(ONE, 0, 1), Weighted('two', 1, settings, {})])


@pytest.mark.parametrize(
    ('one', 'two', 'convention', 'words'),
    [
        (ONE, Ia3(), 'cat', 'one has the method Lora, two the method Ia3: they do not add up. Combine adapters of one'),
        (Ia3(), SCALES, 'linear', 'one rescales .*/key, two does not, expected the same .* Set --combine=cat'),
        (
            Ia3(),
            Ia3(targets=(), input_targets=['.*attention/key/kernel']),
            'cat',
            'two rescales the inputs of .*/key, one its outputs: they do not add up. Leave one of them out',
        ),
        (Bottleneck(), Bottleneck(kind='parallel'), 'cat', "one has Bottleneck.kind='series', two 'parallel': they do"),
        (Bottleneck(), Bottleneck(), 'linear', 'its parameters do not add up. Set --combine=cat'),
        (Lora(rank=20), Lora(rank=20), 'cat', 'the ranks add up to 40 in .*, a matrix of .* Set --combine=linear'),
    ],
)
def test_adapters_that_have_no_sum(one, two, convention, words):
    with pytest.raises(UserError, match=words) as error:
        combine([weighted(one, 0, 1), weighted(two, 0, 1, 'two')], convention)
    assert '\n' not in str(error.value)


def test_linear_needs_equal_ranks():
    words = 'one has rank 2 in .*/query, two has rank 4, expected equal ranks .* Set --combine=cat'
    with pytest.raises(UserError, match=words) as error:
        combine([weighted(ONE, 0, 1), weighted(OTHER, 0, 1, 'two')], 'linear')
    assert '\n' not in str(error.value)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('runs')
    base = save_folder(root / 'base', byte_model(), steps=(3,))
    return base, [write_adapter(root / str(i), base, one, i) for i, one in enumerate((ONE, OTHER))]


@pytest.mark.slow
def test_folders_are_combined_and_merged(folders, tmp_path):
    base, (one, other) = folders
    sources = f'{one}:0.7,{other}:-0.4'
    command, arguments = parse_arguments(
        ['convert', '--from=t5flan', '--to=t5flan', '--combine=cat', sources, f'{tmp_path}/sum'], COMMANDS
    )
    command.run(arguments)
    convert.main(sources, str(tmp_path / 'merged'), 't5flan', 't5flan', combine='cat', merge=True)
    batch = {name: np.arange(3, 15, dtype=np.int32)[None] for name in ('encoder_input_tokens', 'decoder_input_tokens')}
    found = t5flan.load(tmp_path / 'sum').logits(batch)
    np.testing.assert_allclose(found, t5flan.load(tmp_path / 'merged').logits(batch), atol=2e-5)
    plain, kernels = t5flan.load(base).model, named_parameters(t5flan.load(tmp_path / 'merged').model)
    alone = [named_parameters(t5flan.load(folder).model) for folder in (one, other)]
    for name, kernel in named_parameters(plain).items():
        expected = kernel + sum(w * (each[name] - kernel) for w, each in zip(WEIGHTS, alone))
        np.testing.assert_allclose(kernels[name], expected, atol=2e-6)
    both = t5flan.load(base, adapters={'sum': tmp_path / 'sum', 'one': one})
    np.testing.assert_allclose(both.logits(batch, adapter='sum'), found, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize('how', [{}, {'combine': 'cat'}, {'combine': 'cat', 'merge': True}, {'rank': 1}], ids=str)
def test_a_base_that_has_changed_is_refused(folders, tmp_path, how):
    """By every way to use an adapter without loading it: nothing is made of it and another base."""
    _, (source, _) = folders
    base = save_folder(tmp_path / 'base', byte_model(), steps=(3,))
    if 'rank' in how:
        source = write_adapter(tmp_path / 'dylora', base, DyLora(rank=2))
    one = shutil.copytree(source, tmp_path / 'one')
    fields = json.loads((one / 't5flan.json').read_text())
    fields['adapter']['base'] = str(base)
    (one / 't5flan.json').write_text(json.dumps(fields))
    given = f'{one}:1' if 'combine' in how else str(one)
    convert.main(given, str(tmp_path / 'fine'), 't5flan', 't5flan', **how)
    shutil.rmtree(base)
    save_folder(base, jax.tree.map(lambda x: x + 1e-3, byte_model()), steps=(3,))
    with pytest.raises(UserError, match='is an adapter of another base: the parameters of .*base.* have changed'):
        convert.main(given, str(tmp_path / 'x'), 't5flan', 't5flan', **how)
    assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize(
    ('sources', 'words'),
    [
        ('{0}', 'is not a folder with its weight, expected DIR:WEIGHT'),
        ('{0}:much', 'is not a folder with its weight, expected DIR:WEIGHT'),
        ('{0}:nan', 'is not a folder with its weight, expected DIR:WEIGHT'),
        ('{base}:1', 'base holds a whole model, not an adapter: it cannot be combined'),
        ('{0}:1,{other}:1', 'other and .* are adapters of different bases, .*: they do not compose'),
    ],
)
def test_sources_that_do_not_compose_are_refused(folders, tmp_path, sources, words):
    base, (one, _) = folders
    other = shutil.copytree(one, tmp_path / 'other')
    fields = json.loads((other / 't5flan.json').read_text())
    fields['adapter']['fingerprint'] = '0' * 16
    (other / 't5flan.json').write_text(json.dumps(fields))
    with pytest.raises(UserError, match=words) as error:
        convert.main(
            sources.format(one, base=base, other=other), str(tmp_path / 'x'), 't5flan', 't5flan', combine='cat'
        )
    assert '\n' not in str(error.value) and not (tmp_path / 'x').exists()


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        (['--from=t5flan', '--to=t5flan', '--combine=sum'], '--combine=sum is not one of cat, linear'),
        (['--from=peft', '--to=t5flan', '--combine=cat'], '--combine reads adapters of t5flan'),
        (['--from=t5flan', '--to=hf', '--combine=cat'], '--combine writes an adapter of t5flan, but --to=hf'),
        (['--from=t5flan', '--to=t5flan', '--combine=cat', '--dtype=float16'], '--dtype, .* are for whole models'),
    ],
)
def test_flags_that_do_not_go_together(flags, words):
    command, arguments = parse_arguments(['convert', *flags, 'a:1', 'b'], COMMANDS)
    with pytest.raises(UsageError, match=words):
        command.run(arguments)
