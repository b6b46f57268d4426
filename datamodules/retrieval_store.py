"""What retrieval data are: a corpus of documents by row, queries, judgements, and examples to train on."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from datamodules.batches import Document

Qrels = dict[str, dict[str, int]]
"""The grade of a document for a query: query id -> document id -> grade, 0 or more."""


class Corpus(ABC):
    """Documents by row. ``ids`` are their names, one each, ``sizes`` [N] int64 their rough lengths, to sort by."""

    ids: Sequence[str]
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def __getitem__(self, row: int) -> Document: ...

    @abstractmethod
    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """The rows of documents by their ids, [len(ids)] int64, -1 where there is no such document."""

    def documents(self, rows: Iterable[int]) -> list[Document]:
        return [self[int(row)] for row in rows]


class ListCorpus(Corpus):
    """Documents in memory.

    Raises:
        ValueError: if two documents share an id or one has no text.
    """

    def __init__(self, ids: Sequence[str], documents: Sequence[Document]) -> None:
        self.ids, self.stored = ids, documents
        self._row = {id: row for row, id in enumerate(ids)}
        if len(self._row) < len(documents):
            twice = next(id for row, id in enumerate(ids) if self._row[id] != row)
            raise ValueError(f"{len(documents) - len(self._row)} documents have another's id, the first {twice!r}")
        for id, document in zip(ids, documents, strict=True):
            if not any(map(str.strip, document.values())):
                raise ValueError(f"document {id!r} has no text: leave it out")

    def __getitem__(self, row: int) -> Document:
        return self.stored[row]

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        return np.array([self._row.get(id, -1) for id in ids], np.int64)

    @cached_property
    def sizes(self) -> np.ndarray:  # type: ignore[override]
        return np.array([sum(map(len, document.values())) for document in self.stored], np.int64)


@dataclass(frozen=True)
class Queries:
    """Queries by row: their ids and texts."""

    ids: Sequence[str]
    text: Sequence[str]

    def __len__(self) -> int:
        return len(self.ids)


class Passage(NamedTuple):
    """A document of an example: its row in the corpus, -1 where it has none, and itself, None to be read from there."""

    row: int
    document: Document | None = None


class Example(NamedTuple):
    """A query to train on, with documents that answer it and documents that do not."""

    id: str
    query: str
    positive: Sequence[Passage]
    negative: Sequence[Passage]


class Examples(ABC):
    """Examples by index. ``count`` [N, 2] int64 is how many positives and negatives each has; ``ids`` of its query."""

    ids: Sequence[str]
    count: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def __getitem__(self, index: int) -> Example: ...


class RowExamples(Examples):
    """Examples whose documents are rows of a corpus: those of example i are ``positive[i]`` and ``negative[i]``."""

    def __init__(
        self, queries: Queries, positive: Sequence[np.ndarray], negative: Sequence[np.ndarray] | None = None
    ) -> None:
        self.queries, self.ids = queries, queries.ids
        parts = positive, [np.empty(0, np.int64)] * len(positive) if negative is None else negative
        self.flat = [np.concatenate([np.empty(0, np.int64), *rows]).astype(np.int64) for rows in parts]
        self.count = np.array([[len(rows) for rows in each] for each in parts], np.int64).T
        self.start = [np.concatenate([[0], np.cumsum(count)]) for count in self.count.T]

    def __getitem__(self, index: int) -> Example:
        positive, negative = (
            [Passage(int(row)) for row in flat[start[index] : start[index + 1]]]
            for flat, start in zip(self.flat, self.start, strict=True)
        )
        return Example(self.ids[index], self.queries.text[index], positive, negative)


@dataclass(frozen=True)
class RetrievalData:
    """A corpus with, by the name of a split, queries and their judgements.

    ``examples`` are to train on; None where they are to be made of the judgements of a split.
    """

    corpus: Corpus
    queries: dict[str, Queries]
    qrels: dict[str, Qrels]
    examples: Examples | None = None


class RetrievalSet(ABC):
    """Where retrieval data come from."""

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    @abstractmethod
    def load(self) -> RetrievalData:
        """Reads the data. Raises where they are missing or malformed, naming file and line or id."""
