"""``python -m zoo fit`` over a sequence of tasks: folders, the matrix, kills in mid-task, replacements, errors."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from zoo.cli import ZooCLI, run
from zoo.pretrained import read_state

CONFIG = str(Path(__file__).parent / "sequence.yaml")
ER = ("--model.init_args.compatibility=null", "--model.init_args.classifier", "LearnableClassifier")


class Killed(Exception):
    """Stands for whatever ends a run in the middle."""


class KillAt(Callback):
    """Raises before a step of a task starts, or before its test, as a crash would."""

    def __init__(self, task: int, step: int | None) -> None:
        self.task, self.step = task, step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if (pl_module.task.number, trainer.global_step) == (self.task, self.step):
            raise Killed

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (pl_module.task.number, None) == (self.task, self.step):
            raise Killed


def fit(folder: Path, *args: str) -> ZooCLI:
    return run(["fit", "--config", CONFIG, "--run_dir", str(folder), *args])


def matrix(sequence: Path) -> list[list[str]]:
    with (sequence / "results.csv").open() as stream:
        return list(csv.reader(stream))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    fit(folder)
    return folder / "sequence" / "version_0"


def test_a_sequence_leaves_its_tasks_state_matrix_and_picture(fitted: Path) -> None:
    assert {str(p.relative_to(fitted)) for p in fitted.rglob("*") if p.is_file() and "task_0" not in str(p)} == {
        "config.yaml",
        "results.csv",
        "tasks.json",
        "figures/compatibility.png",
    }
    for number in range(3):
        folder = fitted / f"task_{number:02d}"
        assert {p.name for p in folder.iterdir()} == {
            *("config.yaml", "metrics.csv", "results.csv", "checkpoints", "figures", "gallery.safetensors")
        }
        assert len(matrix(folder)) == 1 + number + 1
    done = json.loads((fitted / "tasks.json").read_text())["tasks"]
    assert [(len(task["classes"]), task["known"], len(task["memory"])) for task in done] == [
        (4, 0, 0),
        (4, 4, 4 * 6),
        (4, 8, 8 * 6),
    ]
    header, *rows = matrix(fitted)
    assert header == ["query model", "gallery 0", "gallery 1", "gallery 2", "AC", "AA"]
    cells = [float(rows[t][1 + k]) for t in range(3) for k in range(t + 1)]
    assert float(rows[2][-1]) == pytest.approx(sum(cells) / 6)
    assert 25 < float(rows[0][1]) < 100  # chance is 20


def test_a_checkpoint_holds_neither_the_previous_model_nor_the_prototypes(fitted: Path) -> None:
    state = read_state(str(fitted))  # the last task's
    assert not [key for key in state if "previous" in key or "prototypes" in key]
    assert state["classifier.identity"].tolist()[2:] == [0, 12, 0]
    first = read_state(str(fitted / "task_00"))
    assert not torch.equal(first["backbone.blocks.0.0.weight"], state["backbone.blocks.0.0.weight"])


@pytest.mark.parametrize("step", [3, None], ids=["in mid-task", "before its test"])
def test_a_run_killed_within_a_task_ends_with_the_same_matrix(
    step: int | None, fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, stop = ZooCLI._instantiate_trainer, KillAt(1, step)
    monkeypatch.setattr(
        ZooCLI, "_instantiate_trainer", lambda self, config, callbacks: original(self, config, [*callbacks, stop])
    )
    with pytest.raises(Killed):
        fit(tmp_path, "--checkpoint_every=2")
    monkeypatch.undo()
    sequence = tmp_path / "sequence" / "version_0"
    assert len(json.loads((sequence / "tasks.json").read_text())["tasks"]) == 1
    fit(tmp_path, "--ckpt_path", "last")
    assert matrix(sequence) == matrix(fitted)
    assert not (tmp_path / "sequence" / "version_1").exists()
    ended, expected = read_state(str(sequence)), read_state(str(fitted))
    assert all(torch.equal(value, ended[name]) for name, value in expected.items())


def test_a_complete_sequence_is_not_run_again_and_other_data_are_refused(fitted: Path) -> None:
    before = (fitted / "task_02" / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    runs, table = fitted.parent.parent, (fitted / "results.csv").read_text()
    (fitted / "results.csv").unlink()  # as if killed before it was written
    assert fit(runs, "--ckpt_path", "last").sequence == fitted
    assert (fitted / "results.csv").read_text() == table
    assert (fitted / "task_02" / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="task 1 was trained on other classes, images or memory"):
        fit(runs, "--ckpt_path", "last", "--data.init_args.rehearsal=5")


def test_the_test_command_gives_the_same_matrix_and_names_missing_tasks(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "sequence" / "version_0"
    shutil.copytree(fitted, copy)
    expected = matrix(fitted)
    for left in copy.rglob("*"):
        if left.name in ("results.csv", "gallery.safetensors"):
            left.unlink()
    words = ["test", "--config", CONFIG, "--run_dir", str(tmp_path), "--ckpt_path", "last"]
    run(words)
    assert matrix(copy) == expected
    (copy / "task_00" / "checkpoints" / "last.ckpt").unlink()
    state = json.loads((copy / "tasks.json").read_text())
    (copy / "tasks.json").write_text(json.dumps({"tasks": state["tasks"][:2]}))  # killed within its last task
    with pytest.raises(SystemExit):
        run(words)
    assert "no finished model of task 0, 2" in capsys.readouterr().err
    assert matrix(copy) == expected


def test_er_drops_a_replacements_head_and_validates_and_predicts_after_it(fitted: Path, tmp_path: Path) -> None:
    start = f"--model.init_args.pretrained=[{fitted}]"
    fit(tmp_path, *ER, "--model.init_args.replace_at=[1]", start, "--data.init_args.classes=[0,8]")
    sequence = tmp_path / "sequence" / "version_0"
    assert read_state(str(sequence / "task_01"))["classifier.weight"].shape == (8, 24)
    assert len(matrix(sequence)) == 3
    cli = run(
        [
            *("validate", "--config", CONFIG, "--run_dir", str(tmp_path), "--ckpt_path", "last", *ER),
            "--data.init_args.classes=[0,8]",
        ]
    )
    assert cli.datamodule.task == 1
    assert 0 < cli.trainer.callback_metrics["val/accuracy"] <= 100


def test_a_task_starts_from_the_weights_it_should(fitted: Path, tmp_path: Path) -> None:
    more = ("--model.init_args.optimizer.init_args.lr=0", "--model.init_args.replace_at=[1]")
    fit(tmp_path, *more, f"--model.init_args.pretrained=[{server(tmp_path)}]", "--data.init_args.classes=[0,12]")
    sequence = tmp_path / "sequence" / "version_0"
    states = [read_state(str(sequence / f"task_{number:02d}")) for number in range(3)]
    pretrained = read_state(str(server(tmp_path)))
    name = "backbone.blocks.0.0.weight"
    assert torch.equal(states[1][name], pretrained[name])
    assert not torch.equal(states[0][name], pretrained[name])
    assert torch.equal(states[2][name], states[1][name])
    assert states[2]["classifier.identity"].tolist()[2:] == [0, 12, 4]


def test_hoc_follows_the_new_model_or_the_last_fine_tuned_one_at_a_replacement(tmp_path: Path) -> None:
    words = ("--model.init_args.replace_at=[1]", f"--model.init_args.pretrained=[{server(tmp_path)}]")
    more = ("--data.init_args.classes=[0,8]", "--model.init_args.optimizer.init_args.lr=0")
    name = "backbone.blocks.0.0.weight"
    for choice, same in (("new_pretrained", True), ("last_finetuned", False)):
        option = f"--model.init_args.compatibility.init_args.previous_at_replacement={choice}"
        cli = fit(tmp_path / choice, *words, *more, option)
        previous = cli.model.previous[0].state_dict()[name.removeprefix("backbone.")]
        first = read_state(str(cli.sequence / "task_00"))[name]
        assert torch.equal(previous, read_state(str(server(tmp_path)))[name]) == same
        assert torch.equal(previous, first) != same


def server(folder: Path) -> Path:
    """A model of four classes on the first rows, trained once."""
    runs = folder / "server"
    if not runs.exists():
        order = ["--model.init_args.classifier.init_args.label_order", "from_start"]
        fit(runs, "--run_name=server", *order, "--data.init_args.increment=0", "--model.init_args.compatibility=null")
    return runs / "server"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.init_args.replace_at=[0]"], r"replace_at names 1 tasks \[0\], but pretrained has 0"),
        (
            ["--model.init_args.replace_at=[2,1]", "--model.init_args.pretrained=[a,b]"],
            "must be ascending",
        ),
        (["--model.init_args.replace_at=[3]", "--model.init_args.pretrained=[a]"], "there are 3 tasks"),
        (["--model.init_args.replace_at=[2]", "--model.init_args.pretrained=[nowhere]"], "'nowhere' is neither a file"),
        (["--model.init_args.classifier.init_args.num_prototypes=11"], "less than 12 classes"),
        (["--model.init_args.classifier.init_args.junction=false"], "set junction=true"),
        (["--model.init_args.score=recall@7"], "score='recall@7' is none of the evaluator's: accuracy"),
        (["--data.init_args.retrieval=null"], "retrieval is null"),
    ],
)
def test_bad_input_is_named_before_any_training(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ZooCLI, "_instantiate_trainer", without_training(ZooCLI._instantiate_trainer))
    with pytest.raises((ValueError, FileNotFoundError, SystemExit)) as raised:
        fit(tmp_path, *args)
    assert re.search(message, f"{raised.value} {capsys.readouterr().err}")


def without_training(original: Any) -> Any:
    """The Trainer with a callback that ends the run before its first step."""
    return lambda self, config, callbacks: original(self, config, [*callbacks, KillAt(0, 0)])


def test_a_checkpoint_from_elsewhere_is_no_place_to_go_on_from(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, message in ((tmp_path, "is no checkpoint of a sequence"), (fitted.parent.parent, "task 0 of")):
        with pytest.raises(SystemExit):
            fit(folder, f"--ckpt_path={fitted / 'task_00' / 'checkpoints' / 'last.ckpt'}")
        assert message in capsys.readouterr().err


def test_a_sequence_needs_tasks_and_a_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fit(tmp_path, "--trainer.fast_dev_run=true")
    assert "leave out fast_dev_run" in capsys.readouterr().err
