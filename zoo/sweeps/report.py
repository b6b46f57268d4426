"""The closing report of a local sweep: a table of all trials, the best config, and two pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import optuna
import yaml
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from zoo.callbacks.summary import write_rows
from zoo.sweeps.readings import run_folder
from zoo.sweeps.table import STATES, last_value, short_names, show_value

if TYPE_CHECKING:
    from zoo.sweeps.records import Records

Scale = Literal["linear", "log", "choices"]
RESUMING = ("run_dir", "run_name", "ckpt_path")
"""Keys of a trial's config that belong to the trial and not to the experiment."""
BETTER = 0.3  # PED-ANOVA's own tenth is one or two trials of a dozen, which may be the better ones by chance


def write_report(records: "Records") -> list[Path]:
    """Write ``trials.csv``, ``best.yaml`` and the pictures that the trials allow; return what was written."""
    files = [records.folder / "trials.csv"]
    write_rows(files[0], rows(records))
    best = records.best()
    if best is not None:
        config = best_config(records.trial_folder(best.number))
        if config is not None:
            files.append(records.folder / "best.yaml")
            head = f"# {records.folder.name}, trial {best.number}: {records.file.metric.name} {best.value:.6g}\n"
            files[-1].write_text(head + yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    done = [(records.values(trial), trial.value) for trial in records.trials if trial.value is not None]
    scales = {name: _scale(parameter.distribution) for name, parameter in records.file.searched.items()}
    drawn = [({name: values[name] for name in scales}, float(value)) for values, value in done]
    if len(drawn) >= 2 and scales:
        files.append(records.folder / "parallel_coordinates.png")
        metric = records.file.metric
        parallel_coordinates(drawn, scales, metric.name, metric.goal).savefig(files[-1], dpi=120)
    shares = importance(records.study)
    if shares:
        files.append(records.folder / "importance.png")
        whole = sum(trial.state.name == "COMPLETE" for trial in records.trials)
        importance_bars(shares, records.file.metric.name, whole).savefig(files[-1], dpi=120)
    return files


def rows(records: "Records") -> list[dict[str, Any]]:
    """One row a trial: number, state, the metric, the last step, the values, seconds, the error and the run folder."""
    table = []
    for trial in records.trials:
        run = run_folder(records.trial_folder(trial.number))
        known = records.values(trial)
        row = {
            "trial": trial.number,
            "state": STATES.get(trial.state.name, trial.state.name),
            records.file.metric.name: last_value(trial),
            "step": trial.user_attrs.get("step"),
        }
        ending = {
            "seconds": None if trial.duration is None else round(trial.duration.total_seconds(), 1),
            "error": trial.user_attrs.get("error"),
            "run": None if run is None else str(run),
        }
        taken = row.keys() | ending.keys()
        values = {f"parameters.{n}" if n in taken else n: known.get(n) for n in records.file.parameters}
        table.append({**row, **values, **ending})
    return table


def best_config(trial: Path) -> dict[str, Any] | None:
    """The resolved config of a trial as an experiment of its own; None if the trial has written none."""
    run = run_folder(trial)
    if run is None or not (run / "config.yaml").is_file():
        return None
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    return {key: value for key, value in config.items() if key not in RESUMING}


def importance(study: optuna.Study) -> dict[str, float]:
    """How much each parameter decides whether a trial is among the better 30 % (PED-ANOVA, arXiv 2304.10255).

    Empty where there are fewer than four whole trials or they are all equally good.
    """
    done = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    if len(done) < 4 or len({trial.value for trial in done}) < 2 or not done[0].params:
        return {}
    return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=BETTER))


def importance_bars(shares: Mapping[str, float], metric: str, trials: int) -> Figure:
    """One bar a parameter, the most important one on top; of so many whole trials."""
    short = short_names(list(shares))
    figure = Figure(figsize=(6, 1.2 + 0.4 * len(shares)), layout="constrained")
    ax = figure.subplots()
    ordered = sorted(shares, key=lambda name: shares[name])
    bars = ax.barh([short[name] for name in ordered], [shares[name] for name in ordered])
    ax.bar_label(bars, fmt="%.2f", padding=3)
    ax.set_xlim(0, 1.1 * max(max(shares.values()), 1e-9))
    ax.set_xlabel(f"importance for {metric} (PED-ANOVA, {trials} trials)")
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def parallel_coordinates(
    trials: Sequence[tuple[Mapping[str, Any], float]], scales: Mapping[str, Scale], metric: str, goal: str
) -> Figure:
    """One line a trial over an axis a parameter and one for the metric; the better the darker, the best is thick.

    Args:
        trials: values by parameter, and the metric.
        scales: of the parameters' axes.
        metric: its name.
        goal: minimize or maximize.
    """
    names = list(trials[0][0])
    short = short_names(names)
    scores = np.array([score for _, score in trials])
    axes = [_axis([values[name] for values, _ in trials], scales[name]) for name in names]
    axes.append(_axis(scores.tolist(), "linear"))
    order = np.argsort(scores if goal == "maximize" else -scores)  # the best is drawn last
    norm = Normalize(scores.min(), scores.max())
    colours = ScalarMappable(norm, "viridis_r" if goal == "maximize" else "viridis")
    figure = Figure(figsize=(max(6.0, 1.9 * len(axes)), 4.5), layout="constrained")
    ax = figure.subplots()
    for place in order:
        best = place == order[-1]
        heights = [heights[place] for heights, _ in axes]
        style: dict[str, Any] = {"linewidth": 3.0, "alpha": 1.0} if best else {"linewidth": 1.2, "alpha": 0.7}
        ax.plot(range(len(axes)), heights, color=colours.to_rgba(scores[place]), **style)
    for x, (_, ticks) in enumerate(axes):
        ax.axvline(x, color="0.3", linewidth=0.8)
        for height, label in ticks:
            ax.annotate(
                label, (x, height), (4, 0), "data", "offset points", va="center", fontsize="small",
                bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5},
            )  # fmt: skip
    ax.set_xticks(range(len(axes)), [*(short[name] for name in names), metric])
    ax.set(yticks=[], xlim=(-0.1, len(axes) - 0.55), ylim=(-0.06, 1.06))
    ax.spines[:].set_visible(False)
    figure.colorbar(colours, ax=ax, label=metric)
    return figure


def _scale(distribution: str) -> Scale:
    if distribution == "categorical":
        return "choices"
    return "log" if "log" in distribution else "linear"


def _axis(values: Sequence[Any], scale: Scale) -> tuple[list[float], list[tuple[float, str]]]:
    """The height of each value from 0 to 1, and the ticks of the axis as heights and labels."""
    if scale == "choices":
        numbers = all(isinstance(value, (int, float)) for value in values)
        labels = {str(v): show_value(v) for v in sorted(values, key=None if numbers else str)}
        places = {kind: at / max(len(labels) - 1, 1) for at, kind in enumerate(labels)}
        return [places[str(value)] for value in values], [(places[kind], label) for kind, label in labels.items()]
    scaled = np.log(values) if scale == "log" else np.asarray(values, dtype=float)
    low, high = float(scaled.min()), float(scaled.max())
    width = high - low or 1.0
    marks = np.linspace(low, high, 5 if high > low else 1)
    ticks = [
        (float((mark - low) / width), show_value(float(np.exp(mark) if scale == "log" else mark))) for mark in marks
    ]
    return ((scaled - low) / width).tolist(), ticks
