"""Nearest neighbours by inner product: exact search with ties in a fixed order, and faiss indexes to serve from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    import faiss

SCORES_AT_ONCE = 2**26  # of the torch backend, 256 MiB of float32
SORTED_AT_ONCE = 2**22  # scores that are sorted whole to settle ties

Hits = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Search:
    """How to find the k gallery vectors with the largest inner products.

    Args:
        index: a faiss factory string. ``Flat`` is exact; others, such as ``IVF256,Flat`` and ``HNSW32``, are
            approximate, for serving.
        backend: ``torch`` is exact only and runs on ``device``; ``faiss`` runs on the CPU.
        device: of the torch backend.
        chunk: queries at once.
        nprobe: lists that an IVF index visits.
        ef_search: candidates that an HNSW index keeps.

    Raises:
        ValueError: for numbers below 1, an approximate index with torch and another device than the CPU with faiss.
    """

    index: str = "Flat"
    backend: Literal["faiss", "torch"] = "faiss"
    device: str = "cpu"
    chunk: int = 4096
    nprobe: int = 16
    ef_search: int = 64

    def __post_init__(self) -> None:
        for name in ("chunk", "nprobe", "ef_search"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.backend not in ("faiss", "torch"):
            raise ValueError(f"backend={self.backend!r}: must be faiss or torch")
        if self.backend == "torch" and not self.exact:
            raise ValueError(f"backend torch searches exactly: index must be Flat, got {self.index!r}, or use faiss")
        if self.backend == "faiss" and self.device != "cpu":
            raise ValueError(f"backend faiss runs on the CPU, got device={self.device!r}: use backend torch")

    @property
    def exact(self) -> bool:
        return self.index == "Flat"

    def __call__(self, query: Tensor, gallery: Tensor, k: int) -> Hits:
        """Scores [Q, k] float32, descending, and gallery rows [Q, k] int64, of vectors [Q, d] and [N, d], on the CPU.

        Exact search orders equal scores by row, lowest first, also where they compete for the last places. Where k
        is beyond the gallery, or an approximate index finds fewer, the score is -inf and the row -1. The Q x N
        matrix of all scores never exists.

        Raises:
            TypeError: for vectors that are not floating point.
            ValueError: for wrong shapes, widths that differ, values that are not finite, and k < 1.
        """
        return self.over(gallery)(query, k)

    def over(self, gallery: Tensor) -> Callable[[Tensor, int], Hits]:
        """The search in one gallery, which is prepared once: a function of queries and k."""
        gallery = _vectors(gallery, "gallery")
        if not self.exact:
            index = build_index(gallery, self)
            return lambda query, k: self._in_chunks(query, gallery, k, partial(query_index, index))
        if self.backend == "torch":
            gallery = gallery.to(self.device)
        best = _best_by_torch if self.backend == "torch" else _best_by_faiss
        return lambda query, k: self._in_chunks(query, gallery, k, partial(_exact, best, gallery))

    def _in_chunks(self, query: Tensor, gallery: Tensor, k: int, find: Callable[[Tensor, int], Hits]) -> Hits:
        query = _vectors(query, "query")
        check_widths(query, gallery)
        if k < 1:
            raise ValueError(f"k={k}: must be at least 1")
        score = torch.full((len(query), k), float("-inf"))
        row = torch.full((len(query), k), -1)
        found = min(k, len(gallery))
        for start in range(0, len(query), self.chunk):
            part = slice(start, start + self.chunk)
            score[part, :found], row[part, :found] = find(query[part].to(gallery.device), found)
        return score, row


def check_widths(query: Tensor, gallery: Tensor) -> None:
    """Raises ``ValueError`` if [Q, d] and [N, d'] have different widths."""
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"query vectors have {query.shape[1]} dimensions, the gallery's have {gallery.shape[1]}: embeddings of "
            "different widths cannot be compared; take both from the same model, or from compatible ones"
        )


