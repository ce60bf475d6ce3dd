"""t5flan/data/prompting/published_rows.py: rows of published data sets as questions, answers and options."""

import pytest

from t5flan.data.prompting.published_rows import as_question, inputs_and_targets, is_wrong_option

LONG = 'Each has 48/2 = <<48/2=24>>24.\nSo 24 + 48 = <<24+48=72>>72.\n#### 72'
CHOICES = [{'label': 'A', 'text': 'bank'}, {'label': 'B', 'text': 'library'}]
QUESTIONS = {
    'AddSub': (
        {'iIndex': 3, 'sQuestion': ' How many? ', 'lEquations': ['X=1+2'], 'lSolutions': [3.0], 'lAlignments': [1]},
        {'question': 'How many?', 'answer': '3', 'rationale': ''},
    ),
    'MultiArith with a fraction': (
        {'iIndex': 0, 'sQuestion': 'How much?', 'lSolutions': [2.5]},
        {'question': 'How much?', 'answer': '2.5', 'rationale': ''},
    ),
    'SVAMP': (
        {'ID': 'chal-1', 'Body': 'Each pack costs 76. ', 'Question': 'What is left?', 'Answer': 51.0, 'Type': 'Sub'},
        {'question': 'Each pack costs 76. What is left?', 'answer': '51', 'rationale': ''},
    ),
    'AQuA': (
        {'question': 'x?', 'options': ['A)21', 'B) 21.5', 'C)22'], 'correct': 'B', 'rationale': 'It is 43/2.'},
        {'question': 'x?', 'answer': '21.5', 'rationale': 'It is 43/2.', 'options': ['21', '21.5', '22']},
    ),
    'AQuA whose rationale names the letter': (
        {'question': 'x?', 'options': ['A)21', 'B)22'], 'correct': 'B', 'rationale': 'Thus 22.\nAnswer: B'},
        {'question': 'x?\nOptions:\n(A) 21\n(B) 22', 'answer': '(B)', 'rationale': 'Thus 22.\nAnswer: B'},
    ),
    'GSM8K': (
        {'question': 'How many?', 'answer': LONG},
        {'question': 'How many?', 'answer': '72', 'rationale': 'Each has 48/2 = 24.\nSo 24 + 48 = 72.'},
    ),
    'CommonsenseQA': (
        {'answerKey': 'B', 'id': '1', 'question': {'question_concept': 'book', 'stem': 'Where?', 'choices': CHOICES}},
        {'question': 'Where?', 'answer': 'library', 'rationale': '', 'options': ['bank', 'library']},
    ),
    'CommonsenseQA of the hub': (
        {'question': 'Where?', 'choices': {'label': ['A', 'B'], 'text': ['bank', 'library']}, 'answerKey': 'A'},
        {'question': 'Where?', 'answer': 'bank', 'rationale': '', 'options': ['bank', 'library']},
    ),
    'BIG-bench': (
        {'input': 'Is it?', 'target_scores': {'Yes': 0, 'No': 1}, 'target': 'No. It is not.'},
        {'question': 'Is it?', 'answer': 'No', 'rationale': '', 'options': ['Yes', 'No']},
    ),
    'coin flip': (
        {'question': 'Is it still heads up?', 'answer': 'yes'},
        {'question': 'Is it still heads up?', 'answer': 'yes', 'rationale': ''},
    ),
    'last letters': (
        {'question': 'Take the last letters.', 'answer': 'nk', 'index': 4},
        {'question': 'Take the last letters.', 'answer': 'nk', 'rationale': ''},
    ),
}


@pytest.mark.parametrize('row,expected', QUESTIONS.values(), ids=QUESTIONS)
def test_questions_as_published(row, expected):
    assert as_question(row) == expected


@pytest.mark.parametrize(
    'row',
    [
        {'question': 'Q', 'answer': 'A', 'rationale': 'R'},
        {'source': 'Q', 'target': 'A', 'rationale': 'R'},
        {'question': 'Q', 'answer': {'text': ['A']}},
        {'question': 'Q', 'options': ['A)1'], 'correct': 'E'},
        {'question': 'Q', 'options': [3], 'correct': 'A'},
        {'question': 'Q', 'answerKey': 'A'},
        {'question': 'Q', 'answerKey': '', 'choices': CHOICES},
        {'sQuestion': 'Q', 'lSolutions': []},
        {'input': 'Q', 'target_scores': {}},
        {},
    ],
)
def test_other_rows_are_none(row):
    assert as_question(row) is None


def test_t0s_export_has_its_text_beside_token_ids():
    row = {'inputs': [3, 4], 'inputs_pretokenized': 'Is it?', 'targets': [5], 'targets_pretokenized': '\nYes'}
    row |= {'answer_choices': ['Yes', 'No'], 'is_correct': True}
    made = inputs_and_targets(row)
    assert (made['inputs'], made['targets'], made['answer_choices']) == ('Is it?', '\nYes', ['Yes', 'No'])
    assert not is_wrong_option(row) and is_wrong_option({**row, 'is_correct': False})
    for other in ({'inputs': 'a', 'targets': 'b', 'is_correct': False}, {'inputs_pretokenized': 'a'}, {}):
        assert inputs_and_targets(other) is other and not is_wrong_option({'is_correct': False})
