"""t5flan/data/preprocessing/examples.py: preprocessors of single examples, alone and in blocks."""

import numpy as np

from t5flan.data.preprocessing.examples import Context, example_fn, run_block
from t5flan.data.preprocessing.tokenization import append_eos, tokenize
from t5flan.data.randomness import stable_hash
from t5flan.data.vocabulary.byte_level import ByteVocabulary

VOCABULARY = ByteVocabulary()


@example_fn
def upper(example, context, *, suffix=''):
    """Shouts."""
    return {**example, 'inputs': example['inputs'].upper() + suffix}


@example_fn
def only_even_and_twice_fours(example, context):
    if example['n'] % 2:
        return None
    return [example] * 2 if example['n'] % 4 == 0 else example


def contexts(count):
    return [Context(VOCABULARY, {}, index=i) for i in range(count)]


def test_options_and_names_identify_a_preprocessor():
    assert repr(upper.bind(suffix='!')) == "upper(suffix='!')" and upper.__doc__ == 'Shouts.'
    assert 'sequence_length' in upper.__signature__.parameters
    assert 'sequence_length' not in upper.before_cache().__signature__.parameters


def test_a_block_equals_one_by_one():
    functions = [only_even_and_twice_fours, upper.bind(suffix='!'), tokenize, append_eos]
    examples = [{'n': n, 'inputs': 'word' * n, 'targets': str(n)} for n in range(9)]
    together = run_block(functions, examples, contexts(9))
    assert [len(made) for made in together] == [2, 0, 1, 0, 2, 0, 1, 0, 2]
    for number, made in enumerate(together):
        alone = run_block(functions, [examples[number]], [contexts(9)[number]])[0]
        assert [example['inputs'].tolist() for example in made] == [example['inputs'].tolist() for example in alone]
    assert together[2][0]['inputs_pretokenized'] == 'WORDWORD!'
    assert run_block(functions, examples[1:2], contexts(1)) == [[]] and run_block(functions, [], []) == []


def test_random_numbers_depend_on_the_key_of_the_example():
    draw = lambda **key: Context(**key).rng.integers(0, 2**62)
    base = dict(seed=1, task='t', split='train', index=3, epoch=0)
    assert draw(**base) == draw(**base)
    changes = ({'seed': 2}, {'task': 'u'}, {'split': 'test'}, {'index': 4}, {'epoch': 1})
    others = [draw(**base | change) for change in changes]
    assert len({draw(**base), *others}) == 6


def test_the_generator_is_philox_with_the_example_as_its_key():
    context = Context(seed=3, task='t', split='train', index=7, epoch=2)
    plain = np.random.Generator(np.random.Philox(key=stable_hash('3/t/train/7/2')))
    for draw in (
        lambda rng: rng.random(9),
        lambda rng: rng.integers(10, size=5),
        lambda rng: rng.permutation(7),
        lambda rng: rng.normal(),
    ):
        assert np.array_equal(draw(context.rng), draw(plain))
    assert context.rng is context.rng
