"""Pictures of what a search found."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROWS = 16
PIXELS = 160


def picture_grid(rows: Sequence[tuple[str, Sequence[tuple[str, str]]]], columns_max: int = 8) -> "Figure":
    """One row a query: its image, framed, then its nearest gallery images with a caption under each.

    ``rows`` holds (query file, [(gallery file, caption), ...]), best first; a caption may have two lines. The first 16
    rows and ``columns_max`` images of each are drawn, and a line at the top says so where there are more.

    Raises:
        ValueError: if there are no rows, or a file is no image, naming it.
    """
    from matplotlib.figure import Figure

    if not rows:
        raise ValueError("rows is empty: there are no queries to draw")
    if columns_max < 1:
        raise ValueError(f"columns_max must be at least 1, got {columns_max}")
    shown = rows[:ROWS]
    columns = max(1, min(columns_max, max(len(hits) for _, hits in shown)))
    width, height = 1.15 * (columns + 1.15), 1.5 * len(shown) + 0.35
    figure = Figure(figsize=(width, height), layout="constrained")
    # a narrow empty column keeps the query apart from what was found
    axes = figure.subplots(len(shown), columns + 2, squeeze=False, width_ratios=[1, 0.15] + [1] * columns)
    for ax in axes.flat:
        ax.set_axis_off()
    for line, (query, hits) in zip(axes, shown, strict=True):
        _draw(line[0], query, "\n".join(Path(query).parts[-2:]), framed=True)
        for ax, (file, caption) in zip(line[2:], hits, strict=False):
            _draw(ax, file, caption)
    title = "query (framed) and its nearest gallery images"
    more = f"; the first {ROWS} of {len(rows)} queries" if len(rows) > ROWS else ""
    figure.suptitle(title + more, fontsize=8)
    return figure


def _draw(ax: "Axes", file: str, caption: str, framed: bool = False) -> None:
    ax.imshow(_small(file))
    ax.set_axis_on()
    ax.set(xticks=[], yticks=[])
    # a dollar sign in a name is no formula
    ax.set_xlabel("\n".join(map(_shortened, caption.split("\n"))), fontsize=7, labelpad=3, parse_math=False)
    for spine in ax.spines.values():
        spine.set(color="black" if framed else "lightgrey", linewidth=2 if framed else 0.5)


def _small(file: str) -> Image.Image:
    try:
        with Image.open(file) as image:
            image.draft("RGB", (PIXELS, PIXELS))
            small = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot draw the image {file}: {error}") from error
    small.thumbnail((PIXELS, PIXELS))
    return small


def _shortened(text: str, most: int = 18) -> str:
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most // 2) :]}"
