"""Pictures of episodes and results."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from datamodules.batches import EpisodeBatch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def episode(batch: EpisodeBatch, prediction: Tensor, most_queries: int = 12) -> "Figure":
    """The first episode: a row a class, its supports left, its queries right, wrong predictions framed red.

    ``prediction`` [E, U] int64. Images are stretched to their own range.
    """
    from matplotlib.figure import Figure

    label, query_label = batch.support_label[0].tolist(), batch.query_label[0].tolist()
    rows = [[i for i, c in enumerate(label) if c == k] for k in range(batch.way)]
    queries = [[i for i, c in enumerate(query_label) if c == k][:most_queries] for k in range(batch.way)]
    shots, columns = max(map(len, rows)), max(map(len, queries))
    figure = Figure(figsize=(0.8 * (shots + columns + 0.5), 0.95 * batch.way + 0.4), layout="constrained")
    axes = figure.subplots(batch.way, shots + columns, squeeze=False)
    for k in range(batch.way):
        for ax in axes[k]:
            ax.set_axis_off()
        for ax, i in zip(axes[k], rows[k], strict=False):
            _show(ax, batch.support[0, i], "black")
            ax.set_title(f"class {k}", fontsize=7)
        for ax, i in zip(axes[k][shots:], queries[k], strict=False):
            guess = int(prediction[0, i])
            _show(ax, batch.query[0, i], "green" if guess == k else "red")
            ax.set_title(f"→ {guess}", fontsize=7, color="green" if guess == k else "red")
    figure.suptitle("supports (black frame) and queries with predictions", fontsize=8)
    return figure


def _show(ax: "Axes", image: Tensor, frame: str) -> None:
    image = image.detach().float().cpu()
    low, high = image.amin(), image.amax()
    pixels = ((image - low) / (high - low).clamp(min=1e-6)).permute(1, 2, 0)
    ax.imshow(pixels.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
    ax.set_axis_on()
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(color=frame, linewidth=1.5)


def accuracy_by_shots(results: Sequence[dict[str, Any]]) -> "Figure":
    """Accuracy with 95% intervals against the number of shots, a line a head, a panel a kind of episode."""
    from matplotlib.figure import Figure

    panels: dict[str, dict[str, list[tuple[int, float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in results:
        if match := re.fullmatch(r"(\d+)w(\d+)s(.*)", row["episodes"]):
            way, shot, rest = match.groups()
            panels[f"{way}-way{rest}"][row["head"]].append((int(shot), row["accuracy"], row["ci95"]))
    figure = Figure(figsize=(4.2 * len(panels) + 1.6, 3.6), layout="constrained")
    for ax, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for i, (head, points) in enumerate(lines.items()):
            shot, accuracy, ci95 = zip(*sorted(points), strict=True)
            style = {"color": f"C{i % 10}", "linestyle": "-" if i < 10 else "--"}
            ax.errorbar(shot, accuracy, ci95, label=head, marker=".", capsize=2, **style)
        ax.set(
            title=title,
            xlabel="shots",
            ylabel="accuracy (%)",
            xticks=sorted({p[0] for points in lines.values() for p in points}),
        )
        ax.grid(alpha=0.3)
    ax.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure
