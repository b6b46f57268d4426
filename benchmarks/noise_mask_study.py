"""The claim of policy-gradient noise masks examined over seeds, in differences to the equal-budget baseline.

    python benchmarks/noise_mask_study.py --set pneumonia --seeds 0 1 2 3 4

Stage one is plain training, or heating under masks of the policy or under random ones; stage two is the same few clean
epochs for all. Runs that are complete under ``--run_dir`` are not run again, so an interrupted study goes on; one with
other words needs a ``--run_dir`` of its own. Each stage is scored on the test images with its last weights. Prints the
table, and writes it as ``<run_dir>/study_<set>.md`` and each run's scores as ``.csv``.
"""

import argparse
import csv
from pathlib import Path
from typing import NamedTuple

import torch
from studies import mean, paired, run_once, write_study

SCORES = ("balanced_accuracy", "auc", "f1", "accuracy")
REFERENCE = "baseline, equal budget"


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
    """The folder of an arm's run, which is fitted and tested unless its results are there."""
    arm = ARMS[name]
    run_name = f"{args.set}_{name.replace(', ', '_').replace(' ', '_').replace('-', '_')}_{seed}"
    words = ["--config", f"noise_mask/{arm.config}_{args.set}", *arm.words, *args.more, "--monitor=null"]
    if args.root is not None:
        words.append(f"--data.init_args.dataset.init_args.root={args.root}")
    before = None if arm.start is None else fit(arm.start, args, seed) / "checkpoints"
    if before is not None and arm.averaged:
        return run_once("test", args.run_dir, run_name, seed, [*words, "--ckpt_path", str(before / "average.ckpt")])
    if before is not None:
        words.append(f"--model.init_args.init_from={before / 'last.ckpt'}")
    return run_once("fit", args.run_dir, run_name, seed, words)


def read(folder: Path) -> dict[str, float]:
    """The clean test scores of a run, in percent."""
    with (folder / "results.csv").open(newline="") as stream:
        row = next(row for row in csv.DictReader(stream) if row["mask"] == "none")
    return {score: float(row[score]) for score in SCORES}


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
            cells += [mean(values), "" if arm == REFERENCE else paired(values, reference)]
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
    found = {arm: dict(zip(args.seeds, rows, strict=True)) for arm, rows in scores.items()}
    write_study(Path(args.run_dir) / f"study_{args.set}.csv", found, table(scores, len(args.seeds)))


if __name__ == "__main__":
    main()
