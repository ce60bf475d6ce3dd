"""experiments/instruction_tuning.py: arms, gin files, and runs that continue, with t5flan replaced by a fake."""

import json
import sys
from pathlib import Path

import pytest

from t5flan import configurables
from t5flan.data.config import DataConfig
from tests.docs.markdown import ROOT

sys.path.insert(0, str(ROOT / 'experiments'))

import instruction_tuning as experiment
import runs

REQUIRED = ['--checkpoint=x']


def test_arms():
    arguments = experiment.parse([*REQUIRED, '--methods=full,lora', '--rates=0,0.6', '--seeds=2'])
    names = [arm.name for arm in experiment.arms_of(arguments)]
    first = ['full-cot0.3-seed0', 'lora-cot0.3-seed0', 'full-cot0-seed0', 'full-cot0.6-seed0']
    assert names == [*first, *(name.replace('seed0', 'seed1') for name in first)]
    labels = [arm.label(0.3) for arm in experiment.arms_of(arguments)][:4]
    assert labels == ['full finetuning', 'LoRA', 'full finetuning, without CoT', 'full finetuning, 60% CoT']
    with pytest.raises(SystemExit):
        experiment.parse([*REQUIRED, '--methods=full,lorra'])


def test_gin_files_parse(tmp_path):
    arguments = experiment.parse(REQUIRED)
    for rate, parts in ((0.3, {'natural_instructions': 0.63, 'chat': 0.07, 'cot': 0.3}), (0.0, None)):
        (tmp_path / 'training.gin').write_text(experiment.training_gin(tmp_path, rate, arguments))
        settings = configurables.parse([str(tmp_path / 'training.gin')], ["VOCABULARY='bytes'", "INITIALIZE_FROM='x'"])
        [mixture] = settings.read(DataConfig).mixtures
        assert mixture.rates == (parts or {'natural_instructions': 0.9, 'chat': 0.1})
        assert settings.read(DataConfig).cot == ((f'{tmp_path}/cot',) if rate else ())
    (tmp_path / 'evaluation.gin').write_text(experiment.evaluation_gin(tmp_path, ['direct.qasc', 'a.b'], arguments))
    given = ["DataConfig.mixture='-'", "DataConfig.vocabulary='bytes'", 'DataConfig.batch_size=1']
    found = configurables.parse([str(tmp_path / 'evaluation.gin')], given).read(DataConfig)
    assert [task.name for task in found.file_tasks] == ['direct.qasc', 'a.b']
    assert found.file_tasks[0].test == f'{tmp_path}/evaluation/direct.qasc.jsonl' and found.mixtures == ()


