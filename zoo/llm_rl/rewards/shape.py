"""Rewards for the form and the length of completions, whatever they say."""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Literal

from zoo.llm_rl.batches import Sample
from zoo.llm_rl.rewards.base import Reward, SampleReward


class SoftOverlong(SampleReward):
    """A penalty that grows over the last tokens before a limit (DAPO, arXiv 2503.14476, eq. 13).

    0 up to ``max_length`` - ``cache`` tokens, then in a line down to -``penalty`` at ``max_length``.

    Args:
        max_length: tokens of a completion, EOS included, where the penalty is full.
        cache: tokens before that over which it grows.
        penalty: its size.
        floor: no more than ``penalty`` beyond ``max_length``; false lets it grow on, as verl does.
    """

    def __init__(self, max_length: int, cache: int, penalty: float = 1.0, floor: bool = True) -> None:
        if not 0 < cache <= max_length:
            raise ValueError(f"cache={cache}: must be from 1 to max_length={max_length}")
        if not 0 < penalty < math.inf:
            raise ValueError(f"penalty={penalty}: must be above 0 and finite")
        self.max_length, self.cache, self.penalty, self.floor = max_length, cache, penalty, floor

    def one(self, sample: Sample) -> float:
        beyond = max(0.0, (sample.tokens - self.max_length + self.cache) / self.cache)
        return 0.0 - self.penalty * (min(beyond, 1.0) if self.floor else beyond)


class FormatReward(SampleReward):
    """1 for a completion of a form, else 0.

    Args:
        pattern: regular expression of Python, in which a dot is a line's end too.
        whole: it must match all of the completion, space around it left out; false for a part.
    """

    def __init__(self, pattern: str = r"<think>.*?</think>\s*<answer>.*?</answer>", whole: bool = True) -> None:
        try:
            self.pattern = re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise ValueError(f"pattern={pattern!r}: is no regular expression ({error})") from error
        self.whole = whole

    def one(self, sample: Sample) -> float:
        search = self.pattern.fullmatch if self.whole else self.pattern.search
        return float(search(sample.text.strip()) is not None)


class LengthReward(Reward):
    """Favours short completions among those of a prompt: the two baselines of CANON (arXiv 2509.23962).

    ``correct``: right ones get 1 - c sigmoid(z), z the length's distance from the mean of the prompt's right ones in
    standard deviations, wrong ones 0. ``relative``: the reward plus c (mean length of the prompt's / length - 1).

    Args:
        reward: what is right: above 0.5. What it does not score is not scored here, and no part of the means.
        coefficient: c.
        kind: ``correct`` or ``relative``.
    """

    def __init__(
        self, reward: Reward, coefficient: float = 0.1, kind: Literal["correct", "relative"] = "correct"
    ) -> None:
        if not 0 <= coefficient < math.inf:
            raise ValueError(f"coefficient={coefficient}: must be at least 0 and finite")
        self.reward, self.coefficient, self.kind = reward, coefficient, kind

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        values = list(self.reward(samples))
        groups: defaultdict[str, list[int]] = defaultdict(list)
        for at, (sample, value) in enumerate(zip(samples, values, strict=True)):
            if value is not None and (self.kind == "relative" or value > 0.5):
                groups[sample.prompt.id].append(at)
        change = correct_changes if self.kind == "correct" else relative_changes
        found = values if self.kind == "relative" else [None if value is None else 0.0 for value in values]
        for rows in groups.values():
            changes = change([max(samples[row].tokens, 1) for row in rows])
            for row, by in zip(rows, changes, strict=True):
                found[row] = (1.0 if self.kind == "correct" else float(values[row] or 0.0)) + self.coefficient * by
        return found


def correct_changes(lengths: Sequence[int]) -> list[float]:
    """-sigmoid(z) of each length; z = (length - mean) / (std + 1e-7), std with one degree less, 1 for one length."""
    mean, std = fmean(lengths), stdev(lengths) if len(lengths) > 1 else 1.0
    # a sigmoid by tanh, which does not overflow
    return [-0.5 - 0.5 * math.tanh(0.5 * (length - mean) / (std + 1e-7)) for length in lengths]


def relative_changes(lengths: Sequence[int]) -> list[float]:
    """mean / length - 1 of each length."""
    mean = fmean(lengths)
    return [mean / length - 1 for length in lengths]
