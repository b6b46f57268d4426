"""Reinforcement learning of the bundled arithmetic model over seeds: methods and controls with equal rollouts.

    python benchmarks/llm_rl_study.py --seeds 0 1 2 3 4

Every run takes as many rollouts, of 512 completions each (the guided methods: 128). Runs that are complete under
``--run_dir`` are not run again, so an interrupted study goes on; one with other words needs a ``--run_dir`` of its own.
Prints the table, and writes it as ``<run_dir>/study.md`` and each run's figures as ``.csv``.
"""

import argparse
import csv
import re
from pathlib import Path
from typing import NamedTuple

from studies import finished, paired, run_once, with_interval, write_study

START, GUIDE = "before", "guide"
_CONTRAST = "--model.init_args.auxiliary.init_args"  # its official sum needs a c of 1e-3 / 256 rows of a minibatch


class Arm(NamedTuple):
    """A config ``llm_rl/..._arithmetic``, optimiser steps a rollout, further words, and whether a guide is needed."""

    config: str
    steps: int = 1
    words: tuple[str, ...] = ()
    guided: bool = False


ARMS = {
    "GRPO": Arm("grpo"),
    "Dr. GRPO": Arm("dr_grpo"),
    "Lite PPO": Arm("lite_ppo"),
    "DAPO": Arm("dapo"),
    "RLOO": Arm("rloo"),
    "ReMax": Arm("remax"),
    "REINFORCE++": Arm("reinforce_pp"),
    "GSPO": Arm("gspo", 4),
    "D3S": Arm("d3s"),
    "CANON-Inter, length": Arm("canon_inter"),
    "CANON-Intra, length": Arm("canon_intra"),
    "CANON-Eff, alpha 0.9": Arm("canon_eff"),
    "reward by chance": Arm("random_reward"),
    "reward turned round": Arm("inverted_reward"),
    "PPO": Arm("ppo", 4),
    "ReFT": Arm("reft", 4),
    "CARFT": Arm("carft", 4),
    "CARFT, official sum over all pairs": Arm(
        "carft", 4, (f"{_CONTRAST}.mask_mode=official_broadcast", f"{_CONTRAST}.c=4e-6")
    ),
    "PPO, as the guided ones": Arm("ppo_pp", 8, ("--model.init_args.rollout.init_args.beta=0.0",), guided=True),
    "PPO++": Arm("ppo_pp", 8, guided=True),
    "AggreVaTeD": Arm("aggrevated", 8, guided=True),
    "LOLS": Arm("lols", 8, guided=True),
    "D2LOLS": Arm("d2lols", 8, guided=True),
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


def table(found: dict[str, dict[int, dict[str, float]]], seeds: list[int], reference: str) -> str:
    """Markdown: mean ± half of the 95% t-interval, and differences in accuracy to a method paired by seed."""
    lines = ["| | " + " | ".join([HEADS[0], f"Δ {reference}", *HEADS[1:]]) + " |", "|" + " --- |" * (len(HEADS) + 2)]
    for arm, runs in found.items():
        values = {name: [runs[seed][name] for seed in seeds if seed in runs] for name in FIGURES}
        cells = [with_interval(values[name]) for name in FIGURES]
        apart = ""
        if arm not in (START, reference):
            apart = paired(values["accuracy"], [found[reference][seed]["accuracy"] for seed in seeds if seed in runs])
        lines.append(f"| {arm} | {cells[0]} | {apart} | " + " | ".join(cells[1:]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="METHOD",
                        help=f"any of: {'; '.join(ARMS)}")  # fmt: skip
    parser.add_argument("--reference", default="GRPO", choices=list(ARMS), metavar="METHOD",
                        help="the method that the others are compared with")  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rollouts", type=int, default=150)
    parser.add_argument("--run_dir", default="runs/llm_rl_study")
    parser.add_argument("--more", nargs=argparse.REMAINDER, default=[], help="further words for every run, last")
    args = parser.parse_args()
    methods = [args.reference, *(arm for arm in args.methods if arm != args.reference)]
    first = ["--config", "llm_rl/grpo_arithmetic"]
    found: dict[str, dict[int, dict[str, float]]] = {START: {}}
    found[START][args.seeds[0]] = read(run_once("test", args.run_dir, "start", args.seeds[0], [*first, *args.more]))
    if any(ARMS[arm].guided for arm in methods):
        run_once("fit", args.run_dir, GUIDE, 0, ["--config", "llm_rl/guide_arithmetic"])
    guide = f"--model.init_args.rollout.init_args.guide.init_args.init_from={args.run_dir}/{GUIDE}"
    for seed in args.seeds:
        for arm in methods:
            config, steps, words, guided = ARMS[arm]
            run = ["--config", f"llm_rl/{config}_arithmetic", f"--trainer.max_steps={args.rollouts * steps}", *words]
            run_once("fit", args.run_dir, run_name(arm, seed), seed, [*run, *([guide] if guided else []), *args.more])
    for arm in methods:
        folders = {seed: finished(args.run_dir, run_name(arm, seed)) for seed in args.seeds}
        found[arm] = {seed: read(folder) for seed, folder in folders.items() if folder is not None}
    write_study(Path(args.run_dir) / "study.csv", found, table(found, args.seeds, args.reference))


def run_name(arm: str, seed: int) -> str:
    """A run's folder: its method in letters, digits and underscores, and its seed."""
    return f"{re.sub(r'[^0-9A-Za-z]+', '_', arm.replace('+', 'p')).strip('_')}_{seed}"


if __name__ == "__main__":
    main()
