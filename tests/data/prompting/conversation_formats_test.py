"""t5flan/data/prompting/conversation_formats.py: rows of every format as roles and texts."""

import pytest

from t5flan.data.prompting.conversation_formats import parse_row
from t5flan.errors import UserError

SHAREGPT = {
    'system': 'Be brief.',
    'tools': '[{"name": "f"}]',
    'conversations': [
        {'from': 'human', 'value': 'Q1'},
        {'from': 'gpt', 'value': 'A1'},
        {'from': 'human', 'value': 'Q2'},
        {'from': 'function_call', 'value': '{"f": 1}'},
        {'from': 'observation', 'value': '{"r": 2}'},
        {'from': 'gpt', 'value': 'A2'},
    ],
}


def test_every_format_becomes_roles_and_texts():
    [record] = parse_row(SHAREGPT, 'f')
    assert record == {
        'roles': ['system', 'tools', 'user', 'assistant', 'user', 'call', 'observation', 'assistant'],
        'texts': ['Be brief.', '[{"name": "f"}]', 'Q1', 'A1', 'Q2', '{"f": 1}', '{"r": 2}', 'A2'],
    }
    turns = [('system', 's'), ('user', ' q '), ('assistant', 'a'), ('user', 'never answered')]
    [record] = parse_row({'messages': [{'role': role, 'content': text} for role, text in turns]}, 'f')
    assert record == {'roles': ['system', 'user', 'assistant'], 'texts': ['s', 'q', 'a']}
    assert parse_row({'instruction': 'Add.', 'input': '1 2', 'output': '3'}, 'f') == [
        {'roles': ['user', 'assistant'], 'texts': ['Add.\n\n1 2', '3']}
    ]
    assert parse_row({'instruction': 'Go', 'input': '', 'output': 'ok', 'tools': '[]'}, 'f')[0]['texts'] == ['Go', 'ok']
    seeds = parse_row(
        {'instruction': 'Add.', 'instances': [{'input': '1 2', 'output': '3'}, {'input': '', 'output': '0'}]}, 'f'
    )
    assert [seed['texts'] for seed in seeds] == [['Add.\n\n1 2', '3'], ['Add.', '0']]


def message(role, text, *replies, **more):
    return {'role': role, 'text': text, 'replies': list(replies), **more}


def test_paths_of_a_tree_take_the_best_replies():
    tree = message(
        'prompter',
        'Q',
        message('assistant', 'worst', rank=2),
        message('assistant', 'deleted', rank=0, deleted=True),
        message('assistant', 'refused', rank=0, review_result=False),
        message(
            'assistant',
            'best',
            message('prompter', 'Q2', message('assistant', 'A2')),
            message('prompter', 'Q3', message('assistant', 'unranked', rank=None), message('assistant', 'A3', rank=1)),
            message('prompter', 'unanswered'),
            rank=1,
        ),
    )
    assert [path['texts'] for path in parse_row({'prompt': tree}, 'f')] == [
        ['Q', 'best', 'Q2', 'A2'],
        ['Q', 'best', 'Q3', 'A3'],
        ['Q', 'best'],
    ]


H, G = {'from': 'human', 'value': 'q'}, {'from': 'gpt', 'value': 'a'}


@pytest.mark.parametrize(
    'row,pattern',
    [
        ({'conversations': [H, H, G]}, 'f row 1 turn 2: two turns of user in a row, expected assistant or call'),
        ({'conversations': [H, G, H, H]}, 'f row 1 turn 4: two turns of user in a row'),
        ({'conversations': [H, G, G]}, 'f row 1 turn 3: two turns of assistant in a row, expected user'),
        ({'conversations': [G]}, 'f row 1 turn 1: assistant, expected system or tools or user'),
        (
            {'conversations': [H, {'from': 'function_call', 'value': 'c'}, G]},
            'turn 3: assistant after call, expected observation',
        ),
        (
            {'conversations': [H, {'from': 'bot', 'value': 'c'}]},
            "turn 2: 'from' is 'bot', expected one of system, human",
        ),
        ({'conversations': [H, {'from': 'gpt', 'value': ' '}]}, 'turn 2: the text of assistant is empty'),
        ({'conversations': [H, {'from': 'gpt'}]}, r"turn 2: has no field 'value' \(the fields are from\)"),
        ({'conversations': [H, {'from': 'gpt', 'value': 3}]}, "turn 2: has int as field 'value'"),
        ({'conversations': [H]}, 'f row 1: no turn of the assistant'),
        ({'conversations': []}, 'f row 1: no turn of the assistant'),
        ({'conversations': 'x'}, "has str as field 'conversations'"),
        ({'instruction': 'i', 'input': ''}, r"f row 1: has no field 'output' \(the fields are instruction, input\)"),
        ({'instruction': 'i', 'instances': []}, "f row 1: 'instances' is empty"),
        ({'instruction': 'i', 'instances': [{'input': ''}]}, "f row 1 instance 1: has no field 'output'"),
        (
            {'prompt': {'role': 'prompter', 'text': 'q', 'replies': [{'role': 'other', 'text': 'a'}]}},
            "'role' is 'other' in a tree",
        ),
        (
            {'prompt': message('prompter', 'q', message('prompter', 'r', message('assistant', 'a')))},
            'turn 2: two turns of user in a row',
        ),
        ({'text': 'x'}, r'f row 1: has the fields text, expected .conversations. \(ShareGPT\)'),
        ([1], 'f row 1: is list, not an object'),
    ],
)
def test_one_line_for_a_bad_row(row, pattern):
    with pytest.raises(UserError, match=pattern) as error:
        parse_row(row, 'f row 1')
    assert '\n' not in str(error.value)
