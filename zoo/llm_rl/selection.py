"""Selection: which completions, and which of their tokens, are learned from.

B completions of all ranks, b of this one, T columns of tokens. Statistics span all ranks, which therefore all have to
call the same parts in the same order, also one that has no tokens.
"""

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch import distributed as dist

from zoo.distributed import gather
from zoo.llm_rl.batches import Scores, Tokens, group_index


class Selection:
    """Keeps everything; a part overrides what it narrows. ``needs_entropy``: whether entropies have to be there."""

    needs_entropy: bool = False

    def compared(self, scores: Scores) -> Scores:
        """The scores that the advantage is to be computed from; a reward of NaN keeps a completion out of it."""
        return scores

    def sequences(self, scores: Scores, advantage: Tensor) -> Tensor:
        """The completions that are kept, [B] bool, by their ``advantage`` [B]; others are not trained nor counted."""
        return torch.ones_like(advantage, dtype=torch.bool)

    def tokens(
        self, tokens: Tokens, advantage: Tensor, truncated: Tensor, weight: Tensor, scores: Scores | None
    ) -> Tensor:
        """Weights of this rank's tokens, [b, T] float32, at most ``weight`` [b, T], which earlier parts have left.

        ``advantage`` [b, T] float32, ``truncated`` [b] bool.
        """
        return weight

    def metrics(self) -> dict[str, float]:
        """Numbers about the last call, to be logged."""
        return {}


def over_ranks(x: Tensor) -> Tensor:
    """The sum over ranks, of the shape of ``x``, exact for integers."""
    return gather(x[None]).sum(0)


def kth_largest(code: Tensor, k: int) -> tuple[int, int]:
    """The k-th largest of all ranks' numbers, and how many of those that equal it are among the k largest.

    ``code`` [n] int64 in [0, 2^32), n of its own on each rank; 1 <= k <= the numbers of all ranks. Found by digits of
    base 256, so that ranks exchange 256 counts four times, whatever n is.
    """
    value = 0
    for shift in (24, 16, 8, 0):
        some = code[(code >> (shift + 8)) == value]
        count = over_ranks(torch.bincount((some >> shift) & 255, minlength=256))
        at_least = count.flip(0).cumsum(0).flip(0)
        digit = int((at_least >= k).sum()) - 1
        k -= int(at_least[digit] - count[digit])
        value = 256 * value + digit
    return value, k


def ordered(x: Tensor) -> Tensor:
    """Integers in [0, 2^32) in the order of ``x`` [...] float32, not NaN: int64 [...], equal only for equal numbers."""
    bits = (x.float().contiguous() + 0.0).view(torch.int32)  # adding 0 makes -0 the same as 0
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long() + 2**31


def count_tokens(among: Tensor) -> int:
    """How many tokens all ranks have in ``among`` [b, T] bool."""
    return int(over_ranks(among.sum()))


def top_tokens(key: Tensor, among: Tensor, k: int) -> Tensor:
    """The ``k`` tokens of all ranks with the largest ``key`` [b, T] within ``among`` [b, T] bool: [b, T] bool.

    Ties are cut by rank and then by position, row by row: the same tokens as if all rows were on one rank.
    """
    code = ordered(key[among])
    value, ties = kth_largest(code, k)
    equal = code == value
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    before = gather(equal.sum()[None])[:rank].sum()
    chosen = torch.zeros_like(among)
    chosen[among] = (code > value) | (equal & (before + equal.cumsum(0) <= ties))
    return chosen


def entropies(tokens: Tokens, among: Tensor, where: str) -> Tensor:
    """The entropies, [b, T]. Raises ``ValueError`` if there are none, or NaN within ``among`` [b, T] bool."""
    if tokens.entropy is None:
        raise ValueError(f"{where}: there are no entropies of tokens, have them computed")
    if tokens.entropy[among].isnan().any():
        raise ValueError(f"{where}: the entropy of a token is NaN, look at the logits")
    return tokens.entropy


class OverlongFilter(Selection):
    """No tokens of completions that did not end by themselves (DAPO, arXiv 2503.14476).

    Args:
        exclude_from_baseline: leave their rewards out of the statistics of the advantage as well.
    """

    def __init__(self, exclude_from_baseline: bool = False) -> None:
        self.exclude_from_baseline = exclude_from_baseline

    def compared(self, scores: Scores) -> Scores:
        if not self.exclude_from_baseline:
            return scores
        return replace(scores, reward=scores.reward.masked_fill(scores.truncated, torch.nan))

    def tokens(
        self, tokens: Tokens, advantage: Tensor, truncated: Tensor, weight: Tensor, scores: Scores | None
    ) -> Tensor:
        return weight * ~truncated[:, None]


