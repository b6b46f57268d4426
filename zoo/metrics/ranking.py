"""Rank of one target among all candidates; hit rate, NDCG and MRR at k over users, exact over any number of ranks."""

import re
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from zoo.metrics.interval import first_of_each

Ties = Literal["average", "optimistic", "pessimistic"]
_SHARE_OF_TIED = {"average": 0.5, "optimistic": 0.0, "pessimistic": 1.0}


def target_ranks(scores: Tensor, target: Tensor, ties: Ties = "average") -> Tensor:
    """Rank from 1 of each row's target: 1 + the number of better scores + a share of the other equal ones, [B] float32.

    Args:
        scores: [B, V].
        target: [B] int64, columns of ``scores``.
        ties: the share of equal scores that count as better: ``average`` half, ``optimistic`` none, ``pessimistic``
            all. By the optimistic rule a model with constant scores has every target at rank 1.

    Raises:
        ValueError: for another ``ties``, or if a score is NaN.
    """
    if ties not in _SHARE_OF_TIED:
        raise ValueError(f"ties={ties!r}: must be {', '.join(_SHARE_OF_TIED)}")
    own = scores.gather(1, target[:, None])
    better, worse = (scores > own).sum(1), (scores < own).sum(1)
    equal = (scores == own).sum(1)
    if bool((better + worse + equal < scores.shape[1]).any()):
        raise ValueError("scores hold NaN, so there is no rank: has training diverged?")
    return 1 + better + _SHARE_OF_TIED[ties] * (equal - 1)


def hit_rate_at(rank: Tensor, k: int) -> Tensor:
    """``1[r <= k]`` for ranks [n], float64; with one target also the recall at k."""
    return (rank <= k).double()


def ndcg_at(rank: Tensor, k: int) -> Tensor:
    """``1[r <= k] / log2(r + 1)`` for ranks [n], float64: the NDCG at k of one target."""
    return hit_rate_at(rank, k) / (rank.double() + 1).log2()


def mrr_at(rank: Tensor, k: int) -> Tensor:
    """``1[r <= k] / r`` for ranks [n], float64."""
    return hit_rate_at(rank, k) / rank.double()


_KINDS: dict[str, Callable[[Tensor, int], Tensor]] = {"hr": hit_rate_at, "ndcg": ndcg_at, "mrr": mrr_at}


class RankingMetrics(Metric):
    """Several metrics by name, such as ``ndcg@10``, from one rank a user; a user who comes twice counts once.

    So samplers may pad a rank's last batch, and the result is the same for any number of ranks.

    Args:
        names: ``hr@k``, ``ndcg@k`` or ``mrr@k`` with k at least 1.
    """

    full_state_update = False
    rank: list[Tensor]
    user: list[Tensor]

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = {name: _parsed(name) for name in names}
        self.add_state("rank", default=[], dist_reduce_fx="cat")
        self.add_state("user", default=[], dist_reduce_fx="cat")

    def update(self, rank: Tensor, user: Tensor) -> None:
        """Add [n] ranks under [n] int64 user numbers."""
        self.rank.append(rank)
        self.user.append(user)

    def per_user(self) -> tuple[Tensor, Tensor]:
        """User numbers, ascending and distinct, and their ranks, [users] each, on the CPU; of this process alone."""
        user, rank = dim_zero_cat(self.user).cpu(), dim_zero_cat(self.rank).cpu()
        rows = first_of_each(user)
        return user[rows], rank[rows]

    def compute(self) -> dict[str, Tensor]:
        """The mean over users of each metric, float64."""
        rank = self.per_user()[1]
        return {name: kind(rank, k).sum() / len(rank) for name, (kind, k) in self.names.items()}


class _One(RankingMetrics):
    kind: str

    def __init__(self, k: int) -> None:
        super().__init__([f"{self.kind}@{k}"])

    def compute(self) -> Tensor:  # type: ignore[override]
        """The mean over users, a float64 scalar."""
        return next(iter(super().compute().values()))


class HitRate(_One):
    """Share of users whose target is among the first k."""

    kind = "hr"


class NDCG(_One):
    """Normalised discounted cumulative gain at k of one target a user."""

    kind = "ndcg"


class MRR(_One):
    """Mean reciprocal rank, 0 beyond k."""

    kind = "mrr"


def _parsed(name: str) -> tuple[Callable[[Tensor, int], Tensor], int]:
    found = re.fullmatch(f"({'|'.join(_KINDS)})@([0-9]+)", name)
    if found is None or int(found[2]) < 1:
        raise ValueError(f"metric {name!r} is unknown: give {', '.join(f'{kind}@k' for kind in _KINDS)} with k >= 1")
    return _KINDS[found[1]], int(found[2])
