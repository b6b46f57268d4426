"""Estimators of the divergence: values, exact means of value and gradient, and the penalty in the reward."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.llm_rl.kl import Estimator, Kl, kl_estimate, sequence_kl, token_rewards

THETA = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
REFERENCE = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
TO_REFERENCE = [0.13880, -0.21958, 0.08078]  # gradient of KL(policy || reference)
FROM_REFERENCE = [0.15362, -0.28552, 0.13191]  # gradient of KL(reference || policy)


@pytest.mark.parametrize(("estimator", "value"), [("k1", 0.5), ("k2", 0.125), ("k3", 0.106531), ("k3+", 0.106531)])
def test_worked_values(estimator: Estimator, value: float) -> None:
    found = kl_estimate(estimator, torch.tensor(-1.0), torch.tensor(-1.5))
    assert found.item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
    ("estimator", "mean", "gradient"),
    [
        ("k1", 0.177386, [0.0, 0.0, 0.0]),
        ("k2", 0.162928, TO_REFERENCE),
        ("k3", 0.177386, FROM_REFERENCE),
        ("k3+", 0.177386, TO_REFERENCE),
    ],
)
def test_means_over_all_samples_of_value_and_gradient(estimator: Estimator, mean: float, gradient: list[float]) -> None:
    theta = THETA.clone().requires_grad_()
    log_probs = theta.log_softmax(0)
    value = (log_probs.detach().exp() * kl_estimate(estimator, log_probs, REFERENCE)).sum()
    value.backward()
    assert value.item() == pytest.approx(mean, abs=1e-6)
    assert theta.grad is not None
    assert theta.grad.tolist() == pytest.approx(gradient, abs=1e-5)


def test_k1_in_the_reward_has_the_gradient_of_the_divergence() -> None:
    theta = THETA.clone().requires_grad_()
    log_probs = theta.log_softmax(0)
    cost = kl_estimate("k1", log_probs, REFERENCE).detach()
    (log_probs.detach().exp() * cost * log_probs).sum().backward()
    assert theta.grad is not None
    assert theta.grad.tolist() == pytest.approx(TO_REFERENCE, abs=1e-5)
    theta.grad = None
    p = theta.softmax(0)
    (p * (p.log() - REFERENCE)).sum().backward()
    assert theta.grad.tolist() == pytest.approx(TO_REFERENCE, abs=1e-5)


def test_a_far_reference_stays_finite_without_gradient() -> None:
    log_probs = torch.tensor([-100.0, 0.0], requires_grad=True)
    reference = torch.tensor([0.0, -100.0])
    assert kl_estimate("k1", log_probs, reference).tolist() == [-20, 20]
    k3 = kl_estimate("k3", log_probs, reference)
    assert k3.tolist() == [10, 10]
    k3.sum().backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [0, 0]


MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
OLD = torch.tensor([[-1.0, -2, -3, 9], [-0.5, 9, 9, 9], [9, 9, 9, 9]])
REF = torch.tensor([[-1.5, -1, -3, math.nan], [-1.0, 0, 0, 0], [0, 0, 0, 0]])


def test_rewards_stand_at_the_last_token_and_pay_at_each() -> None:
    found = token_rewards(torch.tensor([1.0, 2.0, 3.0]), MASK, OLD, REF, beta=0.1)
    expected = torch.tensor([[-0.05, 0.1, 1, 0], [2 - 0.05, 0, 0, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(sequence_kl(MASK, OLD, REF), torch.tensor([-0.5, 0.5, 0]))


def test_without_a_penalty_no_reference_is_needed_and_an_unscorable_row_shows() -> None:
    found = token_rewards(torch.tensor([math.nan, 2.0, 3.0]), MASK, None, None, beta=0.0)
    assert torch.equal(found.isnan(), torch.tensor([[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]).bool())
    assert found[1:].tolist() == [[2, 0, 0, 0], [0, 0, 0, 0]]
    with pytest.raises(ValueError, match=r"beta=0\.1.*reference"):
        token_rewards(torch.zeros(3), MASK, OLD, None, beta=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": -0.1}, r"beta=-0\.1"),
        ({"beta": math.nan}, "beta=nan"),
        ({"beta": 0.1, "estimator": "k4"}, "estimator='k4'.*k1"),
        ({"beta": 0.1, "placement": "advantage"}, "placement='advantage'"),
        ({"beta": 0.1, "placement": "reward", "estimator": "k3"}, "estimator='k3'"),
        ({"beta": 0.1, "placement": "reward", "importance": True}, "importance=True"),
    ],
)
def test_bad_settings_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Kl(**arguments)


def test_the_estimator_follows_the_placement() -> None:
    assert (Kl(0.1).estimator, Kl(0.1, placement="reward").estimator) == ("k3", "k1")
    assert [Kl(beta, placement=place).in_loss for beta in (0, 0.1) for place in ("loss", "reward")] == [
        False, False, True, False,
    ]  # fmt: skip


def test_gradient_of_the_importance_weighted_form_on_samples_of_an_older_policy() -> None:
    old = torch.tensor([0.6, 0.1, 0.3], dtype=torch.float64).log()

    def gradient(weighted: bool) -> Tensor:
        theta = THETA.clone().requires_grad_()
        log_probs = theta.log_softmax(0)
        ratio = (log_probs - old).exp() if weighted else 1.0
        (old.exp() * ratio * kl_estimate("k3", log_probs, REFERENCE)).sum().backward()
        assert theta.grad is not None
        return theta.grad

    assert gradient(True).tolist() == pytest.approx(TO_REFERENCE, abs=1e-5)
    assert (gradient(False) - torch.tensor(TO_REFERENCE)).abs().max() > 0.05
