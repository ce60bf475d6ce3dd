"""The command line: errors are one line with the right exit code, and a run from end to end."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from t5flan.__main__ import main
from t5flan.commands import COMMANDS
from t5flan.commands.arguments import Command
from t5flan.errors import UsageError, UserError
from t5flan.training.profiling.parts import REST, SCOPES, WAITING


@pytest.mark.parametrize(
    'error, code, expected',
    [
        (UserError('data.jsonl line 3:\n  not JSON'), 1, 't5flan: data.jsonl line 3: not JSON\n'),
        (UsageError('no'), 2, 't5flan: no\n'),
        (OSError(28, 'No space left on device', '/x/y'), 1, 't5flan: No space left on device: /x/y\n'),
        (OSError(28, 'No space left on device'), 1, 't5flan: No space left on device\n'),
        (KeyboardInterrupt(), 1, '\nt5flan: stopped\n'),
    ],
)
def test_an_error_of_a_command_is_one_line(cli, monkeypatch, error, code, expected):
    def run(_):
        raise error

    monkeypatch.setitem(COMMANDS, 'fails', Command('fails', '', run, ()))
    assert cli('fails') == (code, '', expected)


def test_what_a_signal_leaves_undone_does_not_warn(cli, monkeypatch, recwarn):
    async def task():
        pass

    def run(_):
        left = task()
        raise KeyboardInterrupt(left.__name__)

    monkeypatch.setitem(COMMANDS, 'fails', Command('fails', '', run, ()))
    assert cli('fails')[0] == 1
    assert not recwarn.list


def test_a_bug_keeps_its_traceback(monkeypatch):
    def run(_):
        raise KeyError('x')

    monkeypatch.setitem(COMMANDS, 'fails', Command('fails', '', run, ()))
    with pytest.raises(KeyError):
        main(['fails'])


def test_a_closed_pipe_is_not_an_error():
    code = (
        'import sys; from t5flan.__main__ import COMMANDS, console; from t5flan.commands.arguments import Command;'
        "COMMANDS['x'] = Command('x', '', lambda _: [print('y' * 99) for _ in range(9999)], ());"
        "sys.argv = [0, 'x']; console()"
    )
    done = subprocess.run(f'{sys.executable} -c "{code}" | head -1', shell=True, capture_output=True, text=True)
    assert done.stdout == 'y' * 99 + '\n' and done.stderr == ''


# -- End to end ------------------------------------------------------------------------------------------------

TINY = [
    '--gin_file=models/tiny_encoder_decoder',
    '--gin.ModelConfig.emb_dim=16',
    '--gin.ModelConfig.mlp_dim=16',
    '--gin.ModelConfig.num_encoder_layers=1',
    '--gin.ModelConfig.num_decoder_layers=1',
    '--gin.BATCH_SIZE=8',
    '--gin.EvaluationConfig.every=0',
    "--gin.FEATURE_LENGTHS={'inputs': 16, 'targets': 8}",
]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder with `first`, a run of two steps on a .jsonl file, set up with gin alone."""
    folder = tmp_path_factory.mktemp('runs')
    rows = [{'question': f'{i} and 1', 'answer': str(i + 1)} for i in range(200)]
    (folder / 'train.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    code = main(
        [
            'train',
            f'--workdir={folder}/first',
            *TINY,
            '--gin_file=runs/finetune_file',
            '--gin.INITIALIZE_FROM=None',
            '--gin.VOCABULARY=bytes',
            f'--gin.TRAIN_FILE={folder}/train.jsonl',
            '--gin.INPUT_FIELD=question',
            '--gin.TARGET_FIELD=answer',
            '--gin.STEPS=2',
            '--gin.RunConfig.log_every=1',
        ]
    )
    assert code == 0
    return folder


def steps(workdir) -> list[int]:
    return [
        json.loads(line)['step'] for line in (workdir / 'metrics.jsonl').read_text().splitlines() if '"loss"' in line
    ]


def test_a_workdir_resumes_with_its_own_settings(trained, cli):
    assert steps(trained / 'first') == [1, 2]
    code, _, err = cli('train', f'--workdir={trained}/first', '--gin.STEPS=3')
    assert code == 0 and 'resuming from step 2' in err and steps(trained / 'first') == [1, 2, 3]
    assert 'RunConfig.steps = %STEPS' in (trained / 'first' / 'config.gin').read_text()


