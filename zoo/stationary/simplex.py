"""The regular simplex whose vertices are all models' fixed class prototypes (arXiv 2405.02581, section 3)."""

import hashlib
import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

LabelOrder = Literal["from_end", "from_start"]
LABEL_ORDERS: tuple[LabelOrder, ...] = ("from_end", "from_start")


def simplex(num_prototypes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Vertices of the regular simplex with K = ``num_prototypes`` in K - 1 dimensions, [K, K - 1].

    Rows have unit length and inner products -1 / (K - 1); columns sum to 0. The rows are the identity's and one row of
    a = (1 - sqrt(K)) / (K - 1), centred and scaled to unit length as in the official code, which leaves three distinct
    values. These come from float64 +, -, *, / and sqrt alone, all exactly rounded, so that every machine builds the
    same bits: the shared orientation is what makes models comparable.

    Raises:
        ValueError: with fewer than two prototypes.
    """
    if num_prototypes < 2:
        raise ValueError(f"num_prototypes={num_prototypes}: a simplex needs at least 2 vertices")
    n = num_prototypes - 1
    last = (1 - math.sqrt(num_prototypes)) / n
    centre = (1 + last) / num_prototypes
    length = math.sqrt(n / num_prototypes)
    vertices = torch.full((num_prototypes, n), -centre / length, dtype=torch.float64, device="cpu")
    vertices.fill_diagonal_((1 - centre) / length)
    vertices[n] = (last - centre) / length
    return vertices.to(dtype)


@lru_cache
def simplex_hash(num_prototypes: int) -> int:
    """63 bits of the SHA-256 of the float32 vertices (row by row, little-endian): the same where features compare."""
    vertices = simplex(num_prototypes).numpy().astype("<f4")
    return int.from_bytes(hashlib.sha256(vertices.tobytes()).digest()[:8], "big") >> 1


def prototype_row(label: Tensor, num_prototypes: int, order: LabelOrder) -> Tensor:
    """The vertex of each class: K - 1 - y ``from_end``, y ``from_start``; int64 of any shape to the same shape.

    Both are involutions. Classes of the two orders never meet while their numbers add to K or less.

    Raises:
        ValueError: for another order.
    """
    if order not in LABEL_ORDERS:
        raise ValueError(f"label_order={order!r}: choose one of {', '.join(LABEL_ORDERS)}")
    return num_prototypes - 1 - label if order == "from_end" else label
