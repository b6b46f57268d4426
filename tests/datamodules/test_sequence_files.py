import gzip
import hashlib
import json
import logging
import os
import zipfile
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules import sequence_sets
from datamodules.interactions import moment
from datamodules.sequence_files import PairLines, RecBoleFiles, Table
from datamodules.sequence_sets import Amazon2014, MovieLens1M, MovieLens100k, OnlineRetail, Yelp2019
from datamodules.sequence_store import PAD, SequenceSet, SequenceStore
from datamodules.sources import cache_dir

HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
# user b is first in the file; c and x share time 7 of user a; (a, y, 9) comes twice
INTER = HEADER + "b\tx\t1\t5\na\ty\t3\t9\na\tc\t3\t7\na\tx\t1\t7\na\ty\t2\t9\nb\ty\t1\t4\na\ty\t2\t10\n"
ITEMS = "item_id:token\tmovie_title:token_seq\tclass:token_seq\ny\tYes Man\tA B\nunused\tNo\tA\nx\tX-Men\tB\nc\t\tC\n"


def recbole(folder: Path, inter: str = INTER, items: str | None = ITEMS, **options: Any) -> RecBoleFiles:
    (folder / "toy.inter").write_text(inter, encoding="utf-8")
    if items is not None:
        (folder / "toy.item").write_text(items, encoding="utf-8")
    return RecBoleFiles(str(folder), "toy", **options)


def named(store: SequenceStore) -> dict[str, list[str]]:
    """The original ids of each user's items."""
    ends = store.offset
    return {
        user: [store.item_ids[i] for i in store.item[ends[u] : ends[u + 1]]] for u, user in enumerate(store.user_ids)
    }


