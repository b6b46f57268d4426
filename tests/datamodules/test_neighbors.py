"""Neighbour tables: exact by a plain sort, a row excluded by number, groups, ties, indexes, random draws."""

import numpy as np
import pytest

from datamodules import neighbors
from datamodules.neighbors import nearest, random_others, same_group
from datamodules.search import Search


def cloud(n: int, d: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def by_sorting(vectors: np.ndarray, k: int, group: np.ndarray) -> np.ndarray:
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    score = unit @ unit.T
    score[group[:, None] == group] = -np.inf
    return np.argsort(-score, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("chunk", [1, 7, 500])
def test_the_nearest_are_those_of_a_full_sort(chunk: int) -> None:
    vectors = cloud(90) * np.linspace(0.1, 20, 90, dtype=np.float32)[:, None]  # the length plays no part
    assert np.array_equal(nearest(vectors, 5, chunk=chunk), by_sorting(vectors, 5, np.arange(90)))
    group = np.sort(np.random.default_rng(1).integers(0, 9, 90))
    assert np.array_equal(nearest(vectors, 5, group, chunk=chunk), by_sorting(vectors, 5, group))


def test_a_copy_is_a_neighbour_and_the_row_itself_is_not_whatever_its_rank() -> None:
    # all of one direction: the search puts row 0 first for each, and dropping the first hit would keep self
    same = np.repeat(cloud(1), 6, axis=0)
    expected = [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2], [0, 1, 2], [0, 1, 2]]
    assert nearest(same, 3).tolist() == expected


@pytest.mark.parametrize(("extra", "searched"), [(1, 43 + 43 + 40 * 3), (1024, 43)])
def test_more_are_fetched_until_enough_are_of_other_groups(
    extra: int, searched: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    search = Search._in_chunks
    monkeypatch.setattr(neighbors, "EXTRA", extra)
    monkeypatch.setattr(
        Search, "_in_chunks", lambda self, query, *a: rows.append(len(query)) or search(self, query, *a)
    )
    # 40 near-copies of one user and 3 rows of another: the nearest 39 of each copy are excluded
    user = cloud(1) + 1e-3 * cloud(40)
    other = cloud(3, seed=5)
    vectors, group = np.concatenate([user, other]), np.repeat([0, 1], [40, 3])
    found = nearest(vectors, 3, group)
    assert sum(rows) == searched  # with places for one row of the own group at first: 4, 8, 16, 32 and 43 places
    assert np.sort(found[:40], axis=1).tolist() == [[40, 41, 42]] * 40
    assert np.array_equal(found, by_sorting(vectors, 3, group))
    assert same_group(nearest(vectors, 3), group) > 0.9
    assert same_group(found, group) == 0


def test_too_few_candidates_are_an_error_that_names_both_numbers() -> None:
    assert nearest(cloud(4), 3).shape == (4, 3)
    with pytest.raises(ValueError, match="k=4 neighbours, but row 0 has 3 candidates"):
        nearest(cloud(4), 4)
    with pytest.raises(ValueError, match="k=3 neighbours, but row 1 has 2 candidates"):
        random_others(5, 3, np.array([0, 1, 1, 1, 2]))
    with pytest.raises(ValueError, match="5 ascending numbers"):
        nearest(cloud(5), 1, np.array([0, 1, 0, 2, 2]))
    with pytest.raises(ValueError, match="k=0"):
        nearest(cloud(5), 0)


def test_an_index_that_visits_all_lists_is_exact_and_one_that_finds_too_few_is_helped_out() -> None:
    vectors = cloud(400)
    exact = by_sorting(vectors, 6, np.arange(400))
    assert np.array_equal(nearest(vectors, 6, index="IVF4,Flat", nprobe=4, chunk=64), exact)
    # of 40 lists of about 10 vectors one is visited: most rows find fewer than 60 there
    helped = nearest(vectors, 60, index="IVF40,Flat", nprobe=1, chunk=64)
    assert np.array_equal(helped, by_sorting(vectors, 60, np.arange(400)))


def test_random_others_are_distinct_uniform_and_the_seeds() -> None:
    group = np.repeat(np.arange(4), [1, 2, 3, 6])
    drawn = np.stack([random_others(12, 4, group, seed=seed) for seed in range(4000)])
    assert np.array_equal(drawn[7], random_others(12, 4, group, seed=7))
    assert (np.diff(np.sort(drawn, axis=2), axis=2) > 0).all()
    assert not (group[drawn] == group[:, None]).any()
    for row in range(12):
        count = np.bincount(drawn[:, row].ravel(), minlength=12)
        others = 12 - (group == group[row]).sum()
        expected = 4000 * 4 / others  # each of the others is in a share 4 / others of the draws
        spread = np.sqrt(4000 * (4 / others) * (1 - 4 / others)) + 1e-9
        assert (np.abs(count[group != group[row]] - expected) < 4.5 * spread).all()
    assert np.sort(random_others(5, 4), axis=1).tolist() == [[j for j in range(5) if j != i] for i in range(5)]
