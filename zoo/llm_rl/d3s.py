"""D3S (arXiv 2509.22115): completions with the most varied advantages, and their tokens with the largest |A| * H."""

import math
import warnings
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from zoo.llm_rl.advantages import tie_order
from zoo.llm_rl.batches import Scores, Tokens, group_index
from zoo.llm_rl.selection import Selection, count_tokens, entropies, top_tokens

Level = Literal["none", "group", "batch"]
VarianceOf = Literal["advantage", "reward"]
TokenKey = Literal["none", "entropy", "adv_entropy"]
Scope = Literal["batch", "response"]
Change = Literal["linear", "const", "cosine"]
Tie = Literal["index", "random"]


def most_varied(x: Tensor, size: int, tie: Tensor | None = None) -> Tensor:
    """The ``size`` entries of ``x`` [n] with the largest variance, [n] bool; all if there are no more than that.

    They are the k smallest and the size - k largest for some k, so that sums over prefixes find them in O(n log n). Of
    equal variances k is nearest to size / 2, then smallest; equal entries go by ``tie`` [n], and then by their order.
    """
    size = min(size, len(x))
    order = torch.arange(len(x), device=x.device) if tie is None else tie.argsort(stable=True)
    order = order[x[order].argsort(stable=True)]
    value = x[order].double()
    value = value - value.mean()
    zero = value.new_zeros(1)
    total, square = torch.cat([zero, value.cumsum(0)]), torch.cat([zero, value.square().cumsum(0)])
    low = torch.arange(size + 1, device=x.device)
    high = len(x) - size + low
    mean = (total[low] + total[-1] - total[high]) / max(size, 1)
    variance = (square[low] + square[-1] - square[high]) / max(size, 1) - mean.square()
    best = low[variance >= variance.max() - 1e-12 * square[-1]]  # rounding must not part ties
    k = int(best[(2 * best - size).abs().argmin()])
    chosen = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    chosen[order[:k]] = True
    chosen[order[len(x) - size + k :]] = True
    return chosen


def between(start: float, stop: float, progress: float, change: Change) -> float:
    """From ``start`` at progress 0 to ``stop`` at 1, on a line or half a cosine; ``const`` stays at ``start``."""
    share = {"const": 0.0, "linear": progress, "cosine": 0.5 * (1 - math.cos(math.pi * progress))}[change]
    return (1 - share) * start + share * stop


def nearest(x: float) -> int:
    """The nearest integer, the larger of two."""
    return math.floor(x + 0.5)


