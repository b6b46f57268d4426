"""LLM-QL over seeds, tiny decoders from scratch: what each piece of its first stage is worth to retrieval.

    python benchmarks/dense_retrieval_study.py [--set topics|boolq_tiny] --seeds 0 1 2

(a) contrastive training alone; the same after (b) causal query likelihood, (c) with the attention block, (d) with block
and masked words. All contrastive runs have the same data order, steps and seed. Shown are MRR@10 of the first stage by
the ending token without contrastive training (zero-shot), of the validation queries early in contrastive training, and
of the test queries with the best validation's weights. Runs that are complete under ``--run_dir`` are not run again.
Prints the table, and writes it as ``<run_dir>/study_<set>.md`` and each run's scores as ``.csv``.
"""

import argparse
import csv
from pathlib import Path

from studies import mean, paired, run_once, write_study

ARMS: dict[str, tuple[str, ...] | None] = {
    "(a) stage two alone": None,
    "(b) + query likelihood": ("--model.init_args.attention_block=false", "--model.init_args.mask_prob=0"),
    "(c) + attention block": ("--model.init_args.mask_prob=0",),
    "(d) + masked words": (),
}
START = "--model.init_args.embedder.init_args.language_model.init_args.init_from"


def tested(folder: Path, name: str) -> float:
    """A test score of a run, in percent."""
    with (folder / "results.csv").open(newline="") as stream:
        return float(next(csv.DictReader(stream))[f"{name} %"])


def validated(folder: Path, step: int) -> float:
    """MRR@10 on the validation queries after so many steps, in percent."""
    with (folder / "metrics.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row.get("val/mrr@10")]
    return 100 * next(float(row["val/mrr@10"]) for row in rows if int(row["step"]) + 1 == step)


def scores(args: argparse.Namespace, arm: str, seed: int) -> dict[str, float | None]:
    """What one arm reaches with one seed; its runs are made unless they are there."""
    letter, words = arm[1], ARMS[arm]
    more = [f"--data.init_args.dataset.init_args.seed={seed}"] if args.set == "topics" else []
    more += args.more
    stage_one = None
    if words is not None:
        config = ["--config", f"dense_retrieval/llm_ql_{args.set}", *words, *more]
        stage_one = run_once("fit", args.run_dir, f"{args.set}_stage_one_{letter}_{seed}", seed, config)
    config = ["--config", f"dense_retrieval/retriever_{args.set}", *more]
    config += [] if stage_one is None else [f"{START}={stage_one / 'checkpoints' / 'last.ckpt'}"]
    stage_two = run_once("fit", args.run_dir, f"{args.set}_stage_two_{letter}_{seed}", seed, config)
    return {
        "zero-shot MRR@10": None if stage_one is None else tested(stage_one, "mrr@10"),
        f"MRR@10 at step {args.early}": validated(stage_two, args.early),
        "MRR@10": tested(stage_two, "mrr@10"),
        "Recall@100": tested(stage_two, "recall@100"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=["topics", "boolq_tiny"], default="topics")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="of weights and order, and of procedural data"
    )
    parser.add_argument("--early", type=int, default=100, help="a step of contrastive training that is validated")
    parser.add_argument("--run_dir", default="runs/dense_retrieval_study")
    parser.add_argument("--more", nargs=argparse.REMAINDER, default=[], help="further words for every run, such as "
                        "--trainer.accelerator=gpu; last, since all that follows is taken")  # fmt: skip
    args = parser.parse_args()
    rows: dict[str, list[dict[str, float | None]]] = {arm: [] for arm in ARMS}
    for seed in args.seeds:
        for arm, found in rows.items():
            found.append(scores(args, arm, seed))
    reference, *_ = rows.values()
    names = list(reference[0])
    lines = [f"Percent, mean (standard deviation) over seeds {', '.join(map(str, args.seeds))}; Δ: paired by seed with "
             "(a), with 95% t-intervals.\n"]  # fmt: skip
    lines.append("| | " + " | ".join(f"{name} | Δ" for name in names) + " |\n|" + " --- |" * (2 * len(names) + 1))
    for arm, found in rows.items():
        cells = []
        for name in names:
            values, others = ([row[name] for row in some] for some in (found, reference))
            known = [value for value in values if value is not None]
            compared = [value for value in others if value is not None]
            cells += [
                mean(known) if known else "",
                paired(known, compared) if compared and found is not reference else "",
            ]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    runs = {arm: dict(zip(args.seeds, found, strict=True)) for arm, found in rows.items()}
    write_study(Path(args.run_dir) / f"study_{args.set}.csv", runs, "\n".join(lines))


if __name__ == "__main__":
    main()
