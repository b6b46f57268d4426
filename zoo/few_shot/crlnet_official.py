"""Checkpoints of CRLNet's official code: its weights' names and shapes turned into those of ``CRLNetHead``."""

import re
from collections.abc import Mapping

from torch import Tensor

from zoo.few_shot.crlnet_network import CRLNetHead

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
