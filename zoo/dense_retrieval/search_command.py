"""``python -m zoo search``: passages for queries from the command line or from a file."""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from datamodules.search import Search
from datamodules.sources import atomic
from zoo.console import console, run_command
from zoo.dense_retrieval.searching import Hit, load_retriever

SHOWN = 20  # queries


def run(args: Sequence[str]) -> None:
    """Run the command; ``args`` are the command line's words after ``search``. Exits with 2 after an error."""
    run_command(_parser(), args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m zoo search",
        description="Answer queries with passages. The corpus is encoded once, into a folder that is used again.",
    )
    parser.add_argument("query", nargs="*", help="what to search")
    parser.add_argument("--queries", metavar="FILE", help="text file of further queries, one a line")
    parser.add_argument("--checkpoint", required=True, help=".ckpt file, run folder or name of the catalogue")
    parser.add_argument("--config", help="experiment whose data hold the corpus; default: the run's own")
    parser.add_argument("--index", metavar="DIR", help="folder of vectors; default: index in the run folder")
    parser.add_argument("--faiss", default="Flat", help="faiss index, such as Flat (exact), HNSW32 or IVF256,Flat")
    parser.add_argument("--device", default="auto", help="where the model runs; default: auto")
    parser.add_argument("--batch-size", type=int, default=64, help="texts a forward; default: 64")
    parser.add_argument("--k", type=int, default=5, help="passages to find for each query; default: 5")
    parser.add_argument("--out", metavar="CSV", help="write all that is found to this table")
    parser.set_defaults(command=_search)
    return parser


def _search(given: argparse.Namespace) -> None:
    queries = list(given.query)
    if given.queries is not None:
        lines = Path(given.queries).read_text(encoding="utf-8").splitlines()
        queries += [line.strip() for line in lines if line.strip()]
    if not queries:
        raise ValueError("there are no queries: give some behind the options, or --queries FILE")
    for name in ("k", "batch_size"):
        if getattr(given, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(given, name)}: must be at least 1")
    searcher = load_retriever(
        given.checkpoint, given.config, given.index, given.device, Search(index=given.faiss), given.batch_size
    )
    found = searcher.search(queries, given.k)
    if given.out is not None:
        _write(Path(given.out), queries, found)
    table = Table("query", "rank", "id", "title", "text", "score")
    for query, hits in list(zip(queries, found, strict=True))[:SHOWN]:
        for hit in hits:
            title, text = hit.document.get("title", ""), hit.document.get("text", "")
            first = query if hit.rank == 1 else ""
            table.add_row(first, str(hit.rank), hit.id, title, text[:200], f"{hit.score:.4f}")
    console().print(table)
    if len(queries) > SHOWN:
        print(f"the first {SHOWN} of {len(queries)} queries; --out writes all")


def _write(file: Path, queries: Sequence[str], found: Sequence[Sequence[Hit]]) -> None:
    with atomic(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(("query", "rank", "id", "title", "text", "score"))
        for query, hits in zip(queries, found, strict=True):
            for hit in hits:
                title, text = hit.document.get("title", ""), hit.document.get("text", "")
                writer.writerow((query, hit.rank, hit.id, title, text, hit.score))
