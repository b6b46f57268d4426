"""Semantic tables for sequential recommendation: embeddings of items and prefixes, and their nearest neighbours."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.nn.functional import embedding_bag

from datamodules.item_texts import all_answers, item_ids, item_texts, prefix_ids, read_attributes
from datamodules.neighbors import nearest, random_others, same_group
from datamodules.sequence_store import Prefixes, SequenceStore
from datamodules.sequence_views import Scope, SemanticSource
from datamodules.sources import atomic, cache_dir

ROWS_AT_ONCE = 16384


class TextEncoder(ABC):
    """Makes vectors of texts."""

    @abstractmethod
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """[len(texts), D] float32, which may be a memory map."""


@dataclass(frozen=True)
class SemanticTables:
    """What texts say of V items and of the M prefixes of a pool; memory maps that training only reads.

    Attributes:
        item_embedding: [V + 1, D] float32, row 0, of padding, is zero.
        pool_embedding: [M, D] float32.
        item_neighbors: [V + 1, k] int64, the most similar items, first the most similar; row 0 is zero.
        pool_neighbors: [M, k] int64, the most similar prefixes, as rows of the pool.
        same_user: the share of prefixes' neighbours that are of the same user.
    """

    item_embedding: np.ndarray
    pool_embedding: np.ndarray
    item_neighbors: np.ndarray
    pool_neighbors: np.ndarray
    same_user: float


class Semantics(SemanticSource):
    """Makes the semantic tables of SRA-CL (arXiv 2503.04162) once and keeps them in the cache folder.

    There are three ways to what ``items`` and ``prefixes`` mean. Answers of a language model, ``.jsonl``, are
    embedded by ``encoder``. A ``.npy`` file holds embeddings: of items V + 1 rows in the order of their numbers, row 0
    for padding, of prefixes one row each; or rows in any order with their ids, one a line, in a file of the same name
    that ends in ``.ids``. Without either, ``encoder`` embeds the items' titles (or ``template``), and a prefix is the
    mean of its items.

    Args:
        encoder: a ``TextEncoder`` such as ``zoo.language.HuggingFaceEncoder``.
        items: ``.jsonl`` or ``.npy``; None for titles.
        prefixes: ``.jsonl`` or ``.npy``; None for the mean of items.
        attributes: file of item attributes for ``template``: ``.csv``, ``.tsv``, ``.item`` or ``.jsonl``.
        template: an item's text where ``items`` is None.
        k: neighbours of each item and prefix.
        neighbors: ``random`` ones in place of ``semantic`` ones show what similarity is worth.
        exclude_same_user: a prefix's neighbours are other users' (the paper's definition; the official code lets a
            user's other prefixes in, longer ones hold the target).
        pool_scope: ``train`` is a pool of the training prefixes; ``official`` adds those that end before the
            validation and the test target, as the official code does: validation targets leak into training.
        item_index: faiss index of the items; Flat is exact.
        pool_index: of the prefixes; ``IVF1024,Flat`` or so where there are hundreds of thousands.
        nprobe: lists that an IVF index visits.
        seed: of random neighbours.

    Raises:
        ValueError: for values out of range or that do not go together.
    """

    def __init__(
        self,
        encoder: TextEncoder | None = None,
        items: str | None = None,
        prefixes: str | None = None,
        attributes: str | None = None,
        template: str = "{title}",
        k: int = 10,
        neighbors: Literal["semantic", "random"] = "semantic",
        exclude_same_user: bool = False,
        pool_scope: Scope = "train",
        item_index: str = "Flat",
        pool_index: str = "Flat",
        nprobe: int = 16,
        seed: int = 0,
    ) -> None:
        for name, value in (("k", k), ("nprobe", nprobe)):
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        for name, file in (("items", items), ("prefixes", prefixes)):
            if file is not None and Path(file).suffix not in (".jsonl", ".npy"):
                raise ValueError(f"{name}={file!r}: must be a .jsonl file of answers or a .npy file of embeddings")
        if encoder is None and (items is None or any(str(file).endswith(".jsonl") for file in (items, prefixes))):
            raise ValueError("encoder is needed to embed texts: give one, or .npy files of embeddings as items")
        self.encoder, self.items, self.prefixes = encoder, items, prefixes
        self.attributes, self.template = attributes, template
        self.k, self.neighbors, self.exclude_same_user, self.pool_scope = k, neighbors, exclude_same_user, pool_scope
        self.item_index, self.pool_index, self.nprobe, self.seed = item_index, pool_index, nprobe, seed

    def tables(self, store: SequenceStore, pool: Prefixes) -> SemanticTables:
        """The tables for the items of a store and the prefixes of a pool, made or read from the cache.

        Raises:
            FileNotFoundError: if a given file does not exist.
            ValueError: for tables with the wrong number of rows, rows that are not finite or zero (their ids), ids
                without a row or an answer, prefixes of another width than items, and k beyond the candidates.
        """
        items = self.item_embedding(store)
        prefixes, digest = self.pool_embedding(store, pool, items)
        user = pool.user(np.arange(len(pool)))
        group = user if self.exclude_same_user else None
        item_neighbors = self._neighbors("items", items[1:], _digest(items), self.item_index, None)
        pool_neighbors = self._neighbors("prefixes", prefixes, digest, self.pool_index, group)
        same_user = same_group(pool_neighbors, user)
        rank_zero_info(f"{100 * same_user:.1f}% of the prefixes' neighbours are of the same user.")
        padded = np.concatenate([np.zeros((1, self.k), np.int64), item_neighbors + 1])
        return SemanticTables(items, prefixes, padded, pool_neighbors, same_user)

    def item_embedding(self, store: SequenceStore) -> np.ndarray:
        """[V + 1, D] float32, row 0 zero."""
        ids = item_ids(store)
        if self.items is not None and self.items.endswith(".npy"):
            rows = stored(self.items, ids, padding=True)
        else:
            rows = self._embedded(self.item_texts(store), ids, "items")
        return np.concatenate([np.zeros((1, rows.shape[1]), np.float32), rows])

    def item_texts(self, store: SequenceStore) -> list[str]:
        """The texts of items 1 to V: answers of a language model, or a template filled."""
        if self.items is not None:
            return all_answers(self.items, item_ids(store))
        return item_texts(store, None if self.attributes is None else read_attributes(self.attributes), self.template)

    def pool_embedding(self, store: SequenceStore, pool: Prefixes, items: np.ndarray) -> tuple[np.ndarray, str]:
        """[M, D] float32 and a digest of what it is made of, for vectors [V + 1, D] of items."""
        if self.prefixes is None:
            digest = _digest("mean", items, store.item, store.offset, pool.count, pool.max_length)
            return _cached("prefixes", digest, lambda file: _write_means(file, store, pool, items)), digest
        ids = prefix_ids(store, pool)
        if self.prefixes.endswith(".npy"):
            rows = stored(self.prefixes, ids)
        else:
            rows = self._embedded(all_answers(self.prefixes, ids), ids, "prefixes")
        if rows.shape[1] != items.shape[1]:
            raise ValueError(
                f"embeddings of prefixes have {rows.shape[1]} dimensions, those of items {items.shape[1]}: make both "
                "with the same encoder"
            )
        return rows, _digest(rows)

    def _embedded(self, texts: Sequence[str], ids: Sequence[str], what: str) -> np.ndarray:
        assert self.encoder is not None
        rows = self.encoder(texts)
        check_rows(rows, ids, f"embeddings of {what}")
        return rows

    def _neighbors(self, what: str, rows: np.ndarray, digest: str, index: str, group: np.ndarray | None) -> np.ndarray:
        def build(file: Path) -> None:
            if self.neighbors == "random":
                found = random_others(len(rows), self.k, group, seed=self.seed)
            else:
                found = nearest(rows, self.k, group, index=index, nprobe=self.nprobe, progress=True)
            _save(file, found)

        choice = self.seed if self.neighbors == "random" else (index, self.nprobe)
        groups = "none" if group is None else group
        try:
            return _cached(f"{what}_neighbors", _digest(digest, self.neighbors, repr(choice), self.k, groups), build)
        except ValueError as error:
            raise ValueError(f"neighbours of {what}: {error}") from error


def check_rows(rows: np.ndarray, ids: Sequence[str], what: str) -> None:
    """Raises ``ValueError`` unless rows [N, D] are N finite vectors other than zero; names the first bad ids."""
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(f"{what} have shape {list(rows.shape)}: one vector a row is needed")
    if len(rows) != len(ids):
        raise ValueError(f"{what} have {len(rows)} rows, but there are {len(ids)} to embed")
    bad: list[str] = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        norm = np.abs(np.asarray(rows[start : start + ROWS_AT_ONCE], np.float32)).max(axis=1)
        bad += [ids[start + i] for i in np.nonzero(~(np.isfinite(norm) & (norm > 0)))[0].tolist()]
    if bad:
        raise ValueError(
            f"{what}: {len(bad)} of {len(ids)} rows are zero or not finite, as after an answer that failed; the first "
            f"ids are {', '.join(bad[:5])}"
        )


def stored(file: str | Path, ids: Sequence[str], padding: bool = False) -> np.ndarray:
    """Embeddings [len(ids), D] float32 from a ``.npy`` file, by the ids beside it where there are any.

    Args:
        file: with rows in the order of ``ids``, or with a file of ids of the same name that ends in ``.ids``.
        ids: of the rows that are wanted.
        padding: without a file of ids, the first row is of padding and left out.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for the wrong number of rows, ids without a row, and rows that are zero or not finite.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no table of embeddings {path}; `python -m zoo semantics embed` makes one")
    rows = np.load(path, mmap_mode="r", allow_pickle=False)
    names = path.with_suffix(".ids")
    if names.is_file():
        known = {id: row for row, id in enumerate(names.read_text(encoding="utf-8").splitlines())}
        if len(known) != len(rows):
            raise ValueError(f"{path} has {len(rows)} rows, but {names} has {len(known)} different ids")
        if absent := [id for id in ids if id not in known]:
            raise ValueError(
                f"{path} has no row for {len(absent)} of {len(ids)} ids, the first are {', '.join(absent[:5])}"
            )
        rows = rows[[known[id] for id in ids]]
    else:
        if len(rows) != len(ids) + padding:
            expected = f"{len(ids)} items and 1 for padding" if padding else f"{len(ids)} prefixes"
            raise ValueError(f"{path} has {len(rows)} rows, expected {len(ids) + padding}: {expected}")
        rows = rows[int(padding) :]
    check_rows(rows, ids, str(path))
    return np.asarray(rows, np.float32)


def prefix_means(store: SequenceStore, pool: Prefixes, items: np.ndarray, number: np.ndarray) -> np.ndarray:
    """The mean of the vectors [V + 1, D] of a prefix's items, [n, D] float32 for prefixes ``number`` [n]."""
    start, end = pool.bounds(number)
    length = end - start
    begin = np.cumsum(length) - length
    place = np.repeat(start - begin, length) + np.arange(length.sum())
    flat, begin = torch.from_numpy(store.item[place].astype(np.int64)), torch.from_numpy(begin)
    return embedding_bag(flat, torch.from_numpy(items), begin, mode="mean").numpy()


def _write_means(file: Path, store: SequenceStore, pool: Prefixes, items: np.ndarray) -> None:
    shape = (len(pool), items.shape[1])
    rows = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
    for start in range(0, len(pool), ROWS_AT_ONCE):
        number = np.arange(start, min(start + ROWS_AT_ONCE, len(pool)))
        rows[number] = prefix_means(store, pool, items, number)
    rows.flush()
    check_rows(rows, prefix_ids(store, pool), "mean embeddings of prefixes")


def made_once(file: Path, build: Callable[[Path], None]) -> np.ndarray:
    """The array in a ``.npy`` file, mapped into memory, which ``build`` writes if it is not there yet.

    Of several processes that ask at the same time, such as the ranks of a run, one builds and the others wait.
    """
    from filelock import FileLock

    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if not file.is_file():
                with atomic(file) as temporary:
                    build(temporary)
    # copy-on-write, as PyTorch warns of arrays that it must not write to
    return np.load(file, mmap_mode="c", allow_pickle=False)


def _cached(what: str, digest: str, build: Callable[[Path], None]) -> np.ndarray:
    return made_once(cache_dir() / "semantics" / f"{what}_{digest[:24]}.npy", build)


def _save(file: Path, array: np.ndarray) -> None:
    with file.open("wb") as out:
        np.save(out, array, allow_pickle=False)


def _digest(*parts: str | int | np.ndarray) -> str:
    """sha256 over values; arrays by shape, type and content."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            total.update(f"{part.shape} {part.dtype} ".encode())
            for start in range(0, len(part), ROWS_AT_ONCE):
                total.update(np.ascontiguousarray(part[start : start + ROWS_AT_ONCE]).data)
        else:
            total.update(f"{part!r} ".encode())
    return total.hexdigest()
