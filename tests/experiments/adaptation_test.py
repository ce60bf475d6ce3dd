"""experiments/adaptation.py: runs that differ only in their beginning and objective, and tables of what is there."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from t5flan.__main__ import main
from t5flan.configurables import parse, training_settings
from tests.docs.markdown import ROOT

sys.path.insert(0, str(ROOT / 'experiments'))

import adaptation

import runs

GIVEN = ['--checkpoint=base', '--texts=books/*.txt', '--every=10']


@pytest.mark.parametrize('objective', adaptation.OBJECTIVES)
def test_the_settings_of_an_objective_are_known_and_make_rows_of_its_tasks(objective, tmp_path):
    arguments = adaptation.parse([*GIVEN, '--steps=60'])
    (tmp_path / 'run.gin').write_text(adaptation.settings_gin(objective, arguments))
    of_model = ["INITIALIZE_FROM='model'", "VOCABULARY='bytes'"]  # a run takes them from its folder
    settings = training_settings(parse(['models/tiny_encoder_decoder', str(tmp_path / 'run.gin')], of_model))
    assert settings['data'].mixture == f'files_{objective}'
    assert settings['data'].feature_lengths == {'inputs': 128, 'targets': 128}
    assert (settings['run'].steps, settings['evaluation'].every, settings['optimizer'].warmup_steps) == (60, 10, 6)


def write_losses(root, arm, steps, loss=5.0):
    folder = root / 'runs' / '-'.join(arm)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{'step': step, 'eval/loss': loss - step / 10} for step in steps]
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))


@pytest.fixture
def half_done(tmp_path):
    """Three models, of which one is at step 10, and one finetuned."""
    adaptation.check_settings(tmp_path, adaptation.parse([*GIVEN, '--steps=20']))
    for number, arm in enumerate(adaptation.arms()[:3]):
        write_losses(tmp_path, arm, (0, 10, 20) if number < 2 else (0, 10), 5.0 + number)
    value = {'mean': 12.34, 'low': 10.0, 'high': 15.0}
    folder = tmp_path / 'instructions' / 'ul2'
    folder.mkdir(parents=True)
    values = {name: {'zero-shot: ROUGE-L': value} for name in ('most frequent answer', 'before', 'full finetuning')}
    (folder / 'results.json').write_text(json.dumps({'summary': values}))
    return tmp_path


TABLES = [
    '| objective | copied | step 0 | step 10 | step 20 |',
    '|---|---|---|---|---|',
    '| UL2 | both stacks | 5.000 | 4.000 | 3.000 |',
    '| UL2 | nothing | 6.000 | 5.000 | 4.000 |',
    '| prefix LM | both stacks | 7.000 | 6.000 |  |',
    '',
    'UL2: with both stacks copied, the loss is below that from scratch at 3 of the 3 recorded steps that both have.',
    '',
    '|  | zero-shot: ROUGE-L |',
    '|---|---|',
    '| most frequent answer | 12.3 (10.0 to 15.0) |',
    '| adapted with UL2, before | 12.3 (10.0 to 15.0) |',
    '| adapted with UL2, full finetuning | 12.3 (10.0 to 15.0) |',
]


def test_a_report_of_what_is_finished_needs_only_the_folder(half_done, capsys):
    adaptation.main([f'--workdir={half_done}', '--report_only'])
    first, _, *lines = (half_done / 'table.md').read_text().splitlines()
    assert first.startswith('20 steps of 4 packed rows of 128 input and 128 target tokens') and lines == TABLES
    assert (half_done / 'curves.png').stat().st_size > 1000 and 'table.md' in capsys.readouterr().out
    with pytest.raises(SystemExit, match='settings.json: no such file. Set --workdir'):
        adaptation.main([f'--workdir={half_done}/other', '--report_only'])


def test_the_tables_are_put_into_a_page_again_and_again(half_done):
    page = half_done / 'page.md'
    page.write_text(f'# Title\n\n{adaptation.BEGIN}\nold\n{adaptation.END}\n\n## Next\n')
    for _ in range(2):
        adaptation.main([f'--workdir={half_done}', '--report_only', f'--page={page}'])
        text = page.read_text()
        assert text.startswith('# Title\n') and text.endswith(f'{adaptation.END}\n\n## Next\n') and 'old' not in text
        assert '\n'.join(TABLES) in text and text.count('](page.png)') == 1 and (half_done / 'page.png').exists()
    page.write_text('# Title\n')
    for path, message in ((page, 'lacks the lines'), (half_done / 'none.md', 'no such file')):
        with pytest.raises(SystemExit, match=message):
            adaptation.main([f'--workdir={half_done}', '--report_only', f'--page={path}'])


def test_the_page_of_the_documentation_has_a_place_for_them():
    text = (ROOT / 'docs' / 'adaptation.md').read_text(encoding='utf-8')
    assert text.index(adaptation.BEGIN) < text.index(adaptation.END)


class FakeChildren(runs.Children):
    """Writes what t5flan would write, without training anything; `stops` is killed before its last evaluation."""

    commands: list[str] = []
    stops = ''

    def run(self, log: Path, *argv: str) -> int:
        self.commands.append(f'{argv[0]} {log.stem}')
        if argv[0] == 'adapt':
            Path(argv[-1]).mkdir()
            return 0
        workdir = Path(argv[1].partition('=')[2])
        (workdir / 'checkpoints' / '2').mkdir(parents=True, exist_ok=True)
        write_losses(workdir.parent.parent, log.stem.split('-'), (0, 1) if log.stem == self.stops else (0, 1, 2))
        return int(log.stem == self.stops)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Runs the experiment with fake commands; returns them."""
    monkeypatch.setattr(adaptation, 'Children', FakeChildren)
    monkeypatch.setattr(runs.signal, 'signal', lambda *_: None)
    monkeypatch.setattr(adaptation, 'draw', lambda curves, path: None)

    def run(stops='') -> list[str]:
        monkeypatch.setattr(FakeChildren, 'commands', [])
        monkeypatch.setattr(FakeChildren, 'stops', stops)
        adaptation.main([f'--workdir={tmp_path}', *GIVEN, '--smoke'])
        return FakeChildren.commands

    return run


