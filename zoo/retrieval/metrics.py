"""Retrieval metrics of ranked relevance, one value a query.

All take ``relevance`` [Q, k] bool, the relevance of the k best gallery items in descending order of score, and where
needed ``relevant`` [Q] int64, the number R >= 1 of relevant items in the whole gallery. All return [Q] float64 in
[0, 1]. P(i) is the precision of the first i hits. Queries without a relevant item are for the caller to leave out.
"""

import torch
from torch import Tensor


def recall_at(relevance: Tensor, k: int) -> Tensor:
    """1 where any of the first k hits is relevant: the Recall@k of metric learning, also CMC@k or hit@k.

    It is not the recall of information retrieval, which divides by R.
    """
    return _first(relevance, k).any(1).double()


def precision_at(relevance: Tensor, k: int) -> Tensor:
    """The share of relevant items in the first k hits; divides by k even where R < k."""
    return _first(relevance, k).double().mean(1)


def r_precision(relevance: Tensor, relevant: Tensor) -> Tensor:
    """The share of relevant items in the first R hits."""
    within = _within(relevance, _checked(relevant))
    return (relevance & within).sum(1) / relevant.double()


def map_at_r(relevance: Tensor, relevant: Tensor) -> Tensor:
    """``(1/R) sum_{i<=R} P(i) rel_i`` (Musgrave et al., "A Metric Learning Reality Check", arXiv 2003.08505)."""
    within = _within(relevance, _checked(relevant))
    return (_precision(relevance) * (relevance & within)).sum(1) / relevant


def map_at(relevance: Tensor, relevant: Tensor, k: int) -> Tensor:
    """``(1/min(R, k)) sum_{i<=k} P(i) rel_i``, as landmark retrieval has it (arXiv 2004.01804).

    Others divide by the number of relevant items that were found, which does not punish misses.
    """
    first = _first(relevance, k)
    return (_precision(first) * first).sum(1) / _checked(relevant).clamp(max=k)


def average_precision(relevance: Tensor, relevant: Tensor) -> Tensor:
    """``(1/R) sum_i P(i) rel_i`` over a ranking that holds all R relevant items.

    Raises:
        ValueError: if the ranking ends before the last relevant item.
    """
    missing = relevance.sum(1) < _checked(relevant)
    if missing.any():
        raise ValueError(f"the rankings of {int(missing.sum())} queries end before their last relevant item: go deeper")
    return (_precision(relevance) * relevance).sum(1) / relevant


def reciprocal_rank(relevance: Tensor) -> Tensor:
    """1 / rank of the first relevant hit, 0 without one."""
    return relevance.any(1) / (1 + relevance.byte().argmax(1).double())


def _ranks(relevance: Tensor) -> Tensor:
    return torch.arange(1, relevance.shape[1] + 1, device=relevance.device)


def _precision(relevance: Tensor) -> Tensor:
    """P(i), [Q, k]."""
    return relevance.cumsum(1) / _ranks(relevance).double()


def _first(relevance: Tensor, k: int) -> Tensor:
    if not 1 <= k <= relevance.shape[1]:
        raise ValueError(f"k={k}: must be at least 1 and at most the {relevance.shape[1]} hits that were ranked")
    return relevance[:, :k]


def _within(relevance: Tensor, relevant: Tensor) -> Tensor:
    """Which hits are among the first R, [Q, k]."""
    if len(relevant) and relevant.max() > relevance.shape[1]:
        raise ValueError(
            f"{relevance.shape[1]} hits were ranked, but a query has {relevant.max()} relevant items: increase the "
            "depth or use map@k"
        )
    return _ranks(relevance) <= relevant[:, None]


def _checked(relevant: Tensor) -> Tensor:
    if (relevant < 1).any():
        raise ValueError(f"{int((relevant < 1).sum())} queries have no relevant item: leave them out, and count them")
    return relevant