def build_index(gallery: Tensor, search: Search) -> "faiss.Index":
    """The faiss index of ``search`` over vectors [N, d], trained on them where it needs to be.

    Raises:
        ValueError: for a factory string that faiss does not know, and too few vectors to train on.
    """
    faiss = _faiss()
    vectors = _vectors(gallery, "gallery").cpu().contiguous().numpy()
    try:
        index = faiss.index_factory(vectors.shape[1], search.index, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        hint = "Flat, IVF256,Flat and HNSW32 are some"
        raise ValueError(f"index={search.index!r} is no index that faiss can make: {hint}") from error
    if not index.is_trained:
        try:
            index.train(vectors)
        except RuntimeError as error:
            few = f"{len(vectors)} vectors are too few to train it"
            raise ValueError(f"index={search.index!r}: {few}; use fewer lists, or Flat") from error
    index.add(vectors)
    if "IVF" in search.index:
        faiss.ParameterSpace().set_index_parameter(index, "nprobe", search.nprobe)
    elif "HNSW" in search.index:
        faiss.ParameterSpace().set_index_parameter(index, "efSearch", search.ef_search)
    return index


def query_index(index: "faiss.Index", query: Tensor, k: int) -> Hits:
    """Scores and rows [Q, k] of what an index finds for vectors [Q, d], in the form of ``Search``.

    Equal scores are ordered by row, but which of them take the last places is the index's choice.
    """
    _faiss()
    score, row = (torch.from_numpy(x) for x in index.search(query.contiguous().numpy(), k))
    return _ties_by_row(score.masked_fill(row < 0, float("-inf")), row)


def recall_against_flat(query: Tensor, gallery: Tensor, search: Search, k: int = 10) -> float:
    """The share of the k exact neighbours that ``search`` finds as well, mean over queries: recall@k of an index."""
    k = min(k, len(gallery))
    exact, found = Search(chunk=search.chunk)(query, gallery, k)[1], search(query, gallery, k)[1]
    return (exact[:, :, None] == found[:, None, :]).any(2).double().mean().item()


def _vectors(vectors: Tensor, what: str) -> Tensor:
    """[n, d] float32, detached. faiss would answer what is refused here with empty messages or with nothing."""
    if not vectors.is_floating_point():
        raise TypeError(f"{what} vectors are {vectors.dtype}: pass floating point")
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise ValueError(f"{what} vectors have shape {tuple(vectors.shape)}: pass one a row, [n, d] with n, d > 0")
    vectors = vectors.detach().float()
    bad = ~torch.linalg.vector_norm(vectors, ord=float("inf"), dim=1).isfinite()
    if bad.any():
        raise ValueError(
            f"{what} vectors: {int(bad.sum())} have non-finite values, the first is row {bad.nonzero()[0, 0]}"
        )
    return vectors


def _faiss() -> Any:
    """faiss, with as many threads as torch has now: what a user, a launcher or a loader limits holds for both.

    The number is faiss' own for the whole process.
    """
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss


def _exact(best: Callable[[Tensor, Tensor, int], Hits], gallery: Tensor, query: Tensor, k: int) -> Hits:
    """The k best, made unique: one hit more than asked shows where equal scores compete for the last place."""
    with _full_precision(gallery.device.type):
        score, row = best(query, gallery, min(k + 1, len(gallery)))
        tied = (score[:, k - 1 : k] == score[:, k:]).any(1)
        score, row = score[:, :k], row[:, :k]
        for part in tied.nonzero()[:, 0].split(max(1, SORTED_AT_ONCE // len(gallery))):
            ordered = (query[part] @ gallery.T).sort(dim=1, descending=True, stable=True)
            score[part], row[part] = ordered.values[:, :k], ordered.indices[:, :k]
    return _ties_by_row(score, row)


def _best_by_faiss(query: Tensor, gallery: Tensor, k: int) -> Hits:
    faiss = _faiss()
    # unlike an index, knn needs no copy of the gallery
    score, row = faiss.knn(
        query.contiguous().numpy(), gallery.contiguous().numpy(), k, metric=faiss.METRIC_INNER_PRODUCT
    )
    return torch.from_numpy(score), torch.from_numpy(row)


def _best_by_torch(query: Tensor, gallery: Tensor, k: int) -> Hits:
    score = query.new_empty(len(query), 0)
    row = torch.empty(len(query), 0, dtype=torch.int64, device=query.device)
    size = max(1, SCORES_AT_ONCE // len(query))
    for start in range(0, len(gallery), size):
        scores = query @ gallery[start : start + size].T
        new, place = scores.topk(min(k, scores.shape[1]))
        score, row = torch.cat([score, new], 1), torch.cat([row, place + start], 1)
        score, kept = score.topk(min(k, score.shape[1]))
        row = row.gather(1, kept)
    return score, row


def _ties_by_row(score: Tensor, row: Tensor) -> Hits:
    """Hits in descending order with equal scores put in the order of their rows, in place."""
    tied = (score[:, 1:] == score[:, :-1]).any(1).nonzero()[:, 0]
    by_row = row[tied].sort(dim=1)
    by_score = score[tied].gather(1, by_row.indices).sort(dim=1, descending=True, stable=True)
    score[tied], row[tied] = by_score.values, by_row.values.gather(1, by_score.indices)
    return score, row


@contextmanager
def _full_precision(device: str) -> Iterator[None]:
    """Matrix products in float32, whatever a training run has chosen: TF32 or autocast would reorder neighbours."""
    chosen = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(chosen)
