"""t5flan/data/prompting/conversations.py: tokens with loss, long conversations."""

import numpy as np
import pytest

from t5flan.data.batches.converter import make_batch
from t5flan.data.instruction_config import InstructionConfig
from t5flan.data.preprocessing import features
from t5flan.data.preprocessing.examples import Context
from t5flan.data.prompting.conversation_formats import parse_row
from t5flan.data.prompting.conversations import converse, exchanges
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.errors import UserError
from tests.data.prompting.conversation_formats_test import SHAREGPT

VOCABULARY = ByteVocabulary()
FORMATS = ('encoder_decoder', 'prefix_lm', 'causal_lm')


def made(record, lengths=None, format='encoder_decoder', **settings):
    instructions = InstructionConfig(**settings)
    return converse.apply(record, Context(VOCABULARY, lengths or {}, format=format, instructions=instructions))


def carried(example):
    """The text of the targets with loss, and of those without."""
    targets, weights = example['targets'], example[features.LOSS_WEIGHTS]
    no_end = targets != VOCABULARY.eos_id  # decoding would stop there
    return [VOCABULARY.decode(targets[(weights == weight) & no_end]) for weight in (1, 0)]


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


def test_a_text_with_calls_and_their_results_are_one_reply_and_one_prompt():
    roles = ['user', 'assistant', 'call', 'call', 'observation', 'observation', 'assistant']
    record = {'roles': roles, 'texts': ['q', 'I look.', 'f', 'g', '1', '2', 'a']}
    assert exchanges(record, InstructionConfig()) == [
        ('User: q\nAssistant:', 'I look.\nCall: f\nCall: g'),
        ('Result: 1\nResult: 2\nAssistant:', 'a'),
    ]
    assert [made(record, {'inputs': 99, 'targets': room})['turns_left_out'] for room in (99, 30)] == [0, 3]


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