class TopEntropy(Selection):
    """Tokens whose entropy is at least the ``1 - q`` quantile, interpolated, over the tokens of all ranks (2506.01939).

    All tokens that equal the quantile are kept.

    Args:
        q: share of tokens to keep.
    """

    needs_entropy = True

    def __init__(self, q: float = 0.2) -> None:
        if not 0 < q <= 1:
            raise ValueError(f"TopEntropy.q={q}: must lie in (0, 1], the share of tokens to keep")
        self.q = q
        self._metrics: dict[str, float] = {}

    def tokens(
        self, tokens: Tokens, advantage: Tensor, truncated: Tensor, weight: Tensor, scores: Scores | None
    ) -> Tensor:
        among = tokens.mask & (weight > 0)
        entropy = entropies(tokens, among, "TopEntropy")
        count = count_tokens(among)
        if count == 0:
            return weight
        # What is at least the interpolated quantile is at least the next number above it. Rounding, as 0.7 * 10 > 7.
        above = count - math.ceil(round((1 - self.q) * (count - 1), 6))
        code = ordered(entropy)
        value, _ = kth_largest(code[among], above)
        chosen = among & (code >= value)
        self._metrics = {"top_entropy/tokens": count_tokens(chosen) / count}
        return weight * chosen

    def metrics(self) -> dict[str, float]:
        return self._metrics


class Difficulty(Selection):
    """Prompts whose mean reward lies between ``low`` and ``high``, both excluded, as in ROLL."""

    def __init__(self, low: float = 0.1, high: float = 0.95) -> None:
        if low >= high:
            raise ValueError(f"Difficulty.low={low}, high={high}: low must be below high")
        self.low, self.high = low, high
        self._metrics: dict[str, float] = {}

    def sequences(self, scores: Scores, advantage: Tensor) -> Tensor:
        index, count = group_index(scores.group.cpu())
        reward = scores.reward.cpu().double()
        scored = ~reward.isnan()
        total = torch.zeros(len(count), dtype=torch.float64).index_add(0, index[scored], reward[scored])
        mean = total / torch.bincount(index[scored], minlength=len(count))
        kept = (mean > self.low) & (mean < self.high)
        self._metrics = {"difficulty/prompts": float(kept.double().mean())}
        return kept[index].to(advantage.device)

    def metrics(self) -> dict[str, float]:
        return self._metrics


def varied(x: Tensor, group: Tensor) -> Tensor:
    """Which groups differ within: [groups] bool in rising order of ``group`` [B]; NaN in ``x`` [B] does not count."""
    index, count = group_index(group)
    scored = ~x.isnan()
    high = x.new_full((len(count),), -torch.inf).scatter_reduce(0, index[scored], x[scored], "amax")
    low = x.new_full((len(count),), torch.inf).scatter_reduce(0, index[scored], x[scored], "amin")
    return high > low


class DynamicSampling:
    """Only prompts whose completions differ in a metric; others are replaced by further prompts (DAPO, 2503.14476).

    Args:
        metric: ``reward``, or the number of one of the rewards that it is summed from, counted from 0.
        max_batches: batches of prompts to try before giving up; 0 for no limit.
    """

    def __init__(self, metric: Literal["reward"] | int = "reward", max_batches: int = 10) -> None:
        if metric != "reward" and (isinstance(metric, str) or metric < 0):
            raise ValueError(f"DynamicSampling.metric={metric!r}: must be reward or the number of a reward from 0")
        if max_batches < 0:
            raise ValueError(f"DynamicSampling.max_batches={max_batches}: must be at least 0, which sets no limit")
        self.metric, self.max_batches = metric, max_batches

    def groups(self, scores: Scores) -> Tensor:
        """Which prompts are kept, [groups] bool in rising order of ``scores.group``."""
        if not isinstance(self.metric, int):
            return varied(scores.reward, scores.group)
        rewards = scores.parts.shape[1]
        if self.metric >= rewards:
            raise ValueError(f"DynamicSampling.metric={self.metric}: there are {rewards} rewards, counted from 0")
        return varied(scores.parts[:, self.metric], scores.group)

    def rows(self, scores: Scores) -> Tensor:
        """Which completions are kept, [B] bool: all or none of a prompt."""
        return self.groups(scores)[group_index(scores.group)[0]]