class FakeChildren(runs.Children):
    """Writes what t5flan would write, without training anything; `broken` fails."""

    commands: list[list[str]] = []
    broken = ''

    def run(self, log: Path, *argv: str) -> int:
        self.commands.append([argv[0], log.stem])
        flags = dict(word.removeprefix('--').partition('=')[::2] for word in argv[1:])
        if argv[0] == 'train' and log.stem != self.broken:
            (Path(flags['workdir']) / 'checkpoints' / '2').mkdir(parents=True)
        if argv[0] == 'evaluate':
            predictions, root = Path(flags['predictions']), Path(flags['gin_file']).parent
            lines = []
            for path in sorted((root / 'data' / 'evaluation').glob('*.jsonl')):
                for i, row in enumerate(path.read_text().splitlines()):
                    prediction = json.loads(row)['targets'][0] if log.stem != 'before' else 'x'
                    lines.append(json.dumps({'task': path.stem, 'index': i, 'prediction': prediction}))
            predictions.parent.mkdir(exist_ok=True)
            predictions.write_text('\n'.join(lines))
            Path(flags['json']).write_text('{}')
        return int(log.stem == self.broken)


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """A workdir whose data is prepared, as on a machine that has nothing else."""
    monkeypatch.setattr(experiment, 'Children', FakeChildren)
    monkeypatch.setattr(runs.signal, 'signal', lambda *_: None)
    monkeypatch.setattr(experiment, 'load_vocabulary', lambda path: None)
    monkeypatch.setattr(experiment.scores, 'draw', lambda summary, path: None)
    monkeypatch.setattr(FakeChildren, 'commands', [])
    monkeypatch.setattr(FakeChildren, 'broken', '')
    rows = {'direct.qasc': [{'inputs': '?', 'targets': ['(A)'], 'bare': '?\n- (A) x'}]}
    rows |= {f'{kind}.task1': [{'inputs': '?', 'targets': ['yes'], 'bare': '?'}] for kind in ('zero_shot', 'two_shot')}
    kinds = {name: dict(zip(('kind', 'task'), name.split('.')), rows=1) for name in rows}
    sizes = {name: experiment.SMOKE[name] for name in ('tasks', 'rows', 'reasoning_rows', 'cot_rows', 'prompt_tokens')}
    content = {'sizes': sizes, 'held_out': {}, 'trained': [], 'evaluations': kinds}
    (tmp_path / 'data' / 'evaluation').mkdir(parents=True)
    (tmp_path / 'data' / 'prepared.json').write_text(json.dumps(content))
    for name, lines in rows.items():
        (tmp_path / 'data' / 'evaluation' / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    return tmp_path


def flags(workdir, *more):
    return [f'--workdir={workdir}', *REQUIRED, '--smoke', *more]


def test_what_is_finished_is_skipped(workdir):
    arms = ['full-cot0.3-seed0', 'lora-cot0.3-seed0', 'full-cot0-seed0']
    experiment.main(flags(workdir, '--jobs=2'))
    assert sorted(FakeChildren.commands) == sorted(
        [*([command, arm] for arm in arms for command in ('train', 'evaluate')), ['evaluate', 'before']]
    )
    results = json.loads((workdir / 'results.json').read_text())
    assert results['summary']['LoRA']['QASC, direct']['mean'] == 100
    assert results['differences from before']['LoRA']['zero-shot: exact match']['difference'] == 100
    table = (workdir / 'table.md').read_text()
    assert '| full finetuning, without CoT | 100.0 (100.0 to 100.0) |' in table

    FakeChildren.commands.clear()
    experiment.main(flags(workdir))
    assert not FakeChildren.commands and (workdir / 'table.md').read_text() == table
    (workdir / 'evaluations' / f'{arms[0]}.json').unlink()  # killed while it was evaluated
    experiment.main(flags(workdir))
    assert FakeChildren.commands == [['evaluate', arms[0]]]


def test_one_arm_that_fails_does_not_stop_the_others(workdir, capsys):
    FakeChildren.broken = 'full-cot0.3-seed0'
    with pytest.raises(SystemExit, match='error: full-cot0.3-seed0 failed; see .*/logs'):
        experiment.main(flags(workdir))
    assert '| LoRA |' in capsys.readouterr().out
    FakeChildren.broken = ''
    FakeChildren.commands.clear()
    experiment.main(flags(workdir))
    assert FakeChildren.commands == [['train', 'full-cot0.3-seed0'], ['evaluate', 'full-cot0.3-seed0']]


def test_a_report_of_what_is_finished(workdir, capsys):
    experiment.main(flags(workdir, '--report_only'))
    assert not FakeChildren.commands and '| most frequent answer |' in capsys.readouterr().out


def test_other_settings_are_refused(workdir, monkeypatch):
    experiment.main(flags(workdir, '--prepare_only'))
    monkeypatch.setitem(experiment.SMOKE, 'steps', 3)
    with pytest.raises(SystemExit, match='was started with --steps=2. Set the same, or another --workdir'):
        experiment.main(flags(workdir))


def test_children_are_processes_with_logs(tmp_path, capsys):
    children = runs.Children()
    assert children.run(tmp_path / 'logs' / 'a.log', '--version') == 0
    assert (tmp_path / 'logs' / 'a.log').read_text().startswith('t5flan ')
    assert capsys.readouterr().out.startswith('$ t5flan --version >> ')
    assert children.run(tmp_path / 'logs' / 'b.log', 'no_such_command') != 0
    children.stop()
    assert children.run(tmp_path / 'logs' / 'c.log', '--version') == 1


def test_sets_with_rationales_are_needed_if_they_are_trained_on(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, 'load_vocabulary', lambda path: None)
    asked = []
    monkeypatch.setattr(experiment, 'prepare', lambda folder, sources, sizes, count: asked.append(set(sources)))
    for given in ([], ['--cot_rate=0'], ['--cot_rate=0', '--rates=', '--methods=full']):
        experiment.prepare_data(tmp_path, experiment.parse([*REQUIRED, *given]))
    assert ['cot' in sources for sources in asked] == [True, False, False]


def test_an_error_ends_the_children_and_waits_until_they_have_saved(monkeypatch):
    calls = []

    class Child:
        def terminate(self):
            calls.append('terminate')

        def wait(self, timeout):
            calls.append('wait')

    monkeypatch.setattr(runs.signal, 'signal', lambda *_: None)
    with pytest.raises(KeyboardInterrupt), runs.Children() as children:
        children._running.add(Child())
        raise KeyboardInterrupt
    assert calls == ['terminate', 'wait']
