"""Prototypes at the vertices of a regular simplex: closed forms, and the same bits everywhere."""

import math

import pytest
import torch

from zoo.stationary.simplex import LabelOrder, prototype_row, simplex, simplex_hash


@pytest.mark.parametrize(
    ("count", "rows"),
    [
        (2, [[1.0], [-1.0]]),
        (3, [[0.965926, -0.258819], [-0.258819, 0.965926], [-0.707107, -0.707107]]),
        (4, [[0.962250, -0.192450, -0.192450], [-0.192450, 0.962250, -0.192450], [-0.192450, -0.192450, 0.962250]]),
    ],
)
def test_small_simplexes(count: int, rows: list[list[float]]) -> None:
    torch.testing.assert_close(simplex(count)[: len(rows)], torch.tensor(rows), rtol=0, atol=1e-6)


def test_the_last_of_four() -> None:
    torch.testing.assert_close(simplex(4)[3], torch.full((3,), -0.577350), rtol=0, atol=1e-6)


def test_ten_prototypes_form_a_tight_frame() -> None:
    rows = simplex(10, torch.float64)
    gram = torch.full((10, 10), -1 / 9, dtype=torch.float64).fill_diagonal_(1)
    torch.testing.assert_close(rows @ rows.T, gram, rtol=0, atol=1e-15)
    torch.testing.assert_close(rows.T @ rows, 10 / 9 * torch.eye(9, dtype=torch.float64), rtol=0, atol=1e-15)
    assert rows.sum(0).abs().max() < 1e-15


def test_float32_rounding_of_1024_prototypes() -> None:
    rows = simplex(1024)
    assert ((rows.norm(dim=1) - 1).abs() < 5e-7).all()
    # the Gram matrix in float64 shows the rounding of the rows, not of a matrix product
    others = (rows.double() @ rows.double().T)[~torch.eye(1024, dtype=torch.bool)]
    assert others.min() >= -9.77573e-4
    assert others.max() <= -9.77507e-4


def test_the_official_construction_agrees() -> None:
    rows = torch.cat([torch.eye(9), torch.full((1, 9), (1 - math.sqrt(10)) / 9)])
    rows = rows - rows.mean(0)
    rows = rows / (rows.norm(dim=1, keepdim=True) + 1e-8)
    torch.testing.assert_close(simplex(10), rows, rtol=0, atol=2e-7)


def test_the_bits_are_the_same_on_every_machine() -> None:
    assert simplex_hash(10) == 8189424132684819140
    assert simplex_hash(1024) == 6300465341369822930
    assert simplex(1024).unique().numel() == 3
    with torch.device("meta"):
        assert simplex(3)[2, 0].item() == pytest.approx(-(0.5**0.5))


@pytest.mark.parametrize("order", ["from_end", "from_start"])
def test_rows_are_an_involution(order: LabelOrder) -> None:
    label = torch.arange(7)
    assert torch.equal(prototype_row(prototype_row(label, 7, order), 7, order), label)
    assert prototype_row(torch.tensor([0, 2]), 7, order).tolist() == {"from_end": [6, 4], "from_start": [0, 2]}[order]


def test_server_and_local_rows_never_meet_while_they_fit() -> None:
    for server in range(8):
        local = prototype_row(torch.arange(7 - server), 7, "from_end").tolist()
        used = prototype_row(torch.arange(server), 7, "from_start").tolist()
        assert sorted(used + local) == list(range(7))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"num_prototypes=1: .* at least 2"):
        simplex(1)
    with pytest.raises(ValueError, match="label_order='middle': choose one of from_end, from_start"):
        prototype_row(torch.tensor([0]), 4, "middle")  # type: ignore[arg-type]
