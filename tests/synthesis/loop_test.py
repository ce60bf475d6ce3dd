"""The loop and its methods: a killed run's file, what is accepted, bad input."""

import json
import random
import subprocess
import sys

import pytest

from t5flan.commands import COMMANDS
from t5flan.commands.arguments import parse_arguments
from t5flan.decoding.config import CANDIDATES
from t5flan.errors import UsageError, UserError
from t5flan.files import locks
from t5flan.synthesis import journal as journal_lib
from t5flan.synthesis import loop
from t5flan.synthesis.backtranslate import read_texts
from t5flan.synthesis.evol_instruct import OPERATIONS, evol_instruct
from t5flan.synthesis.evol_instruct import _task_of as task_of
from t5flan.synthesis.filters import Pool, instruction_fault
from t5flan.synthesis.journal import journal_path, provenance_path
from t5flan.synthesis.loop import Draw, Job
from t5flan.synthesis.seeds import read_seeds
from t5flan.synthesis.self_instruct import items, self_instruct
from t5flan.tasks import chat
from tests.saved_model import byte_model, save_folder
from tests.synthesis import stub_model
from tests.synthesis.stub_model import Stub, run

METHODS = ('self_instruct', 'evol_instruct', 'backtranslate')


@pytest.fixture(autouse=True)
def original_load(monkeypatch):
    monkeypatch.setattr(loop, 'load', loop.load)  # `run` replaces it


def rows_of(path):
    return [json.loads(line) for line in path.read_text('utf-8').splitlines()]


@pytest.mark.parametrize('name', METHODS)
def test_a_killed_run_ends_with_the_same_file(name, tmp_path, monkeypatch):
    """What a kill leaves is a beginning of the journal, cut at any byte, and perhaps a finished output."""
    whole, path = tmp_path / 'whole.jsonl', tmp_path / 'killed.jsonl'
    kept = {}
    finish = journal_lib.Journal.finish
    monkeypatch.setattr(
        journal_lib.Journal,
        'finish',
        lambda self, *given: (kept.setdefault('journal', self._path.read_bytes()), finish(self, *given))[1],
    )
    report = run(name, str(whole))
    expected = whole.read_bytes()
    assert report['counts']['accepted'] == len(rows_of(whole)) > 5 and not journal_path(whole).exists()
    for cut in random.Random(name).sample(range(len(kept['journal'])), 2):
        journal_path(path).write_bytes(kept['journal'][:cut])
        assert run(name, str(path))['counts'] == report['counts']
        assert (
            path.read_bytes() == expected and provenance_path(path).read_bytes() == provenance_path(whole).read_bytes()
        )
        path.unlink()
    journal_path(path).write_bytes(kept['journal'])
    path.write_bytes(expected)  # killed after the output was written, before its provenance
    run(name, str(path))
    assert path.read_bytes() == expected and not journal_path(path).exists()
    assert run(name, str(path)) == report, 'a finished run stays as it is'


@pytest.mark.slow
@pytest.mark.parametrize('name', METHODS)
def test_killed_at_ten_random_moments(name, tmp_path):
    whole, path = tmp_path / 'whole.jsonl', tmp_path / 'killed.jsonl'
    run(name, str(whole))
    command = [sys.executable, '-m', 'tests.synthesis.stub_model', name, str(path), '10', '7']
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 5, 'kills that hit a running process'
    assert path.read_bytes() == whole.read_bytes() and not journal_path(path).exists()


@pytest.mark.parametrize('name', METHODS)
def test_rows_are_read_by_train_and_name_their_origin(name, tmp_path):
    path = tmp_path / f'{name}.jsonl'
    report = run(name, str(path))
    rows = rows_of(path)
    for row in rows:
        assert row['origin']['method'] == name and row['origin']['checkpoint'] == 'runs/stub'
    if name == 'evol_instruct':
        known = {task.id for task in read_seeds()} | {row['id'] for row in rows}
        assert all(row['origin']['parent'] in known and row['origin']['operation'] in OPERATIONS for row in rows)
        assert 1 <= max(row['origin']['depth'] for row in rows) <= 4
    if name == 'self_instruct':
        assert {row['is_classification'] for row in rows} == {True, False}
    examples = [chat.open_file(str(path), split) for split in ('train', 'validation')]
    assert sum(map(len, examples)) == len(rows)
    assert examples[0][0]['roles'] == ['user', 'assistant']
    counts = report['counts']
    assert counts['candidates'] == counts['accepted'] + sum(counts['rejected'].values())
    pool = Pool()
    for row in rows if name != 'evol_instruct' else ():
        assert not pool.has_similar(row['instruction'])
        pool.add(row['instruction'])


