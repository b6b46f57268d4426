"""Summaries of compatibility matrices: the two that the authors published for seven tasks, limits, missing cells."""

import pytest
import torch
from torch import Tensor

from zoo.metrics import (
    average_accuracy,
    average_compatibility,
    failing_cells,
    reindexing_gap,
    running_average_accuracy,
    update_gain,
)

NAN = float("nan")
HOC = """58.892
59.700 61.560
63.050 65.276 69.314
63.336 65.298 70.626 72.374
65.006 67.872 70.754 72.114 73.828
64.080 67.188 71.166 72.712 74.704 76.194
63.140 66.350 72.096 73.496 75.232 76.652 77.164"""
ER = """63.420
61.556 63.092
11.708 11.230 72.734
11.430 10.530 69.232 70.300
9.080 7.756 9.296 8.552 74.464
8.512 7.364 10.338 9.524 72.260 72.312
9.718 8.578 9.750 9.748 70.352 70.630 71.544"""


def lower(text: str) -> Tensor:
    rows = [[float(x) for x in line.split()] for line in text.splitlines()]
    return torch.tensor([row + [NAN] * (len(rows) - len(row)) for row in rows], dtype=torch.float64)


def test_the_published_matrix_of_d_simplex_hoc() -> None:
    matrix = lower(HOC)
    assert average_compatibility(matrix) == pytest.approx(20 / 21)
    assert failing_cells(matrix) == [(4, 3)]
    assert average_accuracy(matrix) == pytest.approx(68.8991, abs=5e-5)
    running = [58.89, 60.05, 62.97, 64.94, 66.60, 67.86, 68.90]
    assert running_average_accuracy(matrix).tolist() == pytest.approx(running, abs=5e-3)


def test_the_published_matrix_of_experience_replay() -> None:
    matrix = lower(ER)
    assert average_compatibility(matrix) == 0
    assert failing_cells(matrix) == [(t, k) for t in range(7) for k in range(t)]
    assert average_accuracy(matrix) == pytest.approx(35.1789, abs=5e-5)


def test_strict_inequality_at_the_limits() -> None:
    increasing = torch.arange(5.0)[:, None].expand(5, 5)
    assert average_compatibility(increasing) == 1
    assert average_compatibility(torch.full((5, 5), 0.3)) == 0
    # a true 0 and a true 1 count like any other score
    assert average_accuracy(torch.tensor([[0.0, NAN], [0.0, 1.0]])) == pytest.approx(1 / 3)


def test_one_model_has_no_pair() -> None:
    one = torch.tensor([[0.4]])
    assert average_compatibility(one) != average_compatibility(one)
    assert average_accuracy(one) == pytest.approx(0.4)
    assert failing_cells(one) == []
    assert len(reindexing_gap(one)) == 0


def test_what_stands_above_the_diagonal_is_ignored() -> None:
    matrix = lower(HOC)
    filled = torch.where(matrix.isnan(), 1e9, matrix)
    assert average_accuracy(filled) == average_accuracy(matrix)
    assert average_compatibility(filled) == average_compatibility(matrix)


def test_gap_and_gain_of_an_update() -> None:
    matrix = torch.tensor([[50.0, NAN, NAN], [55.0, 60.0, NAN], [45.0, 62.0, 58.0]])
    assert reindexing_gap(matrix).tolist() == [13.0, -4.0]
    gain = update_gain(matrix)
    assert [gain[1, 0].item(), gain[2, 0].item()] == [0.5, -0.625]
    # model 2's self-test is below model 1's: there is no gain to have a part of
    assert gain.isnan().sum() == 7


def test_missing_cells_are_named_unless_left_out_on_purpose() -> None:
    matrix = torch.tensor([[50.0, NAN, NAN], [NAN, 60.0, NAN], [NAN, 70.0, 65.0]])
    for summary in (average_compatibility, average_accuracy, failing_cells, reindexing_gap, update_gain):
        with pytest.raises(ValueError, match=r"no score at \(1, 0\), \(2, 0\) .*skip_missing=True"):
            summary(matrix)
    assert average_compatibility(matrix, skip_missing=True) == 1
    assert average_accuracy(matrix, skip_missing=True) == pytest.approx(245 / 4)
    assert failing_cells(matrix, skip_missing=True) == []
    assert reindexing_gap(matrix, skip_missing=True)[1] == -5


def test_shape_is_checked() -> None:
    with pytest.raises(ValueError, match=r"square .*\[2, 3\]"):
        average_accuracy(torch.zeros(2, 3))
