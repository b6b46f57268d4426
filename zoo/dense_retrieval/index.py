"""The vectors of a corpus: made shard by shard over all ranks, kept on disk in half precision, and searched."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, distributed, nn

from datamodules.batches import Document
from datamodules.search import Hits, Search
from datamodules.sources import atomic
from zoo.distributed import gather_objects

Embed = Callable[[Sequence[Document]], Tensor]
"""Documents to unit vectors [B, H]."""


class Corpus(Protocol):
    """Documents by row; ``sizes`` [N] their rough lengths."""

    ids: Sequence[str]
    sizes: np.ndarray

    def __getitem__(self, row: int) -> Document: ...

    def documents(self, rows: Iterable[int]) -> list[Document]: ...


READ = 2**14  # documents whose texts tell whether an index is of this corpus
SAME_VECTOR = 0.999  # cosine: half precision and another machine's rounding stay above
SAME_WEIGHTS = 1e-9  # relative difference of norms: a step of training is above, another order of summing below

Weights = Sequence[tuple[str, float]]
READY_VALUES = 2**28  # numbers of an index that are kept in memory as float32, 1 GiB


def place() -> tuple[int, int]:
    """(rank, world size)."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


class CorpusIndex:
    """Vectors of corpus rows in shards, each rows [n] int64 ascending and vectors [n, H] of any float type.

    ``whole`` is False where this rank holds its share alone.
    """

    def __init__(self, shards: Sequence[tuple[np.ndarray, Tensor]], whole: bool = True) -> None:
        self.shards, self.whole = list(shards), whole
        self._ready: dict[Search, list[tuple[np.ndarray, Callable[[Tensor, int], Hits]]]] = {}

    @classmethod
    def open(cls, folder: str | Path) -> "CorpusIndex":
        """The index of a folder, memory-mapped.

        Raises:
            FileNotFoundError: if there is none, or shards are still missing.
        """
        folder = Path(folder)
        if not (folder / "meta.json").is_file():
            raise FileNotFoundError(f"{folder} holds no index: encode the corpus first, by test, predict or search")
        count, rows = _meta(folder)["shards"], np.load(folder / "rows.npy")
        if missing := [j for j in range(count) if not _shard(folder, j).is_file()]:
            raise FileNotFoundError(f"{folder} lacks {len(missing)} of {count} shards: encode the rest the same way")
        shards = [torch.from_numpy(np.load(_shard(folder, j), mmap_mode="c")) for j in range(count)]
        return cls([(rows[j::count], vectors) for j, vectors in enumerate(shards)])

    def __len__(self) -> int:
        return sum(len(rows) for rows, _ in self.shards)

    def search(self, queries: Tensor, k: int, search: Search | None = None) -> Hits:
        """Scores [Q, k] float32, descending, and corpus rows [Q, k] int64 (-inf and -1 where there are fewer).

        Equal scores are ordered by row. Exact search goes shard by shard; an approximate index holds all in memory.
        """
        search = search or Search()
        parts = []
        for rows, find in self._finders(search):
            score, found = find(queries, k)
            parts.append((score, torch.where(found < 0, -1, torch.from_numpy(rows)[found])))
        return merged_hits(parts, k)

    def _finders(self, search: Search) -> list[tuple[np.ndarray, Callable[[Tensor, int], Hits]]]:
        if search in self._ready:
            return self._ready[search]
        shards = self.shards
        if not search.exact:
            rows = np.concatenate([rows for rows, _ in shards])
            shards = [(rows, torch.cat([vectors.float() for _, vectors in shards]))]
        elif sum(vectors.numel() for _, vectors in shards) > READY_VALUES:
            return [(rows, partial(_in_shard, search, vectors)) for rows, vectors in shards]
        self._ready[search] = [(rows, search.over(vectors)) for rows, vectors in shards]
        return self._ready[search]

    def search_over_ranks(self, queries: Tensor, k: int, search: Search | None = None) -> Hits:
        """``search`` for this rank's queries [Q, H], where each rank searches its share for the queries of all."""
        rank, world = place()
        if world == 1:
            return self.search(queries, k, search)
        share = CorpusIndex(self.shards[rank::world]) if self.whole else self
        asked = gather_objects(queries)
        score, row = share.search(torch.cat(asked), k, search) if share.shards else _nothing(sum(map(len, asked)), k)
        parts = gather_objects((score, row))
        first = sum(len(part) for part in asked[:rank])
        own = slice(first, first + len(queries))
        return merged_hits([(score[own], row[own]) for score, row in parts], k)


