"""t5flan/data/preprocessing/examples.py: preprocessors over single examples, alone and in blocks."""

import subprocess
import sys

import numpy as np
import pytest

from t5flan.data.preprocessing.examples import Context, example_fn, run_block
from t5flan.data.preprocessing.tokenization import append_eos, tokenize
from t5flan.data.randomness import stable_hash
from t5flan.data.records.text_files import require_field
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.errors import UserError

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


def test_tokens_and_end():
    example = {'inputs': 'né', 'targets': 'b', 'id': 7}
    made = append_eos.apply(tokenize.apply(example, contexts(1)[0]), contexts(1)[0])
    assert made['inputs'].tolist() == [113, 198, 172, 1] and made['inputs'].dtype == np.int32
    assert (made['targets'].tolist(), made['inputs_pretokenized'], made['targets_pretokenized'], made['id']) == (
        [101, 1],
        'né',
        'b',
        7,
    )
    assert example == {'inputs': 'né', 'targets': 'b', 'id': 7}, 'the record is left as it was'


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


def test_random_numbers_belong_to_the_example():
    draw = lambda **key: Context(**key).rng.integers(0, 2**62)
    base = dict(seed=1, task='t', split='train', index=3, epoch=0)
    assert draw(**base) == draw(**base)
    others = [
        draw(**base | change) for change in ({'seed': 2}, {'task': 'u'}, {'split': 'test'}, {'index': 4}, {'epoch': 1})
    ]
    assert len({draw(**base), *others}) == 6


def test_hashes_are_the_same_in_every_process():
    assert stable_hash('text') == stable_hash(b'text') != stable_hash('Text')
    program = "from t5flan.data.randomness import stable_hash; print(stable_hash('text'))"
    out = subprocess.run([sys.executable, '-c', program], check=True, capture_output=True, text=True).stdout
    assert int(out) == stable_hash('text')


def test_a_missing_field_names_those_there():
    with pytest.raises(
        UserError, match="f.jsonl line 3: no field 'inputs'; the fields are question, answer. Set FileTask.input_field"
    ):
        require_field({'question': 'a', 'answer': 'b'}, 'inputs', 'f.jsonl line 3', 'FileTask.input_field')
    with pytest.raises(UserError, match=r"field 'answer' is int \(42\), it must be text"):
        require_field({'answer': 42}, 'answer', 'f.jsonl line 3', 'FileTask.target_field')


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
