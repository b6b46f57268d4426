"""CANON (arXiv 2509.23962): completions of a prompt are halved by a metric and compared within and between halves."""

import math
import warnings
from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor

from zoo.llm_rl.advantages import Advantage, check_groups, scored_rows, statistics, tie_order
from zoo.llm_rl.batches import Scores, group_index

Metric = Literal["entropy", "length", "random"]
Ties = Literal["index", "random", "dr_grpo"]
WeightedSet = Literal["auto", "high", "low"]


def high_half(metric: Tensor, group: Tensor, tie: Tensor | None = None) -> Tensor:
    """Which completions are in the half of their group with the higher metric, [B] bool; the larger half if it is odd.

    Equal values of ``metric`` [B] go by ``tie`` [B], and then by their order.
    """
    index, count = group_index(group)
    order = torch.arange(len(index)) if tie is None else tie.argsort(stable=True)
    order = order[metric[order].argsort(stable=True)]
    order = order[index[order].argsort(stable=True)]
    place = torch.empty_like(order)
    place[order] = torch.arange(len(index)) - (count.cumsum(0) - count)[index[order]]
    return place >= count[index] // 2


def tied(metric: Tensor, group: Tensor, high: Tensor) -> Tensor:
    """Where a value on both sides of the split belongs to more than half of its group, [B] bool."""
    index, count = group_index(group)
    top = metric.new_full((len(count),), -torch.inf).scatter_reduce(0, index[~high], metric[~high], "amax")
    equal = torch.zeros_like(count).index_add(0, index, (metric == top[index]).long())
    bottom = metric.new_full((len(count),), torch.inf).scatter_reduce(0, index[high], metric[high], "amin")
    return ((top == bottom) & (2 * equal > count))[index]


def canon_advantage(
    reward: Tensor,
    group: Tensor,
    high: Tensor,
    mu: float,
    alpha: float = 1.0,
    beta: float = 0.0,
    weighted_set: Literal["high", "low"] = "high",
) -> Tensor:
    """``mu * (R - mean of the other half) + (1 - mu) * (R - mean of the own half)``, [B] float64 (equations 5, 8, 9).

    In the first term the rewards of the ``weighted_set`` are multiplied by ``alpha``, and ``beta`` is added for the
    high half and subtracted for the low one. A group of one gets 0. ``reward`` [B] finite, ``high`` of ``high_half``.
    """
    reward = reward.double()
    index, _ = group_index(group)
    half = 2 * index + high
    size = torch.bincount(half, minlength=2 * len(torch.unique(index)))
    mean = reward.new_zeros(len(size)).index_add(0, half, reward) / size.clamp(min=1)
    weighted = high == (weighted_set == "high")
    own, other = torch.where(weighted, alpha, 1.0), torch.where(weighted, 1.0, alpha)
    between = own * reward - other * mean[half ^ 1] + torch.where(high, beta, -beta)
    within = reward - mean[half]
    return torch.where(size[half ^ 1] == 0, 0.0, mu * between + (1 - mu) * within)


def cosine_restarts(step: int, total: int, warmup: int, cycles: int, high: float, low: float) -> float:
    """``high * (step + 1) / warmup`` before ``warmup``; then half cosines from ``high`` to ``low``.

    A cycle takes ``(total - warmup) // cycles`` steps, and they go on beyond ``total``, as in the official code.
    """
    if step < warmup:
        return high * (step + 1) / warmup
    period = (total - warmup) // cycles
    return low + 0.5 * (high - low) * (1 + math.cos(math.pi * ((step - warmup) % period) / period))


class MuSchedule(ABC):
    """The weight ``mu`` of the comparison between halves, of optimiser steps taken and the batch's mean reward."""

    @abstractmethod
    def __call__(self, step: int, reward: float) -> float: ...


class AccuracyMu(MuSchedule):
    """``mu`` is the mean reward of the batch (``up``, what the official code does), or 1 less it (``down``).

    With ``up`` training begins within halves and comes to compare between them as it succeeds; ``down`` is the reverse.
    """

    def __init__(self, direction: Literal["up", "down"] = "up") -> None:
        if direction not in ("up", "down"):
            raise ValueError(f"AccuracyMu.direction={direction!r}: must be up or down")
        self.direction = direction

    def __call__(self, step: int, reward: float) -> float:
        return reward if self.direction == "up" else 1 - reward


class CosineMu(MuSchedule):
    """Cosine restarts of ``mu`` (``of="inter"``), or of ``1 - mu`` (``of="intra"``); see ``cosine_restarts``.

    The defaults are Cosin-First-Inter-Later-Intra; ``of="intra", high=0.6, low=0`` is Cosin-First-Intra-Later-Inter.

    Args:
        total: optimiser steps of the warm-up and all cycles.
        warmup: steps of a line up to ``high``.
        cycles: how many times the cosine runs from ``high`` to ``low``.
        high: the largest weight.
        low: the smallest weight of a cycle.
        of: whether it is the weight of the comparison between halves or within them.
    """

    def __init__(
        self,
        total: int = 150,
        warmup: int = 30,
        cycles: int = 3,
        high: float = 1.0,
        low: float = 0.4,
        of: Literal["inter", "intra"] = "inter",
    ) -> None:
        if warmup < 0 or cycles < 1 or total - warmup < cycles:
            raise ValueError(
                f"CosineMu.total={total}, warmup={warmup}, cycles={cycles}: need at least 1 cycle of at least 1 step "
                "after the warm-up"
            )
        if not 0 <= low <= high <= 1:
            raise ValueError(f"CosineMu.low={low}, high={high}: must rise in [0, 1]")
        if of not in ("inter", "intra"):
            raise ValueError(f"CosineMu.of={of!r}: must be inter or intra")
        self.total, self.warmup, self.cycles, self.high, self.low, self.of = total, warmup, cycles, high, low, of

    def __call__(self, step: int, reward: float) -> float:
        weight = cosine_restarts(step, self.total, self.warmup, self.cycles, self.high, self.low)
        return weight if self.of == "inter" else 1 - weight


