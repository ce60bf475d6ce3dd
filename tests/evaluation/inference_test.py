"""Inference for prompts and files; a killed run resumes; every bad input is reported in one line."""

import json
import shutil
import types

import jax
import pytest

from t5flan.commands import COMMANDS
from t5flan.commands.arguments import parse_arguments
from t5flan.decoding.config import Decoding
from t5flan.errors import UsageError, UserError
from t5flan.evaluation import inference as infer_lib
from t5flan.evaluation.inference import Prompt, RowWriter, converse, infer, read_prompts, shard_path
from t5flan.language_model import load
from tests.saved_model import byte_model, save_folder

ROWS = [{'inputs': text, 'id': text[:1]} for text in ('ab', 'longer than it', 'c\u2028d', 'é', 'e')]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return str(save_folder(tmp_path_factory.mktemp('run'), byte_model(), steps=(3,)))


@pytest.fixture
def rows_file(tmp_path):
    path = tmp_path / 'rows.jsonl'
    path.write_text(''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in ROWS), encoding='utf-8')
    return str(path)


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding='utf-8').split('\n')[:-1]]


def test_prompts_are_answered(folder, tmp_path, capsys):
    infer(folder, prompts=['ab'], decoding=Decoding(max_new_tokens=4))
    one = capsys.readouterr().out
    infer(folder, prompts=['ab', 'é'], decoding=Decoding(max_new_tokens=4), json_file=str(tmp_path / 'o.json'))
    both = capsys.readouterr().out
    written = json.loads((tmp_path / 'o.json').read_text(encoding='utf-8'))
    assert written['step'] == 3 and [row['inputs'] for row in written['rows']] == ['ab', 'é']
    assert one == written['rows'][0]['prediction'] + '\n' and both.startswith('ab\n  -> ')


@pytest.fixture(scope='module')
def chat_folder(folder, tmp_path_factory):
    """The checkpoint with a chat template in its vocabulary folder."""
    copy = shutil.copytree(folder, tmp_path_factory.mktemp('chat') / 'run')
    template = (
        "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('refused') }}{% endif %}"
        "{{ m.role[0] ~ m.content }}{% endfor %}{{ 'a' if add_generation_prompt }}"
    )
    (copy / 'vocabulary' / 'chat_template.jinja').write_text(template)
    return str(copy)


def test_chat_words_each_prompt_by_the_template(chat_folder, folder, rows_file, tmp_path, capsys):
    pytest.importorskip('jinja2')
    decoding = Decoding(max_new_tokens=4)
    infer(chat_folder, prompts=['q'], decoding=decoding, chat=True)
    model = load(chat_folder)
    turn = [{'role': 'user', 'content': 'q'}]
    assert capsys.readouterr().out == model.chat([turn], decoding=decoding)[0] + '\n'
    infer(chat_folder, input=rows_file, output=str(tmp_path / 'o.jsonl'), decoding=decoding, chat=True)
    turns = [[{'role': 'user', 'content': row['inputs']}] for row in ROWS]
    assert [row['prediction'] for row in rows_of(tmp_path / 'o.jsonl')] == model.chat(turns, decoding=decoding)
    with pytest.raises(UserError, match='has no chat template. Put a chat_template.jinja'):
        infer(folder, prompts=['q'], chat=True)


def test_a_conversation_in_the_terminal(chat_folder, folder, capsys):
    pytest.importorskip('jinja2')
    model, decoding = load(chat_folder), Decoding(max_new_tokens=4)
    reply = lambda *turns: model.chat([[dict(zip(('role', 'content'), turn)) for turn in turns]], decoding=decoding)[0]
    lines = iter(['q', 'bad', 'r', '', 'q'])

    def ask(prompt):
        if (line := next(lines, None)) is None:
            raise EOFError
        return line

    converse(chat_folder, decoding=decoding, ask=ask)
    first = reply(('user', 'q'))
    second = reply(('user', 'q'), ('assistant', first), ('user', 'r'))
    shown = capsys.readouterr()
    assert shown.out == f'{first}\n{second}\n{first}\n\n' and 'refused' in shown.err
    converse(chat_folder, decoding=decoding, ask=lambda prompt: '/quit')
    with pytest.raises(UserError, match='has no chat template'):
        converse(folder, decoding=decoding, ask=ask)


def test_chat_on_the_command_line(chat_folder, monkeypatch):
    seen = []
    monkeypatch.setattr(infer_lib, 'converse', lambda *arguments, **settings: seen.append(arguments))
    command, arguments = parse_arguments(['infer', f'--checkpoint={chat_folder}', '--chat'], COMMANDS)
    command.run(arguments)
    assert seen == [(chat_folder,)]
    command, arguments = parse_arguments(['infer', f'--checkpoint={chat_folder}', '--chat', '--json=o.json'], COMMANDS)
    with pytest.raises(UsageError, match='--json needs --prompt or --input'):
        command.run(arguments)


