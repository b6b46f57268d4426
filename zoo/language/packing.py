"""Several token sequences in one row, none of which sees another."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor


class Packed(NamedTuple):
    """Rows of sequences, one behind the other.

    ``input_ids`` [B, T] int64; ``segment`` [B, T] int64, the number of a token's sequence, -1 for padding, which is on
    the right; ``position`` [B, T] int64, from 0 on in each sequence.
    """

    input_ids: Tensor
    segment: Tensor
    position: Tensor

    def to(self, device: torch.device) -> Self:
        return type(self)(*(part.to(device, non_blocking=True) for part in self))


def pack(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Which sequences stand in which row: the longest first, each in the first row that has room for it.

    First-fit decreasing needs at most 11/9 of the fewest rows, plus one (Johnson, 1973).

    Raises:
        ValueError: for a sequence that is longer than a row.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        length = lengths[number]
        if length > max_length:
            raise ValueError(f"sequence {number} has {length} tokens, but max_length is {max_length}: cut it")
        at = next((at for at, free in enumerate(room) if free >= length), len(rows))
        if at == len(rows):
            rows.append([])
            room.append(max_length)
        rows[at].append(number)
        room[at] -= length
    return rows


def lay_out(sequences: Sequence[Sequence[int]], rows: Sequence[Sequence[int]], pad: int) -> Packed:
    """Rows as ``pack`` gave them, as wide as the longest; ``pad`` is the token of the columns that are left."""
    width = max(sum(len(sequences[number]) for number in row) for row in rows)
    ids, segment = torch.full((len(rows), width), pad), torch.full((len(rows), width), -1)
    position = torch.zeros(len(rows), width, dtype=torch.int64)
    for at, row in enumerate(rows):
        start = 0
        for number in row:
            stop = start + len(sequences[number])
            ids[at, start:stop] = torch.tensor(sequences[number])
            segment[at, start:stop] = number
            position[at, start:stop] = torch.arange(stop - start)
            start = stop
    return Packed(ids, segment, position)


def block_mask(segment: Tensor) -> Tensor:
    """Which columns a row's tokens attend to: bool [B, 1, T, T], those of their own sequence up to themselves.

    Padding attends to padding: a token that sees nothing would have no softmax.
    """
    same = segment[:, :, None] == segment[:, None, :]
    return same.tril()[:, None]
