"""Texts, prompts and answers: what stands in them, what is asked again, what is wrong with a file."""

import json
from pathlib import Path

import numpy as np
import pytest

from datamodules.item_prompts import STYLES, drawn_histories, item_prompts, prefix_prompts, read_prompts, write_prompts
from datamodules.item_texts import all_answers, item_texts, prefix_ids, read_answers, read_attributes, write_failures
from datamodules.sequence_store import PAD, Prefixes, SequenceStore


@pytest.fixture
def store() -> SequenceStore:
    """ann: a b c d e; bob: b a."""
    item = np.array([1, 2, 3, 4, 5, 2, 1], np.int32)
    titles = ["", "Ant", "Bee", "Cat", "Dog", ""]
    return SequenceStore(item, np.array([0, 5, 7]), None, [PAD, *"abcde"], ["ann", "bob"], titles)


def pool_of(store: SequenceStore, *count: int, max_length: int = 20) -> Prefixes:
    return Prefixes(store.offset, np.array(count), max_length)


def test_attributes_from_all_kinds_of_files(tmp_path: Path) -> None:
    expected = {"a": {"item": "a", "brand": 'X "y"', "price": "3"}, "b": {"item": "b", "brand": "", "price": "4"}}
    (tmp_path / "t.item").write_text('item:token\tbrand:token_seq\tprice:float\na\tX "y"\t3\nb\t\t4\n')
    (tmp_path / "t.csv").write_text('\ufeffitem,brand,price\na,"X ""y""",3\n\nb,,4\n\n')
    lines = [{"item": "a", "brand": 'X "y"', "price": 3}, {"item": "b", "brand": None, "price": 4}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n\n" for line in lines))
    for name in ("t.item", "t.csv", "t.jsonl"):
        assert read_attributes(tmp_path / name) == expected
    (tmp_path / "t.item").write_text("item:token\tbrand:token_seq\na\tX\nb\n")
    with pytest.raises(ValueError, match=r"t\.item, line 3: 1 fields, but the header has 2"):
        read_attributes(tmp_path / "t.item")
    (tmp_path / "t.csv").write_text("item,brand\na,X\na,Y\n")
    with pytest.raises(ValueError, match=r"t\.csv, line 3: item 'a' comes a second time"):
        read_attributes(tmp_path / "t.csv")


def test_texts_fill_a_template_and_say_what_is_missing(store: SequenceStore) -> None:
    assert item_texts(store) == ["Ant", "Bee", "Cat", "Dog", "missing"]
    attributes = {"a": {"brand": "X", "about": "0123456789"}, "b": {"brand": " ", "title": "Wasp"}}
    texts = item_texts(store, attributes, "{title} by {brand}: {about:.4}")
    assert texts[:3] == ["Ant by X: 0123", "Wasp by missing: miss", "Cat by missing: miss"]
    with pytest.raises(ValueError, match="asks for colour, but items have about, brand, title"):
        item_texts(store, attributes, "{colour}")
    with pytest.raises(ValueError, match="all 5 items the text 'thing'"):
        item_texts(store, None, "thing")


def test_prefix_prompts_hold_the_items_of_the_window_in_order(store: SequenceStore) -> None:
    pool = pool_of(store, 4, 1, max_length=3)
    assert prefix_ids(store, pool) == ["ann/1", "ann/2", "ann/3", "ann/4", "bob/1"]
    prompts = list(prefix_prompts(store, pool, STYLES["generic"], domain="animals"))
    assert [p.user for p in prompts] == ["Ant", "Ant; Bee", "Ant; Bee; Cat", "Bee; Cat; Dog", "Bee"]
    assert "expert in recommending animals" in prompts[0].system
    assert "100 words" in prompts[0].system
    place = {"categories": "Zoo", "city": "Bern", "state": "BE", "stars": "4.5"}
    attributes = {i: {"name": i.upper(), **place} for i in "abcde"}
    yelp = list(prefix_prompts(store, pool, STYLES["yelp"], attributes))
    assert yelp[1].user == "A, categories: Zoo, city: Bern, stars: 4.5\nB, categories: Zoo, city: Bern, stars: 4.5"


def test_item_prompts_show_histories_of_the_pool_only(store: SequenceStore) -> None:
    prompts = {p.id: p for p in item_prompts(store, pool_of(store, 3, 0), STYLES["generic"])}
    assert prompts["c"].user == "Cat\nHistories:\nAnt->Bee->Cat"
    assert prompts["b"].user == "Bee\nHistories:\nAnt->Bee"
    # d and e are held out, a comes in no prefix of 2 items
    assert {prompts[i].user.split("\n")[-1] for i in "ade"} == {"[None]"}
    wider = {p.id: p for p in item_prompts(store, pool_of(store, 4, 1), STYLES["generic"])}
    assert wider["d"].user.endswith("\nAnt->Bee->Cat->Dog")
    for style in STYLES.values():
        assert "50 words" in style.item_system
        assert "{" not in style.item_system.replace("{domain}", "")


def test_histories_are_drawn_without_replacement_by_seed_and_cut_to_eleven() -> None:
    users, length = 30, 21  # every user's last item is item 1
    item = np.tile(np.r_[np.arange(2, length + 1), 1], users).astype(np.int32)
    names = [str(i) for i in range(users)]
    long = SequenceStore(item, np.arange(users + 1) * length, None, [PAD, *map(str, range(1, 22))], names, None)
    pool = Prefixes(long.offset, np.full(users, length), 20)
    drawn = drawn_histories(long, pool, 5, seed=0)
    assert len(drawn[1]) == 5
    assert 2 not in drawn  # a history of one item is none
    assert all(h[-1] == 1 and len(h) == 20 for h in drawn[1])
    titled = SequenceStore(item, long.offset, None, long.item_ids, names, ["", *(f"t{i}" for i in range(1, 22))])
    shown = next(item_prompts(titled, pool, STYLES["generic"])).user.split("\n")[2]
    assert shown == "->".join([*(f"t{i}" for i in range(12, 22)), "t1"])


def test_which_histories_are_drawn_depends_on_the_seed() -> None:
    item = np.array([[u + 2, 1] for u in range(40)], np.int32).ravel()
    ids = [PAD, *map(str, range(1, 42))]
    store = SequenceStore(item, np.arange(41) * 2, None, ids, [str(u) for u in range(40)], None)
    pool = Prefixes(store.offset, np.full(40, 2), 20)
    firsts = [{int(h[0]) for h in drawn_histories(store, pool, 5, seed)[1]} for seed in (0, 0, 1)]
    assert firsts[0] == firsts[1] != firsts[2]
    assert len(firsts[0]) == 5


def test_answers_are_checked_counted_and_asked_again(store: SequenceStore, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    prompts = list(prefix_prompts(store, pool_of(store, 4, 1), STYLES["generic"]))
    rows = [
        {"id": "ann/1", "text": "first"},
        {"id": "ann/1", "text": "second"},
        {"id": "ann/2", "text": None},
        {"id": "ann/3", "text": "  "},
        {"id": "nobody/1", "text": "x"},
        {"id": "bob/1", "text": "null"},
        {"id": "bob/1", "text": "later"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"id": "ann/4", "te')
    ids = [p.id for p in prompts]
    answers = read_answers(file, ids)
    assert answers.text == {"ann/1": "first", "bob/1": "later"}
    assert answers.problems == {
        "missing": ["ann/4"],
        "empty": ["ann/3"],
        "null": ["ann/2"],
        "repeated": ["ann/1"],
        "unknown": ["nobody/1"],
        "unreadable": ["line 8"],
    }
    assert "1 null (ann/2)" in answers.report()
    out = tmp_path / "p.jsonl"
    assert write_prompts(prompts, out, file) == (3, 5)
    assert read_prompts(out) == [prompts[1], prompts[2], prompts[3]]
    write_failures(answers, tmp_path / "f.jsonl")
    failures = [json.loads(line) for line in (tmp_path / "f.jsonl").read_text().splitlines()]
    assert [(f["id"], f["problem"]) for f in failures] == [("ann/4", "missing"), ("ann/3", "empty"), ("ann/2", "null")]
    with pytest.raises(ValueError, match="3 of 5 prompts without an answer: 2 answered; 1 missing"):
        all_answers(file, ids)
    assert all_answers(file, ["bob/1", "ann/1"]) == ["later", "first"]
    assert len(read_answers(tmp_path / "none.jsonl", ids).unanswered) == 5


def test_five_ids_of_a_kind_are_listed(tmp_path: Path) -> None:
    report = read_answers(tmp_path / "none.jsonl", map(str, range(8))).report()
    assert report == "0 answered; 8 missing (0, 1, 2, 3, 4, ...)"


def test_a_line_that_is_no_prompt_is_named(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"id": "a", "system": "s", "user": "u"}\n{"id": "b", "user": "u"}\n')
    with pytest.raises(ValueError, match=r"p\.jsonl, line 2 is no prompt"):
        read_prompts(file)
