"""Semantic tables: their rows, what is cached under what, and the errors of wrong ones."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules import semantics as module
from datamodules.semantics import Semantics, TextEncoder, stored
from datamodules.sequence_store import PAD, Prefixes, SequenceStore

LENGTHS = (25, 4, 3, 6, 8)


class Letters(TextEncoder):
    """A text's vector counts its letters; it also counts how many texts it was asked for."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += len(texts)
        return np.array([[text.count(letter) for letter in "abcdefghij"] for text in texts], np.float32)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def store() -> SequenceStore:
    rng = np.random.default_rng(0)
    offset = np.concatenate([[0], np.cumsum(LENGTHS)])
    titles = ["", *("".join(rng.choice(list("abcdefghij"), 8)) for _ in range(12))]
    item = rng.integers(1, 13, offset[-1]).astype(np.int32)
    return SequenceStore(item, offset, None, [PAD, *(f"i{v}" for v in range(1, 13))], list("pqrst"), titles)


def pool_of(store: SequenceStore, held: int = 2, max_length: int = 20) -> Prefixes:
    """The prefixes that are trained on when the last ``held`` items of a user are held out."""
    return Prefixes(store.offset, np.maximum(store.length - held - 1, 0), max_length)


def test_tables_agree_with_plain_loops(store: SequenceStore, caplog: pytest.LogCaptureFixture) -> None:
    pool = pool_of(store)
    with caplog.at_level(logging.INFO, "lightning.pytorch"):
        tables = Semantics(Letters(), k=3).tables(store, pool)
    assert f"{100 * tables.same_user:.1f}% of the prefixes' neighbours are of the same user" in caplog.text
    assert {record.name for record in caplog.records} == {"lightning.pytorch.utilities.rank_zero"}  # which is shown
    items = np.concatenate([np.zeros((1, 10)), Letters()(store.titles[1:])])  # type: ignore[index]
    assert np.array_equal(tables.item_embedding, items)
    expected = []
    for begin, length in zip(store.offset, LENGTHS, strict=False):
        for n in range(1, length - 2):
            expected.append(items[store.item[begin : begin + n][-20:]].mean(0))
    assert tables.pool_embedding.shape == (22 + 1 + 0 + 3 + 5, 10)
    np.testing.assert_allclose(tables.pool_embedding, expected, rtol=1e-6)
    unit = items[1:] / np.linalg.norm(items[1:], axis=1, keepdims=True)
    score = np.round(unit @ unit.T - 2 * np.eye(12), 6)
    assert np.array_equal(tables.item_neighbors[1:], np.argsort(-score, axis=1, kind="stable")[:, :3] + 1)
    assert tables.item_neighbors[0].tolist() == [0, 0, 0]
    assert tables.item_neighbors[1:].min() >= 1
    user = np.repeat(np.arange(5), np.maximum(np.array(LENGTHS) - 3, 0))
    mine = user[tables.pool_neighbors] == user[:, None]
    assert tables.same_user == pytest.approx(mine.mean())
    assert tables.same_user > 0.3
    assert not (tables.pool_neighbors == np.arange(len(pool))[:, None]).any()


def test_a_user_of_25_items_has_22_or_24_rows(store: SequenceStore) -> None:
    for held, rows in ((2, 22), (0, 24)):
        pool = pool_of(store, held)
        tables = Semantics(Letters(), k=3).tables(store, pool)
        assert (pool.user(np.arange(len(tables.pool_embedding))) == 0).sum() == rows


def test_no_neighbour_is_of_the_same_user_on_request(store: SequenceStore) -> None:
    pool = pool_of(store)
    tables = Semantics(Letters(), k=4, exclude_same_user=True).tables(store, pool)
    user = pool.user(np.arange(len(pool)))
    assert tables.same_user == 0
    assert not (user[tables.pool_neighbors] == user[:, None]).any()
    with pytest.raises(ValueError, match="neighbours of prefixes: k=10 neighbours, but row 0 has 9 candidates"):
        Semantics(Letters(), k=10, exclude_same_user=True).tables(store, pool)


