"""t5flan/processes/: where the processes of a job are read from, and one line when something is missing."""

import json
import os
import socket
import subprocess
import sys

import jax
import pytest
from jax._src.clusters import cloud_tpu_cluster

from t5flan import processes
from t5flan.__main__ import main
from t5flan.errors import UserError
from t5flan.processes import Processes
from tests.attacks.tiny_run import ENVIRONMENT, losses, train_arguments, write_rows

SLURM = {
    'SLURM_JOB_ID': '77',
    'SLURM_STEP_NODELIST': 'node[01-04]',
    'SLURM_NTASKS': '4',
    'SLURM_PROCID': '2',
    'SLURM_LOCALID': '0',
}
OPEN_MPI = {
    'OMPI_MCA_orte_hnp_uri': '1531576320.0;tcp://10.96.0.1,10.148.0.1:34911',
    'OMPI_COMM_WORLD_SIZE': '4',
    'OMPI_COMM_WORLD_RANK': '2',
    'OMPI_COMM_WORLD_LOCAL_RANK': '0',
}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    """The tests may themselves run under a scheduler."""
    for name in os.environ:
        if name.startswith(
            ('SLURM_', 'OMPI_', 'T5FLAN_COORD', 'T5FLAN_PROCESS', 'KUBERNETES_', 'JAX_COORDINATOR', 'MEGASCALE_')
        ):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(('environment', 'host'), [(SLURM, 'node01'), (OPEN_MPI, '10.96.0.1')])
def test_a_cluster_says_all(monkeypatch, environment, host):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    where, count, index, _ = processes._detected(Processes())
    assert (where.rpartition(':')[0], count, index) == (host, 4, 2)
    assert processes._detected(Processes('other:1234', process_id=3))[:3] == ('other:1234', 4, 3)


@pytest.fixture
def tpu_host(monkeypatch):
    """A host of a TPU slice, without its metadata server; returns what the server says."""
    said = {}
    monkeypatch.setattr(cloud_tpu_cluster, 'running_in_cloud_tpu_vm', True)
    monkeypatch.setattr(cloud_tpu_cluster, 'get_metadata', lambda key: (said.get(key, ''), 200 if key in said else 404))
    for name in ('TPU_SKIP_MDS_QUERY', 'TPU_WORKER_HOSTNAMES', 'TPU_PROCESS_ADDRESSES'):
        monkeypatch.delenv(name, raising=False)
    return said


def test_a_tpu_vm_says_all(tpu_host):
    tpu_host |= {'agent-worker-number': '3', 'worker-network-endpoints': 'localhost,host1,host2,host3', 'tpu-env': ''}
    where, count, index, devices = processes._detected(Processes())
    assert (where, count, index, devices) == ('localhost:8482', 4, 3, None)


def test_a_pod_of_a_jobset_says_all(tpu_host, monkeypatch):
    monkeypatch.setenv('TPU_WORKER_HOSTNAMES', 'localhost,flan-0-1.flan')
    monkeypatch.setenv('TPU_WORKER_ID', '1')
    assert processes._detected(Processes())[:3] == ('localhost:8482', 2, 1)
    slices = {'MEGASCALE_COORDINATOR_ADDRESS': 'localhost', 'MEGASCALE_NUM_SLICES': '2', 'MEGASCALE_SLICE_ID': '1'}
    for name, value in slices.items():
        monkeypatch.setenv(name, value)
    assert processes._detected(Processes())[:3] == ('localhost:8482', 4, 3)


@pytest.mark.parametrize('environment', [{'SLURM_PROCID': 'x'}, {'SLURM_NTASKS': ''}])
def test_a_cluster_that_says_nonsense_is_one_line(monkeypatch, environment):
    for name, value in {**SLURM, **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match='the cluster does not say which processes the job has') as raised:
        processes._detected(Processes())
    assert '\n' not in str(raised.value)


def test_a_process_without_a_device_is_one_line(monkeypatch):
    processes._require_devices(0, 2)

    def none():
        raise RuntimeError("Unable to initialize backend 'cuda':\nno device 3")

    monkeypatch.setattr(jax, 'local_devices', none)
    words = 'process 3 of 4 has no device of its own .*no device 3.* at most one for each'
    with pytest.raises(UserError, match=words) as one:
        processes._require_devices(3, 4)
    assert '\n' not in str(one.value)
    monkeypatch.setattr(jax, 'local_devices', list)
    with pytest.raises(UserError, match='JAX shows none'):
        processes._require_devices(3, 4)


