"""A tiny policy with weights on disk, and prompts that need none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.language import LanguageModel, Lora
from zoo.language.tokenizers import Characters

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "initializer_range": 0.3,
}
Policy = Callable[..., LanguageModel]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a random tiny decoder over digits and a few letters."""
    folder = tmp_path_factory.mktemp("policy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(folder))
        torch.manual_seed(0)
        model = LanguageModel(config=CONFIG, tokenizer=Characters()).build(["0123456789+=-ab"])
    state = {f"policy.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state}, folder / "policy.ckpt")
    return folder / "policy.ckpt"


@pytest.fixture
def policy(weights: Path) -> Policy:
    """Makes language models with these weights."""

    def make(lora: Lora | None = None) -> LanguageModel:
        return LanguageModel(config=CONFIG, tokenizer=Characters(), init_from=str(weights), lora=lora)

    return make
