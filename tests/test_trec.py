"""Retrieval metrics: the worked example of one query, trec_eval's rules, and a real run against pytrec_eval."""

import math
from pathlib import Path

import pytest
import torch

from datamodules.retrieval_sets import BeirFolder
from zoo.dense_retrieval.lexical import LexicalIndex
from zoo.metrics.trec import deepest, evaluate, means, per_query, without_self

RUN = {"q": {"d7": 4.0, "d2": 3.0, "d9": 2.0, "d4": 1.0}}
QRELS = {"q": {"d2": 1, "d4": 3, "d5": 2}}


def test_worked_example() -> None:
    found = evaluate(RUN, QRELS, ["ndcg@10", "mrr@10", "mrr@1", "recall@10", "recall@2", "precision@2", "map"])
    gain = 1 / math.log2(3) + 3 / math.log2(5)
    assert found["ndcg@10"] == pytest.approx(gain / (3 + 2 / math.log2(3) + 1 / 2))
    assert found["ndcg@10"] == pytest.approx(0.403825, abs=1e-6)
    assert (found["mrr@10"], found["mrr@1"]) == (0.5, 0.0)
    assert found["recall@10"] == pytest.approx(2 / 3)
    assert found["recall@2"] == pytest.approx(1 / 3)
    assert found["precision@2"] == 0.5
    assert found["map"] == pytest.approx((1 / 2 + 2 / 4) / 3)


def test_two_grades_start_at_relevant_from_and_ndcg_keeps_all() -> None:
    found = evaluate(RUN, QRELS, ["ndcg@10", "mrr@10", "recall@10"], relevant_from=2)
    assert found["mrr@10"] == 0.25
    assert found["recall@10"] == 0.5
    assert found["ndcg@10"] == pytest.approx(0.403825, abs=1e-6)


@pytest.mark.parametrize(("k", "value"), [(9, 0.0), (10, 0.1), (11, 0.1)])
def test_reciprocal_rank_is_cut_right_behind_k(k: int, value: float) -> None:
    run = {"q": {f"d{rank}": -float(rank) for rank in range(1, 21)}}
    assert evaluate(run, {"q": {"d10": 1, "d12": 1}}, [f"mrr@{k}"]) == {f"mrr@{k}": pytest.approx(value)}


def test_equal_scores_rank_by_document_id_descending() -> None:
    run = {"q": {"a": 1.0, "b": 1.0}}
    assert evaluate(run, {"q": {"a": 1}}, ["mrr"]) == {"mrr": 0.5}
    assert evaluate(run, {"q": {"b": 1}}, ["mrr"]) == {"mrr": 1.0}


def test_judged_queries_without_hits_count_zero_or_are_left_out() -> None:
    run, qrels = (
        {"q": {"d": 1.0}, "empty": {}, "extra": {"d": 1.0}},
        {"q": {"d": 1}, "gone": {"d": 1}, "empty": {"d": 1}},
    )
    assert evaluate(run, qrels, ["mrr@10"]) == {"mrr@10": pytest.approx(1 / 3)}
    assert evaluate(run, qrels, ["mrr@10"], missing="skip") == {"mrr@10": 0.5}  # the run has the query "empty"
    assert set(per_query(run, qrels, ["mrr@10"])) == {"q", "gone", "empty"}


def test_document_with_the_querys_id_is_dropped() -> None:
    run = {"q": {"q": 2.0, "d": 1.0}}
    assert evaluate(run, {"q": {"d": 1}}, ["mrr"]) == {"mrr": 0.5}
    assert evaluate(without_self(run), {"q": {"d": 1}}, ["mrr"]) == {"mrr": 1.0}


def test_names() -> None:
    assert deepest(["ndcg@10", "recall@100", "map"]) == 100
    for wrong in ("ndcg", "recall@0", "hits@3", "map10"):
        with pytest.raises(ValueError, match=f"{wrong!r} is unknown"):
            deepest([wrong])


def test_bad_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="no query of the run has judgements: the run has '7', the judgements 'q'"):
        evaluate({"7": {"d": 1.0}}, {"q": {"d": 1}}, ["mrr"])
    with pytest.raises(TypeError, match="id 7 is int"):
        evaluate({"q": {7: 1.0}}, {"q": {"7": 1}}, ["mrr"])  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="query 'q': a score is NaN"):
        evaluate({"q": {"d": math.nan}}, {"q": {"d": 1}}, ["mrr"])
    with pytest.raises(ValueError, match="no queries"):
        means({})


def test_a_real_run_has_the_values_of_pytrec_eval(test_data: Path) -> None:
    import pytrec_eval

    data = BeirFolder(str(test_data / "vaswani")).load()
    split = next(iter(data.queries))
    queries, qrels = data.queries[split], data.qrels[split]
    index = LexicalIndex(document["text"] for document in data.corpus.documents(range(len(data.corpus))))
    score, row = index.search(queries.text, 100)
    assert torch.equal(score.sort(dim=1, descending=True).values, score)
    run = {
        query: {data.corpus.ids[at]: value for at, value in zip(found, values, strict=True) if at >= 0}
        for query, values, found in zip(queries.ids, score.tolist(), row.tolist(), strict=True)
    }
    found = per_query(run, qrels, ["ndcg@10", "mrr", "recall@100", "map"])
    wanted = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recip_rank", "recall.100", "map"}).evaluate(run)
    assert len(wanted) == len(queries) > 50
    for name, official in {
        "ndcg@10": "ndcg_cut_10",
        "mrr": "recip_rank",
        "recall@100": "recall_100",
        "map": "map",
    }.items():
        for query, values in wanted.items():
            assert found[query][name] == pytest.approx(values[official], abs=1e-12)
    assert 0.2 < means(found)["ndcg@10"] < 0.7