def _in_shard(search: Search, vectors: Tensor, queries: Tensor, k: int) -> Hits:
    return search(queries, vectors, k)


def merged_hits(parts: Sequence[Hits], k: int) -> Hits:
    """The k best of several lists of hits [Q, k_i]; equal scores by row, lowest first."""
    score, row = torch.cat([score for score, _ in parts], 1), torch.cat([row for _, row in parts], 1)
    by_row = row.sort(dim=1, stable=True).indices
    order = by_row.gather(1, score.gather(1, by_row).sort(dim=1, descending=True, stable=True).indices)[:, :k]
    return score.gather(1, order), row.gather(1, order)


def _nothing(queries: int, k: int) -> Hits:
    return torch.full((queries, k), -torch.inf), torch.full((queries, k), -1)


@torch.no_grad()
def encoded(embed: Embed, corpus: Corpus, rows: np.ndarray, batch_size: int, forwards: int = 0) -> Tensor:
    """Vectors [n, H] float32 of corpus rows [n], on the CPU, longest documents first so that padding is little.

    Args:
        embed: documents to vectors.
        corpus: what the rows are of.
        rows: ascending.
        batch_size: documents a forward.
        forwards: make at least as many, on the first document once there is none left: ranks that share the weights
            of one model wait for each other in each.

    Raises:
        ValueError: for a vector that is not finite, naming the document.
    """
    order = np.argsort(-corpus.sizes[rows], kind="stable")
    batches = [order[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    parts = [embed(corpus.documents(rows[batch])).float().cpu() for batch in batches]
    for _ in range(forwards - len(batches)):
        embed([corpus[0]])
    if not parts:
        return torch.empty(0, 0)
    vectors = torch.empty(len(rows), parts[0].shape[1])
    vectors[torch.from_numpy(order)] = torch.cat(parts)
    bad = ~vectors.isfinite().all(1)
    if bad.any():
        document = corpus.ids[rows[int(bad.nonzero()[0, 0])]]
        raise ValueError(f"the vectors of {int(bad.sum())} documents are not finite, such as that of {document!r}")
    return vectors


def encode_in_memory(embed: Embed, corpus: Corpus, rows: np.ndarray, batch_size: int) -> CorpusIndex:
    """Each rank holds the vectors of every W-th row, W the number of ranks."""
    rank, world = place()
    own = rows[rank::world]
    vectors = encoded(embed, corpus, own, batch_size, math.ceil(math.ceil(len(rows) / world) / batch_size))
    return CorpusIndex([(own, vectors)] if len(own) else [], whole=world == 1)


@torch.no_grad()
def encode_corpus(
    embed: Embed,
    corpus: Corpus,
    rows: np.ndarray,
    folder: str | Path,
    batch_size: int = 64,
    shard_size: int = 65536,
    replace: bool = False,
    weights: Weights = (),
) -> CorpusIndex:
    """Encodes corpus rows [N] into a folder that all ranks see, as float16; after a kill, goes on at the first gap.

    An index that is there already is taken as it is, if it has the same documents and weights, and the vectors of
    some documents, the longest among them, are those of ``embed``. Shard j of n holds every n-th row from the j-th on.

    Args:
        embed: documents to vectors.
        corpus: what the rows are of.
        rows: ascending.
        folder: of the index.
        batch_size: documents a forward.
        shard_size: most rows of a shard, what a kill can lose on each rank.
        replace: make anew what is of other documents or another model, which is an error otherwise.
        weights: of the model, see ``weight_norms``: a little training can leave vectors almost where they were.
    """
    folder, (rank, world) = Path(folder), place()
    probe = encoded(embed, corpus, rows[_probes(corpus.sizes[rows])], batch_size)
    if rank == 0:
        about = {"documents": len(rows), "digest": _digest(corpus, rows), "probe": probe.tolist(), "weights": weights}
        problem = _problem(folder, about)
        if not problem or replace:
            if problem or not (folder / "meta.json").is_file():
                _start(folder, rows, min(max(math.ceil(len(rows) / shard_size), world), len(rows)), about)
            problem = ""
    if problem := gather_objects(problem if rank == 0 else None)[0]:
        raise ValueError(f"index {folder} {problem}; give another folder, or delete this one to make it anew")
    count = _meta(folder)["shards"]
    todo = gather_objects([j for j in range(count) if not _shard(folder, j).is_file()])[0]
    forwards = math.ceil(math.ceil(len(rows) / count) / batch_size)
    for start in range(0, len(todo), world):
        rank_zero_info(f"encoding {len(rows):,} passages: shard {count - len(todo) + start + 1} of {count}")
        mine = todo[start + rank : start + rank + 1]
        vectors = encoded(embed, corpus, rows[mine[0] :: count] if mine else rows[:0], batch_size, forwards)
        for j in mine:
            with atomic(_shard(folder, j)) as temporary, temporary.open("wb") as out:
                np.save(out, vectors.half().numpy())
    gather_objects(None)  # no rank reads before all have written
    return CorpusIndex.open(folder)


def weight_norms(model: nn.Module) -> Weights:
    """Type and norm of each parameter, which tell two states of a model apart; all ranks must ask."""
    norms = []
    for weight in map(Tensor.detach, model.parameters()):
        # mps has no float64
        norm = torch.linalg.vector_norm(weight.cpu() if weight.device.type == "mps" else weight, dtype=torch.float64)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        norms.append((str(weight.dtype), norm.item()))
    return norms


def _digest(corpus: Corpus, rows: np.ndarray) -> str:
    """Of the ids and lengths of all documents and the texts of at most ``READ``: reading all would take too long."""
    digest = hashlib.sha256("\n".join(corpus.ids[int(row)] for row in rows).encode())
    digest.update(corpus.sizes[rows].astype(np.int64).tobytes())
    for row in rows[:: math.ceil(len(rows) / READ)]:
        digest.update(json.dumps(dict(corpus[int(row)]), sort_keys=True).encode())
    return digest.hexdigest()


def _probes(sizes: np.ndarray) -> np.ndarray:
    """Places of the two longest documents, whose vectors tell most of a model's settings, and of two others."""
    return np.unique([*np.argsort(-sizes, kind="stable")[:2], 0, len(sizes) // 2])


def _problem(folder: Path, about: dict[str, Any]) -> str:
    """What speaks against an index for these documents and this model; nothing if there is no index."""
    if not (folder / "meta.json").is_file():
        return ""
    meta = _meta(folder)
    if meta.get("digest") != about["digest"]:
        return f"is of {meta['documents']:,} other documents"
    known, probe = torch.tensor(meta["probe"]), torch.tensor(about["probe"])
    cosine = torch.nn.functional.cosine_similarity(known, probe) if known.shape == probe.shape else torch.zeros(1)
    same = len(meta["weights"]) == len(about["weights"]) and all(
        kind != other or math.isclose(norm, value, rel_tol=SAME_WEIGHTS)  # another precision rounds weights
        for (kind, norm), (other, value) in zip(meta["weights"], about["weights"], strict=True)
    )
    return "" if same and cosine.min() >= SAME_VECTOR else "is of another model, or of another state of this one"


def _start(folder: Path, rows: np.ndarray, shards: int, about: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in [folder / "meta.json", *folder.glob("shard_*.npy")]:
        file.unlink(missing_ok=True)
    np.save(folder / "rows.npy", rows)
    with atomic(folder / "meta.json") as temporary:
        temporary.write_text(json.dumps({**about, "shards": shards}), encoding="utf-8")


def _meta(folder: Path) -> dict[str, Any]:
    meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return meta


def _shard(folder: Path, number: int) -> Path:
    return folder / f"shard_{number:05d}.npy"
