"""Random copies and relatives of training prefixes, for contrastive losses; each a pure function of keys."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, Protocol

import numpy as np

from datamodules.sequence_store import Prefixes, SequenceStore, windows
from datamodules.streams import key, uniform

Field = Literal["views", "neighbors", "same_target"]
Scope = Literal["train", "official"]


class NeighborTables(Protocol):
    """What views need of semantic tables."""

    @property
    def item_neighbors(self) -> np.ndarray:
        """[V + 1, k], of each item others like it; row 0 is padding's."""

    @property
    def pool_neighbors(self) -> np.ndarray:
        """[M, k], of each prefix of the pool others like it."""


class SemanticSource(ABC):
    """Makes tables for a store; ``pool_scope`` says which prefixes they have, see ``SequentialRecommendation.pool``."""

    pool_scope: Scope

    @abstractmethod
    def tables(self, store: SequenceStore, pool: Prefixes) -> NeighborTables:
        """The tables of all items and of the pool's prefixes; made once, then read from a cache."""


class View(ABC):
    """Fills one field of ``SequenceBatch``."""

    field: ClassVar[Field]

    @abstractmethod
    def prepare(self, store: SequenceStore, pool: Prefixes, trained: np.ndarray, tables: NeighborTables | None) -> None:
        """Takes what it needs, and checks it; ``trained`` [samples] int64 are the pool's rows that are trained on."""

    @abstractmethod
    def __call__(self, prefix: np.ndarray, item_seq: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """The field, int64, for a batch: ``prefix`` [B] rows of the pool, ``item_seq`` [B, L], ``keys`` [B] uint64."""


class Substitute(View):
    """Two copies of a prefix in which items gave way to similar ones (SRA-CL, arXiv 2503.04162, section 3.4).

    Each item, on its own, is replaced with ``probability`` by one drawn from its row of the table of similar items.

    Args:
        probability: of an item to be replaced.
        exact: replace instead that share of a prefix's items, to the nearest whole number (the paper's wording; the
            official code is independent draws).
    """

    field = "views"

    def __init__(self, probability: float = 0.2, exact: bool = False) -> None:
        self.probability, self.exact = _fraction("Substitute.probability", probability), exact

    def prepare(self, store: SequenceStore, pool: Prefixes, trained: np.ndarray, tables: NeighborTables | None) -> None:
        if tables is None:
            raise ValueError("Substitute needs the table of similar items: give semantics")
        table = tables.item_neighbors
        _check_table("item_neighbors", table, store.num_items + 1, "num_items + 1")
        wrong = (table[1:] < 1) | (table[1:] > store.num_items)
        if wrong.any():
            item = int(wrong.any(1).argmax()) + 1
            raise ValueError(
                f"item_neighbors: item {item} ({store.item_ids[item]!r}) has a neighbour outside [1, {store.num_items}]"
            )
        self.table = table

    def __call__(self, prefix: np.ndarray, item_seq: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """[B, 2, L]."""
        size, k = item_seq.shape[1], self.table.shape[1]
        draws = uniform(key_of_copies(keys), 2 * size)  # [B, 2, 2L]
        item = np.broadcast_to(item_seq[:, None], (len(item_seq), 2, size))
        real = item > 0
        if self.exact:
            count = np.rint(self.probability * real.sum(-1)).astype(np.int64)
            chosen = smallest(np.where(real, draws[..., :size], np.inf), count)
        else:
            chosen = (draws[..., :size] < self.probability) & real
        drawn = self.table[item, (draws[..., size:] * k).astype(np.int64)]
        return np.where(chosen, drawn, item)


class CropMaskReorder(View):
    """Two copies of a prefix, each cropped, masked or reordered, with equal chance (CL4SRec, arXiv 2010.14395).

    Of n items, a crop keeps ``floor(crop * n)`` in a row, at least one; a mask blanks ``floor(mask * n)`` of them,
    never the last; a reorder shuffles ``floor(reorder * n)`` in a row. A blank is padding: the paper's learned [mask]
    item would be one more row of the item table.

    Args:
        crop: share of the items that a crop keeps.
        mask: share that a mask blanks.
        reorder: share that a reorder shuffles.
    """

    field = "views"

    def __init__(self, crop: float = 0.6, mask: float = 0.3, reorder: float = 0.6) -> None:
        self.crop = _fraction("CropMaskReorder.crop", crop)
        self.mask = _fraction("CropMaskReorder.mask", mask)
        self.reorder = _fraction("CropMaskReorder.reorder", reorder)

    def prepare(self, store: SequenceStore, pool: Prefixes, trained: np.ndarray, tables: NeighborTables | None) -> None:
        pass

    def __call__(self, prefix: np.ndarray, item_seq: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """[B, 2, L]."""
        size = item_seq.shape[1]
        item = np.repeat(item_seq, 2, 0)
        draws = uniform(key_of_copies(keys).reshape(-1), size + 2)
        which = (draws[:, 0] * 3).astype(np.int64)
        for number, change in enumerate((self.cropped, self.masked, self.reordered)):
            rows = which == number
            item[rows] = change(item[rows], draws[rows, 1:2], draws[rows, 2:])
        return item.reshape(len(item_seq), 2, size)

    def cropped(self, item: np.ndarray, place: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """``item`` [B, L] without what lies outside the crop; ``place`` [B, 1] in [0, 1) says where it starts."""
        size, n = item.shape[1], (item > 0).sum(1, keepdims=True)
        kept = np.maximum(np.floor(self.crop * n).astype(np.int64), 1)
        start = size - n + (place * (n - kept + 1)).astype(np.int64)
        position = np.arange(size) - (size - kept)
        return np.where(position >= 0, np.take_along_axis(item, np.maximum(start + position, 0), 1), 0)

    def masked(self, item: np.ndarray, place: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """``item`` [B, L] with those of the smallest ``draws`` [B, L] blanked."""
        draws = np.where(item > 0, draws, np.inf)
        draws[:, -1] = np.inf
        n = (item > 0).sum(1)
        return np.where(smallest(draws, np.minimum(np.floor(self.mask * n), n - 1).astype(np.int64)), 0, item)

    def reordered(self, item: np.ndarray, place: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """``item`` [B, L] with a part in the order of its ``draws`` [B, L]; ``place`` [B, 1] says where it starts."""
        size, n = item.shape[1], (item > 0).sum(1, keepdims=True)
        moved = np.floor(self.reorder * n).astype(np.int64)
        start = size - n + (place * (n - moved + 1)).astype(np.int64)
        column = np.arange(size)
        inside = (column >= start) & (column < start + moved)
        order = np.argsort(np.where(inside, start + draws * moved, column), 1, kind="stable")
        return np.take_along_axis(item, order, 1)


class SameTarget(View):
    """Another training prefix with the same target, uniformly, or the prefix itself (DuoRec, arXiv 2110.05730)."""

    field = "same_target"

    def prepare(self, store: SequenceStore, pool: Prefixes, trained: np.ndarray, tables: NeighborTables | None) -> None:
        self.item, self.pool, self.total = store.item, pool, len(pool)
        target = store.item[pool.bounds(trained)[1]].astype(np.int64)
        self.sorted = np.sort(target * self.total + trained)  # by target, then by row

    def __call__(self, prefix: np.ndarray, item_seq: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """[B, L]."""
        target = self.item[self.pool.bounds(prefix)[1]].astype(np.int64)
        first, own, last = (np.searchsorted(self.sorted, target * self.total + row) for row in (0, prefix, self.total))
        others = np.maximum(last - first - 1, 0)
        drawn = first + (uniform(keys, 1)[:, 0] * others).astype(np.int64)
        drawn = np.where(others > 0, drawn + (drawn >= own), own)
        start, end = self.pool.bounds(self.sorted[drawn] % self.total)
        return windows(self.item, start, end, item_seq.shape[1])


class Neighbors(View):
    """The k most similar prefixes of the pool (SRA-CL, arXiv 2503.04162, section 3.3).

    Args:
        k: of the table's neighbours, which come nearest first.
    """

    field = "neighbors"

    def __init__(self, k: int = 10) -> None:
        if k < 1:
            raise ValueError(f"Neighbors.k={k}: must be at least 1")
        self.k = k

    def prepare(self, store: SequenceStore, pool: Prefixes, trained: np.ndarray, tables: NeighborTables | None) -> None:
        if tables is None:
            raise ValueError("Neighbors needs the table of similar prefixes: give semantics")
        table = tables.pool_neighbors
        _check_table("pool_neighbors", table, len(pool), "number of prefixes")
        if self.k > table.shape[1]:
            raise ValueError(f"Neighbors.k={self.k}: the table pool_neighbors has {table.shape[1]} neighbours")
        wrong = (table < 0) | (table >= len(pool))
        if wrong.any():
            raise ValueError(
                f"pool_neighbors: prefix {int(wrong.any(1).argmax())} has a neighbour outside [0, {len(pool)})"
            )
        self.item, self.pool, self.table = store.item, pool, table

    def __call__(self, prefix: np.ndarray, item_seq: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """[B, k, L]."""
        start, end = self.pool.bounds(self.table[prefix, : self.k].astype(np.int64))
        return windows(self.item, start, end, item_seq.shape[1])


def key_of_copies(keys: np.ndarray) -> np.ndarray:
    """Keys of two copies of each key [B]: [B, 2] uint64."""
    return key(0, keys[:, None], np.arange(2))


def smallest(draws: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Where the ``count`` [...] smallest of the last dimension of ``draws`` [..., L] stand: bool [..., L]."""
    rank = np.argsort(np.argsort(draws, -1, kind="stable"), -1, kind="stable")
    return rank < count[..., None]


def _fraction(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value}: must lie in [0, 1]")
    return value


def _check_table(name: str, table: np.ndarray, rows: int, what: str) -> None:
    if table.ndim != 2 or len(table) != rows or not table.shape[1]:
        raise ValueError(f"{name} has shape {list(table.shape)}, expected [{rows}, k]: as many rows as the {what}")
