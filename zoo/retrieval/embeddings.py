"""Tables of unit embeddings with labels and ids: checked once, gathered from all ranks, averaged by class."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist
from torchmetrics.utilities.distributed import gather_all_tensors

from datamodules.sources import atomic
from zoo.metrics.interval import first_of_each

ROWS_AT_ONCE = 65536


class Embedded(NamedTuple):
    """What a validation step hands out: ``embedding`` [B, d], ``label`` [B] int64 and ``row`` [B] int64, the image's
    place in its set; one that comes twice counts once."""

    embedding: Tensor
    label: Tensor
    row: Tensor


@dataclass(frozen=True)
class EmbeddingTable:
    """``embedding`` [N, d] float32 on the CPU with rows of unit length, contiguous; ``label`` [N] int64, negative
    where unknown; ``id`` [N] int64, distinct."""

    embedding: Tensor
    label: Tensor
    id: Tensor

    def __len__(self) -> int:
        return len(self.label)


def embedding_table(
    embedding: Tensor, label: Tensor, id: Tensor | None = None, *, what: str = "embeddings"
) -> EmbeddingTable:
    """A table of [N, d] floating-point vectors, which are normalised, with [N] integer labels and ids.

    Args:
        embedding: on any device.
        label: as many as vectors.
        id: distinct; the row numbers if left out.
        what: the name that errors give the vectors.

    Raises:
        TypeError: for vectors that are not floating point, labels or ids that are not integers.
        ValueError: for wrong shapes, no vectors, ids that repeat, and vectors that are not finite or have no
            direction (how many, and the first one's id).
    """
    if not embedding.is_floating_point():
        raise TypeError(f"{what} are {embedding.dtype}: pass floating-point vectors")
    if embedding.ndim != 2 or 0 in embedding.shape:
        raise ValueError(f"{what} have shape {tuple(embedding.shape)}: pass one vector a row, [N, d] with N, d > 0")
    id = torch.arange(len(embedding)) if id is None else id
    for name, value in (("label", label), ("id", id)):
        if value.shape != (len(embedding),):
            raise ValueError(
                f"{what}: {len(embedding)} vectors, but {name} has shape {tuple(value.shape)}: pass one each"
            )
        if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{what}: {name} is {value.dtype}: pass integers")
    label, id = (value.detach().to("cpu", torch.int64, copy=True) for value in (label, id))
    ordered = id.sort().values
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated):
        raise ValueError(f"{what}: ids must be distinct, but {repeated[0]} comes more than once")
    vectors = embedding.detach().to("cpu", torch.float32).contiguous()
    # in double precision, as squares of tiny or huge components leave the range of float32
    norm = torch.linalg.vector_norm(vectors, dim=1, keepdim=True, dtype=torch.float64)
    for problem, bad in (
        ("non-finite values,", ~norm.isfinite()[:, 0]),
        ("zero norm, hence no direction,", norm[:, 0] == 0),
    ):
        if bad.any():
            raise ValueError(
                f"{what}: {int(bad.sum())} of {len(id)} have {problem} the first is that of id {id[bad][0]}"
            )
    return EmbeddingTable(vectors / norm.float(), label, id)


class EmbeddingStore:
    """Collects a loop's embeddings under their images' rows in the set, on the device where they arise.

    It is no ``torchmetrics.Metric``, because those squeeze and copy whatever they compute.
    """

    def __init__(self) -> None:
        self._parts: list[Embedded] = []

    def update(self, embedding: Tensor, label: Tensor, row: Tensor) -> None:
        """Add vectors [B, d] with labels and rows [B]."""
        self._parts.append(Embedded(embedding.detach(), label, row))

    def compute(self, what: str = "embeddings") -> EmbeddingTable:
        """All ranks' vectors in the order of their rows, which become ids; a row that comes twice counts once.

        All ranks must call it, and each gets the same table.

        Raises:
            RuntimeError: if nothing was added on this rank.
            ValueError: as ``embedding_table``.
        """
        if not self._parts:
            raise RuntimeError(f"{what}: there is nothing to compute from, as no batch was added")
        embedding, label, row = (torch.cat(list(column)) for column in zip(*self._parts, strict=True))
        if dist.is_available() and dist.is_initialized():
            embedding, label, row = (torch.cat(gather_all_tensors(x)) for x in (embedding, label, row))
        kept = first_of_each(row)
        return embedding_table(embedding[kept], label[kept], row[kept], what=what)

    def reset(self) -> None:
        self._parts = []


def class_templates(table: EmbeddingTable) -> EmbeddingTable:
    """One vector a class: the mean of its unit vectors, normalised again. Label and id are the class, ascending.

    Raises:
        ValueError: if the vectors of a class cancel out.
    """
    classes, place = table.label.unique(return_inverse=True)
    total = torch.zeros(len(classes), table.embedding.shape[1], dtype=torch.float64)
    parts = zip(place.split(ROWS_AT_ONCE), table.embedding.split(ROWS_AT_ONCE), strict=True)
    for rows, vectors in parts:  # in parts, as a whole copy in double precision would be large
        total.index_add_(0, rows, vectors.double())
    return embedding_table(total, classes, classes, what="class templates")


def save_table(table: EmbeddingTable, file: Path) -> None:
    """Write a table as a ``.safetensors`` file."""
    from safetensors.torch import save_file

    with atomic(file) as temporary:
        save_file(vars(table), temporary)


def load_table(file: Path) -> EmbeddingTable:
    """A table that ``save_table`` has written. Raises ``FileNotFoundError`` that names the file."""
    from safetensors.torch import load_file

    if not file.is_file():
        raise FileNotFoundError(f"there is no table of embeddings {file}: run the test that writes it first")
    return EmbeddingTable(**load_file(file))
