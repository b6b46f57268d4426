"""Dropout and attention with dropout that are cheap on a CPU too."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Dropout(nn.Dropout):
    """``nn.Dropout``; on a CPU the mask comes from uniform numbers, which torch draws several times as fast there."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p, self.training)


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """Inverted dropout of a tensor of any shape: elements are 0 with probability ``p``, others ``x / (1 - p)``."""
    if not training or p == 0 or x.device.type != "cpu":
        return F.dropout(x, p, training)
    if p == 1:
        return torch.zeros_like(x)
    kept = torch.rand(x.shape, dtype=torch.float32) >= p
    return x * kept.to(x.dtype).div_(1 - p)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, p: float) -> Tensor:
    """Scaled dot-product attention [B, H, S, d] under an additive mask [B, 1, S, T], weights dropped out by ``p``.

    ``query`` [B, H, S, d], ``key`` and ``value`` [B, H, T, d]. Equal to torch's, which dropout makes slow on a CPU.
    """
    if p == 0 or query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=p)
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + mask
    return dropout(scores.softmax(-1), p) @ value