@pytest.mark.slow  # compiles the step again
def test_a_profile_has_every_part_of_a_step(trained, cli):
    workdir = trained / 'profiled'
    shutil.copytree(trained / 'first', workdir)
    code, _, err = cli('train', f'--workdir={workdir}', '--gin.STEPS=9', '--profile=3')
    assert code == 0 and 'profile of 3 steps' in err
    found = json.loads((workdir / 'profile' / 'parts.json').read_text())['seconds_per_step']
    assert {*SCOPES.values(), REST, WAITING} <= set(found)
    assert len(list(workdir.glob('profile/plugins/profile/*/*.xplane.pb'))) == 1


def test_a_run_takes_model_and_vocabulary_from_its_initial_checkpoint(trained, cli):
    code, _, err = cli(
        'train',
        f'--workdir={trained}/second',
        '--gin_file=runs/finetune',
        '--gin.MIXTURE=practice_add',
        f'--gin.INITIALIZE_FROM={trained}/first',
        '--gin.BATCH_SIZE=8',
        '--gin.STEPS=1',
        '--gin.EvaluationConfig.every=0',
        "--gin.FEATURE_LENGTHS={'inputs': 16, 'targets': 8}",
    )
    assert code == 0 and 'initialized (parameters) from step' in err
    saved = (trained / 'second' / 'config.gin').read_text()
    assert 'ModelConfig.emb_dim = 16' in saved and 'ModelConfig.dropout_rate = %DROPOUT' in saved
    assert (
        f"VOCABULARY = '{trained}/first/vocabulary'" in saved
        or f"DataConfig.vocabulary = '{trained}/first/vocabulary'" in saved
    )


def test_an_initial_checkpoint_that_is_not_one(trained, cli):
    code, _, err = cli(
        'train',
        f'--workdir={trained}/third',
        '--gin_file=runs/finetune',
        '--gin.MIXTURE=practice_add',
        f'--gin.INITIALIZE_FROM={trained}/absent',
    )
    assert code == 1 and f'{trained}/absent is not a checkpoint folder' in err and not (trained / 'third').exists()


def test_evaluate_infer_and_report_need_only_the_folder(trained, cli):
    first = trained / 'first'
    code, out, _ = cli(
        'evaluate',
        f'--checkpoint={first}',
        '--limit=3',
        '--max_new_tokens=2',
        f'--json={first}/evaluation.json',
        f'--predictions={first}/predictions.jsonl',
        '--tasks=file,practice_add',
    )
    table = json.loads((first / 'evaluation.json').read_text())
    assert code == 0 and set(table['tasks']) == {'file', 'practice_add'} and 'practice_add' in out
    assert len((first / 'predictions.jsonl').read_text().splitlines()) == 6
    code, out, _ = cli('infer', f'--checkpoint={first}', '--prompt=2 and 1', '--max_new_tokens=2')
    assert code == 0 and out.endswith('\n')
    code, out, _ = cli('report', str(first))
    assert code == 0 and '<html' in (first / 'report.html').read_text() and out.strip().endswith('report.html')


def test_all_checkpoints_are_evaluated_and_reported(trained, cli, tmp_path):
    ignored = shutil.ignore_patterns('evaluation*', 'predictions*')
    folder = shutil.copytree(trained / 'first', tmp_path / 'run', ignore=ignored)
    assert cli('train', f'--workdir={folder}', '--gin.STEPS=3')[0] == 0  # if no other test has
    given = [f'--checkpoint={folder}', '--tasks=file,practice_add', '--limit=2', '--max_new_tokens=2']
    given += [f'--json={folder}/evaluation.json', f'--predictions={folder}/predictions.jsonl']
    code, out, _ = cli('evaluate', *given, '--steps=all')
    found = json.loads((folder / 'evaluation.json').read_text())
    assert code == 0 and [one['step'] for one in found['steps']] == [2, 3] and '2 checkpoints' in out
    code, _, err = cli('evaluate', *given, '--steps=latest')
    assert code == 0 and 'step 3: the results of 2 of 2 tasks are there already' in err
    assert cli('evaluate', *given, '--steps=9')[2].endswith('has no step 9; it has 2, 3. Set --steps.\n')
    assert 'has no best checkpoint: the run had' in cli('evaluate', *given, '--steps=best')[2]
    with (folder / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 2, "eval/loss": 1.0}\n{"step": 3, "eval/loss": 2.0}\n')
    code, _, err = cli('evaluate', *given, '--steps=best', "--gin.CheckpointConfig.best_metric='eval/loss'")
    assert code == 0 and 'step 2: the results of 2 of 2 tasks' in err
    assert cli('report', str(folder))[0] == 0
    page = (folder / 'report.html').read_text()
    for words in ('Scores by checkpoint', '>step 2<', 'Scores over checkpoints', 'answers of predictions.jsonl'):
        assert words in page, words


