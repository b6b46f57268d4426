import json
from collections import Counter
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from datamodules.batches import QueryBatch, RetrievalBatch
from datamodules.retrieval import Retrieval
from datamodules.retrieval_samples import chosen
from datamodules.retrieval_store import ListCorpus, Queries, RetrievalData, RetrievalSet, RowExamples

DOCUMENTS = 40
Become = Callable[[int, int], None]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


class Given(RetrievalSet):
    """Query i of 12 is answered by documents i and i + 1; its negatives are the ``negatives`` after them."""

    def __init__(self, negatives: int | None = 6, dev: bool = True) -> None:
        self.negatives, self.dev = negatives, dev

    def load(self) -> RetrievalData:
        corpus = ListCorpus([f"d{n}" for n in range(DOCUMENTS)], [{"text": f"text {n}"} for n in range(DOCUMENTS)])
        queries = Queries([f"q{n}" for n in range(12)], [f"query {n}" for n in range(12)])
        qrels = {f"q{n}": {f"d{n}": 2, f"d{n + 1}": 1, "d39": 0} for n in range(12)}
        examples = None
        if self.negatives is not None:
            positive = [np.arange(n, n + 2) for n in range(12)]
            examples = RowExamples(queries, positive, [np.arange(n + 2, n + 2 + self.negatives) for n in range(12)])
        splits = ("train", "dev", "test") if self.dev else ("train", "test")
        return RetrievalData(corpus, dict.fromkeys(splits, queries), dict.fromkeys(splits, qrels), examples)


def epochs(data: Retrieval, count: int) -> list[RetrievalBatch]:
    data.setup("fit")
    loader, found = data.train_dataloader(), []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        found += list(loader)
    return found


def by_query(batches: list[RetrievalBatch], group: int) -> dict[str, list[list[int]]]:
    found: dict[str, list[list[int]]] = {}
    for batch in batches:
        for document, rows in zip(batch.query, batch.row.view(-1, group).tolist(), strict=True):
            found.setdefault(document["text"], []).append(rows)
    return found


def test_positives_take_turns_and_negatives_come_window_by_window() -> None:
    batches = epochs(Retrieval(Given(negatives=6), batch_size=4, group=3), 6)
    assert all(len(batch.passage) == 12 for batch in batches)
    assert all(
        document["text"] == f"text {row}"
        for batch in batches
        for document, row in zip(batch.passage, batch.row, strict=True)
    )
    for query, rows in by_query(batches, 3).items():
        number = int(query.split()[1])
        assert [row[0] for row in rows[:4]] in ([number, number + 1] * 2, [number + 1, number] * 2)
        for start in (0, 3):  # 6 negatives, 2 at a time: each once in three epochs, then in the same order again
            assert sorted(at for row in rows[start : start + 3] for at in row[1:]) == list(
                range(number + 2, number + 8)
            )
        assert rows[0][1:] == rows[3][1:]


def test_windows_wrap_round_and_few_negatives_repeat() -> None:
    windows = [chosen(0, epoch, 5, 1, 5, 4)[1] for epoch in range(5)]
    whole = [at for window in windows for at in window]
    assert Counter(whole) == dict.fromkeys(range(5), 3)  # 5 epochs of 3 out of 5: three times round
    assert whole[:5] == whole[5:10] == whole[10:]
    few = [chosen(0, epoch, 5, 1, 2, 9)[1] for epoch in range(100)]
    assert all(len(draw) == 8 for draw in few)
    assert np.mean(few) == pytest.approx(0.5, abs=3 * 0.5 / 800**0.5)
    assert chosen(0, 0, 5, 3, 0, 1)[1] == []


def test_uniform_positives_are_drawn_anew_and_equally_often() -> None:
    count = Counter(chosen(3, epoch, index, 4, 0, 1, "uniform")[0] for epoch in range(60) for index in range(50))
    assert all(abs(count[place] - 750) < 4 * (3000 * 0.25 * 0.75) ** 0.5 for place in range(4))
    turns = [chosen(3, epoch, 0, 4, 0, 1, "uniform")[0] for epoch in range(60)]
    assert any(later != (earlier + 1) % 4 for earlier, later in pairwise(turns))


def joined(batches: list[RetrievalBatch]) -> RetrievalBatch:
    query, passage, row, key = zip(*batches, strict=True)
    return RetrievalBatch(list(chain(*query)), list(chain(*passage)), torch.cat(row), torch.cat(key))


def test_two_ranks_and_workers_see_what_one_sees(two_ranks: Become) -> None:
    whole = list(Retrieval(Given(), batch_size=6, group=3, seed=4).train_dataloader())
    parts = []
    for rank in range(2):
        two_ranks(rank, 2)
        parts.append(list(Retrieval(Given(), batch_size=3, group=3, seed=4, num_workers=rank).train_dataloader()))
    assert len(whole) == 2
    for step, batch in enumerate(whole):
        both = joined([part[step] for part in parts])
        assert both[:2] == batch[:2]
        assert torch.equal(both.row, batch.row)
        assert torch.equal(both.key, batch.key)


