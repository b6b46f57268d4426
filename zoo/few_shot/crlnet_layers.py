"""CRLNet's parts (arXiv 2502.01183): attention across a pair of images, correlation filter, re-representation.

Shapes: B pairs, N images, C channels, T = h * w positions of a square map, row by row.
"""

from itertools import pairwise
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.nn.position import sine_position

Role = Literal["support", "query"]
ROLES: tuple[Role, Role] = ("support", "query")


def filter_correlation(own: Tensor, other: Tensor, weight: Tensor) -> Tensor:
    """3x3 filter on the own image of the correlation with every position of the other: [B, 1, h, w].

    m[x, y] = sum_{t, u, v} weight[0, t, u, v] <other[t], own[x + u, y + v]> with zeros outside: the
    official code's ``Conv3d`` over the correlation, without its bias. The sum over t goes
    first, since it is linear, so the T x T correlation never exists and the cost falls from C T^2 to 18 C T.

    Args:
        own, other: token embeddings [B, T, C].
        weight: [1, T, 3, 3].
    """
    taps = weight.flatten(2)[0].T @ other  # [B, 9, C], one filter over channels for each tap
    response = taps @ own.transpose(1, 2)  # [B, 9, T]
    side = round(weight.shape[1] ** 0.5)
    # fold writes tap (u, v) to (x + u - 1, y + v - 1) and a convolution reads from there: hence the flip
    return F.fold(response.flip(1), (side, side), 3, padding=1)


class Attention(nn.Module):
    """Multi-head attention whose projections can be taken one at a time, so that callers may keep them."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(channels, 3 * channels)
        self.out_proj = nn.Linear(channels, channels)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def project(self, x: Tensor, part: int) -> Tensor:
        """Queries (``part`` 0), keys (1) or values (2) of ``x`` [N, T, C], as [N, heads, T, C / heads]."""
        weight, bias = self.in_proj.weight.chunk(3)[part], self.in_proj.bias.chunk(3)[part]
        return F.linear(x, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[B, T, C] from projected queries [B, heads, T, d], keys and values [B, heads, T', d]."""
        out = F.scaled_dot_product_attention(query, key, value)
        attended: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return attended


class FeedForward(nn.Module):
    """LN(x + drop(W2 drop(relu(W1 x))))."""

    def __init__(self, channels: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)
        self.norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] to [B, T, C]."""
        inner = self.linear2(self.dropout(F.relu(self.linear1(x), inplace=True)))
        out: Tensor = self.norm(x + self.dropout(inner))
        return out


def xavier_(module: nn.Module) -> None:
    """Xavier-uniform for every parameter with more than one axis, in place."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


