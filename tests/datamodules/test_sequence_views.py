from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from datamodules.sequence_store import PAD, Prefixes, SequenceStore
from datamodules.sequence_views import CropMaskReorder, Neighbors, SameTarget, Substitute, View
from datamodules.streams import key

V, K = 50, 4


def store_of(*users: list[int]) -> SequenceStore:
    items = np.array([i for items in users for i in items], np.int32)
    ids = [PAD, *map(str, range(1, V + 1))]
    return SequenceStore(items, np.cumsum([0, *map(len, users)]), None, ids, [f"u{i}" for i in range(len(users))])


def neighbors() -> np.ndarray:
    table = (np.arange(V + 1)[:, None] + 10 * np.arange(1, K + 1) - 1) % V + 1
    table[0] = 0
    return table


def substitute(**options: Any) -> Substitute:
    view, store = Substitute(**options), store_of([1, 2, 3])
    pool = Prefixes(store.offset, np.array([2]), 20)
    view.prepare(store, pool, np.arange(2), SimpleNamespace(item_neighbors=neighbors(), pool_neighbors=None))
    return view


def padded(rows: int, real: int, size: int = 20) -> np.ndarray:
    item = np.random.default_rng(0).integers(1, V + 1, (rows, size))
    item[:, : size - real] = 0
    return item


def made(view: View, item: np.ndarray, seed: int = 0) -> np.ndarray:
    rows = np.arange(len(item))
    found = view(rows, item, key(seed, rows))
    assert found.dtype == np.int64
    return found


def test_substitution_leaves_a_view_whole_with_probability_08_to_the_length() -> None:
    for real, share, rows in ((5, 0.8**5, 20_000), (20, 0.8**20, 20_000)):
        item = padded(rows, real)
        views = made(substitute(), item)
        whole = (views == item[:, None]).all(-1)
        deviation = (share * (1 - share) / whole.size) ** 0.5
        assert abs(whole.mean() - share) < 4 * deviation
        changed = (views != item[:, None])[..., 20 - real :]
        assert abs(changed.mean() - 0.2) < 4 * (0.16 / changed.size) ** 0.5
        both = changed.all(1).mean()  # independent copies: 0.2 squared
        assert abs(both - 0.04) < 4 * (0.04 * 0.96 / changed[:, 0].size) ** 0.5


def test_substitutes_are_uniform_among_the_neighbours_of_the_item_they_replace() -> None:
    item = padded(5_000, 7)
    views = made(substitute(probability=1), item)
    assert (views[:, :, :13] == 0).all()
    real = np.broadcast_to(item[:, None, 13:], views[:, :, 13:].shape)
    places = (views[:, :, 13:, None] == neighbors()[real]).argmax(-1)
    assert (views[:, :, 13:, None] == neighbors()[real]).any(-1).all()
    share = np.bincount(places.ravel(), minlength=K) / places.size
    assert abs(share - 0.25).max() < 4 * (0.1875 / places.size) ** 0.5


def test_no_substitution_at_probability_0_and_draws_by_key() -> None:
    item = padded(64, 12)
    assert (made(substitute(probability=0), item) == item[:, None]).all()
    view = substitute(probability=0.5)
    once = made(view, item)
    keys = key(0, np.arange(64))
    assert (view(np.arange(64), item[::-1], keys[::-1])[::-1] == once).all()
    assert (made(view, item, seed=1) != once).any()


@pytest.mark.parametrize(("real", "count"), [(2, 0), (3, 1), (5, 1), (10, 2), (18, 4), (20, 4)])
def test_exact_substitution_replaces_the_nearest_number(real: int, count: int) -> None:
    item = padded(200, real)
    changed = made(substitute(exact=True), item) != item[:, None]
    assert (changed.sum(-1) == count).all()
    assert not changed[..., : 20 - real].any()


ORDERED = np.array([[0] * (20 - n) + list(range(1, n + 1)) for n in range(1, 21)])


@pytest.mark.parametrize("real", [1, 2, 3, 10, 20])
def test_crops_are_runs_of_the_share_at_any_place(real: int) -> None:
    item = np.repeat(ORDERED[real - 1 : real], 3_000, 0)
    place, draws = np.random.default_rng(0).random((3_000, 1)), np.zeros((3_000, 20))
    found = CropMaskReorder(crop=0.6).cropped(item, place, draws)
    kept = max(int(0.6 * real), 1)
    assert (found[:, : 20 - kept] == 0).all()
    assert (np.diff(found[:, 20 - kept :]) == 1).all()
    starts = np.bincount(found[:, 20 - kept], minlength=real - kept + 2)[1:] / 3_000
    assert len(starts) == real - kept + 1
    assert abs(starts - 1 / len(starts)).max() < 4 * (0.25 / 3_000) ** 0.5


@pytest.mark.parametrize("real", [1, 2, 4, 10, 20])
def test_masks_blank_the_share_but_never_the_last(real: int) -> None:
    item = np.repeat(ORDERED[real - 1 : real], 2_000, 0)
    place, draws = np.zeros((2_000, 1)), np.random.default_rng(0).random((2_000, 20))
    found = CropMaskReorder(mask=0.3).masked(item, place, draws)
    assert ((found == 0).sum(1) == 20 - real + int(0.3 * real)).all()
    assert (found[:, -1] == real).all()
    assert (found[found > 0] == item[found > 0]).all()
    whole = CropMaskReorder(mask=1).masked(item, place, draws)
    assert ((whole > 0).sum(1) == 1).all()


