"""Coefficients of tokens: worked numbers of each aggregation, the cut into minibatches, and bad input."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from zoo.llm_rl.aggregation import Aggregation, coefficients

MODES = get_args(Aggregation)
MASK = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
LOSS = torch.tensor([[1.0, 1, 50, 50], [2, 2, 2, 2]])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("seq_mean_token_mean", 1.5),
        ("token_mean", 10 / 6),
        ("token_mean_local", 10 / 6),
        ("seq_mean_token_sum", 5.0),
        ("dr_grpo", 0.625),
        ("seq_mean_token_sum_norm", 1.25),
    ],
)
def test_worked_numbers(mode: Aggregation, expected: float) -> None:
    share = coefficients(mode, MASK, torch.ones(2, 4), 2, 6, max_length=8)
    assert share.dtype == torch.float32
    assert (share * LOSS).sum().item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("seq_mean_token_mean", (0.5 * 1 / 2 + 1.25 * 2 / 4) / 2),
        ("token_mean", (0.5 * 1 + 1.25 * 2) / 1.75),
        ("token_mean_local", (0.5 * 1 + 1.25 * 2) / 1.75),
        ("seq_mean_token_sum", 3 / 2),
        ("dr_grpo", 3 / 16),
        ("seq_mean_token_sum_norm", 3 / 8),
    ],
)
def test_soft_weights_divide_by_valid_tokens_or_by_their_own_sum(mode: Aggregation, expected: float) -> None:
    weight = torch.tensor([[0.5, 0, 9, 9], [1, 0.25, 0, 0]])
    share = coefficients(mode, MASK, weight, torch.tensor(2.0), torch.tensor(1.75), max_length=8)
    assert (share * LOSS).sum().item() == pytest.approx(expected)


def _cut(mode: Aggregation, cuts: list[int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(7) < torch.tensor([7, 1, 3, 2, 6, 4])[:, None]
    weight = torch.rand(6, 7, generator=generator, dtype=torch.float64).round(decimals=1)
    tokens = (mask * weight).sum()
    parts = zip(mask.split(cuts), weight.split(cuts), strict=True)
    return torch.cat([coefficients(mode, m, w, 6, tokens, max_length=9) for m, w in parts])


@pytest.mark.parametrize("mode", MODES)
def test_only_the_local_mean_depends_on_the_cut_into_minibatches(mode: Aggregation) -> None:
    whole, cut = _cut(mode, [6]), _cut(mode, [1, 3, 2])
    if mode == "token_mean_local":
        assert (whole - cut).abs().max() > 0.01
        assert cut[0].sum().item() == pytest.approx(1 / 6)  # a minibatch of one of six rows
        assert cut.sum().item() == pytest.approx(1)
    else:
        torch.testing.assert_close(whole, cut, rtol=1e-15, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_chosen_is_zero_not_nan(mode: Aggregation) -> None:
    assert (coefficients(mode, MASK, torch.zeros(2, 4), 0.0, 0.0, max_length=8) == 0).all()


def test_an_empty_completion_contributes_nothing_and_is_told() -> None:
    mask = torch.tensor([[True, True], [False, False]])
    with pytest.warns(UserWarning, match="without tokens"):
        share = coefficients("seq_mean_token_mean", mask, torch.ones(2, 2), 2, 2)
    assert share.tolist() == [[0.25, 0.25], [0, 0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "mean"}, "aggregation='mean'.*token_mean"),
        ({"mode": "dr_grpo"}, "max_length=None.*dr_grpo"),
        ({"mode": "seq_mean_token_sum_norm"}, "max_length=None"),
        ({"mode": "dr_grpo", "max_length": 0}, "max_length=0"),
        ({"weight": torch.ones(2, 3)}, r"mask \(2, 4\) and weight \(2, 3\)"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"mode": "token_mean", "mask": MASK, "weight": torch.ones(2, 4)}
    with pytest.raises(ValueError, match=message):
        coefficients(**{**arguments, **change}, sequences=2, tokens=6)
