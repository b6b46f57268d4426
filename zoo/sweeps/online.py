"""A sweep file run by W&B: the service keeps the sweep and draws values, agents on this machine run the trials."""

import os
import subprocess
import sys
from pathlib import Path

from zoo.sweeps.processes import cores, visible_devices, worker_env
from zoo.sweeps.sweep_file import SweepFile

PROJECT = "zoo"
"""Where a sweep goes whose file names no project."""


def run_online(file: SweepFile, workers: int, trials: int | None) -> None:
    """Create the sweep and run ``workers`` agents until it is over.

    Raises:
        ConnectionError: if W&B refuses the sweep or cannot be reached.
        ChildProcessError: if an agent fails.
    """
    import wandb

    content = dict(file.content) if trials is None else {**file.content, "run_cap": trials}
    project, entity = content.get("project", PROJECT), content.get("entity")
    try:
        sweep = wandb.sweep(content, project=project, entity=entity)
    except wandb.Error as error:
        raise ConnectionError(f"W&B made no sweep ({error}); --local runs it without W&B") from error
    words = [sys.executable, "-m", "wandb", "agent", "--project", project, *(["--entity", entity] if entity else [])]
    devices = visible_devices()
    # an agent's ${interpreter} is the first python of the path
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    shared = {**os.environ, "PATH": path}
    agents = [
        subprocess.Popen([*words, sweep], env={**shared, **worker_env(worker, workers, devices, cores())})
        for worker in range(workers)
    ]
    try:
        codes = [agent.wait() for agent in agents]
    except KeyboardInterrupt:  # the terminal has told the agents too, which end their trials
        codes = [agent.wait() for agent in agents]
    if any(codes):
        raise ChildProcessError(f"an agent of sweep {sweep} ended with status {max(codes, key=abs)}")
