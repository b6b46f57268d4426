"""Bundles give back what was written, and the shipped one is Online Retail II as its atomic files have it."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.sequence_bundle import read_bundle, write_bundle
from datamodules.sequence_sets import OnlineRetail
from datamodules.sequence_store import PAD, SequenceStore
from datamodules.sequences import SequentialRecommendation
from datamodules.sources import bundled

STORE = SequenceStore(
    item=np.array([2, 1, 3, 3], np.int32),
    offset=np.array([0, 3, 4]),
    time=np.array([1_259_000_000, 1_259_000_000, 1_291_000_000, 5]),
    item_ids=[PAD, "10002", "84029g", "é"],
    user_ids=["007", "b"],
    titles=["", "GLOBE", "HEART, RED", "CAFÉ"],
)


def assert_equal(found: SequenceStore, wanted: SequenceStore) -> None:
    for name in ("item", "offset", "time"):
        one, other = getattr(found, name), getattr(wanted, name)
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    for name in ("item_ids", "user_ids", "titles"):
        assert list(getattr(found, name)) == list(getattr(wanted, name))


def test_a_bundle_gives_the_store_back(tmp_path: Path) -> None:
    write_bundle(STORE, tmp_path / "toy.npz")
    assert_equal(read_bundle(tmp_path / "toy.npz"), STORE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"titles": None}, "a bundle needs titles and whole-number times"),
        ({"time": None}, "a bundle needs titles and whole-number times"),
        ({"time": np.array([0.5, 1, 2, 0])}, "a bundle needs titles and whole-number times"),
        ({"time": np.array([0, 1, 2**32, 0])}, "step goes from -4294967296 to 4294967295, beyond int32"),
    ],
)
def test_what_does_not_fit_is_not_written(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_bundle(replace(STORE, **change), tmp_path / "toy.npz")
    assert not (tmp_path / "toy.npz").exists()


def test_another_file_is_no_bundle(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", item=np.zeros(3))
    with pytest.raises(ValueError, match=r"other.npz has no array 'length': it was not written by write_bundle"):
        read_bundle(tmp_path / "other.npz")


def test_the_bundled_retail_set_has_its_numbers() -> None:
    data = SequentialRecommendation(OnlineRetail(), max_length=50)
    found, store = data.statistics(), data.store
    assert (found["users"], found["items"], found["interactions"]) == (4_035, 3_457, 271_966)
    assert (round(found["mean length"], 1), found["repeated pairs"]) == (67.4, 0)
    assert (store.length.min(), np.bincount(store.item)[1:].min()) == (5, 5)  # the 5-core
    first, last = (datetime.fromtimestamp(int(second), UTC) for second in (store.time.min(), store.time.max()))
    assert (f"{first:%Y-%m-%d %H:%M}", f"{last:%Y-%m-%d %H:%M}") == ("2009-12-01 07:45", "2010-12-09 20:01")
    assert store.titles is not None
    assert store.titles[store.item_ids.index("85123A")] == "WHITE HANGING HEART T-LIGHT HOLDER"
    assert bundled("online_retail.npz").stat().st_size < 1_500_000


def test_the_bundle_equals_the_atomic_files(test_data: Path) -> None:
    assert OnlineRetail().name == OnlineRetail(str(test_data / "online-retail")).name == "online-retail"
    assert_equal(OnlineRetail().load(), OnlineRetail(str(test_data / "online-retail")).load())
