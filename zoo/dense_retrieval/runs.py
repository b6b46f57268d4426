"""Runs and judgements as the text files that retrieval tools exchange."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
import torch

from datamodules.search import Hits
from zoo.metrics.trec import Qrels, Run

Form = Literal["trec", "scores", "ranks"]
_COLUMNS = {"trec": 6, "scores": 3, "ranks": 3}


def write_run(out: TextIO, run: Run, tag: str = "zoo", form: Literal["trec", "scores"] = "trec") -> None:
    """Appends ``query Q0 document rank score tag`` lines, or ``query document score``, best first.

    Scores have the nine digits that tell any two float32 apart, since readers rank by score and rounding makes ties;
    equal ones go by document id, descending, which is trec_eval's order.

    Raises:
        ValueError: for an id with white space or without any character.
    """
    for query, found in run.items():
        ordered = sorted(found.items(), key=lambda hit: (hit[1], hit[0]), reverse=True)
        for rank, (document, score) in enumerate(ordered, 1):
            for what, id in (("query", query), ("document", document)):
                if len(id.split()) != 1 or id != id.strip():
                    raise ValueError(f"{what} id {id!r}: a run file is split at white space, so ids have none")
            if form == "trec":
                out.write(f"{query} Q0 {document} {rank} {score:.9g} {tag}\n")
            else:
                out.write(f"{query} {document} {score:.9g}\n")


def read_run(file: str | Path, form: Form | None = None) -> dict[str, dict[str, float]]:
    """Query id -> document id -> score.

    Args:
        file: a text file with columns at white space.
        form: ``trec`` (``query Q0 document rank score tag``, whose ranks are ignored), ``scores`` (``query document
            score``) or ``ranks`` (``query document rank``, with the negative rank as score); null for ``trec`` where
            there are 6 columns and ``scores`` where there are 3.

    Raises:
        ValueError: for a line that does not fit, and a document that comes twice for a query; both with the line.
    """
    run: dict[str, dict[str, float]] = {}
    for number, words in _lines(file):
        kind = form or {6: "trec", 3: "scores"}.get(len(words), "trec")
        if len(words) != _COLUMNS[kind]:
            raise ValueError(f"{file}, line {number}: {len(words)} columns, a run has 6 (TREC) or 3")
        document, value = (words[2], words[4]) if kind == "trec" else words[1:]
        try:
            score = -float(value) if kind == "ranks" else float(value)
        except ValueError:
            raise ValueError(f"{file}, line {number}: score {value!r} is no number") from None
        found = run.setdefault(words[0], {})
        if document in found:
            raise ValueError(f"{file}, line {number}: document {document!r} comes twice for query {words[0]!r}")
        found[document] = score
    return run


def hits_of(run: Run, queries: Sequence[str], corpus: Any, depth: int) -> Hits:
    """The first ``depth`` of a run for queries by id, as scores and corpus rows [Q, depth], -inf and -1 for none.

    Raises:
        ValueError: for a document that the corpus lacks.
    """
    score, row = np.full((len(queries), depth), -np.inf, np.float32), np.full((len(queries), depth), -1)
    for at, query in enumerate(queries):
        best = sorted(run.get(query, {}).items(), key=lambda hit: (hit[1], hit[0]), reverse=True)[:depth]
        rows = corpus.rows([document for document, _ in best])
        if (rows < 0).any():
            document = best[int((rows < 0).argmax())][0]
            raise ValueError(f"the run's document {document!r} of query {query!r} is not in the corpus")
        score[at, : len(best)], row[at, : len(best)] = [value for _, value in best], rows
    return torch.from_numpy(score), torch.from_numpy(row)


def write_qrels(out: TextIO, qrels: Qrels) -> None:
    """Appends ``query 0 document grade`` lines."""
    for query, grades in qrels.items():
        out.writelines(f"{query} 0 {document} {grade}\n" for document, grade in grades.items())


def _lines(file: str | Path) -> Iterator[tuple[int, list[str]]]:
    with Path(file).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if words := line.split():
                yield number, words
