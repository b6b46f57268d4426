"""The picture and the page of ``python -m zoo compare``."""

import base64
import io
from collections.abc import Collection, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from zoo.callbacks.figures import is_drawn
from zoo.comparing import Grid, no_difference
from zoo.comparing_runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """body{font:14px/1.4 system-ui,sans-serif;margin:2em;color:#222}div{overflow-x:auto;margin-bottom:2em}
table{border-collapse:collapse}th,td{padding:.3em .7em;border-bottom:1px solid #ddd;text-align:left;white-space:nowrap}
th:first-child,td:first-child{position:sticky;left:0;background:#fff}thead th{border-bottom:2px solid #888}
i{display:inline-block;width:.8em;height:.8em;margin-right:.5em;border-radius:2px}img{max-width:100%}"""


def colours(count: int) -> list[Any]:
    """Colours that can be told apart: a list of ten or twenty where that is enough, else steps of a rainbow."""
    from matplotlib import colormaps

    if count <= 20:
        return list(colormaps["tab10" if count <= 10 else "tab20"].colors)[:count]  # type: ignore[attr-defined]
    return [colormaps["turbo"](at / (count - 1)) for at in range(count)]


def curves_figure(runs: Sequence[Run], wanted: Collection[str] = ()) -> "Figure | None":
    """One panel a quantity with the curves of all runs; ``train/x`` and ``val/x`` share the panel ``x``.

    Monitored quantities come first, then losses. None if there is nothing to draw.

    Args:
        runs: one colour each.
        wanted: columns of ``metrics.csv``; where none of them is a curve, all that are not the same everywhere.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    values: dict[str, set[float]] = {}
    for run in runs:
        for column in filter(is_drawn, run.curves):
            values.setdefault(column, set()).update(value for _, value in run.curves[column])
    varied = {column for column, seen in values.items() if len(seen) > 1}
    drawn = values.keys() & set(wanted) or varied or values.keys()
    if not drawn:
        return None
    monitored = {str(run.config.get("monitor")).partition("/")[2] for run in runs}
    quantities = {column.partition("/")[2] for column in drawn}
    panels = sorted(quantities, key=lambda name: (name not in monitored, "loss" not in name, name))
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    legend = min(len(runs), max(1, 120 // (max(len(run.name) for run in runs) + 6)), 2 * across)
    height = 2.8 * down + 0.2 * -(-len(runs) // legend) + 0.3
    figure = Figure(figsize=(4.6 * across, height), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    palette = colours(len(runs))
    for ax, quantity in zip(axes, panels, strict=False):
        stages = [stage for stage in ("val", "train") if f"{stage}/{quantity}" in drawn]
        for stage in reversed(stages):  # validation above training
            faint = stage == "train" and len(stages) == 2
            for run, colour in zip(runs, palette, strict=True):
                points = run.curves.get(f"{stage}/{quantity}", [])
                if points:
                    style = {"linestyle": "--", "linewidth": 0.8, "alpha": 0.6} if faint else {"linewidth": 1.3}
                    ax.plot(*zip(*points, strict=True), color=colour, marker="." if len(points) < 30 else None, **style)
        ax.set_title(
            f"{quantity} (dashed: train)" if len(stages) == 2 else f"{stages[0]}/{quantity}",
            fontsize="medium",
            parse_math=False,
        )
        ax.set_xlabel("optimiser step")
        ax.grid(alpha=0.3)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    lines = [Line2D([], [], color=colour) for colour in palette]
    names = [run.name for run in runs]
    for text in figure.legend(lines, names, loc="outside lower center", ncols=legend, fontsize="small").get_texts():
        text.set_parse_math(False)  # a dollar sign in a folder's name is no formula
    return figure


def page(runs: Sequence[Run], metrics: Grid, config: Grid, notes: Sequence[str], figure: "Figure | None") -> str:
    """One HTML file with both tables, what is missing, and the curves inside."""
    from matplotlib.colors import to_hex

    colour = {run.name: to_hex(c) for run, c in zip(runs, colours(len(runs)), strict=True)}
    picture = "<p>No run has curves.</p>"
    if figure is not None:
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=120)
        picture = f'<img alt="curves" src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}">'
    differing = _table(config, colour) if config.rows else f"<p>{no_difference(config)}</p>"
    missing = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{len(runs)} runs</title><style>{STYLE}</style>'
        f"<h1>{len(runs)} runs</h1><h2>Metrics</h2>{_table(metrics, colour)}{missing}"
        f"<h2>Config keys that differ</h2>{differing}<h2>Curves</h2>{picture}</html>\n"
    )


def _table(grid: Grid, colour: dict[str, str]) -> str:
    def cell(tag: str, text: str) -> str:
        square = f'<i style="background:{colour[text]}"></i>' if text in colour else ""
        return f"<{tag}>{square}{escape(text)}</{tag}>"

    head = "".join(cell("th", name) for name in grid.columns)
    body = "".join(f"<tr>{''.join(cell('td', text) for text in row)}</tr>" for row in grid.rows)
    return f"<div><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