def top_of_rows(key: Tensor, among: Tensor, percent: float) -> Tensor:
    """The tokens with the largest ``key`` of each row, [b, T] bool: ``percent`` of ``among`` [b, T], at least 1.

    Ties go by position.
    """
    count = among.sum(1, keepdim=True)
    wanted = (percent / 100 * count.double() + 0.5).floor().clamp(min=1)
    order = key.masked_fill(~among, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return among & (order.argsort(1) < wanted)


class D3S(Selection):
    """Down-sampling on two levels, relaxed while training goes on.

    Advantages are those of all completions and stay as they are. ``var_of="reward"`` is PODS (arXiv 2504.13818)
    instead: rewards are chosen within each prompt and only then compared with each other. Completions without a reward
    are never chosen. Tokens are chosen among those that have a weight; their number is rounded, at least 1.

    Args:
        sample: choose completions within each prompt, over the batch, or not at all.
        var_of: whose variance is made large.
        token: choose tokens by entropy, by |advantage| times entropy, or not at all.
        token_scope: choose tokens over the batch of all ranks, or within each completion.
        n_init: completions a prompt at the beginning; over the batch, times the number of prompts.
        n_final: completions a prompt at the end.
        k_init: per cent of tokens at the beginning.
        k_final: per cent of tokens at the end.
        schedule: how ``n`` and ``k`` get from one to the other over the training; ``const`` keeps the first.
        tie: equal values go by their order in the batch, which is that of prompts, or by chance.
    """

    def __init__(
        self,
        sample: Level = "batch",
        var_of: VarianceOf = "advantage",
        token: TokenKey = "adv_entropy",
        token_scope: Scope = "batch",
        n_init: int = 4,
        n_final: int = 16,
        k_init: float = 10.0,
        k_final: float = 50.0,
        schedule: Change = "linear",
        tie: Tie = "random",
    ) -> None:
        for name, value, names in (
            ("sample", sample, Level),
            ("var_of", var_of, VarianceOf),
            ("token", token, TokenKey),
            ("token_scope", token_scope, Scope),
            ("schedule", schedule, Change),
            ("tie", tie, Tie),
        ):
            if value not in get_args(names):
                raise ValueError(f"D3S.{name}={value!r}: must be one of {', '.join(get_args(names))}")
        for name, number in (("n_init", n_init), ("n_final", n_final)):
            if number < 1:
                raise ValueError(f"D3S.{name}={number}: must be at least 1")
        for name, share in (("k_init", k_init), ("k_final", k_final)):
            if not 0 < share <= 100:
                raise ValueError(f"D3S.{name}={share}: must lie in (0, 100], per cent")
        if sample == "none" and token == "none":
            raise ValueError("D3S.sample=none with token=none: nothing is selected, set one of them or drop D3S")
        if var_of == "reward" and sample != "group":
            raise ValueError(f"D3S.var_of=reward with sample={sample}: rewards are compared within prompts, use group")
        if var_of == "reward" and min(n_init, n_final) < 2:
            raise ValueError(f"D3S.n_init={n_init}, n_final={n_final} with var_of=reward: two or more are compared")
        if schedule != "const" and (n_final < n_init or k_final < k_init):
            warnings.warn(
                f"D3S selects less and less: n {n_init} to {n_final}, k {k_init} to {k_final} per cent", stacklevel=2
            )
        self.sample, self.var_of, self.token, self.token_scope = sample, var_of, token, token_scope
        self.n_init, self.n_final, self.k_init, self.k_final = n_init, n_final, k_init, k_final
        self.schedule, self.tie = schedule, tie
        self.needs_entropy = token != "none"
        self._metrics: dict[str, float] = {}

    def compared(self, scores: Scores) -> Scores:
        if self.var_of != "reward":
            return scores
        chosen = self._choose(scores, scores.reward).to(scores.reward.device)
        return replace(scores, reward=scores.reward.masked_fill(~chosen, torch.nan))

    def sequences(self, scores: Scores, advantage: Tensor) -> Tensor:
        if not advantage.isfinite().all():
            row = int((~advantage.isfinite()).nonzero()[0])
            raise ValueError(f"D3S: the advantage of sample {row} is {float(advantage[row])}, must be finite")
        if self.sample == "none":
            return super().sequences(scores, advantage)
        chosen = self._choose(scores, scores.reward if self.var_of == "reward" else advantage)
        left = advantage.cpu()[chosen].double()
        self._metrics["d3s/sequences"] = float(chosen.double().mean())
        self._metrics["d3s/variance"] = float(left.var(correction=0)) if len(left) else 0.0
        return chosen.to(advantage.device)

    def tokens(
        self, tokens: Tokens, advantage: Tensor, truncated: Tensor, weight: Tensor, scores: Scores | None
    ) -> Tensor:
        if self.token == "none":
            return weight
        among = tokens.mask & (weight > 0)
        key = entropies(tokens, among, "D3S")
        if self.token == "adv_entropy":
            key = advantage.abs() * key
        count = count_tokens(among)
        if count == 0:
            return weight
        percent = self._at(scores, self.k_init, self.k_final)
        if self.token_scope == "response":
            chosen = top_of_rows(key, among, percent)
        else:
            chosen = top_tokens(key, among, max(1, nearest(percent / 100 * count)))
        self._metrics |= {"d3s/k": percent, "d3s/tokens": count_tokens(chosen) / count}
        return weight * chosen

    def metrics(self) -> dict[str, float]:
        return self._metrics

    def _at(self, scores: Scores | None, start: float, stop: float) -> float:
        progress = None if scores is None else scores.progress
        if progress is None and self.schedule != "const":
            raise ValueError(f"D3S.schedule={self.schedule}: the length of the training is unknown, set max_steps")
        return between(start, stop, progress or 0.0, self.schedule)

    def _choose(self, scores: Scores, value: Tensor) -> Tensor:
        """[B] bool by the variance of ``value`` [B]; on the CPU, so that no two ranks part ties differently."""
        index, count = group_index(scores.group.cpu())
        most = int(count.max())
        for name, number in (("n_init", self.n_init), ("n_final", self.n_final)):
            if number > most and (name == "n_init" or self.schedule != "const"):
                raise ValueError(f"D3S.{name}={number}: prompts have only {most} completions")
        n = self._at(scores, self.n_init, self.n_final)
        self._metrics["d3s/n"] = n
        value, scored = value.cpu(), ~scores.reward.cpu().isnan()
        tie = tie_order(scores.key) if self.tie == "random" else None
        if self.sample == "batch":
            pools, size = [scored.nonzero()[:, 0]], nearest(len(count) * n)
        else:
            # rows of a group stay in order, so that ties by index do too
            rows = index.argsort(stable=True)
            pools, size = [pool[scored[pool]] for pool in rows.split(count.tolist())], nearest(n)
        short = sum(len(pool) < size for pool in pools)
        if short:
            warnings.warn(
                f"D3S: fewer than {size} scored completions in {short} of {len(pools)}: all kept", stacklevel=3
            )
        chosen = torch.zeros(len(value), dtype=torch.bool)
        for pool in pools:
            chosen[pool[most_varied(value[pool], size, None if tie is None else tie[pool])]] = True
        return chosen
