"""Run files: what is written is read again, and what is wrong is named."""

import io
from pathlib import Path

import numpy as np
import pytest

from datamodules.retrieval_files import read_qrels
from zoo.dense_retrieval.runs import read_run, write_qrels, write_run


def test_a_run_is_written_best_first_and_keeps_its_float32_scores(tmp_path: Path) -> None:
    close = [float(np.float32(0.7)), float(np.nextafter(np.float32(0.7), np.float32(1)))]
    run = {"q1": {"a": close[0], "b": close[1], "c": 0.1}, "q2": {"x": 1.0, "y": 1.0}}
    out = io.StringIO()
    write_run(out, run, "mine")
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert [line[2] for line in lines] == ["b", "a", "c", "y", "x"]
    assert lines[0] == ["q1", "Q0", "b", "1", "0.700000048", "mine"]
    (tmp_path / "run.trec").write_text(out.getvalue())
    read = read_run(tmp_path / "run.trec")
    assert {q: {d: np.float32(s) for d, s in found.items()} for q, found in read.items()} == {
        q: {d: np.float32(s) for d, s in found.items()} for q, found in run.items()
    }


def test_three_columns_are_scores_or_ranks(tmp_path: Path) -> None:
    out = io.StringIO()
    write_run(out, {"q": {"a": 2.5, "b": 1.0}}, form="scores")
    assert out.getvalue() == "q a 2.5\nq b 1\n"
    (tmp_path / "run").write_text(out.getvalue())
    assert read_run(tmp_path / "run") == {"q": {"a": 2.5, "b": 1.0}}
    (tmp_path / "ranks").write_text("q\ta\t1\nq\tb\t2\n")
    assert read_run(tmp_path / "ranks", "ranks") == {"q": {"a": -1.0, "b": -2.0}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q Q0 d 1 0.5 t\nq Q0 d 2 0.4 t\n", "line 2: document 'd' comes twice for query 'q'"),
        ("q Q0 d 1 0.5\n", "line 1: 5 columns"),
        ("q d high\n", "line 1: score 'high' is no number"),
    ],
)
def test_malformed_lines_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "run").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_run(tmp_path / "run")


def test_ids_with_white_space_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="document id 'a b'"):
        write_run(io.StringIO(), {"q": {"a b": 1.0}})


def test_judgements_are_written_in_trecs_form(tmp_path: Path) -> None:
    qrels = {"q": {"a": 2, "b": 0}, "r": {"a": 1}}
    with (tmp_path / "qrels.txt").open("w") as out:
        write_qrels(out, qrels)
    assert (tmp_path / "qrels.txt").read_text().splitlines()[0] == "q 0 a 2"
    assert read_qrels(tmp_path / "qrels.txt") == qrels
