"""When a trial that lags behind is stopped: W&B's form of Hyperband (Li et al., arXiv 1603.06560)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Any


@dataclass(frozen=True)
class Hyperband:
    """A trial is judged when the metric has been logged as often as a band says, and then among the best 1/eta or out.

    Bands are ``min_iter``, times ``eta``, times ``eta`` again and so on; or ``max_iter`` divided by ``eta`` up to ``s``
    times. Its best value so far counts, or, where ``strict``, its value at the band.

    As W&B documents it, a band is a number of logged values. Its package ``sweeps`` takes that number as an index from
    zero and judges one value later.
    """

    eta: float = 3.0
    min_iter: int | None = None
    max_iter: int | None = None
    s: int = 0
    strict: bool = False

    @classmethod
    def of(cls, given: Any) -> "Hyperband":
        """From a sweep file's ``early_terminate``. Raises ``ValueError`` that names the field."""
        where = "early_terminate"
        if not isinstance(given, dict) or given.get("type") != "hyperband":
            raise ValueError(f"{where}.type: must be hyperband")
        settings: Mapping[str, Any] = {key: value for key, value in given.items() if key != "type"}
        if unknown := sorted(settings.keys() - {"min_iter", "max_iter", "s", "eta", "strict"}):
            raise ValueError(
                f"{where}.{unknown[0]}: no such key; there are min_iter, or max_iter and s, eta and strict"
            )
        if {"min_iter", "max_iter"} <= settings.keys():
            raise ValueError(f"{where}: has both min_iter and max_iter; leave one out")
        if "min_iter" not in settings and not {"max_iter", "s"} <= settings.keys():
            raise ValueError(f"{where}: must have min_iter, or max_iter and s")
        for key, least in (("min_iter", 1), ("max_iter", 1), ("s", 1)):
            if key in settings and (type(settings[key]) is not int or settings[key] < least):
                raise ValueError(f"{where}.{key}: {settings[key]!r} must be a whole number of at least {least}")
        if not isinstance(settings.get("eta", 3), (int, float)) or settings.get("eta", 3) <= 1:
            raise ValueError(f"{where}.eta: {settings['eta']!r} must be a number above 1")
        if type(settings.get("strict", False)) is not bool:
            raise ValueError(f"{where}.strict: {settings['strict']!r} must be true or false")
        made = cls(**settings)
        if not made.bands(10**9):
            raise ValueError(f"{where}: no band is left; raise max_iter, or lower eta")
        return made

    def bands(self, longest: int) -> list[int]:
        """The numbers of logged values, at most ``longest``, at which trials are judged."""
        if self.max_iter is not None:
            down = (self.max_iter / self.eta**power for power in range(1, self.s + 1))
            return sorted(int(band) for band in down if band >= 1 and int(band) <= longest)
        assert self.min_iter is not None
        up = (int(self.min_iter * self.eta**power) for power in count())
        return list(takewhile(lambda band: band <= longest, up))

    def should_stop(self, own: Sequence[float], others: Sequence[Sequence[float]], goal: str) -> bool:
        """Whether a running trial is to be stopped.

        Args:
            own: what it has logged of the metric, in order.
            others: the same of all other trials, in whatever state.
            goal: minimize or maximize.
        """
        sign = -1.0 if goal == "maximize" else 1.0
        bands = self.bands(len(own))
        if not bands:
            return False
        band = bands[-1]
        at_band = sorted(sign * values[band - 1] for values in [own, *others] if len(values) >= band)
        threshold = at_band[int(1.0 / self.eta * len(at_band))]
        value = sign * own[band - 1] if self.strict else min(sign * value for value in own)
        return value > threshold
