"""``python -m zoo sweep``: many trials of an experiment, by W&B or locally."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from zoo.cli import has_wandb_account
from zoo.console import run_command
from zoo.sweeps.sweep_file import SweepFile, read_sweep


def run(args: Sequence[str]) -> None:
    """Run the command; ``args`` are the command line's words after ``sweep``. Exits with 2 after an error."""
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
    parser.set_defaults(command=_sweep)
    return parser


def _sweep(given: argparse.Namespace) -> None:
    online = has_wandb_account() and not given.local
    file = read_sweep(given.file, local=not online)
    for name in ("trials", "workers"):
        if getattr(given, name) is not None and getattr(given, name) < 1:
            raise ValueError(f"--{name} {getattr(given, name)}: must be at least 1")

    from zoo.sweeps.checking import check
    from zoo.sweeps.processes import visible_devices

    check(file)
    devices = visible_devices()
    workers = given.workers or max(len(devices), 1)
    if online:
        from zoo.sweeps.online import run_online

        run_online(file, workers, given.trials)
    else:
        _run_locally(file, Path(given.sweep_dir) / file.name, given.trials, workers, devices)


def _run_locally(file: SweepFile, folder: Path, trials: int | None, workers: int, devices: Sequence[str]) -> None:
    from zoo.console import console
    from zoo.sweeps.engine import LocalSweep, SweepFailed
    from zoo.sweeps.report import write_report
    from zoo.sweeps.space import grid
    from zoo.sweeps.table import Shows

    total = trials or file.run_cap or (len(grid(file.parameters)) if file.method == "grid" else None)
    if total is None:
        raise ValueError(
            f"{file.path}: a {file.method} sweep has no end of its own: give --trials, or run_cap in the file"
        )
    with Shows([name for name, p in file.parameters.items() if p.distribution != "constant"]) as shows:
        sweep = LocalSweep(file, folder, total, workers, shows, devices)
        try:
            over = sweep.run()
        except SweepFailed:
            write_report(sweep)
            raise
    if not over:
        print(f"Stopped; the same command goes on with {folder}")
        raise SystemExit(130)
    if shows.live is None:
        console().print(shows.table(sweep))
    best = sweep.best()
    if best is not None:
        print(f"Best: trial_{best.number:04d}, {file.metric.name} {best.value:.6g}, {shows.brief(sweep.values(best))}")
    for path in write_report(sweep):
        print(path)
