"""The command line: help at once, mistakes in one line with the right exit code, and a run from end to end."""

import json
import os
import subprocess
import sys
import time

import pytest

from t5flan import __main__ as command_line
from t5flan.__main__ import main
from t5flan.commands import COMMANDS
from t5flan.commands.arguments import Command, Flag, parse_arguments, words
from t5flan.errors import UsageError, UserError

HEAVY = ('jax', 'jaxlib', 'flax', 'optax', 'orbax', 'tensorflow', 'seqio', 'numpy', 'matplotlib')


@pytest.fixture
def said(capsys):
    """Runs a command line and gives (exit code, stdout, stderr)."""

    def run(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(argv)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def fastest(*argv: str, times: int = 5) -> float:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run([sys.executable, *argv], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


# -- Help -----------------------------------------------------------------------------------------------------------


def test_help_names_every_command(said):
    code, out, err = said('--help')
    assert code == 0 and err == ''
    for name, command in COMMANDS.items():
        assert f'\n  {name} ' in out and command.summary in out
    assert said()[0] == 2 and said()[1] == out
    assert said('--version')[1].startswith('t5flan 0.')


@pytest.mark.parametrize('name', COMMANDS)
def test_help_of_a_command_tells_each_flag_and_an_example(said, name):
    code, out, _ = said(name, '--help')
    command = COMMANDS[name]
    assert code == 0 and all(
        (flag.name if flag.name.startswith('--') else flag.metavar) in out for flag in command.flags
    )
    assert command.example.startswith(f't5flan {name}') and command.example in out
    assert ('--gin_file' in out) == command.gin and ('models/…' in out) == command.gin


@pytest.mark.parametrize('name', COMMANDS)
def test_the_example_of_a_command_is_one(name):
    import shlex

    command, arguments = parse_arguments(shlex.split(COMMANDS[name].example)[1:], COMMANDS)
    assert command is COMMANDS[name] and isinstance(arguments.gin, list)


def test_help_and_mistakes_import_nothing_heavy():
    lines = [
        [],
        *([name, '--help'] for name in COMMANDS),
        ['trian'],
        ['train', '--workdri=x'],
        ['train', '--workdir=/nonexistent/x'],
        ['train', '--workdir=/nonexistent/x', '--gin_file=runs/finetune'],
        ['train', '--workdir=/nonexistent/x', '--gin.NAME=3'],
    ]
    code = (
        f'import sys; from t5flan.__main__ import main; codes = [main(line) for line in {lines!r}];'
        f'print(codes, [m for m in {HEAVY!r} if m in sys.modules])'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f'{[2] + [0] * len(COMMANDS) + [2] * 5} []'


def test_help_answers_at_once():
    """Within half a second where Python itself starts in 20 ms; on a slower or busier machine in proportion."""
    start = fastest('-c', 'pass')
    for argv in (['--help'], ['train', '--help']):
        assert fastest('-m', 't5flan', *argv) < max(0.5, 20 * start)


# -- Mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'argv, expected',
    [
        (['trian'], 'there is no command trian: did you mean train? (see `t5flan --help`)'),
        (['--workdir=x'], 'there is no flag --workdir=x'),
        (
            ['train', '--workdri=x'],
            '`t5flan train` has no flag --workdri: did you mean --workdir? (see `t5flan train --help`)',
        ),
        (
            ['train', '--work=x'],
            '`t5flan train` has no flag --work',
        ),  # no abbreviations: they break when a flag is added
        (['train'], 'the following arguments are required: --workdir'),
        (['train', '--workdir'], 'argument --workdir: expected one argument'),
        (['train', '--workdir=x', 'y'], 'unrecognized arguments: y'),
        (['train', '--workdir=x', '--gin.STEPS'], '--gin.STEPS has no value: write --gin.STEPS=VALUE'),
        (['train', '--workdir=x', '--gin.STEPS', '--gin.B=1'], '--gin.STEPS has no value'),
        (['train', '--workdir=/nonexistent', '--gin_file=runs/pretrian'], 'did you mean runs/pretrain.gin?'),
        (['vocabulary', '--gin.STEPS=1'], '`t5flan vocabulary` takes no settings (--gin.STEPS=1)'),
        (['vocabulary', '--input=a', '--output=b.model', '--size=many'], "argument --size: invalid int value: 'many'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(said, argv, expected):
    code, out, err = said(*argv)
    assert code == 2 and out == '' and err.startswith('t5flan: ') and expected in err
    assert err.count('\n') == 1


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
def test_what_a_command_raises_is_one_line(said, monkeypatch, error, code, expected):
    def run(_):
        raise error

    monkeypatch.setitem(COMMANDS, 'fails', Command('fails', '', run, ()))
    assert said('fails') == (code, '', expected)


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    def run(_):
        raise KeyError('x')

    monkeypatch.setitem(COMMANDS, 'fails', Command('fails', '', run, ()))
    with pytest.raises(KeyError):
        main(['fails'])


def test_a_reader_that_has_seen_enough_is_no_error():
    done = subprocess.run(
        f'{sys.executable} -c "from t5flan.__main__ import COMMANDS, console; from t5flan.commands.arguments import Command;'
        "COMMANDS['x'] = Command('x', '', lambda _: [print('y' * 99) for _ in range(9999)], ());"
        "import sys; sys.argv = [0, 'x']; console()\" | head -1",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == 'y' * 99 + '\n' and done.stderr == ''


# -- Reading --------------------------------------------------------------------------------------------------------


def test_flags_with_and_without_an_equals_sign(monkeypatch):
    flags = (
        Flag('name', ''),
        Flag('--workdir', '', required=True),
        Flag('--count', '', type=int, default=3),
        Flag('--input', '', many=True),
        Flag('--fields', '', type=words, default=()),
        Flag('--all', '', type=bool),
    )
    monkeypatch.setitem(COMMANDS, 'try', Command('try', '', lambda _: None, flags, gin=True))
    _, a = parse_arguments(
        [
            'try',
            'practice',
            '--workdir',
            'a b',
            '--gin.STEPS',
            '3',
            '--gin_file',
            'x',
            '--gin.A/FileTask.name=b=c',
            '--gin_file=y',
            '--input=1',
            '--input',
            '2',
            '--fields=a, b',
            '--all',
        ],
        COMMANDS,
    )
    assert (a.name, a.workdir, a.count, a.gin_file, a.gin) == (
        'practice',
        'a b',
        3,
        ['x', 'y'],
        ['STEPS=3', 'A/FileTask.name=b=c'],
    )
    assert (a.input, a.fields, a.all) == (['1', '2'], ('a', 'b'), True)
    _, a = parse_arguments(['try', '--workdir=w', '--gin.RATE=-1'], COMMANDS)
    assert (a.name, a.input, a.fields, a.all, a.gin) == (None, None, (), False, ['RATE=-1'])


def test_surroundings_are_set_where_nobody_set_them(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
    monkeypatch.setenv('TF_CPP_MIN_LOG_LEVEL', '0')
    command_line.prepare_surroundings()
    assert os.environ['JAX_COMPILATION_CACHE_DIR'] == str(tmp_path / 't5flan' / 'jax')
    assert os.environ['TF_CPP_MIN_LOG_LEVEL'] == '0'


# -- From end to end ------------------------------------------------------------------------------------------------

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
    """Two steps on a file of one's own, by gin alone."""
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


def test_a_workdir_goes_on_with_its_own_settings(trained, said):
    assert steps(trained / 'first') == [1, 2]
    code, _, err = said('train', f'--workdir={trained}/first', '--gin.STEPS=3')
    assert code == 0 and 'resuming from step 2' in err and steps(trained / 'first') == [1, 2, 3]
    assert 'RunConfig.steps = %STEPS' in (trained / 'first' / 'config.gin').read_text()


def test_a_run_takes_model_and_vocabulary_from_where_it_starts(trained, said):
    code, _, err = said(
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


def test_a_folder_that_is_no_checkpoint(trained, said):
    code, _, err = said(
        'train',
        f'--workdir={trained}/third',
        '--gin_file=runs/finetune',
        '--gin.MIXTURE=practice_add',
        f'--gin.INITIALIZE_FROM={trained}/absent',
    )
    assert code == 1 and f'{trained}/absent is no checkpoint folder' in err and not (trained / 'third').exists()


def test_evaluate_infer_and_report_need_the_folder_alone(trained, said):
    first = trained / 'first'
    code, out, _ = said(
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
    code, out, _ = said('infer', f'--checkpoint={first}', '--prompt=2 and 1', '--max_new_tokens=2')
    assert code == 0 and out.endswith('\n')
    code, out, _ = said('report', str(first))
    assert code == 0 and '<html' in (first / 'report.html').read_text() and out.strip().endswith('report.html')


def test_evaluate_and_infer_refuse_what_is_no_checkpoint(trained, said):
    for argv in (['evaluate', '--tasks=practice'], ['infer', '--prompt=x']):
        code, out, err = said(*argv, f'--checkpoint={trained}/absent')
        assert (code, out) == (1, '') and f'{trained}/absent' in err and err.count('\n') == 1
    assert said('infer', f'--checkpoint={trained}/first')[0] == 2


def test_mixture_shows_and_lists(said, tmp_path):
    code, out, _ = said('mixture', 'practice_add', '--sample=5', '--examples=1', f'--json={tmp_path}/table.json')
    table = json.loads((tmp_path / 'table.json').read_text())
    assert code == 0 and 'practice_add' in out and table['tasks'][0]['task'] == 'practice_add'
    code, out, _ = said('mixture')
    assert code == 0 and '  practice\n' in out and '  c4_span_corruption\n' in out
    code, out, _ = said('mixture', 'ul2', '--sample=2', '--examples=1')
    assert code == 0 and 'stdlib_docs_ul2_x_64_50' in out
    code, _, err = said('mixture', 'practise_add')
    assert code in (1, 2) and 'practice_add' in err and err.count('\n') == 1


def test_vocabulary_trains(said, tmp_path, root):
    (tmp_path / 'text.txt').write_text((root / 't5flan' / 'quickstart.py').read_text())
    given = [
        'vocabulary',
        f'--input={tmp_path}/text.txt',
        f'--output={tmp_path}/v.model',
        '--extra_ids=10',
        '--mode_tokens=',
    ]
    code, out, _ = said(*given, '--size=600')
    assert code == 0 and (tmp_path / 'v.model').is_file() and (tmp_path / 'v.json').is_file()
    assert out == (
        f'{tmp_path}/v.model: 600 ids; set --gin.VOCABULARY={tmp_path}/v.model and '
        '--gin.ModelConfig.vocab_size=640 or more\n'
    )
    code, _, err = said(*given, '--size=9000')
    assert code == 1 and 'Set --size lower' in err and err.count('\n') == 1
