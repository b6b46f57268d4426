"""Which tokens attend to which, and which are learned, where an ending token E stands between two texts."""

from typing import Literal

import torch
from torch import Tensor

LabelScope = Literal["query", "all"]


def attention_block(valid: Tensor, end: int) -> Tensor:
    """What each token may attend to when all behind E sees the text before E through E alone.

    LLM-QL, arXiv 2504.05216, "attention block": up to E attention is causal; token i behind E attends to columns
    ``end`` to i. The same in all layers and heads.

    Args:
        valid: [B, T] bool, False for padding, which no token attends to.
        end: the column of E, from 0.

    Returns:
        [B, 1, T, T] bool, True where row i may attend to column j. Rows before the first valid column are empty: see
        :func:`safe_mask`.

    Raises:
        ValueError: if ``end`` is not a column, or E is padding in some row.
    """
    length = valid.shape[1]
    if not 0 <= end < length:
        raise ValueError(f"end={end}: must be a column of the {length} that the batch has")
    if not valid[:, end].all():
        raise ValueError(f"end={end}: that column is padding in some row, so it cannot be the ending token")
    row = torch.arange(length, device=valid.device)[:, None]
    column = row.T
    allowed = (column <= row) & ((row <= end) | (column >= end))
    return (allowed & valid[:, None, :])[:, None]


def safe_mask(mask: Tensor) -> Tensor:
    """``mask`` [..., T, T] bool, in which tokens that may attend to none attend to themselves.

    A softmax over nothing is not a number. No other token attends to such a token, so none changes.
    """
    itself = torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
    return mask | (itself & ~mask.any(-1, keepdim=True))


def labelled(valid: Tensor, end: int, scope: LabelScope) -> Tensor:
    """The tokens [B, T] bool that are learned, each from the output of the column before it.

    ``query`` is all behind E, the first of them predicted by E itself: the query likelihood. ``all`` is every token
    but the first, as in the official code, which also takes the first one, predicted by padding; here it is left out.
    """
    after = torch.zeros_like(valid)
    after[:, 1:] = valid[:, 1:] & valid[:, :-1]
    if scope == "query":
        after[:, : end + 1] = False
    return after
