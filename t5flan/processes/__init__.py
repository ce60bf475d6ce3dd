"""Connects the processes of a job: by flags, by environment variables, or as the cluster says.

    t5flan train ... --coordinator=node1:1234 --process_count=2 --process_id=0     # and --process_id=1 elsewhere

What is not given is detected by JAX (`jax.distributed`) on Cloud TPU VMs, GKE (JobSet), SLURM and Open MPI.

A command in several processes calls `finish` at its end, `fail` before it prints an error, and `leave` after that; see
watch.py.
"""

import contextlib
import dataclasses
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

from t5flan import signals
from t5flan.errors import UserError
from t5flan.processes.meeting import Peer, meet
from t5flan.processes.relay import Relay
from t5flan.processes.watch import Watch

_CLUSTERS = 'SLURM (srun), Open MPI (mpirun), a Cloud TPU slice or a GKE JobSet'
_VARIABLES = {'coordinator': 'COORDINATOR', 'process_count': 'PROCESS_COUNT', 'process_id': 'PROCESS_ID'}
_NO_PROXY = 'no_grpc_proxy'  # gRPC reads it in lower case
_watch: Watch | None = None


@dataclasses.dataclass(frozen=True)
class Processes:
    """Which processes a job has, and which one this is; None is left to the cluster.

    Attributes:
        coordinator: HOST:PORT of the first process, the same for all.
        process_count: how many processes there are.
        process_id: which one this is, from 0.
        timeout: seconds to wait for the others.
    """

    coordinator: str | None = None
    process_count: int | None = None
    process_id: int | None = None
    timeout: int = 300

    def __post_init__(self) -> None:
        where, count, index = self.coordinator, self.process_count, self.process_id
        if where is not None and not re.fullmatch(r'(\[[0-9a-fA-F:.%]+\]|[^\s:/]+):\d{1,5}', where):
            raise UserError(f'--coordinator={where}, expected HOST:PORT of the first process, such as node1:1234')
        if count is not None and count < 1:
            raise UserError(f'--process_count={count}, expected 1 or more')
        if index is not None and (index < 0 or (count is not None and index >= count)):
            below = 'a number from 0' if count is None else f'0 to {count - 1}, as --process_count={count}'
            raise UserError(f'--process_id={index}, expected {below}')
        if self.timeout < 1:
            raise UserError(f'--connect_timeout={self.timeout}, expected 1 second or more')

    @property
    def is_given(self) -> bool:
        """Whether anything says that there are several processes."""
        return any(getattr(self, name) is not None for name in _VARIABLES)


def from_environment(**given: Any) -> Processes:
    """The settings that are not None, else those of T5FLAN_COORDINATOR, T5FLAN_PROCESS_COUNT and T5FLAN_PROCESS_ID.

    Raises:
        UserError: a value is out of range or not a number.
    """
    values = {name: value for name, value in given.items() if value is not None}
    for name, variable in _VARIABLES.items():
        text = os.environ.get(f'T5FLAN_{variable}', '').strip()
        if name in values or not text:
            continue
        if name != 'coordinator' and not text.isdecimal():
            raise UserError(f'T5FLAN_{variable}={text}, expected a number. Set it, or --{name}')
        values[name] = text if name == 'coordinator' else int(text)
    return Processes(**values)


