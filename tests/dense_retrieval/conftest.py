"""A tiny language model that generates queries."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.dense_retrieval.query_likelihood import QueryLikelihood
from zoo.language import LanguageModel, Words

WORDS = " ".join(f"w{i}" for i in range(40))
TEXTS = [WORDS, "Read: Say: Find:"]


@pytest.fixture
def tiny_ql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., QueryLikelihood]:
    """Makes ``QueryLikelihood`` over the words w0 to w39 with the templates "Read: {title} {text} Say:" and
    "Find: {text} Say:"."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))

    def make(
        layers: int = 2, texts: Sequence[str] = TEXTS, attention: Any = "sdpa", **settings: Any
    ) -> QueryLikelihood:
        torch.manual_seed(layers)
        config = {
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "initializer_range": 0.3,  # large enough that what is compared differs
        }
        network = LanguageModel(config=config, tokenizer=Words(100), attention=attention).build(texts)
        templates = {"passage_template": "Read: {title} {text} Say:", "query_template": "Find: {text} Say:"}
        lengths = {"document_length": 24, "query_length": 8}
        return QueryLikelihood(network, **{**templates, **lengths, **settings}).eval()

    return make
