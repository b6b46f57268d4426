"""The compatibility matrix of a sequence of models: its cells, its table and its picture."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch import distributed as dist

from zoo.metrics import average_accuracy, average_compatibility, failing_cells
from zoo.retrieval import EmbeddingTable, RetrievalEvaluator

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def cell(
    evaluator: RetrievalEvaluator,
    query: EmbeddingTable,
    gallery: EmbeddingTable,
    models: tuple[int, int],
    device: torch.device,
) -> dict[str, float]:
    """Scores in percent of one model's queries on another's gallery; NaN, with a warning, where widths differ.

    All ranks must call it; each scores its share of the queries. ``models`` are the two models' numbers.
    """
    widths = query.embedding.shape[1], gallery.embedding.shape[1]
    if widths[0] != widths[1]:
        rank_zero_warn(
            f"query model {models[0]} has {widths[0]} dimensions and gallery model {models[1]} has {widths[1]}: "
            "they cannot be compared, the cell is NaN"
        )
        return dict.fromkeys(evaluator.names, math.nan)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    scores = evaluator(query, gallery, rank, world).over_ranks(device).scores
    return {name: 100 * value for name, value in scores.items()}


def read(folders: Sequence[Path], score: str) -> Tensor:
    """The matrix M [T, T] float64 in percent from the tasks' ``results.csv``; NaN above the diagonal."""
    matrix = torch.full((len(folders), len(folders)), math.nan, dtype=torch.float64)
    for folder in folders:
        with (folder / "results.csv").open(newline="", encoding="utf-8") as stream:
            for cell in csv.DictReader(stream):
                matrix[int(cell["query model"]), int(cell["gallery model"])] = float(cell[score])
    return matrix


def table(matrix: Tensor) -> list[dict[str, Any]]:
    """One row a query model: its scores on every gallery, and AC and AA over the models up to it.

    Cells of models that cannot be compared are left out of both, and counted in a column of their own.
    """
    total, missing = len(matrix), _missing(matrix)
    return [
        {
            "query model": t,
            **{f"gallery {k}": matrix[t, k].item() if k <= t else "" for k in range(total)},
            "AC": average_compatibility(matrix[: t + 1, : t + 1], skip_missing=True),
            "AA": average_accuracy(matrix[: t + 1, : t + 1], skip_missing=True),
            **({"cells left out": _missing(matrix[: t + 1, : t + 1])} if missing else {}),
        }
        for t in range(total)
    ]


def _missing(matrix: Tensor) -> int:
    lower = torch.ones_like(matrix, dtype=torch.bool).tril()
    return int(matrix[lower].isnan().sum())


def heat_map(matrix: Tensor) -> "Figure":
    """The matrix in percent with its numbers; cells that break compatibility have a red frame."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    total = len(matrix)
    side = max(3.5, 0.62 * total + 1.5)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(matrix.numpy(), cmap="viridis", vmin=0, vmax=100)
    for t in range(total):
        for k in range(t + 1):
            value = matrix[t, k].item()
            text = "n/a" if math.isnan(value) else f"{value:.1f}"
            axes.text(k, t, text, ha="center", va="center", fontsize=8, color="white" if value < 60 else "black")
    for t, k in failing_cells(matrix, skip_missing=True):
        axes.add_patch(Rectangle((k - 0.5, t - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=1.5))
    axes.set(xlabel="gallery of model", ylabel="queries of model", xticks=range(total), yticks=range(total))
    ac = average_compatibility(matrix, skip_missing=True)
    aa = average_accuracy(matrix, skip_missing=True)
    left_out = f", {missing} cells left out" if (missing := _missing(matrix)) else ""
    axes.set_title(f"AC {ac:.2f}, AA {aa:.1f}%{left_out}  (red: no better than the old model)", fontsize=9)
    figure.colorbar(image, ax=axes, label="score (%)", shrink=0.8)
    return figure


def nearest_grid(found: Sequence[dict[str, Any]]) -> "Figure":
    """The first queries of a prediction beside their nearest gallery images with their cosines."""
    from zoo.retrieval.pictures import picture_grid

    queries: dict[str, list[tuple[str, str]]] = {}
    for hit in found:
        queries.setdefault(hit["query"], []).append((hit["nearest"], f"{hit['score']:.3f}"))
    return picture_grid(list(queries.items()))
