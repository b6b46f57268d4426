"""Two gloo processes against one: contrastive training with hard negatives, and a corpus that two ranks encode."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed

from datamodules.batches import Document, RetrievalBatch
from datamodules.retrieval_store import ListCorpus
from zoo.dense_retrieval import DenseRetriever, Embedder, contrastive_loss, encode_corpus
from zoo.dense_retrieval.index import encode_in_memory
from zoo.language import LanguageModel, Words

TwoRanks = Callable[[Callable[[int], object]], list[object]]
GROUP = 3


def vectors() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, passage = (torch.randn(n, 5, generator=generator) for n in (6, 6 * GROUP))
    row = torch.arange(6 * GROUP) % 11  # some passages come twice
    return query, passage, row


@pytest.mark.parametrize("masked", [False, True])
def test_loss_and_gradients_with_hard_negatives_are_those_of_the_joined_batch(
    masked: bool, on_two_ranks: TwoRanks
) -> None:
    def step(rows: slice, gather: bool) -> list[Tensor]:
        query, passage, row = vectors()
        group = slice(rows.start * GROUP, rows.stop * GROUP)
        query, passage = query[rows].requires_grad_(), passage[group].requires_grad_()
        loss = contrastive_loss(query, passage, 0.5, gather, row[group] if masked else None)
        loss.backward()
        assert query.grad is not None
        assert passage.grad is not None
        return [loss.detach(), query.grad, passage.grad]

    loss, query_grad, passage_grad = step(slice(0, 6), False)
    first, second = on_two_ranks(lambda rank: step(slice(3 * rank, 3 * rank + 3), True))  # type: ignore[misc]
    torch.testing.assert_close((first[0] + second[0]) / 2, loss)
    torch.testing.assert_close(torch.cat([first[1], second[1]]) / 2, query_grad)
    torch.testing.assert_close(torch.cat([first[2], second[2]]) / 2, passage_grad)
    apart, _ = on_two_ranks(lambda rank: step(slice(3 * rank, 3 * rank + 3), False))  # type: ignore[misc]
    assert apart[0] < first[0] - 0.1  # fewer negatives are an easier task


def texts() -> list[Document]:
    rng = np.random.default_rng(0)
    return [{"text": " ".join(f"w{i}" for i in rng.integers(0, 30, rng.integers(2, 8)))} for _ in range(8 * GROUP)]


def retriever(encode_at_once: int | None) -> DenseRetriever:
    torch.manual_seed(0)
    config = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.3}
    network = LanguageModel(config={**config, **heads}, tokenizer=Words(100))
    network.build([" ".join(f"w{i}" for i in range(30))])
    embedder = Embedder(network, "last", "{text}", "{text}")
    model = DenseRetriever(embedder, temperature=0.2, encode_at_once=encode_at_once)
    model.log = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    return model.double()


@pytest.mark.parametrize("encode_at_once", [None, 2])
def test_a_step_of_two_ranks_has_the_gradients_of_one(
    encode_at_once: int | None, on_two_ranks: TwoRanks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    documents, row = texts(), torch.arange(8 * GROUP)

    def step(rows: slice, at_once: int | None) -> dict[str, Tensor]:
        group = slice(rows.start * GROUP, rows.stop * GROUP)
        share = RetrievalBatch(documents[rows], documents[group], row[group], row[rows])
        model = retriever(at_once)
        loss = model.training_step(share, 0)
        loss.backward()
        return {"loss": loss.detach(), **{n: p.grad for n, p in model.named_parameters() if p.grad is not None}}

    def work(rank: int) -> dict[str, Tensor]:
        values = step(slice(4 * rank, 4 * rank + 4), encode_at_once)
        for value in values.values():
            distributed.all_reduce(value)
            value /= 2
        return values

    one = step(slice(0, 8), None)
    assert max(value.abs().max() for value in one.values()) > 0.1
    for joined in on_two_ranks(work):
        assert isinstance(joined, dict)
        assert joined.keys() == one.keys()
        for name, value in one.items():
            torch.testing.assert_close(joined[name], value, msg=lambda m, n=name: f"{n}: {m}")


COUNT = 23
VECTORS = torch.nn.functional.normalize(torch.randn(COUNT, 8, generator=torch.Generator().manual_seed(2)), dim=1)


@pytest.mark.parametrize("on_disk", [False, True])
def test_two_ranks_encode_and_search_a_corpus_together(on_disk: bool, on_two_ranks: TwoRanks, tmp_path: Path) -> None:
    corpus = ListCorpus([f"d{i}" for i in range(COUNT)], [{"text": f"{i} " + "x" * (i % 5)} for i in range(COUNT)])
    queries = torch.randn(7, 8, generator=torch.Generator().manual_seed(3))

    def work(rank: int) -> tuple[Any, ...]:
        calls: list[int] = []

        def embed(documents: list[Document]) -> Tensor:
            calls.append(len(documents))
            total = torch.tensor(float(len(calls)))
            distributed.all_reduce(total)  # hangs where one rank makes fewer forwards, as sharded weights would
            assert total == 2 * len(calls)
            return VECTORS[[int(document["text"].split()[0]) for document in documents]]

        rows = np.arange(COUNT)
        if on_disk:
            index = encode_corpus(embed, corpus, rows, tmp_path / "index", 3, 5)  # type: ignore[arg-type]
        else:
            index = encode_in_memory(embed, corpus, rows, 3)  # type: ignore[arg-type]
        share = queries[:4] if rank == 0 else queries[4:]
        return (*index.search_over_ranks(share, 6), sum(len(rows) for rows, _ in index.shards), calls)

    found: list[Any] = on_two_ranks(work)
    kept = VECTORS.half().float() if on_disk else VECTORS
    wanted = (queries @ kept.T).topk(6)
    torch.testing.assert_close(torch.cat([part[0] for part in found]), wanted.values)
    assert torch.equal(torch.cat([part[1] for part in found]), wanted.indices)
    assert [part[2] for part in found] == ([23, 23] if on_disk else [12, 11])
    assert len(found[0][3]) == len(found[1][3])