@pytest.mark.parametrize(
    'reply, task',
    [
        ('Sure, here is the new task:\n\n**Name a red fruit.**\n\nAnswer: a cherry', 'Name a red fruit.'),
        ('New task: "Name a red fruit."\n\n**Solution:**\nA cherry.', 'Name a red fruit.'),
        ('Sort these words:\nsun dog', 'Sort these words:\nsun dog'),
        ('TASK: Task: *Name a red fruit.*', 'Name a red fruit.'),
        ('Here: there and everywhere', 'Here: there and everywhere'),
    ],
)
def test_the_task_in_a_reply(reply, task):
    assert task_of(reply) == task


@pytest.mark.parametrize('name', METHODS)
def test_a_run_in_a_bucket_writes_the_same_file(name, tmp_path, monkeypatch):
    pytest.importorskip('google.cloud.storage', reason="pip install 't5flan[gcs]'")
    from tests.files.gcs_server import Faults, GcsServer, use

    run(name, str(tmp_path / 'here.jsonl'))
    with GcsServer(Faults(rate=0.2, seed=1, pause=0.01)) as server:
        use(server, monkeypatch)
        report = run(name, 'gs://bucket/new/there.jsonl', json_file='gs://bucket/new/there.json')
        assert server.read('new/there.jsonl') == (tmp_path / 'here.jsonl').read_bytes()
        written = {'new/there.jsonl', 'new/there.jsonl.provenance.json', 'new/there.json'}
        assert {one for one in server.names() if not one.endswith('/')} == written
        assert run(name, 'gs://bucket/new/there.jsonl') == report, 'a finished run stays as it is'


def test_the_seed_decides_the_file(tmp_path):
    made = []
    for number, seed in enumerate((0, 0, 1)):
        path = tmp_path / f'{number}.jsonl'
        decoding = stub_model.SAMPLING.replace(seed=seed)
        loop.load = lambda *_: Stub()
        self_instruct(Job('x', str(path), count=9, decoding=decoding))
        made.append(path.read_bytes())
    assert made[0] == made[1] != made[2]


def test_a_model_that_repeats_itself_stops_with_the_acceptance_rate(tmp_path, monkeypatch):
    path = tmp_path / 'x.jsonl'
    monkeypatch.setattr(Stub, 'say', lambda *_: ' Name three rivers.\n10. Name three rivers.')
    with pytest.raises(UserError) as error:
        run('self_instruct', str(path), patience=2)
    text = str(error.value)
    assert '0 of the 16 candidates of the last 2 rounds were accepted' in text and '(0.0%)' in text and '\n' not in text
    assert 'similar 15' in text and not path.exists()


def test_what_was_accepted_before_a_stop_can_be_written(tmp_path, monkeypatch):
    path, say = tmp_path / 'x.jsonl', Stub.say
    calls = []

    def tire(self, prompt, random):
        calls.append(prompt)
        return say(self, prompt, random) if len(calls) < 30 else ' Name three rivers.'

    monkeypatch.setattr(Stub, 'say', tire)
    with pytest.raises(UserError, match=r'Write what is there with --count=(\d+)') as error:
        run('self_instruct', str(path), patience=2)
    count = int(str(error.value).split('--count=')[1].split(',')[0])
    monkeypatch.setattr(Stub, 'say', None)  # the journal has all answers
    assert run('self_instruct', str(path), patience=2, count=count)['counts']['accepted'] == count == len(rows_of(path))


@pytest.mark.parametrize(
    'row,pattern',
    [
        ('[1]', 'is int, not a JSON object with fields'),
        ('{"instruction": "Sort.", "instances": []}', "'instances' is missing or empty"),
        ('{"instruction": "Sort."}', "'instances' is missing or empty"),
        ('{"instruction": 3, "instances": [{"output": "x"}]}', "no text in field 'instruction'"),
        ('{"instruction": "Sort.", "instances": [{"input": "b a"}]}', 'instance 1: expected an object with text in'),
        ('{"instruction": "Sort.", "instances": ["b a"]}', 'instance 1: expected an object'),
    ],
)
def test_bad_seeds(row, pattern, tmp_path):
    (tmp_path / 's.jsonl').write_text(row + '\n')
    with pytest.raises(UserError, match=pattern) as error:
        read_seeds(str(tmp_path / 's.jsonl'))
    assert 's.jsonl' in str(error.value) and '\n' not in str(error.value)


def test_alpaca_rows_are_seeds(tmp_path):
    (tmp_path / 's.json').write_text('[{"instruction": "Sort.", "input": "b a", "output": "a b"}]')
    [task] = read_seeds(str(tmp_path / 's.json'))
    assert task.instances[0].input == 'b a' and task.id == 'seed_1'