class CrossAttentionLayer(nn.Module):
    """U = LN(Q + MHA(Q, K, V)); A = LN(U + FFN(U)), with Q before the attention's own projection."""

    def __init__(self, channels: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(channels, heads)
        self.norm = nn.LayerNorm(channels)
        self.feed_forward = FeedForward(channels, hidden, dropout)
        xavier_(self)

    def forward(self, base: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``base`` is Q [B, T, C]; ``query``, ``key``, ``value`` come from ``attention.project``."""
        out: Tensor = self.feed_forward(self.norm(base + self.attention(query, key, value)))
        return out


class SelfAttentionLayer(nn.Module):
    """z = LN_a(x); y = LN_b(x + MHA(z, z, z)); o = LN_c(y + FFN(y)), all within one image."""

    def __init__(self, channels: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = Attention(channels, heads)
        self.pre_norm = nn.LayerNorm(channels)
        self.after_norm = nn.LayerNorm(channels)
        self.feed_forward = FeedForward(channels, hidden, dropout=0.0)
        xavier_(self)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] to [B, T, C]."""
        z = self.pre_norm(x)
        query, key, value = (self.attention.project(z, part) for part in range(3))
        out: Tensor = self.feed_forward(self.after_norm(x + self.attention(query, key, value)))
        return out


class CrossTerms(NamedTuple):
    """What the cross-attention needs of N images in one role, whatever their partners.

    ``base`` [N, T, C], ``query`` [N, heads, T, d] of the role's own branch; ``key`` and ``value``
    [N, 2, heads, T, d] for the support branch and the query branch.
    """

    base: Tensor
    query: Tensor
    key: Tensor
    value: Tensor


class ConditionalLearner(nn.Module):
    """Cross-attention of each image over both: the two maps stand one above the other as one tall image.

    Keys carry the position code of the tall 2h x w grid, queries that of their own h x w grid, values none
    (official code). With ``share`` one attention layer serves both branches.
    """

    position: Tensor
    slot: Tensor

    def __init__(self, channels: int, map_size: int, heads: int, hidden: int, dropout: float, share: bool) -> None:
        super().__init__()
        names = [f"{branch}_{part}" for branch in "sq" for part in "qkv"]
        self.project = nn.ModuleDict({name: nn.Linear(channels, channels) for name in names})
        xavier_(self.project)
        self.attention = nn.ModuleList(
            CrossAttentionLayer(channels, heads, hidden, dropout) for _ in range(1 if share else 2)
        )
        position = sine_position(map_size, map_size, channels).flatten(1).T.contiguous()
        tall = sine_position(2 * map_size, map_size, channels).flatten(1).T.contiguous()
        self.register_buffer("position", position, persistent=False)
        self.register_buffer("slot", tall.unflatten(0, (2, -1)), persistent=False)

    def precompute(self, tokens: Tensor, role: Role) -> CrossTerms:
        """The terms of images ``tokens`` [N, T, C] that stand in the given role of a pair."""
        own = ROLES.index(role)
        first, last = (cast(CrossAttentionLayer, self.attention[i]).attention for i in (0, -1))
        base = self.project[f"{role[0]}_q"](tokens) + self.position
        keys = [self.project[name](tokens) + self.slot[own] for name in ("s_k", "q_k")]
        values = [self.project[name](tokens) for name in ("s_v", "q_v")]
        return CrossTerms(
            base,
            (first, last)[own].project(base, 0),
            torch.stack([first.project(keys[0], 1), last.project(keys[1], 1)], dim=1),
            torch.stack([first.project(values[0], 2), last.project(values[1], 2)], dim=1),
        )

    def forward(self, support: CrossTerms, query: CrossTerms) -> tuple[Tensor, Tensor]:
        """A_s and A_q [B, T, C] of B pairs."""
        out = []
        for branch, own in enumerate((support, query)):
            key = torch.cat([support.key[:, branch], query.key[:, branch]], dim=2)
            value = torch.cat([support.value[:, branch], query.value[:, branch]], dim=2)
            layer = self.attention[branch % len(self.attention)]
            out.append(layer(own.base, own.query, key, value))
        return out[0], out[1]


class CorrelationFilter(nn.Module):
    """ReLU(BN(filter of the correlation)): one number for each position of the own image.

    Runs outside autocast: its sums pass float16's largest number (65,504).
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, map_size: int, normalize: bool) -> None:
        super().__init__()
        # as a module's only for its initial values, which are those of the official Conv3d
        for name, parameter in nn.Conv2d(map_size**2, 1, 3).named_parameters():
            self.register_parameter(name, parameter)
        self.norm = nn.BatchNorm2d(1)
        self.normalize = normalize

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        """m [B, T, 1] of ``own`` and ``other`` [B, T, C]."""
        if self.weight.dtype == torch.float16:
            raise TypeError("CRLNet's correlation overflows in float16: use 32, 16-mixed or bf16 precision")
        if self.training and own.shape[0] * own.shape[1] == 1:
            raise ValueError("CRLNet: a batch of 1 pair with 1x1 maps has no variance: use batch_size >= 2")
        with torch.autocast(own.device.type, enabled=False):
            own, other = own.to(self.weight.dtype), other.to(self.weight.dtype)
            if self.normalize:
                own, other = F.normalize(own, dim=-1), F.normalize(other, dim=-1)
            m = self.norm(filter_correlation(own, other, self.weight) + self.bias)
        return F.relu(m).flatten(2).transpose(1, 2)


class ReRepresentationLearner(nn.Module):
    """MLP on [F, m] at each position, a projection for each role, self-attention within each image.

    ``self_attention`` off returns the projected map; the position code, made for the attention, is then
    left out.
    """

    position: Tensor

    def __init__(
        self,
        channels: int,
        map_size: int,
        heads: int,
        hidden: int,
        mlp_hidden: int,
        share: bool,
        self_attention: bool,
    ) -> None:
        super().__init__()
        sizes = [channels + 1, mlp_hidden, mlp_hidden, channels]
        self.mlp = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.project = nn.ModuleDict({branch: nn.Linear(channels, channels) for branch in "sq"})
        self.attention = nn.ModuleList(
            SelfAttentionLayer(channels, heads, hidden) for _ in range((1 if share else 2) * self_attention)
        )
        position = sine_position(map_size, map_size, channels).flatten(1).T.contiguous()
        self.register_buffer("position", position, persistent=False)

    def forward(self, tokens: Tensor, m: Tensor | None, role: Role) -> Tensor:
        """o [B, T, C] of maps ``tokens`` [B, T, C] and correlations ``m`` [B, T, 1]; None stands for 0."""
        if m is None:
            m = tokens.new_zeros(tokens.shape[:2]).unsqueeze(2)
        first, second, third = self.mlp
        # keeping first(F) for each image was measured: 1% of the time for a quarter more cached numbers
        x = F.relu(first(torch.cat([tokens, m.to(tokens.dtype)], dim=2)), inplace=True)
        x = self.project[role[0]](third(F.relu(second(x), inplace=True)))
        if not self.attention:
            return x
        out: Tensor = self.attention[ROLES.index(role) % len(self.attention)](x + self.position)
        return out
