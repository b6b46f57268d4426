"""Neighbour tables of vectors: the nearest by cosine, or random ones, never a row's own nor those of its group."""

import numpy as np
import torch
from rich.progress import track

from datamodules.search import Search
from datamodules.streams import key, uniform

ROWS_AT_ONCE = 65536
EXTRA = 1024  # places at first for excluded rows; more places cost little, a second search costs as much as the first


def nearest(
    vectors: np.ndarray,
    k: int,
    group: np.ndarray | None = None,
    *,
    index: str = "Flat",
    nprobe: int = 16,
    chunk: int = 4096,
    progress: bool = False,
) -> np.ndarray:
    """The k rows with the largest cosine to each row, [N, k] int64, the most similar first.

    A row is excluded by its number, not by its rank, so that a copy of it is a neighbour like any other. Where
    excluded rows take up the places, more are fetched until k are left. Exact search orders equal cosines by row.
    Rows for which an approximate index finds fewer than k are searched exactly.

    Args:
        vectors: [N, d], of any length but 0; a memory map is read in parts.
        k: neighbours of each row.
        group: [N], ascending: a row's neighbours are of other groups. Each row is a group of its own if left out.
        index: a faiss factory string: ``Flat`` is exact, ``IVF1024,Flat`` and such are for hundreds of thousands.
        nprobe: lists that an IVF index visits.
        chunk: rows at once.
        progress: show a bar.

    Raises:
        ValueError: if a row has fewer than k candidates, or groups are not ascending.
    """
    group, size = _groups(len(vectors), k, group)
    unit = _unit(vectors)
    exact = Search(chunk=chunk).over(unit)
    search = Search(index=index, nprobe=nprobe, chunk=chunk)
    find = exact if search.exact else search.over(unit)
    result = np.empty((len(unit), k), np.int64)
    for start in track(range(0, len(unit), chunk), "neighbours", disable=not progress):
        rows = np.arange(start, min(start + chunk, len(unit)))
        fetch = k + min(int(size[rows].max()), EXTRA)
        method = find
        while len(rows):
            found = method(unit[rows], fetch)[1].numpy()
            allowed = (found >= 0) & (group[found] != group[rows, None])
            first = np.argsort(~allowed, axis=1, kind="stable")[:, :k]
            enough = allowed.sum(1) >= k
            result[rows[enough]] = np.take_along_axis(found, first, 1)[enough]
            rows = rows[~enough]
            if fetch >= k + size.max():
                method = exact
            fetch = min(2 * fetch, k + int(size.max()))
    return result


def random_others(n: int, k: int, group: np.ndarray | None = None, *, seed: int = 0) -> np.ndarray:
    """k distinct rows of other groups, uniformly drawn, for each of n rows: [n, k] int64, by (seed, row).

    They take the place of similar rows where an ablation asks what similarity is worth. Floyd's sampling without
    replacement (Bentley and Floyd 1987) over the rows outside the group. Raises as ``nearest``.
    """
    group, size = _groups(n, k, group)
    begin = np.searchsorted(group, group)
    chosen = np.empty((n, k), np.int64)
    for start in range(0, n, ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        draw = uniform(key(seed, np.arange(n)[part]), k)
        others = n - size[part]
        for column in range(k):
            last = others - k + column
            candidate = np.minimum((draw[:, column] * (last + 1)).astype(np.int64), last)
            taken = (chosen[part, :column] == candidate[:, None]).any(1)
            chosen[part, column] = np.where(taken, last, candidate)
    return chosen + (chosen >= begin[:, None]) * size[:, None]


def same_group(neighbors: np.ndarray, group: np.ndarray) -> float:
    """The share of neighbours [N, k] that are of the same group as their row."""
    parts = (slice(start, start + ROWS_AT_ONCE) for start in range(0, len(group), ROWS_AT_ONCE))
    return sum(int((group[neighbors[p]] == group[p, None]).sum()) for p in parts) / max(1, neighbors.size)


def _groups(n: int, k: int, group: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Each row's group and its group's size, [n] int64; checked."""
    if k < 1:
        raise ValueError(f"k={k}: must be at least 1")
    group = np.arange(n) if group is None else np.asarray(group)
    if len(group) != n or (np.diff(group) < 0).any():
        raise ValueError(f"group must hold {n} ascending numbers, one a row, so that a group's rows are adjacent")
    _, place, count = np.unique(group, return_inverse=True, return_counts=True)
    size = count[place]
    if n - size.max(initial=0) < k:
        row = int(size.argmax()) if n else 0
        raise ValueError(
            f"k={k} neighbours, but row {row} has {n - int(size.max(initial=0))} candidates: {n} rows less those of "
            "its own group; lower k"
        )
    return group, size


def _unit(vectors: np.ndarray) -> torch.Tensor:
    unit = np.empty(vectors.shape, np.float32)
    for start in range(0, len(unit), ROWS_AT_ONCE):
        part = np.asarray(vectors[start : start + ROWS_AT_ONCE], np.float32)
        unit[start : start + ROWS_AT_ONCE] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return torch.from_numpy(unit)
