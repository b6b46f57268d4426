import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.batches import SequenceBatch
from datamodules.sequence_files import RecBoleFiles
from datamodules.sequence_store import PAD, Prefixes, SequenceSet, SequenceStore, filtered, k_core, windows
from datamodules.sequence_views import CropMaskReorder, Neighbors, SameTarget, SemanticSource, Substitute
from datamodules.sequences import SequentialRecommendation

Become = Callable[[int, int], None]


def store_of(*users: list[int], num_items: int = 40, time: list[float] | None = None) -> SequenceStore:
    return SequenceStore(
        np.array([i for items in users for i in items], np.int32),
        np.cumsum([0, *map(len, users)]),
        None if time is None else np.array(time),
        [PAD, *(f"i{n}" for n in range(1, num_items + 1))],
        [f"u{n}" for n in range(len(users))],
    )


class Given(SequenceSet):
    def __init__(self, *users: list[int], **options: Any) -> None:
        self.store = store_of(*users, **options)

    def load(self) -> SequenceStore:
        return self.store


class Tables(SemanticSource):
    """Neighbours one, two and three further on."""

    def __init__(self, pool_scope: str = "train", k: int = 3) -> None:
        self.pool_scope, self.k = pool_scope, k  # type: ignore[assignment]

    def tables(self, store: SequenceStore, pool: Prefixes) -> "Tables":
        step = np.arange(1, self.k + 1)
        self.item_neighbors = (np.arange(store.num_items + 1)[:, None] + step - 1) % store.num_items + 1
        self.pool_neighbors = (np.arange(len(pool))[:, None] + step) % len(pool)
        return self


def drawn(users: int = 60, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 41, n).tolist() for n in rng.integers(3, 30, users)]


def make(*users: list[int], **options: Any) -> SequentialRecommendation:
    data = SequentialRecommendation(Given(*users), **({"max_length": 5, "batch_size": 1} | options))
    data.setup("fit")
    return data


def samples(data: SequentialRecommendation) -> dict[int, tuple[list[int], Any]]:
    """Prefix number -> (its window, its target), of one epoch."""
    found = {}
    for batch in data.train_dataloader():
        for seq, target, prefix in zip(batch.item_seq, batch.target, batch.prefix, strict=True):
            assert int(prefix) not in found
            found[int(prefix)] = seq.tolist(), target.tolist()
    return found


def test_samples_are_all_prefixes_of_all_but_the_last_two_items_padded_on_the_left() -> None:
    data = make([1, 2, 3, 4, 5, 6, 7, 8, 9], [10, 11, 12, 13], [14, 15, 16], [17, 18], [19], max_length=4)
    assert samples(data) == {
        0: ([0, 0, 0, 1], 2), 1: ([0, 0, 1, 2], 3), 2: ([0, 1, 2, 3], 4), 3: ([1, 2, 3, 4], 5), 4: ([2, 3, 4, 5], 6),
        5: ([3, 4, 5, 6], 7), 6: ([0, 0, 0, 10], 11), 7: ([0, 0, 0, 17], 18),
    }  # fmt: skip
    (batch,) = data.val_dataloader()
    assert batch.item_seq.tolist() == [[4, 5, 6, 7], [0, 0, 10, 11], [0, 0, 0, 14]]
    assert (batch.target.tolist(), batch.user.tolist()) == ([8, 12, 15], [0, 1, 2])
    (batch,) = data.test_dataloader()
    assert batch.item_seq.tolist() == [[5, 6, 7, 8], [0, 10, 11, 12], [0, 0, 14, 15]]
    assert (batch.target.tolist(), batch.user.tolist()) == ([9, 13, 16], [0, 1, 2])
    assert {t.dtype for t in batch} == {torch.int64}


@pytest.mark.parametrize("m", [3, 4, 7, 25])
def test_a_user_of_m_items_gives_m_minus_3_samples(m: int) -> None:
    data = make(list(range(1, m + 1)), [30, 31, 32, 33])
    assert len(data.trained) == m - 3 + 1


def test_pools_of_a_user_of_25_items_have_22_and_24_prefixes_of_at_most_20() -> None:
    items = list(range(1, 26))
    data = make(items, [1, 2, 3, 4], max_length=20, semantics=Tables())
    assert np.bincount(data.pool.user(np.arange(len(data.pool)))).tolist() == [22, 1]
    official = make(items, [1, 2, 3, 4], max_length=20, semantics=Tables("official"))
    assert np.bincount(official.pool.user(np.arange(len(official.pool)))).tolist() == [24, 3]
    start, end = official.pool.bounds()
    assert (end - start)[:24].tolist() == [*range(1, 21), 20, 20, 20, 20]
    assert (start[23], end[23], start[24], end[24]) == (4, 24, 25, 26)
    assert samples(official) == {p if p < 22 else 24: sample for p, sample in samples(data).items()}


