"""Runs programs that nobody has read, such as those a language model wrote."""

import json
import math
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

_LAUNCHER = Path(__file__).with_name("launcher.py")
_POLL_S = 0.05


class Outcome(NamedTuple):
    """What became of a program.

    ``code`` is its exit status, 128 + n where signal n ended it, None where it was stopped: it took too long
    (``timed_out``) or wrote too much. Of ``stdout`` and ``stderr`` there is at most the sandbox's ``output_kb``.
    """

    code: int | None
    stdout: str
    stderr: str
    timed_out: bool = False


class Sandbox:
    """A fresh temporary folder, a process group and limits of its own for each program.

    Everywhere: the working directory is the folder, which is removed afterwards; the environment is what is given and
    nothing else; open files, CPU seconds, memory, the size of each file and, except for root, the number of processes
    are limited, no core is written; output beyond the limit stops the program; in the end the whole group is killed.

    On Linux, besides, where the system lets it (``isolation`` says what it does):
    - namespaces: there is no network, not even the machine's own loopback, and other processes can be neither seen nor
      killed. All that the program started ends with it, even what left the group. Where they are refused, as by most
      container runtimes, UDP goes through, processes that left the group survive, and the number of processes is
      counted over all of the user's, so that a program may fail to start any.
    - Landlock (Linux 5.13): nothing outside the folder can be changed; without it, whatever the user may write to.
      From Linux 6.7 on it stops TCP too.
    - Root turns into an unnamed user that owns the folder alone, so that its processes can be counted.

    On macOS only what holds everywhere does. Nowhere is it hidden what files the user, or root, may read: keep
    secrets off such a machine. How many files a program writes is not limited either.

    Args:
        memory_mb: address space of each process.
        file_mb: size of each file.
        processes: and threads, at a time, the program itself included.
        output_kb: of each, standard output and error.
    """

    def __init__(self, memory_mb: int = 1024, file_mb: int = 16, processes: int = 32, output_kb: int = 64) -> None:
        limits = {"memory_mb": memory_mb, "file_mb": file_mb, "processes": processes, "output_kb": output_kb}
        for name, value in limits.items():
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        self.memory_mb, self.file_mb, self.processes, self.output_kb = memory_mb, file_mb, processes, output_kb

    def run(
        self,
        command: Sequence[str],
        files: Mapping[str, str],
        stdin: str = "",
        timeout_s: float = 2.0,
        environment: Mapping[str, str] | None = None,
    ) -> Outcome:
        """Runs ``command``, a path and its arguments, in a folder with ``files``.

        Raises:
            OSError: if the command cannot be started.
        """
        limits = {
            "RLIMIT_CPU": math.ceil(timeout_s) + 1,
            "RLIMIT_AS": self.memory_mb << 20,
            "RLIMIT_FSIZE": self.file_mb << 20,
            "RLIMIT_NPROC": self.processes + 2,  # the launcher keeps two
            "RLIMIT_NOFILE": 256,
            "RLIMIT_CORE": 0,
        }
        folder = Path(tempfile.mkdtemp(prefix="sandbox-"))
        try:
            for name, text in files.items():
                (folder / name).write_bytes(text.encode("utf-8", "replace"))
            return self._run({"command": list(command), "limits": limits}, folder, stdin, timeout_s, environment or {})
        finally:
            subprocess.run(["rm", "-rf", "--", folder], check=False)  # of any depth, unlike shutil

    def _run(
        self, task: Mapping[str, object], folder: Path, stdin: str, timeout_s: float, environment: Mapping[str, str]
    ) -> Outcome:
        deadline = time.monotonic() + timeout_s
        read, write = os.pipe()
        with open(read, "rb") as report, tempfile.TemporaryFile() as given:
            try:
                given.write(stdin.encode("utf-8", "replace"))
                given.seek(0)
                process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(_LAUNCHER), json.dumps({**task, "report": write})],
                    cwd=folder,
                    env=dict(environment),
                    stdin=given,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                    pass_fds=(write,),
                )
            finally:
                os.close(write)
            with process:
                try:
                    stdout, stderr, in_time = self._read(process, deadline)
                finally:
                    _kill(process)
                    process.wait()
            if in_time is not None and (error := report.read()):
                raise OSError(f"{task['command']} does not start: {error.decode()}")
        code = process.returncode
        return Outcome((code if code >= 0 else 128 - code) if in_time else None, stdout, stderr, in_time is False)

    def _read(self, process: subprocess.Popen[bytes], deadline: float) -> tuple[str, str, bool | None]:
        """Output and error, and whether it ended before the deadline; None for too much output."""
        assert process.stdout is not None
        assert process.stderr is not None
        kept = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
        in_time: bool | None = True
        with selectors.DefaultSelector() as ready:
            for pipe in kept:
                ready.register(pipe, selectors.EVENT_READ)
            while in_time and ready.get_map():
                if process.poll() is not None:
                    _kill(process)  # what it left behind may hold the pipes open
                elif time.monotonic() > deadline:
                    in_time = False
                for event, _ in ready.select(_POLL_S):
                    piece = os.read(event.fd, 1 << 16)
                    kept[event.fd] += piece
                    if not piece:
                        ready.unregister(event.fd)
                    elif len(kept[event.fd]) > self.output_kb << 10:
                        in_time = None
        if in_time:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                in_time = False
        first, second = (bytes(text[: self.output_kb << 10]).decode("utf-8", "replace") for text in kept.values())
        return first, second, in_time


@cache
def isolation() -> dict[str, bool]:
    """What this system lets a sandbox do, found by trying.

    ``network``: there is none. ``files``: none can be changed but the program's own. ``processes``: none can be seen
    or killed, or be left behind. ``count``: their number is limited.
    """
    return json.loads(Sandbox().run([], {}, timeout_s=60).stdout)  # type: ignore[no-any-return]


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):  # macOS: not permitted, where all of the group have ended
        os.killpg(process.pid, signal.SIGKILL)
