"""What the next item is trained by: full softmax, sampled softmax, or BPR, on the scores ``<h, E_v>``."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus


class Objective(nn.Module):
    """The loss of vectors ``h`` [N, d] against a table [V + 1, d] of items, row 0 padding, and targets [N] in 1..V.

    The mean over the rank's N rows, which DDP averages over ranks.
    """

    def forward(self, h: Tensor, table: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError


class FullSoftmax(Objective):
    """Cross-entropy over all V items, without bias or temperature; the padding row takes no part."""

    def forward(self, h: Tensor, table: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(h @ table[1:].T, target - 1)


class SampledSoftmax(Objective):
    """Cross-entropy over the target and ``n`` items drawn uniformly, with replacement, once for all rows.

    Draws that hit a row's target are left out of that row; the m others count ``(V - 1) / m`` times each, so that the
    sum over them estimates the sum over all other items.
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        if n < 1:
            raise ValueError(f"n={n}: must be at least 1")
        self.n = n

    def forward(self, h: Tensor, table: Tensor, target: Tensor) -> Tensor:
        items = len(table) - 1
        drawn = torch.randint(1, items + 1, (self.n,), device=h.device)
        hit = drawn == target[:, None]
        weight = math.log(max(items - 1, 1)) - (~hit).sum(1, keepdim=True).clamp(min=1).log()
        others = (h @ table[drawn].T + weight).masked_fill(hit, -torch.inf)
        own = (h * table[target]).sum(1, keepdim=True)
        return cross_entropy(torch.cat([own, others], 1), torch.zeros_like(target))


class BPR(Objective):
    """``-log sigmoid(s_target - s_other)`` (arXiv 1205.2618) with one other item a row, drawn uniformly."""

    def forward(self, h: Tensor, table: Tensor, target: Tensor) -> Tensor:
        items = len(table) - 1
        if items < 2:
            raise ValueError("BPR needs at least 2 items")
        other = 1 + (target - 1 + torch.randint(1, items, target.shape, device=h.device)) % items
        return softplus((h * (table[other] - table[target])).sum(1)).mean()
