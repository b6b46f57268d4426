"""The claim of policy-gradient noise masks examined over seeds, in differences to the equal-budget baseline.

    python benchmarks/noise_mask_study.py --set pneumonia --seeds 0 1 2 3 4

Stage one is plain training, or heating under masks of the policy or under random ones; stage two is the same few clean
epochs for all. Runs that are complete under ``--run_dir`` are not run again, so an interrupted study goes on; one with
other words needs a ``--run_dir`` of its own. Each stage is scored on the test images with its last weights. Prints the
table, and writes it as ``<run_dir>/study_<set>.md`` and each run's scores as ``.csv``.
"""

import argparse
import csv
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from zoo.startup import light_imports

with light_imports():
    from zoo.cli import run

SCORES = ("balanced_accuracy", "auc", "f1", "accuracy")
REFERENCE = "baseline, equal budget"
# 97.5% quantiles of Student's t with 1 to 19 degrees of freedom
T_QUANTILE = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262,
              2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093)  # fmt: skip


class Arm(NamedTuple):
    """Runs of one kind: ``config`` of the stage, further words, and the arm that it goes on from.

    With ``averaged`` nothing is trained: the mean of the last epochs' weights of ``start`` is scored.
    """

    config: str
    words: tuple[str, ...] = ()
    start: str | None = None
    averaged: bool = False


ARMS = {
    "baseline": Arm("baseline"),
    "baseline, last epochs averaged": Arm("baseline", start="baseline", averaged=True),
    REFERENCE: Arm("finetune", start="baseline"),
    "random masks": Arm("heat", ("--model.init_args.policy=null",)),
    "random masks, fine-tuned": Arm("finetune", start="random masks"),
    "heated": Arm("heat"),
    "heated, fine-tuned": Arm("finetune", start="heated"),
}


def fit(name: str, args: argparse.Namespace, seed: int) -> Path:
    """The folder of an arm's run, which is fitted and tested unless its ``results.csv`` is there."""
    arm = ARMS[name]
    run_name = f"{args.set}_{name.replace(', ', '_').replace(' ', '_').replace('-', '_')}_{seed}"
    complete = list((Path(args.run_dir) / run_name).glob("version_*/results.csv"))
    if complete:
        return max(complete, key=lambda file: file.stat().st_mtime).parent
    common = ["--config", f"noise_mask/{arm.config}_{args.set}", "--run_dir", args.run_dir, "--run_name", run_name]
    common += [f"--seed_everything={seed}", f"--data.init_args.seed={seed}", *arm.words, *args.more]
    common += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--monitor=null"]
    if args.root is not None:
        common.append(f"--data.init_args.dataset.init_args.root={args.root}")
    before = None if arm.start is None else fit(arm.start, args, seed) / "checkpoints"
    if before is not None and arm.averaged:
        cli = run(["test", *common, "--ckpt_path", str(before / "average.ckpt")])
        return Path(cli.trainer.log_dir)
    if before is not None:
        common.append(f"--model.init_args.init_from={before / 'last.ckpt'}")
    return Path(run(["fit", *common]).trainer.log_dir)


def read(folder: Path) -> dict[str, float]:
    """The clean test scores of a run, in percent."""
    with (folder / "results.csv").open(newline="") as stream:
        row = next(row for row in csv.DictReader(stream) if row["mask"] == "none")
    return {score: float(row[score]) for score in SCORES}


def paired(values: Sequence[float], reference: Sequence[float]) -> str:
    """The mean difference with the half-width of its 95% t-interval over the seeds."""
    differences = [a - b for a, b in zip(values, reference, strict=True)]
    mean = statistics.mean(differences)
    if not 2 <= len(differences) <= len(T_QUANTILE) + 1:
        return f"{mean:+.2f}"
    half = T_QUANTILE[len(differences) - 2] * statistics.stdev(differences) / len(differences) ** 0.5
    return f"{mean:+.2f} ± {half:.2f}"


def table(scores: dict[str, list[dict[str, float]]], seeds: int) -> str:
    """Markdown: mean (standard deviation) of each arm, and paired differences to the equal-budget baseline."""
    lines = [
        f"Percent on the test images, mean (standard deviation) over {seeds} seeds; Δ: paired with the same seeds of "
    ]
    lines[0] += f"'{REFERENCE}', with 95% t-intervals.\n"
    lines.append("| arm | " + " | ".join(f"{s.replace('_', ' ')} | Δ" for s in SCORES) + " |")
    lines.append("| --- |" + " --- |" * 2 * len(SCORES))
    for arm, rows in scores.items():
        cells = []
        for score in SCORES:
            values, reference = ([row[score] for row in some] for some in (rows, scores[REFERENCE]))
            spread = f" ({statistics.stdev(values):.2f})" if len(values) > 1 else ""
            cells += [f"{statistics.mean(values):.2f}{spread}", "" if arm == REFERENCE else paired(values, reference)]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=["pneumonia", "fashion"], default="pneumonia")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--root", help="folder of the data set's files, for fashion")
    parser.add_argument("--run_dir", default="runs/noise_mask_study")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--more", nargs=argparse.REMAINDER, default=[], help="further words for every run, such as "
                        "--trainer.accelerator=gpu; last, since all that follows is taken")  # fmt: skip
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    scores: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed in args.seeds:
        for arm, rows in scores.items():
            rows.append(read(fit(arm, args, seed)))
    file = Path(args.run_dir) / f"study_{args.set}.csv"
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=["arm", "seed", *SCORES])
        writer.writeheader()
        for arm, rows in scores.items():
            writer.writerows({"arm": arm, "seed": seed, **row} for seed, row in zip(args.seeds, rows, strict=True))
    text = table(scores, len(args.seeds))
    file.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\n{file}")


if __name__ == "__main__":
    main()
