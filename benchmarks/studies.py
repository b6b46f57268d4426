"""What the studies share: runs that are done once, and differences paired by seed."""

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from zoo.startup import light_imports

with light_imports():
    from zoo.cli import run

# 97.5% quantiles of Student's t with 1 to 19 degrees of freedom
T_QUANTILE = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262,
              2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093)  # fmt: skip


def finished(run_dir: str, name: str) -> Path | None:
    """The folder of the newest run of this name that has its results."""
    complete = Path(run_dir, name).glob("version_*/results.csv")
    return max((file.parent for file in complete), key=lambda folder: folder.stat().st_mtime, default=None)


def run_once(subcommand: str, run_dir: str, name: str, seed: int, words: Sequence[str]) -> Path:
    """The folder of a run with this seed, which is run unless its results are there."""
    if (folder := finished(run_dir, name)) is not None:
        return folder
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    seeds = [f"--seed_everything={seed}", f"--data.init_args.seed={seed}"]
    log_dir = run([subcommand, *words, "--run_dir", run_dir, "--run_name", name, *seeds, *quiet]).trainer.log_dir
    assert log_dir is not None
    return Path(log_dir)


def mean(values: Sequence[float]) -> str:
    """The mean, with the standard deviation if there is one."""
    spread = f" ({statistics.stdev(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def with_interval(values: Sequence[float], sign: str = "") -> str:
    """The mean with the half-width of its 95% t-interval, if there are 2 to 20 values; ``sign`` "+" shows it always."""
    middle = f"{statistics.mean(values):{sign}.2f}"
    if not 2 <= len(values) <= len(T_QUANTILE) + 1:
        return middle
    half = T_QUANTILE[len(values) - 2] * statistics.stdev(values) / len(values) ** 0.5
    return f"{middle} ± {half:.2f}"


def paired(values: Sequence[float], reference: Sequence[float]) -> str:
    """The mean difference with its interval over the seeds."""
    return with_interval([a - b for a, b in zip(values, reference, strict=True)], "+")


def write_study(file: Path, runs: Mapping[str, Mapping[int, Mapping[str, float | None]]], table: str) -> None:
    """The figures of each method and seed as ``file`` (.csv), the table beside it as Markdown and on the screen."""
    names = next(list(row) for by_seed in runs.values() for row in by_seed.values())
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=["method", "seed", *names])
        writer.writeheader()
        for method, by_seed in runs.items():
            writer.writerows({"method": method, "seed": seed, **row} for seed, row in by_seed.items())
    file.with_suffix(".md").write_text(table + "\n", encoding="utf-8")
    print(f"\n{table}\n\n{file}")
