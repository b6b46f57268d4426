"""``python -m zoo compare``."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from zoo.callbacks.figures import read_curves
from zoo.callbacks.summary import read_rows, results_table, write_rows
from zoo.comparing import config_grid, metric_grid, run
from zoo.comparing_page import colours, curves_figure
from zoo.comparing_runs import find_runs, read_runs
from zoo.console import console


def make(
    folder: Path,
    metrics: str | None = None,
    results: list[dict[str, Any]] | None = None,
    **config: Any,
) -> Path:
    folder.mkdir(parents=True)
    if config:
        (folder / "config.yaml").write_text(yaml.safe_dump({"run_name": folder.parent.name, **config}, sort_keys=False))
    if metrics is not None:
        (folder / "metrics.csv").write_text(metrics)
    if results is not None:
        write_rows(folder / "results.csv", results)
    return folder


def model(lr: float, head: str = "zoo.Cosine", **options: Any) -> dict[str, Any]:
    return {
        "class_path": "zoo.ProtoNet",
        "init_args": {"lr": lr, "heads": [{"class_path": head, "init_args": options}], "sizes": [1, 2]},
    }


METRICS = "epoch,step,fit/seconds,test/accuracy,train/loss,train/steps_per_second,val/accuracy,val/accuracy_ci95\n"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    first = make(
        tmp_path / "runs/a/version_0",
        METRICS + "0,9,,,1.5,,,\n0,9,,,,7,50,3\n1,19,,,0.5,,,\n1,19,,,,8,40,2\n2,20,12.5,,,,,\n2,20,,61,,,,\n",
        [{"queries": 100, "accuracy": 61.25, "ci95": 2.5, "auc": 0.5}],
        monitor="val/accuracy",
        monitor_mode="max",
        model=model(0.1),
        seed_everything=0,
    )
    second = make(
        tmp_path / "runs/b/version_3",
        METRICS + "0,9,,,1.0,,,\n0,9,,,,7,nan,3\n1,19,,,0.25,,60,\n1,20,7,,,,,\n1,25,3.5,,,,,\n1,29,,,0.1",
        monitor="val/accuracy",
        monitor_mode="max",
        model=model(0.2, "zoo.Metric", p=2),
        seed_everything=0,
    )
    return first, second


def column(runs: list[Path], name: str, wanted: tuple[str, ...] = ()) -> list[str]:
    grid = metric_grid(read_runs(runs), wanted)
    return [row[grid.columns.index(name)] for row in grid.rows]


def test_metrics_hold_results_best_and_last_of_the_monitor_steps_and_seconds(pair: tuple[Path, Path]) -> None:
    runs = read_runs(pair)
    grid = metric_grid(runs)
    assert grid.columns == ["run", "accuracy", "auc", "best val/accuracy", "last val/accuracy", "steps", "seconds"]
    assert grid.rows == [
        ["a/version_0", "61.25 ± 2.5", "0.5", "50.00 (step 9)", "40.00", "20", "12"],
        ["b/version_3", "–", "–", "60.00 (step 19)", "60.00", "25", "10"],  # its last line is being written
    ]
    assert [r.missing for r in runs] == [(), ("results.csv",)]


def test_a_minimum_is_best_where_the_config_says_so(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    third = make(tmp_path / "c", "epoch,step,val/nll\n0,4,2\n0,8,1\n0,12,3\n", monitor="val/nll", monitor_mode="min")
    runs = [pair[0], third]
    assert column(runs, "monitor") == ["val/accuracy", "val/nll"]
    assert column(runs, "best") == ["50.00 (step 9)", "1 (step 8)"]
    assert column(runs, "last") == ["40.00", "3"]


def test_config_keys_that_differ_are_dotted_and_no_others_are_shown(pair: tuple[Path, Path]) -> None:
    grid = config_grid(read_runs(pair))
    assert grid.columns == ["key", "a/version_0", "b/version_3"]
    assert grid.rows == [
        ["model.lr", "0.1", "0.2"],
        ["model.heads.0.class_path", "Cosine", "Metric"],
        ["model.heads.0.p", "–", "2"],
    ]


def test_classes_of_one_name_keep_their_module(tmp_path: Path) -> None:
    folders = [make(tmp_path / name, data={"class_path": f"{name}.Set", "n": None}) for name in "ab"]
    assert config_grid(read_runs(folders)).rows == [["data.class_path", "a.Set", "b.Set"]]


def test_rows_told_apart_by_text_have_columns_and_of_others_the_last_counts(tmp_path: Path) -> None:
    episodes = [
        {"episodes": e, "head": h, "kind": "inductive", "accuracy": a, "ci95": 0.5, "n": 7}
        for e, h, a in (("5w1s", "x", 20.0), ("5w1s", "y", 30.0), ("5w5s", "x", 40.0))
    ]
    sequence = [{"query model": 0, "AA": 10.0}, {"query model": 1, "AA": 12.5}]
    grid = metric_grid(read_runs([make(tmp_path / "a", results=episodes), make(tmp_path / "b", results=sequence)]))
    assert dict(zip(grid.columns, grid.rows[0], strict=True)) == {
        "run": "a",
        "accuracy [5w1s, x]": "20.00 ± 0.5",
        "accuracy [5w1s, y]": "30.00 ± 0.5",
        "accuracy [5w5s, x]": "40.00 ± 0.5",
        "AA": "–",
        "steps": "–",
    }
    assert grid.rows[1][grid.columns.index("AA")] == "12.50"


def test_wanted_metrics_are_chosen_by_name_or_pattern_and_unknown_ones_refused(pair: tuple[Path, Path]) -> None:
    runs = read_runs(pair)
    assert metric_grid(runs, ["auc"]).columns[:2] == ["run", "auc"]
    assert column(list(pair), "last train/loss", ("train/*",)) == ["0.5", "0.25"]
    assert "accuracy" not in metric_grid(runs, ["train/*"]).columns
    with pytest.raises(ValueError, match=r"no run has 'acuracy'; there are accuracy"):
        metric_grid(runs, ["acuracy"])


def test_a_configs_folder_stands_for_its_newest_version_and_a_sweep_for_its_trials(tmp_path: Path) -> None:
    newest = [make(tmp_path / f"runs/x/version_{n}", METRICS) for n in (2, 10)][1]
    trials = [make(tmp_path / f"sweep/trials/trial_{n:04d}/version_0", METRICS) for n in (0, 1)]
    assert find_runs([str(tmp_path / "runs/x"), str(tmp_path / "sweep"), str(newest)]) == [newest, *trials]
    assert [r.name for r in read_runs(trials)] == ["trial_0000", "trial_0001"]
    with pytest.raises(FileNotFoundError, match=r"runs is no run: give a folder with config\.yaml"):
        find_runs([str(tmp_path / "runs"), str(newest)])
    with pytest.raises(ValueError, match="1 run to compare"):
        find_runs([str(newest), str(newest)])


def test_tasks_of_a_sequence_follow_each_other(tmp_path: Path) -> None:
    for task in range(2):
        make(tmp_path / f"s/version_0/task_{task:02d}", f"epoch,step,train/loss\n0,4,{task}\n1,9,{task + 0.5}\n")
    make(tmp_path / "t", METRICS)
    curves = read_runs(find_runs([str(tmp_path / "s"), str(tmp_path / "t")]))[0].curves
    assert curves == {"train/loss": [(4, 0.0), (9, 0.5), (14, 1.0), (19, 1.5)]}


def test_curves_have_a_panel_a_quantity_with_one_colour_a_run(pair: tuple[Path, Path]) -> None:
    figure = curves_figure(read_runs(pair))
    assert figure is not None
    panels = {ax.get_title(): ax for ax in figure.axes}
    assert list(panels) == ["val/accuracy", "train/loss"]  # the monitored one first; neither intervals nor speeds
    for ax in panels.values():
        assert [line.get_color() for line in ax.lines] == colours(2)
    assert list(panels["train/loss"].lines[1].get_ydata()) == [1.0, 0.25]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a/version_0", "b/version_3"]
    assert len(set(colours(50))) == 50


def test_page_holds_everything_in_one_file(
    tmp_path: Path, pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run([*map(str, pair), "--out", str(tmp_path / "out" / "page.html")])
    printed = capsys.readouterr().out
    assert "b/version_3: no results.csv" in printed
    assert re.search(r"model\.lr .* 0\.1 .* 0\.2", printed)
    html = (tmp_path / "out" / "page.html").read_text()

    class Cells(HTMLParser):
        found: list[str] = []
        sources: list[str] = []

        def handle_data(self, data: str) -> None:
            self.found.append(data)

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    cells = Cells()
    cells.feed(html)
    for text in ("61.25 ± 2.5", "model.lr", "0.2", "b/version_3: no results.csv"):
        assert text in cells.found
    (source,) = cells.sources
    picture = Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,"))))
    assert picture.width > picture.height  # two panels beside each other


def test_fifty_runs_make_one_readable_picture(tmp_path: Path) -> None:
    folders = [make(tmp_path / f"run_{n:02d}", f"epoch,step,val/x\n0,1,{n}\n0,2,{n + 1}\n") for n in range(50)]
    run([*map(str, folders), "--out", str(tmp_path / "curves.png")])
    width, height = Image.open(tmp_path / "curves.png").size
    assert 400 < width < 2000
    assert 400 < height < 2500


def test_brackets_and_dollars_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, accuracy in (("x$y_{$", 20.0), ("[z]", 30.0)):
        rows = [{"head": "none", "accuracy": accuracy}, {"head": "/x", "accuracy": accuracy + 1}]
        make(tmp_path / name, "epoch,step,val/a$_{$\n0,1,1\n0,2,2\n", rows, tag=f"[red]{accuracy}")
    run([str(tmp_path / "x$y_{$"), str(tmp_path / "[z]"), "--out", str(tmp_path / "page.html")])
    printed = capsys.readouterr().out
    for text in ("accuracy [none]", "accuracy [/x]", "[z]", "x$y_{$", "[red]20.0"):
        assert text in printed
    figure = curves_figure(read_runs([tmp_path / "x$y_{$", tmp_path / "[z]"]))
    assert figure is not None
    assert not any(text.get_parse_math() for text in [*figure.legends[0].get_texts(), figure.axes[0].title])


def test_results_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    console().print(results_table([{"head": "[/x]", "accuracy [none]": 1.234, "note": ":smile:"}], "Test results"))
    printed = capsys.readouterr().out
    for text in ("[/x]", "accuracy [none]", "1.23 ", ":smile:"):
        assert text in printed


@pytest.mark.parametrize(
    ("file", "content", "said", "left"),
    [
        ("config.yaml", b"a: [1", "while parsing a flow sequence", ["accuracy", "steps"]),
        ("config.yaml", b"", "empty: must be a mapping", ["accuracy", "steps"]),
        ("config.yaml", b"a: &a [{b: *a}]", "recursion", ["accuracy", "steps"]),
        ("metrics.csv", b"epoch,step,val/\xff\n0,1,2\n", "can't decode byte 0xff", ["accuracy"]),
        ("results.csv", b"a,b\n1\n", "line 2: not as many cells", ["steps"]),
    ],
)
def test_a_broken_file_is_named_and_the_rest_compared(
    file: str,
    content: bytes,
    said: str,
    left: list[str],
    tmp_path: Path,
    pair: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (pair[0] / file).write_bytes(content)
    first, _ = runs = read_runs(pair)
    assert first.missing == ()
    (reason,) = first.broken
    assert reason.startswith(str(pair[0] / file))
    assert said in reason
    assert reason.count(str(pair[0] / file)) == 1
    grid = metric_grid(runs)
    cells = dict(zip(grid.columns, grid.rows[0], strict=True))
    assert [name for name in ("accuracy", "steps") if cells.get(name, "–") != "–"] == left
    run([*map(str, pair), "--out", str(tmp_path / "page.html")])
    printed = "".join(capsys.readouterr().out.split())
    assert "".join(f"a/version_0: left out: {reason}".split()) in printed
    assert ("Fewerthantworunshaveaconfig" in printed) == (file == "config.yaml")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "x.pdf"], "must end in .html or .png"),
        (["nowhere"], "nowhere is no run"),
        (["--metrics", "zzz"], "no run has 'zzz'"),
    ],
)
def test_mistakes_are_one_line(
    pair: tuple[Path, Path], words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run([*map(str, pair), *words])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [{"head": "x", "n": 7, "accuracy": 20.0, "p": 1e-05, "gap": None}, {"head": "", "n": 8, "accuracy": 0.1}]
    write_rows(tmp_path / "r.csv", rows)
    assert read_rows(tmp_path / "r.csv") == [rows[0], {"head": None, "n": 8, "accuracy": 0.1, "p": None, "gap": None}]
    (tmp_path / "r.csv").write_text("a,b\n1\n")
    with pytest.raises(ValueError, match="line 2: not as many cells"):
        read_rows(tmp_path / "r.csv")
    (tmp_path / "r.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="line 2: no metrics of a run"):
        read_curves(tmp_path / "r.csv")
