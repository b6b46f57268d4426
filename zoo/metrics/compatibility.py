"""Summaries of a compatibility matrix: what a gallery made by an old model is worth to queries of a newer one.

``matrix[t, k]`` for k <= t is a retrieval score, higher is better, of queries by model t against a gallery by model k;
the diagonal holds the self-tests. What stands above the diagonal is ignored. A cell is NaN where the two models'
embeddings cannot be compared (their widths differ): every summary refuses such a matrix, whose average over the other
cells would hide the worst updates, unless ``skip_missing`` asks for just that.
"""

import torch
from torch import Tensor


def average_compatibility(matrix: Tensor, skip_missing: bool = False) -> float:
    """AC: the share of the T (T - 1) / 2 pairs t > k with ``matrix[t, k] > matrix[k, k]`` strictly, in [0, 1].

    NaN where there is no pair, as for a single model. Biondi et al., CL2R and arXiv 2405.02581.
    """
    matrix = _checked(matrix, skip_missing)
    pairs = int(_compared(matrix).sum())
    return 1 - len(failing_cells(matrix, skip_missing)) / pairs if pairs else float("nan")


def average_accuracy(matrix: Tensor, skip_missing: bool = False) -> float:
    """AA: the mean of the lower triangle with its diagonal, in the matrix's own unit."""
    return float(running_average_accuracy(matrix, skip_missing)[-1])


def running_average_accuracy(matrix: Tensor, skip_missing: bool = False) -> Tensor:
    """AA after each update in the matrix's own unit, [T] float64: entry t is of the leading t + 1 rows and columns."""
    matrix = _checked(matrix, skip_missing)
    return matrix.nansum(1).cumsum(0) / (~matrix.isnan()).sum(1).cumsum(0)


def failing_cells(matrix: Tensor, skip_missing: bool = False) -> list[tuple[int, int]]:
    """The (t, k), t > k, where the newer model's queries find no more than model k's own: not compatible."""
    matrix = _checked(matrix, skip_missing)
    failing = _compared(matrix) & ~(matrix > matrix.diagonal())
    return [(t, k) for t, k in failing.nonzero().tolist()]


def reindexing_gap(matrix: Tensor, skip_missing: bool = False) -> Tensor:
    """What the last model loses on each old gallery against its own: ``matrix[-1, -1] - matrix[-1, k]``, [T - 1].

    In the matrix's own unit; re-indexing gallery k would win this back.
    """
    last = _checked(matrix, skip_missing)[-1]
    return last[-1] - last[:-1]


def update_gain(matrix: Tensor, skip_missing: bool = False) -> Tensor:
    """The part of an update's gain that old galleries get without re-indexing, [T, T] without unit (Shen et al., BCT).

    Cell (t, k), t > k: ``(matrix[t, k] - matrix[k, k]) / (matrix[t, t] - matrix[k, k])``; 1 is as good as re-indexing,
    0 no gain, below 0 a loss. NaN where model t's self-test is not above model k's, and for t <= k.
    """
    matrix = _checked(matrix, skip_missing)
    own = matrix.diagonal()
    possible = own[:, None] - own
    return ((matrix - own) / possible).masked_fill(~(_compared(matrix) & (possible > 0)), torch.nan)


def _checked(matrix: Tensor, skip_missing: bool) -> Tensor:
    """The matrix in float64 with NaN above the diagonal."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"a compatibility matrix is square with a row a model, got {list(matrix.shape)}")
    lower = torch.ones_like(matrix, dtype=torch.bool).tril()
    missing = (matrix.isnan() & lower).nonzero().tolist()
    if missing and not skip_missing:
        cells = ", ".join(f"({t}, {k})" for t, k in missing)
        raise ValueError(
            f"the compatibility matrix has no score at {cells} (query model, gallery model), whose embeddings "
            "cannot be compared: leave those models out, or pass skip_missing=True for a summary of the other cells"
        )
    return matrix.double().masked_fill(~lower, torch.nan)


def _compared(matrix: Tensor) -> Tensor:
    """The pairs t > k whose cross-test and old self-test both have a score, [T, T] bool."""
    return ~(matrix.isnan() | matrix.diagonal().isnan()) & torch.ones_like(matrix, dtype=torch.bool).tril(-1)
