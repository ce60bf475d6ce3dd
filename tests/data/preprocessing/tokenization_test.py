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


def test_special_tokens_in_rows_are_the_ids_that_generation_reads():
    vocabulary = ByteVocabulary(5, ('[S2S]',)).with_added_tokens(['<a>'])
    texts = ['<extra_id_3> word', 'no token', '[S2S]<a>x', '</s>']
    made = tokenize.apply_block([{'inputs': text, 'targets': text} for text in texts], [Context(vocabulary, {})] * 4)
    for text, one in zip(texts, made, strict=True):
        assert one['inputs'].tolist() == one['targets'].tolist() == vocabulary.encode(text)
    assert made[0]['inputs'][0] == vocabulary.sentinel_id(3) and 1 not in made[3]['inputs']