def test_a_file_is_answered_in_order_and_only_once(folder, rows_file, tmp_path, capsys):
    output = tmp_path / 'sub' / 'out.jsonl'
    decoding = Decoding(max_new_tokens=4, batch_size=2, temperature=1.0)
    settings = {'input': rows_file, 'output': str(output), 'decoding': decoding}
    infer(folder, **settings)
    rows = rows_of(output)
    assert [{name: row[name] for name in ('inputs', 'id')} for row in rows] == ROWS
    assert [row['index'] for row in rows] == [0, 1, 2, 3, 4] and all(isinstance(row['prediction'], str) for row in rows)

    whole = output.read_bytes()
    for cut in (len(whole) - 5, whole.index(b'\n') + 9, 3, 0):  # killed while writing a line
        output.write_bytes(whole[:cut])
        infer(folder, **settings)
        assert output.read_bytes() == whole
    capsys.readouterr()
    infer('this folder is not read', **settings)
    assert 'is complete: 5 rows' in capsys.readouterr().out


def test_hosts_share_the_rows(folder, rows_file, tmp_path, monkeypatch):
    settings = {'input': rows_file, 'decoding': Decoding(max_new_tokens=3, temperature=1.0, seed=4)}
    infer(folder, output=str(tmp_path / 'one.jsonl'), **settings)
    shared = []
    for host in range(2):
        monkeypatch.setattr(jax, 'process_index', lambda host=host: host)
        monkeypatch.setattr(jax, 'process_count', lambda: 2)
        generate = lambda texts, *, rows, decoding: [f'{row}:{text}' for row, text in zip(rows, texts)]
        loaded = types.SimpleNamespace(generate=generate)
        monkeypatch.setattr('t5flan.language_model.load', lambda *_, loaded=loaded: loaded)
        infer(folder, output=str(tmp_path / 'two.jsonl'), **settings)
        shared.append(rows_of(tmp_path / f'two-{host:05}-of-00002.jsonl'))
    assert [row['index'] for row in shared[0]] == [0, 2, 4] and [row['index'] for row in shared[1]] == [1, 3]
    assert shared[1][0]['prediction'] == '1:longer than it'


def test_the_columns_of_the_user_stay_and_no_target_is_a_prompt(folder, tmp_path, capsys):
    path, output = tmp_path / 'a table.tsv', tmp_path / 'out.jsonl'
    path.write_text('index\tinputs\tprediction\ttargets\n7\tab\told\tanswer\n\n9\té\told\tanswer\n', 'utf-8')
    for _ in range(2):  # the second time it is complete
        infer(folder, input=str(path), output=str(output), decoding=Decoding(max_new_tokens=3))
    rows = rows_of(output)
    assert [row['t5flan_index'] for row in rows] == [1, 3]
    assert [(row['index'], row['prediction'], row['target']) for row in rows] == [
        ('7', 'old', 'answer'),
        ('9', 'old', 'answer'),
    ]
    assert "the answers go to 't5flan_prediction'" in capsys.readouterr().err
    infer(folder, input=str(output), output=str(tmp_path / 'again.jsonl'), decoding=Decoding(max_new_tokens=3))
    assert {'t5flan_index_2', 't5flan_prediction_2'} < {*rows_of(tmp_path / 'again.jsonl')[0]}


def test_prompts_of_several_files_and_of_nested_fields(tmp_path):
    (tmp_path / '1.json').write_text('{"x": {"q": {"text": "one"}}, "y": {"q": {"text": "two"}}}')
    (tmp_path / '2.csv').write_bytes(b'\xef\xbb\xbfq.text,targets\r\nthree,no\r\n')
    found = read_prompts(str(tmp_path / '[12].*'), 'q.text')
    assert [(prompt.number, prompt.text) for prompt in found] == [(0, 'one'), (1, 'two'), (3, 'three')]
    (tmp_path / 'p.txt').write_bytes(b'\xef\xbb\xbfone\r\ntwo')
    assert [prompt.text for prompt in read_prompts(str(tmp_path / 'p.txt'), 'inputs')] == ['one', 'two']


def test_text_lines_are_rows(tmp_path):
    path = tmp_path / 'p.txt'
    path.write_bytes('one\r\n\ntwo\u2028still two\n'.encode())
    assert [prompt.row for prompt in read_prompts(str(path), 'inputs')] == [
        {'inputs': 'one', 'index': 0},
        {'inputs': 'two\u2028still two', 'index': 2},
    ]
    assert shard_path(path, 0, 1) == path and shard_path(path, 1, 4).name == 'p-00001-of-00004.txt'