def test_atomic_files_are_sorted_stably_without_repeats(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        store = recbole(tmp_path).load()
    assert named(store) == {"b": ["y", "x"], "a": ["c", "x", "y", "y"]}
    assert store.time is not None
    assert store.time.tolist() == [4, 5, 7, 7, 9, 10]
    assert (store.time.dtype, store.item.dtype, store.offset.dtype) == (np.int64, np.int32, np.int64)
    assert store.item_ids == [PAD, "y", "x", "c"]  # in the item file's order, without the unused one
    assert store.titles == ["", "Yes Man", "X-Men", "c"]
    assert "1 repeats of a (user, item, time) are dropped" in caplog.text


def test_atomic_files_without_items_or_times(tmp_path: Path) -> None:
    store = recbole(tmp_path, items=None).load()
    assert (store.item_ids, store.titles) == ([PAD, "x", "y", "c"], None)
    untimed = recbole(tmp_path, "u:token\ti:token\n1\tp\n2\tp\n1\tp\n", None, user="u", item="i", time=None).load()
    assert named(untimed) == {"1": ["p", "p"], "2": ["p"]}
    assert untimed.time is None
    parts = recbole(tmp_path, HEADER + "1\tp\t1\t0.75\n1\tq\t1\t0.25\n", None).load()
    assert parts.time is not None
    assert parts.time.tolist() == [0.25, 0.75]


def test_titles_are_of_the_column_asked_for(tmp_path: Path) -> None:
    assert recbole(tmp_path, title="class").load().titles == ["", "A B", "B", "C"]
    short = "item_id:token\tname:token_seq\ny\tYes\n"
    with pytest.warns(UserWarning, match="2 items have no title"):
        store = recbole(tmp_path, items=short).load()
    assert store.titles == ["", "Yes", "x", "c"]


@pytest.mark.parametrize(
    ("inter", "items", "message"),
    [
        ("user_id\titem_id\ttimestamp\n1\t2\t3\n", None, "toy.inter, line 1: expected a header of field:type"),
        ("1\t2\t3\t4\n", None, "toy.inter, line 1: expected a header"),
        ("user_id:token\titem_id:token\n1\t2\n", None, "toy.inter: no column 'timestamp'; there are user_id, item_id"),
        (HEADER + "1\t2\t3\t4\n1\t2\t3\n", None, "toy.inter, line 3: 3 columns, the header has 4"),
        (HEADER + "1\t2\t3\tsoon\n", None, "toy.inter, line 2: time 'soon' is neither a number nor an ISO date"),
        (HEADER + "1\t2\t3\tnan\n", None, "toy.inter, line 2: time 'nan' is not finite"),
        (HEADER + "1\t2\t3\t4\n\t2\t3\t4\n", None, "toy.inter, line 3: empty user_id"),
        (HEADER, None, "toy.inter holds no interactions"),
        (INTER, "item_id:token\ttitle:token_seq\ny\tA\nx\tB\ny\tC\n", "toy.item, line 4: item 'y' has come before"),
        (INTER, "id:token\ttitle:token_seq\n", "toy.item: no column 'item_id'"),
    ],
)
def test_bad_atomic_files_name_file_and_line(tmp_path: Path, inter: str, items: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recbole(tmp_path, inter, items).load()


def test_bytes_that_are_no_text_name_their_line(tmp_path: Path) -> None:
    data = recbole(tmp_path, items=None)
    (tmp_path / "toy.inter").write_bytes(HEADER.encode() + b"1\t\xff\t3\t4\n")
    with pytest.raises(ValueError, match=r"toy.inter, line 2: not utf-8 text"):
        data.load()
    with pytest.raises(FileNotFoundError, match=r"none\.inter does not exist"):
        RecBoleFiles(str(tmp_path), "none").load()


def lines(folder: Path, text: str) -> PairLines:
    (folder / "Beauty.txt").write_text(text)
    return PairLines(str(folder / "Beauty.txt"))


def test_pair_lines_and_whole_lines_say_the_same(tmp_path: Path) -> None:
    pairs = lines(tmp_path, "1 3\n1 1\n1 3\n2 2\n").load()
    whole = lines(tmp_path, "1 3 1 3\n\n2 2\n").load()
    for store in (pairs, whole):
        assert (store.item.tolist(), store.offset.tolist()) == ([3, 1, 3, 2], [0, 3, 4])  # numbers are kept
        assert (store.item_ids, store.user_ids) == ([PAD, "1", "2", "3"], ["1", "2"])
    gaps = lines(tmp_path, "7 30 10\n7 30\n").load()
    assert (gaps.item.tolist(), gaps.item_ids) == ([1, 2, 1], [PAD, "30", "10"])
    assert lines(tmp_path, "\ufeffann a\nann b\n").load().user_ids == ["ann"]  # a mark that some editors write first


def test_pair_lines_take_no_memory_for_words(tmp_path: Path) -> None:
    import tracemalloc

    text = "".join(f"{user} {' '.join(str(1 + (user + i) % 50) for i in range(100))}\n" for user in range(300))
    data = lines(tmp_path, text)
    tracemalloc.start()
    data.load()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak / 30_000 < 60  # bytes an interaction; a string alone takes 50 and its place in a list 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3\n2\n", "Beauty.txt, line 2: user '2' without items"),
        ("1 2\n2 0\n", "Beauty.txt, line 2: item 0: number items from 1"),
        ("1 -4\n", "Beauty.txt, line 1: item -4"),
        ("", "holds no interactions"),
    ],
)
def test_bad_pair_lines_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lines(tmp_path, text).load()


def test_tables_have_named_columns_and_iso_dates(tmp_path: Path) -> None:
    text = '"when","who","what","name"\n2020-01-02,a,p,"Pie, large"\n2020-01-01T12:00:00,a,q,Quiche\n2020-01-03,b,p,\n'
    for suffix in (".csv", ".tsv"):
        file = tmp_path / f"t{suffix}"
        file.write_text(text.replace(", large", "; large").replace(",", "\t") if suffix == ".tsv" else text)
        store = Table(str(file), user="who", item="what", time="when", title="name").load()
        assert named(store) == {"a": ["q", "p"], "b": ["p"]}
        assert store.time is not None
        assert store.time.tolist() == [1_577_880_000, 1_577_923_200, 1_578_009_600]
        assert store.titles == ["", "Pie; large" if suffix == ".tsv" else "Pie, large", "Quiche"]


