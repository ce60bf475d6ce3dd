"""t5flan/data/prompting/conversation_formats.py: rows of every format as roles and texts."""

import json

import pytest

from t5flan.data.prompting import conversation_formats as formats
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


def say(role, content, **more):
    return {'role': role, 'content': content, **more}


def called(name, arguments, **more):
    return {'id': f'call_{name}', 'type': 'function', 'function': {'name': name, 'arguments': arguments}, **more}


WEATHER = [{'type': 'function', 'function': {'name': 'weather', 'parameters': {'type': 'object'}}}]
PUBLISHED = {
    'null content with a call, and its result': (
        {
            'messages': [
                say('user', 'Rain?'),
                say('assistant', None, tool_calls=[called('weather', '{"city": "Köln"}')]),
                say('tool', 'yes', tool_call_id='call_weather'),
                say('assistant', 'Take a coat.'),
            ],
            'tools': WEATHER,
        },
        'tools: [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}] | '
        'user: Rain? | call: {"name": "weather", "arguments": {"city": "Köln"}} | observation: yes | '
        'assistant: Take a coat.',
    ),
    'a text and several calls, several results, one of them empty': (
        {
            'messages': [
                say('user', 'Both?'),
                say(
                    'assistant', 'I look.', tool_calls=[called('a', {'x': 1}), called('b', ''), called('c', '{broken')]
                ),
                say('tool', '1'),
                say('tool', ''),
                say('tool', [{'type': 'text', 'text': '3'}]),
                say('assistant', 'Done.'),
            ]
        },
        'user: Both? | assistant: I look. | call: {"name": "a", "arguments": {"x": 1}} | '
        'call: {"name": "b", "arguments": {}} | '
        'call: {"name": "c", "arguments": "{broken"} | observation: 1 | observation:  | observation: 3 | '
        'assistant: Done.',
    ),
    'the older function_call, and functions as text': (
        {
            'functions': '[{"name": "f"}]',
            'messages': [
                say('user', 'Q'),
                {'role': 'assistant', 'function_call': {'name': 'f', 'arguments': '{}'}},
                {'role': 'function', 'name': 'f', 'content': 'r'},
                say('assistant', 'A', tool_calls=None, function_call=None),
            ],
        },
        'tools: [{"name": "f"}] | user: Q | call: {"name": "f", "arguments": {}} | observation: r | assistant: A',
    ),
    'content parts': (
        {
            'messages': [
                say('user', [{'type': 'text', 'text': 'one'}, {'type': 'text', 'text': 'two'}]),
                say('assistant', ['A']),
            ]
        },
        'user: one\ntwo | assistant: A',
    ),
    'developer, and more than one system turn': (
        {
            'system': 'unused',
            'messages': [say('developer', 'D'), say('system', 'S'), say('user', 'Q'), say('assistant', 'A')],
        },
        'system: D\n\nS | user: Q | assistant: A',
    ),
    'an empty system turn': (
        {'messages': [say('system', ''), say('user', 'Q'), say('assistant', 'A')]},
        'user: Q | assistant: A',
    ),
    'messages named as in ShareGPT, and the other way round': (
        {'conversations': [say('user', 'Q'), say('assistant', 'A'), H, G], 'tools': None},
        'user: Q | assistant: A | user: q | assistant: a',
    ),
    'roles in capitals': (
        {'conversations': [{'from': 'Human', 'value': 'Q'}, {'from': 'GPT', 'value': 'A'}]},
        'user: Q | assistant: A',
    ),
    'messages as JSON in the cell of a table': (
        {'messages': json.dumps([say('user', 'Q'), say('assistant', 'A')]), 'id': '7'},
        'user: Q | assistant: A',
    ),
    'Alpaca with nulls': (
        {'instruction': 'I', 'input': None, 'output': 'O', 'history': None, 'system': None},
        'user: I | assistant: O',
    ),
    'Alpaca with history': (
        {'instruction': 'I', 'input': 'N', 'output': 'O', 'system': 'S', 'history': [['Q1', 'A1'], ['Q2', 'A2']]},
        'system: S | user: Q1 | assistant: A1 | user: Q2 | assistant: A2 | user: I\n\nN | assistant: O',
    ),
    'Alpaca without an instruction of its own': (
        {'instruction': '', 'input': 'N', 'output': 'O'},
        'user: N | assistant: O',
    ),
    'prompt and completion': ({'prompt': 'P', 'completion': ' C'}, 'user: P | assistant: C'),
    'prompt and response': ({'prompt': 'P', 'response': 'R', 'id': 3}, 'user: P | assistant: R'),
    'Dolly': (
        {'instruction': 'I', 'context': 'C', 'response': 'R', 'category': 'qa'},
        'user: I\n\nC | assistant: R',
    ),
    'OpenOrca': (
        {'id': 'x', 'system_prompt': 'S', 'question': 'Q', 'response': 'R'},
        'system: S | user: Q | assistant: R',
    ),
    'prompt and completion as messages': (
        {'prompt': [say('system', 'S'), say('user', 'P')], 'completion': [say('assistant', 'C')]},
        'system: S | user: P | assistant: C',
    ),
    'preference: texts': ({'prompt': 'P', 'chosen': 'good', 'rejected': 'bad'}, 'user: P | assistant: good'),
    'preference: whole conversations': (
        {
            'chosen': [say('user', 'P'), say('assistant', 'good')],
            'rejected': [say('user', 'P'), say('assistant', 'bad')],
        },
        'user: P | assistant: good',
    ),
    'preference: a prompt that is repeated': (
        {'prompt': 'P', 'chosen': [say('user', 'P'), say('assistant', 'good')], 'rejected': []},
        'user: P | assistant: good',
    ),
    'preference: a prompt of messages': (
        {'prompt': [say('user', 'P')], 'chosen': [say('assistant', 'good')], 'rejected': [say('assistant', 'bad')]},
        'user: P | assistant: good',
    ),
    'preference: a chosen reply of several turns': (
        {
            'prompt': [say('user', 'P')],
            'chosen': [say('assistant', 'good'), say('user', 'Q2'), say('assistant', 'A2')],
            'rejected': [say('assistant', 'bad')],
        },
        'user: P | assistant: good | user: Q2 | assistant: A2',
    ),
    'preference: a system prompt that the chosen conversation lacks': (
        {'prompt': [say('system', 'S'), say('user', 'P')], 'chosen': [say('user', 'P'), say('assistant', 'good')]},
        'system: S | user: P | assistant: good',
    ),
    'prompt and response as messages': (
        {'prompt': [say('user', 'P')], 'response': [say('assistant', 'R')]},
        'user: P | assistant: R',
    ),
    'prompt as messages, response as text': ({'prompt': [say('user', 'P')], 'response': 'R'}, 'user: P | assistant: R'),
    'prompt as text, completion as messages with a call': (
        {
            'prompt': 'P',
            'completion': [
                say('assistant', None, tool_calls=[called('f', '{}')]),
                say('tool', 'r'),
                say('assistant', 'C'),
            ],
        },
        'user: P | call: {"name": "f", "arguments": {}} | observation: r | assistant: C',
    ),
}


