"""Reinforcement learning of the bundled arithmetic model over seeds: methods and controls with equal rollouts.

    python benchmarks/llm_rl_study.py --seeds 0 1 2 3 4

Every run takes as many steps, of as many prompts times completions each. Runs that are complete under ``--run_dir`` are
not run again, so an interrupted study goes on; one with other words needs a ``--run_dir`` of its own. Prints the table,
and writes it as ``<run_dir>/study.md`` and each run's figures as ``.csv``.
"""

import argparse
import csv
from pathlib import Path

from studies import finished, paired, run_once, with_interval, write_study

START, REFERENCE = "before", "GRPO"
ARMS = {
    REFERENCE: "grpo",
    "Dr. GRPO": "dr_grpo",
    "Lite PPO": "lite_ppo",
    "DAPO": "dapo",
    "RLOO": "rloo",
    "ReMax": "remax",
    "REINFORCE++": "reinforce_pp",
    "GSPO": "gspo",
    "D3S": "d3s",
    "CANON-Inter, length": "canon_inter",
    "CANON-Intra, length": "canon_intra",
    "CANON-Eff, alpha 0.9": "canon_eff",
    "reward by chance": "random_reward",
    "reward turned round": "inverted_reward",
}
FIGURES = ("accuracy", "length", "generated", "trained", "seconds")
HEADS = ("accuracy", "tokens an answer", "generated, million tokens", "trained, million tokens", "seconds")


def read(folder: Path) -> dict[str, float]:
    """What a run has to show: accuracy in percent, tokens of a test completion, tokens over the training, seconds."""
    with (folder / "results.csv").open(newline="") as stream:
        test = next(csv.DictReader(stream))
    rows = []
    if (metrics := folder / "metrics.csv").is_file():
        with metrics.open(newline="") as stream:
            rows = list(csv.DictReader(stream))

    def total(*names: str) -> float:
        return sum(float(row.get(f"train/{name}") or 0) for row in rows for name in names)

    return {
        "accuracy": 100 * float(test["rewards/answer"]),
        "length": float(test["length"]),
        "generated": total("tokens/generated") / 1e6,
        "trained": total("tokens/trained") / 1e6,
        "seconds": total("time/generation", "time/rewards", "time/forward", "time/update"),
    }


def table(found: dict[str, dict[int, dict[str, float]]], seeds: list[int]) -> str:
    """Markdown: mean ± half of the 95% t-interval, and differences in accuracy to GRPO paired by seed."""
    lines = ["| | " + " | ".join([HEADS[0], f"Δ {REFERENCE}", *HEADS[1:]]) + " |", "|" + " --- |" * (len(HEADS) + 2)]
    for arm, runs in found.items():
        values = {name: [runs[seed][name] for seed in seeds if seed in runs] for name in FIGURES}
        cells = [with_interval(values[name]) for name in FIGURES]
        apart = ""
        if arm not in (START, REFERENCE):
            apart = paired(values["accuracy"], [found[REFERENCE][seed]["accuracy"] for seed in seeds if seed in runs])
        lines.append(f"| {arm} | {cells[0]} | {apart} | " + " | ".join(cells[1:]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="METHOD",
                        help=f"any of: {'; '.join(ARMS)}")  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=150, help="optimiser steps, one a rollout (GSPO: four)")
    parser.add_argument("--run_dir", default="runs/llm_rl_study")
    parser.add_argument("--more", nargs=argparse.REMAINDER, default=[], help="further words for every run, last")
    args = parser.parse_args()
    methods = [REFERENCE, *(arm for arm in args.methods if arm != REFERENCE)]
    first = ["--config", "llm_rl/grpo_arithmetic"]
    found: dict[str, dict[int, dict[str, float]]] = {START: {}}
    found[START][args.seeds[0]] = read(run_once("test", args.run_dir, "start", args.seeds[0], [*first, *args.more]))
    for seed in args.seeds:
        for arm in methods:
            config = ARMS[arm]
            steps = args.steps * (4 if arm == "GSPO" else 1)
            words = ["--config", f"llm_rl/{config}_arithmetic", f"--trainer.max_steps={steps}", *args.more]
            run_once("fit", args.run_dir, f"{config}_{seed}", seed, words)
    for arm in methods:
        config = ARMS[arm]
        folders = {seed: finished(args.run_dir, f"{config}_{seed}") for seed in args.seeds}
        found[arm] = {seed: read(folder) for seed, folder in folders.items() if folder is not None}
    write_study(Path(args.run_dir) / "study.csv", found, table(found, args.seeds))


if __name__ == "__main__":
    main()
