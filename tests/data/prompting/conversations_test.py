"""t5flan/data/prompting/conversations.py: rows of every format, tokens with loss, long conversations."""

import numpy as np
import pytest

from t5flan.data.batches.converter import make_batch
from t5flan.data.instruction_config import InstructionConfig
from t5flan.data.preprocessing import features
from t5flan.data.preprocessing.examples import Context
from t5flan.data.prompting.conversations import converse, exchanges, parse_row
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.errors import UserError

VOCABULARY = ByteVocabulary()
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
FORMATS = ('encoder_decoder', 'prefix_lm', 'causal_lm')


def made(record, lengths=None, format='encoder_decoder', **settings):
    instructions = InstructionConfig(**settings)
    return converse.apply(record, Context(VOCABULARY, lengths or {}, format=format, instructions=instructions))


def carried(example):
    """The text of the targets with loss, and of those without."""
    targets, weights = example['targets'], example[features.LOSS_WEIGHTS]
    no_end = targets != VOCABULARY.eos_id  # decoding would stop there
    return [VOCABULARY.decode(targets[(weights == weight) & no_end]) for weight in (1, 0)]


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


def test_loss_is_on_the_assistants_turns_and_their_ends():
    [record] = parse_row(SHAREGPT, 'f')
    example = made(record)
    assert VOCABULARY.decode(example['inputs']) == 'System: Be brief.\nTools: [{"name": "f"}]\nUser: Q1\nAssistant:'
    with_loss, without = carried(example)
    assert with_loss == 'A1Call: {"f": 1}A2' and without == 'User: Q2\nAssistant:Result: {"r": 2}\nAssistant:'
    eos = example['targets'] == VOCABULARY.eos_id
    assert example[features.LOSS_WEIGHTS][eos].tolist() == [1, 0, 1, 0, 1], (
        'each reply ends with loss, each prompt without'
    )
    assert example['variant'] == 'several replies, tool calls' and example['turns_left_out'] == 0


@pytest.mark.parametrize('format', FORMATS)
def test_no_token_of_a_user_carries_loss_and_every_token_of_the_assistant_does(format):
    rng = np.random.default_rng(0)
    lengths = {'inputs': 200, 'targets': 300}
    for _ in range(30):
        turns = 2 * rng.integers(1, 5)
        record = {
            'roles': ['user', 'assistant'] * (turns // 2),
            'texts': [('u' if i % 2 == 0 else 'a') * rng.integers(1, 20) for i in range(turns)],
        }
        example = made(record, lengths, format)
        batch = make_batch(format, {'inputs': 200, 'targets': 600}, [[example, example]], True)
        tokens, weights = batch['decoder_target_tokens'][0], batch['decoder_loss_weights'][0]
        assert not weights[np.isin(tokens, VOCABULARY.encode('u:'))].any()
        replies = sum(len(text) + 1 for text in record['texts'][1::2])
        assert weights.sum() == 2 * replies, 'the letters and ends of the replies; "Assistant" has no small a'
        assert set(tokens[weights > 0]) == {VOCABULARY.encode('a')[0], VOCABULARY.eos_id}


def test_long_conversations_lose_whole_turns():
    record = {'roles': ['user', 'assistant'] * 3, 'texts': ['q' * 10, 'a' * 10, 'r' * 10, 'b' * 10, 's' * 10, 'c' * 10]}
    whole = made(record)
    prompt, reply, again = len(whole['inputs']), 11, len('User: rrrrrrrrrr\nAssistant:') + 1
    assert len(whole['targets']) == 3 * reply + 2 * again
    for room, kept in (
        (3 * reply + 2 * again, 3),
        (3 * reply + 2 * again - 1, 2),
        (2 * reply + again, 2),
        (2 * reply + again - 1, 1),
        (3, 1),
    ):
        example = made(record, {'inputs': prompt, 'targets': room})
        assert len(example['targets']) == kept * reply + (kept - 1) * again
        assert example['turns_left_out'] == 6 - 2 * kept
        assert ('turns left out' in example['variant']) == (kept < 3)
        assert features.fit_example(example, {'inputs': prompt, 'targets': room})[1] == (kept < 3)
    row = {'inputs': 5, 'targets': prompt - 5 + 3 * reply + 2 * again}
    for format in FORMATS[1:]:
        assert made(record, row, format)['turns_left_out'] == 0, 'inputs and targets divide a row freely'
        assert not features.fit_example(made(record, row, format), row, format)[1]


def test_identity_and_markers():
    record = {'roles': ['user', 'assistant'], 'texts': ['q', 'a']}
    identity = InstructionConfig(identity='You are T5.')
    assert exchanges(record, identity) == [('System: You are T5.\nUser: q\nAssistant:', 'a')]
    own = {'roles': ['system', *record['roles']], 'texts': ['s', *record['texts']]}
    assert exchanges(own, identity) == [('System: s\nUser: q\nAssistant:', 'a')]
    markers = {'system': 'S', 'tools': 'T', 'user': 'U', 'assistant': 'A', 'call': 'C', 'observation': 'O'}
    assert exchanges(record, InstructionConfig(chat_markers=markers)) == [('U q\nA', 'a')]
    with pytest.raises(UserError, match='chat_markers has the roles user, expected system, tools, user'):
        InstructionConfig(chat_markers={'user': 'U'})


def test_the_tokens_are_those_of_the_prompts_and_replies():
    [record] = parse_row(SHAREGPT, 'f')
    example = made(record)
    ids = np.concatenate([example['inputs'], example['targets']]).tolist()
    *prompt, last = [text for pair in exchanges(record, InstructionConfig()) for text in pair]
    expected = [token for text in prompt for token in (*VOCABULARY.encode(text), VOCABULARY.eos_id)]
    assert ids == [*expected, *VOCABULARY.encode(last), VOCABULARY.eos_id] and last == 'A2'


def test_pieces_that_the_vocabulary_lacks_are_counted():
    class NoBraces(ByteVocabulary):
        def encode_batch(self, texts):
            brace = VOCABULARY.encode('{')[0]
            return [[self.unk_id if i == brace else i for i in ids] for ids in ByteVocabulary.encode_batch(self, texts)]

    record = {'roles': ['user', 'assistant'], 'texts': ['{{', '{']}
    example = converse.apply(record, Context(NoBraces(), {}))
    assert example['unknown_tokens'] == 3 and example['variant'] == 'one reply, unknown pieces'


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