@pytest.mark.parametrize('row,expected', PUBLISHED.values(), ids=PUBLISHED)
def test_published_conventions(row, expected):
    [record] = parse_row(row, 'f', on_left_out=lambda *what: pytest.fail(str(what)))
    assert ' | '.join(f'{role}: {text}' for role, text in zip(record['roles'], record['texts'])) == expected


EMPTY = {'from': 'gpt', 'value': ''}


@pytest.mark.parametrize(
    'row,roles,left_out',
    [
        ({'conversations': [G, H, G]}, ['user assistant'], formats.FIRST_TURNS),
        ({'conversations': [G, G, H, G, H]}, ['user assistant'], formats.FIRST_TURNS),
        ({'messages': [say('system', 's'), say('assistant', 'Hi!'), say('user', 'q'), say('assistant', 'a')]},
         ['system user assistant'], formats.FIRST_TURNS),
        ({'conversations': [H, G, H, EMPTY, H, G]}, ['user assistant'], formats.EMPTY_TURN),
        ({'conversations': [H, G, {'from': 'human', 'value': ' \n'}, G]}, ['user assistant'], formats.EMPTY_TURN),
        ({'messages': [say('user', 'q'), say('assistant', 'a'), say('user', 'q'), say('assistant', None)]},
         ['user assistant'], formats.EMPTY_TURN),
        ({'prompt': 'q', 'completion': 'a', 'label': False}, [], formats.BAD_LABEL),
        ({'prompt': message('prompter', 'q', message('assistant', 'a'), deleted=True)}, [], formats.BAD_TREE),
        ({'prompt': message('prompter', 'q', message('assistant', 'a'), review_result=False)}, [], formats.BAD_TREE),
        ({'tree_state': 'halted_by_moderator', 'prompt': message('prompter', 'q', message('assistant', 'a'))},
         [], formats.BAD_TREE),
        ({'prompt': message('prompter', 'q', message('assistant', 'a', deleted=True))}, [], formats.NO_REPLY),
        ({'prompt': message('prompter', 'q')}, [], formats.NO_REPLY),
    ],
)  # fmt: skip
def test_what_is_not_meant_to_be_learned_is_left_out_and_reported(row, roles, left_out):
    found = []
    records = parse_row(row, 'f row 1', on_left_out=lambda where, what: found.append((where, what)))
    assert [' '.join(record['roles']) for record in records] == roles and found == [('f row 1', left_out)]