def test_whole_users_have_a_target_at_every_position_and_the_number_of_their_longest_prefix() -> None:
    users = [1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15], [16, 17]
    assert samples(make(*users, samples="users", max_length=4)) == {
        4: ([2, 3, 4, 5], [3, 4, 5, 6]),
        5: ([0, 0, 0, 9], [0, 0, 0, 10]),
        6: ([0, 0, 0, 16], [0, 0, 0, 17]),
    }


def test_temporal_split_trains_on_nothing_after_the_cut() -> None:
    # 20 interactions at times 0 to 19; the windows are 14 to 16 and 17 to 19
    times = [0, 1, 2, 14, 17, 3, 4, 5, 6, 15, 16, 7, 8, 18, 19, 9, 10, 11, 12, 13]
    users = [1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [12, 13, 14, 15], [16, 17, 18, 19, 20]
    data = SequentialRecommendation(
        Given(*users, time=times), max_length=4, batch_size=1, split="temporal", held_out=(0.15, 0.15)
    )
    data.setup("fit")
    assert data.split.train.tolist() == [3, 4, 2, 5]
    assert sorted(target for _, target in samples(data).values()) == [2, 3, 7, 8, 9, 13, 17, 18, 19, 20]
    (batch,) = data.val_dataloader()
    assert (batch.user.tolist(), batch.target.tolist()) == ([0, 1], [4, 10])
    (batch,) = data.test_dataloader()
    assert (batch.user.tolist(), batch.target.tolist()) == ([0, 2], [5, 14])
    assert batch.item_seq.tolist() == [[1, 2, 3, 4], [0, 0, 12, 13]]
    untimed = SequentialRecommendation(Given([1, 2, 3]), split="temporal")
    with pytest.raises(ValueError, match="split=temporal needs times"):
        untimed.setup("fit")


def toy() -> tuple[np.ndarray, np.ndarray]:
    pairs = [(u, i) for u in range(5) for i in range(5)] + [(5, i) for i in (0, 1, 2, 3, 9)]
    user, item = np.array([*pairs, (0, 9), (1, 9), (2, 9)]).T
    return user, item


def test_k_core_repeats_until_nothing_more_falls() -> None:
    user, item = toy()
    rows, sizes = k_core(user, item, 5, 5)
    assert sizes == [33, 29, 25, 25]
    assert rows.tolist() == list(range(25))
    assert k_core(user, item, 0, 0)[1] == [33, 33]


def test_the_filter_numbers_what_is_left_anew(caplog: pytest.LogCaptureFixture) -> None:
    user, item = toy()
    sequences = [(item[user == u] + 3).tolist() for u in range(6)]
    data = SequentialRecommendation(Given(*sequences), min_user_interactions=5, min_item_interactions=5)
    with caplog.at_level(logging.INFO):
        assert data.num_items == 5
    assert "33 -> 29 -> 25 -> 25" in caplog.text
    assert data.item_ids == [PAD, "i3", "i4", "i5", "i6", "i7"]
    assert data.store.item.reshape(5, 5).tolist() == [[1, 2, 3, 4, 5]] * 5
    assert data.store.user_ids == ["u0", "u1", "u2", "u3", "u4"]
    empty = SequentialRecommendation(Given([1, 2], [3, 4]), min_user_interactions=3)
    with pytest.raises(ValueError, match="leave nothing of given's 4 interactions"):
        empty.setup("fit")


def test_recent_keeps_the_last_interactions_and_numbers_their_items_anew() -> None:
    data = SequentialRecommendation(Given([5, 1, 2, 3], [4, 2], [1, 5, 2]), recent=2)
    assert data.item_ids == [PAD, "i2", "i3", "i4", "i5"]
    assert data.store.item.reshape(3, 2).tolist() == [[1, 2], [3, 1], [4, 1]]


def test_filtered_keeps_times_and_titles() -> None:
    store = store_of([1, 2, 3], [4, 2], num_items=4, time=[5, 6, 7, 1, 2])
    kept = filtered(replace(store, titles=["", *"abcd"]), np.array([1, 2, 4]))
    assert (kept.item.tolist(), kept.offset.tolist(), kept.time.tolist()) == ([1, 2, 1], [0, 2, 3], [6, 7, 2])
    assert (kept.item_ids, kept.titles) == ([PAD, "i2", "i3"], ["", "b", "c"])


def test_windows_have_any_shape_and_do_not_read_over_the_edges() -> None:
    item = np.arange(1, 8, dtype=np.int32)
    found = windows(item, np.array([[0, 0], [6, 2]]), np.array([[1, 7], [7, 5]]), 4)
    assert found.tolist() == [[[0, 0, 0, 1], [4, 5, 6, 7]], [[0, 0, 0, 7], [0, 3, 4, 5]]]
    assert found.dtype == np.int64


def test_statistics_are_shown_once_with_the_users_that_are_not_evaluated(caplog: pytest.LogCaptureFixture) -> None:
    data = SequentialRecommendation(Given([1, 2, 1, 3, 4], [1, 2], [3], num_items=4), max_length=4)
    with caplog.at_level(logging.INFO):
        data.setup("fit")
        data.setup("test")
    assert data.statistics() == {
        "users": 3, "items": 4, "interactions": 8, "mean length": 8 / 3, "density %": 100 * 7 / 12,
        "training samples": 3, "repeated pairs": 1, "users not evaluated": 2,
    }  # fmt: skip
    assert caplog.text.count("training samples") == 1
    assert "2 users have fewer than 3 interactions" in caplog.text


def with_views(**options: Any) -> SequentialRecommendation:
    views = options.pop("views", [Substitute(0.5), Neighbors(2), SameTarget()])
    return make(*drawn(), **({"batch_size": 8, "semantics": Tables(), "views": views, "seed": 3} | options))


def by_prefix(batches: list[SequenceBatch]) -> dict[int, list[Any]]:
    return {
        int(batch.prefix[row]): [None if field is None else field[row].tolist() for field in batch]
        for batch in batches
        for row in range(len(batch.prefix))
    }


def same(one: SequenceBatch, other: SequenceBatch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True) if a is not None)


