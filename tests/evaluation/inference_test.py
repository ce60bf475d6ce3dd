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
from t5flan.evaluation import row_files
from t5flan.evaluation.inference import converse, infer
from t5flan.evaluation.row_files import Part
from t5flan.language_model import ScoredText, load
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
    infer(folder, **settings)
    assert 'is complete: 5 rows' in capsys.readouterr().out


class _Stopped(Exception):
    """Stands for a kill."""


class _Counting:
    """A model that answers with the row and its prompt, and may be killed in the middle of the rows."""

    vocabulary, folder, step = types.SimpleNamespace(control_tokens=()), 'run', 3

    def __init__(self, lasts=10**6):
        self.lasts, self.read = lasts, 0

    def input_ids(self, text):
        return list(text.encode())

    def continuations(self, inputs, *, rows, decoding, **_):
        found = []
        for row, ids in zip(rows, inputs, strict=True):
            self.read += 1
            if self.read > self.lasts:
                raise _Stopped
            text = bytes(ids).decode()
            found.append([ScoredText(f'{text} {row} {i}', -float(i)) for i in range(decoding.num_samples)])
        return found


@pytest.fixture
def counting(monkeypatch):
    """Sets the model that `infer` loads, and the place of its process in a job."""

    def use(model=None, process=0, processes=1):
        monkeypatch.setattr('t5flan.language_model.load', lambda *_: model or _Counting())
        monkeypatch.setattr(jax, 'process_index', lambda: process)
        monkeypatch.setattr(jax, 'process_count', lambda: processes)

    return use


@pytest.fixture
def many_rows(tmp_path):
    path = tmp_path / 'many.txt'
    path.write_text(''.join('\n' if i % 5 == 3 else f'line {i}\n' for i in range(23)))  # 19 rows, blank lines between
    return str(path)


@pytest.mark.parametrize('samples', [1, 2])
@pytest.mark.parametrize('jobs, processes', [(2, 1), (1, 3), (3, 2), (5, 1), (1, 20), (7, 4)])
def test_jobs_and_processes_write_the_file_of_one(folder, many_rows, tmp_path, counting, jobs, processes, samples):
    decoding = Decoding(num_samples=samples, temperature=1.0, batch_size=1)
    counting()
    infer(folder, input=many_rows, output=str(tmp_path / 'one.jsonl'), decoding=decoding)
    assert len(rows_of(tmp_path / 'one.jsonl')) == 19
    output = tmp_path / 'shared.jsonl'
    for job in reversed(range(jobs)):
        for process in range(processes):
            assert not output.exists() or jobs * processes > 19  # a part without rows is complete before it is asked
            counting(None, process, processes)
            infer(folder, input=many_rows, output=str(output), decoding=decoding, shard=Part(job, jobs))
    assert output.read_bytes() == (tmp_path / 'one.jsonl').read_bytes()


@pytest.mark.parametrize('shard', [Part(), Part(0, 2)], ids=['alone', 'shard'])
def test_killed_and_resumed_is_never_stopped(folder, many_rows, tmp_path, counting, shard):
    settings = {'input': many_rows, 'decoding': Decoding(batch_size=1)}
    counting()
    infer(folder, output=str(tmp_path / 'whole.jsonl'), shard=shard, **settings)
    output = tmp_path / 'killed.jsonl'
    for lasts in (0, 5, 4):
        counting(_Counting(lasts))
        with pytest.raises(_Stopped):
            infer(folder, output=str(output), shard=shard, **settings)
        with shard.path(output).open('ab') as file:
            file.write(b'{"inputs": "cut in the mid')
    counting(model := _Counting())
    infer(folder, output=str(output), shard=shard, **settings)
    whole = shard.path(tmp_path / 'whole.jsonl')
    assert shard.path(output).read_bytes() == whole.read_bytes() and 0 < model.read < len(rows_of(whole))
    assert row_files.record_path(shard.path(output)).exists()


def test_an_output_of_other_settings_is_not_continued(folder, many_rows, tmp_path, counting):
    settings = {'input': many_rows, 'output': str(tmp_path / 'o.jsonl')}
    counting(_Counting(6))
    with pytest.raises(_Stopped):
        infer(folder, decoding=Decoding(batch_size=1), **settings)
    counting()
    with pytest.raises(UserError, match='o.jsonl was begun with seed=0, and now seed=5. Set the former, or another'):
        infer(folder, decoding=Decoding(batch_size=1, seed=5), **settings)
    infer(folder, decoding=Decoding(batch_size=8), **settings)  # decides no answer
    assert len(rows_of(tmp_path / 'o.jsonl')) == 19


