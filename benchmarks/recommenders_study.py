"""Sequential recommenders on one data set over seeds: every method, and SRA-CL without each of its parts.

    python benchmarks/recommenders_study.py --set ml100k --seeds 0 1 2

All have the same budget and the same early stopping, and are compared with the same encoder without contrastive loss.
Runs that are complete under ``--run_dir`` are not run again, so an interrupted study goes on; one with other words
needs a ``--run_dir`` of its own. Prints the table, and writes it as ``<run_dir>/study_<set>.md`` and each run's scores
as ``.csv``.
"""

import argparse
import csv
from pathlib import Path

from studies import finished, mean, paired, run_once, write_study

SCORES = ("hr@10", "ndcg@10", "hr@20", "ndcg@20")
REFERENCE = "SASRec: no contrastive loss"
SETS = {
    "ml100k": (),
    "retail": ("--config", "overlays/online_retail"),
    "office": ("--config", "overlays/amazon_office"),
}
PARTS = "--model.init_args.contrastive"
SEMANTICS = "--data.init_args.semantics.init_args"
TRAINED = {
    "GRU4Rec": ("gru4rec",),
    REFERENCE: ("sasrec",),
    "CL4SRec": ("cl4srec",),
    "DuoRec": ("duorec",),
    "SRA-CL": ("sra_cl",),
    "SRA-CL without L_CS": ("sra_cl", f"{PARTS}.inter.init_args.weight=0"),
    "SRA-CL without L_IS": ("sra_cl", f"{PARTS}.intra.init_args.weight=0"),
    "SRA-CL, random neighbours": ("sra_cl", f"{SEMANTICS}.neighbors=random"),
    "SRA-CL, one neighbour by chance": ("sra_cl", f"{PARTS}.inter.init_args.synthesizer=UniformSample"),
    "SRA-CL, other users' sequences": ("sra_cl", f"{SEMANTICS}.exclude_same_user=true"),
}
COUNTED = {"popularity": "popularity", "first-order Markov": "markov"}


def read(folder: Path) -> dict[str, float]:
    """The test scores of a run, in percent."""
    with (folder / "results.csv").open(newline="") as stream:
        row = next(csv.DictReader(stream))
    return {score: float(row[f"{score} %"]) for score in SCORES}


def name_of(args: argparse.Namespace, arm: str, seed: int) -> str:
    words = "".join(c if c.isalnum() else " " for c in arm).split()
    return "_".join([args.set, *words, str(seed)])


def data_words(args: argparse.Namespace, method: str) -> list[str]:
    words = ["--config", f"recommenders/{method}_ml100k", *SETS[args.set]]
    words.append(f"--data.init_args.max_length={args.max_length}")
    return words if args.recent is None else [*words, f"--data.init_args.recent={args.recent}"]


def train(args: argparse.Namespace, arm: str, seed: int) -> None:
    """Fits and tests one method, unless it is done."""
    method, *words = TRAINED[arm]
    words = [*data_words(args, method), *words]
    if method == "sra_cl":
        words += [f"{SEMANTICS}.{word}" for word in args.semantics]
    if method != "gru4rec":
        words += [f"--model.init_args.encoder.init_args.layers={args.layers}"]
    words += [f"--model.init_args.encoder.init_args.max_length={args.max_length}"]
    words += [f"--trainer.max_epochs={args.epochs}", *args.more]
    run_once("fit", args.run_dir, name_of(args, arm, seed), seed, words)


def table(scores: dict[str, dict[int, dict[str, float]]], seeds: list[int]) -> str:
    """Markdown: mean (standard deviation) of each method, and differences to the reference paired by seed."""
    lines = [f"Percent of test users, mean (standard deviation) over seeds {', '.join(map(str, seeds))}; Δ: paired by "
             f"seed with '{REFERENCE}', with 95% t-intervals.\n"]  # fmt: skip
    lines.append("| method | " + " | ".join(f"{s.replace('hr', 'HR').replace('ndcg', 'NDCG')} | Δ" for s in SCORES))
    lines[-1] += " |\n| --- |" + " --- |" * 2 * len(SCORES)
    for arm, runs in scores.items():
        cells = []
        for score in SCORES:
            if arm in COUNTED:
                cells += [f"{runs[seeds[0]][score]:.2f}", ""]
                continue
            values, reference = ([some[seed][score] for seed in seeds] for some in (runs, scores[REFERENCE]))
            cells += [mean(values), "" if arm == REFERENCE else paired(values, reference)]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=sorted(SETS), default="ml100k")
    parser.add_argument("--methods", nargs="+", default=list(TRAINED), choices=list(TRAINED), metavar="METHOD",
                        help=f"any of: {'; '.join(TRAINED)}")  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=100, help="at most; the official stopping rule may end a run")
    parser.add_argument("--layers", type=int, default=2, help="blocks of SASRec")
    parser.add_argument("--max_length", type=int, default=20, help="items that a model sees")
    parser.add_argument("--recent", type=int, help="use only as many interactions of each user, the last")
    parser.add_argument("--semantics", nargs="*", default=[], metavar="KEY=VALUE",
                        help="of SRA-CL's semantics, such as encoder.init_args.model=FOLDER")  # fmt: skip
    parser.add_argument("--run_dir", default="runs/recommenders_study")
    parser.add_argument("--more", nargs=argparse.REMAINDER, default=[], help="further words for every run, such as "
                        "--trainer.accelerator=gpu; last, since all that follows is taken")  # fmt: skip
    args = parser.parse_args()
    for arm, method in COUNTED.items():
        run_once("test", args.run_dir, name_of(args, arm, args.seeds[0]), args.seeds[0], data_words(args, method))
    for seed in args.seeds:
        for arm in args.methods:
            train(args, arm, seed)
    scores: dict[str, dict[int, dict[str, float]]] = {}
    for arm in [*COUNTED, *args.methods]:
        runs = {seed: finished(args.run_dir, name_of(args, arm, seed)) for seed in args.seeds}
        scores[arm] = {seed: read(folder) for seed, folder in runs.items() if folder is not None}
    write_study(Path(args.run_dir) / f"study_{args.set}.csv", scores, table(scores, args.seeds))


if __name__ == "__main__":
    main()
