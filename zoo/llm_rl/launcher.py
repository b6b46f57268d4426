"""Starts a program in confinement: run as a script by ``sandbox.py``, which has the meaning of each measure.

Python's standard library alone, so that it starts fast and from any thread, which ``preexec_fn`` cannot.
"""

import ctypes
import json
import os
import resource
import signal
import struct
import sys
from contextlib import suppress
from typing import Any

_NEW_USER, _NEW_PID, _NEW_NET, _NEW_IPC = 0x10000000, 0x20000000, 0x40000000, 0x08000000
_DEATH_SIGNAL, _KEEP_CAPS, _NO_NEW_PRIVILEGES, _AMBIENT = 1, 8, 38, 47  # prctl
_CAPABILITIES_V3, _READ_ANY_FILE = 0x20080522, 2
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # the same on every architecture
_WRITE, _TRUNCATE = 1 << 1, 1 << 14
_CHANGES = _WRITE | sum(1 << bit for bit in range(4, 14)) | _TRUNCATE  # remove, make, link between folders, truncate


def become_nobody(libc: Any) -> None:
    """Root turns into a user of its own, that may still read where the interpreter is: root has no limits."""
    user = 0x70000000 + os.getpid()
    os.chown(".", user, user)
    for name in os.listdir("."):
        os.chown(name, user, user)
    libc.prctl(_KEEP_CAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    kept = 1 << _READ_ANY_FILE
    libc.capset(struct.pack("Ii", _CAPABILITIES_V3, 0), struct.pack("6I", kept, kept, kept, 0, 0, 0))
    libc.prctl(_AMBIENT, 2, _READ_ANY_FILE, 0, 0)


def set_limits(limits: dict[str, int]) -> None:
    for name, value in limits.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        with suppress(ValueError, OSError):  # macOS knows the names, and refuses some
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (value, value))


def restrict_writes(libc: Any) -> int:
    """Landlock: nothing outside the working directory can be changed, no TCP. Its version, 0 where there is none."""
    version: int = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        return 0
    changes = _CHANGES & ~((version < 2) << 13) & ~((version < 3) << 14)
    handled = [changes] + [0b11] * (version >= 4) + [0b11] * (version >= 6)  # files, TCP, signals and abstract sockets
    rules = libc.syscall(_LANDLOCK_CREATE, struct.pack(f"{len(handled)}Q", *handled), 8 * len(handled), 0)
    for path, allowed in ((".", changes), ("/dev/null", changes & (_WRITE | _TRUNCATE))):
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
        libc.syscall(_LANDLOCK_ADD, rules, 1, struct.pack("=Qi", allowed, parent), 0)
    return 0 if rules < 0 or libc.syscall(_LANDLOCK_RESTRICT, rules, 0) else version


def wait_as_first_process(libc: Any) -> None:
    """Goes on in the second process of a new process namespace; when that ends, all others in it do."""
    for is_first in (False, True):
        child = os.fork()
        if child:
            pid, status = os.wait()
            while pid != child:
                pid, status = os.wait()
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
        if not is_first:
            libc.prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)


def main(command: list[str], limits: dict[str, int], report: int) -> None:
    namespaces, landlock, is_root = False, 0, os.geteuid() == 0
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        namespaces = libc.unshare(_NEW_PID | _NEW_NET | _NEW_IPC | (0 if is_root else _NEW_USER)) == 0
        if is_root:
            with suppress(OSError):  # in containers that have no other users
                become_nobody(libc)
        libc.prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        if namespaces:
            wait_as_first_process(libc)
        libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        landlock = restrict_writes(libc)
    if not command:
        counted = os.geteuid() != 0
        result = {"network": namespaces, "files": landlock > 0, "processes": namespaces, "count": counted}
        print(json.dumps(result))
        return
    os.set_inheritable(report, False)
    for kind in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores, and programs would inherit that
        signal.signal(kind, signal.SIG_DFL)
    set_limits(limits)
    try:
        os.execve(command[0], command, dict(os.environ))
    except OSError as error:
        os.write(report, str(error).encode())
        os._exit(127)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
