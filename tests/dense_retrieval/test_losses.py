"""The contrastive loss: worked values, its limits, and what is no negative."""

import math

import pytest
import torch

from zoo.dense_retrieval import contrastive_loss
from zoo.optimization import LinearWarmup

QUERY = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
PASSAGE = torch.tensor([[0.8, 0.6], [0.0, 1.0], [0.6, 0.8], [1.0, 0.0]])


@pytest.mark.parametrize(("temperature", "value"), [(1.0, 1.249748), (0.01, 20.0)])
def test_worked_values(temperature: float, value: float) -> None:
    assert contrastive_loss(QUERY, PASSAGE, temperature).item() == pytest.approx(value, abs=1e-5)


def test_positives_stand_at_multiples_of_the_group() -> None:
    by_hand = []
    for i, j in ((0, 0), (1, 2)):
        scores = [float(QUERY[i] @ p) for p in PASSAGE]
        by_hand.append(math.log(sum(map(math.exp, scores))) - scores[j])
    assert contrastive_loss(QUERY, PASSAGE, 1.0).item() == pytest.approx(sum(by_hand) / 2, abs=1e-6)


def test_equal_vectors_give_the_log_of_the_number_of_passages() -> None:
    x = torch.nn.functional.normalize(torch.ones(1, 8), dim=1)
    loss = contrastive_loss(x.expand(5, 8), x.expand(15, 8), 0.01)
    assert loss.item() == pytest.approx(math.log(15), abs=1e-5)


def test_another_querys_copy_of_the_positive_document_is_no_negative() -> None:
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    passage = torch.tensor([[0.8, 0.6], [0.8, 0.6]])
    same, other = torch.tensor([7, 7]), torch.tensor([7, 8])
    assert contrastive_loss(query, passage, 1.0, row=same).item() == pytest.approx(0.0, abs=1e-6)
    assert contrastive_loss(query, passage, 1.0, row=other).item() == pytest.approx(math.log(2), abs=1e-6)
    unknown = torch.tensor([-1, -1])  # no document is not the same document
    assert contrastive_loss(query, passage, 1.0, row=unknown).item() == pytest.approx(math.log(2), abs=1e-6)


def test_autocast_does_not_touch_the_scores() -> None:
    query, passage = (torch.nn.functional.normalize(torch.randn(n, 16), dim=1) for n in (4, 8))
    plain = contrastive_loss(query, passage)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(contrastive_loss(query, passage), plain)


def test_bad_input() -> None:
    for query, passage in ((torch.ones(2, 3), torch.ones(3, 3)), (torch.ones(2, 3), torch.ones(4, 2))):
        with pytest.raises(ValueError, match="must be \\[B, H\\] and \\[B \\* G, H\\]"):
            contrastive_loss(query, passage)
    with pytest.raises(ValueError, match="temperature=0: must be above 0"):
        contrastive_loss(QUERY, PASSAGE, 0)


def test_linear_warmup_rises_and_falls() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule, rates = LinearWarmup(optimizer, 4, 12), []
    for _ in range(14):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0, 0.5, 1, 1.5, 2, 1.75, 1.5, 1.25, 1, 0.75, 0.5, 0.25, 0, 0])
    with pytest.raises(ValueError, match="warmup=5, total=5"):
        LinearWarmup(optimizer, 5, 5)
