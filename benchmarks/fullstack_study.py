"""Continued pretraining, supervised fine-tuning and reinforcement learning on a small language, over seeds.

    python benchmarks/fullstack_study.py --seeds 0 1 2

The arms differ in the stages that they go through; each is measured by the share of held-out problems that a greedy
program solves (pass@1), and by the share of their tests that it passes. Runs that are complete under ``--run_dir`` are
not run again, so an interrupted study goes on. Prints the table, and writes it as ``<run_dir>/study.md`` and each run's
figures as ``.csv``.
"""

import argparse
import csv
from pathlib import Path

from studies import paired, run_once, with_interval, write_study

SCRATCH, REFERENCE = "(a) fine-tuning alone", "(b) pretraining, fine-tuning"
LEARNT, BINARY = "(c) b, then GRPO", "(d) b, then GRPO, all or nothing"
POLICY = "--model.init_args.policy.init_args.init_from"


def read(folder: Path) -> dict[str, float]:
    """In percent."""
    with (folder / "results.csv").open(newline="") as stream:
        row = next(csv.DictReader(stream))
    # a program that passes all tests has a reward of 2, others their share of passed tests
    solved = 100 * float(row["rewards/solved"])
    return {"pass@1": solved, "tests passed": 100 * float(row["rewards/tests"]) - solved}


def measured(seed: int, run_dir: str, more: list[str]) -> dict[str, dict[str, float]]:
    """Runs what is not done of a seed, and reads the figures of all arms."""

    def run(subcommand: str, config: str, name: str, *words: str) -> Path:
        all_words = ["--config", f"llm_rl/{config}", *words, *more]
        return run_once(subcommand, run_dir, f"{name}_{seed}", seed, all_words)

    pretrained = run("fit", "pretrain_stack", "pretrain")
    start = "--model.init_args.language_model.init_args.init_from"
    scratch = run("fit", "sft_stack", "sft_alone", f"{start}=null")
    tuned = run("fit", "sft_stack", "sft", f"{start}={pretrained}")
    return {
        SCRATCH: read(run("test", "grpo_stack", "test_sft_alone", f"{POLICY}={scratch}")),
        REFERENCE: read(run("test", "grpo_stack", "test_sft", f"{POLICY}={tuned}")),
        LEARNT: read(run("fit", "grpo_stack", "grpo", f"{POLICY}={tuned}")),
        BINARY: read(
            run("fit", "grpo_stack", "binary", f"{POLICY}={tuned}", "--model.init_args.weights={tests: 0, solved: 1}")
        ),
    }


def table(runs: dict[str, dict[int, dict[str, float]]]) -> str:
    """Markdown: mean ± half of the 95% t-interval, and differences paired by seed."""
    names = ("pass@1", "tests passed")
    lines = ["| percent | " + " | ".join(f"{name} | Δ to (b)" for name in names) + " |", "|" + " --- |" * 5]
    for arm, by_seed in runs.items():
        cells = []
        for name in names:
            values, others = ([row[name] for row in some.values()] for some in (by_seed, runs[REFERENCE]))
            cells += [with_interval(values), "" if arm == REFERENCE else paired(values, others)]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--run_dir", default="runs/fullstack_study")
    parser.add_argument("--more", nargs=argparse.REMAINDER, default=[], help="further words for every run, last")
    args = parser.parse_args()
    found = {seed: measured(seed, args.run_dir, args.more) for seed in args.seeds}
    runs = {arm: {seed: rows[arm] for seed, rows in found.items()} for arm in found[args.seeds[0]]}
    write_study(Path(args.run_dir) / "study.csv", runs, table(runs))


if __name__ == "__main__":
    main()
