"""Which of the documents that a search finds are hard negatives."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from datamodules.retrieval_store import ListCorpus
from zoo.__main__ import main
from zoo.dense_retrieval.mining_command import _finder, hard_negatives

ROW, SCORE = np.array([4, 7, 1, 9, 2, -1]), np.array([9.0, 8.0, 7.0, 6.0, 5.0, -np.inf])


def test_positives_and_empty_places_are_left_out_and_the_order_is_the_searchs() -> None:
    assert hard_negatives(ROW, SCORE, {7}, 10).tolist() == [4, 1, 9, 2]


def test_the_best_that_are_no_positives_are_skipped() -> None:
    assert hard_negatives(ROW, SCORE, {4}, 10, skip=2).tolist() == [9, 2]


@pytest.mark.parametrize(
    ("positive", "margin", "left"),
    [({1}, 0.0, [9, 2]), ({1}, 1.5, [2]), ({1}, -1.0, [7, 9, 2]), ({1, 7}, 0.0, [9, 2]), ({50}, 0.0, [2])],
)
def test_what_scores_too_near_the_best_positive_is_left_out(positive: set[int], margin: float, left: list[int]) -> None:
    assert hard_negatives(ROW, SCORE, positive, 10, margin=margin).tolist() == left


def test_a_draw_is_uniform_over_what_is_left_and_keyed() -> None:
    row, score = np.arange(20), -np.arange(20.0)
    drawn = [hard_negatives(row, score, {0}, 5, seed=seed) for seed in range(2000)]
    assert np.array_equal(drawn[3], hard_negatives(row, score, {0}, 5, seed=3))
    assert all((np.diff(some) > 0).all() for some in drawn)
    share = np.bincount(np.concatenate(drawn), minlength=20) / 2000
    assert share[0] == 0
    assert np.abs(share[1:] - 5 / 19).max() < 0.045  # 4.5 standard deviations


def test_a_run_may_lack_a_whole_part_of_the_queries_but_not_all(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("q0 Q0 d1 1 2.5 x\nq0 Q0 d0 2 3.5 x\n")
    given = argparse.Namespace(by=str(tmp_path / "run"), depth=3)
    corpus = ListCorpus(["d0", "d1"], [{"text": "a"}, {"text": "b"}])
    find = _finder(given, corpus, ["q0", "q1"])
    assert find(["q1"], ["y"])[1].tolist() == [[-1, -1, -1]]
    assert find(["q0"], ["x"])[1].tolist() == [[0, 1, -1]]
    with pytest.raises(ValueError, match="none of the training queries, such as 'q1'"):
        _finder(given, corpus, ["q1"])


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["mine", "--config", "nowhere", "--by", "bm25", "--out", "x", "--depth", "0"])
    assert "--depth 0: must be at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["search", "--checkpoint", "nowhere"])
    assert "there are no queries" in capsys.readouterr().err