def test_a_deleted_message_inside_a_tree_ends_its_path():
    second = message('prompter', 'Q2', message('assistant', 'A2', message('prompter', 'Q3'), deleted=True))
    tree = message('prompter', 'Q', message('assistant', 'A', second, message('prompter', 'gone', deleted=True)))
    assert [path['texts'] for path in parse_row({'prompt': tree, 'tree_state': 'ready_for_export'}, 'f')] == [
        ['Q', 'A']
    ]


def test_single_conversations_of_a_row_are_skipped():
    errors = []
    keep = lambda where, error: errors.append((where, str(error)))
    bad = message('prompter', 'Q2', message('prompter', 'two in a row', message('assistant', 'A')))
    tree = message(
        'prompter', 'Q', message('assistant', 'A1', bad, message('prompter', 'Q3', message('assistant', 'A3')))
    )
    assert [record['texts'] for record in parse_row({'prompt': tree}, 'f', keep)] == [['Q', 'A1', 'Q3', 'A3']]
    assert errors[0][0] == 'f conversation 1' and 'two turns of user in a row' in errors[0][1]
    seeds = {'instruction': 'I', 'instances': [{'output': 3}, {'input': None, 'output': 'O'}]}
    assert [record['texts'] for record in parse_row(seeds, 'g', keep)] == [['I', 'O']]
    assert errors[1][0] == 'g instance 1' and "has int as field 'output'" in errors[1][1]
    assert parse_row({'text': 'x'}, 'h', keep) == [] and errors[2][0] == 'h'


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
        (
            {'messages': [say('user', [{'type': 'image_url', 'image_url': {}}]), say('assistant', 'a')]},
            "turn 1 part 1: is of type 'image_url', only 'text' can be learned",
        ),
        (
            {'messages': [say('user', [{'type': 'text', 'text': 'q'}, 3]), say('assistant', 'a')]},
            "turn 1 part 2: is of type 'int'",
        ),
        (
            {'messages': [say('user', 'q'), say('assistant', None, tool_calls=[{'function': {}}])]},
            r"turn 2 tool_calls: has no field 'name'",
        ),
        (
            {'messages': [say('user', 'q'), say('assistant', None, tool_calls='f()')]},
            "turn 2: has str as field 'tool_calls'",
        ),
        ({'messages': [say('user', 'q'), say('assistant', None)]}, 'turn 2: the text of assistant is empty'),
        ({'messages': [say('user', 'q'), {'role': 'assistant'}]}, "turn 2: has no field 'content'"),
        (
            {'messages': [say('user', 'q'), say('assistant', 'a'), say('system', 's'), say('user', 'q')]},
            'turn 3: system after assistant, expected user',
        ),
        (
            {'messages': [say('user', 'q'), say('tool', 'r')]},
            'turn 2: observation after user, expected assistant or call',
        ),
        ({'messages': '[{"role"', 'id': '1'}, "field 'messages' is not JSON"),
        ({'messages': [say('user', 'q'), say('assistant', 'a')], 'tools': 3}, "f row 1: has int as field 'tools'"),
        ({'messages': [say('user', '\ud83d'), say('assistant', 'a')]}, 'turn 1: .* half a character'),
        ({'instruction': 'i', 'output': 'o', 'history': [['q']]}, r"f row 1 history 1: is .\['q'\]., expected a list"),
        ({'instruction': 'i', 'output': 'o', 'history': 'q'}, "has str as field 'history'"),
        ({'prompt': 'p', 'text': 't'}, "f row 1: has no field 'completion'"),
        ({'chosen': 'a', 'rejected': 'b'}, "f row 1: has no field 'prompt'"),
        ({'message_id': 'a', 'parent_id': None, 'text': 't', 'role': 'prompter'}, 'flat export.* the export of trees'),
        ({'text': 'x'}, r'f row 1: has the fields text, expected .conversations. \(ShareGPT\)'),
        ([1], 'f row 1: is list, not an object'),
    ],
)
def test_one_line_for_a_bad_row(row, pattern):
    with pytest.raises(UserError, match=pattern) as error:
        parse_row(row, 'f row 1')
    assert '\n' not in str(error.value)
