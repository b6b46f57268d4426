"""Sums and means over all ranks."""

import torch
from torch import Tensor
from torch import distributed as dist


def global_mean(total: Tensor, count: Tensor) -> Tensor:
    """``sum over ranks of total / sum over ranks of count``; [D] and scalar, the same result on every rank.

    Unequal shards weigh by their size, which a mean of the ranks' means would not do.
    """
    both = torch.cat([total.float().reshape(-1), count.float().reshape(1)])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(both)
    return (both[:-1] / both[-1]).to(total.dtype).reshape(total.shape)
