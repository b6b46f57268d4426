import gzip
import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.retrieval_examples import read_examples, triple_examples
from datamodules.retrieval_files import LineCorpus, read_qrels, read_queries, tsv_document
from datamodules.retrieval_store import ListCorpus


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


def written(path: Path, *rows: Any) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def documents(*ids: str) -> list[dict[str, str]]:
    return [{"_id": id, "title": f"title of {id}", "text": f"text of {id}"} for id in ids]


def corpus(*ids: str) -> ListCorpus:
    return ListCorpus(ids, [{"title": "", "text": f"text of {id}"} for id in ids])


def test_a_corpus_reads_any_line_and_finds_rows_by_id(tmp_path: Path) -> None:
    rows = [{"_id": 7, "text": "sieben\u2028ß"}, "", *documents("b", "a"), {"_id": "é1", "title": None, "text": "x"}]
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + written(path, *rows).read_bytes().replace(b"\n", b"\r\n"))
    found = LineCorpus(path)
    assert list(found.ids) == ["7", "b", "a", "é1"]
    assert found.ids[1:3] == ["b", "a"]
    assert found.documents([3, 0, 2]) == [
        {"title": "", "text": "x"},
        {"title": "", "text": "sieben\u2028ß"},
        {"title": "title of a", "text": "text of a"},
    ]
    # "é1x" and "aaaaaa" are longer than any id here: cutting them to the ids' width must not find "é1"
    assert found.rows(["a", "é1", "é1x", "zz", "7", "aaaaaa"]).tolist() == [2, 3, -1, -1, 0, -1]
    assert found.rows([]).tolist() == []
    assert found.sizes.tolist() == [8, 19, 19, 1]
    copy = pickle.loads(pickle.dumps(found))
    assert copy[2] == found[2]
    assert copy.rows(["é1"]).tolist() == [3]


def test_a_worker_gets_no_copy_of_what_is_on_disk(tmp_path: Path) -> None:
    size = [
        len(pickle.dumps(LineCorpus(written(tmp_path / f"{count}.jsonl", *documents(*map(str, range(count)))))))
        for count in (1, 1000)
    ]
    assert size[1] < size[0] + 10


def test_gzip_is_unpacked_and_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(documents("a")[0]).encode()))
    assert LineCorpus(path).documents([0])[0]["text"] == "text of a"
    lines = "\n".join(map(json.dumps, documents("c", "b")))
    path.write_bytes(gzip.compress(lines.encode()))
    assert list(LineCorpus(path).ids) == ["c", "b"]
    path.write_bytes(gzip.compress(lines.encode())[:-20])
    with pytest.raises(ValueError, match="not a whole gzip file"):
        LineCorpus(path)
    packed = bytearray(gzip.compress(random.Random(0).randbytes(4000) + b"text " * 1000))
    packed[-30] ^= 255  # a distance that points before the beginning
    path.write_bytes(packed)
    with pytest.raises(ValueError, match="not a whole gzip file"):
        LineCorpus(path)