def test_settings_out_of_range(tmp_path):
    for settings, pattern in (
        ({'count': 0}, '--count=0'),
        ({'patience': 0}, '--patience=0'),
        ({'decoding': CANDIDATES.replace(temperature=0.0)}, '--temperature=0'),
    ):
        with pytest.raises(UsageError, match=pattern):
            self_instruct(Job('none', str(tmp_path / 'x.jsonl'), **settings))
    with pytest.raises(UsageError, match=r'x.csv, expected a file name that ends in .jsonl'):
        self_instruct(Job('none', 'x.csv'))
    with pytest.raises(UsageError, match='--depth=0'):
        evol_instruct(Job('none', 'x.jsonl'), depth=0)
    (tmp_path / 't.jsonl').write_text('{"text": " "}\n')
    with pytest.raises(UserError, match="has no text in field 'text'"):
        read_texts([str(tmp_path / 't.jsonl')], 'text')


def test_an_output_of_another_run_is_refused(tmp_path):
    path = tmp_path / 'x.jsonl'
    path.write_text('mine\n')
    with pytest.raises(UserError, match='exists and was not written by this command'):
        run('self_instruct', str(path))
    assert path.read_text() == 'mine\n'
    path.unlink()
    run('self_instruct', str(path))
    with pytest.raises(UserError, match='is of another run: count=30, now 31'):
        run('self_instruct', str(path), count=31)
    with pytest.raises(UserError, match="is of another run: method='self_instruct', now 'evol_instruct'"):
        run('evol_instruct', str(path))


def test_a_damaged_journal_is_reported(tmp_path):
    path = tmp_path / 'x.jsonl'
    journal_path(path).write_text('no journal\n')
    with pytest.raises(UserError, match=r'x.jsonl.journal is damaged'):
        run('self_instruct', str(path))
    with locks.hold_file(path, '--output'), pytest.raises(UserError, match='is being written by process'):
        run('self_instruct', str(path))


def test_the_packaged_seeds():
    tasks = read_seeds()
    assert len(tasks) >= 20 and len({task.id for task in tasks}) == len(tasks)
    assert sum(task.is_classification for task in tasks) >= 4
    pool = Pool()
    for task in tasks:
        assert not instruction_fault(task.instruction), task
        assert not pool.has_similar(task.instruction)
        pool.add(task.instruction)


def test_items_of_a_list():
    assert items(Draw(' Name a fruit.\n10. "Name a tree."\n11. Na', False)) == ['Name a fruit.', 'Name a tree.']
    assert items(Draw(' Say "no".', True)) == ['Say "no".'] and items(Draw('', True)) == []


@pytest.mark.parametrize(
    'text,fault',
    [
        ('Name three rivers of Asia.', ''),
        ('What is a balloon?', ''),
        ('Draw a picture of a horse.', 'keyword'),
        ('Write a program that sorts numbers.', 'keyword'),
        ('Sort it', 'too short'),
        ('The sun will set tomorrow at six.', 'no instruction'),
        ('What is the color of this:', 'no instruction'),
        ('12 plus 13 is how much?', 'bad start'),
        ('Say it again. Say it again.', 'repetition'),
        ('解释为什么天空是蓝色的', ''),
    ],
)
def test_instruction_faults(text, fault):
    assert instruction_fault(text) == fault


def test_the_pool_finds_what_rouge_finds():
    """The bound by common words skips no text that ROUGE-L calls similar, in any script."""
    from rouge_score.rouge_scorer import RougeScorer

    drawn = random.Random(0)
    texts = [' '.join(drawn.choice('abcd') for _ in range(drawn.randint(1, 8))) for _ in range(60)]
    scorer, pool = RougeScorer(['rougeL']), Pool(texts[:30])
    for text in texts[30:]:
        expected = any(scorer.score(other, text)['rougeL'].fmeasure >= 0.7 for other in texts[:30])
        assert pool.has_similar(text) == expected, text
    assert Pool(['天空为什么是蓝色的']).has_similar('天空为什么是蓝色') and not Pool(['!!!']).has_similar('???')


@pytest.mark.slow
@pytest.mark.parametrize('family,format', [('t5_1_1', 'encoder_decoder'), ('gemma', 'causal_lm')])
def test_the_commands_run_with_a_checkpoint(family, format, tmp_path, monkeypatch):
    """An untrained model writes nothing that is accepted, and is told so; its draws are in the journal."""
    folder = save_folder(tmp_path / 'run', byte_model(family), format, steps=(3,))
    (tmp_path / 't.jsonl').write_text('{"text": "The old bridge is made of stone."}\n')
    monkeypatch.chdir(tmp_path)
    for name in METHODS:
        line = [
            name,
            f'--checkpoint={folder}',
            '--output=x.jsonl',
            '--batch_size=2',
            '--max_new_tokens=8',
            '--patience=1',
        ]
        command, arguments = parse_arguments([*line, *['--input=t.jsonl'] * (name == 'backtranslate')], COMMANDS)
        with pytest.raises(UserError, match='repeats itself|nothing was accepted'):
            command.run(arguments)
        assert journal_path(tmp_path / 'x.jsonl').read_bytes().count(b'\n') == 2
        journal_path(tmp_path / 'x.jsonl').unlink()
