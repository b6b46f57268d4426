"""Networks of transformers, with pretrained weights or from scratch, without parts that no loss reaches."""

from typing import Any, Literal

import torch

from zoo.language.configs import make_config
from zoo.language.loading import load

Kind = Literal["causal", "encoder"]


def pretrained(kind: Kind, model: str, attention: str, **more: Any) -> Any:
    """The network of a model by its name, see :func:`zoo.language.loading.load`, which ``more`` is for.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: if it lacks weights.
    """
    network, found = load(_class(kind), model, attn_implementation=attention, output_loading_info=True, **more)
    if missing := sorted(key for key in found["missing_keys"] if not key.startswith("pooler.")):
        raise ValueError(
            f"model {model!r} lacks {len(missing)} weights, such as {missing[0]}, which would be random; use one that "
            "was trained with them, or kind encoder for one without a head"
        )
    return _without_pooler(network)


def from_scratch(kind: Kind, fields: dict[str, Any], tokenizer: Any, attention: str, dtype: str) -> Any:
    """A network with random weights; see :func:`zoo.language.configs.make_config` for ``fields`` and errors."""
    type_ = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    config = make_config(fields, tokenizer)
    return _without_pooler(_class(kind).from_config(config, dtype=type_, attn_implementation=attention))


def _class(kind: Kind) -> Any:
    from transformers import AutoModel, AutoModelForCausalLM

    return AutoModelForCausalLM if kind == "causal" else AutoModel


def _without_pooler(network: Any) -> Any:
    """Unused layers have no gradient, which DDP takes for a mistake."""
    if getattr(network, "pooler", None) is not None:
        network.pooler = None
    return network
