"""CRLNet's claim examined: hard-query accuracy against the number of base classes and of training steps.

For each number of base classes: pretrain a backbone, then train the head as published (``full``) and without
conditioning (``no_correlation``) on it, and score both beside the backbone's cosine on the same novel episodes.

    python benchmarks/crlnet_study.py --set strokes --classes 64 256 1024 --steps 4000 --seeds 0

Runs that are complete under ``--run_dir`` are not run again, so an interrupted study goes on. Writes
``<run_dir>/study_<set>.csv`` and ``.png``.
"""

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path

from studies import run_once

FIELD = {"strokes": "base_classes", "omniglot": "max_base_classes"}
MODES = ("full", "no_correlation")


def hard(episodes: int) -> str:
    return json.dumps([{"way": 5, "shot": 1, "query": 15, "episodes": episodes, "hard": True}])


def fit(name: str, config: str, args: argparse.Namespace, seed: int, *more: str) -> Path:
    """The run folder of one fit, which is run unless it is there."""
    words = [
        *("--config", f"few_shot/{config}_{args.set}", "--trainer.max_epochs=-1"),
        "--trainer.check_val_every_n_epoch=null",
        f"--data.init_args.val={hard(args.val_episodes)}",
        f"--data.init_args.test={hard(args.test_episodes)}",
        *more,
    ]
    return run_once("fit", args.run_dir, name, seed, words)


def study(args: argparse.Namespace) -> list[dict[str, str | int | float]]:
    """One row a mode, number of classes, seed and validation: accuracies in percent."""
    rows: list[dict[str, str | int | float]] = []
    for seed in args.seeds:
        for classes in args.classes:
            data = f"--data.init_args.dataset.init_args.{FIELD[args.set]}={classes}"
            base = fit(
                f"{args.set}_{classes}_pretrain_{seed}",
                "pretrain",
                args,
                seed,
                data,
                f"--model.init_args.num_classes={classes}",
                f"--trainer.max_steps={args.pretrain_steps}",
                f"--trainer.val_check_interval={args.pretrain_steps // 4}",
                f"--model.init_args.scheduler.init_args.T_max={args.pretrain_steps}",
                "--model.init_args.scheduler_interval=step",
            )
            for mode in MODES:
                folder = fit(
                    f"{args.set}_{classes}_{mode}_{seed}",
                    "crlnet",
                    args,
                    seed,
                    data,
                    f"--model.init_args.init_from={base}",
                    f"--model.init_args.head.init_args.mode={mode}",
                    f"--trainer.max_steps={args.steps}",
                    f"--trainer.val_check_interval={args.steps // args.points}",
                )
                rows += read(folder, classes, mode, seed)
    return rows


def read(folder: Path, classes: int, mode: str, seed: int) -> list[dict[str, str | int | float]]:
    """The hard-query validations of a run, and its test."""
    common = {"classes": classes, "mode": mode, "seed": seed}
    rows: list[dict[str, str | int | float]] = []
    with (folder / "metrics.csv").open() as stream:
        for line in csv.DictReader(stream):
            if line.get("val/accuracy@5w1s-hard"):
                for method, name in (("crlnet", "val/accuracy@5w1s-hard"), ("cosine", "val/accuracy@5w1s-hard/cosine")):
                    rows.append(
                        {
                            **common,
                            "split": "val",
                            "step": int(line["step"]) + 1,
                            "method": method,
                            "accuracy": float(line[name]),
                            "ci95": float(line[f"{name}_ci95"]),
                        }
                    )
    with (folder / "results.csv").open() as stream:
        for line in csv.DictReader(stream):
            if line["episodes"] == "5w1s-hard":
                values = {"accuracy": float(line["accuracy"]), "ci95": float(line["ci95"])}
                rows.append({**common, "split": "test", "step": -1, "method": line["head"], **values})
    return rows


def draw(rows: list[dict[str, str | int | float]], file: Path) -> None:
    """Left: test accuracy against base classes; right: validation accuracy against steps."""
    from matplotlib.figure import Figure

    def label(row: dict[str, str | int | float]) -> str:
        return "(a) backbone cosine" if row["method"] == "cosine" else NAMES[str(row["mode"])]

    figure = Figure(figsize=(12.5, 4), layout="constrained")
    by_classes, by_steps = figure.subplots(1, 2)
    ends: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    curves: dict[tuple[str, int], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["split"] == "test":
            ends[label(row)][int(row["classes"])].append(float(row["accuracy"]))
        elif row["method"] != "cosine":
            curves[label(row), int(row["classes"])][int(row["step"])].append(float(row["accuracy"]))
    for name, points in sorted(ends.items()):
        at = sorted(points)
        by_classes.plot(at, [sum(points[x]) / len(points[x]) for x in at], marker="o", label=name)
    by_classes.set(xscale="log", xlabel="base classes", ylabel="hard 5-way 1-shot accuracy (%)", title="novel classes")
    sizes = sorted({size for _, size in curves})
    for (name, size), points in sorted(curves.items()):
        at = sorted(points)
        style = "-" if name == NAMES["full"] else "--"
        means = [sum(points[x]) / len(points[x]) for x in at]
        by_steps.plot(at, means, style, color=f"C{sizes.index(size)}", marker=".", label=f"{name}, {size} classes")
    by_steps.set(xlabel="head training steps", ylabel="hard 5-way 1-shot accuracy (%)", title="validation classes")
    for ax in (by_classes, by_steps):
        ax.grid(alpha=0.3)
    by_classes.legend(fontsize="x-small")
    by_steps.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.savefig(file, dpi=120)


NAMES = {"full": "(b) CRLNet", "no_correlation": "(c) CRLNet without conditioning"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=sorted(FIELD), default="strokes")
    parser.add_argument("--classes", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--points", type=int, default=8, help="validations of a run")
    parser.add_argument("--pretrain_steps", type=int, default=1600)
    parser.add_argument("--val_episodes", type=int, default=100)
    parser.add_argument("--test_episodes", type=int, default=600)
    parser.add_argument("--run_dir", default="runs/study")
    args = parser.parse_args()
    rows = study(args)
    table = Path(args.run_dir) / f"study_{args.set}.csv"
    with table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, table.with_suffix(".png"))
    print(f"{table}\n{table.with_suffix('.png')}")


if __name__ == "__main__":
    main()