ORDER = ['ul2-none', 'ul2-all', 'prefix_lm-none', 'prefix_lm-all', 'ul2-encoder', 'ul2-decoder', 'prefix_lm-encoder']


def test_copies_and_scratch_come_first_and_what_is_finished_is_skipped(start, tmp_path):
    commands = start()
    trained = [command.partition(' ')[2] for command in commands if command.startswith('train')]
    assert trained == [*ORDER, 'prefix_lm-decoder']
    built = [command for command in commands if command.startswith('adapt')]
    assert built == [f'adapt ul2-{fresh}' for fresh in adaptation.BEGINNINGS]  # one folder for both objectives
    assert not start()
    kept = {path.parent.name for path in (tmp_path / 'runs').glob('*/checkpoints')}
    assert kept == {'ul2-none', 'prefix_lm-none'}  # those that are finetuned


@pytest.mark.parametrize('name', ['ul2-none', 'ul2-all'])
def test_a_run_that_was_killed_before_its_last_evaluation_is_started_again(name, start, tmp_path):
    with pytest.raises(SystemExit, match=f'error: {name} failed; see .*/logs'):
        start(stops=name)
    assert (tmp_path / 'runs' / name / 'checkpoints').is_dir()
    assert start() == [f'train {name}']


def test_a_model_that_was_built_by_half_is_built_again(start, tmp_path):
    (tmp_path / 'models' / 'none.partial').mkdir(parents=True)
    (tmp_path / 'models' / 'none.partial' / 'rest').touch()
    assert start()[:2] == ['adapt ul2-none', 'train ul2-none']
    assert not (tmp_path / 'models' / 'none' / 'rest').exists()


def test_a_copy_without_its_checkpoint_is_trained_again(start, tmp_path):
    start()
    shutil.rmtree(tmp_path / 'runs' / 'ul2-none' / 'checkpoints')
    assert start() == ['train ul2-none']