def test_jobs_share_the_rows_of_a_task_and_are_merged(trained, cli, tmp_path):
    given = ['infer', f'--checkpoint={trained}/first', '--task=file,practice_add', '--limit=3', '--max_new_tokens=2']
    whole, shared = tmp_path / 'whole.jsonl', tmp_path / 'shared.jsonl'
    assert cli(*given, f'--output={whole}')[0] == 0
    rows = [json.loads(line) for line in whole.open()]
    assert [row['task'] for row in rows] == ['file'] * 3 + ['practice_add'] * 3 and rows[4]['target']
    assert cli(*given, f'--output={shared}', '--shard=1/2')[0] == 0
    code, _, err = cli('infer', f'--merge={shared}')
    assert code == 1 and '3 of 6 rows of' in err and 'are missing: 0, 2, 4. Run the jobs of part 0 of 2 again' in err
    assert cli(*given, f'--output={shared}', '--shard=0/2')[0] == 0
    assert cli('infer', f'--merge={shared}', f'--output={tmp_path}/all.jsonl')[0] == 0
    assert shared.read_bytes() == whole.read_bytes() == (tmp_path / 'all.jsonl').read_bytes()


def test_evaluate_and_infer_reject_a_folder_that_is_not_a_checkpoint(trained, cli):
    for argv in (['evaluate', '--tasks=practice'], ['infer', '--prompt=x']):
        code, out, err = cli(*argv, f'--checkpoint={trained}/absent')
        assert (code, out) == (1, '') and f'{trained}/absent' in err and err.count('\n') == 1
    assert cli('infer', f'--checkpoint={trained}/first')[0] == 2


def test_mixture_shows_one_and_lists_all(cli, tmp_path):
    code, out, _ = cli('mixture', 'practice_add', '--sample=5', '--examples=1', f'--json={tmp_path}/table.json')
    table = json.loads((tmp_path / 'table.json').read_text())
    assert code == 0 and 'practice_add' in out and table['tasks'][0]['task'] == 'practice_add'
    code, out, _ = cli('mixture')
    assert code == 0 and '  practice\n' in out and '  c4_span_corruption\n' in out
    code, out, _ = cli('mixture', 'ul2', '--sample=2', '--examples=1')
    assert code == 0 and 'stdlib_docs_ul2_x_64_50' in out
    code, _, err = cli('mixture', 'practise_add')
    assert code in (1, 2) and 'practice_add' in err and err.count('\n') == 1


def test_vocabulary_trains(cli, tmp_path, root):
    (tmp_path / 'text.txt').write_text((root / 't5flan' / 'quickstart.py').read_text())
    given = [
        'vocabulary',
        f'--input={tmp_path}/text.txt',
        f'--output={tmp_path}/v.model',
        '--extra_ids=10',
        '--mode_tokens=',
    ]
    code, out, _ = cli(*given, '--size=600')
    assert code == 0 and (tmp_path / 'v.model').is_file() and (tmp_path / 'v.json').is_file()
    report, out = out.split('\n', 1)
    assert re.fullmatch(
        r'.*text\.txt: 100\.0% of the training text, \d\.\d+ tokens per character, [\d.]+% of .* have no piece',
        report,
    )
    assert out == (
        f'{tmp_path}/v.model: 600 ids; set --gin.VOCABULARY={tmp_path}/v.model and '
        '--gin.ModelConfig.vocab_size=640 or more\n'
    )
    code, _, err = cli(*given, '--size=9000')
    assert code == 1 and 'Set a smaller --size' in err and err.count('\n') == 1
