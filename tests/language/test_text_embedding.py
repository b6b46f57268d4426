"""Embeddings of texts: each pooling by hand, whatever the batch; shards that outlive a kill; keys; wrong models."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from zoo.language import HuggingFaceEncoder, embed_texts
from zoo.language import text_embedding as module

TEXTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10", "w1 w2 w3", "w11 w12", "w3 w2 w1", " ".join(["w7"] * 30)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "embeddings"


def alone(folder: Path, text: str, limit: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states [T, 16] and pooler output [16] of one text without padding, by a loop over its word numbers."""
    from transformers import BertModel

    words = [int(word[1:]) + 5 for word in text.split()][: limit - 2]
    with torch.inference_mode():
        out = BertModel.from_pretrained(folder).eval()(torch.tensor([[2, *words, 3]]))
    return out.last_hidden_state[0], out.pooler_output[0]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("pooling", ["mean", "pooler", "cls"])
def test_vectors_are_those_of_each_text_alone(bert: Path, pooling: module.Pooling, batch_size: int) -> None:
    vectors = embed_texts(TEXTS, str(bert), pooling=pooling, batch_size=batch_size, progress=False)
    assert vectors.dtype == np.float32
    assert isinstance(vectors, np.memmap)
    for text, vector in zip(TEXTS, vectors, strict=True):
        hidden, pooled = alone(bert, text)
        expected = {"mean": hidden.mean(0), "pooler": pooled, "cls": hidden[0]}[pooling]
        np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-5)
    assert np.array_equal(vectors[0], vectors[3])
    assert not np.allclose(vectors[0], vectors[5], atol=1e-3)  # word order counts


def test_texts_are_cut_and_vectors_normalised_on_request(bert: Path) -> None:
    cut = embed_texts(TEXTS, str(bert), max_length=4, normalise=True, progress=False)
    for text, vector in zip(TEXTS, cut, strict=True):
        expected = normalize(alone(bert, text, limit=4)[0].mean(0), dim=0)
        np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-5)


def test_a_kill_loses_one_shard(bert: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" ".join(f"w{(i * j) % 30}" for j in range(1, 2 + i % 7)) for i in range(1, 30)]
    whole = np.array(embed_texts(texts, str(bert), batch_size=2, shard_batches=2, progress=False))
    distinct = len(set(texts))
    shutil.rmtree(cache)
    encode, seen = module._Encoder.__call__, []

    def dying(self: module._Encoder, part: list[str]) -> torch.Tensor:
        seen.extend(part)
        if len(seen) == 12:
            raise KeyboardInterrupt
        return encode(self, part)

    monkeypatch.setattr(module._Encoder, "__call__", dying)
    with pytest.raises(KeyboardInterrupt):
        embed_texts(texts, str(bert), batch_size=2, shard_batches=2, progress=False)
    assert not list(cache.glob("*.npy"))
    seen.clear()
    monkeypatch.setattr(module._Encoder, "__call__", lambda self, part: seen.extend(part) or encode(self, part))
    resumed = embed_texts(texts, str(bert), batch_size=2, shard_batches=2, progress=False)
    assert len(seen) == distinct - 8  # two shards of four were whole
    assert np.array_equal(resumed, whole)
    assert [path.suffix for path in sorted(cache.iterdir())] == [".lock", ".npy"]
    seen.clear()
    embed_texts(texts, str(bert), batch_size=2, shard_batches=2, progress=False)
    assert not seen


def test_texts_settings_and_weights_make_the_key(bert: Path, cache: Path, tmp_path: Path) -> None:
    encoder = HuggingFaceEncoder(str(bert), batch_size=4)
    first = np.array(encoder(TEXTS))
    other = tmp_path / "copy"
    shutil.copytree(bert, other)
    assert np.array_equal(HuggingFaceEncoder(str(other), batch_size=4)(TEXTS), first)
    assert len(list(cache.glob("*.npy"))) == 1  # the same content in another place
    HuggingFaceEncoder(str(bert), pooling="cls", batch_size=4)(TEXTS)
    encoder(TEXTS[::-1])
    from transformers import BertModel

    network = BertModel.from_pretrained(other)
    torch.nn.init.zeros_(network.encoder.layer[0].output.dense.weight)
    network.save_pretrained(other)
    assert not np.allclose(HuggingFaceEncoder(str(other), batch_size=4)(TEXTS), first, atol=1e-2)
    assert len(list(cache.glob("*.npy"))) == 4


def test_a_pooler_that_would_be_random_is_refused(bert: Path, tmp_path: Path) -> None:
    from transformers import BertModel

    BertModel.from_pretrained(bert, add_pooling_layer=False).save_pretrained(tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bert / name, tmp_path / "bare" / name)
    bare = str(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"lacks 2 weights, such as pooler\.dense\.bias, which would be random"):
        embed_texts(TEXTS, bare, pooling="pooler", progress=False)
    mean = embed_texts(TEXTS, bare, progress=False)
    np.testing.assert_array_equal(mean, embed_texts(TEXTS, str(bert), progress=False))


def test_wrong_input_is_named(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"2 of 3 texts are empty, the first are number \[0, 2\]"):
        embed_texts(["", "w1", "  "], str(bert))
    with pytest.raises(ValueError, match="no texts"):
        embed_texts([], str(bert))
    with pytest.raises(ValueError, match="pooling='max': must be one of mean, pooler, cls"):
        HuggingFaceEncoder(str(bert), pooling="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size=0"):
        HuggingFaceEncoder(str(bert), batch_size=0)
    with pytest.raises(FileNotFoundError, match="the package no_such_package is not installed"):
        embed_texts(TEXTS, "package:no_such_package/model")
    with pytest.raises(FileNotFoundError, match="the package torch has no folder 'model'"):
        embed_texts(TEXTS, "package:torch/model")
    monkeypatch.setattr(module._Encoder, "__call__", lambda self, part: torch.full((len(part), 2), torch.nan))
    with pytest.raises(ValueError, match="not finite for the text 'w7 w7"):
        embed_texts(TEXTS, str(bert), progress=False)


@pytest.mark.slow
def test_minilm_gives_its_published_similarities() -> None:
    folder = os.environ.get("ZOO_TEST_MINILM")
    if folder is None:
        pytest.skip("ZOO_TEST_MINILM names no folder of all-MiniLM-L6-v2: its similarities are not checked")
    texts = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    vectors = embed_texts(texts, folder, normalise=True, progress=False)
    # the model card's example gives 0.695, 0.943 and 0.257
    np.testing.assert_allclose(vectors[1:] @ vectors[0], [0.695, 0.943, 0.257], atol=2e-3)
