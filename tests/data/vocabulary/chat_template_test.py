"""t5flan/data/vocabulary/chat_template.py: the ids of transformers' apply_chat_template, loss spans, and limits."""

import json

import numpy as np
import pytest

from t5flan.data.batches.converter import make_batch
from t5flan.data.instruction_config import InstructionConfig
from t5flan.data.preprocessing import features
from t5flan.data.preprocessing.examples import Context
from t5flan.data.prompting.conversation_formats import parse_row
from t5flan.data.prompting.conversations import converse, messages
from t5flan.data.vocabulary import chat_template
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.data.vocabulary.vocabulary import Conventions
from t5flan.errors import UserError
from tests.vocabulary import CHATML, NAMED, TEMPLATES, bpe_folder, bpe_vocabulary

pytest.importorskip('jinja2')

CHATS = [
    [('user', 'Hi'), ('assistant', 'Hello!')],
    [
        ('system', 'Be {brief}.'),
        ('user', 'a\n\nb'),
        ('assistant', '\nnew line'),
        ('user', 'naïve 日本'),
        ('assistant', 'c '),
    ],
    [('user', 'I write <|im_end|> here'), ('assistant', 'a'), ('user', 'x'), ('assistant', 'y')],
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    pytest.importorskip('tokenizers', reason='the extra convert is not installed')
    return bpe_folder(tmp_path_factory.mktemp('tokenizer'))


def as_messages(chat):
    return [{'role': role, 'content': text} for role, text in chat]


@pytest.mark.parametrize('chat', CHATS)
@pytest.mark.parametrize('name', TEMPLATES)
def test_the_ids_are_those_of_transformers(folder, name, chat):
    transformers = pytest.importorskip('transformers')
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / 'tokenizer.json'), **NAMED)
    template, messages = TEMPLATES[name], as_messages(chat)
    vocabulary = bpe_vocabulary(folder, template)
    options = {'chat_template': template, 'tokenize': True, 'return_dict': False}
    for turns, reply in ((messages, False), (messages[:-1], True)):
        expected = theirs.apply_chat_template(turns, add_generation_prompt=reply, **options)
        assert chat_template.encode(vocabulary, turns, reply=reply) == expected
    tools = [{'name': 'f', 'description': '<&> é'}]
    expected = theirs.apply_chat_template(messages, tools=tools, **options)
    assert chat_template.encode(vocabulary, messages, tools=tools) == expected
    none = [{**message, 'name': None} for message in messages]
    assert chat_template.encode(vocabulary, none) == theirs.apply_chat_template(none, **options)


@pytest.mark.parametrize('chat', CHATS)
@pytest.mark.parametrize('name', TEMPLATES)
def test_training_has_these_ids_and_loss_on_the_replies(folder, name, chat):
    vocabulary, messages = bpe_vocabulary(folder, TEMPLATES[name]), as_messages(chat)
    record = {'roles': [role for role, _ in chat], 'texts': [text for _, text in chat]}
    context = Context(vocabulary, {}, format='causal_lm', instructions=InstructionConfig(chat_format='template'))
    example = converse.apply(record, context)
    ids = np.concatenate([example['inputs'], example['targets']]).tolist()
    assert ids == chat_template.encode(vocabulary, messages)
    targets, weights = example['targets'], example[features.LOSS_WEIGHTS]
    learnt = ''.join(vocabulary._tokenizer.decode(targets[weights > 0].tolist(), skip_special_tokens=False))
    strip = str.strip if name == 'llama3' else str
    end = '<|im_end|>' if name == 'llama3' else '<|im_end|>\n'
    assert learnt == ''.join(strip(text) + end for role, text in chat if role == 'assistant')
    lengths = {'inputs': len(ids), 'targets': 8}
    batch = make_batch('causal_lm', lengths, [[example]], True, 0, starts=vocabulary.conventions.add_bos)
    assert batch['decoder_input_tokens'][0, : len(ids) - 1].tolist() == ids[:-1], 'the template writes its own BOS'
    assert batch['decoder_target_tokens'][0, : len(ids) - 1].tolist() == ids[1:]
    assert batch['decoder_loss_weights'].sum() == weights.sum()


def test_long_conversations_lose_whole_turns(folder):
    record = {'roles': ['user', 'assistant'] * 3, 'texts': list('abcdef')}
    context = lambda lengths: Context(
        bpe_vocabulary(folder, CHATML),
        lengths,
        format='causal_lm',
        instructions=InstructionConfig(chat_format='template'),
    )
    whole = converse.apply(record, context({}))
    room = len(whole['inputs']) + len(whole['targets'])
    cut = converse.apply(record, context({'targets': room - 1}))
    assert (whole['turns_left_out'], cut['turns_left_out']) == (0, 2)
    assert cut['targets'].tolist() == whole['targets'][: len(cut['targets'])].tolist()
    assert cut[features.LOSS_WEIGHTS][-1] == 1


def test_any_vocabulary_may_have_a_template():
    template = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '</s>' }}{% endfor %}"
    vocabulary = ByteVocabulary().with_conventions(Conventions(chat_template=template))
    ids, spans = chat_template.encode_with_spans(vocabulary, as_messages([('user', 'q'), ('assistant', 'a')]))
    assert ids == [*vocabulary.encode('user: q'), 1, *vocabulary.encode('assistant: a'), 1]
    assert spans == [(len('user: q') + 1, len(ids))], 'without a generation prompt the whole turn is learnt'