def test_other_settings_in_a_folder_are_refused(tmp_path):
    adaptation.check_settings(tmp_path, adaptation.parse([*GIVEN, '--steps=60']))
    with pytest.raises(adaptation.UserError, match='was started with --steps=60. Set the same, or another --workdir'):
        adaptation.check_settings(tmp_path, adaptation.parse([*GIVEN, '--steps=61']))


@pytest.mark.parametrize(
    'given, message',
    [
        (['--texts=a'], '--checkpoint missing'),
        (['--checkpoint=a'], '--texts missing'),
        ([*GIVEN, '--natural_instructions=a'], '--chat missing'),
        ([*GIVEN, '--page=a.md'], '--page needs --report_only'),
    ],
)
def test_flags_that_are_missing(given, message, capsys):
    with pytest.raises(SystemExit):
        adaptation.parse(given)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_experiment_with_a_tiny_decoder(tmp_path, monkeypatch):
    """Every command for real: eight models, and three that are finetuned and asked held-out tasks."""
    (tmp_path / 'text.txt').write_text(
        '\n\n'.join(f'Paragraph {i} of a text about {i * 7} things.' for i in range(400))
    )
    categories = {'task1': 'Titles', 'task2': 'Tags', 'task3': 'Answers', 'task4': 'Answers'}
    for name, category in categories.items():
        instances = [{'input': f'{name} {i}', 'output': [f'out {i}']} for i in range(9)]
        content = {'Definition': ['Do it.'], 'Categories': [category], 'Positive Examples': [], 'Instances': instances}
        path = tmp_path / 'ni' / 'tasks' / f'{name}.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    (tmp_path / 'ni' / 'splits' / 'default').mkdir(parents=True)
    (tmp_path / 'ni' / 'splits' / 'default' / 'test_tasks.txt').write_text('task1\ntask2\n')
    (tmp_path / 'chat').mkdir()
    chats = [{'instruction': f'Say {i}.', 'input': '', 'output': f'{i}'} for i in range(20)]
    (tmp_path / 'chat' / 'alpaca.json').write_text(json.dumps(chats))
    tiny = ['--gin_file=models/tiny_decoder', '--gin_file=runs/pretrain_files', '--gin.VOCABULARY=bytes']
    tiny += [f'--gin.TEXT_FILES={tmp_path}/text.txt', '--gin.MIXTURE=files_causal_lm', '--gin.STEPS=1']
    tiny += ['--gin.DataConfig.format=causal_lm', "--gin.FEATURE_LENGTHS={'targets': 64}", '--gin.BATCH_SIZE=8']
    tiny += ['--gin.EvaluationConfig.every=0']
    assert main(['train', f'--workdir={tmp_path}/decoder', *tiny]) == 0

    monkeypatch.setenv('XLA_FLAGS', '')  # one device: the eight of these tests do not divide the batches
    flags = [f'--workdir={tmp_path}/run', f'--checkpoint={tmp_path}/decoder', f'--texts={tmp_path}/text.txt']
    flags += [f'--natural_instructions={tmp_path}/ni', f'--chat={tmp_path}/chat', '--chat_format=markers', '--smoke']
    adaptation.main([*flags, '--dtype=float32'])
    results = json.loads((tmp_path / 'run' / 'results.json').read_text())
    assert all(list(curve) == ['0', '1', '2'] for curve in results['losses'].values())
    assert sorted(results['losses']) == sorted('-'.join(arm) for arm in adaptation.arms())
    assert all({'before', 'full finetuning'} <= set(values) for values in results['instructions'].values())
    assert len(results['instructions']) == 3
    asked = {path.name: path.read_text() for path in (tmp_path / 'run/instructions/decoder/data/evaluation').iterdir()}
    for objective in adaptation.OBJECTIVES:
        folder = tmp_path / 'run' / 'instructions' / objective / 'data' / 'evaluation'
        assert asked == {path.name: path.read_text() for path in folder.iterdir()}  # the same questions
