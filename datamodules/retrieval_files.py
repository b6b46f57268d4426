"""Files of retrieval data: corpora as JSON lines and TSV, queries, and judgements in BEIR's and TREC's form."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.batches import Document
from datamodules.interactions import text_lines
from datamodules.retrieval_store import Corpus, Qrels
from datamodules.text_lines import index_lines, json_object, unpacked

Empty = Literal["error", "skip"]
ReadDocument = Callable[[str, str], tuple[str, Document]]

DOCUMENT_KEYS = (("_id", "text"), ("docid", "text"), ("docid", "document_text"))
QUERY_KEYS = (("_id", "text"), ("query_id", "query"), ("query_id", "query_text"))


def json_document(line: str, where: str) -> tuple[str, Document]:
    """A document of BEIR's form (``_id``, ``title``, ``text``) or Tevatron's (``docid``, ``title``, ``text``;
    ``docid``, ``document_text``); the title may be missing."""
    id, text, row = _identified(line, where, DOCUMENT_KEYS)
    return id, {"title": string(row, "title", where), "text": text}


def tsv_document(line: str, where: str) -> tuple[str, Document]:
    """A document of MS MARCO's form: ``id<tab>text``, or ``id<tab>title<tab>text``."""
    id, *rest = line.split("\t")
    if not id.strip() or len(rest) not in (1, 2):
        raise ValueError(f"{where}: expected id<tab>text, got {line[:60]!r}")
    return id.strip(), {"title": rest[0] if len(rest) == 2 else "", "text": rest[-1]}


class LineCorpus(Corpus):
    """Documents on the lines of a file, read when asked for; ``.gz`` is unpacked into the cache.

    Args:
        path: the file.
        read: makes a document of a line.
        empty: what to do about documents without any text: an error, or to leave them out with a warning.

    Raises:
        ValueError: naming line or id, where the file is malformed, an id comes twice or a document is empty.
    """

    def __init__(self, path: Path, read: ReadDocument = json_document, empty: Empty = "error") -> None:
        def describe(line: str, where: str) -> tuple[str, int]:
            id, document = read(line, where)
            return id, sum(len(field.strip()) for field in document.values())

        self.lines, self.read = index_lines(path, read.__name__, describe), read
        if repeated := self.lines.repeated():
            raise ValueError(
                f"{path}: {len(repeated):,} documents have the id of another, the first {repeated[0]!r}: keep one each"
            )
        self._id, self._order, self.sizes = self.lines.id, self.lines.order, self.lines.number[:, 0]
        self._line: np.ndarray | None = None
        full = np.flatnonzero(self.sizes)
        if gone := len(self.sizes) - len(full):
            first = self.lines.id[int(np.argmin(self.sizes))].decode()
            told = f"{path}: {gone:,} documents have no text, the first {first!r}"
            if empty == "error":
                raise ValueError(f"{told}; correct them, or leave them out by empty: skip")
            rank_zero_warn(f"{told}: they are left out")
            self._line, self._id, self.sizes = full, self.lines.id[full], self.sizes[full]
            self._order = np.argsort(self._id, kind="stable")
        self.ids, self._given = Decoded(self._id), (path, read, empty)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._given  # a worker maps the same files instead of getting copies

    def __getitem__(self, row: int) -> Document:
        line = row if self._line is None else int(self._line[row])
        return self.read(self.lines[line].rstrip("\r\n"), self.lines.where(line))[1]

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        encoded = [id.encode() for id in ids]
        width = self._id.dtype.itemsize
        wanted = np.array(encoded, self._id.dtype)  # cut to the width of the ids, or searchsorted would widen them all
        place = np.searchsorted(self._id, wanted, sorter=self._order)
        row = self._order[np.minimum(place, len(self._id) - 1)]
        known = (self._id[row] == wanted) & (np.array([len(id) for id in encoded], np.int64) <= width)
        return np.where(known, row, -1).astype(np.int64)


class Decoded(Sequence[str]):
    """An array of UTF-8 bytes as a sequence of strings."""

    def __init__(self, encoded: np.ndarray) -> None:
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, at: Any) -> Any:
        found = self.encoded[at]
        return [id.decode() for id in found] if isinstance(found, np.ndarray) else found.decode()


def read_queries(path: Path) -> dict[str, str]:
    """Texts by query id: JSON lines with ``_id`` and ``text`` or Tevatron's keys, or ``id<tab>text`` in a ``.tsv``."""
    found: dict[str, str] = {}
    plain = unpacked(path)
    for number, line in text_lines(plain):
        where = f"{path}, line {number}"
        if plain.suffix == ".tsv":
            id, document = tsv_document(line, where)
            text = document["text"]
            if document["title"]:
                raise ValueError(f"{where}: expected id<tab>text, got another tab in {line[:60]!r}")
        else:
            id, text, _ = _identified(line, where, QUERY_KEYS)
        if id in found:
            raise ValueError(f"{where}: query {id!r} comes a second time")
        if not text.strip():
            raise ValueError(f"{where}: query {id!r} has no text")
        found[id] = text.strip()
    if not found:
        raise ValueError(f"{path} holds no queries")
    return found


def read_qrels(path: Path) -> Qrels:
    """Judgements: BEIR's ``query, document, grade`` under a header, or TREC's ``query 0 document grade`` without one.

    A file of BEIR's form without its header is read whole, with a warning; negative grades count as 0, and say so.
    """
    found: Qrels = {}
    negative = 0
    for number, line in text_lines(unpacked(path)):
        where = f"{path}, line {number}"
        cells = line.split("\t") if line.count("\t") >= 2 else line.split()
        if len(cells) not in (3, 4):
            raise ValueError(f"{where}: expected query, document, grade or query, 0, document, grade, got {line!r}")
        query, document, grade = cells[0].strip(), cells[-2].strip(), _number(cells[-1])
        if not found and number == 1:
            if grade is None:
                continue
            if len(cells) == 3:
                rank_zero_warn(f"{path} has no header line; its first line is read as a judgement")
        if grade is None or not grade.is_integer():
            raise ValueError(f"{where}: grade {cells[-1]!r} is not an integer")
        if not query or not document:
            raise ValueError(f"{where}: the id of a query or document is empty in {line!r}")
        negative += grade < 0
        grades, grade = found.setdefault(query, {}), max(int(grade), 0)
        if grades.setdefault(document, grade) != grade:
            raise ValueError(f"{where}: query {query!r} judges document {document!r} a second time, differently")
    if not found:
        raise ValueError(f"{path} holds no judgements")
    if negative:
        rank_zero_warn(f"{path}: {negative:,} negative grades count as 0")
    return found


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _identified(line: str, where: str, keys: Iterable[tuple[str, str]]) -> tuple[str, str, dict[str, Any]]:
    """Id and text of a line of JSON by the first pair of keys that it has, and all of it."""
    row = json_object(line, where)
    for id, text in keys:
        if id in row and text in row:
            return identifier(row[id], where), string(row, text, where), row
    expected = " or ".join(f"{id} and {text}" for id, text in keys)
    raise ValueError(f"{where}: expected the keys {expected}; there are {', '.join(row) or 'none'}")


def identifier(value: Any, where: str) -> str:
    """An id as a string: it may be written as an integer."""
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value):
        raise ValueError(f"{where}: {value!r} is no id; ids are strings or integers")
    return str(value)


def string(row: dict[str, Any], name: str, where: str) -> str:
    """A field that must be text; missing and null are empty."""
    value = row.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{where}: {name} is {value!r}; expected text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: {name} holds what is no text ({error})") from error
    return value
