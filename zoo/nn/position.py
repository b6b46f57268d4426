"""Position codes for feature maps."""

import math

import torch
from torch import Tensor


def sine_position(
    height: int, width: int, channels: int, temperature: float = 10000.0, dtype: torch.dtype | None = None
) -> Tensor:
    """Sine code of a grid: [channels, height, width], the first half of the channels for y, the rest for x.

    With n = channels / 2 and 1-based rows i: angle_i = 2 pi i / (height + 1e-6), d_k = temperature^(2
    floor(k/2) / n); channel k is sin(angle_i / d_k) for even k and cos(angle_i / d_k) for odd k; columns
    likewise. The code of DETR (arXiv 2005.12872) in its normalised form, as CRLNet's official code has it.
    Computed in float64, returned in ``dtype`` (default: torch's default).

    Raises:
        ValueError: if ``channels`` is not a multiple of 4 (each axis needs sine and cosine pairs).
    """
    if channels < 4 or channels % 4:
        raise ValueError(f"sine_position: channels must be a positive multiple of 4, got {channels}")
    half = channels // 2
    k = torch.arange(half)
    scale = temperature ** (2 * (k // 2).double() / half)

    def axis(length: int) -> Tensor:
        angle = 2 * math.pi * torch.arange(1, length + 1, dtype=torch.float64) / (length + 1e-6)
        phase = angle / scale[:, None]
        return torch.where(k[:, None] % 2 == 0, phase.sin(), phase.cos())  # [half, length]

    y = axis(height)[:, :, None].expand(half, height, width)
    x = axis(width)[:, None, :].expand(half, height, width)
    return torch.cat([y, x]).to(dtype or torch.get_default_dtype())
