"""The corpus index: shards on disk, going on after a kill, and the order of what is found."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules.batches import Document
from datamodules.retrieval_store import ListCorpus
from datamodules.search import Search
from zoo.dense_retrieval.index import CorpusIndex, encode_corpus, encode_in_memory, encoded, merged_hits, weight_norms

COUNT, DIM = 50, 16
VECTORS = torch.nn.functional.normalize(torch.randn(COUNT, DIM, generator=torch.Generator().manual_seed(0)), dim=1)
CORPUS = ListCorpus([f"d{i}" for i in range(COUNT)], [{"text": f"{i} " + "x" * (i * 7 % 11)} for i in range(COUNT)])
ROWS = np.arange(COUNT)


class Recorder:
    """Gives each document its row of ``VECTORS``; ``seen`` are the batches' rows, ``stop`` ends it after so many."""

    def __init__(self, turned: bool = False, stop: int | None = None) -> None:
        self.seen: list[list[int]] = []
        self.vectors, self.stop = VECTORS.flip(1) if turned else VECTORS, stop

    def __call__(self, documents: Sequence[Document]) -> Tensor:
        self.seen.append([int(document["text"].split()[0]) for document in documents])
        if self.stop is not None and len(self.seen) > self.stop:
            raise KeyboardInterrupt
        return self.vectors[self.seen[-1]]


def test_vectors_come_back_in_order_and_long_documents_go_first() -> None:
    embed = Recorder()
    assert torch.equal(encoded(embed, CORPUS, ROWS[5:30], 8), VECTORS[5:30])
    sizes = [CORPUS.sizes[row] for batch in embed.seen for row in batch]
    assert sizes == sorted(sizes, reverse=True)
    assert list(map(len, embed.seen)) == [8, 8, 8, 1]


def test_ranks_without_documents_make_as_many_forwards() -> None:
    embed = Recorder()
    encoded(embed, CORPUS, ROWS[:5], 4, forwards=6)
    assert len(embed.seen) == 6
    assert len(encoded(embed, CORPUS, ROWS[:0], 4, forwards=3)) == 0
    assert len(embed.seen) == 9


def test_index_is_half_precision_in_shards_and_finds_what_brute_force_finds(tmp_path: Path) -> None:
    rows = ROWS[::2]
    index = encode_corpus(Recorder(), CORPUS, rows, tmp_path, batch_size=4, shard_size=7)
    assert [np.load(file).shape for file in sorted(tmp_path.glob("shard_*"))] == [
        (7, DIM),
        (6, DIM),
        (6, DIM),
        (6, DIM),
    ]
    assert np.load(tmp_path / "shard_00000.npy").dtype == np.float16
    assert torch.equal(index.shards[1][1], VECTORS[rows[1::4]].half())
    queries = torch.randn(6, DIM, generator=torch.Generator().manual_seed(1))
    score, found = CorpusIndex.open(tmp_path).search(queries, 5)
    exact = queries @ VECTORS[rows].half().float().T
    wanted = exact.topk(5)
    torch.testing.assert_close(score, wanted.values)
    assert torch.equal(found, torch.from_numpy(rows)[wanted.indices])
    for approximate in (Search(index="HNSW16"), Search(index="IVF2,Flat", nprobe=2)):
        assert torch.equal(index.search(queries, 5, approximate)[1], found)
    assert (index.search(queries, 30)[1][:, 25:] == -1).all()


def test_a_killed_encoding_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    whole = encode_corpus(Recorder(), CORPUS, ROWS, tmp_path / "whole", 5, 10)
    with pytest.raises(KeyboardInterrupt):
        encode_corpus(Recorder(stop=5), CORPUS, ROWS, tmp_path / "part", 5, 10)
    assert len(list((tmp_path / "part").glob("shard_*"))) == 2
    with pytest.raises(FileNotFoundError, match="lacks 3 of 5 shards"):
        CorpusIndex.open(tmp_path / "part")
    embed = Recorder()
    index = encode_corpus(embed, CORPUS, ROWS, tmp_path / "part", 5, 10)
    assert sum(map(len, embed.seen[1:])) == 30  # after the probe, three shards
    for (rows, vectors), (other_rows, others) in zip(index.shards, whole.shards, strict=True):
        assert np.array_equal(rows, other_rows)
        assert torch.equal(vectors, others)
    again = Recorder()
    encode_corpus(again, CORPUS, ROWS, tmp_path / "part", 5, 10)
    assert len(again.seen) == 1  # the probe alone