def test_empty_documents_are_an_error_or_left_out(tmp_path: Path) -> None:
    first, second, third = documents("z", "b", "a")
    path = written(tmp_path / "corpus.jsonl", first, {"_id": "gone", "title": " ", "text": ""}, second, third)
    with pytest.raises(ValueError, match=r"1 documents have no text, the first 'gone'.*empty: skip"):
        LineCorpus(path)
    with pytest.warns(UserWarning, match="left out"):
        found = LineCorpus(path, empty="skip")
    assert list(found.ids) == ["z", "b", "a"]
    assert found.rows(["a", "gone", "z", "b"]).tolist() == [2, -1, 0, 1]
    assert found[2]["text"] == "text of a"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([*documents("a", "b"), *documents("a")], "1 documents have the id of another, the first 'a'"),
        ([*documents("a"), "{"], "line 2: no JSON"),
        (
            [*documents("a"), {"id": 1, "contents": "x"}],
            "line 2: expected the keys _id and text or .* there are id, con",
        ),
        ([{"_id": True, "text": "x"}], "line 1: True is no id"),
        ([{"_id": "a", "text": ["x"]}], "line 1: text is .*expected text"),
        (['{"_id": "a", "text": "x \\ud83d"}'], "line 1: text holds what is no text .*surrogates"),
        ([], "holds no lines"),
    ],
)
def test_malformed_corpora_are_named(tmp_path: Path, rows: list[Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        LineCorpus(written(tmp_path / "corpus.jsonl", *rows))


def test_queries_and_passages_of_tab_separated_files(tmp_path: Path) -> None:
    path = written(tmp_path / "collection.tsv", "10\tsome text", "2\tother text")
    assert LineCorpus(path, tsv_document)[1] == {"title": "", "text": "other text"}
    assert read_queries(written(tmp_path / "queries.tsv", "3\thow far", "1\twhy ")) == {"3": "how far", "1": "why"}
    assert read_queries(written(tmp_path / "q.jsonl", {"query_id": 5, "query_text": "who"})) == {"5": "who"}
    with pytest.raises(ValueError, match="line 2: query '3' comes a second time"):
        read_queries(written(tmp_path / "queries.tsv", "3\thow far", "3\twhy"))
    with pytest.raises(ValueError, match=r"line 1: expected id<tab>text, got another tab in '3.thow far.tis it'"):
        read_queries(written(tmp_path / "queries.tsv", "3\thow far\tis it"))
    with pytest.raises(ValueError, match="line 1: query 'q' has no text"):
        read_queries(written(tmp_path / "q.jsonl", {"_id": "q", "text": " "}))
    with pytest.raises(ValueError, match="line 1: expected id<tab>text"):
        LineCorpus(written(tmp_path / "collection.tsv", "10 some text"), tsv_document)


def test_judgements_with_and_without_header(tmp_path: Path) -> None:
    header = "query-id\tcorpus-id\tscore"
    path = tmp_path / "qrels.tsv"
    assert read_qrels(written(path, header, "q1\td 1\t2", "q1\td2\t0")) == {"q1": {"d 1": 2, "d2": 0}}
    with pytest.warns(UserWarning, match="no header"):
        assert read_qrels(written(path, "q1\td1\t1", "q2\td2\t1")) == {"q1": {"d1": 1}, "q2": {"d2": 1}}
    assert read_qrels(written(path, "19 0 d1 3", "19\t0\td2\t1")) == {"19": {"d1": 3, "d2": 1}}
    with pytest.warns(UserWarning, match="1 negative grades count as 0"):
        assert read_qrels(written(path, "19 0 d1 -2", "19 0 d2 1")) == {"19": {"d1": 0, "d2": 1}}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("q1\td1\thigh", "line 2: grade 'high' is not an integer"),
        ("q1\td1\t0.5", "line 2: grade '0.5' is not an integer"),
        ("q1 d1", "line 2: expected query, document, grade"),
        ("\td1\t1", "line 2: the id of a query or document is empty"),
        ("q1\t\t1", "line 2: the id of a query or document is empty"),
    ],
)
def test_malformed_judgements_are_named(tmp_path: Path, line: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_qrels(written(tmp_path / "qrels.tsv", "query-id\tcorpus-id\tscore", line))


def test_contradicting_judgements_are_an_error(tmp_path: Path) -> None:
    path = written(tmp_path / "qrels.tsv", "a 0 d 1", "a 0 d 1", "a 0 d 2")
    with pytest.raises(ValueError, match="line 3: query 'a' judges document 'd' a second time, differently"):
        read_qrels(path)


def passages(*ids: str) -> list[dict[str, str]]:
    return [{"docid": id, "title": f"title of {id}", "text": f"text of {id}"} for id in ids]


def example(positive: list[Any], negative: list[Any], **changed: Any) -> dict[str, Any]:
    return {"query_id": "q", "query": "ask", "positive_passages": positive, "negative_passages": negative} | changed


def test_examples_with_texts_know_their_rows(tmp_path: Path) -> None:
    first = example(passages("c"), passages("x", "a"))
    second = example([{"docid": 9, "text": "only text"}], [], query_id=2)
    path = written(tmp_path / "train.jsonl", first, second)
    found = read_examples(path, corpus("a", "b", "c"))
    assert found.count.tolist() == [[1, 2], [1, 0]]
    assert list(found.ids) == ["q", "2"]
    assert found[0].query == "ask"
    assert [passage.row for passage in (*found[0].positive, *found[0].negative)] == [2, -1, 0]
    assert found[0].negative[0].document == {"title": "title of x", "text": "text of x"}
    assert read_examples(path, None)[1].positive == [(-1, {"title": "", "text": "only text"})]


def test_examples_with_ids_are_rows(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"query_id": "q1", "query_text": "one", "positive_document_ids": ["b"], "negative_document_ids": ["c", "a"]},
        {"query_id": "q2", "query_text": "two", "positive_document_ids": ["gone"], "negative_document_ids": ["a"]},
        {"query_id": "q3", "query_text": "three", "positive_document_ids": ["a", "c"], "negative_document_ids": []},
    ]
    path = written(tmp_path / "train.jsonl", *rows)
    with pytest.raises(ValueError, match=r"1 of 7, such as 'gone' of query 'q2'.*max_missing"):
        read_examples(path, corpus("a", "b", "c"))
    with pytest.warns(UserWarning, match="1 of 7"):
        found = read_examples(path, corpus("a", "b", "c"), max_missing=0.2)
    assert list(found.ids) == ["q1", "q3"]
    assert found.count.tolist() == [[1, 2], [2, 0]]
    assert [found[0], found[1]] == [
        ("q1", "one", [(1, None)], [(2, None), (0, None)]),
        ("q3", "three", [(0, None), (2, None)], []),
    ]
    with pytest.raises(ValueError, match="give the corpus"):
        read_examples(path, None)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (example([], passages("a")), "positive_passages of query 'q' is empty"),
        (example(passages("a"), [], query=" "), "query 'q' has no text"),
        (
            example(passages("a"), [{"docid": "b", "title": "", "text": " "}]),
            "passage 'b' of negative_passages has no te",
        ),
        (example(passages("a"), [{"id": "b"}]), "negative_passages are objects with docid, title, text; got id"),
        (example(passages("a"), None), "negative_passages of query 'q' is None; expected a list"),  # type: ignore[arg-type]
        (
            {"query": "a", "pos": ["b"], "neg": ["c"]},
            "expected the keys query_id, query, positive_passages, .*query, pos, ",
        ),
    ],
)
def test_malformed_examples_are_named(tmp_path: Path, row: Any, told: str) -> None:
    path = written(tmp_path / "train.jsonl", example(passages("a"), []), row)
    with pytest.raises(ValueError, match=f"line 2.*{told}"):
        read_examples(path, None)


def test_triples_give_each_query_its_distinct_passages(tmp_path: Path) -> None:
    lines = ["8\tc\ta", "5\ta\tb", "8\tc\tb", "8\tc\ta", "8\tb\ta"]
    found = triple_examples(
        written(tmp_path / "t.tsv", *lines), corpus("a", "b", "c"), {"5": "five", "7": "", "8": "e"}
    )
    assert list(found.ids) == ["5", "8"]
    assert [[passage.row for passage in found[1].positive], [passage.row for passage in found[1].negative]] == [
        [1, 2],
        [0, 1],
    ]
    assert np.array_equal(found.count, [[1, 1], [2, 2]])
    with pytest.raises(ValueError, match="no passage 'x'"):
        triple_examples(written(tmp_path / "t.tsv", *lines, "5\tx\ta"), corpus("a", "b", "c"), {"5": "f", "8": "e"})
