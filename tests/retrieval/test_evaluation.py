"""Evaluation: closed cases, invariances, leave-one-out by id, exclusion, shares of several ranks, bad input."""

import pytest
import torch
from torch import Tensor

from zoo.retrieval import (
    EmbeddingTable,
    RetrievalEvaluator,
    RetrievalResult,
    Search,
    class_templates,
    embedding_table,
)
from zoo.retrieval import evaluation as evaluation_module

ALL = ("recall@1", "recall@4", "precision@3", "map@3", "map@r", "r_precision", "map", "mrr")


def table(n: int, classes: int, spread: float = 1.0, seed: int = 0, d: int = 12, first_id: int = 0) -> EmbeddingTable:
    """Classes around centres that all seeds share; a spread of infinity leaves no centres."""
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (n,), generator=g)
    centre = torch.randn(classes, d, generator=torch.Generator().manual_seed(99))
    x = (
        torch.randn(n, d, generator=g)
        if spread == float("inf")
        else centre[label] + spread * torch.randn(n, d, generator=g)
    )
    return embedding_table(x, label, torch.arange(first_id, first_id + n))


def by_loops(query: EmbeddingTable, gallery: EmbeddingTable, own: bool) -> dict[str, list[float]]:
    """The definitions, one query at a time."""
    values: dict[str, list[float]] = {name: [] for name in ALL}
    for q in range(len(query)):
        order = (gallery.embedding @ query.embedding[q]).argsort(descending=True, stable=True).tolist()
        rel = [gallery.label[i] == query.label[q] for i in order if not (own and gallery.id[i] == query.id[q])]
        rel = [bool(x) for x in rel]
        r = sum(rel)
        if r == 0:
            continue
        precision = [sum(rel[: i + 1]) / (i + 1) for i in range(len(rel))]
        gain = [p * x for p, x in zip(precision, rel, strict=True)]
        for name, value in {
            "recall@1": any(rel[:1]),
            "recall@4": any(rel[:4]),
            "precision@3": sum(rel[:3]) / 3,
            "map@3": sum(gain[:3]) / min(r, 3),
            "map@r": sum(gain[:r]) / r,
            "r_precision": sum(rel[:r]) / r,
            "map": sum(gain) / r,
            "mrr": 1 / (1 + rel.index(True)),
        }.items():
            values[name].append(float(value))
    return values


@pytest.mark.parametrize("search", [Search(), Search(backend="torch"), Search(chunk=7), Search(chunk=1)], ids=repr)
@pytest.mark.parametrize("own", [False, True])
def test_against_plain_loops(search: Search, own: bool) -> None:
    query, gallery = table(60, 9, 2.0), table(90, 9, 2.0, seed=1, first_id=1000)
    result = RetrievalEvaluator(ALL, search=search)(query, None if own else gallery)
    expected = by_loops(query, query if own else gallery, own)
    for name in ALL:
        assert result.per_query[name].tolist() == pytest.approx(expected[name])
        assert result.scores[name] == pytest.approx(sum(expected[name]) / len(expected[name]))


def test_perfect_ranking_scores_one_everywhere() -> None:
    result = RetrievalEvaluator([m for m in ALL if m != "precision@3"])(
        table(200, 5, 1e-3), table(100, 5, 1e-3, seed=1)
    )
    assert set(result.scores.values()) == set(result.macro.values()) == {1.0}


def test_random_embeddings_score_chance() -> None:
    scores = RetrievalEvaluator()(table(1500, 10, float("inf")), table(2000, 10, float("inf"), seed=1)).scores
    assert scores["recall@1"] == pytest.approx(0.1, abs=0.03)
    assert scores["r_precision"] == pytest.approx(0.1, abs=0.01)
    assert scores["map@r"] < 0.03


