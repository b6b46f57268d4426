"""InfoNCE against worked numbers and closed forms, and the objectives against each other."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from zoo.recommenders import BPR, FullSoftmax, SampledSoftmax
from zoo.recommenders.losses import info_nce

A = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
B = torch.tensor([[2.0, 0.0], [1.0, 1.0]])


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({}, 0.566942),
        ({"temperature": 0.5}, 0.409949),
        ({"similarity": "cosine"}, 0.820488),
        ({"form": "one_way"}, 0.220095),
    ],
)
def test_worked_numbers(switches: dict[str, object], expected: float) -> None:
    assert info_nce(A, B, **switches).item() == pytest.approx(expected, abs=1e-6)  # type: ignore[arg-type]


def test_closed_forms() -> None:
    eye = torch.eye(2)
    assert info_nce(eye, eye).item() == pytest.approx(math.log(1 + 2 / math.e), abs=1e-6)
    assert info_nce(eye, eye, form="one_way").item() == pytest.approx(math.log(1 + 1 / math.e), abs=1e-6)
    zero = torch.zeros(256, 4)
    assert info_nce(zero, zero).item() == pytest.approx(6.236370, abs=1e-5)
    assert info_nce(zero, zero, form="one_way").item() == pytest.approx(5.545177, abs=1e-5)


def test_the_positive_in_the_first_column_is_the_same_loss() -> None:
    z = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    scores = z @ z.T
    rows = [
        torch.cat([scores[i, (i + 5) % 10, None], scores[i, [j for j in range(10) if j not in (i, (i + 5) % 10)]]])
        for i in range(10)
    ]
    expected = cross_entropy(torch.stack(rows), torch.zeros(10, dtype=torch.long))
    torch.testing.assert_close(info_nce(z[:5], z[5:]), expected)


def test_views_are_interchangeable_in_the_symmetric_form_only() -> None:
    a, b = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    assert info_nce(a, b).item() == pytest.approx(info_nce(b, a).item(), abs=1e-5)
    assert abs(info_nce(a, b, form="one_way") - info_nce(b, a, form="one_way")) > 0.01


def test_a_zero_vector_has_cosine_zero_and_a_finite_gradient() -> None:
    h, positive = torch.randn(3, 4).requires_grad_(), torch.randn(3, 4).requires_grad_()
    mixed = positive * torch.tensor([[1.0], [0.0], [1.0]])
    info_nce(h, mixed, similarity="cosine").backward()
    assert h.grad is not None
    assert h.grad.isfinite().all()
    assert positive.grad is not None
    assert positive.grad.isfinite().all()
    assert not positive.grad[1].any()


@pytest.mark.parametrize("form", ["symmetric", "one_way"])
def test_one_pair_warns_that_it_has_no_negatives(form: str) -> None:
    with pytest.warns(UserWarning, match="a batch of one pair has no negatives"):
        assert info_nce(A[:1], B[:1], form=form) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0: must be above 0"),
        ({"similarity": "l2"}, "similarity='l2': must be dot or cosine"),
        ({"form": "both"}, "form='both': must be symmetric or one_way"),
    ],
)
def test_switches_out_of_range_are_errors(switches: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        info_nce(A, B, **switches)  # type: ignore[arg-type]


def drawn(rows: int, items: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(1, items + 1, (rows,), generator=generator)
    return torch.randn(rows, 8, generator=generator), torch.randn(items + 1, 8, generator=generator), target


def test_the_full_softmax_knows_no_padding_row() -> None:
    h, table, target = drawn(5, 20)
    scores = h @ table.T
    expected = (scores[:, 1:].exp().sum(1).log() - scores.gather(1, target[:, None])[:, 0]).mean()
    torch.testing.assert_close(FullSoftmax()(h, table, target), expected)
    assert FullSoftmax()(torch.zeros(5, 8), table, target).item() == pytest.approx(math.log(20), abs=1e-6)


def test_sampled_softmax_of_two_items_is_the_full_one() -> None:
    h, table, target = drawn(6, 2)
    torch.testing.assert_close(SampledSoftmax(20)(h, table, target), FullSoftmax()(h, table, target))


def test_many_samples_come_close_to_the_full_softmax() -> None:
    torch.manual_seed(0)
    h, table, target = drawn(64, 50)
    full = FullSoftmax()(h, table, target).item()
    assert SampledSoftmax(20000)(h, table, target).item() == pytest.approx(full, abs=0.02)


def test_bpr_never_draws_the_target_and_is_log_2_without_knowledge() -> None:
    h, table, target = drawn(200, 3)
    assert BPR()(torch.zeros(200, 8), table, target).item() == pytest.approx(math.log(2), abs=1e-6)
    table = torch.zeros(4, 8)
    table[1], h, target = 50.0, torch.ones(200, 8), torch.ones(200, dtype=torch.long)
    assert BPR()(h, table, target) < 1e-6  # log 2 for each row whose own target was drawn
