"""Gathering with gradient, and the compatibility loss over all ranks' images: two gloo processes against one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, distributed

from zoo.distributed import gather
from zoo.stationary.losses import HigherOrderCompatibility, SameClass

TwoRanks = Callable[[Callable[[int], object]], list[object]]


def test_rows_come_in_the_order_of_ranks_and_gradients_go_home(on_two_ranks: TwoRanks) -> None:
    def work(rank: int) -> tuple[Tensor, Tensor, Tensor | None]:
        x = (torch.arange(6.0).reshape(2, 3).T + 10 * rank).requires_grad_()
        rows = gather(x)
        ((rank + 1) * rows.square()).sum().backward()
        return rows.detach(), gather(torch.tensor([rank])), x.grad

    for rank, (rows, ranks, grad) in enumerate(on_two_ranks(work)):  # type: ignore[misc]
        own = torch.arange(6.0).reshape(2, 3).T
        assert torch.equal(rows, torch.cat([own, own + 10]))
        assert ranks.tolist() == [0, 1]
        assert torch.equal(grad, 3 * 2 * (own + 10 * rank))  # losses 1 x and 2 x the squares, summed


def test_one_process_alone_gathers_itself() -> None:
    x = torch.randn(3, 2)
    assert gather(x) is x


@pytest.mark.parametrize("same_class", ["ones", "positive_in_denominator"])
def test_two_ranks_with_gathered_negatives_equal_one_process(same_class: SameClass, on_two_ranks: TwoRanks) -> None:
    generator = torch.Generator().manual_seed(0)
    x, old = torch.randn(2, 10, 4, generator=generator, dtype=torch.float64)
    start = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    label = torch.tensor([0, 1, 2, 0, 1, 0, 0, 2, 1, 1])

    def step(rows: slice, gathered: bool) -> tuple[Tensor, Tensor]:
        weight = start.clone().requires_grad_()
        z = x[rows] @ weight
        objective = HigherOrderCompatibility(same_class=same_class, gather_negatives=gathered)
        loss = objective(z.square().mean(), old[rows], z, label[rows])
        loss.backward()
        assert weight.grad is not None
        return loss.detach(), weight.grad

    def work(rank: int) -> list[Tensor]:
        rows = slice(5 * rank, 5 * rank + 5)
        means = []
        for gathered in (True, False):
            for value in step(rows, gathered):
                distributed.all_reduce(value)
                means.append(value / 2)
        return means

    loss, grad = step(slice(0, 10), False)
    for joined, joined_grad, apart, apart_grad in on_two_ranks(work):  # type: ignore[misc]
        torch.testing.assert_close(joined, loss)
        torch.testing.assert_close(joined_grad, grad)
        assert (apart - loss).abs() > 0.1
        assert (apart_grad - grad).abs().max() > 0.01
