"""Gathered negatives and evaluation: two gloo processes against one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, distributed

from datamodules.batches import SequenceBatch
from zoo.metrics import RankingMetrics
from zoo.recommenders import InterUser, IntraUser, Mean, Recommender, SASRec
from zoo.recommenders.losses import Form

TwoRanks = Callable[[Callable[[int], object]], list[object]]


def whole() -> SequenceBatch:
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randint(1, 31, shape, generator=generator) for shape in ((8, 5), (8,), (8, 2, 5), (8, 3, 5)))
    item_seq, target, views, neighbors = drawn
    return SequenceBatch(item_seq, target, torch.arange(8), views, neighbors)


def step(batch: SequenceBatch, form: Form, gathered: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    switches = {"form": form, "gather_negatives": gathered}
    parts = {"inter": InterUser(0.5, Mean(), **switches), "intra": IntraUser(0.5, **switches)}  # type: ignore[arg-type]
    model = Recommender(SASRec(8, 16, 1, 2, 0.0, 0.0, 5), contrastive=parts, num_items=30).double()
    torch.nn.init.normal_(model.encoder.item_embedding.weight)
    losses = model.losses(batch)
    loss = torch.stack([model.weight(name) * value for name, value in losses.items()]).sum()
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **{name: value.detach() for name, value in losses.items()}, **grads}


@pytest.mark.parametrize("form", ["symmetric", "one_way"])
def test_two_ranks_with_gathered_negatives_equal_one_process(form: Form, on_two_ranks: TwoRanks) -> None:
    def work(rank: int) -> list[dict[str, Tensor]]:
        rows = slice(4 * rank, 4 * rank + 4)
        share = SequenceBatch(*(field[rows] for field in whole()[:5]))  # type: ignore[index]
        means = []
        for gathered in (True, False):
            values = step(share, form, gathered)
            for value in values.values():
                distributed.all_reduce(value)
                value /= 2
            means.append(values)
        return means

    one = step(whole(), form, gathered=True)
    for joined, apart in on_two_ranks(work):  # type: ignore[misc]
        for name, value in one.items():
            torch.testing.assert_close(joined[name], value, msg=lambda m, n=name: f"{n}: {m}")
        assert apart["intra"] < one["intra"] - 0.1  # fewer negatives are an easier task
        assert (apart["encoder.item_embedding.weight"] - one["encoder.item_embedding.weight"]).abs().max() > 1e-3


def test_metrics_over_two_ranks_are_those_of_one_to_the_last_digit(on_two_ranks: TwoRanks) -> None:
    rank_of = torch.randint(1, 30, (101,), generator=torch.Generator().manual_seed(0)).float()
    names = ["hr@10", "ndcg@10", "mrr@10"]

    def work(rank: int) -> dict[str, float]:
        metric = RankingMetrics(names)
        user = torch.arange(rank, 102, 2) % 101  # user 0 fills the last place
        for part in user.split(20):
            metric.update(rank_of[part], part)
        return {name: value.item() for name, value in metric.compute().items()}

    one = RankingMetrics(names)
    one.update(rank_of, torch.arange(101))
    expected = {name: value.item() for name, value in one.compute().items()}
    assert on_two_ranks(work) == [expected, expected]
