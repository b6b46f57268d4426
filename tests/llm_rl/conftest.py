"""A tiny decoder with random weights, which policies start from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.language import LanguageModel, Lora
from zoo.language.tokenizers import Characters

Policy = Callable[..., LanguageModel]

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
}


def save_weights(file: Path, known: str = "0123456789+=abcdefghijklmnop", seed: int = 0) -> Path:
    """Random weights of a decoder that knows these characters."""
    torch.manual_seed(seed)
    model = LanguageModel(config=CONFIG, tokenizer=Characters(ascii=False)).build([known])
    torch.save({f"policy.{name}": value for name, value in model.state_dict().items()}, file)
    return file


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the policy's weights."""
    folder = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(folder / "cache"))
        return save_weights(folder / "policy.pt")


@pytest.fixture
def policy(weights: Path) -> Policy:
    """Makes the policy, with these weights."""

    def make(lora: Lora | None = None) -> LanguageModel:
        tokenizer = Characters(ascii=False)
        return LanguageModel(config=CONFIG, tokenizer=tokenizer, lora=lora, init_from=str(weights))

    return make
