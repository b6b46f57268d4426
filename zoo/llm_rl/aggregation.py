"""How the losses of tokens become one loss: a coefficient for each token, so that the loss is their weighted sum."""

import warnings
from typing import Literal, get_args

import torch
from torch import Tensor

Aggregation = Literal[
    "seq_mean_token_mean", "token_mean", "token_mean_local", "seq_mean_token_sum", "dr_grpo", "seq_mean_token_sum_norm"
]


def check_aggregation(mode: str, max_length: int | None) -> None:
    """ValueError for an unknown mode, or one that divides by a length that is not given."""
    if mode not in get_args(Aggregation):
        raise ValueError(f"aggregation={mode!r}: choose one of {', '.join(get_args(Aggregation))}")
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length={max_length}: must be at least 1, the longest completion that is generated")
    if max_length is None and mode in ("dr_grpo", "seq_mean_token_sum_norm"):
        raise ValueError(f"max_length=None: aggregation={mode!r} divides by it; give the longest completion in tokens")


def coefficients(
    mode: Aggregation,
    mask: Tensor,
    weight: Tensor,
    sequences: float | Tensor,
    tokens: float | Tensor,
    max_length: int | None = None,
) -> Tensor:
    """Coefficients c [b, T] in the type of ``weight``, 0 outside ``mask``; the loss is ``sum c l`` of all rows.

    With n = mask * weight, B = ``sequences``, T_i the valid tokens of row i, and L = ``max_length``:

    - ``seq_mean_token_mean``: n / (B T_i), GRPO (arXiv 2402.03300);
    - ``token_mean``: n / ``tokens``, DAPO (arXiv 2503.14476);
    - ``token_mean_local``: b / B times n over the sum of n of these b rows, so it depends on the cut into minibatches
      (TRL's ``bnpo``, where every minibatch has the same size);
    - ``seq_mean_token_sum``: n / B;
    - ``dr_grpo``: n / (B L), Dr. GRPO (arXiv 2503.20783);
    - ``seq_mean_token_sum_norm``: n / L, without 1 / B (verl).

    Args:
        mask: [b, T] bool, valid tokens. A row without any has no part in the loss.
        weight: [b, T] float, what selection left of each token.
        sequences: rows of the whole optimiser step, of all its minibatches and ranks.
        tokens: sum of n over the whole optimiser step.
        max_length: longest completion that could have been generated, in tokens.

    The sum over all minibatches and ranks is the loss: where the gradients of W ranks are averaged, multiply by W.
    """
    check_aggregation(mode, max_length)
    if mask.shape != weight.shape or mask.ndim != 2:
        raise ValueError(f"mask {tuple(mask.shape)} and weight {tuple(weight.shape)}: both must be [rows, tokens]")
    n, longest = weight * mask, 1 if max_length is None else max_length
    length = mask.sum(1, keepdim=True)
    if (length == 0).any():
        warnings.warn("a completion without tokens: it contributes nothing to the loss", stacklevel=2)
    if mode == "token_mean":
        return n / _nonzero(n, tokens)
    if mode == "token_mean_local":
        return n / _nonzero(n, n.sum()) * (len(n) / _nonzero(n, sequences))
    if mode == "seq_mean_token_sum_norm":
        return n / longest
    per_row = n / _nonzero(n, sequences)
    if mode == "seq_mean_token_mean":
        return per_row / length.clamp(min=1)
    return per_row / longest if mode == "dr_grpo" else per_row


def _nonzero(like: Tensor, total: float | Tensor) -> Tensor:
    """The divisor, or 1 where nothing is divided."""
    total = torch.as_tensor(total, dtype=like.dtype, device=like.device)
    return torch.where(total > 0, total, 1.0)
