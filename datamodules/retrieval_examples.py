"""Examples to train a retriever on: made of judgements, read from Tevatron's JSON lines, or of MS MARCO's triples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.batches import Document
from datamodules.interactions import text_lines
from datamodules.retrieval_files import Decoded, identifier, string
from datamodules.retrieval_store import Corpus, Example, Examples, Passage, Qrels, Queries, RowExamples
from datamodules.text_lines import index_lines, json_object, unpacked

TEXT_KEYS = ("query_id", "query", "positive_passages", "negative_passages")
ID_KEYS = ("query_id", "query_text", "positive_document_ids", "negative_document_ids")


def judged_examples(corpus: Corpus, queries: Queries, qrels: Qrels) -> RowExamples:
    """Each query with the documents of grade 1 or more, without negatives; queries that have none are left out."""
    asked = [[id for id, grade in qrels[query].items() if grade > 0] for query in queries.ids]
    rows = corpus.rows([id for ids in asked for id in ids])
    each = np.split(rows, np.cumsum([len(ids) for ids in asked])[:-1])
    positive = [found[found >= 0] for found in each]
    kept = [at for at, rows in enumerate(positive) if len(rows)]
    chosen = Queries([queries.ids[at] for at in kept], [queries.text[at] for at in kept])
    return RowExamples(chosen, [positive[at] for at in kept])


def read_examples(path: Path, corpus: Corpus | None, max_missing: float = 0.0) -> Examples:
    """Tevatron's training data, JSON lines, ``.gz`` or not.

    Either with the passages' texts (``query_id``, ``query``, ``positive_passages``, ``negative_passages``, which are
    objects with ``docid``, ``title`` and ``text``) or with their ids (``query_id``, ``query_text``,
    ``positive_document_ids``, ``negative_document_ids``), for which ``corpus`` must hold the documents.

    Raises:
        ValueError: naming line and query, for other keys, empty texts, a query without positives, and ids that more
            than the share ``max_missing`` of documents have no place in the corpus.
    """
    first = next(text_lines(unpacked(path)), None)
    if first is None:
        raise ValueError(f"{path} holds no lines")
    row = json_object(first[1], f"{path}, line {first[0]}")
    if "positive_document_ids" in row:
        if corpus is None:
            raise ValueError(f"{path} names its passages by id: give the corpus that holds them")
        return _by_id(path, corpus, max_missing)
    return LineExamples(path, corpus)


class LineExamples(Examples):
    """Examples on the lines of a file with the passages' texts, read when asked for."""

    def __init__(self, path: Path, corpus: Corpus | None) -> None:
        self.lines, self.corpus = index_lines(path, "tevatron examples", _described), corpus
        self.ids, self.count = Decoded(self.lines.id), self.lines.number

    def __getitem__(self, index: int) -> Example:
        row = json_object(self.lines[index], self.lines.where(index))
        return Example(str(row["query_id"]), row["query"], *(self._passages(row[key]) for key in TEXT_KEYS[2:]))

    def _passages(self, found: list[dict[str, Any]]) -> list[Passage]:
        ids = [str(passage["docid"]) for passage in found]
        rows = [-1] * len(ids) if self.corpus is None else self.corpus.rows(ids).tolist()
        return [Passage(row, _document(passage)) for row, passage in zip(rows, found, strict=True)]


def _document(passage: dict[str, Any]) -> Document:
    return {"title": passage.get("title") or "", "text": passage["text"]}


def _described(line: str, where: str) -> tuple[str, int, int]:
    row, id = _checked(line, where, TEXT_KEYS)
    for key in TEXT_KEYS[2:]:
        for passage in row[key]:
            if not isinstance(passage, dict) or not {"docid", "text"} <= set(passage):
                have = ", ".join(passage) if isinstance(passage, dict) else repr(passage)
                raise ValueError(f"{where}, query {id!r}: {key} are objects with docid, title, text; got {have}")
            identifier(passage["docid"], where)
            if not (string(passage, "title", where) + string(passage, "text", where)).strip():
                raise ValueError(f"{where}, query {id!r}: passage {passage['docid']!r} of {key} has no text")
    return id, len(row[TEXT_KEYS[2]]), len(row[TEXT_KEYS[3]])