@pytest.mark.parametrize(
    'content, words',
    [
        ('', 'is empty'),
        ('\n \n', 'is empty'),
        ('{"inputs": "a"}\nnot json\n', r'r.jsonl line 2: not JSON'),
        ('{"a": 1}\n[1]\n', r"r.jsonl line 1: no field 'inputs'"),
        (
            '{"input": "a"}\n',
            r"r.jsonl line 1: no field 'inputs'; the fields are input; did you mean input. Set --field",
        ),
        ('{"inputs": 3}\n', r"r.jsonl line 1: field 'inputs' is int"),
        (b'{"inputs": "\xff\xfe"}', 'line 1: not JSON .not UTF-8'),
    ],
)
def test_a_bad_input_is_reported_in_one_line(tmp_path, content, words):
    path = tmp_path / 'r.jsonl'
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=words) as error:
        infer('x', input=str(path), output=str(tmp_path / 'o.jsonl'))
    assert '\n' not in str(error.value) and str(path) in str(error.value)


def test_a_missing_input_and_wrong_usage(tmp_path):
    with pytest.raises(UserError, match='nowhere.txt: no such file'):
        infer('x', input=str(tmp_path / 'nowhere.txt'), output='o')
    for wrong in (
        {},
        {'prompts': ['a'], 'input': 'b', 'output': 'c'},
        {'input': 'b'},
        {'prompts': ['a'], 'output': 'c'},
    ):
        with pytest.raises(UsageError):
            infer('x', **wrong)
    with pytest.raises(UserError, match='num_samples=2, expected 1'):
        infer('x', prompts=['a'], decoding=Decoding(num_samples=2))


def run(*argv):
    command, arguments = parse_arguments(['infer', '--checkpoint=x', '--prompt=a', *argv], COMMANDS)
    command.run(arguments)


@pytest.mark.parametrize(
    'argv, error, words',
    [
        (['--batch_size=0'], UsageError, 'batch_size=0, expected an integer of 1 or more. Set --batch_size'),
        (['--max_new_tokens=0'], UsageError, 'max_new_tokens=0'),
        (['--top_p=3'], UsageError, 'top_p=3.0'),
        (['--gin.Decoding.top_p=3'], UserError, 'top_p=3.0.*Decoding.top_p'),
        (['--gin.Decoding.topp=3'], UsageError, 'did you mean Decoding.top_p'),
        (
            ['--gin.ModelConfig.dropout_rate=0.1'],
            UsageError,
            'takes no --gin.ModelConfig.dropout_rate',
        ),
    ],
)
def test_wrong_flags_and_settings_are_one_line(argv, error, words):
    with pytest.raises(UserError, match=words) as raised:
        run(*argv)
    assert type(raised.value) is error and '\n' not in str(raised.value)


def test_flags_override_gin_and_gin_overrides_the_defaults(monkeypatch, tmp_path):
    used = []
    monkeypatch.setattr(infer_lib, 'infer', lambda *_, decoding, **__: used.append(decoding))
    (tmp_path / 'decoding.gin').write_text('Decoding.top_p = 0.9\nDecoding.temperature = 1.0\n')
    run(f'--gin_file={tmp_path}/decoding.gin', '--gin.Decoding.seed=3', '--temperature=0.5', '--max_new_tokens=7')
    assert used == [Decoding(max_new_tokens=7, temperature=0.5, top_p=0.9, seed=3)]


@pytest.mark.parametrize(
    'line', ['{"index": 0, "inputs": "another", "prediction": "x"}', '{"index": 9, "inputs": "ab"}', 'x']
)
def test_the_output_of_another_input_is_not_overwritten(tmp_path, line):
    output = tmp_path / 'o.jsonl'
    output.write_text(line + '\n')
    with pytest.raises(UserError, match='o.jsonl:1 does not answer a row'):
        RowWriter(output, [Prompt(0, 'ab', {'inputs': 'ab', 'index': 0})])
    assert output.read_text() == line + '\n' and infer_lib.WINDOW > 1


def test_control_tokens_precede_every_text(monkeypatch, capsys):
    seen = []

    class Model:
        vocabulary, folder, step = types.SimpleNamespace(control_tokens=('[TOX_LOW]', '[S2S]')), 'run', 1

        def generate(self, texts, *arguments, **options):
            seen.extend(texts)
            return ['x'] * len(texts)

    monkeypatch.setattr('t5flan.language_model.load', lambda *arguments: Model())
    infer('run', prompts=['one', 'two'], control=['[S2S]', '[TOX_LOW]'])
    assert seen == ['[S2S][TOX_LOW]one', '[S2S][TOX_LOW]two'] and 'one\n  -> x' in capsys.readouterr().out
    with pytest.raises(
        UserError, match=r'--control=\[TOX\] is not a token of this checkpoint, which has \[TOX_LOW\], \[S2S\]'
    ):
        infer('run', prompts=['one'], control=['[TOX]'])
