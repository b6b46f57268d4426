"""``python -m zoo compare``: several runs side by side, as tables, and as a page or picture with their curves."""

import argparse
import difflib
import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from zoo.comparing_runs import Run, find_runs, read_runs
from zoo.console import console, run_command

NAMES = ("run_dir", "run_name", "ckpt_path")  # keys that differ between any two runs
COLUMNS, KEYS = 12, 20  # that many are all shown on the screen; a page has more
WIDEST = 40  # characters of a column on the screen
ABSENT = "–"


class Grid(NamedTuple):
    """A table of words; the first column names the rows."""

    columns: list[str]
    rows: list[list[str]]


def result_cells(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The metrics of every ``results.csv``, by column, one cell a run.

    Where rows of a run differ in a column of text, each has columns of its own, ``accuracy [5w1s, cosine]``. Of
    rows without text, which are the steps of a sequence, the last is shown. An interval stands beside its metric, and
    whole numbers that are equal everywhere are left out.
    """
    texts = set()
    for run in runs:
        for name in run.results[0] if run.results else ():
            if len({row[name] for row in run.results if isinstance(row[name], str)}) > 1:
                texts.add(name)
    values: dict[str, dict[int, tuple[Any, Any]]] = {}
    for at, run in enumerate(runs):
        rows = run.results if texts & set((run.results or [{}])[0]) else run.results[-1:]
        columns = list((rows or [{}])[0])
        for before, name in zip(["", *columns], columns, strict=False):
            for row in rows:
                label = ", ".join(str(row[text]) for text in columns if text in texts)
                if name.endswith("ci95"):
                    key = f"{before} [{label}]" if label else before
                    if at in values.get(key, {}):
                        values[key][at] = (values[key][at][0], row[name])
                elif isinstance(row[name], int | float):
                    values.setdefault(f"{name} [{label}]" if label else name, {})[at] = (row[name], None)
    return {
        key: [_number(*cells[at]) if at in cells else ABSENT for at in range(len(runs))]
        for key, cells in values.items()
        if len(set(cells.values())) > 1 or not isinstance(next(iter(cells.values()))[0], int)
    }


def _number(value: float | None, interval: float | None = None) -> str:
    if value is None:
        return ABSENT
    digits = str(value) if isinstance(value, int) else f"{value:.2f}" if abs(value) >= 10 else f"{value:.4g}"
    return digits if interval is None else f"{digits} ± {interval:.2g}"


def metric_grid(runs: Sequence[Run], wanted: Sequence[str] = ()) -> Grid:
    """A row a run: results, best and last of the monitored metric, steps and seconds.

    Raises:
        ValueError: if one of ``wanted``, names or patterns of metrics, fits none.
    """
    results = result_cells(runs)
    known = list(dict.fromkeys(column for run in runs for column in run.curves))
    for pattern in wanted:
        if not any(_fits(name, [pattern]) for name in (*results, *known)):
            names = [name.partition(" [")[0] for name in results] + known
            close = difflib.get_close_matches(pattern, names, n=3) or list(dict.fromkeys(names))[:10]
            raise ValueError(f"--metrics: no run has {pattern!r}; there are {', '.join(close)}")
    cells = {name: column for name, column in results.items() if not wanted or _fits(name, wanted)}
    for name in known:
        if name in wanted or any("*" in pattern and fnmatchcase(name, pattern) for pattern in wanted):
            cells[f"last {name}"] = [_number(run.curves[name][-1][1]) if name in run.curves else ABSENT for run in runs]
    cells |= _monitored(runs)
    cells["steps"] = [_number(run.steps) for run in runs]
    if any(run.seconds is not None for run in runs):
        cells["seconds"] = [ABSENT if run.seconds is None else f"{run.seconds:.0f}" for run in runs]
    rows = [[run.name, *(column[at] for column in cells.values())] for at, run in enumerate(runs)]
    return Grid(["run", *cells], rows)


def _fits(name: str, wanted: Sequence[str]) -> bool:
    """Whether a metric is wanted by its name, by that without its label, or by that without its stage."""
    names = (name, name.partition(" [")[0], name.partition("/")[2])
    return any(part and fnmatchcase(part, pattern) for part in names for pattern in wanted)


def _monitored(runs: Sequence[Run]) -> dict[str, list[str]]:
    monitors = [run.config.get("monitor") for run in runs]
    if not any(monitors):
        return {}
    same = len({monitor for monitor in monitors if monitor}) == 1
    label = f" {next(filter(None, monitors))}" if same else ""
    best = [found and f"{_number(found[0])} (step {found[1]})" for found in (run.best() for run in runs)]
    ends = [run.curves.get(monitor or "") for run, monitor in zip(runs, monitors, strict=True)]
    return {
        **({} if same else {"monitor": [monitor or ABSENT for monitor in monitors]}),
        f"best{label}": [cell or ABSENT for cell in best],
        f"last{label}": [_number(points[-1][1]) if points else ABSENT for points in ends],
    }


def config_grid(runs: Sequence[Run]) -> Grid:
    """The keys in which configs differ, apart from those that name a run; a column a run that has a config.

    Keys are written without ``init_args``, which the command line takes too, and classes without their module where
    that tells them apart.
    """
    runs = [run for run in runs if run.config]
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in NAMES)
    rows = []
    for key in keys:
        words = [_word(run.config[key]) if key in run.config else ABSENT for run in runs]
        if len(set(words)) > 1:
            short = [word.rpartition(".")[2] for word in words] if key.endswith("class_path") else words
            rows.append([key.replace(".init_args", ""), *(short if len(set(short)) > 1 else words)])
    return Grid(["key", *(run.name for run in runs)], rows)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def no_difference(config: Grid) -> str:
    """What to say of a :func:`config_grid` without rows."""
    return "The configs do not differ." if len(config.columns) > 2 else "Fewer than two runs have a config to compare."


def run(args: Sequence[str]) -> None:
    """Run the command; ``args`` are the command line's words after ``compare``. Exits with 2 after an error."""
    parser = argparse.ArgumentParser(
        prog="python -m zoo compare",
        description="Compare runs: their metrics, the config keys that differ, and their curves over each other. Of a "
        "results.csv with several rows, those told apart by text have columns of their own, as accuracy [5w1s, "
        "cosine]; of the others the last is shown.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="version folder, config's folder (its newest) or sweep")
    parser.add_argument(
        "--out",
        default="comparison.html",
        metavar="FILE",
        help=".html: a page with tables and curves in one file; .png: the curves alone; default: comparison.html",
    )
    parser.add_argument(
        "--metrics", nargs="+", default=[], metavar="NAME", help="only these, as accuracy, val/loss or 'val/*'"
    )
    parser.set_defaults(command=_compare)
    run_command(parser, args)


def _compare(given: argparse.Namespace) -> None:
    from zoo.comparing_page import curves_figure, page

    out = Path(given.out)
    if out.suffix not in (".html", ".png"):
        raise ValueError(f"--out {out}: must end in .html or .png")
    runs = read_runs(find_runs(given.runs))
    notes = [f"{run.name}: no {', '.join(run.missing)}" for run in runs if run.missing]
    notes += [f"{run.name}: left out: {reason}" for run in runs for reason in run.broken]
    for note in notes:
        console().print(note, highlight=False)
    metrics, config = metric_grid(runs, given.metrics), config_grid(runs)
    _show(_shortened(metrics) if not given.metrics else metrics, "Metrics")
    if config.rows:
        brief = [row for row in config.rows if ABSENT not in row or row[0].endswith("class_path")]
        _show(config if len(config.rows) <= KEYS else Grid(config.columns, brief), "Config keys that differ")
        if len(config.rows) > max(KEYS, len(brief)):
            console().print(f"{len(config.rows) - len(brief)} more keys that not all runs have: see the page")
    else:
        console().print(no_difference(config))
    figure = curves_figure(runs, [name for run in runs for name in run.curves if _fits(name, given.metrics)])
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        if figure is None:
            raise ValueError("no run has curves: there is no metrics.csv of a training to draw")
        figure.savefig(out, dpi=120)
    else:
        out.write_text(page(runs, metrics, config, notes, figure), encoding="utf-8")
    console().print(f"{'Curves' if out.suffix == '.png' else 'Page'} in {out}", highlight=False)


def _shortened(grid: Grid) -> Grid:
    """The first metrics, and the last columns, which are those of the monitored one."""
    left = len(grid.columns) - COLUMNS
    if left <= 0:
        return grid
    console().print(f"{left} more metrics are not shown here: see the page, or choose by --metrics")
    columns, *rows = [[*row[: COLUMNS - 4], *row[-4:]] for row in [grid.columns, *grid.rows]]
    return Grid(columns, rows)


def _show(grid: Grid, title: str) -> None:
    """Print as many columns beside each other as fit, the others below, with the first column again."""
    out = console()
    limits = [2 * WIDEST, *[WIDEST] * (len(grid.columns) - 1)]
    columns = zip(grid.columns, *grid.rows, strict=True)
    widths = [min(max(map(len, column)), limit) + 3 for column, limit in zip(columns, limits, strict=True)]
    shown = list(range(1, len(grid.columns)))
    while shown:
        taken = 1
        while taken < len(shown) and widths[0] + sum(widths[at] for at in shown[: taken + 1]) < out.width:
            taken += 1
        table = Table(title=title)
        for at in [0, *shown[:taken]]:
            table.add_column(grid.columns[at], overflow="fold", max_width=limits[at])
        for row in grid.rows:
            table.add_row(*(row[at] for at in [0, *shown[:taken]]))
        out.print(table)
        shown, title = shown[taken:], f"{title.removesuffix(' (more)')} (more)"
