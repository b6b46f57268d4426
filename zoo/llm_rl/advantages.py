"""Advantages: how much better a completion, or a token, did than was to be expected.

B completions of all ranks, b of this one, T columns of tokens, F rewards. Statistics span all ranks unless said
otherwise, and standard deviations divide by n - ddof.
"""

import warnings
from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor

from datamodules.streams import key, uniform
from zoo.distributed import gather
from zoo.llm_rl.batches import Scores, Tokens, group_index

Baseline = Literal["group", "batch", "leave_one_out", "none"]
Scale = Literal["group", "batch", "none"]
Whiten = Literal["global", "local", "none"]
_TIE = 1  # tells these draws from those of tokens, which come from the same streams


class Comparison:
    """What all advantages say of themselves: whether they compare a prompt's completions, and what has to be there."""

    compares: bool = False
    needs_entropy: bool = False
    needs_value: bool = False
    needs_greedy: bool = False

    def metrics(self) -> dict[str, float]:
        """Numbers about the last call, to be logged."""
        return {}


class Advantage(Comparison, ABC):
    """One number for each completion: [B] float32 for all ranks' rows, without gradient.

    A completion without a reward (NaN) gets 0 and does not enter the statistics.
    """

    @abstractmethod
    def __call__(self, scores: Scores) -> Tensor: ...


class TokenAdvantage(Comparison, ABC):
    """One number for each token of this rank, from rewards of tokens [b, T].

    A row with NaN among its rewards was not scored: it gets 0 and does not enter the statistics. Returns the advantages
    [b, T] float32 and, for those with a critic, the returns [b, T] that it is to predict.
    """

    @abstractmethod
    def __call__(self, reward: Tensor, tokens: Tokens, scores: Scores | None) -> tuple[Tensor, Tensor | None]: ...


