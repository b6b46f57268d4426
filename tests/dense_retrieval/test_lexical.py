"""BM25: its formula on a few documents, and its known place on real questions."""

import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from datamodules.retrieval import Retrieval
from datamodules.retrieval_sets import BeirFolder
from zoo.dense_retrieval import BM25
from zoo.dense_retrieval.lexical import LexicalIndex
from zoo.dense_retrieval.runs import read_run

TEXTS = ["alpha beta alpha", "beta gamma", "gamma delta epsilon zeta", "eta theta"]


def weight(tf: int, df: int, length: int, k1: float = 0.9, b: float = 0.4) -> float:
    idf = math.log(1 + (4 - df + 0.5) / (df + 0.5))
    return idf * tf / (tf + k1 * (1 - b + b * length / (11 / 4)))


def test_scores_are_the_formulas() -> None:
    score, row = LexicalIndex(TEXTS).search(["alpha gamma", "Beta unknown", "unknown"], 3)
    assert row.tolist() == [[0, 1, 2], [1, 0, -1], [-1, -1, -1]]
    assert score[0].tolist() == pytest.approx([weight(2, 1, 3), weight(1, 2, 2), weight(1, 2, 4)], abs=1e-6)
    assert score[1, :2].tolist() == pytest.approx([weight(1, 2, 2), weight(1, 2, 3)], abs=1e-6)
    assert torch.isneginf(score[2]).all()


def test_equal_scores_keep_the_first_documents() -> None:
    assert LexicalIndex(["word", "other", "word", "word"]).search(["word"], 2)[1].tolist() == [[0, 2]]


def test_stop_words_and_bad_settings() -> None:
    assert LexicalIndex(["the cat", "dog"], stop_words=True).search(["the"], 1)[1].tolist() == [[-1]]
    assert LexicalIndex(["the cat", "dog"], stop_words=False).search(["the"], 1)[1].tolist() == [[0]]
    with pytest.raises(ValueError, match="b=2"):
        LexicalIndex(TEXTS, b=2)


def test_boolq_questions(test_data: Path, tmp_path: Path) -> None:
    data = Retrieval(BeirFolder(str(test_data / "boolq-retrieval")), eval_batch_size=512)
    model = BM25(k1=1.2, b=0.75, depth=100)
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, enable_progress_bar=False)
    found = trainer.test(model, data, verbose=False)[0]
    assert found["test/ndcg@10"] == pytest.approx(0.7396, abs=5e-4)
    assert model.results()[0]["queries"] == 3245
    run = read_run(Path(trainer.log_dir or "") / "run.trec")
    assert len(run) == 3245
    assert max(map(len, run.values())) == 100
