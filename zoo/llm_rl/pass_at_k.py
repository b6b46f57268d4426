"""The chance that one of k completions is right, without bias (Chen et al., arXiv 2107.03374)."""

from collections.abc import Mapping, Sequence
from math import comb


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """``1 - C(n - c, k) / C(n, k)`` for n ``samples`` of a problem, c of them ``correct``; integers up to the division.

    Raises:
        ValueError: unless 0 <= c <= n and 1 <= k <= n.
    """
    if not 0 <= correct <= samples:
        raise ValueError(f"correct={correct}: must be from 0 to the {samples} samples")
    if not 1 <= k <= samples:
        raise ValueError(f"k={k}: must be from 1 to the {samples} samples; draw more to estimate it")
    return 1 - comb(samples - correct, k) / comb(samples, k)


def mean_pass_at_k(problems: Mapping[str, Sequence[bool]], ks: Sequence[int] = (1, 2, 4, 8)) -> dict[str, float]:
    """``pass@k`` for each k: the mean over problems, given for each whether its samples pass all tests.

    Raises:
        ValueError: if there are no problems, or one has fewer samples than the largest k; names it.
    """
    if not problems:
        raise ValueError("problems is empty: there is nothing to take a mean of")
    for id, samples in problems.items():
        if len(samples) < max(ks):
            raise ValueError(f"problem {id!r} has {len(samples)} samples, too few for k={max(ks)}: draw more")
    return {
        f"pass@{k}": sum(pass_at_k(len(each), sum(each), k) for each in problems.values()) / len(problems) for k in ks
    }
