"""Cells of the matrix, its table, and what a prediction shows."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.sources import bundled
from zoo.callbacks.predictions import unique_rows
from zoo.cli import run
from zoo.retrieval import RetrievalEvaluator, embedding_table
from zoo.stationary.sequence import cell, heat_map, table

SEQUENCE = "stationary/dsimplex_omniglot"


def test_models_of_different_width_leave_a_cell_open() -> None:
    label = torch.arange(4)
    query, gallery = embedding_table(torch.eye(4), label), embedding_table(torch.eye(4)[:, :3] + 0.1, label)
    evaluator = RetrievalEvaluator(template="mean")
    with pytest.warns(UserWarning, match="query model 2 has 4 dimensions and gallery model 1 has 3"):
        scores = cell(evaluator, query, gallery, (2, 1), torch.device("cpu"))
    assert math.isnan(scores["accuracy"])
    assert cell(evaluator, query, query, (2, 2), torch.device("cpu")) == {"accuracy": 100.0}


def test_the_table_counts_the_cells_it_leaves_out() -> None:
    nan = math.nan
    matrix = torch.tensor([[50.0, nan, nan], [nan, 60.0, nan], [55.0, 40.0, 70.0]], dtype=torch.float64)
    rows = table(matrix)
    assert [row["cells left out"] for row in rows] == [0, 1, 1]
    assert rows[2]["AA"] == pytest.approx((50 + 60 + 55 + 40 + 70) / 5)
    assert "1 cells left out" in heat_map(matrix).axes[0].get_title()
    assert "cells left out" not in table(matrix.nan_to_num(1.0))[0]


def test_rows_of_two_ranks_come_in_the_order_of_the_samples_and_once() -> None:
    def rows(*names: str, shift: float = 0.0) -> list[dict[str, object]]:
        return [{"query": name, "score": 0.5 + shift} for name in names]

    ranks = [[rows("a", "b"), rows("e")], [rows("c", "d"), rows("a", shift=1e-7)]]
    assert [row["query"] for row in unique_rows(ranks)] == ["a", "b", "c", "d", "e"]


def test_predict_lists_the_nearest_images_and_draws_them(tmp_path: Path) -> None:
    with np.load(bundled("omniglot_small.npz")) as file:
        drawings = 255 - file["image"][:3]
    for c, images in enumerate(drawings):
        (tmp_path / "gallery" / str(c)).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(images[i]).save(tmp_path / "gallery" / str(c) / f"{i}.png")
    words = ["predict", "--config", SEQUENCE, "--run_dir", str(tmp_path), "--model.init_args.nearest=4"]
    cli = run(
        [
            *words,
            f"--data.init_args.predict_gallery={tmp_path / 'gallery'}",
            f"--data.init_args.predict_query={tmp_path / 'gallery' / '1' / '0.png'}",
            "--trainer.enable_progress_bar=false",
        ]
    )
    lines = (Path(cli.trainer.log_dir) / "predictions.csv").read_text().splitlines()
    assert len(lines) == 1 + 4
    query, rank, nearest, score = lines[1].split(",")
    assert (rank, query) == ("1", nearest)
    assert float(score) == pytest.approx(1, abs=1e-5)
    assert (Path(cli.trainer.log_dir) / "figures" / "nearest.png").is_file()
