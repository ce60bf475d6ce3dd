"""The rows of the table, TFDS's mocked records, and records by hand."""

import contextlib

import pytest

from t5flan.tasks.flan.table import load_table

tfds = pytest.importorskip('tensorflow_datasets')

TABLE_ROWS = {row.name: row for row in load_table().datasets}
TFDS_ROWS = [name for name, row in TABLE_ROWS.items() if row.tfds]
HUB_ROWS = [name for name, row in TABLE_ROWS.items() if row.hub]

# Rows that parse the text of their records, which in mocks is random letters: one record for each, and its item.
BY_HAND = {
    'sentiment140': ({'polarity': 4, 'text': 'What a day!'}, {'text': 'What a day!', 'answer': 'positive'}),
    'unified_qa_science': (
        {'input': 'What shines? \\n (A) the Sun (B) a stone', 'output': 'the Sun'},
        {'question': 'What shines?', 'answer': 'the Sun', 'options': ['the Sun', 'a stone']},
    ),
    'true_case': ({'en': 'Paris is big.', 'da': ''}, {'text': 'paris is big.', 'answer': 'Paris is big.'}),
    'qasc': (
        {
            'question': 'What is hot?', 'choices': {'text': ['ice', 'fire'], 'label': ['A', 'B']}, 'answerKey': 'B',
            'combinedfact': 'Fire is hot.',
        },
        {'question': 'What is hot?', 'answer': 'fire', 'options': ['ice', 'fire'], 'rationale': 'Fire is hot.'},
    ),
    'quoref': (
        {'input': 'Who came? \\n Ann came.', 'output': 'Ann'},
        {'passage': 'Ann came.', 'question': 'Who came?', 'answer': 'Ann'},
    ),
    'ropes': (
        {'input': 'Which? \\n A and B.', 'output': 'A'}, {'passage': 'A and B.', 'question': 'Which?', 'answer': 'A'},
    ),
    'social_iqa': (
        {'input': 'Why? \\n (a) to eat (b) to run (c) to sit \\n Jo went out.', 'output': 'to run'},
        {'passage': 'Jo went out.', 'question': 'Why?', 'answer': 'to run', 'options': ['to eat', 'to run', 'to sit']},
    ),
    'race_high': (
        {'article': 'Text.', 'questions': ['One?', 'Two?'], 'options': [['a', 'b'], ['c', 'd']], 'answers': ['B', 'A']},
        {'passage': 'Text.', 'question': 'One?', 'answer': 'b', 'options': ['a', 'b']},
    ),
    'qasc_facts': (
        {
            'question': 'What is hot?', 'choices': {'text': ['ice', 'fire'], 'label': ['A', 'B']}, 'answerKey': 'B',
            'fact1': 'Fire burns', 'fact2': 'What burns is hot',
        },
        {'passage': 'Fire burns. What burns is hot.', 'question': 'What is hot?', 'answer': 'fire'},
    ),
    'qasc_is_correct': (
        {'question': 'What is hot?', 'choices': {'text': ['ice', 'fire'], 'label': ['A', 'B']}, 'answerKey': 'B'},
        {'question': 'What is hot? Is "fire" the right answer?', 'answer': 'yes', 'options': ['no', 'yes']},
    ),
    'social_iqa_is_valid': (
        {'input': 'Why? \\n (a) to eat (b) to run (c) to sit \\n Jo went out.', 'output': 'to run'},
        {'passage': 'Jo went out.', 'options': ['no', 'yes']},
    ),
    'race_high_is_right': (
        {'article': 'Text.', 'questions': ['One?', 'Two?'], 'options': [['a', 'b'], ['c', 'd']], 'answers': ['B', 'A']},
        {'passage': 'Text.', 'options': ['no', 'yes']},
    ),
    'race_middle_is_right': (
        {'article': 'Text.', 'questions': ['One?'], 'options': [['a', 'b', 'c']], 'answers': ['C']},
        {'passage': 'Text.', 'options': ['no', 'yes']},
    ),
    'race_high_write': (
        {'article': 'Text.', 'questions': ['One?'], 'options': [['a', 'b']], 'answers': ['B']},
        {'text': 'Text.', 'answer': 'One?\n(A) a\n(B) b\nAnswer: (B)'},
    ),
    'race_middle_write': (
        {'article': 'Text.', 'questions': ['One?'], 'options': [['a', 'b']], 'answers': ['A']},
        {'text': 'Text.', 'answer': 'One?\n(A) a\n(B) b\nAnswer: (A)'},
    ),
    'race_middle': (
        {'article': 'Text.', 'questions': ['One?'], 'options': [['a', 'b', 'c']], 'answers': ['C']},
        {'passage': 'Text.', 'question': 'One?', 'answer': 'c', 'options': ['a', 'b', 'c']},
    ),
}  # fmt: skip


@contextlib.contextmanager
def mocks(count=24):
    """Replaces TFDS's data sets with `count` mocked records of the right schema."""
    with tfds.testing.mock_data(num_examples=count):
        yield
