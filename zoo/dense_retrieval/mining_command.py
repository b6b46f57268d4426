"""``python -m zoo mine``: passages that look like answers and are none, to train on as hard negatives."""

import argparse
import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from datamodules.search import Hits
from datamodules.sources import atomic
from datamodules.streams import key, uniform
from zoo.console import run_command
from zoo.experiments import data_of

AT_ONCE = 512  # queries


def hard_negatives(
    row: np.ndarray,
    score: np.ndarray,
    positive: Collection[int],
    count: int,
    skip: int = 0,
    margin: float | None = None,
    seed: int = 0,
) -> np.ndarray:
    """At most ``count`` of the documents that a search found, at random, best first, [n] int64.

    Args:
        row: documents, best first, [k]; -1 is none.
        score: theirs, [k].
        positive: documents that answer the query; left out.
        count: how many to draw of those that are left.
        skip: leave out as many of the best first, which may be answers that nobody judged.
        margin: leave out those that score above the best positive's score minus this, likewise. A positive that the
            search did not find scores at most what the last document found does.
        seed: of the draw.
    """
    row, score = row[row >= 0], score[row >= 0]
    known = np.isin(row, list(positive))
    keep = ~known
    keep[np.flatnonzero(keep)[:skip]] = False
    if margin is not None and len(row):
        keep &= score <= (score[known].max() if known.any() else score[-1]) - margin
    left = np.flatnonzero(keep)
    drawn = np.argsort(uniform(key(seed), len(left)), kind="stable")[:count]
    return row[left[np.sort(drawn)]]


def run(args: Sequence[str]) -> None:
    """Run the command; ``args`` are the command line's words after ``mine``. Exits with 2 after an error."""
    run_command(_parser(), args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m zoo mine",
        description="Search the corpus for the training queries of an experiment and write them with hard negatives, "
        "as JSON lines in Tevatron's form that data take as negatives.",
    )
    parser.add_argument("--config", required=True, help="experiment whose data: are meant, by name or path")
    parser.add_argument("--by", required=True, help="bm25, a run file, or the checkpoint or run folder of a retriever")
    parser.add_argument(
        "--index", metavar="DIR", help="folder of a retriever's vectors; default: index in its run folder"
    )
    parser.add_argument("--depth", type=int, default=200, help="documents that are searched for; default: 200")
    parser.add_argument("--negatives", type=int, default=30, help="drawn of them at random; default: 30")
    parser.add_argument("--skip", type=int, default=0, help="leave out the best ones, as many; default: 0")
    parser.add_argument("--margin", type=float, help="leave out what scores above the positive's score minus this")
    parser.add_argument("--seed", type=int, default=0, help="of the draw; default: 0")
    parser.add_argument("--out", required=True, metavar="JSONL", help="one query with its passages a line")
    parser.set_defaults(command=_mine)
    return parser


def _mine(given: argparse.Namespace) -> None:
    for name, least in (("depth", 1), ("negatives", 1), ("skip", 0)):
        if getattr(given, name) < least:
            raise ValueError(f"--{name} {getattr(given, name)}: must be at least {least}")
    data = data_of(given.config, "Retrieval")
    data.group, data.negatives = 1, None  # the examples before any were mined
    examples, corpus = data.examples, data.data.corpus
    find, lines, bare, total = _finder(given, corpus, examples.ids), 0, 0, 0
    with atomic(Path(given.out)) as temporary, temporary.open("w", encoding="utf-8") as out:
        for start in track(range(0, len(examples), AT_ONCE), "mining"):
            part = [examples[at] for at in range(start, min(start + AT_ONCE, len(examples)))]
            score, row = (hits.numpy() for hits in find([x.id for x in part], [x.query for x in part]))
            for at, example in enumerate(part):
                positive = {passage.row for passage in example.positive}
                stream = int(key(given.seed, start + at)) >> 1
                chosen = hard_negatives(row[at], score[at], positive, given.negatives, given.skip, given.margin, stream)
                total, lines, bare = total + len(chosen), lines + bool(len(chosen)), bare + (not len(chosen))
                if len(chosen):
                    out.write(json.dumps(_line(example, chosen, corpus), ensure_ascii=False) + "\n")
    if not lines:
        raise ValueError("no query has any negative left: raise --depth, or lower --skip or --margin")
    print(f"{lines:,} queries with {total / lines:.1f} negatives each in {given.out}")
    if bare:
        print(f"{bare:,} queries are left out: nothing that was found for them remains")


def _finder(
    given: argparse.Namespace, corpus: Any, queries: Sequence[str]
) -> Callable[[Sequence[str], Sequence[str]], Hits]:
    """Finds ``depth`` documents, as scores and corpus rows, for ids and texts of queries."""
    if given.by == "bm25":
        from zoo.dense_retrieval.lexical import TEMPLATE, LexicalIndex
        from zoo.dense_retrieval.prompts import fill

        lexical = LexicalIndex(fill(TEMPLATE, corpus[row]).text for row in range(len(corpus)))
        return lambda ids, texts: lexical.search(texts, given.depth)
    if Path(given.by).is_file() and Path(given.by).suffix != ".ckpt":
        from zoo.dense_retrieval.runs import hits_of, read_run

        scored = read_run(given.by)
        if not scored.keys() & set(queries):
            raise ValueError(f"the run has none of the training queries, such as {queries[0]!r}: make it for those")
        return lambda ids, texts: hits_of(scored, ids, corpus, given.depth)
    from zoo.dense_retrieval.searching import load_retriever

    searcher = load_retriever(given.by, given.config, given.index)
    return lambda ids, texts: searcher.rows(texts, given.depth)


def _line(example: Any, negatives: np.ndarray, corpus: Any) -> dict[str, Any]:
    def passage(row: int) -> dict[str, str]:
        document = corpus[row]
        return {"docid": corpus.ids[row], "title": document.get("title", ""), "text": document.get("text", "")}

    own = [
        {"docid": f"{example.id}+{at}", **found.document} if found.row < 0 else passage(found.row)
        for at, found in enumerate(example.positive)
    ]
    return {
        "query_id": example.id,
        "query": example.query,
        "positive_passages": own,
        "negative_passages": [passage(int(row)) for row in negatives],
    }
