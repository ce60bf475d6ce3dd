"""The TPU scripts, with a fake gcloud, kubectl and tar that record how they are called."""

import json
import os
import shlex
import subprocess
import sys
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
body = sys.stdin.read() if name == 'kubectl' and 'apply' in sys.argv else ''
with open(os.environ['CALLS'], 'a') as calls:
    calls.write(json.dumps([name, *sys.argv[1:], *([body] if body else [])]) + '\\n')
if 'describe' in sys.argv:
    states = os.environ['STATES'].split()
    count = sum('describe' in line for line in open(os.environ['CALLS']))
    print(states[min(count, len(states)) - 1])
if 'ssh' in sys.argv:
    sys.exit(int(os.environ['SSH_EXIT']))
"""
)


@pytest.fixture
def script(tmp_path):
    """Runs a script and returns (exit code, the tools' calls, stdout, stderr)."""
    for tool in ('gcloud', 'kubectl', 'tar'):
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
    assert ALL == ['create.sh', 'gke/launch.sh', 'gke/stop.sh', 'gke/watch.sh', 'launch.sh', 'stop.sh', 'watch.sh']


@pytest.mark.parametrize('name', [*ALL, 'settings.sh'])
def test_is_bash_and_executable(name):
    assert subprocess.run(['bash', '-n', str(SCRIPTS / name)]).returncode == 0
    assert name == 'settings.sh' or os.access(SCRIPTS / name, os.X_OK)


@pytest.mark.parametrize('name', ALL)
def test_help_is_the_header_and_wrong_flags_are_one_line(script, name):
    code, calls, out, _ = script(name, '--help')
    assert code == 0 and calls == [] and f'tpu_scripts/{name} --name=flan' in out and '--dry-run' in out
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


def test_launch_installs_everywhere_then_starts_everywhere(script):
    code, calls, _, _ = script('launch.sh', *SLICE, '--', 'train', '--workdir=gs://b/a b', "--gin.MIXTURE=it's")
    assert code == 0
    tar, copy, install, start = calls
    assert tar[0] == 'tar' and {'setup.py', 't5flan', 'gin', 'tasks'} <= set(tar)
    assert all((ROOT / name).exists() for name in tar[tar.index('-C') + 2 :])
    assert copy[:5] == ['gcloud', 'compute', 'tpus', 'tpu-vm', 'scp'] and copy[-1] == '--worker=all'
    for call in (install, start):
        assert call[4:7] == ['ssh', 'flan', '--zone=us-z1'] and '--worker=all' in call
    command = start[-1].removeprefix('--command=')
    line = next(line for line in command.splitlines() if line.startswith('nohup'))
    assert shlex.split(line)[1:6] == [
        '.venv/bin/t5flan',
        'train',
        '--workdir=gs://b/a b',
        "--gin.MIXTURE=it's",
        '--gin.RunConfig.multi_host=True',
    ]
    for call in (install, start):
        text = call[-1].removeprefix('--command=')
        assert subprocess.run(['bash', '-n'], input=text, text=True).returncode == 0
    assert script('launch.sh', *SLICE)[0] == 2


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


def test_gke_launch_applies_a_job(script):
    yaml = pytest.importorskip('yaml')
    code, calls, _, _ = script(
        'gke/launch.sh', *JOB, '--', 'train', '--workdir=gs://b/w', '--gin.MIXTURE=a "b" \\ c & d'
    )
    assert code == 0 and calls[0][:4] == ['kubectl', 'apply', '-f', '-']
    service, job = yaml.safe_load_all(calls[0][4])
    assert service['spec']['clusterIP'] == 'None' and service['metadata']['name'] == job['metadata']['name'] == 'flan'
    spec, pod = job['spec'], job['spec']['template']['spec']
    assert spec['completions'] == spec['parallelism'] == 4 and pod['subdomain'] == 'flan'
    assert pod['nodeSelector']['cloud.google.com/gke-tpu-topology'] == '4x4'
    container = pod['containers'][0]
    assert container['command'] == [
        't5flan',
        'train',
        '--workdir=gs://b/w',
        '--gin.MIXTURE=a "b" \\ c & d',
        '--gin.RunConfig.multi_host=True',
    ]
    assert container['resources']['limits'] == {'google.com/tpu': 4}
    code, calls, out, _ = script('gke/launch.sh', *JOB, '--dry-run', '--', 'train')
    assert (code, calls) == (0, []) and '{{' not in out and len(list(yaml.safe_load_all(out))) == 2
    assert script('gke/launch.sh', *JOB, '--name=Flan', '--', 'train')[0] == 2
    assert script('gke/launch.sh', *JOB)[0] == 2


def test_gke_watch_and_stop(script):
    code, calls, _, _ = script('gke/watch.sh', '--name=flan')
    assert code == 0 and [call[1] for call in calls] == ['wait', 'logs'] and 'job-name=flan' in calls[0][3]
    code, calls, _, _ = script('gke/stop.sh', '--name=flan')
    assert code == 0 and calls == [['kubectl', 'delete', 'job,service', 'flan', '--cascade=foreground']]


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
    code, calls, printed, _ = script(name, *SLICE, '--dry-run', *extra)
    assert (code, calls) == (0, [])
    (tmp_path / 'printed.sh').write_text(printed)  # a shell runs the printed commands as they are
    _, calls, _, _ = script(tmp_path / 'printed.sh')
    assert calls == expected
