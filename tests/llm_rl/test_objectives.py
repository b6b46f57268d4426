"""The clipped loss: worked numbers, gradients in the limits, ranks and minibatches against one batch, and bad input."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.llm_rl.aggregation import coefficients
from zoo.llm_rl.batches import Minibatch, Rollout
from zoo.llm_rl.kl import Kl
from zoo.llm_rl.objectives import ClippedSurrogate, Correction, clipped_loss, log_ratio


def make(advantage: Tensor, mask: Tensor | None = None, sampled: Tensor | None = None, **more: Tensor) -> Minibatch:
    """A minibatch whose loss is the mean over its valid tokens."""
    mask = torch.ones_like(advantage, dtype=torch.bool) if mask is None else mask
    rows = len(mask)
    ids, index = torch.zeros(mask.shape, dtype=torch.long), torch.arange(rows)
    prompt = torch.zeros(rows, 1, dtype=torch.long)
    rollout = Rollout(prompt, prompt == 0, ids, mask, index, index < 0, index, sampled=sampled)
    share = coefficients("token_mean", mask, torch.ones_like(advantage), rows, mask.sum())
    return Minibatch(rollout, advantage, more.pop("coefficient", share), **more)


def gradient(objective: ClippedSurrogate, log_probs: Tensor, minibatch: Minibatch) -> tuple[Tensor, Tensor]:
    log_probs = log_probs.clone().requires_grad_()
    loss, _ = objective(log_probs, minibatch, None)
    loss.backward()
    assert log_probs.grad is not None
    return loss.detach(), log_probs.grad


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("ratio", "advantage", "options", "expected"),
    [
        (1.5, 1, {}, -1.28),
        (1.5, -1, {}, 1.5),
        (0.5, 1, {}, -0.5),
        (0.5, -1, {}, 0.8),
        (1.25, 1, {}, -1.25),
        (1.25, 1, {"eps_high": 0.2}, -1.2),
        (5, -1, {}, 5),
        (5, -1, {"dual_clip": 3.0}, 3),
        (5, -2, {"dual_clip": 3.0}, 6),
        (5, 1, {"dual_clip": 3.0}, -1.28),
        (0.5, -1, {"dual_clip": 3.0}, 0.8),
        (5, -1, {"delta": 2.0}, 2),
        (5, 1, {"delta": 2.0}, -1.28),
        (1.25, 1, {"delta": 2.0}, -1.25),
    ],
)
def test_worked_numbers_of_the_clip(ratio: float, advantage: float, options: dict[str, float], expected: float) -> None:
    switches = {"eps_low": 0.2, "eps_high": 0.28, **options}
    found = clipped_loss(torch.tensor(ratio), torch.tensor(float(advantage)), **switches)
    assert found.item() == pytest.approx(expected)
    objective = ClippedSurrogate(**switches)  # type: ignore[arg-type]
    minibatch = make(torch.tensor([[float(advantage)]]), old=torch.zeros(1, 1))
    loss, _ = objective(torch.tensor([[math.log(ratio)]]), minibatch, None)
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("level", ["token", "sequence", "sequence_sum"])
@pytest.mark.parametrize("options", [{}, {"eps_low": 0.0}, {"eps_high": 0.5}, {"dual_clip": 3.0}, {"delta": 2.0}])
@pytest.mark.parametrize("given", [True, False])
def test_at_ratio_one_the_gradient_is_that_of_the_policy(level: Any, options: dict[str, Any], given: bool) -> None:
    log_probs = random(3, 4) - 2
    advantage = random(3, 1, seed=1).expand(3, 4)
    minibatch = make(advantage, **({"old": log_probs} if given else {}))
    loss, grad = gradient(ClippedSurrogate(ratio=level, **options), log_probs, minibatch)
    # with the sum over a row, each of its four tokens has a part in four losses
    torch.testing.assert_close(grad, -advantage / 12 * (4 if level == "sequence_sum" else 1))
    torch.testing.assert_close(loss, -advantage.mean())


def test_beyond_the_clip_there_is_no_gradient() -> None:
    old, advantage = torch.zeros(1, 4), torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    _, grad = gradient(ClippedSurrogate(), torch.tensor([[1.3, 0.7, 1.3, 0.7]]).log(), make(advantage, old=old))
    assert grad[0].tolist() == pytest.approx([0, -0.7 / 4, 1.3 / 4, 0])


def test_beyond_delta_or_dual_clip_there_is_no_gradient() -> None:
    minibatch = make(-torch.ones(1, 2), old=torch.zeros(1, 2))
    for option in ({"delta": 3.0}, {"dual_clip": 3.0}):
        _, grad = gradient(ClippedSurrogate(**option), torch.tensor([[5.0, 2.5]]).log(), minibatch)  # type: ignore[arg-type]
        assert grad[0].tolist() == pytest.approx([0, 1.25])


def test_sequence_ratios_take_all_valid_tokens_and_the_coefficients_only_those_chosen() -> None:
    mask = torch.tensor([[True, True, True, False]])
    x = torch.tensor([[0.3, 0.0, -0.6, 7.0]])
    assert log_ratio(x, torch.zeros(1, 4), mask, "sequence").item() == pytest.approx(-0.1)
    assert log_ratio(x, torch.zeros(1, 4), mask, "sequence_sum").item() == pytest.approx(-0.3)
    one = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    minibatch = make(torch.ones(1, 4), mask, old=torch.zeros(1, 4), coefficient=one)
    loss, grad = gradient(ClippedSurrogate(ratio="sequence"), x, minibatch)
    ratio = math.exp(-0.1)
    assert loss.item() == pytest.approx(-ratio)
    assert grad[0].tolist() == pytest.approx([-ratio / 3] * 3 + [0])


def test_one_token_makes_all_ratios_equal() -> None:
    log_probs, old, advantage = random(5, 1) / 3, torch.zeros(5, 1).double(), random(5, 1, seed=1)
    results = [
        gradient(ClippedSurrogate(ratio=level), log_probs, make(advantage, old=old))  # type: ignore[arg-type]
        for level in ("token", "sequence", "sequence_sum")
    ]
    for loss, grad in results[1:]:
        torch.testing.assert_close(loss, results[0][0])
        torch.testing.assert_close(grad, results[0][1])


def test_padding_never_reaches_loss_or_gradient() -> None:
    mask = torch.tensor([[True, True, False]])
    log_probs = torch.tensor([[-1.0, -2.0, math.nan]])
    for level in ("token", "sequence", "sequence_sum"):
        loss, grad = gradient(ClippedSurrogate(ratio=level), log_probs, make(torch.ones(1, 3), mask))  # type: ignore[arg-type]
        assert loss.item() == pytest.approx(-1)
        assert grad[0, 2] == 0
        assert grad[0, :2].isfinite().all()


def test_huge_ratios_stay_finite() -> None:
    for level in ("token", "sequence", "sequence_sum"):
        loss, grad = gradient(
            ClippedSurrogate(ratio=level),  # type: ignore[arg-type]
            torch.zeros(1, 9),
            make(-torch.ones(1, 9), old=torch.full((1, 9), -80.0)),
        )
        assert loss.item() == pytest.approx(math.exp(20), rel=1e-5)
        assert (grad == 0).all()


# --- ranks and minibatches -------------------------------------------------------------------------------------------

LENGTHS = torch.tensor([7, 1, 3, 2, 6, 4])
VALID = torch.arange(7) < LENGTHS[:, None]
DIRECTION = random(6, 7, seed=4)


def policy_gradient(rows: slice, objective: ClippedSurrogate, sequences: float, tokens: float) -> tuple[Tensor, Tensor]:
    """Loss and gradient to three numbers that all rows share."""
    theta = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    log_probs = ((theta * random(6, 7, 3, seed=3)).sum(-1) - 2)[rows]
    old = log_probs.detach() + 0.3 * DIRECTION[rows]
    advantage = random(6, 1, seed=2).expand(6, 7)[rows]
    share = coefficients(
        objective.aggregation, VALID[rows], torch.ones(6, 7).double()[rows], sequences, tokens, objective.max_length
    )
    minibatch = make(advantage, VALID[rows], old=old, reference=old - 0.1, coefficient=share)
    loss, _ = objective(log_probs, minibatch, -log_probs)
    loss.backward()
    assert theta.grad is not None
    return loss.detach(), theta.grad


def added(cuts: list[slice], objective: ClippedSurrogate) -> Tensor:
    return torch.stack([policy_gradient(rows, objective, 6, LENGTHS.sum().item())[1] for rows in cuts]).sum(0)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("mode", ["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "dr_grpo"])
def test_minibatches_add_up_to_the_batch(mode: Any, level: Any) -> None:
    objective = ClippedSurrogate(level, 0.2, 0.28, aggregation=mode, max_length=9, kl=Kl(0.1), entropy=0.01)
    cut = added([slice(0, 1), slice(1, 4), slice(4, 6)], objective)
    torch.testing.assert_close(cut, added([slice(0, 6)], objective), rtol=1e-12, atol=1e-14)


def test_ranks_average_to_one_process_where_local_means_do_not() -> None:
    objective = ClippedSurrogate(eps_high=0.28)
    ranks = slice(0, 2), slice(2, 6)  # 8 and 15 tokens
    _, whole = policy_gradient(slice(0, 6), objective, 6, 23)
    average = sum(2 * policy_gradient(rows, objective, 6, 23)[1] for rows in ranks) / 2
    torch.testing.assert_close(average, whole, rtol=0, atol=1e-15)
    means = sum(policy_gradient(rows, objective, 6, count)[1] for rows, count in zip(ranks, (8, 15), strict=True)) / 2
    assert (means - whole).abs().max() > 0.03  # of 0.13


# --- what is added to a token's loss ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token_truncate", [[2.0, 3.0, 0.5, 1.0], [0.5, 1.0, 1.0, 1.0]]),
        ("token_mask", [[2.0, 0.0, 0.5, 1.0], [0.5, 1.0, 1.0, 1.0]]),
        ("sequence_truncate", [[3.0], [0.5]]),
        ("sequence_mask", [[0.0], [0.5]]),
    ],
)
def test_correction_for_another_engine(mode: Any, expected: list[list[float]]) -> None:
    ratio = torch.tensor([[2.0, 4.0, 0.5, 100.0], [0.5, 1.0, 1.0, 100.0]])
    mask = torch.tensor([[True, True, True, False]] * 2)
    old, sampled = torch.full((2, 4), -2.0), -2 - ratio.log()
    weight = Correction(mode)(old, sampled, mask)
    torch.testing.assert_close(weight, torch.tensor(expected))
    minibatch = make(torch.ones(2, 4), mask, sampled, old=old)
    loss, metrics = ClippedSurrogate(correction=Correction(mode))(old, minibatch, None)
    assert loss.item() == pytest.approx(-weight.expand(2, 4)[mask].mean().item())
    total, count = metrics["sampling/sampling_logp_difference/mean"]
    assert (total.item(), count.item()) == (pytest.approx(5 * math.log(2)), 6)


def test_a_probability_the_engine_did_not_report_counts_as_equal() -> None:
    sampled = torch.tensor([[math.nan, -1.0]])
    weight = Correction("sequence_mask")(torch.full((1, 2), -0.5), sampled, torch.ones(1, 2).bool())
    assert weight.item() == pytest.approx(math.exp(0.5))
    _, metrics = ClippedSurrogate()(torch.full((1, 2), -0.5), make(torch.ones(1, 2), sampled=sampled), None)
    assert [x.item() for x in metrics["sampling/sampling_logp_difference/mean"]] == [0.5, 1]


def test_kl_and_entropy_are_added_to_each_token_and_logged() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    log_probs = torch.full((2, 2), -1.0, requires_grad=True)
    entropy = torch.tensor([[1.0, 2.0], [3.0, 50.0]], requires_grad=True)
    minibatch = make(torch.zeros(2, 2), mask, reference=torch.full((2, 2), -1.5))
    loss, metrics = ClippedSurrogate(kl=Kl(0.2), entropy=0.1)(log_probs, minibatch, entropy)
    assert loss.item() == pytest.approx(0.2 * 0.106531 - 0.1 * 2, abs=1e-6)
    assert metrics["kl"][0].item() == pytest.approx(3 * 0.106531, abs=1e-5)
    assert [x.item() for x in metrics["entropy"]] == [6, 3]
    loss.backward()
    assert entropy.grad is not None
    torch.testing.assert_close(entropy.grad, -0.1 / 3 * mask)


def test_the_weight_of_the_divergence_is_the_ratio_of_the_loss() -> None:
    minibatch = make(torch.zeros(1, 2), old=torch.full((1, 2), -2.0), reference=torch.full((1, 2), -1.5))
    loss, _ = ClippedSurrogate(kl=Kl(0.2, importance=True))(torch.full((1, 2), -1.0), minibatch, None)
    assert loss.item() == pytest.approx(0.2 * math.e * 0.106531, abs=1e-6)


def test_a_penalty_in_the_reward_is_not_in_the_loss() -> None:
    loss, metrics = ClippedSurrogate(kl=Kl(0.2, placement="reward"))(
        torch.zeros(1, 2), make(torch.ones(1, 2), reference=torch.ones(1, 2)), None
    )
    assert loss.item() == pytest.approx(-1)
    assert "kl" not in metrics


def test_clip_ratios_count_tokens_or_rows() -> None:
    ratio = torch.tensor([[0.7, 0.7, 1.4, 1.4], [1.4, 1.4, 1.0, 9.0]])
    advantage = torch.tensor([[-1.0], [1.0]]).expand(2, 4)
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    minibatch = make(advantage, mask, old=torch.zeros(2, 4))
    _, metrics = ClippedSurrogate(eps_high=0.28)(ratio.log(), minibatch, None)
    found = {name: (total.item(), count.item()) for name, (total, count) in metrics.items()}
    assert found == {"clip_ratio/low_mean": (2, 7), "clip_ratio/high_mean": (2, 7), "clip_ratio/region_mean": (4, 7)}
    _, metrics = ClippedSurrogate("sequence", eps_high=0.2)(ratio.log(), minibatch, None)  # .99 and 1.25
    assert [metrics[f"clip_ratio/{name}_mean"][0].item() for name in ("low", "high", "region")] == [0, 1, 1]
    assert metrics["clip_ratio/low_mean"][1].item() == 2


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ClippedSurrogate(eps_low=1.0), r"eps_low=1\.0"),
        (lambda: ClippedSurrogate(eps_low=-0.1), r"eps_low=-0\.1"),
        (lambda: ClippedSurrogate(eps_high=-0.1), r"eps_high=-0\.1"),
        (lambda: ClippedSurrogate(dual_clip=1.0), r"dual_clip=1\.0"),
        (lambda: ClippedSurrogate(delta=1.2), r"delta=1\.2"),
        (lambda: ClippedSurrogate(entropy=-1.0), r"entropy=-1\.0"),
        (lambda: ClippedSurrogate(ratio="word"), "ratio='word'.*sequence_sum"),
        (lambda: ClippedSurrogate(aggregation="dr_grpo"), "max_length=None"),
        (lambda: ClippedSurrogate(aggregation="mean"), "aggregation='mean'"),
        (lambda: Correction("clip"), "mode='clip'"),
        (lambda: Correction(cap=0.0), r"cap=0\.0"),
    ],
)
def test_bad_settings_are_named(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (ClippedSurrogate(kl=Kl(0.1)), "reference policy"),
        (ClippedSurrogate(entropy=0.1), "entropies"),
        (ClippedSurrogate(correction=Correction()), "log-probabilities"),
    ],
)
def test_what_a_setting_needs_must_be_there(objective: ClippedSurrogate, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objective(torch.zeros(1, 2), make(torch.ones(1, 2)), None)