def test_keys_are_of_sample_and_epoch() -> None:
    batches = epochs(Retrieval(Given(), batch_size=4), 3)
    keys = torch.cat([batch.key for batch in batches])
    assert keys.dtype == torch.int64
    assert len(keys.unique()) == 36
    other = torch.cat([batch.key for batch in epochs(Retrieval(Given(), batch_size=4, seed=1), 3)])
    assert not set(keys.tolist()) & set(other.tolist())


def test_judgements_are_trained_on_where_there_is_nothing_else() -> None:
    rows = by_query(epochs(Retrieval(Given(negatives=None), batch_size=12), 2), 1)
    assert {query: {row for (row,) in found} for query, found in rows.items()} == {
        f"query {n}": {n, n + 1}
        for n in range(12)  # not document 39, of grade 0
    }


def test_mined_negatives_take_the_place_of_the_sets_own(tmp_path: Path) -> None:
    path = tmp_path / "mined.jsonl"
    row = {
        "query_id": "q1",
        "query_text": "mined",
        "positive_document_ids": ["d1"],
        "negative_document_ids": ["d9", "d8"],
    }
    path.write_text(json.dumps(row))
    (batch,) = epochs(Retrieval(Given(), batch_size=1, group=3, negatives=str(path)), 1)
    assert batch.query == [{"text": "mined"}]
    assert (batch.row[0], sorted(batch.row[1:].tolist())) == (1, [8, 9])


def test_negatives_that_lack_are_an_error_and_few_a_warning() -> None:
    with pytest.raises(ValueError, match=r"12 queries have none, the first 'q0'.*group=1"):
        Retrieval(Given(negatives=None), group=2).setup("fit")
    with pytest.warns(UserWarning, match="12 queries have fewer than 7 negatives"):
        Retrieval(Given(negatives=6), group=8).setup("fit")


def test_queries_to_evaluate_come_once_each_in_order() -> None:
    data = Retrieval(Given(), eval_batch_size=5)
    batches = list(data.test_dataloader())
    assert [len(batch.query) for batch in batches] == [5, 5, 2]
    assert torch.cat([batch.row for batch in batches]).tolist() == list(range(12))
    assert batches[1].query[0] == {"text": data.queries("test").text[5]}
    assert data.qrels("test")["q3"] == {"d3": 2, "d4": 1, "d39": 0}


def test_validation_searches_the_relevant_and_some_others() -> None:
    assert Retrieval(Given()).eval_rows("val").tolist() == list(range(40))
    assert Retrieval(Given(), val_documents=0).eval_rows("val").tolist() == list(range(13))
    some = [Retrieval(Given(), val_documents=5, seed=seed).eval_rows("val").tolist() for seed in (0, 0, 1)]
    assert some[0] == some[1] != some[2]
    assert some[0][:13] == list(range(13))
    assert len(set(some[0])) == 18
    assert Retrieval(Given(), val_documents=100).eval_rows("val").tolist() == list(range(40))
    assert len(Retrieval(Given(), val_documents=5).eval_rows("test")) == 40


def test_queries_to_predict_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "queries.txt"
    path.write_text("who\n\nwhat is it \n")
    data = Retrieval(Given(), predict_queries=str(path))
    assert (data.queries("predict").ids, data.queries("predict").text) == (["1", "3"], ["who", "what is it"])
    assert data.qrels("predict") == {}
    assert Retrieval(Given()).queries("predict").text == Retrieval(Given()).queries("test").text


def test_texts_for_a_tokenizer_are_spread_over_the_data() -> None:
    texts = list(Retrieval(Given()).train_texts(limit=4))
    assert texts == ["query 0", "query 3", "query 6", "query 9", "text 0", "text 10", "text 20", "text 30"]
    assert len(list(Retrieval(Given()).train_texts())) == 12 + 40


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"group": 0}, "group=0: must be at least 1"),
        ({"val_documents": -1}, "val_documents=-1"),
        ({"splits": {"dev": "test"}}, "splits: 'dev' is none of train, val, test"),
    ],
)
def test_wrong_numbers_are_named(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Retrieval(Given(), **options)


class Records(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[RetrievalBatch | QueryBatch] = []

    def training_step(self, batch: RetrievalBatch, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch)
        return self.weight**2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_set_without_validation_says_so_and_trains_without(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"splits.val='dev': given has train, test; .*null for no validation"):
        Retrieval(Given(dev=False)).setup("fit")
    model, data = Records(), Retrieval(Given(dev=False), batch_size=5, group=2, splits={"val": None})
    trainer = Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model, data)
    assert [len(batch.query) for batch in model.seen] == [5, 5]
    assert isinstance(model.seen[0], RetrievalBatch)
    assert model.seen[0].row.shape == (10,)
