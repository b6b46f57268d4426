"""Metrics of ranked relevance against a worked example and a plain loop."""

import pytest
import torch
from torch import Tensor

from zoo.retrieval.metrics import (
    average_precision,
    map_at,
    map_at_r,
    precision_at,
    r_precision,
    recall_at,
    reciprocal_rank,
)

EXAMPLE = torch.tensor([[1, 0, 1, 0, 1, 0]]).bool()
THREE = torch.tensor([3])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (recall_at(EXAMPLE, 1), 1),
        (precision_at(EXAMPLE, 3), 2 / 3),
        (r_precision(EXAMPLE, THREE), 2 / 3),
        (map_at_r(EXAMPLE, THREE), (1 + 2 / 3) / 3),  # 0.5556
        (average_precision(EXAMPLE, THREE), (1 + 2 / 3 + 3 / 5) / 3),  # 0.7556
        (map_at(EXAMPLE, THREE, 3), (1 + 2 / 3) / 3),  # 0.8333 if only what was found counted
        (map_at(EXAMPLE, THREE, 2), 1 / 2),
        (map_at(EXAMPLE, THREE, 5), (1 + 2 / 3 + 3 / 5) / 3),
        (reciprocal_rank(EXAMPLE), 1),
        (reciprocal_rank(EXAMPLE[:, 1:]), 1 / 2),
        (reciprocal_rank(~EXAMPLE & False), 0),
        (recall_at(EXAMPLE[:, 1:], 1), 0),
    ],
)
def test_worked_example(value: Tensor, expected: float) -> None:
    assert value.tolist() == pytest.approx([expected])
    assert value.dtype == torch.float64


def test_a_perfect_ranking_scores_one_and_a_late_one_what_a_loop_gives() -> None:
    relevant = torch.tensor([1, 4, 7])
    best = torch.arange(7) < relevant[:, None]
    for values in (map_at_r(best, relevant), r_precision(best, relevant), average_precision(best, relevant)):
        assert values.tolist() == [1, 1, 1]
    assert map_at(best, relevant, 5).tolist() == [1, 1, 1]
    assert precision_at(best, 4).tolist() == [0.25, 1, 1]
    late = best.flip(1)
    by_hand = [sum((i + 1) / (7 - r + i + 1) for i in range(r)) / r for r in (1, 4, 7)]
    assert average_precision(late, relevant).tolist() == pytest.approx(by_hand)


def test_order_between_metrics() -> None:
    g = torch.Generator().manual_seed(0)
    relevance = torch.rand(200, 20, generator=g) < 0.3
    relevant = (relevance.sum(1) + torch.randint(0, 4, (200,), generator=g)).clamp(1, 20)
    assert (map_at_r(relevance, relevant) <= r_precision(relevance, relevant)).all()
    assert r_precision(relevance, relevant).max() <= 1
    recalls = torch.stack([recall_at(relevance, k) for k in range(1, 21)])
    assert (recalls[1:] >= recalls[:-1]).all()
    for row, r in zip(relevance.tolist(), relevant.tolist(), strict=True):
        one, n = torch.tensor([row]), torch.tensor([r])
        precision = [sum(row[: i + 1]) / (i + 1) for i in range(20)]
        assert map_at_r(one, n).item() == pytest.approx(sum(precision[i] * row[i] for i in range(r)) / r)


def test_what_cannot_be_measured() -> None:
    with pytest.raises(ValueError, match=r"2 hits were ranked, but a query has 3 relevant items.*use map@k"):
        map_at_r(EXAMPLE[:, :2], THREE)
    with pytest.raises(ValueError, match="increase the depth"):
        r_precision(EXAMPLE[:, :2], THREE)
    with pytest.raises(ValueError, match="1 queries end before their last relevant item"):
        average_precision(EXAMPLE[:, :4], THREE)
    with pytest.raises(ValueError, match="1 queries have no relevant item"):
        map_at_r(EXAMPLE, torch.tensor([0]))
    for k in (0, -1, 7):
        with pytest.raises(ValueError, match=f"k={k}: must be at least 1 and at most the 6"):
            recall_at(EXAMPLE, k)
