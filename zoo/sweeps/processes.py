"""The processes of trials: started, stopped softly or at once, found again after the sweeper was killed."""

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import psutil

GRACE = 60.0
"""Seconds that a trial has to save and end after it was asked to."""
KEEPER = ["/bin/sh", "-c", '"$@"; code=$?; echo $code > "$0"; exit $code']
"""Runs a command and leaves its exit status in a file, for a sweeper that was not there when it ended."""


@dataclass
class Child:
    """The keeper of one trial's command, leader of its group; ``popen`` is None where an earlier sweeper started it."""

    process: psutil.Process
    popen: "subprocess.Popen[bytes] | None" = None
    deadline: float | None = None

    @classmethod
    def start(cls, words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> "Child":
        """Start ``words``; stdout.txt, stderr.txt, process.json and at the end exit.txt are in ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "exit.txt").unlink(missing_ok=True)
        with (folder / "stdout.txt").open("ab") as out, (folder / "stderr.txt").open("ab") as err:
            popen = subprocess.Popen(
                [*KEEPER, str(folder / "exit.txt"), *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=dict(environment),
                start_new_session=True,
            )
        process = psutil.Process(popen.pid)
        with suppress(psutil.NoSuchProcess):
            record = {"pid": process.pid, "started": process.create_time(), "words": list(words)}
            (folder / "process.json").write_text(json.dumps(record), encoding="utf-8")
        return cls(process, popen)

    @classmethod
    def find(cls, folder: Path) -> "Child | None":
        """The process that an earlier sweeper started for this folder, if it is still there."""
        try:
            record = json.loads((folder / "process.json").read_text(encoding="utf-8"))
            process = psutil.Process(record["pid"])
            same = abs(process.create_time() - record["started"]) < 2  # else the number belongs to another by now
        except (OSError, ValueError, psutil.NoSuchProcess):
            return None
        return cls(process) if same else None

    def ended(self) -> bool:
        if self.popen is not None:
            return self.popen.poll() is not None
        return not self.process.is_running() or self.process.status() == psutil.STATUS_ZOMBIE

    @property
    def code(self) -> int | None:
        """The exit status of a process that this sweeper has started and that has ended."""
        return None if self.popen is None else self.popen.returncode

    def stop(self) -> None:
        """Ask once, as Ctrl-C does; whoever has not ended after ``GRACE`` seconds is killed by ``check``."""
        if self.deadline is None:
            self.deadline = monotonic() + GRACE
            with suppress(psutil.NoSuchProcess):
                for command in self.process.children(recursive=True):  # the keeper itself goes on
                    with suppress(psutil.NoSuchProcess):
                        command.send_signal(signal.SIGINT)

    def check(self) -> None:
        if self.deadline is not None and monotonic() > self.deadline:
            self.kill()

    def kill(self) -> None:
        """End it and all that it has started, at once; also what it has left behind when it was killed itself."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def has_ended_well(folder: Path) -> bool:
    """Whether the command that was last started in this folder has ended with status 0."""
    file = folder / "exit.txt"
    return file.is_file() and file.read_text(encoding="utf-8").strip() == "0"


def last_lines(folder: Path, count: int = 5) -> str:
    """The last lines of a trial's stderr that are not empty."""
    file = folder / "stderr.txt"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    return "\n".join([line.rstrip() for line in lines if line.strip()][-count:])


def worker_env(worker: int, workers: int, devices: Sequence[str], cores: int) -> dict[str, str]:
    """The environment variables with which worker ``worker`` of ``workers`` keeps to its part of the machine.

    Args:
        devices: what ``CUDA_VISIBLE_DEVICES`` may name. More workers than devices share them in turn.
        cores: of the processor; they are shared where there are no devices.
    """
    if devices:
        mine = devices[worker::workers] if workers <= len(devices) else [devices[worker % len(devices)]]
        return {"CUDA_VISIBLE_DEVICES": ",".join(mine)}
    return {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, cores // workers))}


def visible_devices() -> list[str]:
    """The GPUs of this process, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = [str(index) for index in range(torch.cuda.device_count())]
    return named.split(",")[: len(found)] if named and found else found


def cores() -> int:
    """The processor's cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
