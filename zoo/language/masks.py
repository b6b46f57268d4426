"""Attention masks in the form that each implementation of attention takes."""

from typing import Any

import torch
from torch import Tensor

MASKS_4D = ("sdpa", "eager", "flex_attention")


def mask_for(attention: str, mask: Tensor, dtype: torch.dtype) -> Any:
    """A mask [B, S], or bool [B, 1, T, S] with True where a row may attend to a column, for transformers.

    Args:
        attention: implementation that the network was made with.
        mask: see above.
        dtype: of the network.

    Raises:
        ValueError: for a mask of another shape or type, and of rows and columns where ``attention`` takes none.
    """
    if mask.ndim == 2:
        return mask
    if attention not in MASKS_4D:
        raise ValueError(f"attention={attention!r} takes no mask [B, 1, T, T]: use {', '.join(MASKS_4D)}")
    if mask.ndim != 4 or mask.dtype != torch.bool:
        raise ValueError(f"attention_mask {tuple(mask.shape)} {mask.dtype}: must be [B, T], or bool [B, 1, T, T]")
    if attention == "sdpa":
        return mask
    if attention == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        sizes = mask.shape[0], None, mask.shape[2], mask.shape[3]
        return create_block_mask(lambda b, h, q, k: mask[b, 0, q, k], *sizes, device=mask.device)  # type: ignore[arg-type]
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
