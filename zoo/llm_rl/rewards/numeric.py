"""Rewards for the right number."""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Literal, get_args

from zoo.llm_rl.batches import Sample
from zoo.llm_rl.rewards.answers import ANYWHERE, Place, extract, normalised, to_number
from zoo.llm_rl.rewards.base import SampleReward

_number = lru_cache(4096)(to_number)  # of references, which come once for each sample


class NumericAnswer(SampleReward):
    r"""1 for the right number, else 0.

    Args:
        places: where the answer may stand, the first that a completion has counts: the last ``\boxed{}``, behind the
            last ``####``, the last number.
        tolerance: the answer a is right for the reference b if |a - b| <= tolerance * max(1, |b|); 0 compares exactly.
        partial: reward of a wrong number, such as 0.1 (ReFT, arXiv 2401.08967).
        otherwise: a reference that is no number is an error, or is compared as ``text``, without spacing.
    """

    def __init__(
        self,
        places: Sequence[Place] = ANYWHERE,
        tolerance: float = 0.0,
        partial: float = 0.0,
        otherwise: Literal["error", "text"] = "error",
    ) -> None:
        check_places(places)
        if not 0 <= tolerance < 1:
            raise ValueError(f"tolerance={tolerance}: must be in [0, 1)")
        if not math.isfinite(partial):
            raise ValueError(f"partial={partial}: must be finite")
        self.places, self.tolerance = places, Fraction(tolerance)
        self.partial, self.otherwise = partial, otherwise

    def one(self, sample: Sample) -> float:
        found = extract(sample.text, self.places)
        if self.otherwise == "text" and sample.prompt.answer is not None and _number(sample.prompt.answer) is None:
            return float(found is not None and normalised(found) == normalised(sample.prompt.answer))
        wanted = reference(sample)
        number = None if found is None else to_number(found)
        if number is None:
            return 0.0
        return 1.0 if abs(number - wanted) <= self.tolerance * max(Fraction(1), abs(wanted)) else self.partial


class ContinuousAnswer(SampleReward):
    r"""The continuous reward of RandomCalculation (arXiv 2507.10532, eq. 2), in [0, 1]; 0 without a readable number.

    Args:
        places: where the answer may stand, see ``NumericAnswer``.
        eps: added to the reference's size.
    """

    def __init__(self, places: Sequence[Place] = ("boxed",), eps: float = 1e-6) -> None:
        check_places(places)
        if not eps > 0:
            raise ValueError(f"eps={eps}: must be above 0")
        self.places, self.eps = places, eps

    def one(self, sample: Sample) -> float:
        wanted = reference(sample)
        found = extract(sample.text, self.places)
        number = None if found is None else to_number(found)
        try:
            return 0.0 if number is None else continuous(float(number), float(wanted), self.eps)
        except OverflowError:
            return 0.0


def continuous(a: float, b: float, eps: float = 1e-6) -> float:
    """1 - min(|a - b|, 1) / 2 - min(|a - b| / (|b| + eps), 1) / 2 for an answer a to a reference b (eq. 2)."""
    distance = abs(a - b)
    return 1.0 - 0.5 * min(distance, 1.0) - 0.5 * min(distance / (abs(b) + eps), 1.0)


def reference(sample: Sample) -> Fraction:
    """The number that is right. Raises ``ValueError`` that names the prompt if its answer is none."""
    answer = sample.prompt.answer
    number = None if answer is None else _number(answer)
    if number is None:
        raise ValueError(
            f"prompt {sample.prompt.id!r}: its answer is {answer!r}, which is no number; leave it out, or compare "
            "texts by NumericAnswer with otherwise=text"
        )
    return number


def check_places(places: Sequence[Place]) -> None:
    """Raises ``ValueError`` for places that are none."""
    known = get_args(Place)
    if isinstance(places, str) or not places or set(places) - set(known):
        raise ValueError(f"places={places!r}: must be a list of some of {', '.join(known)}")