@pytest.mark.parametrize(
    'template, problem',
    [
        ("{{ raise_exception('no system\nturns') }}", 'no system turns'),
        ('{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}', 'loop steps'),
        ('{% for i in range(10 ** 9) %}{% endfor %}', '1000000000'),
        ('{% set n = namespace(x="ab") %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}', 'characters'),
        ('{% set n = namespace(x="ab") %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}', 'characters'),
        ('{{ "x" * 10 ** 10 }}', 'too large'),
        ('{{ "%1000000000d" % 1 }}', 'too large'),
        ('{{ "x" | center(1000000000) }}', 'pads'),
        ('{{ "".__class__.__mro__ }}', 'unsafe'),
        ('{{ cycler.__init__.__globals__.os }}', 'unsafe'),
        ('{{ messages.append(1) }}', 'unsafe'),
        ('{% include "/etc/passwd" %}', 'no loader'),
        ('{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}', 'recursion'),
        ('{% if %}', 'line 1'),
        ('{{ messages[7].content }}', 'no element 7'),
        (None, 'has no chat template'),
    ],
)
def test_a_template_that_does_wrong_is_one_line(template, problem):
    with pytest.raises(UserError, match=problem) as error:
        chat_template.render(Conventions(chat_template=template), as_messages(CHATS[0]))
    assert '\n' not in str(error.value)


def test_a_template_that_changes_earlier_turns_has_no_place_for_the_loss():
    template = (  # as those that drop the reasoning of earlier replies
        '{% for m in messages %}{{ m.role }}:{{ m.content if loop.last else m.content[:1] }};{% endfor %}'
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    vocabulary = ByteVocabulary().with_conventions(Conventions(chat_template=template))
    with pytest.raises(UserError, match="another way when later turns follow.*chat_format='markers'") as error:
        chat_template.encode_with_spans(vocabulary, as_messages([*CHATS[0], *CHATS[0]]))
    assert '\n' not in str(error.value)
    record = {'roles': ['tools', 'user', 'assistant'], 'texts': ['f(x)', 'q', 'a']}
    context = Context(vocabulary, {}, instructions=InstructionConfig(chat_format='template'))
    with pytest.raises(UserError, match=r"tools of a conversation are 'f\(x\)', expected a JSON list"):
        converse.apply(record, context)


def test_tools_and_results_are_those_of_the_template():
    template = '{{ tools | tojson }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}'
    vocabulary = ByteVocabulary().with_conventions(Conventions(chat_template=template))
    roles = ['tools', 'user', 'call', 'observation', 'assistant']
    record = {'roles': roles, 'texts': [json.dumps([{'name': 'é'}]), 'q', '{"f": 1}', '2', 'a']}
    context = Context(vocabulary, {}, instructions=InstructionConfig(chat_format='template', identity='I'))
    made = converse.apply(record, context)
    text = vocabulary.decode(np.concatenate([made['inputs'], made['targets']]))
    assert text == '[{"name": "é"}][system]I[user]q[assistant]{"f": 1}[tool]2[assistant]a'


CALLS = (
    '{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}'
    '<{{ c.function.name }} {{ c.function.arguments | tojson }}>{% endfor %}{% endfor %}'
    '{% if add_generation_prompt %}[assistant]{% endif %}'
)


def test_calls_are_those_of_a_template_that_has_them(folder):
    """The ids of transformers for OpenAI's messages, with calls after a text, several calls and their results."""
    transformers = pytest.importorskip('transformers')
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / 'tokenizer.json'), **NAMED)
    call = lambda name, arguments: {'type': 'function', 'function': {'name': name, 'arguments': arguments}}
    told = [
        {'role': 'user', 'content': 'q'},
        {'role': 'assistant', 'content': 'I look.', 'tool_calls': [call('f', {'x': 'é'}), call('g', {})]},
        {'role': 'tool', 'content': '1'},
        {'role': 'tool', 'content': '2'},
        {'role': 'assistant', 'content': 'a'},
    ]
    [record] = parse_row({'messages': told}, 'f')
    context = Context(
        bpe_vocabulary(folder, CALLS), {}, format='causal_lm', instructions=InstructionConfig(chat_format='template')
    )
    example = converse.apply(record, context)
    ids = np.concatenate([example['inputs'], example['targets']]).tolist()
    assert ids == theirs.apply_chat_template(told, chat_template=CALLS, tokenize=True, return_dict=False)
    targets, weights = example['targets'], example[features.LOSS_WEIGHTS]
    learnt = context.vocabulary.decode(targets[weights > 0].tolist())
    assert learnt == 'I look.<f {"x": "é"}><g {}>a' and example['turns_left_out'] == 0


def test_calls_are_text_where_the_template_has_none():
    record = {
        'roles': ['user', 'assistant', 'call', 'observation', 'assistant'],
        'texts': ['q', 'I look.', '{}', '1', 'a'],
    }
    told, _ = messages(record, InstructionConfig())
    assert told[1] == {'role': 'assistant', 'content': 'I look.\n{}'} and len(told) == 4
    told, _ = messages(record, InstructionConfig(), takes_calls=True)
    assert told[1] == {'role': 'assistant', 'content': 'I look.\n{}'}, 'not the JSON of a call'