def test_order_of_the_gallery_rotation_and_length_change_nothing() -> None:
    query, gallery = table(80, 8, 2.0), table(120, 8, 2.0, seed=1)
    expected = RetrievalEvaluator(ALL)(query, gallery).scores
    order = torch.randperm(120, generator=torch.Generator().manual_seed(3))
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(4))).Q
    length = torch.rand(120, 1, generator=torch.Generator().manual_seed(5)) + 0.1
    q = embedding_table(query.embedding @ rotation, query.label)
    g = embedding_table((length * gallery.embedding @ rotation)[order], gallery.label[order], gallery.id[order])
    assert RetrievalEvaluator(ALL)(q, g).scores == pytest.approx(expected)


def test_leave_one_out_removes_the_query_by_id_not_by_place() -> None:
    # 0 and 1 are the same picture under two labels, as are 2, 3 and 4 of one label: ties at rank 1
    x = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1], [0, 1], [0.9, 0.1]])
    label, id = torch.tensor([0, 1, 2, 2, 2, 0]), torch.tensor([15, 11, 12, 14, 13, 10])
    result = RetrievalEvaluator(["recall@1", "recall@2", "map@r"])(embedding_table(x, label, id))
    # in the order of ids: 10 (row 5, hits 15 by the lower row), 12, 13, 14, 15 (row 0, hits 11); 11 has no partner
    assert result.id.tolist() == [10, 12, 13, 14, 15]
    assert result.per_query["recall@1"].tolist() == [1, 1, 1, 1, 0]
    assert result.per_query["recall@2"].tolist() == [1, 1, 1, 1, 1]
    assert result.per_query["map@r"].tolist() == [1, 1, 1, 1, 0]
    assert (result.n_queries, result.n_excluded) == (5, 1)


def test_macro_means_weigh_classes_alike() -> None:
    gallery = embedding_table(torch.eye(2), torch.tensor([0, 1]))
    query = embedding_table(torch.eye(2)[[0, 0, 0, 0]], torch.tensor([0, 0, 0, 1]))
    result = RetrievalEvaluator(["recall@1"])(query, gallery)
    assert result.scores == {"recall@1": 0.75}
    assert result.macro == {"recall@1": 0.5}


def test_templates_give_nearest_class_mean_accuracy() -> None:
    query, gallery = table(300, 6, 3.0), table(200, 6, 3.0, seed=1)
    result = RetrievalEvaluator(template="mean")(query, gallery)
    means = torch.stack([gallery.embedding[gallery.label == c].mean(0) for c in range(6)])
    nearest = (query.embedding @ (means / means.norm(dim=1, keepdim=True)).T).argmax(1)
    assert result.scores == {"accuracy": pytest.approx((nearest == query.label).double().mean().item())}
    assert 0.3 < result.scores["accuracy"] < 0.95
    same = RetrievalEvaluator(["accuracy", "recall@1", "map@r"], template="mean")(query, class_templates(gallery))
    assert set(same.scores.values()) == {result.scores["accuracy"]}


def test_queries_without_relevant_items_are_excluded_and_counted_or_stop() -> None:
    gallery = table(50, 4)
    label = table(30, 4).label.clone()
    label[:9] = torch.tensor([40, 41, 42, 43, 44, 45, 46, 46, 46])
    query = embedding_table(table(30, 4).embedding, label)
    result = RetrievalEvaluator()(query, gallery)
    assert (result.n_queries, result.n_excluded) == (21, 9)
    assert result.id.tolist() == list(range(9, 30))
    with pytest.raises(ValueError, match=r"9 of 30 queries.*\(7: 40, 41, 42, 43, 44, \.\.\.\) are absent from it"):
        RetrievalEvaluator(absent="error")(query, gallery)
    with pytest.raises(ValueError, match=r"30 of 30 queries.*\(4: 10, 11, 12, 13\) are absent"):
        RetrievalEvaluator()(embedding_table(query.embedding, 10 + table(30, 4).label), gallery)
    with pytest.raises(ValueError, match=r"2 of 2 queries.*come only once"):
        RetrievalEvaluator()(embedding_table(torch.eye(2), torch.tensor([0, 1])))