@pytest.mark.parametrize("real", [1, 2, 5, 20])
def test_reorders_shuffle_a_run_and_keep_all_items(real: int) -> None:
    item = np.repeat(ORDERED[real - 1 : real], 2_000, 0)
    rng = np.random.default_rng(0)
    found = CropMaskReorder(reorder=0.6).reordered(item, rng.random((2_000, 1)), rng.random((2_000, 20)))
    assert (np.sort(found, 1) == item).all()
    moved = found != item
    span = np.where(moved.any(1), 20 - moved[:, ::-1].argmax(1) - moved.argmax(1), 0)
    assert span.max() == (int(0.6 * real) if real > 3 else 0)


def test_the_two_copies_draw_their_change_alike_often_and_independently() -> None:
    item = np.repeat(ORDERED[19:], 6_000, 0)
    found = made(CropMaskReorder(), item)
    blanks = (found == 0).sum(-1)
    which = np.select([blanks == 8, blanks == 6, blanks == 0], [0, 1, 2], 3)  # crop, mask, reorder
    share = np.bincount(which.ravel(), minlength=4) / which.size
    assert abs(share - [1 / 3, 1 / 3, 1 / 3, 0]).max() < 4 * (2 / 9 / which.size) ** 0.5
    assert abs((which[:, 0] == which[:, 1]).mean() - 1 / 3) < 4 * (2 / 9 / 6_000) ** 0.5


def test_same_target_draws_uniformly_among_the_others_with_that_target() -> None:
    store = store_of([1, 7, 2, 7, 8, 9], [3, 7, 4, 8], [5, 6, 7, 8, 9], [7, 11, 12, 13])
    pool = Prefixes(store.offset, np.maximum(store.length - 3, 0), 3)
    target = store.item[pool.bounds()[1]]
    assert target.tolist() == [7, 2, 7, 7, 6, 7, 11]
    view = SameTarget()
    view.prepare(store, pool, np.arange(7), None)
    rows = np.repeat(np.arange(7), 3_000)
    found = view(rows, np.zeros((len(rows), 3), np.int64), key(0, np.arange(len(rows))))
    windows = {0: (0, 0, 1), 2: (1, 7, 2), 3: (0, 0, 3), 5: (0, 5, 6)}
    for row, own in windows.items():
        mine, count = np.unique(found[rows == row], axis=0, return_counts=True)
        assert {tuple(m) for m in mine.tolist()} == set(windows.values()) - {own}
        assert abs(count / 3_000 - 1 / 3).max() < 4 * (2 / 9 / 3_000) ** 0.5
    assert (found[rows == 1] == [0, 1, 7]).all()
    assert (found[rows == 6] == [0, 0, 7]).all()


def test_neighbours_are_the_tables_prefixes_in_its_order() -> None:
    store = store_of([1, 2, 3, 4, 5], [6, 7, 8, 9])
    pool = Prefixes(store.offset, np.array([2, 1]), 2)
    view = Neighbors(2)
    table = SimpleNamespace(item_neighbors=None, pool_neighbors=np.array([[2, 1, 0], [0, 2, 0], [1, 0, 0]]))
    view.prepare(store, pool, np.arange(3), table)
    found = view(np.array([0, 2]), np.zeros((2, 2), np.int64), key(0, np.arange(2)))
    assert found.tolist() == [[[0, 6], [1, 2]], [[1, 2], [0, 1]]]


def broken(item: Any = None, pool: Any = None) -> SimpleNamespace:
    return SimpleNamespace(item_neighbors=item, pool_neighbors=pool)


@pytest.mark.parametrize(
    ("view", "tables", "message"),
    [
        (Substitute(), None, "Substitute needs the table of similar items: give semantics"),
        (Neighbors(1), None, "Neighbors needs the table of similar prefixes: give semantics"),
        (Substitute(), broken(item=neighbors()[1:]), r"item_neighbors has shape \[50, 4\], expected \[51, k\]"),
        (Substitute(), broken(item=np.zeros((51, 2), int)), r"item 1 \('1'\) has a neighbour outside \[1, 50\]"),
        (Neighbors(1), broken(pool=np.zeros((3, 2), int)), r"pool_neighbors has shape \[3, 2\], expected \[2, k\]"),
        (Neighbors(3), broken(pool=np.zeros((2, 2), int)), "Neighbors.k=3: the table pool_neighbors has 2"),
        (Neighbors(1), broken(pool=np.array([[1], [2]])), r"prefix 1 has a neighbour outside \[0, 2\)"),
    ],
)
def test_wrong_tables_are_errors(view: View, tables: Any, message: str) -> None:
    store = store_of([1, 2, 3, 4, 5])
    with pytest.raises(ValueError, match=message):
        view.prepare(store, Prefixes(store.offset, np.array([2]), 2), np.arange(2), tables)


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_shares_lie_in_0_to_1(value: float) -> None:
    for make in (lambda: Substitute(value), lambda: CropMaskReorder(mask=value)):
        with pytest.raises(ValueError, match=rf"={value}: must lie in \[0, 1\]"):
            make()
    with pytest.raises(ValueError, match="k=0"):
        Neighbors(0)