def test_samples_and_views_do_not_depend_on_ranks_workers_or_batches(two_ranks: Become) -> None:
    whole = list(with_views(batch_size=16, drop_last=True).train_dataloader())
    by_workers = with_views(batch_size=16, num_workers=2, drop_last=True).train_dataloader()
    for one, other in zip(whole, by_workers, strict=True):
        assert same(one, other)
    shares = []
    for rank in range(2):
        two_ranks(rank, 2)
        shares.append(list(with_views(drop_last=True).train_dataloader()))
    assert len(shares[0]) == len(whole)
    for step, batch in enumerate(whole):
        for field, parts in zip(batch, zip(shares[0][step], shares[1][step], strict=True), strict=True):
            assert torch.equal(field, torch.cat(parts))


def test_the_last_batch_is_kept_unless_it_is_to_be_dropped() -> None:
    data = with_views(batch_size=16)
    samples, left = len(data.trained), len(data.trained) % 16
    assert left
    assert [len(batch.target) for batch in data.train_dataloader()] == [16] * (samples // 16) + [left]
    assert {len(batch.target) for batch in with_views(batch_size=16, drop_last=True).train_dataloader()} == {16}


def test_epochs_and_seeds_draw_anew() -> None:
    data = with_views()
    loader = data.train_dataloader()
    first = by_prefix(list(loader))
    loader.sampler.set_epoch(1)
    second = by_prefix(list(loader))
    common = first.keys() & second.keys()
    assert list(first) != list(second)
    assert all(first[p][:3] == second[p][:3] for p in common)
    assert sum(first[p][3] != second[p][3] for p in common) > 0.8 * len(common)
    other = by_prefix(list(with_views(seed=4).train_dataloader()))
    assert sum(first[p][3] != other[p][3] for p in first.keys() & other.keys()) > 0.8 * len(common)


def test_a_run_resumes_in_mid_epoch() -> None:
    loader = with_views().train_dataloader()
    loader.sampler.set_epoch(2)
    batches = iter(loader)
    for _ in range(5):
        next(batches)
    state, rest = loader.state_dict(), list(batches)
    resumed = with_views().train_dataloader()
    resumed.load_state_dict(state)
    for one, other in zip(rest, resumed, strict=True):
        assert same(one, other)


def test_evaluation_over_ranks_covers_every_user(two_ranks: Become) -> None:
    data = make(*drawn(7), eval_batch_size=2)
    users = []
    for rank in range(3):
        two_ranks(rank, 3)
        users += [int(u) for batch in data.test_dataloader() for u in batch.user]
    assert sorted(set(users)) == list(range(7))


def test_predict_continues_given_histories_or_every_user(tmp_path: Path) -> None:
    data = make([1, 2, 3, 4, 5, 6], [7, 8])
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert batch.item_seq.tolist() == [[2, 3, 4, 5, 6], [0, 0, 0, 7, 8]]
    assert (batch.target.tolist(), list(data.predict_users)) == ([0, 0], ["u0", "u1"])
    for name, text in (
        ("h.txt", "ann i3 i1\nbob i2\n"),
        ("h.jsonl", '{"user": "ann", "items": ["i3", "i1"]}\n\n' + json.dumps({"user": "bob", "items": ["i2"]})),
    ):
        (tmp_path / name).write_text(text)
        data = make([1, 2, 3, 4], predict_histories=str(tmp_path / name), max_length=3)
        data.setup("predict")
        (batch,) = data.predict_dataloader()
        assert batch.item_seq.tolist() == [[0, 3, 1], [0, 0, 2]]
        assert (batch.user.tolist(), data.predict_users) == ([0, 1], ["ann", "bob"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("h.txt", "ann i3\nbob i2 i99\n", "h.txt, line 2: unknown item 'i99'"),
        ("h.txt", "ann i3\nbob\n", "h.txt, line 2: user 'bob' without items"),
        ("h.txt", f"ann {PAD}\n", "unknown item"),
        ("h.txt", "ann i1\nbob i2\nann i3\n", "h.txt, line 3: user 'ann' comes again"),
        ("h.txt", "\n", "holds no histories"),
        ("h.jsonl", '{"user": 1}\n', "h.jsonl, line 1: expected .*KeyError"),
        ("h.jsonl", '\n{"user": 1, "items": []}\n', "h.jsonl, line 2: user '1' without a list"),
        ("h.jsonl", '{"user": 1, "items": "i1"}\n', "h.jsonl, line 1: "),
        ("h.jsonl", "[\n", "h.jsonl, line 1: expected"),
    ],
)
def test_bad_histories_are_errors_with_their_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    data = make([1, 2, 3, 4], predict_histories=str(tmp_path / name))
    with pytest.raises(ValueError, match=message):
        data.setup("predict")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, "max_length=0: must be at least 1"),
        ({"recent": 0}, "recent=0: must be at least 1"),
        ({"held_out": (0.5, 0.5)}, "held_out"),
        ({"views": [Substitute(), CropMaskReorder()]}, "two parts give the field 'views'"),
        ({"split": "temporal", "semantics": Tables("official")}, "pool_scope=official is for split=leave_one_out"),
    ],
)
def test_values_out_of_range_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SequentialRecommendation(Given([1, 2, 3]), **options)