def connect(processes: Processes | None = None) -> None:
    """Connects this process to the others of the job; does nothing if it is connected or the only one.

    On the command line, the processes then watch each other. Their signals are handled in preemption.py, not by JAX,
    which catches only SIGTERM.

    Raises:
        UserError: something is missing and no cluster says it, or the others cannot be reached.
    """
    import jax
    from jax._src import distributed

    if distributed.global_state.client is not None:
        return
    processes = processes or from_environment()
    if processes.process_count == 1:
        return
    coordinator, count, index, devices = _detected(processes)
    if count == 1:
        return
    processes = dataclasses.replace(processes, coordinator=coordinator, process_count=count, process_id=index)
    peers = meet(str(coordinator), int(count or 0), int(index or 0), processes.timeout)
    _watch_others(peers, int(index or 0), int(count or 0))
    address = coordinator if _watch is None or not index else _relayed(str(coordinator))
    jax.config.update('jax_enable_preemption_service', False)
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            devices,
            cluster_detection_method='deactivate',
            initialization_timeout=processes.timeout,
        )
    except (RuntimeError, OSError) as error:
        why = ' '.join(str(error).split())[:200].rstrip('.')
        waited = f'within {processes.timeout} s at {coordinator} (process {index} of {count})'
        raise UserError(f'the processes of the job did not connect {waited}: {why}. Start all of them') from None
    _require_devices(int(index or 0), int(count or 0))


def _watch_others(peers: Mapping[int, Peer], index: int, count: int) -> None:
    """Starts to watch, if this is a command; a program of its own ends as it likes."""
    global _watch
    if signals.is_watching():
        _watch = Watch(peers, index, count)
        return
    for peer in peers.values():
        peer.connection.close()


def _relayed(coordinator: str) -> str:
    """The address of a relay to the coordinator, which no proxy of the environment is asked for."""
    known = os.environ.get(_NO_PROXY) or os.environ.get('no_proxy')
    os.environ[_NO_PROXY] = ','.join(filter(None, [known, '127.0.0.1']))
    return Relay(coordinator).address


def _require_devices(index: int, count: int) -> None:
    """Requires this process to have devices of its own.

    Raises:
        UserError: it has none: there are more processes than devices, or another process uses them.
    """
    import jax

    try:
        found, why = jax.local_devices(), 'JAX shows none'
    except RuntimeError as error:
        found, why = [], ' '.join(str(error).split())[:200].rstrip('.')
    if not found:
        fix = 'Start one process for each host of a TPU slice, or at most one for each GPU'
        raise UserError(f'process {index} of {count} has no device of its own ({why}). {fix}')


def are_several() -> bool:
    """Whether this process watches others of its job."""
    return _watch is not None


def finish() -> None:
    """Returns when all processes of the job have come here; one that ends before ends this one too."""
    if _watch is not None:
        import jax

        _watch.finish()
        jax.distributed.shutdown()  # while all are there and the relay runs


def fail(why: str) -> None:
    """Tells the other processes of the job that this one fails, before it says so itself."""
    if _watch is not None and signals.received() is None:  # a signal stops them without an error
        _watch.fail(why)


def leave(code: int) -> None:
    """Ends this process if it has failed and is one of several: JAX would wait for the others."""
    if _watch is not None and code:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        _watch.leave(code)


def _detected(processes: Processes) -> tuple[str | None, int | None, int | None, Any]:
    """Coordinator, count, index and local devices, completed by the cluster.

    Raises:
        UserError: something is missing, and no cluster says it.
    """
    from jax._src.clusters import ClusterEnv

    coordinator = processes.coordinator or os.environ.get('JAX_COORDINATOR_ADDRESS')
    given = coordinator, processes.process_count, processes.process_id
    if None not in given:
        return *given, None
    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(*given, None, None, processes.timeout)
    except Exception as error:  # what a cluster cannot tell, it reports in many ways
        why = ' '.join(str(error).split())[:200].rstrip('.')
        raise UserError(f'the cluster does not say which processes the job has ({why}). {_set(given)}') from None
    if None in found[:3]:
        raise UserError(f'the processes of the job cannot be found: {_set(found[:3])}, or start them with {_CLUSTERS}')
    return found


def _set(values: tuple[Any, ...]) -> str:
    """How to set what is missing."""
    missing = [name for name, value in zip(_VARIABLES, values, strict=True) if value is None]
    flags, variables = (
        ' '.join(one) for one in ((f'--{x}' for x in missing), (f'T5FLAN_{_VARIABLES[x]}' for x in missing))
    )
    return f'set {flags} (or {variables})'
