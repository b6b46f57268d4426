"""Training over a sequence of tasks: one fit and one test a task, in a folder that a later command goes on with."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.rule import Rule

from datamodules.sources import atomic
from zoo.callbacks.figures import save_figure
from zoo.callbacks.summary import results_table, write_rows
from zoo.console import console

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATE = "tasks.json"


class Task(NamedTuple):
    """One task of a sequence.

    ``number`` counts from 0 to ``total`` - 1; ``known`` classes were learned before it, ``classes`` are known after it
    and ``final_classes`` after the last; ``folders`` are the run folders of all tasks, of which those before ``number``
    hold the weights that their task ended with.
    """

    number: int
    total: int
    known: int
    classes: int
    final_classes: int
    folders: tuple[Path, ...]


@runtime_checkable
class LearnsTasks(Protocol):
    """A LightningModule that is trained over a sequence of tasks."""

    task: Task | None

    def start_task(self, task: Task) -> None:
        """Take the weights and the shape that a task's fit starts from; called before the optimiser is made."""
        ...

    def sequence_results(self, folders: Sequence[Path]) -> list[dict[str, Any]]:
        """Flat rows over the tasks that are complete, from the ``results.csv`` in their folders."""
        ...

    def sequence_figures(self, folders: Sequence[Path]) -> "Mapping[str, Figure]":
        """Figures over the tasks that are complete, by file name without suffix."""
        ...


@runtime_checkable
class HasTasks(Protocol):
    """A LightningDataModule that hands out a sequence of tasks."""

    @property
    def num_tasks(self) -> int: ...

    def set_task(self, index: int) -> None: ...

    def classes_after(self, index: int) -> int: ...

    def describe(self, index: int) -> dict[str, Any]: ...

    def setup(self, stage: str) -> None: ...


class TaskStart(Callback):
    """Tells the module its task, once all ranks agree on the folder."""

    def __init__(self, index: int) -> None:
        self.index = index

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        log_dir = trainer.log_dir  # a broadcast: all ranks must ask
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert log_dir is not None
        assert isinstance(pl_module, LearnsTasks)
        folders = task_folders(Path(log_dir).parent, data.num_tasks)
        known, after = data.classes_after(self.index - 1), data.classes_after(self.index)
        final = data.classes_after(data.num_tasks - 1)
        pl_module.task = Task(self.index, data.num_tasks, known, after, final, folders)
        if stage == "fit":
            pl_module.start_task(pl_module.task)


def task_folders(sequence: Path, total: int) -> tuple[Path, ...]:
    """The run folders of the tasks of a sequence."""
    return tuple(sequence / f"task_{index:02d}" for index in range(total))


def task_of(checkpoint: Path) -> int | None:
    """The task whose folder a checkpoint lies in; None outside of a sequence."""
    parents = checkpoint.resolve().parents
    name = parents[1].name if len(parents) > 1 else ""
    return int(name.removeprefix("task_")) if name.startswith("task_") and name[5:].isdigit() else None


class SequenceState:
    """What a sequence has done, in its ``tasks.json``: for each complete task its classes, images and memory."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / STATE
        self.tasks: list[dict[str, Any]] = []
        if self.file.is_file():
            self.tasks = json.loads(self.file.read_text(encoding="utf-8"))["tasks"]

    def check(self, data: HasTasks) -> None:
        """Raises ``ValueError`` if the data no longer give the tasks that are complete."""
        for index, done in enumerate(self.tasks):
            if index >= data.num_tasks or done != _plain(data.describe(index)):
                raise ValueError(
                    f"{self.file}: task {index} was trained on other classes, images or memory than the config now "
                    "gives; restore the data's arguments, or start a new run without ckpt_path"
                )

    def complete(self, index: int, data: HasTasks) -> None:
        """Record task ``index``, unless it is there already."""
        if index == len(self.tasks):
            self.tasks.append(_plain(data.describe(index)))
            with atomic(self.file) as temporary:
                temporary.write_text(json.dumps({"tasks": self.tasks}), encoding="utf-8")


def _plain(description: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(description))
    return plain


def announce(index: int, data: HasTasks) -> None:
    """Print where in the sequence the run is."""
    known, after = data.classes_after(index - 1), data.classes_after(index)
    about = f"{after - known} new classes, {known} known, {len(data.describe(index)['memory'])} images in memory"
    console().print(Rule(f"Task {index + 1} of {data.num_tasks}: {about}"))


def show(sequence: Path, done: int, module: LearnsTasks) -> None:
    """Write and print what the sequence has shown so far: ``results.csv``, ``figures/`` and the config."""
    folders = task_folders(sequence, done)
    if not (sequence / "config.yaml").is_file() and (folders[0] / "config.yaml").is_file():
        shutil.copy(folders[0] / "config.yaml", sequence / "config.yaml")
    rows = module.sequence_results(folders)
    if rows:
        write_rows(sequence / "results.csv", rows)
        console().print(results_table(rows, f"After {done} task{'s' * (done > 1)}"))
    for name, figure in module.sequence_figures(folders).items():
        save_figure(sequence, name, figure)


def missing(folders: Sequence[Path], state: SequenceState) -> list[int]:
    """Numbers of the tasks that were not trained to their end, or whose folder holds no weights any more."""
    complete = len(state.tasks)
    return [i for i, folder in enumerate(folders) if i >= complete or not any(folder.glob("checkpoints/*.ckpt"))]