def test_flags_come_before_the_environment(monkeypatch):
    monkeypatch.setenv('T5FLAN_COORDINATOR', 'node1:1234')
    monkeypatch.setenv('T5FLAN_PROCESS_COUNT', '4')
    monkeypatch.setenv('T5FLAN_PROCESS_ID', '1')
    assert processes.from_environment() == Processes('node1:1234', 4, 1)
    assert processes.from_environment(process_id=0, coordinator=None) == Processes('node1:1234', 4, 0)
    assert not Processes().is_given
    monkeypatch.setenv('T5FLAN_PROCESS_ID', 'one')
    with pytest.raises(UserError, match='T5FLAN_PROCESS_ID=one, expected a number'):
        processes.from_environment()


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ({'coordinator': 'node1'}, 'expected HOST:PORT'),
        ({'coordinator': 'http://node1:1'}, 'expected HOST:PORT'),
        ({'process_count': 0}, '--process_count=0, expected 1 or more'),
        ({'process_count': 2, 'process_id': 2}, '--process_id=2, expected 0 to 1'),
        ({'process_id': -1}, '--process_id=-1, expected a number from 0'),
        ({'timeout': 0}, '--connect_timeout=0'),
    ],
)
def test_values_out_of_range(given, message):
    with pytest.raises(UserError, match=message):
        Processes(**given)


def test_an_ipv6_coordinator_is_taken():
    assert Processes('[fe80::1]:1234').coordinator == '[fe80::1]:1234'


@pytest.mark.parametrize(
    ('given', 'missing'),
    [
        ({}, '--coordinator --process_count --process_id'),
        ({'coordinator': 'a:1'}, '--process_count --process_id'),
        ({'coordinator': 'a:1', 'process_id': 0}, '--process_count'),
    ],
)
def test_what_is_missing_is_named(given, missing):
    with pytest.raises(UserError) as raised:
        processes.connect(Processes(**given))
    line = str(raised.value)
    assert f'set {missing} (or T5FLAN_' in line and 'SLURM (srun)' in line and '\n' not in line


def test_one_process_does_not_connect():
    processes.connect(Processes('nowhere:1', 1, 0))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(('localhost', 0))
        return one.getsockname()[1]


def test_an_unreachable_coordinator_is_named(capsys, tmp_path):
    where = f'localhost:{free_port()}'
    rows = write_rows(tmp_path)
    flags = [f'--coordinator={where}', '--process_count=2', '--process_id=1', '--connect_timeout=1']
    assert main([*train_arguments(tmp_path / 'run', rows, 1, 1), *flags]) == 1
    error = capsys.readouterr().err
    assert f'the coordinator {where} cannot be reached within 1 s' in error and error.count('\n') == 1
    assert not (tmp_path / 'run').exists()


# -- Real processes ---------------------------------------------------------------------------------------------------


def run_both(argv: list[str], tmp_path, by_flags: bool) -> list[str]:
    """Runs a command in two processes; returns what they printed."""
    where = f'localhost:{free_port()}'
    started = []
    for index in range(2):
        flags = [f'--coordinator={where}', '--process_count=2', f'--process_id={index}'] if by_flags else []
        variables = {'T5FLAN_COORDINATOR': where, 'T5FLAN_PROCESS_COUNT': '2', 'T5FLAN_PROCESS_ID': str(index)}
        log = tmp_path / f'process{index}.log'
        with log.open('w') as output:
            started.append(
                subprocess.Popen(
                    [sys.executable, '-m', 't5flan', *argv, *flags],
                    env=os.environ | ENVIRONMENT | ({} if by_flags else variables),
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
    codes = [one.wait(timeout=300) for one in started]
    printed = [(tmp_path / f'process{index}.log').read_text() for index in range(2)]
    assert codes == [0, 0], printed
    return printed


@pytest.mark.slow
def test_two_processes_train_and_answer_as_one(tmp_path):
    rows = write_rows(tmp_path, 12)
    environment = os.environ | ENVIRONMENT
    alone = [sys.executable, '-m', 't5flan', *train_arguments(tmp_path / 'one', rows, 3, 3)]
    streams = '--gin.DataConfig.streams=2'
    subprocess.run([*alone, streams], env=environment, check=True, timeout=300)
    printed = run_both([*train_arguments(tmp_path / 'two', rows, 3, 3), streams], tmp_path, by_flags=True)
    assert 'on 2 x cpu' in printed[0]
    one, two = losses(tmp_path / 'one'), losses(tmp_path / 'two')
    assert one.keys() == two.keys() == {1, 2, 3}
    assert [loss for loss, _ in two.values()] == pytest.approx([loss for loss, _ in one.values()], rel=1e-4)

    output = tmp_path / 'answers.jsonl'
    infer = ['infer', f'--checkpoint={tmp_path}/two', f'--input={rows}', '--max_new_tokens=4', '--batch_size=4']
    run_both([*infer, f'--output={output}'], tmp_path, by_flags=False)
    answered = [json.loads(line) for line in output.read_text().splitlines()]
    asked = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row['inputs'] for row in answered] == [row['inputs'] for row in asked]
    assert all('prediction' in row for row in answered)


@pytest.mark.slow
def test_a_process_that_never_starts_is_one_line(tmp_path):
    rows = write_rows(tmp_path)
    flags = [f'--coordinator=localhost:{free_port()}', '--process_count=2', '--process_id=0', '--connect_timeout=5']
    argv = [sys.executable, '-m', 't5flan', *train_arguments(tmp_path / 'run', rows, 1, 1), *flags]
    done = subprocess.run(argv, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count('\n') == 1 and 'process 1 of 2 did not connect to localhost' in done.stderr
