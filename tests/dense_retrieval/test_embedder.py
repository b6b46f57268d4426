"""Texts to vectors: what the tokens are, and that neither padding nor company changes a vector."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from zoo.dense_retrieval import Embedder, QueryLikelihood
from zoo.dense_retrieval.embedder import PASSAGE, QUERY
from zoo.dense_retrieval.prompts import fill
from zoo.language import LanguageModel, Words

Make = Callable[..., Embedder]
LONG = {"title": "w9", "text": " ".join(f"w{i}" for i in range(12))}
SHORT = {"title": "", "text": "w3 w1"}


@pytest.fixture
def embedder(tiny_ql: Callable[..., QueryLikelihood]) -> Make:
    def make(**settings: Any) -> Embedder:
        templates = {"query_template": "Find: {text} Say:", "passage_template": "Read: {title} {text}"}
        return Embedder(tiny_ql().language_model, **{**templates, **settings}).eval()

    return make


def test_official_texts_have_two_spaces() -> None:
    assert "\nQuery:  cats\nThe" in fill(QUERY, {"text": "cats"}).text
    assert "\nPassage:  A b c\nSummarization:" in fill(PASSAGE, {"title": "A", "text": "b c"}).text


def test_texts_begin_with_bos_end_with_eos_and_are_cut_before_it(embedder: Make) -> None:
    made = embedder(passage_length=6)
    tokenizer = made.language_model.tokenizer
    long, short = (tokenizer.convert_ids_to_tokens(row) for row in made.tokens([LONG, SHORT], "passage"))
    assert long == ["<s>", "Read:", "w9", "w0", "w1", "</s>"]
    assert short == ["<s>", "Read:", "w3", "w1", "</s>"]
    ids, real = made.padded(made.tokens([LONG, SHORT], "passage"), "passage")
    assert real.tolist() == [[True] * 6, [False] + [True] * 5]
    assert (ids[:, -1] == tokenizer.eos_token_id).all()


def test_other_poolings_have_no_eos_and_pad_on_the_right(embedder: Make) -> None:
    made = embedder(pooling="mean")
    rows = made.tokens([LONG, SHORT], "passage")
    assert rows[1].tolist() == made.language_model.tokenizer("Read: w3 w1")["input_ids"]
    real = made.padded(rows, "passage")[1]
    assert real[1].tolist() == [True] * len(rows[1]) + [False] * (len(rows[0]) - len(rows[1]))


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_padding_does_not_change_a_vector(pooling: str, embedder: Make) -> None:
    alone = embedder(pooling=pooling)([SHORT], "passage")
    assert alone.norm().item() == pytest.approx(1, abs=1e-6)
    beside = embedder(pooling=pooling)([LONG, SHORT], "passage")
    padded = embedder(pooling=pooling, pad="length", passage_length=40)([SHORT], "passage")
    torch.testing.assert_close(beside[1:], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=0)
    assert (beside[0] - alone[0]).norm() > 0.05


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_vectors_are_the_pooled_states(pooling: str, embedder: Make) -> None:
    made = embedder(pooling=pooling, normalise=False)
    row = torch.from_numpy(made.tokens([LONG], "query")[0])[None]
    states = made.language_model.hidden(row, torch.ones_like(row))[0]
    wanted = states[-1] if pooling == "last" else states.mean(0)
    torch.testing.assert_close(made([LONG], "query")[0], wanted, atol=1e-5, rtol=0)


def test_first_token_of_an_encoder() -> None:
    config = {"model_type": "bert", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    network = LanguageModel(config={**config, "num_attention_heads": 2}, tokenizer=Words(50), kind="encoder")
    made = Embedder(network.build(["w1 w2 w3"]), "cls", "{text}", "{text}", normalise=False).eval()
    row = torch.from_numpy(made.tokens([{"text": "w1 w2"}], "query")[0])[None]
    states = made.language_model.hidden(row, torch.ones_like(row))
    torch.testing.assert_close(made([{"text": "w1 w2"}, {"text": "w3 w2 w1"}], "query")[:1], states[:, 0])


def test_bad_settings_and_empty_texts(embedder: Make) -> None:
    for settings, message in (
        ({"pooling": "first"}, "pooling='first': must be one of last, mean, cls"),
        ({"pooling": "cls"}, "pooling=cls: the first token of a causal model"),
        ({"query_length": 1}, "query_length=1: must be at least 2"),
        ({"passage_template": "text"}, "passage_template='text': has no field"),
    ):
        with pytest.raises(ValueError, match=message):
            embedder(**settings)
    with pytest.raises(ValueError, match="has nothing for the template"):
        embedder()([{"title": " ", "text": ""}], "passage")
    made = embedder()
    made.language_model.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no EOS token"):
        made([SHORT], "passage")
