"""Sizes of networks from scratch, checked before they are built."""

from dataclasses import fields as dataclass_fields
from typing import Any

ROPE = ("rope_theta", "rope_scaling", "partial_rotary_factor")
"""Names that config classes take into their ``rope_parameters``."""


def make_config(given: dict[str, Any], tokenizer: Any) -> Any:
    """The transformers config of ``model_type`` with the given fields.

    ``vocab_size`` and the ids of special tokens are the tokenizer's where they are left out.

    Raises:
        ValueError: for a type that transformers does not know, fields that its config class does not know, heads that
            the width or the key-value heads do not divide, and too small a vocabulary.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    chosen = dict(given)
    kind = chosen.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        raise ValueError(f"config: model_type={kind!r} is none that transformers knows, such as llama, qwen2 or bert")
    cls = CONFIG_MAPPING[kind]
    known = {field.name for field in dataclass_fields(cls)} | set(cls.attribute_map)
    if "rope_parameters" in known:
        known |= set(ROPE)
    if unknown := sorted(set(chosen) - known):
        raise ValueError(f"config: {cls.__name__} knows no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    chosen.setdefault("vocab_size", len(tokenizer))
    if chosen["vocab_size"] < len(tokenizer):
        raise ValueError(f"config: vocab_size={chosen['vocab_size']}: the tokenizer has {len(tokenizer)} tokens")
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        chosen.setdefault(name, getattr(tokenizer, name))
    if chosen["pad_token_id"] == chosen["eos_token_id"]:
        chosen["pad_token_id"] = None  # the embedding of a padding token starts at zero
    try:
        config = cls(**chosen)
    except StrictDataclassError as error:
        raise ValueError(f"config: {cls.__name__}: {error.__cause__ or error}") from error
    heads, pairs = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    if "head_dim" not in chosen and config.hidden_size % heads:
        raise ValueError(f"config: hidden_size={config.hidden_size} is not divisible by num_attention_heads={heads}")
    if pairs is not None and heads % pairs:
        default = "" if "num_key_value_heads" in chosen else f", the default of {cls.__name__}"
        raise ValueError(
            f"config: num_attention_heads={heads} is not divisible by num_key_value_heads={pairs}{default}"
        )
    return config


def position_limit(config: Any) -> int | None:
    """How many tokens a network takes at once; None where its positions have no end or are scaled to go further."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        return None
    return getattr(config, "max_position_embeddings", None)


def places_tokens_alone(config: Any) -> bool:
    """Whether positions are rotary and the same whatever else is in the batch, so that caches can be cut and joined.

    Not where they come from the mask (ALiBi), or are scaled by the longest row (``dynamic``, ``longrope``).
    """
    rope = getattr(config, "rope_parameters", None)
    if rope is None or getattr(config, "alibi", False):
        return False
    by_layer = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    return all(some.get("rope_type") not in ("dynamic", "longrope") for some in by_layer)