def test_random_neighbours_keep_the_embeddings(store: SequenceStore) -> None:
    pool = pool_of(store)
    semantic, first, again, other = (
        Semantics(Letters(), k=3, neighbors=kind, seed=seed).tables(store, pool)  # type: ignore[arg-type]
        for kind, seed in (("semantic", 0), ("random", 0), ("random", 0), ("random", 1))
    )
    assert np.array_equal(first.pool_embedding, semantic.pool_embedding)
    for name in ("item_neighbors", "pool_neighbors"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
        assert not np.array_equal(getattr(first, name), getattr(other, name))
        assert not np.array_equal(getattr(first, name), getattr(semantic, name))
    assert first.item_neighbors[1:].min() >= 1
    assert not (first.item_neighbors[1:] == np.arange(1, 13)[:, None]).any()


def test_the_second_time_all_is_read_and_a_change_is_noticed(
    store: SequenceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    search = module.nearest

    def counted(rows: np.ndarray, *args: Any, **more: Any) -> np.ndarray:
        calls.append(len(rows))
        return search(rows, *args, **more)

    monkeypatch.setattr(module, "nearest", counted)
    pool = pool_of(store)
    first = Semantics(Letters(), k=3).tables(store, pool)
    second = Semantics(Letters(), k=3).tables(store, pool)
    assert calls == [12, 31]
    assert np.array_equal(first.pool_neighbors, second.pool_neighbors)
    assert isinstance(second.pool_neighbors, np.memmap)
    Semantics(Letters(), k=3).tables(store, pool_of(store, 0))  # another pool of the same items
    assert calls[2:] == [41]
    Semantics(Letters(), k=3).tables(store, pool_of(store, max_length=2))
    assert calls[3:] == [31]
    Semantics(Letters(), k=2).tables(store, pool)
    assert calls[4:] == [12, 31]
    Semantics(Letters(), k=2, template="a {title}").tables(store, pool)
    assert calls[6:] == [12, 31]


def test_answers_of_a_language_model_take_the_place_of_titles_and_means(store: SequenceStore, tmp_path: Path) -> None:
    pool = pool_of(store)
    ids = [f"{u}/{n}" for u, length in zip("pqrst", LENGTHS, strict=True) for n in range(1, length - 2)]
    for name, asked in (("items", store.item_ids[1:]), ("prefixes", ids)):
        rows = ({"id": id, "text": "abcdefghij"[: 1 + i % 10]} for i, id in enumerate(asked))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = str(tmp_path / "items.jsonl"), str(tmp_path / "prefixes.jsonl")
    encoder = Letters()
    tables = Semantics(encoder, *files, k=2).tables(store, pool)
    assert encoder.asked == 12 + 31
    assert tables.pool_embedding.sum(1).tolist() == [1 + i % 10 for i in range(31)]
    assert tables.item_neighbors[1].tolist() == [11, 2]  # item 11 has the same text
    with pytest.raises(ValueError, match=r"leaves 10 of 41 prompts.*p/23, p/24, q/2, q/3, r/1, \.\.\."):
        Semantics(encoder, *files, k=2).tables(store, pool_of(store, 0))


def test_tables_of_files_are_taken_by_row_or_by_id(store: SequenceStore, tmp_path: Path) -> None:
    vectors = np.random.default_rng(1).normal(size=(13, 4)).astype(np.float16)
    file = tmp_path / "items.npy"
    np.save(file, vectors)
    by_row = Semantics(items=str(file), k=2).item_embedding(store)
    assert by_row.dtype == np.float32
    assert np.array_equal(by_row[1:], vectors[1:].astype(np.float32))
    assert not by_row[0].any()  # whatever the file's row 0 holds
    (tmp_path / "items.ids").write_text("".join(f"i{v}\n" for v in range(13, 0, -1)))
    by_id = Semantics(items=str(file), k=2).item_embedding(store)
    assert np.array_equal(by_id[1:], vectors[:0:-1].astype(np.float32))


@pytest.mark.parametrize("rows", [12, 14])
def test_a_wrong_number_of_rows_is_named(rows: int, store: SequenceStore, tmp_path: Path) -> None:
    file = tmp_path / "items.npy"
    np.save(file, np.ones((rows, 4), np.float32))
    with pytest.raises(ValueError, match=f"has {rows} rows, expected 13: 12 items and 1 for padding"):
        Semantics(items=str(file), k=2).tables(store, pool_of(store))
    np.save(file, np.random.default_rng(0).normal(size=(13, 4)))
    np.save(tmp_path / "prefixes.npy", np.ones((30, 4), np.float32))
    with pytest.raises(ValueError, match="has 30 rows, expected 31: 31 prefixes"):
        Semantics(items=str(file), prefixes=str(tmp_path / "prefixes.npy"), k=2).tables(store, pool_of(store))


def test_zero_and_nan_rows_are_listed_by_id(tmp_path: Path) -> None:
    vectors = np.ones((9, 3), np.float32)
    vectors[1], vectors[4, 2], vectors[6, 0] = 0, np.nan, np.inf
    np.save(tmp_path / "x.npy", vectors)
    with pytest.raises(ValueError, match=r"3 of 9 rows are zero or not finite.*first ids are b, e, g"):
        stored(tmp_path / "x.npy", list("abcdefghi"))
    (tmp_path / "x.ids").write_text("\n".join("abcdefghi"))
    assert len(stored(tmp_path / "x.npy", ["i", "a"])) == 2  # the bad rows are not asked for
    with pytest.raises(ValueError, match="no row for 2 of 3 ids, the first are y, z"):
        stored(tmp_path / "x.npy", ["a", "y", "z"])
    (tmp_path / "x.ids").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"9 rows, but .* has 2 different ids"):
        stored(tmp_path / "x.npy", ["a"])
    with pytest.raises(FileNotFoundError, match="semantics embed"):
        stored(tmp_path / "y.npy", ["a"])


def test_widths_of_items_and_prefixes_must_agree(store: SequenceStore, tmp_path: Path) -> None:
    for name, shape in (("i", (13, 4)), ("p", (31, 5))):
        np.save(tmp_path / f"{name}.npy", np.ones(shape, np.float32))
    with pytest.raises(ValueError, match="prefixes have 5 dimensions, those of items 4"):
        Semantics(items=str(tmp_path / "i.npy"), prefixes=str(tmp_path / "p.npy"), k=2).tables(store, pool_of(store))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "encoder is needed"),
        ({"items": "x.jsonl"}, "encoder is needed"),
        ({"items": "x.npy", "prefixes": "x.jsonl"}, "encoder is needed"),
        ({"items": "x.txt"}, r"items='x.txt': must be a .jsonl"),
        ({"items": "x.npy", "k": 0}, "k=0"),
    ],
)
def test_arguments_that_do_not_go_together(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Semantics(**given)
