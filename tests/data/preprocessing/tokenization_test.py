"""t5flan/data/preprocessing/tokenization.py: text becomes ids that end with end of sequence, alone and in blocks."""

import numpy as np

from t5flan.data.preprocessing.examples import Context
from t5flan.data.preprocessing.tokenization import append_eos, tokenize
from t5flan.data.vocabulary.byte_level import ByteVocabulary

CONTEXT = Context(ByteVocabulary(), {})


def test_tokens_and_end_of_sequence():
    example = {'inputs': 'né', 'targets': 'b', 'id': 7}
    made = append_eos.apply(tokenize.apply(example, CONTEXT), CONTEXT)
    assert made['inputs'].tolist() == [113, 198, 172, 1] and made['inputs'].dtype == np.int32
    assert made['targets'].tolist() == [101, 1] and made['id'] == 7
    assert (made['inputs_pretokenized'], made['targets_pretokenized']) == ('né', 'b')
    assert example == {'inputs': 'né', 'targets': 'b', 'id': 7}, 'the record is left as it was'


def test_a_block_equals_one_by_one_and_tokens_stay():
    tokens = np.array([5, 6], np.int32)
    examples = [{'targets': 'a'}, {'inputs': tokens, 'targets': b'bc'}, {'inputs': '', 'targets': 'd'}, {'n': 1}]
    together = tokenize.apply_block(examples, [CONTEXT] * 4)
    for one, example in zip(together, examples, strict=True):
        alone = tokenize.apply(example, CONTEXT)
        assert one.keys() == alone.keys() and all(np.array_equal(one[name], alone[name]) for name in one)
    assert together[1]['inputs'] is tokens and 'inputs_pretokenized' not in together[1]
    assert together[1]['targets_pretokenized'] == 'bc' and together[2]['inputs'].tolist() == []
    assert tokenize.apply_block([], []) == []
