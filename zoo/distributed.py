"""Sums, means and gathering over all ranks."""

from typing import Any

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


def gather(x: Tensor) -> Tensor:
    """The rows [B, ...] of all ranks in the order of ranks, [ranks * B, ...]; the same shape on every rank.

    Gradient flows back to the rank that a row came from, summed over the ranks' losses: with the mean over ranks that
    data-parallel training takes, it is the gradient of the ranks' mean loss.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return x
    gathered: Tensor = _Gather.apply(x)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


def gather_objects(mine: Any) -> list[Any]:
    """What each rank gives, by rank, on every rank; it must pickle."""
    if not (dist.is_available() and dist.is_initialized()):
        return [mine]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    return parts


def any_rank(mine: bool) -> bool:
    """Whether it is true on any rank."""
    return any(gather_objects(mine))
