"""A test that ranks by query likelihood beside E's vectors, and what all rankers' evaluation counts."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from datamodules.retrieval import Retrieval
from datamodules.retrieval_store import ListCorpus, Queries, RetrievalData, RetrievalSet
from zoo.dense_retrieval import BM25, QueryLikelihood
from zoo.dense_retrieval.reranking import DirichletRanker, reranked
from zoo.dense_retrieval.runs import read_run
from zoo.metrics.trec import evaluate

Make = Callable[..., QueryLikelihood]
DOCUMENTS = [{"title": "", "text": f"w{i} w{(3 * i) % 11} w{(5 * i) % 13} w30"} for i in range(12)]
TEXTS = [f"w{i} w{(3 * i) % 11}" for i in range(5)]
QRELS = {f"q{i}": {f"d{i}": 1} for i in range(5)}


class Few(RetrievalSet):
    """Twelve documents, five queries."""

    def load(self) -> RetrievalData:
        queries = Queries([f"q{i}" for i in range(5)], TEXTS)
        corpus = ListCorpus([f"d{i}" for i in range(12)], DOCUMENTS)
        return RetrievalData(corpus, {"dev": queries, "test": queries}, {"dev": QRELS, "test": QRELS})


def trainer(folder: Path, **more: Any) -> Trainer:
    return Trainer(accelerator="cpu", default_root_dir=folder, enable_progress_bar=False, **more)


@pytest.mark.parametrize("block", [True, False])
def test_first_passages_are_ranked_by_query_likelihood(tiny_ql: Make, tmp_path: Path, block: bool) -> None:
    model = tiny_ql(
        attention_block=block, rerank=4, dirichlet_mu=10.0, metrics=["mrr@4", "recall@4"], depth=8, encode_batch_size=3
    )
    runner = trainer(tmp_path)
    logged = runner.test(model, Retrieval(Few(), eval_batch_size=2), verbose=False)[0]
    own, likely, counted = model.results()
    assert [row["method"] for row in (own, likely, counted)] == ["embedding", "query likelihood", "counted words"]
    assert own["recall@4 %"] == likely["recall@4 %"] == counted["recall@4 %"]  # the same four, in another order
    folder = Path(runner.log_dir or "")
    first, second = read_run(folder / "run.trec"), read_run(folder / "run_query_likelihood.trec")
    assert {len(hits) for hits in first.values()} == {8}
    for i, (query, scores) in enumerate(second.items()):
        assert set(scores) == set(list(first[query])[:4])
        passages = [DOCUMENTS[int(id[1:])] for id in scores]
        with torch.inference_mode():
            wanted = model.log_likelihood([{"text": TEXTS[i]}] * 4, passages)
        assert list(scores.values()) == pytest.approx(wanted.tolist(), rel=1e-5)
    assert likely["mrr@4 %"] == pytest.approx(100 * evaluate(second, QRELS, ["mrr@4"])["mrr@4"])
    assert logged["test/query_likelihood/mrr@4"] == pytest.approx(likely["mrr@4 %"] / 100)
    assert logged["test/mrr@4"] == pytest.approx(own["mrr@4 %"] / 100)
    assert likely["mrr@4 %"] != own["mrr@4 %"]


def test_passages_of_a_run_file_are_ranked(tiny_ql: Make, tmp_path: Path) -> None:
    run = tmp_path / "bm25.trec"
    run.write_text("".join(f"q{i} Q0 d{d} 0 {9 - d} bm25\n" for i in range(5) for d in range(i, i + 4)))
    settings = {"rerank_run": str(run), "metrics": ["mrr@3"], "depth": 5, "run_file": False}
    model = tiny_ql(rerank=3, **settings)
    trainer(tmp_path).test(model, Retrieval(Few()), verbose=False)
    rows = {row["method"]: row["mrr@3 %"] for row in model.results()}
    assert list(rows) == ["embedding", "given run", "query likelihood"]
    assert rows["given run"] == 100.0
    order = [model.log_likelihood([{"text": TEXTS[i]}] * 3, DOCUMENTS[i : i + 3]).tolist() for i in range(5)]
    wanted = sum(1 / (1 + sum(score > scores[0] for score in scores)) for scores in order) / 5
    assert rows["query likelihood"] == pytest.approx(100 * wanted)

    run.write_text("7 Q0 d1 0 1 bm25\n")
    with pytest.raises(ValueError, match="has none of the queries, such as 'q0'"):
        trainer(tmp_path).test(tiny_ql(rerank=3, **settings), Retrieval(Few()), verbose=False)


def test_no_other_row_without_rerank_and_none_in_validation(tiny_ql: Make, tmp_path: Path) -> None:
    model = tiny_ql(rerank=4, metrics=["mrr@4"], depth=4)
    trainer(tmp_path).validate(model, Retrieval(Few()), verbose=False)
    assert model.results() == [{"queries": 5, "mrr@4 %": pytest.approx(model.results()[0]["mrr@4 %"])}]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rerank": 5}, "rerank=5: must be at least the 100 hits"),
        ({"rerank": 2000}, "and at most depth=1000"),
        ({"rerank_run": "x"}, "set rerank"),
        ({"dirichlet_mu": 5.0}, "set rerank"),
        ({"rerank": 100, "dirichlet_mu": 0.0}, "dirichlet_mu=0.0: must be above 0"),
    ],
)
def test_settings_out_of_range(tiny_ql: Make, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_ql(**settings)


def test_counted_words_by_hand() -> None:
    texts = ["a b c", "A d e a, b!"]
    ranker = DirichletRanker(texts, lambda document: document["text"], mu=2)
    found = ranker.rerank({"text": "A b"}, [{"text": text} for text in texts])
    assert found.tolist() == pytest.approx([-2.253795, -2.474754], abs=1e-6)


def test_places_without_hits_stay_last() -> None:
    hits = torch.zeros(2, 3), torch.tensor([[4, 7, -1], [-1, -1, -1]])
    score, row = reranked([{}, {}], hits, lambda rows: [{"text": str(at)} for at in rows],
                          lambda _, found: torch.tensor([float(x["text"]) for x in found]))  # fmt: skip
    assert row.tolist() == [[7, 4, -1], [-1, -1, -1]]
    assert score[0].tolist() == [7.0, 4.0, -torch.inf]


# --- evaluation of any ranker ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mrr", "map"])
def test_metrics_without_a_cut_see_the_whole_depth_in_validation_too(name: str, tmp_path: Path) -> None:
    model = BM25(metrics=[name], depth=12, run_file=False, template="{text}")
    data = Retrieval(Few())
    data.data.qrels["dev"].update({f"q{i}": {f"d{i + 6}": 1} for i in range(5)})  # found below the first place
    found = trainer(tmp_path).validate(model, data, verbose=False)[0][f"val/{name}"]
    assert found == pytest.approx(trainer(tmp_path).test(model, data, verbose=False)[0][f"test/{name}"])
    assert 0 < found < 1


def test_the_check_before_a_fit_reads_a_part_of_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.dense_retrieval.evaluation.SANITY", 5)
    seen = []

    class Noting(BM25):
        def forget(self) -> None:
            seen.append(len(self._rows))

    model = Noting(metrics=["mrr@4"], run_file=False)
    data = Retrieval(Few(), batch_size=2, splits={"train": "dev"})
    trainer(tmp_path, max_steps=1, limit_train_batches=1, logger=False, enable_checkpointing=False).fit(model, data)
    assert seen == [5, 12]


def test_a_question_that_is_asked_twice_is_answered_twice(tmp_path: Path) -> None:
    from zoo.callbacks import PredictionTable

    (tmp_path / "queries.txt").write_text("w1 w3\nw2\nw1 w3\n")
    data = Retrieval(Few(), predict_queries=str(tmp_path / "queries.txt"))
    runner = trainer(tmp_path, callbacks=[PredictionTable()])
    runner.predict(BM25(top_k=2), data)
    rows = list(csv.DictReader((Path(runner.log_dir or "") / "predictions.csv").open()))
    assert [row["query"] for row in rows] == ["w1 w3"] * 2 + ["w2"] * 2 + ["w1 w3"] * 2
    assert rows[0]["id"] == rows[4]["id"] == "d1"
    assert rows[0]["query_id"] != rows[4]["query_id"]
