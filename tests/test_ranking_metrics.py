"""Ranks of targets with ties, and HR, NDCG and MRR at k from them."""

import pytest
import torch

from zoo.metrics import MRR, NDCG, HitRate, RankingMetrics, target_ranks

RANKS = torch.tensor([1.0, 3.0, 11.0, 25.0])
USERS = torch.tensor([7, 0, 3, 5])


@pytest.mark.parametrize(("k", "hr", "ndcg", "mrr"), [(5, 0.5, 0.375, 1 / 3), (20, 0.75, 0.444736, 0.356061)])
def test_worked_ranks(k: int, hr: float, ndcg: float, mrr: float) -> None:
    for metric, expected in ((HitRate(k), hr), (NDCG(k), ndcg), (MRR(k), mrr)):
        metric.update(RANKS[:1], USERS[:1])
        metric.update(RANKS[1:], USERS[1:])
        assert metric.compute().item() == pytest.approx(expected, abs=1e-6)


def test_rank_10_counts_at_10_and_rank_11_does_not() -> None:
    metric = RankingMetrics(["hr@10", "hr@11"])
    metric.update(torch.tensor([11.0]), torch.tensor([0]))
    assert {name: value.item() for name, value in metric.compute().items()} == {"hr@10": 0, "hr@11": 1}


def test_a_user_who_comes_twice_counts_once() -> None:
    metric = RankingMetrics(["mrr@10"])
    metric.update(torch.tensor([2.0, 4.0, 4.0]), torch.tensor([8, 1, 1]))
    metric.update(torch.tensor([2.0]), torch.tensor([8]))
    assert metric.compute()["mrr@10"].item() == (1 / 2 + 1 / 4) / 2
    user, rank = metric.per_user()
    assert (user.tolist(), rank.tolist()) == ([1, 8], [4, 2])


def test_constant_scores_are_at_the_middle_unless_told() -> None:
    scores, target = torch.zeros(1, 30), torch.tensor([12])
    rank = {ties: target_ranks(scores, target, ties).item() for ties in ("average", "optimistic", "pessimistic")}
    assert rank == {"average": 15.5, "optimistic": 1, "pessimistic": 30}


def test_ranks_count_better_scores_and_half_of_equal_ones() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0, 2.0, 2.0], [0.0, -1.0, 5.0, 4.0, 4.5]])
    assert target_ranks(scores, torch.tensor([2, 1])).tolist() == [3, 5]
    assert target_ranks(scores, torch.tensor([2, 1]), "optimistic").tolist() == [2, 5]


def test_nan_is_an_error_and_not_a_perfect_rank() -> None:
    with pytest.raises(ValueError, match="NaN"):
        target_ranks(torch.tensor([[0.0, torch.nan, 1.0]]), torch.tensor([1]))
    with pytest.raises(ValueError, match="NaN"):
        target_ranks(torch.tensor([[0.0, torch.nan, 1.0]]), torch.tensor([0]))


@pytest.mark.parametrize("name", ["hr", "hr@0", "recall@10", "ndcg@-1"])
def test_an_unknown_name_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=f"metric '{name}' is unknown"):
        RankingMetrics([name])