def test_data_without_samples_or_evaluation_are_errors() -> None:
    with pytest.raises(ValueError, match="no training samples"):
        make([1, 2, 3])
    with pytest.raises(ValueError, match="no user to evaluate in test"):
        make([1, 2]).test_dataloader()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item": np.array([1, 2, 5], np.int32)}, r"row 2, of user 'b', has item 5: items must lie in \[1, 4\]"),
        ({"item": np.array([1, 0, 2], np.int32)}, "row 1, of user 'a', has item 0"),
        ({"item": np.array([-1, 1, 2], np.int32)}, "row 0, of user 'a', has item -1"),
        ({"offset": np.array([0, 3, 3])}, "user 'b' has no items"),
        ({"offset": np.array([0, 2, 4])}, "offset must go from 0 to the 3 interactions"),
        ({"time": np.array([2, 1, 0])}, r"row 1, of user 'a', is earlier .* sort by \(user, time\)"),
        ({"titles": ["", "x"]}, "2 titles for 5 item ids"),
    ],
)
def test_a_wrong_store_names_row_and_user(change: dict[str, Any], message: str) -> None:
    right = {
        "item": np.array([1, 2, 3], np.int32), "offset": np.array([0, 2, 3]), "time": np.array([1, 2, 0]),
        "item_ids": [PAD, *"wxyz"], "user_ids": ["a", "b"],
    }  # fmt: skip
    SequenceStore(**right)
    with pytest.raises(ValueError, match=message):
        SequenceStore(**right | change)


def test_online_retail_has_its_published_numbers(test_data: Path) -> None:
    data = SequentialRecommendation(RecBoleFiles(str(test_data / "online-retail")), max_length=50)
    data.setup("fit")
    found = data.statistics()
    assert (found["users"], found["items"], found["interactions"]) == (4_035, 3_457, 271_966)
    assert found["training samples"] == 271_966 - 3 * 4_035
    assert (round(found["mean length"], 1), round(found["density %"], 1)) == (67.4, 1.9)
    assert found["repeated pairs"] == 0
    lines = (test_data / "online-retail" / "Online_Retail.txt").read_text().splitlines()
    index = [line.split("\t") for line in (test_data / "online-retail" / "item_ids.tsv").read_text().splitlines()[1:]]
    by_line = {int(line.split()[0]): line.split()[1:] for line in lines}
    code = {number: stock for number, stock, _ in index}
    store = data.store
    for user in (0, 17, 4_034):
        mine = [store.item_ids[i] for i in store.item[store.offset[user] : store.offset[user + 1]]]
        assert mine == [code[number] for number in by_line[user + 1]]
    assert data.titles[1:] == [title for _, _, title in index]