def statistics(x: Tensor, index: Tensor, ddof: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation and size of the group of each entry: three [B] of ``x`` [B] and ``index`` [B] from 0.

    The deviation of ``ddof`` entries or fewer is 0. In float64 the mean of equal float32 numbers is exact.
    """
    count = torch.bincount(index)
    mean = x.new_zeros(len(count)).index_add(0, index, x) / count
    square = x.new_zeros(len(count)).index_add(0, index, (x - mean[index]).square())
    std = (square / (count - ddof).clamp(min=1)).sqrt()
    return mean[index], std[index], count[index]


def group_advantage(
    reward: Tensor,
    group: Tensor,
    baseline: Baseline,
    scale: Scale,
    eps: float,
    ddof: int = 1,
    allow_single: bool = False,
) -> Tensor:
    """``(R - baseline) / (std + eps)``: [B] float64 of ``reward`` [B], finite, and ``group`` [B].

    ``baseline`` is the mean of the group, of the batch, of the group's others, or 0; ``std`` that of the raw rewards of
    the group or of the batch, and ``scale="none"`` divides by 1. A group of one has deviation 1, and for its baseline
    itself, or 0 with ``allow_single``, as in verl. GRPO (arXiv 2402.03300) is group and group, Dr. GRPO (2503.20783)
    group and none, RLOO (2402.14740) leave_one_out and none, Lite PPO (2508.08221) group and batch.
    """
    reward = reward.double()
    index, _ = group_index(group)
    mean, std, count = statistics(reward, index, ddof)
    batch_mean, batch_std, _ = statistics(reward, torch.zeros_like(index), ddof)
    alone = count == 1
    if allow_single:
        mean = torch.where(alone, 0.0, mean)
    others = torch.where(alone, mean, (count * mean - reward) / (count - 1).clamp(min=1))
    zero = torch.zeros_like(mean)
    base = {"group": mean, "batch": batch_mean, "leave_one_out": others, "none": zero}[baseline]
    own = torch.where(alone, 1.0, std + eps)
    return (reward - base) / {"group": own, "batch": batch_std + eps, "none": zero + 1}[scale]


def greedy_advantage(reward: Tensor, greedy: Tensor) -> Tensor:
    """``R - R(greedy)``, 0 where either is NaN: [B] float32 of two [B] float32, as in ReMax (arXiv 2310.10505)."""
    return (reward - greedy).nan_to_num(nan=0.0)


def whiten(x: Tensor, weight: Tensor, over_ranks: bool) -> Tensor:
    """``(x - mean) / sqrt(variance + 1e-8)`` as float32 [...], 0 where ``weight`` is 0, as in verl.

    ``weight`` [...] counts how often an entry stands for a token; the variance divides by their number less one.
    ``over_ranks``: the statistics span all ranks, which then all have to call this.
    """
    x = torch.where(weight > 0, x, 0.0).double()
    weight = weight.double()

    def total(*parts: Tensor) -> Tensor:
        sums = torch.stack([part.sum() for part in parts])
        return gather(sums[None]).sum(0) if over_ranks else sums

    mean, count = total(weight * x, weight)
    mean = mean / count.clamp(min=1)
    (square,) = total(weight * (x - mean).square())
    return torch.where(weight > 0, (x - mean) * (square / (count - 1).clamp(min=1) + 1e-8).rsqrt(), 0.0).float()


def gae(reward: Tensor, value: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (arXiv 1506.02438): advantages and returns [b, T], 0 outside ``mask``.

    ``delta_t = r_t + gamma * V_(t+1) - V_t``, ``A_t = delta_t + gamma * lam * A_(t+1)`` and ``A + V``, over the tokens
    in ``mask`` [b, T] bool; beyond the last one both are 0. ``reward`` and ``value`` [b, T] float.
    """
    advantage = torch.zeros_like(value)
    next_advantage = next_value = value.new_zeros(len(value))
    for t in reversed(range(value.shape[1])):
        here = reward[:, t] + gamma * next_value - value[:, t] + gamma * lam * next_advantage
        advantage[:, t] = torch.where(mask[:, t], here, 0.0)
        next_advantage = torch.where(mask[:, t], here, next_advantage)
        next_value = torch.where(mask[:, t], value[:, t], next_value)
    return advantage, torch.where(mask, advantage + value, 0.0)


def reward_to_go(reward: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """``G_t = r_t + gamma * G_(t+1)`` over the tokens in ``mask``, [b, T]: what ``gae`` estimates without a critic."""
    return gae(reward, torch.zeros_like(reward), mask, gamma, 1.0)[0]


def scored_rows(scores: Scores) -> Tensor:
    """The completions with a reward, [B] bool. Raises ``ValueError`` if a reward is infinite."""
    if scores.reward.isinf().any():
        row = int(scores.reward.isinf().nonzero()[0])
        raise ValueError(f"reward={float(scores.reward[row])} of sample {row}: must be finite, or None if unscorable")
    return ~scores.reward.isnan()


def check_groups(scores: Scores, single: bool) -> int:
    """The number of completions of every prompt; with ``single`` it may be 1.

    Raises ``ValueError`` if it is 1 where it may not be, or if a group has another one than the rest.
    """
    group, count = torch.unique(scores.group, return_counts=True)
    size = int(count.mode().values)
    if (count != size).any():
        which = ", ".join(f"{int(g)} has {int(n)}" for g, n in zip(group, count, strict=True) if n != size)
        raise ValueError(f"groups of {size} completions, but group {which}: give every prompt num_generations of them")
    if size == 1 and not single:
        raise ValueError("num_generations=1: a prompt's completions are compared with each other, use 2 or more")
    return size


def tie_order(keys: Tensor) -> Tensor:
    """A random number for each random stream [B] int64: [B] float64 in [0, 1), to break ties by."""
    return torch.from_numpy(uniform(key(_TIE, keys.cpu().numpy()), 1)[:, 0])


class GroupAdvantage(Advantage):
    """``(R - baseline) / (std + eps)``, see ``group_advantage`` for the methods that are settings of it.

    With ``baseline="group"``, ``scale="none"`` and ``whiten_tokens`` it is REINFORCE++-baseline (arXiv 2501.03262): the
    result is whitened over tokens, that is with each completion counted by its length.

    Args:
        baseline: what is subtracted: mean of the group, of the batch, of the group's others, or nothing.
        scale: whose deviation of the raw rewards divides: of the group, of the batch, or none.
        eps: added to the deviation; TRL has 1e-4, verl and ROLL 1e-6.
        ddof: 1 for the deviation of a sample, 0 for that of a population.
        whiten_tokens: whiten over all tokens of the batch.
        allow_single: a prompt may have one completion, which is then its own advantage.
    """

    def __init__(
        self,
        baseline: Baseline = "group",
        scale: Scale = "group",
        eps: float = 1e-4,
        ddof: int = 1,
        whiten_tokens: bool = False,
        allow_single: bool = False,
    ) -> None:
        for name, value, names in (("baseline", baseline, Baseline), ("scale", scale, Scale)):
            if value not in get_args(names):
                raise ValueError(f"GroupAdvantage.{name}={value!r}: must be one of {', '.join(get_args(names))}")
        _check_eps("GroupAdvantage", eps, ddof)
        if whiten_tokens and scale == "batch":
            raise ValueError("GroupAdvantage.whiten_tokens=True with scale='batch': whitening cancels it, drop one")
        if scale == "group" and baseline in ("batch", "none"):
            warnings.warn(
                f"GroupAdvantage.scale='group' with baseline={baseline!r}: in a group whose rewards are all the same "
                "the advantage is divided by eps alone",
                stacklevel=2,
            )
        self.baseline, self.scale, self.eps, self.ddof = baseline, scale, eps, ddof
        self.whiten_tokens, self.allow_single = whiten_tokens, allow_single
        self._within = baseline in ("group", "leave_one_out") or scale == "group"
        self.compares = self._within and not allow_single

    def __call__(self, scores: Scores) -> Tensor:
        rows = scored_rows(scores).cpu()
        if self._within:
            check_groups(scores, self.allow_single)
        # On the CPU, for sums of a GPU's atomics differ between ranks in the last bit, and then so do ties.
        reward, group = scores.reward.cpu(), scores.group.cpu()
        some = group_advantage(
            reward[rows], group[rows], self.baseline, self.scale, self.eps, self.ddof, self.allow_single
        )
        if self.whiten_tokens:
            some = whiten(some, scores.length.cpu()[rows], over_ranks=False)
        return torch.zeros(len(rows)).masked_scatter(rows, some.float()).to(scores.reward.device)


class Gdpo(Advantage):
    """Each reward standardised within its group, their weighted sum, standardised over the batch (arXiv 2601.05242).

    A reward that did not score a completion adds nothing to its sum. ``eps`` and ``ddof`` as in ``GroupAdvantage``.
    """

    compares = True

    def __init__(self, eps: float = 1e-4, ddof: int = 1) -> None:
        _check_eps("Gdpo", eps, ddof)
        self.eps, self.ddof = eps, ddof

    def __call__(self, scores: Scores) -> Tensor:
        rows = scored_rows(scores).cpu()
        check_groups(scores, single=False)
        group, parts = scores.group.cpu(), scores.parts.cpu()
        total = torch.zeros(len(rows), dtype=torch.float64)
        for part, weight in zip(parts.T, scores.weights.tolist(), strict=True):
            has = rows & ~part.isnan()
            total[has] += weight * group_advantage(part[has], group[has], "group", "group", self.eps, self.ddof)
        some = group_advantage(total[rows], group[rows], "batch", "batch", self.eps, self.ddof)
        return torch.zeros(len(rows)).masked_scatter(rows, some.float()).to(scores.reward.device)


class ReMax(Advantage):
    """ReMax (arXiv 2310.10505): the reward less that of the prompt's likeliest completion, see ``greedy_advantage``.

    Costs one more completion of each prompt, which is not learned from; ``group_size`` may be 1, as in the paper.
    Rewards that compare completions of a prompt, such as ``LengthReward``, see that one alone.
    """

    needs_greedy = True

    def __call__(self, scores: Scores) -> Tensor:
        if scores.greedy is None:
            raise ValueError("ReMax: the scores have no rewards of likeliest completions, have them generated")
        scored_rows(scores)
        return greedy_advantage(scores.reward, scores.greedy)


class ReinforcePlusPlus(TokenAdvantage):
    """REINFORCE++ (arXiv 2501.03262): discounted reward-to-go, whitened over the tokens of all ranks; no returns."""

    def __init__(self, gamma: float = 1.0) -> None:
        _check_share("ReinforcePlusPlus.gamma", gamma)
        self.gamma = gamma

    def __call__(self, reward: Tensor, tokens: Tokens, scores: Scores | None) -> tuple[Tensor, None]:
        mask = _scored_tokens(reward, tokens.mask)
        return whiten(reward_to_go(reward.float(), mask, self.gamma), mask, over_ranks=True), None


class Gae(TokenAdvantage):
    """Generalised advantage estimation with a critic, see ``gae``; a row without reward returns its own values.

    Args:
        gamma: discount of the next token.
        lam: 1 for the whole return less the value, 0 for one step.
        whiten: over the tokens of all ranks, of this rank alone, or not at all. The returns are taken before it.
    """

    needs_value = True

    def __init__(self, gamma: float = 1.0, lam: float = 0.95, whiten: Whiten = "none") -> None:
        _check_share("Gae.gamma", gamma)
        _check_share("Gae.lam", lam)
        if whiten not in get_args(Whiten):
            raise ValueError(f"Gae.whiten={whiten!r}: must be one of {', '.join(get_args(Whiten))}")
        self.gamma, self.lam, self.whiten = gamma, lam, whiten

    def __call__(self, reward: Tensor, tokens: Tokens, scores: Scores | None) -> tuple[Tensor, Tensor]:
        if tokens.value is None:
            raise ValueError("Gae: there are no values, give the module a critic")
        mask, value = _scored_tokens(reward, tokens.mask), tokens.value.float()
        advantage, _ = gae(reward.float(), value, mask, self.gamma, self.lam)
        returns = torch.where(tokens.mask, advantage + value, 0.0)
        if self.whiten != "none":
            advantage = whiten(advantage, mask, over_ranks=self.whiten == "global")
        return advantage, returns


def _scored_tokens(reward: Tensor, mask: Tensor) -> Tensor:
    return mask & ~(mask & reward.isnan()).any(1, keepdim=True)


def _check_eps(where: str, eps: float, ddof: int) -> None:
    if eps <= 0:
        raise ValueError(f"{where}.eps={eps}: must be above 0, for groups whose rewards are all the same")
    if ddof not in (0, 1):
        raise ValueError(f"{where}.ddof={ddof}: must be 0 or 1")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value}: must lie in [0, 1]")
