import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.retrieval_sets import BeirFolder, BoolQ, MsMarco, TevatronLines
from datamodules.retrieval_topics import TopicWords


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


def lines(path: Path, *rows: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def beir(root: Path, *judged: str) -> Path:
    lines(root / "corpus.jsonl", *({"_id": f"d{n}", "title": "", "text": f"text {n}"} for n in range(4)))
    lines(root / "queries.jsonl", *({"_id": f"q{n}", "text": f"query {n}"} for n in range(4)))
    lines(root / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore", *judged)
    return root


def test_a_beir_folder_keeps_the_order_of_its_judgements(tmp_path: Path) -> None:
    data = BeirFolder(str(beir(tmp_path, "q2\td0\t1", "q0\td3\t2", "q2\td1\t0"))).load()
    assert data.queries["test"].ids == ["q2", "q0"]
    assert data.queries["test"].text == ["query 2", "query 0"]
    assert data.qrels == {"test": {"q2": {"d0": 1, "d1": 0}, "q0": {"d3": 2}}}
    with pytest.raises(ValueError, match="no split 'train'; qrels has test"):
        BeirFolder(str(tmp_path), splits=["train"]).load()
    with pytest.raises(FileNotFoundError, match=r"BeirFolder\.root"):
        BeirFolder(str(tmp_path / "none")).load()


def test_judgements_of_what_is_not_there_are_counted(tmp_path: Path) -> None:
    root = str(beir(tmp_path, "q2\td0\t1", "q9\td3\t1", "q1\td7\t1", "q0\td1\t1"))
    with pytest.raises(ValueError, match="2 of 4, such as query 'q9' with document 'd3'"):
        BeirFolder(root, max_missing=0.49).load()
    with pytest.warns(UserWarning, match="2 of 4"):
        data = BeirFolder(root, max_missing=0.5).load()
    assert data.queries["test"].ids == ["q2", "q1", "q0"]
    assert len(data.qrels["test"]) == 4  # a judged query without a text still counts in the metrics
    with pytest.raises(ValueError, match="of another kind"):
        BeirFolder(str(beir(tmp_path, "2\t0\t1"))).load()


def test_tevatron_and_ms_marco_evaluate_on_their_splits(tmp_path: Path) -> None:
    train = {"query_id": 1, "query": "a", "positive_passages": [{"docid": "d0", "text": "x"}], "negative_passages": []}
    corpus = lines(tmp_path / "c.jsonl", {"docid": "d0", "document_text": "x"}, {"docid": "d1", "document_text": "y"})
    queries = lines(tmp_path / "q.jsonl", {"query_id": "1", "query": "why"}, {"query_id": "2", "query": "how"})
    qrels = lines(tmp_path / "qrels.txt", "2 0 d1 1")
    data = TevatronLines(lines(tmp_path / "t.jsonl", train), corpus, {"dev": queries}, {"dev": qrels}).load()
    assert data.queries["dev"].text == ["how"]
    assert data.examples is not None
    assert data.examples[0].positive[0].row == 0
    with pytest.raises(ValueError, match="give both of each"):
        TevatronLines("t.jsonl", corpus, {"dev": queries})

    lines(tmp_path / "collection.tsv", "0\tzero", "1\tone", "2\ttwo")
    for split in ("train", "dev.small"):
        lines(tmp_path / f"queries.{split}.tsv", "10\tten", "11\televen")
        lines(tmp_path / f"qrels.{split}.tsv", "11 0 2 1")
    lines(tmp_path / "triples.tsv", "10\t1\t0", "10\t1\t2")
    data = MsMarco(str(tmp_path), triples="triples.tsv").load()
    assert data.qrels["dev.small"] == {"11": {"2": 1}}
    assert data.examples is not None
    assert data.examples[0] == ("10", "ten", [(1, None)], [(0, None), (2, None)])
    lines(tmp_path / "collection.tsv", "0\tzero", "1\t", "2\ttwo")
    with pytest.raises(ValueError, match="'1'; correct them, or leave them out by empty: skip"):
        MsMarco(str(tmp_path)).load()
    with pytest.warns(UserWarning, match="left out"):
        assert list(MsMarco(str(tmp_path), empty="skip").load().corpus.ids) == ["0", "2"]


def test_vaswani_and_pubmedqa_are_read_whole(test_data: Path) -> None:
    data = BeirFolder(str(test_data / "vaswani")).load()
    assert (len(data.corpus), len(data.queries["test"])) == (11429, 93)
    assert sum(map(len, data.qrels["test"].values())) == 2083
    data = BeirFolder(str(test_data / "pubmedqa-retrieval")).load()
    assert {split: len(queries) for split, queries in data.queries.items()} == {"test": 500, "train": 500}


@pytest.mark.network
def test_boolq_equals_the_folder(test_data: Path) -> None:
    made, folder = BoolQ().load(), BeirFolder(str(test_data / "boolq-retrieval")).load()
    assert list(made.corpus.ids) == list(folder.corpus.ids)
    assert made.corpus.documents(range(12271)) == folder.corpus.documents(range(12271))
    for split, queries in folder.queries.items():
        assert made.queries[split] == queries
        assert made.qrels[split] == folder.qrels[split]
    assert len(made.queries["test_unseen"]) == 3245 - 920


def test_topic_words_have_the_shares_asked_for() -> None:
    data = TopicWords(documents=600, topics=30, queries=(2000, 50, 50)).load()
    words = [document["text"].split() for document in data.corpus.documents(range(600))]
    length = np.array(list(map(len, words)))
    assert (length.min(), length.max()) == (40, 60)
    every = [word for document in words for word in document]
    background = np.mean([word[0] == "b" for word in every])
    assert background == pytest.approx(0.5, abs=3 * 0.5 / len(every) ** 0.5)
    assert not any(word[0] == "s" for word in every)
    # The most frequent of 480 background words has 1 / H(480) of them, H the harmonic number.
    common = np.mean([word == "b0" for word in every if word[0] == "b"])
    assert common == pytest.approx(1 / sum(1 / rank for rank in range(1, 481)), abs=0.01)

    train = data.queries["train"]
    asked = [text.split() for text in train.text]
    assert {len(query) for query in asked} == {3, 4, 5}
    flat = [word for query in asked for word in query]
    assert np.mean([word[0] == "s" for word in flat]) == pytest.approx(0.2, abs=3 * (0.16 / len(flat)) ** 0.5)
    for id, query in zip(train.ids, asked, strict=True):
        (relevant,) = data.qrels["train"][id]
        assert {word.replace("s", "t") for word in query} <= set(words[data.corpus.rows([relevant])[0]])


def test_negatives_share_a_topic_with_their_query() -> None:
    data = TopicWords(documents=300, topics=10, queries=(100, 1, 1), topical=300).load()
    topical = [
        {word for word in document["text"].split() if word[0] == "t"} for document in data.corpus.documents(range(300))
    ]
    assert data.examples is not None
    overlap: dict[bool, list[int]] = {True: [], False: []}
    for index in range(100):
        found = data.examples[index]
        (relevant,), negative = [passage.row for passage in found.positive], {passage.row for passage in found.negative}
        assert relevant not in negative
        for row in range(300):
            if row != relevant:
                overlap[row in negative].append(len(topical[relevant] & topical[row]))
    assert len(overlap[True]) == pytest.approx(100 * 29, rel=0.2)
    # A topic of 30 of 300 words shares 3 words on average with another; documents have about 13 of their 30.
    assert np.mean(overlap[True]) > 5 * np.mean(overlap[False])


def test_topic_words_follow_their_seed_and_check_their_numbers() -> None:
    made = [TopicWords(documents=5, topics=2, queries=(3, 1, 1), seed=seed).load() for seed in (1, 1, 2)]
    texts = [[data.corpus[row]["text"] for row in range(5)] + list(data.queries["train"].text) for data in made]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    for wrong in ({"length": (5, 3)}, {"synonym_share": 1.5}, {"topic_words": 800}, {"topics_per_document": 300}):
        with pytest.raises(ValueError, match=f"TopicWords.*{next(iter(wrong))}"):
            TopicWords(**wrong)  # type: ignore[arg-type]
