"""One slot a passage against whole runs, and counted words against worked numbers."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from zoo.dense_retrieval import scoring
from zoo.dense_retrieval.query_likelihood import QueryLikelihood
from zoo.dense_retrieval.scoring import Reranker, dirichlet_score, document_slots, score_queries

Make = Callable[..., QueryLikelihood]
PASSAGES = [{"text": " ".join(f"w{(7 * i + j) % 20}" for j in range(3 + 2 * i))} for i in range(6)]
QUERIES = [{"text": text} for text in ("w20 w21 w22", "w23", "w24 w25", "w26 w27 w28 w29", "w30", "w31 w32")]


@pytest.mark.parametrize("positions", ["column", "content"])
def test_one_slot_equals_the_whole_run(tiny_ql: Make, positions: str) -> None:
    model = tiny_ql(position_ids=positions)
    slots = document_slots(model, PASSAGES)
    assert slots.key.shape == (6, 2, 2, 8)  # passages, layers, heads, width: nothing of the passage's length
    whole = model.log_likelihood(QUERIES, PASSAGES)
    torch.testing.assert_close(score_queries(model, slots, QUERIES), whole, rtol=1e-6, atol=0)
    turned = score_queries(model, slots, QUERIES[::-1])
    assert (turned - whole).abs().min() > 1e-3


def test_slots_need_the_block(tiny_ql: Make) -> None:
    with pytest.raises(ValueError, match="attention_block is False"):
        document_slots(tiny_ql(attention_block=False), PASSAGES)


@pytest.mark.parametrize("block", [True, False])
def test_reranking_in_batches_equals_each_pair_alone(tiny_ql: Make, block: bool) -> None:
    model = tiny_ql(attention_block=block)
    expected = torch.cat([model.log_likelihood([QUERIES[0]], [passage]) for passage in PASSAGES])
    found = Reranker(model, batch_size=4).rerank(QUERIES[0], PASSAGES)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=0)


def test_passages_are_read_once_while_they_are_kept(tiny_ql: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counting(model: QueryLikelihood, passages: Any) -> scoring.Slots:
        read.extend(passage["text"] for passage in passages)
        return document_slots(model, passages)

    monkeypatch.setattr(scoring, "document_slots", counting)
    model, texts = tiny_ql(), [passage["text"] for passage in PASSAGES]
    ranker = Reranker(model, batch_size=4, keep=6)
    first = ranker.rerank(QUERIES[0], [*PASSAGES, PASSAGES[0]])
    assert read == texts
    assert first[6] == first[0]
    ranker.rerank(QUERIES[1], PASSAGES[::-1])
    assert read == texts
    small = Reranker(model, batch_size=4, keep=2)
    small.rerank(QUERIES[0], PASSAGES)
    small.rerank(QUERIES[0], PASSAGES[-3:])
    assert read == [*texts, *texts, texts[3]]


def test_dirichlet_by_hand() -> None:
    collection = Counter("abcadeab")
    assert dirichlet_score(["a", "b"], list("abc"), collection, 2) == pytest.approx(-2.253795, abs=5e-7)
    assert dirichlet_score(["a", "b"], list("adeab"), collection, 2) == pytest.approx(-2.474754, abs=5e-7)


def test_dirichlet_leaves_out_words_that_the_collection_lacks() -> None:
    collection = Counter("abcadeab")
    with_unknown = dirichlet_score(["a", "z", "b"], list("abc"), collection, 2)
    assert with_unknown == pytest.approx(-2.253795, abs=5e-7)


@pytest.mark.parametrize(("mu", "collection", "message"), [(0.0, {"a": 1}, "mu=0.0"), (1.0, {}, "no words")])
def test_dirichlet_out_of_range(mu: float, collection: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dirichlet_score(["a"], ["a"], collection, mu)