def test_shards_of_a_real_model_are_merged(folder, rows_file, tmp_path, capsys):
    decoding = Decoding(max_new_tokens=3, temperature=1.0, seed=4, batch_size=1)
    infer(folder, input=rows_file, output=str(tmp_path / 'one.jsonl'), decoding=decoding)
    for job in range(2):
        output = str(tmp_path / 'two.jsonl')
        infer(folder, input=rows_file, output=output, decoding=decoding, shard=Part(job, 2))
        assert ('two.jsonl is written when part 1 of 2 is complete' in capsys.readouterr().out) == (job == 0)
    assert (tmp_path / 'two.jsonl').read_bytes() == (tmp_path / 'one.jsonl').read_bytes()


@pytest.mark.parametrize(
    'settings', [{'num_beams': 2}, {'num_samples': 2, 'temperature': 1.0, 'seed': 2}], ids=['beams', 'samples']
)
def test_all_beams_and_samples_are_written_with_their_scores(folder, rows_file, tmp_path, settings):
    decoding = Decoding(max_new_tokens=2, batch_size=1, **settings)
    infer(folder, input=rows_file, output=str(tmp_path / 'o.jsonl'), decoding=decoding)
    model, texts = load(folder), [row['inputs'] for row in ROWS]
    rows = rows_of(tmp_path / 'o.jsonl')
    written = [[one['text'] for one in row['predictions']] for row in rows]
    if 'num_beams' in settings:
        expected = model.beams(texts, 2, decoding=decoding)
        assert written == [[one.text for one in group] for group in expected]
        assert rows[0]['predictions'][1]['score'] == pytest.approx(expected[0][1].score, abs=1e-4)
    else:
        assert written == model.samples(texts, 2, decoding=decoding)
    assert [row['prediction'] for row in rows] == [group[0] for group in written]


def test_all_samples_of_a_prompt_are_printed(counting, tmp_path, capsys):
    counting()
    decoding = Decoding(num_samples=2, temperature=1.0)
    infer('run', prompts=['ab'], decoding=decoding, json_file=str(tmp_path / 'p.json'))
    row = json.loads((tmp_path / 'p.json').read_text())['rows'][0]
    assert row['prediction'] == 'ab 0 0' and row['predictions'][1] == {'text': 'ab 0 1', 'score': -1.0}
    assert capsys.readouterr().out == 'ab 0 0  (-0.000)\nab 0 1  (-1.000)\n'


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
    with pytest.raises(UserError, match='num_samples=2 with temperature 0 are all alike. Set --temperature=0.7'):
        infer('x', prompts=['a'], decoding=Decoding(num_samples=2))


def run(*argv):
    command, arguments = parse_arguments(['infer', '--checkpoint=x', '--prompt=a', *argv], COMMANDS)
    command.run(arguments)


@pytest.mark.parametrize(
    'argv, words',
    [
        (
            ['--checkpoint=x', '--input=a', '--output=b', '--shard=4/4'],
            'out of range, expected 0/4 to 3/4. Set --shard',
        ),
        (['--checkpoint=x', '--input=a', '--output=b', '--shard=0/0'], 'expected N of 1 or more'),
        (['--checkpoint=x', '--input=a', '--output=b', '--shard=2'], '--shard=2, expected I/N'),
        (['--checkpoint=x', '--prompt=a', '--shard=0/2'], '--shard divides the rows of --input or --task'),
        (['--checkpoint=x', '--input=a', '--output=b', '--split=test'], '--split is of --task'),
        (['--checkpoint=x', '--input=a', '--task=b', '--output=c'], '--task and --input both give the rows'),
        (['--checkpoint=x', '--task=a', '--limit=0'], '--limit=0, expected an integer of 1 or more'),
        (['--prompt=a'], 'no checkpoint is given: set --checkpoint=DIR'),
        (['--merge=a.jsonl', '--checkpoint=x'], '--merge only puts files together: it takes --output'),
    ],
)
def test_flags_that_do_not_go_together(argv, words):
    with pytest.raises(UsageError, match=words):
        command, arguments = parse_arguments(['infer', *argv], COMMANDS)
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


def test_control_tokens_precede_every_text(monkeypatch, capsys):
    seen = []

    class Model:
        vocabulary, folder, step = types.SimpleNamespace(control_tokens=('[TOX_LOW]', '[S2S]')), 'run', 1

        def input_ids(self, text):
            seen.append(text)
            return [1]

        def continuations(self, inputs, **options):
            return [[ScoredText('x', 0.0)] for _ in inputs]

    monkeypatch.setattr('t5flan.language_model.load', lambda *arguments: Model())
    infer('run', prompts=['one', 'two'], control=['[S2S]', '[TOX_LOW]'])
    assert seen == ['[S2S][TOX_LOW]one', '[S2S][TOX_LOW]two'] and 'one\n  -> x' in capsys.readouterr().out
    with pytest.raises(
        UserError, match=r'--control=\[TOX\] is not a token of this checkpoint, which has \[TOX_LOW\], \[S2S\]'
    ):
        infer('run', prompts=['one'], control=['[TOX]'])
