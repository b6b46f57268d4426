"""``python -m zoo sweep``: many trials of an experiment, by W&B or locally."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.callbacks.wandb import has_wandb_account
from zoo.console import run_command
from zoo.sweeps.sweep_file import SweepFile, read_sweep

if TYPE_CHECKING:
    from zoo.sweeps.engine import LocalSweep


def run(args: Sequence[str]) -> None:
    """Run the command; ``args`` are the command line's words after ``sweep``. Exits with 2 after an error.

    Exits with 1 where no trial has ended well, with 130 after Ctrl-C.
    """
    run_command(_parser(), args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m zoo sweep",
        description="Run a W&B sweep file: by W&B where an account is set up, else locally. The same command goes on "
        "with a local sweep that was stopped.",
    )
    parser.add_argument("file", help="sweep file, by path or short name such as sweeps/few_shot_protonet")
    parser.add_argument("--trials", type=int, help="in all; default: the file's run_cap, or all points of a grid")
    parser.add_argument("--workers", type=int, help="trials at a time; default: one a GPU, else one")
    parser.add_argument("--local", action="store_true", help="without W&B, also where an account is set up")
    parser.add_argument("--sweep_dir", default="runs/sweeps", help="folder of local sweeps; default: runs/sweeps")
    parser.add_argument("--retry_failed", action="store_true", help="run failed trials of a local sweep again")
    parser.add_argument("--seed", type=int, help="of a local sweep's draws; default: drawn once and kept")
    parser.set_defaults(command=_sweep)
    return parser


def _sweep(given: argparse.Namespace) -> None:
    silent = os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun")
    online = has_wandb_account() and not given.local and not silent
    file = read_sweep(given.file, local=not online)
    for name, least in (("trials", 1), ("workers", 1), ("seed", 0)):
        if getattr(given, name) is not None and getattr(given, name) < least:
            raise ValueError(f"--{name} {getattr(given, name)}: must be at least {least}")
    if online and (given.retry_failed or given.seed is not None):
        raise ValueError("--retry_failed and --seed are of local sweeps; add --local")
    total = 0 if online else _total(file, given.trials)

    from zoo.sweeps.checking import check
    from zoo.sweeps.processes import visible_devices

    check(file)
    devices = visible_devices()
    workers = given.workers or max(len(devices), 1)
    if online:
        from zoo.sweeps.online import run_online

        run_online(file, workers, given.trials)
        return

    from zoo.sweeps.engine import LocalSweep
    from zoo.sweeps.table import SweepDisplay

    with SweepDisplay(list(file.searched)) as display:
        folder = Path(given.sweep_dir) / file.name
        retry, seed = given.retry_failed, given.seed
        _run_locally(LocalSweep(file, folder, total, workers, display, devices, retry_failed=retry, seed=seed))


def _total(file: SweepFile, trials: int | None) -> int:
    """The trials of a local sweep, which is refused here if it cannot be run or has no end."""
    from zoo.sweeps.space import grid_axes, grid_size

    if os.name != "posix":
        raise ValueError("a local sweep steers process groups, which Windows has not; run it in WSL, or by W&B")
    points = grid_size(grid_axes(file.parameters)) if file.method == "grid" else None
    total = trials or file.run_cap or points
    if total is None:
        raise ValueError(
            f"{file.path}: a {file.method} sweep has no end of its own: give --trials, or run_cap in the file"
        )
    return total


def _run_locally(sweep: "LocalSweep") -> None:
    from zoo.console import console
    from zoo.sweeps.engine import SweepFailed
    from zoo.sweeps.report import write_report

    try:
        over = sweep.run()
    except SweepFailed as error:
        write_report(sweep.records)
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    records, display = sweep.records, sweep.display
    if over and display.live is None:
        console().print(display.table(sweep))
    best = records.best()
    if best is not None:
        metric, values = sweep.file.metric.name, display.brief(records.values(best))
        print(f"Best: trial_{best.number:04d}, {metric} {best.value:.6g}, {values}")
    for path in write_report(records):
        print(path)
    if not over:
        print(f"Stopped; the same command goes on with {sweep.folder}")
        raise SystemExit(130)
