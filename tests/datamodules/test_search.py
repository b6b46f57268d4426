"""Search: exact whatever the backend and the chunk, ties by row, and the recall of approximate indexes."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from datamodules import search as search_module
from datamodules.search import Search, build_index, query_index, recall_against_flat


def vectors(n: int, d: int = 16, seed: int = 0) -> Tensor:
    return normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def lattice(n: int, seed: int) -> Tensor:
    """Vectors of small integers: products are exact in float32, so that equal scores are equal everywhere."""
    return torch.randint(-1, 2, (n, 4), generator=torch.Generator().manual_seed(seed)).float()


def by_sorting(query: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
    score, row = (query @ gallery.T).sort(dim=1, descending=True, stable=True)
    return score[:, :k], row[:, :k]


@pytest.mark.parametrize("backend", ["faiss", "torch"])
@pytest.mark.parametrize("chunk", [1, 7, 60])
@pytest.mark.parametrize("k", [1, 5, 299, 300])
def test_exact_search_is_a_full_sort_with_equal_scores_by_row(
    backend: str, chunk: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "SCORES_AT_ONCE", 500)  # several blocks of the gallery
    monkeypatch.setattr(search_module, "SORTED_AT_ONCE", 700)
    search = Search(backend=backend, chunk=chunk)  # type: ignore[arg-type]
    query, gallery = lattice(60, 1), lattice(300, 2)
    score, row = search(query, gallery, k)
    expected = by_sorting(query, gallery, k)
    assert (expected[0][:, 1:] == expected[0][:, :-1]).float().mean() > 0.5 or k == 1  # ties abound
    assert torch.equal(score, expected[0])
    assert torch.equal(row, expected[1])
    query, gallery = vectors(60), vectors(300, seed=1)
    score, row = search(query, gallery, k)
    torch.testing.assert_close(score, by_sorting(query, gallery, k)[0])
    torch.testing.assert_close((query[:, None] * gallery[row]).sum(2), score)


@pytest.mark.parametrize("backend", ["faiss", "torch"])
def test_beyond_the_gallery_there_is_nothing(backend: str) -> None:
    score, row = Search(backend=backend)(vectors(2), vectors(3, seed=1), 5)  # type: ignore[arg-type]
    assert row[:, 3:].tolist() == [[-1, -1]] * 2
    assert score[:, 3:].tolist() == [[float("-inf")] * 2] * 2
    assert row[:, :3].sort(1).values.tolist() == [[0, 1, 2]] * 2


def test_a_low_precision_setting_and_autocast_do_not_reach_the_search() -> None:
    query, gallery = vectors(20, 64), vectors(50, 64, seed=1)
    expected = Search(backend="torch")(query, gallery, 3)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = Search(backend="torch")(query, gallery, 3)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(found[0], expected[0])


def test_faiss_takes_no_more_threads_than_torch_has() -> None:
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads() + 1)
    Search()(vectors(3), vectors(3), 1)
    assert faiss.omp_get_max_threads() == torch.get_num_threads()
    faiss.omp_set_num_threads(before)


@pytest.mark.parametrize(
    ("query", "gallery", "k", "words"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), 1, "query vectors have 3 dimensions, the gallery's have 4"),
        (torch.ones(2, 3), torch.ones(2, 3), 0, "k=0: must be at least 1"),
        (torch.ones(2, 3), torch.ones(2, 3), -2, "k=-2"),
        (torch.ones(3), torch.ones(2, 3), 1, r"query vectors have shape \(3,\)"),
        (torch.ones(2, 3), torch.ones(0, 3), 1, r"gallery vectors have shape \(0, 3\)"),
        (torch.tensor([[1.0, 0], [0, float("nan")]]), torch.ones(2, 2), 1, "query vectors: 1 have non-finite.*row 1"),
        (torch.ones(2, 2), torch.tensor([[float("-inf"), 0]] * 2), 1, "gallery vectors: 2 have non-finite.*row 0"),
    ],
)
def test_bad_vectors_and_bad_k(query: Tensor, gallery: Tensor, k: int, words: str) -> None:
    for search in (Search(), Search(backend="torch")):
        with pytest.raises(ValueError, match=words):
            search(query, gallery, k)
    with pytest.raises(TypeError, match=r"query vectors are torch.int64"):
        Search()(torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3), 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"backend": "torch", "index": "HNSW32"}, "torch searches exactly: index must be Flat, got 'HNSW32'"),
        ({"device": "cuda"}, "faiss runs on the CPU, got device='cuda': use backend torch"),
        ({"backend": "numpy"}, "backend='numpy': must be faiss or torch"),
        ({"chunk": 0}, "chunk=0"),
        ({"nprobe": 0}, "nprobe=0"),
    ],
)
def test_bad_settings(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Search(**arguments)


def test_bad_indexes() -> None:
    with pytest.raises(ValueError, match="index='Flatt' is no index that faiss can make"):
        build_index(vectors(10), Search(index="Flatt"))
    with pytest.raises(ValueError, match="10 vectors are too few to train it; use fewer lists, or Flat"):
        build_index(vectors(10), Search(index="IVF64,Flat"))


def test_recall_grows_with_effort_up_to_exact_search() -> None:
    query, gallery = vectors(200), vectors(2000, seed=1)
    lists = [recall_against_flat(query, gallery, Search(index="IVF16,Flat", nprobe=n)) for n in (1, 4, 16)]
    graph = [recall_against_flat(query, gallery, Search(index="HNSW8", ef_search=n)) for n in (10, 400)]
    assert lists[0] < lists[1] < lists[2] == 1
    assert graph[0] < graph[1]
    assert graph[1] > 0.98
    assert recall_against_flat(query, gallery, Search()) == 1


def test_an_approximate_index_returns_its_hits_in_our_form() -> None:
    gallery = vectors(200)
    search = Search(index="IVF20,Flat", nprobe=1)
    score, row = search(gallery[:5], gallery, 100)
    assert row[:, 0].tolist() == [0, 1, 2, 3, 4]  # itself
    missing = row < 0  # a list holds fewer than 100
    assert missing.any()
    assert torch.equal(score == float("-inf"), missing)
    kept = query_index(build_index(gallery, search), gallery[:5], 100)
    assert torch.equal(kept[0], score)
    assert torch.equal(kept[1], row)
