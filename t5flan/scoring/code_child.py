"""The process that runs one program of a model: `python -I code_child.py`, started by code_execution.py.

Reads {"program", "token", limits} as JSON from stdin, gives up what a program must not use, runs it, and writes the
token to file descriptor `result` only if it ran to its end. Uses the standard library only.

What keeps a program in: limits on CPU time, memory, open files, processes and written bytes (setrlimit); a network
namespace of its own, if the system allows it (unshare); a filter of system calls (seccomp) that refuses sockets, new
processes, programs and signals; Landlock, which refuses to write, create or remove files; and, where the system has
none of these, Python's own functions replaced.
"""

import contextlib
import ctypes
import json
import os
import platform
import resource
import struct
import sys
import types
from typing import Any, NoReturn

_NEW_USER, _NEW_NET = 0x10000000, 0x40000000
_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2
_CLONE_THREAD = 0x00010000
_EPERM, _ENOSYS = 1, 38
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_SYSTEMS = {
    # AUDIT_ARCH, clone, clone3, then: socket, socketpair, connect, bind, sendto, sendmsg, on x86 fork and vfork,
    # execve, execveat, kill, tkill, tgkill, pidfd_send_signal, ptrace, process_vm_writev, io_uring_setup,
    # mount, setns, bpf
    'x86_64': (
        0xC000003E, 56, 435,
        (41, 53, 42, 49, 44, 46, 57, 58, 59, 322, 62, 200, 234, 424, 101, 311, 425, 165, 308, 321),
    ),
    'aarch64': (
        0xC00000B7, 220, 435,
        (198, 199, 203, 200, 206, 211, 221, 281, 129, 130, 131, 424, 117, 271, 425, 40, 268, 280),
    ),
}  # fmt: skip
_LANDLOCK_WRITES = sum(1 << bit for bit in (1, *range(4, 13)))
"""Write files, remove and make files and folders (ABI 1 of Landlock)."""
_BLOCKED = {
    'os': (
        'fork forkpty system popen kill killpg remove unlink rmdir removedirs rename renames replace truncate mkdir '
        'makedirs symlink link mknod mkfifo chmod chown posix_spawn posix_spawnp execv execve execvp execvpe setuid'
    ),
    'shutil': 'rmtree move copy copyfile copytree chown',
    'subprocess': 'Popen run call check_call check_output',
    'socket': 'socket create_connection create_server socketpair',
}


def main() -> None:
    """Runs the program of stdin; exits with 0 whatever happens, and reports success by the token."""
    given = json.loads(sys.stdin.read())
    program, token, result = given['program'], given['token'], given['result']
    compiled = compile(program, 'program.py', 'exec')
    _limit(given['seconds'], given['memory'])
    _isolate_network()
    _block_functions()
    _refuse_writes()
    if not _filter_system_calls():
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))  # threads count too, so only without the filter
    module = types.ModuleType('program')  # not '__main__': what a program does when it is started is no part of a test
    sys.modules['program'] = module  # dataclasses look for it
    exec(compiled, module.__dict__)
    os.write(result, token.encode())


def _limit(seconds: int, memory: int) -> None:
    """Limits of this process and of all it starts.

    Args:
        seconds: CPU time.
        memory: bytes of address space.
    """
    limits = {
        resource.RLIMIT_CPU: (seconds, seconds + 1),
        resource.RLIMIT_AS: (memory, memory),
        resource.RLIMIT_FSIZE: (0, 0),  # bytes of a file it writes
        resource.RLIMIT_NOFILE: (32, 32),
        resource.RLIMIT_CORE: (0, 0),
    }
    for kind, limit in limits.items():
        with contextlib.suppress(ValueError, OSError):  # macOS knows only some
            resource.setrlimit(kind, limit)


def _isolate_network() -> None:
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_NEW_NET) != 0:
            libc.unshare(_NEW_USER | _NEW_NET)


def _block_functions() -> None:
    """Replaces functions of the standard library that a program must not use."""
    import importlib

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise PermissionError('not allowed here')

    for module, names in _BLOCKED.items():
        with contextlib.suppress(ImportError):
            found = importlib.import_module(module)
            for name in names.split():
                if hasattr(found, name):
                    setattr(found, name, refuse)


def _refuse_writes() -> None:
    """Landlock: no file can be written, made or removed from here on."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        handled = ctypes.c_uint64(_LANDLOCK_WRITES)
        rules = libc.syscall(444, ctypes.byref(handled), ctypes.c_size_t(8), 0)
        if rules >= 0:
            libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
            libc.syscall(446, rules, 0)
            os.close(rules)


def _filter_system_calls() -> bool:
    """Seccomp: system calls that reach other processes or the network fail. Returns whether the system has it."""
    system = _SYSTEMS.get(platform.machine())
    if sys.platform != 'linux' or system is None:
        return False
    code = _filter_code(*system)
    buffer = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = [('length', ctypes.c_ushort), ('code', ctypes.c_void_p)]

    program = Program(len(code) // 8, ctypes.addressof(buffer))
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
        return bool(libc.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0) == 0)
    return False


def _filter_code(arch: int, clone: int, clone3: int, refused: tuple[int, ...]) -> bytes:
    """The filter in classic BPF. It reads struct seccomp_data: number at 0, architecture at 4, arguments from 16."""
    step = lambda code, k, yes=0, no=0: struct.pack('=HBBI', code, yes, no, k)
    refuse = step(_RETURN, _ERRNO | _EPERM)
    lines = [step(_LOAD, 4), step(_JUMP_EQUAL, arch, 1, 0), refuse, step(_LOAD, 0)]
    lines += [step(_JUMP_AT_LEAST, 0x40000000, 0, 1), refuse]  # x32's numbers for the same calls
    for number in refused:
        lines += [step(_JUMP_EQUAL, number, 0, 1), refuse]
    lines += [step(_JUMP_EQUAL, clone3, 0, 1), step(_RETURN, _ERRNO | _ENOSYS)]  # then libc falls back to clone
    lines += [step(_JUMP_EQUAL, clone, 0, 3), step(_LOAD, 16), step(_JUMP_SET, _CLONE_THREAD, 1, 0), refuse]
    return b''.join([*lines, step(_RETURN, _ALLOW)])


if __name__ == '__main__':
    main()