def test_another_model_or_corpus_is_refused_or_replaces(tmp_path: Path) -> None:
    encode_corpus(Recorder(), CORPUS, ROWS, tmp_path)
    with pytest.raises(ValueError, match="another model"):
        encode_corpus(Recorder(turned=True), CORPUS, ROWS, tmp_path)
    with pytest.raises(ValueError, match="is of 50 other documents"):
        encode_corpus(Recorder(), CORPUS, ROWS[:20], tmp_path)
    index = encode_corpus(Recorder(turned=True), CORPUS, ROWS[:20], tmp_path, replace=True)
    assert torch.equal(index.shards[0][1], VECTORS.flip(1)[:20].half())


def test_texts_that_changed_under_the_same_ids_are_another_corpus(tmp_path: Path) -> None:
    encode_corpus(Recorder(), CORPUS, ROWS, tmp_path)
    for text in ("17 longer than it was", CORPUS[17]["text"].replace("x", "y")):  # the second is as long as before
        documents = [{"text": text} if row == 17 else CORPUS[row] for row in ROWS]
        with pytest.raises(ValueError, match="other documents"):
            encode_corpus(Recorder(), ListCorpus(CORPUS.ids, documents), ROWS, tmp_path)


def test_a_model_that_cuts_long_texts_elsewhere_is_another(tmp_path: Path) -> None:
    encode_corpus(Recorder(), CORPUS, ROWS, tmp_path)
    shorter = Recorder()
    longest = int(np.argmax(CORPUS.sizes))
    assert longest not in (0, COUNT // 2)
    shorter.vectors = VECTORS.clone()
    shorter.vectors[longest] = -VECTORS[longest]
    with pytest.raises(ValueError, match="another model"):
        encode_corpus(shorter, CORPUS, ROWS, tmp_path)


def test_a_step_of_training_is_told_by_the_weights_but_no_other_precision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64)
    encode_corpus(Recorder(), CORPUS, ROWS, tmp_path, weights=weight_norms(model))
    again = Recorder()
    encode_corpus(again, CORPUS, ROWS, tmp_path, weights=weight_norms(model))
    encode_corpus(again, CORPUS, ROWS, tmp_path, weights=weight_norms(model.bfloat16()))
    assert len(again.seen) == 2  # the probes alone
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64)
    model.weight.data += 1e-5 * torch.randn(64, 64).sign()  # Adam's first step with LLM-QL's learning rate
    with pytest.raises(ValueError, match="another state of this one"):
        encode_corpus(Recorder(), CORPUS, ROWS, tmp_path, weights=weight_norms(model))


def test_equal_scores_are_ordered_by_row_over_shards() -> None:
    parts = [
        (torch.tensor([[0.9, 0.5]]), torch.tensor([[3, 9]])),
        (torch.tensor([[0.9, 0.5]]), torch.tensor([[1, 2]])),
    ]
    score, row = merged_hits(parts, 3)
    assert row.tolist() == [[1, 3, 2]]
    assert score.tolist() == [[pytest.approx(0.9), pytest.approx(0.9), 0.5]]


def test_vectors_that_are_not_finite_name_the_document(tmp_path: Path) -> None:
    embed = Recorder()
    embed.vectors = VECTORS.clone()
    embed.vectors[13] = torch.nan
    with pytest.raises(ValueError, match="such as that of 'd13'"):
        encode_in_memory(embed, CORPUS, ROWS, 8)
