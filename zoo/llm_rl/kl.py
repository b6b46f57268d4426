"""Divergence from the reference policy: its estimators (Schulman 2020), in the loss or taken off the reward."""

from typing import Literal, get_args

import torch
from torch import Tensor

LIMIT = 20.0  # log-ratios beyond it are cut, so that their exponentials are finite
LARGEST = 10.0

Estimator = Literal["k1", "k2", "k3", "k3+"]
Placement = Literal["loss", "reward"]


class Kl:
    """A penalty ``beta * KL(policy || reference)``.

    Args:
        beta: weight, at least 0; 0 needs no reference policy.
        estimator: of ``kl_estimate``; None is k3 in the loss and k1 in the reward, the only one there.
        placement: added to each token's ``loss`` (GRPO), or taken off each token's ``reward`` (PPO, RLOO, REINFORCE++).
        importance: multiply by the importance ratio, which makes the gradient that of KL(policy || reference) on
            samples of an older policy too (DeepSeek-V3.2, arXiv 2512.02556; TRL's default as of 1.16); loss only.
    """

    def __init__(
        self,
        beta: float,
        estimator: Estimator | None = None,
        placement: Placement = "loss",
        importance: bool = False,
    ) -> None:
        if not 0 <= beta < float("inf"):
            raise ValueError(f"beta={beta}: must be a number of at least 0")
        if placement not in get_args(Placement):
            raise ValueError(f"placement={placement!r}: choose loss or reward")
        if estimator is None:
            estimator = "k3" if placement == "loss" else "k1"
        if estimator not in get_args(Estimator):
            raise ValueError(f"estimator={estimator!r}: choose one of {', '.join(get_args(Estimator))}")
        if placement == "reward" and (estimator != "k1" or importance):
            raise ValueError(
                f"placement='reward' with estimator={estimator!r}, importance={importance}: the reward takes k1 alone; "
                "leave both out, or put the penalty into the loss"
            )
        self.beta, self.placement, self.importance = beta, placement, importance
        self.estimator: Estimator = estimator

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0

    @property
    def in_loss(self) -> bool:
        return self.needs_reference and self.placement == "loss"


def kl_estimate(estimator: Estimator, log_probs: Tensor, reference: Tensor) -> Tensor:
    """Estimates of KL(policy || reference) at each token, in nats; both log-probabilities [...] of the sampled tokens.

    With x the log-ratio, cut to +-20: k1 = x, k2 = x^2 / 2, k3 = exp(-x) - 1 + x, at most 10 (as in verl); k3+ has the
    value of k3 and the gradient of k2. Means of k1 and k3 are the divergence, that of k2 is not. As a loss, with the
    samples fixed, k1 has mean gradient 0, k2 that of KL(policy || reference), k3 that of KL(reference || policy).
    """
    x = (log_probs - reference).clamp(-LIMIT, LIMIT)
    if estimator == "k1":
        return x
    k2 = x.square() / 2
    if estimator == "k2":
        return k2
    k3 = (torch.expm1(-x) + x).clamp(max=LARGEST)
    return k3 if estimator == "k3" else k2 - k2.detach() + k3.detach()


def token_rewards(reward: Tensor, mask: Tensor, old: Tensor | None, reference: Tensor | None, beta: float) -> Tensor:
    """Rewards [b, T] of tokens: ``reward`` [b] at the last valid token, less ``beta`` times k1 at every valid one.

    Args:
        reward: of whole completions; one that is NaN stays NaN at the last token.
        mask: [b, T] bool.
        old, reference: [b, T] log-probabilities under the policy that sampled and under the reference; not needed
            where ``beta`` is 0.
    """
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    terminal = torch.where(last, reward[:, None], 0.0)
    if beta == 0:
        return terminal
    if old is None or reference is None:
        raise ValueError(f"beta={beta}: a penalty in the reward needs log-probabilities of policy and reference policy")
    return terminal - beta * _k1(mask, old, reference)


def sequence_kl(mask: Tensor, old: Tensor, reference: Tensor) -> Tensor:
    """The sum of k1 over a completion's tokens [b], of which RLOO takes ``beta`` times off the reward."""
    return _k1(mask, old, reference).sum(1)


def _k1(mask: Tensor, old: Tensor, reference: Tensor) -> Tensor:
    return kl_estimate("k1", old, reference).masked_fill(~mask, 0.0)
