"""CRLNet's head (arXiv 2502.01183): embeddings of an image pair, each conditioned on the other image.

Shapes: B pairs, N images, C channels, T = h * w positions of a square map, row by row.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.few_shot.crlnet_layers import (
    ConditionalLearner,
    CorrelationFilter,
    CrossTerms,
    ReRepresentationLearner,
    Role,
)

Mode = Literal["full", "backbone_only", "cross_only", "no_correlation", "no_self_attention"]
MODES: tuple[Mode, ...] = ("full", "backbone_only", "cross_only", "no_correlation", "no_self_attention")


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
        cross = None if self.cross is None else CrossTerms(*(term.index_select(0, index) for term in self.cross))
        return ImageTerms(self.tokens.index_select(0, index), self.pooled.index_select(0, index), cross)


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
        tokens = maps.flatten(2).transpose(1, 2).contiguous()  # as every use of them would copy them otherwise
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