def test_days_are_times() -> None:
    assert moment(date(2020, 1, 2), "row 1") == 1_577_923_200  # as parquet gives them
    with pytest.raises(ValueError, match="row 1: time None is neither"):
        moment(None, "row 1")


def test_parquet_tables_keep_types(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: parquet files are not read")
    parquet = pytest.importorskip("pyarrow.parquet")
    from datetime import datetime

    file = tmp_path / "t.parquet"
    when = [datetime(2020, 1, 2), datetime(2020, 1, 1), datetime(2020, 1, 3)]
    parquet.write_table(pyarrow.table({"user": [1, 1, 2], "item": ["p", "q", "p"], "when": when}), file)
    store = Table(str(file), "user", "item", "when").load()
    assert named(store) == {"1": ["q", "p"], "2": ["p"]}
    assert store.time is not None
    assert store.time.tolist() == [1_577_836_800, 1_577_923_200, 1_578_009_600]
    with pytest.raises(ValueError, match="no column 'time'; there are user, item, when"):
        Table(str(file), "user", "item", "time").load()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user,item\n1,2\n", "t.csv: no column 'time'; there are user, item"),
        ("user,item,time\n1,2,3\n1,2\n", "t.csv, line 3: 2 columns, the header has 3"),
        ("user,item,time\n1,,3\n", "t.csv, line 2: empty item"),
        ("user,item,time\n1,2,\n", "t.csv, line 2: time '' is neither"),
        ("", "t.csv: no column 'user'; there are none"),
    ],
)
def test_bad_tables_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        Table(str(tmp_path / "t.csv"), "user", "item", "time").load()
    with pytest.raises(ValueError, match=r"must end in .csv, .tsv or .parquet"):
        Table("t.json", "user", "item")


def test_movielens_of_both_archives_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    names = {"100k": ("u.data", "u.item", "\t", "|"), "1m": ("ratings.dat", "movies.dat", "::", "::")}
    for size, (ratings, films, cut, film_cut) in names.items():
        with zipfile.ZipFile(tmp_path / f"ml-{size}.zip", "w") as archive:
            rows = [("5", "20", "3", "8"), ("5", "10", "1", "7"), ("6", "10", "4", "9")]
            archive.writestr(f"ml-{size}/{ratings}", "\n".join(map(cut.join, rows)))
            text = f"10{film_cut}Caf\xe9 (1990){film_cut}\n20{film_cut}B"
            archive.writestr(f"ml-{size}/{films}", text.encode("latin-1"))
    monkeypatch.setattr(sequence_sets, "download", lambda url, digest: tmp_path / Path(url).name)
    for data in (MovieLens100k("archive"), MovieLens1M()):
        store = data.load()
        assert named(store) == {"5": ["10", "20"], "6": ["10"]}
        assert store.titles == ["", "Caf\xe9 (1990)", "B"]


