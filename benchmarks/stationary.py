"""ER, d-Simplex and d-Simplex-HOC over the same sequences of tasks: accuracy and compatibility by seed.

    python benchmarks/stationary.py --set gaussian --seeds 0 1 2

pretrains the models that the sequences start from and are replaced by, for each seed (``gaussian``), or takes the
bundled ones (``omniglot``), then fits every sequence and prints the table. Runs that are complete under ``--run_dir``
are not run again, so an interrupted study goes on; one with other words needs a ``--run_dir`` of its own. Writes
``<run_dir>/<set>.csv``.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

from studies import with_interval

from zoo.cli import run

METHODS = ("er", "dsimplex", "hoc")
SERVERS = {"gaussian": [15, 40], "omniglot": []}


def fit(name: str, config: str, args: argparse.Namespace, seed: int, *more: str) -> Path:
    """The folder of one run, which starts, goes on, or is complete."""
    words = ["fit", "--config", f"stationary/{config}", "--run_dir", args.run_dir, "--run_name", name]
    words += [f"--seed_everything={seed}", f"--data.init_args.seed={seed}", "--ckpt_path=last"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    cli = run([*words, *quiet, *args.more, *more])
    assert cli.sequence is not None
    return cli.sequence


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def servers(args: argparse.Namespace, kind: str, seed: int) -> list[str]:
    """The pretrained models of one kind of classifier, as words of the command line; none where they are bundled."""
    learnable = ["--model.init_args.classifier", "LearnableClassifier"] if kind == "learnable" else []
    made = [
        fit(
            f"{kind}_{args.set}_{classes}_{seed}",
            f"server_{args.set}",
            args,
            1000 * seed + number,  # independent models: the same seed would start both from the same weights
            f"--data.init_args.initial={classes}",
            *learnable,
        )
        for number, classes in enumerate(args.servers)
    ]
    return [f"--model.init_args.pretrained=[{','.join(map(str, made))}]"] if made else []


def study(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a method and seed: AC, AA and the scores of the tasks in percent."""
    rows = []
    for seed in args.seeds:
        for method in args.methods:
            pretrained = servers(args, "learnable" if method == "er" else "simplex", seed)
            folder = fit(f"{method}_{args.set}_{seed}", f"{method}_{args.set}", args, seed, *pretrained)
            matrix = read(folder / "results.csv")
            last = len(matrix) - 1
            replaced = args.replaced
            rows.append(
                {
                    "method": method,
                    "seed": seed,
                    "AA": float(matrix[last]["AA"]),
                    "AC": float(matrix[last]["AC"]),
                    "first self-test": float(matrix[0]["gallery 0"]),
                    "last self-test": float(matrix[last][f"gallery {last}"]),
                    "cross-test after replacement": float(matrix[replaced][f"gallery {replaced - 1}"]),
                }
            )
    return rows


def summary(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: the mean over seeds, with the 95% interval of Student's t where there are several."""
    columns = [name for name in rows[0] if name not in ("method", "seed")]
    lines = ["| method | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for name in columns:
            values = [row[name] for row in rows if row["method"] == method]
            cells.append(with_interval(values))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=sorted(SERVERS), default="omniglot")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--replaced", type=int, default=2, help="task whose cross-test is shown")
    parser.add_argument("--servers", type=int, nargs="*", help="classes of the models to pretrain; none: the bundled")
    parser.add_argument("--run_dir", default="runs/stationary")
    parser.add_argument("more", nargs="*", help="further words for every fit, after --")
    args = parser.parse_args()
    args.servers = SERVERS[args.set] if args.servers is None else args.servers
    rows = study(args)
    file = Path(args.run_dir) / f"{args.set}.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(row)
    print(f"\n{summary(rows)}\n\n{file}")


if __name__ == "__main__":
    main()