def test_unknown_labels_match_nothing_in_the_gallery_and_are_no_queries() -> None:
    x, query = torch.eye(3), embedding_table(torch.eye(3)[:1], torch.tensor([0]))
    gallery = embedding_table(x, torch.tensor([-1, 0, -1]))
    assert RetrievalEvaluator(["recall@1", "mrr"])(query, gallery).scores == {"recall@1": 0, "mrr": 0.5}
    with pytest.raises(ValueError, match="2 queries have a negative label"):
        RetrievalEvaluator()(gallery)


def test_k_beyond_the_gallery() -> None:
    result = RetrievalEvaluator(["recall@50", "precision@50"])(table(20, 2), table(10, 2, seed=1))
    assert result.scores["recall@50"] == 1
    relevant = (table(20, 2).label[:, None] == table(10, 2, seed=1).label).sum(1)
    assert result.per_query["precision@50"].tolist() == pytest.approx((relevant / 50).tolist())


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("own", [False, True])
def test_shares_of_all_ranks_are_the_whole(world: int, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_module, "HITS_AT_ONCE", 700)
    query, gallery = table(100, 30, 2.0), table(60, 40, 2.0, seed=1)
    evaluate = RetrievalEvaluator(ALL, search=Search(chunk=9))
    whole = evaluate(query, None if own else gallery)
    shares = [evaluate(query, None if own else gallery, rank, world) for rank in range(world)]
    id = torch.cat([share.id for share in shares])
    assert torch.equal(id.sort().values, whole.id)
    assert sum(share.n_excluded for share in shares) == whole.n_excluded > 0
    for name in ALL:
        values = torch.cat([share.per_query[name] for share in shares])
        assert torch.equal(values[id.argsort()], whole.per_query[name])


def test_the_full_matrix_of_scores_never_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    find = Search.over

    def watch(self: Search, gallery: Tensor) -> object:
        inner = find(self, gallery)
        return lambda query, k: (sizes.append(len(query) * k), inner(query, k))[1]

    monkeypatch.setattr(Search, "over", watch)
    monkeypatch.setattr(evaluation_module, "HITS_AT_ONCE", 1000)
    RetrievalEvaluator(["map"])(table(100, 4), table(100, 4, seed=1))
    assert sizes == [1000] * 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"metrics": ["recall@0"]}, "metric 'recall@0': k must be at least 1"),
        ({"metrics": ["map@-3"]}, "metric 'map@-3': k must be at least 1"),
        ({"metrics": ["recall"]}, "metric 'recall' is unknown: choose from recall@K"),
        ({"metrics": ["accuracy"]}, "set template to mean"),
        ({"depth": 0}, "depth=0"),
        ({"absent": "skip"}, "absent='skip': must be exclude or error"),
        ({"search": Search(index="HNSW32")}, "index must be Flat, got 'HNSW32'; .*recall_against_flat"),
    ],
)
def test_bad_settings(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RetrievalEvaluator(**arguments)


def test_bad_tables() -> None:
    query, gallery = table(20, 2), table(30, 2, seed=1)
    most = int(gallery.label.bincount().max())
    with pytest.raises(ValueError, match=f"depth=5 is less than the {most} hits.*map@r needs.*use map@k"):
        RetrievalEvaluator(["map@r"], depth=5)(query, gallery)
    with pytest.raises(ValueError, match="depth=5 is less than the 10 hits a query that recall@10 needs"):
        RetrievalEvaluator(["recall@10"], depth=5)(query, gallery)
    with pytest.raises(ValueError, match="depth=29 is less than the 30 hits a query that mrr needs"):
        RetrievalEvaluator(["mrr"], depth=29)(query, gallery)
    RetrievalEvaluator(["map@r"], depth=most)(query, gallery)
    with pytest.raises(ValueError, match="query vectors have 12 dimensions, the gallery's have 8"):
        RetrievalEvaluator()(query, table(30, 2, d=8))
    with pytest.raises(ValueError, match="template mean needs a gallery"):
        RetrievalEvaluator(template="mean")(query)


def test_one_process_needs_no_reduction() -> None:
    result: RetrievalResult = RetrievalEvaluator()(table(20, 2))
    assert result.over_ranks() is result