class Canon(Advantage):
    """The advantage of CANON, see ``canon_advantage``; logs ``canon/mu``.

    With halves of the same size and ``alpha`` 1, ``mu`` 0.5 is Dr. GRPO. Completions without a reward are left out
    before the group is halved.

    Args:
        metric: what halves a group: mean entropy of a completion's tokens, their number, or chance (the official code
            takes the position in the batch there: ``metric="random"`` draws from the completions' random streams).
        mu: weight of the comparison between halves: 1 is CANON-Inter, 0 CANON-Intra; or a schedule.
        alpha: factor of the rewards of ``weighted_set`` between halves; below 1 it disfavours that half (CANON-Eff).
        beta: added between halves for the high half, subtracted for the low one; of the official code, not the paper.
        weighted_set: ``auto`` is high, and low for entropy.
        ties: how equal metrics are parted: by their order in the batch, by chance, or, where a value on both sides of
            the split belongs to more than half of the group, not at all: that group gets Dr. GRPO's ``R - mean``.
        allow_odd: the high half of a group may have one more; ``mu`` 0.5 is then not Dr. GRPO.
        extrapolate: ``mu`` may leave [0, 1].
    """

    compares = True

    def __init__(
        self,
        metric: Metric = "entropy",
        mu: float | MuSchedule = 0.5,
        alpha: float = 1.0,
        beta: float = 0.0,
        weighted_set: WeightedSet = "auto",
        ties: Ties = "index",
        allow_odd: bool = False,
        extrapolate: bool = False,
    ) -> None:
        choices = (("metric", metric, Metric), ("weighted_set", weighted_set, WeightedSet), ("ties", ties, Ties))
        for name, value, names in choices:
            if value not in get_args(names):
                raise ValueError(f"Canon.{name}={value!r}: must be one of {', '.join(get_args(names))}")
        if alpha <= 0:
            raise ValueError(f"Canon.alpha={alpha}: must be above 0, and 1 to weight nothing")
        self.extrapolate = extrapolate
        if not isinstance(mu, MuSchedule):
            self._check(mu)
            if not 0 <= mu <= 1:
                warnings.warn(
                    f"Canon.mu={mu} is outside [0, 1]: one of the comparisons has its sign turned", stacklevel=2
                )
        self.metric, self.mu, self.alpha, self.beta, self.ties = metric, mu, alpha, beta, ties
        self.weighted_set: Literal["high", "low"] = "high"
        if weighted_set == "low" or (weighted_set == "auto" and metric == "entropy"):
            self.weighted_set = "low"
        self.allow_odd, self.needs_entropy = allow_odd, metric == "entropy"
        self._warned = False
        self._metrics: dict[str, float] = {}

    def __call__(self, scores: Scores) -> Tensor:
        rows = scored_rows(scores).cpu()
        self._check_size(check_groups(scores, single=False))
        # On the CPU, so that no two ranks differ in the last bit.
        reward, group = scores.reward.cpu()[rows], scores.group.cpu()[rows]
        metric = self._values(scores)[rows]
        if metric.isnan().any():
            row = int(rows.nonzero()[int(metric.isnan().nonzero()[0])])
            raise ValueError(f"Canon: the {self.metric} of sample {row} is NaN")
        mu = self._mu(scores.step, reward)
        high = high_half(metric, group, tie_order(scores.key)[rows] if self.ties == "random" else None)
        some = canon_advantage(reward, group, high, mu, self.alpha, self.beta, self.weighted_set)
        if self.ties == "dr_grpo":
            mean, _, _ = statistics(reward.double(), group_index(group)[0], 0)
            some = torch.where(tied(metric, group, high), reward - mean, some)
        self._metrics = {"canon/mu": mu}
        return torch.zeros(len(rows)).masked_scatter(rows, some.float()).to(scores.reward.device)

    def metrics(self) -> dict[str, float]:
        return self._metrics

    def _values(self, scores: Scores) -> Tensor:
        if self.metric == "length":
            return scores.length.cpu().double()
        if self.metric == "random":
            return tie_order(scores.key)
        if scores.entropy is None:
            raise ValueError("Canon.metric='entropy': the scores have no entropy, have it computed or take length")
        return scores.entropy.cpu().double()

    def _mu(self, step: int, reward: Tensor) -> float:
        if not isinstance(self.mu, MuSchedule):
            return self.mu
        mu = self.mu(step, float(reward.double().mean()) if len(reward) else 0.0)
        self._check(mu)
        return mu

    def _check(self, mu: float) -> None:
        if not 0 <= mu <= 1 and not self.extrapolate:
            raise ValueError(f"Canon.mu={mu}: must lie in [0, 1], and so must rewards that set it; or set extrapolate")

    def _check_size(self, size: int) -> None:
        if size % 2 and not self.allow_odd:
            raise ValueError(f"num_generations={size}: Canon halves each prompt's completions, use an even number")
        if size < 4 and not self._warned:
            self._warned = True
            warnings.warn(
                f"Canon with {size} completions of a prompt: a half of one differs from itself by 0", stacklevel=3
            )