def _checked(line: str, where: str, keys: Sequence[str]) -> tuple[dict[str, Any], str]:
    """A line with a query and two lists, the first of which is not empty, and the query's id."""
    row = json_object(line, where)
    if not set(keys) <= set(row):
        raise ValueError(
            f"{where}: expected the keys {', '.join(TEXT_KEYS)} (or {', '.join(ID_KEYS)}); there are "
            f"{', '.join(row) or 'none'}"
        )
    id = identifier(row[keys[0]], where)
    if not string(row, keys[1], where).strip():
        raise ValueError(f"{where}: query {id!r} has no text")
    for key in keys[2:]:
        if not isinstance(row[key], list):
            raise ValueError(f"{where}: {key} of query {id!r} is {row[key]!r}; expected a list")
    if not row[keys[2]]:
        raise ValueError(f"{where}: {keys[2]} of query {id!r} is empty; leave such queries out")
    return row, id


def _by_id(path: Path, corpus: Corpus, max_missing: float) -> RowExamples:
    ids, text = [], []
    rows: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    named = missing = 0
    example = ""
    for number, line in text_lines(unpacked(path)):
        where = f"{path}, line {number}"
        row, id = _checked(line, where, ID_KEYS)
        for key, kept in zip(ID_KEYS[2:], rows, strict=True):
            wanted = [identifier(document, where) for document in row[key]]
            found = corpus.rows(wanted)
            known = found >= 0
            named, missing = named + len(wanted), missing + int((~known).sum())
            if not example and not known.all():
                example = f"{wanted[int(known.argmin())]!r} of query {id!r}"
            kept.append(found[known])
        ids.append(id)
        text.append(row[ID_KEYS[1]])
    check_missing(f"{path}: documents are not in the corpus", missing, named, example, max_missing)
    left = [at for at, positive in enumerate(rows[0]) if len(positive)]
    chosen = Queries([ids[at] for at in left], [text[at] for at in left])
    return RowExamples(chosen, [rows[0][at] for at in left], [rows[1][at] for at in left])


def check_missing(what: str, missing: int, of: int, example: str, max_missing: float) -> None:
    """Raises ``ValueError`` if more than the share ``max_missing`` is missing, and warns if less is."""
    if not missing:
        return
    told = f"{what}: {missing:,} of {of:,}, such as {example}"
    if missing > max_missing * of:
        hint = " (are the ids of another kind?)" if missing == of else ""
        raise ValueError(f"{told}{hint}; correct the files, or allow that share by max_missing")
    rank_zero_warn(told)


def triple_examples(path: Path, corpus: Corpus, queries: dict[str, str]) -> RowExamples:
    """MS MARCO's triples of ids, lines ``query positive negative``: the distinct passages of each query, by row."""
    name = Queries(list(queries), list(queries.values()))
    number = {id: at for at, id in enumerate(name.ids)}
    parts: list[np.ndarray] = []
    cells: list[list[str]] = []

    def put_away() -> None:
        query, *documents = zip(*cells, strict=True)
        rows = np.stack([[number.get(id, -1) for id in query], *map(corpus.rows, documents)], 1)
        if (rows < 0).any():
            at, column = np.argwhere(rows < 0)[0].tolist()
            raise ValueError(f"{path}: there is no {('query', 'passage', 'passage')[column]} {cells[at][column]!r}")
        parts.append(rows.astype(np.int32))
        cells.clear()

    for line, text in text_lines(unpacked(path)):
        cells.append(text.split())
        if len(cells[-1]) != 3:
            raise ValueError(f"{path}, line {line}: expected the ids of query, positive, negative, got {text[:60]!r}")
        if len(cells) == 1 << 20:
            put_away()
    if cells:
        put_away()
    if not parts:
        raise ValueError(f"{path} holds no triples")
    rows = np.concatenate(parts)
    present = np.unique(rows[:, 0])
    chosen = Queries([name.ids[at] for at in present], [name.text[at] for at in present])
    return RowExamples(chosen, *(_grouped(rows[:, 0], rows[:, column], present) for column in (1, 2)))


def _grouped(query: np.ndarray, row: np.ndarray, present: np.ndarray) -> list[np.ndarray]:
    """The distinct rows of each query that is present, ascending."""
    order = np.lexsort((row, query))
    query, row = query[order], row[order]
    first = np.concatenate([[True], (np.diff(query) != 0) | (np.diff(row) != 0)])
    query, row = query[first], row[first]
    return np.split(row, np.searchsorted(query, present[1:]))
