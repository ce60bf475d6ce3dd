"""tasks/tk_instruct.py: prompts of Natural Instructions exactly as Tk-Instruct has them."""

import json

import pytest

from t5flan.data.instruction_config import InstructionConfig
from t5flan.data.preprocessing.examples import Context
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.errors import UserError
from t5flan.tasks import natural_instructions as ni

VOCABULARY = ByteVocabulary()
TASK = {
    'Definition': ['Say whether the review is positive'],
    'Positive Examples': [
        {'input': 'I liked it.', 'output': 'yes', 'explanation': 'liked'},
        {'input': ' Boring', 'output': 'no', 'explanation': 'bored'},
        {'input': 'third', 'output': 'no', 'explanation': ''},
    ],
    'Negative Examples': [{'input': 'Fine!', 'output': 'maybe', 'explanation': 'it must be yes or no'}],
    'Instances': [{'input': 'It is bad', 'output': ['no', 'not at all']}, {'input': 'Good?', 'output': 'yes'}],
}
HEAD = 'Definition: Say whether the review is positive.\n\n'
FIRST = ' Positive Example 1 -\nInput: I liked it.\n Output: yes.\n\n'
SECOND = ' Positive Example 2 -\nInput: Boring.\n Output: no.\n\n'
NEGATIVE = ' Negative Example 1 -\nInput: Fine!\n Output: maybe.\n\n'
ASKED = 'Now complete the following example -\nInput: It is bad.\nOutput: '


@pytest.fixture
def file(tmp_path):
    path = tmp_path / 'task1_review.json'
    path.write_text(json.dumps(TASK))
    return ni.TaskFile(str(path))


def made(file, number=0, vocabulary=None, split='train', index=0, lengths=None, **settings):
    settings = InstructionConfig(natural_instructions_layout='tk_instruct', **settings)
    context = Context(vocabulary, lengths or {}, task='t', split=split, index=index, instructions=settings)
    [example] = ni.FollowDefinition(file).apply_block([file.instance(number)], [context])
    return example


@pytest.mark.parametrize(
    'counts,expected',
    [
        ((2, 0), HEAD + FIRST + SECOND + ASKED),
        ((0, 0), HEAD + ASKED),
        ((1, 2), HEAD + FIRST + NEGATIVE + ASKED),
    ],
)
def test_the_layout_is_that_of_tk_instruct(file, counts, expected):
    example = made(file, tk_instruct_examples=counts, few_shot=0.0, negative_examples=1.0, inverted=1.0)
    assert example['inputs'] == expected and example['targets'] in ('no', 'not at all')
    assert example['answers'] == ['no', 'not at all'] and example['exemplars'] == expected.count('Example ')
    assert made(file, 1)['inputs'].endswith('Input: Good?\nOutput: ')


def test_all_outputs_are_trained_on_and_the_first_is_measured(file):
    assert {made(file, index=i)['targets'] for i in range(20)} == {'no', 'not at all'}
    assert {made(file, index=i, split='validation')['targets'] for i in range(20)} == {'no'}


def test_the_first_examples_that_fit_are_kept(file):
    ends = [len((HEAD + shown + ASKED).encode()) + 1 for shown in ('', FIRST, FIRST + SECOND)]
    for limit, kept in ((ends[2] + 1, 2), (ends[2] - 1, 1), (ends[1], 1), (ends[1] - 1, 0), (10, 0)):
        example = made(file, vocabulary=VOCABULARY, lengths={'inputs': limit, 'targets': 9})
        assert example['exemplars'] == kept
        assert VOCABULARY.decode(example['inputs']) == example['inputs_pretokenized']


@pytest.mark.parametrize(
    'settings,message',
    [
        ({'natural_instructions_layout': 'tk'}, "natural_instructions_layout='tk', expected"),
        ({'tk_instruct_examples': (2,)}, r'tk_instruct_examples=\(2,\), expected two whole numbers of 0 or more'),
        ({'tk_instruct_examples': (2, -1)}, 'expected two whole numbers'),
    ],
)
def test_one_line_for_a_wrong_setting(settings, message):
    with pytest.raises(UserError, match=message):
        InstructionConfig(**settings)
