"""CRLNet's head (arXiv 2502.01183): embeddings of an image pair, each conditioned on the other image.

Shapes: B pairs, N images, C channels, T = h * w positions of a square map, row by row.
"""

import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.nn.position import sine_position

Role = Literal["support", "query"]
Mode = Literal["full", "backbone_only", "cross_only", "no_correlation", "no_self_attention"]
ROLES: tuple[Role, Role] = ("support", "query")
MODES: tuple[Mode, ...] = ("full", "backbone_only", "cross_only", "no_correlation", "no_self_attention")


def correlation_map(support: Tensor, query: Tensor) -> Tensor:
    """R_q[b, i, j, x, y] = sum_c support[b, c, i, j] query[b, c, x, y] for maps [B, C, h, w] (official code).

    Called with the arguments exchanged it gives R_s, the same numbers with the pairs of axes exchanged.
    """
    return torch.einsum("bcij,bcxy->bijxy", support, query)


def filter_correlation(own: Tensor, other: Tensor, weight: Tensor) -> Tensor:
    """3x3 filter on the own image of the correlation with every position of the other: [B, 1, h, w].

    m[x, y] = sum_{t, u, v} weight[0, t, u, v] <other[t], own[x + u, y + v]> with zeros outside: the
    official code's ``Conv3d`` over ``correlation_map(other, own)``, without its bias. The sum over t goes
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


def pair_cosine(query: Tensor, support: Tensor, eps: float = 1e-6) -> Tensor:
    """<q, s> / (max(|q|, eps) max(|s|, eps)) over the last axis: [..., C] twice to [...] (official code)."""
    return F.cosine_similarity(query, support, dim=-1, eps=eps)


def mse_pair_loss(cosine: Tensor, label: Tensor) -> Tensor:
    """Mean of (cosine - label)^2, so that different classes are drawn to cosine 0 (official code)."""
    return (cosine - label).square().mean()


def bce_pair_loss(cosine: Tensor, label: Tensor) -> Tensor:
    """Binary cross-entropy of the probability (1 + cosine) / 2; different classes are drawn to cosine -1."""
    p = ((1 + cosine) / 2).clamp(1e-6, 1 - 1e-6)
    return -torch.where(label == 1, p, 1 - p).log().mean()


PAIR_LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": mse_pair_loss, "bce": bce_pair_loss}


def pair_loss(cosine: Tensor, label: Tensor, kind: str = "mse") -> Tensor:
    """Loss of pairs: ``cosine`` [B] float, ``label`` [B] with 1 for the same class and 0 for different ones.

    Raises:
        ValueError: for an unknown ``kind``, or labels other than 0 and 1.
    """
    if kind not in PAIR_LOSSES:
        raise ValueError(f"pair loss {kind!r} is unknown: use one of {sorted(PAIR_LOSSES)}")
    if not ((label == 0) | (label == 1)).all():
        raise ValueError(
            f"pair labels must be 1 (same class) or 0 (different), got {label.unique().tolist()}: "
            "class ids must be compared first"
        )
    return PAIR_LOSSES[kind](cosine, label)


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
        inner = self.linear2(self.dropout(F.relu(self.linear1(x))))
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


class ImageTerms(NamedTuple):
    """All that the head computes of N images in one role before it knows their partners.

    ``tokens`` [N, T, C] the backbone map, ``pooled`` [N, C] its mean, ``cross`` None where no cross-attention
    is used.
    """

    tokens: Tensor
    pooled: Tensor
    cross: CrossTerms | None

    def take(self, index: Tensor) -> "ImageTerms":
        """The terms of the images ``index`` [B] int64, repeats allowed."""
        cross = None if self.cross is None else CrossTerms(*(term[index] for term in self.cross))
        return ImageTerms(self.tokens[index], self.pooled[index], cross)


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
        x = F.relu(first(torch.cat([tokens, m.to(tokens.dtype)], dim=2)))
        x = self.project[role[0]](third(F.relu(second(x))))
        if not self.attention:
            return x
        out: Tensor = self.attention[ROLES.index(role) % len(self.attention)](x + self.position)
        return out


class CRLNetLayer(nn.Module):
    """One conditional and one re-representation learner; parts that ``mode`` leaves out are not built."""

    def __init__(
        self,
        channels: int,
        map_size: int,
        heads: int,
        hidden: int,
        mlp_hidden: int,
        dropout: float,
        mode: Mode,
        share_attention: bool,
        share_conv: bool,
        normalize_correlation: bool,
    ) -> None:
        super().__init__()
        self.cross: ConditionalLearner | None = None
        self.filters: nn.ModuleList | None = None
        self.represent: ReRepresentationLearner | None = None
        if mode != "no_correlation":
            self.cross = ConditionalLearner(channels, map_size, heads, hidden, dropout, share_attention)
        if mode not in ("no_correlation", "cross_only"):
            self.filters = nn.ModuleList(
                CorrelationFilter(map_size, normalize_correlation) for _ in range(1 if share_conv else 2)
            )
        if mode != "cross_only":
            self.represent = ReRepresentationLearner(
                channels, map_size, heads, hidden, mlp_hidden, share_attention, mode != "no_self_attention"
            )

    def precompute(self, tokens: Tensor, role: Role) -> ImageTerms:
        """The partner-free terms of ``tokens`` [N, T, C]."""
        cross = None if self.cross is None else self.cross.precompute(tokens, role)
        return ImageTerms(tokens, tokens.mean(1), cross)

    def correlate(self, a_s: Tensor, a_q: Tensor) -> tuple[Tensor, Tensor]:
        """m_s and m_q [B, T, 1] of the attended maps [B, T, C], in this order (it matters to BatchNorm)."""
        assert self.filters is not None
        return self.filters[0](a_s, a_q), self.filters[-1](a_q, a_s)

    def forward(self, support: ImageTerms, query: ImageTerms) -> tuple[Tensor, Tensor]:
        """The new maps o_s and o_q [B, T, C] of B pairs."""
        m_s: Tensor | None = None
        m_q: Tensor | None = None
        if self.cross is not None:
            assert support.cross is not None
            assert query.cross is not None
            a_s, a_q = self.cross(support.cross, query.cross)
            if self.represent is None:
                return a_s, a_q
            m_s, m_q = self.correlate(a_s, a_q)
        assert self.represent is not None
        return self.represent(support.tokens, m_s, "support"), self.represent(query.tokens, m_q, "query")


class CRLNetHead(nn.Module):
    """Maps of two images to two embeddings, each conditioned on the other image.

    e = w g + (1 - w) mean(o), with g the mean of the backbone map, o the conditioned map and w
    ``residual_backbone_weight``. Exchanging support and query changes the result: their projections differ.

    Args:
        channels: channels C of the maps, a multiple of 4 and of ``heads``.
        map_size: side of the square maps; the correlation filter is built for it.
        heads: attention heads.
        hidden: width of the attention layers' feed-forward parts.
        mlp_hidden: width of the MLP on [map, correlation].
        num_layer: stacked layers; the paper's code has one.
        dropout: in the cross-attention's feed-forward part only.
        mode: ``full``; ``backbone_only`` (e = g, no weights); ``cross_only`` (o is the attended map);
            ``no_correlation`` (m = 0, so neither image sees the other); ``no_self_attention``.
        share_attention: one attention layer for both roles, in the cross- and in the self-attention.
        share_conv: one correlation filter for both roles.
        residual_backbone_weight: w above, in [0, 1].
        normalize_correlation: correlate unit vectors.

    Raises:
        ValueError: for sizes out of range, or maps that do not fit them.
        TypeError: for maps that are not floating point.
    """

    def __init__(
        self,
        channels: int,
        map_size: int,
        heads: int = 8,
        hidden: int = 2048,
        mlp_hidden: int = 2048,
        num_layer: int = 1,
        dropout: float = 0.1,
        mode: Mode = "full",
        share_attention: bool = True,
        share_conv: bool = True,
        residual_backbone_weight: float = 0.5,
        normalize_correlation: bool = False,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"CRLNetHead: mode must be one of {MODES}, got {mode!r}")
        if channels % 4 or channels % heads:
            raise ValueError(f"CRLNetHead: channels must divide by 4 and by heads={heads}, got {channels}")
        if map_size < 1 or num_layer < 1:
            raise ValueError(f"CRLNetHead: map_size={map_size} and num_layer={num_layer} must be at least 1")
        if not 0 <= residual_backbone_weight <= 1:
            raise ValueError(f"CRLNetHead: residual_backbone_weight must be in [0, 1], got {residual_backbone_weight}")
        self.channels = channels
        self.map_size = map_size
        self.weight = 1.0 if mode == "backbone_only" else residual_backbone_weight
        options = (dropout, mode, share_attention, share_conv, normalize_correlation)
        self.layers = nn.ModuleList(
            CRLNetLayer(channels, map_size, heads, hidden, mlp_hidden, *options)
            for _ in range(0 if mode == "backbone_only" else num_layer)
        )

    def precompute(self, maps: Tensor, role: Role) -> ImageTerms:
        """What the head needs of images ``maps`` [N, C, h, w] in one role, whatever their partners."""
        self._check(maps)
        tokens = maps.flatten(2).transpose(1, 2)
        if not self.layers:
            return ImageTerms(tokens, tokens.mean(1), None)
        return cast(CRLNetLayer, self.layers[0]).precompute(tokens, role)

    def embed(self, support: ImageTerms, query: ImageTerms) -> tuple[Tensor, Tensor]:
        """e_s and e_q [B, C] of B aligned pairs of terms."""
        if not self.layers:
            return support.pooled, query.pooled
        o_s, o_q = self.layers[0](support, query)
        for layer in cast(list[CRLNetLayer], self.layers[1:]):
            o_s, o_q = layer(layer.precompute(o_s, "support"), layer.precompute(o_q, "query"))
        w = self.weight
        return w * support.pooled + (1 - w) * o_s.mean(1), w * query.pooled + (1 - w) * o_q.mean(1)

    def forward(self, support_map: Tensor, query_map: Tensor) -> tuple[Tensor, Tensor]:
        """e_s and e_q [B, C] of aligned pairs of maps [B, C, h, w]."""
        if support_map.shape[0] != query_map.shape[0]:
            raise ValueError(
                f"CRLNetHead expects aligned pairs, got {support_map.shape[0]} supports and "
                f"{query_map.shape[0]} queries: for all pairs use precompute and score_pairs"
            )
        return self.embed(self.precompute(support_map, "support"), self.precompute(query_map, "query"))

    def embed_pairs(
        self, support: ImageTerms, query: ImageTerms, support_idx: Tensor, query_idx: Tensor, chunk: int = 128
    ) -> tuple[Tensor, Tensor]:
        """e_s and e_q [P, C] of pairs (``support_idx[p]``, ``query_idx[p]``), ``chunk`` of them at a time."""
        parts = [
            self.embed(support.take(s), query.take(q))
            for s, q in zip(support_idx.split(chunk), query_idx.split(chunk), strict=True)
        ]
        return torch.cat([e_s for e_s, _ in parts]), torch.cat([e_q for _, e_q in parts])

    def score_pairs(
        self, support: ImageTerms, query: ImageTerms, support_idx: Tensor, query_idx: Tensor, chunk: int = 128
    ) -> Tensor:
        """Cosine scores [P] of the pairs, as ``pair_cosine`` of ``embed_pairs``."""
        e_s, e_q = self.embed_pairs(support, query, support_idx, query_idx, chunk)
        return pair_cosine(e_q, e_s)

    def _check(self, maps: Tensor) -> None:
        if not maps.is_floating_point():
            raise TypeError(f"CRLNetHead needs floating-point maps, got {maps.dtype}")
        if maps.dim() != 4 or maps.shape[1] != self.channels:
            raise ValueError(f"CRLNetHead needs maps [B, {self.channels}, h, w], got {tuple(maps.shape)}")
        height, width = maps.shape[2:]
        if height != width:
            raise ValueError(f"CRLNetHead needs square feature maps, got {height}x{width}")
        if height != self.map_size:
            raise ValueError(
                f"CRLNet head was built for {self.map_size}x{self.map_size} maps; got {height}x{width}. "
                f"Rebuild with map_size={height}, or give images of the size it was built for"
            )


_OFFICIAL_NAMES = (
    (r"double_cross_attn\.(\d+)\.cross_attention\.(.+)", r"layers.\1.cross.attention.0.\2"),
    (r"double_cross_attn\.(\d+)\.([sq]_[qkv])_proj\.(.+)", r"layers.\1.cross.project.\2.\3"),
    (r"self_encoder\.(\d+)\.self_encoder\.(.+)", r"layers.\1.represent.attention.0.\2"),
    (r"self_encoder\.(\d+)\.([sq])_proj\.(.+)", r"layers.\1.represent.project.\2.\3"),
    (r"mlp\.(\d+)\.layers\.(.+)", r"layers.\1.represent.mlp.\2"),
    (r"conv\.(\d+)\.0\.(.+)", r"layers.\1.filters.0.\2"),
    (r"conv\.(\d+)\.1\.(.+)", r"layers.\1.filters.0.norm.\2"),
)
_OFFICIAL_PARTS = (
    ("multihead_attn.", "attention."),
    ("in_proj_", "in_proj."),
    ("ffn_layer.", "feed_forward."),
)


def official_name(name: str) -> str | None:
    """Our name of a head weight of the official code, None for a name that is none of the head's."""
    for pattern, ours in _OFFICIAL_NAMES:
        if match := re.fullmatch(pattern, name):
            renamed = match.expand(ours)
            for part, other in _OFFICIAL_PARTS:
                renamed = renamed.replace(part, other)
            return renamed
    return None


def load_official_state(head: CRLNetHead, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Load a checkpoint of the official code into ``head``; returns the backbone's part, prefix removed.

    Raises:
        ValueError: if no name belongs to the head, or one belongs to neither head nor backbone.
        RuntimeError: if a head weight is missing, left over or of another shape (names it).
    """
    ours: dict[str, Tensor] = {}
    backbone: dict[str, Tensor] = {}
    unknown = []
    for key, value in state.items():
        name = key.removeprefix("module.")
        if renamed := official_name(name):
            if value.dim() == 5:  # Conv3d [1, h, w, 3, 3], here with one axis T
                value = value.flatten(1, 2)
            elif value.dim() == 4:  # 1x1 convolution [C, C, 1, 1], here a Linear
                value = value.flatten(1)
            ours[renamed] = value
        elif name.startswith("feature_extractor."):
            backbone[name.removeprefix("feature_extractor.")] = value
        else:
            unknown.append(key)
    if not ours:
        raise ValueError(f"no weight of CRLNet's head among {len(state)} names such as {list(state)[:3]}")
    if unknown:
        raise ValueError(f"names that are neither CRLNet's head nor its backbone: {unknown[:5]}")
    head.load_state_dict(ours)
    return backbone