def test_movielens_comes_out_of_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    wheel = tmp_path / "recbole-1.2.1-py3-none-any.whl"
    members = {"inter": INTER, "item": ITEMS}
    with zipfile.ZipFile(wheel, "w") as archive:
        for part, text in members.items():
            archive.writestr(f"recbole/dataset_example/ml-100k/ml-100k.{part}", text)
    monkeypatch.setattr(sequence_sets, "RECBOLE", wheel.as_uri())
    monkeypatch.setattr(sequence_sets, "RECBOLE_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    with pytest.raises(ValueError, match=r"ml-100k.inter of .*expected 4edb74e2"):
        MovieLens100k().load()
    for part, text in members.items():
        digest = hashlib.sha256(text.encode()).hexdigest()
        monkeypatch.setitem(sequence_sets.ML_100K, part, digest)
    assert named(MovieLens100k().load())["a"] == ["c", "x", "y", "y"]


def test_the_published_movielens_has_its_numbers() -> None:
    if not (cache_dir() / "downloads" / sequence_sets.RECBOLE_SHA256[:16]).is_dir():
        pytest.skip("the wheel of recbole 1.2.1 is not in the cache: MovieLens-100k is not read")
    store = MovieLens100k().load()
    assert (len(store.user_ids), store.num_items, len(store.item)) == (943, 1_682, 100_000)
    assert (store.length.min(), store.length.max()) == (20, 737)
    assert store.titles is not None
    assert store.titles[store.item_ids.index("50")] == "Star Wars"


def test_amazon_reads_reviews_and_the_titles_of_their_products(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"reviews_Beauty_5.json.gz does not exist; get it from https"):
        Amazon2014(str(tmp_path)).load()
    rows = [("A1", "B2", 86400), ("A1", "B1", 0), ("A1", "B2", 86400), ("A2", "B1", 0)]
    text = "\n".join(json.dumps(dict(zip(("reviewerID", "asin", "unixReviewTime"), r, strict=True))) for r in rows)
    (tmp_path / "reviews_Beauty_5.json.gz").write_bytes(gzip.compress(text.encode()))
    store = Amazon2014(str(tmp_path)).load()
    assert (named(store), store.titles) == ({"A1": ["B1", "B2"], "A2": ["B1"]}, None)
    meta = "{'asin': 'B1', 'title': \"Mom's\"}\n{'asin': 'B9', broken\n{'title': 'Two', 'asin': 'B2'}\n"
    (tmp_path / "meta_Beauty.json.gz").write_bytes(gzip.compress(meta.encode()))
    assert Amazon2014(str(tmp_path)).load().titles == ["", "Two", "Mom's"]
    (tmp_path / "meta_Beauty.json.gz").write_bytes(gzip.compress(b"{'asin': 'B1', 'title': open('x')}\n"))
    with pytest.raises(ValueError, match=r"meta_Beauty.json.gz, line 1: not a product"):
        Amazon2014(str(tmp_path)).load()
    for text, message in (("{}", "1: no field 'reviewerID'"), ("{", "line 1: not JSON"), ("[]", "line 1: no field")):
        (tmp_path / "reviews_Beauty_5.json.gz").write_bytes(gzip.compress(text.encode()))
        with pytest.raises(ValueError, match=message):
            Amazon2014(str(tmp_path)).load()
    (tmp_path / "reviews_Beauty_5.json.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="not a whole gzip file"):
        Amazon2014(str(tmp_path)).load()


def test_yelp_keeps_the_reviews_of_the_year(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"yelp_academic_dataset_review\.json does not exist"):
        Yelp2019(str(tmp_path)).load()
    dates = ["2018-12-31 23:59:59", "2019-12-31 23:59:59", "2019-01-01 00:00:00", "2020-01-01 00:00:00"]
    rows = [{"user_id": "u", "business_id": f"b{i}", "date": date} for i, date in enumerate(dates)]
    (tmp_path / "yelp_academic_dataset_review.json").write_text("\n".join(map(json.dumps, rows)))
    places = [{"business_id": f"b{i}", "name": f"Place {i}"} for i in range(4)]
    (tmp_path / "yelp_academic_dataset_business.json").write_text("\n".join(map(json.dumps, places)))
    store = Yelp2019(str(tmp_path)).load()
    assert named(store) == {"u": ["b2", "b1"]}
    assert store.time is not None
    assert store.time.tolist() == [1_546_300_800, 1_577_836_799]
    assert store.titles == ["", "Place 1", "Place 2"]
    for options, message in (({"start": "2019"}, "expected YYYY-MM-DD"), ({"start": "2021-01-01"}, "must be before")):
        with pytest.raises(ValueError, match=message):
            Yelp2019(str(tmp_path), **options)


def test_online_retail_lies_in_its_folder_and_as_lines(test_data: Path) -> None:
    folder = test_data / "online-retail"
    by_time: SequenceSet = OnlineRetail(str(folder))
    lines = PairLines(str(folder / "Online_Retail.txt")).load()
    store = by_time.load()
    assert by_time.name == "online-retail"
    assert (store.offset == lines.offset).all()
    assert (store.item == lines.item).all()


def test_no_movielens_file_ships() -> None:
    root = Path(sequence_sets.__file__).parent
    assert not [name for _, _, names in os.walk(root) for name in names if name.startswith(("ml-1", "u.data"))]
