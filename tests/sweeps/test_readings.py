"""What is read of a trial while it writes, and after it was resumed."""

import os
from pathlib import Path

from zoo.sweeps.readings import read, stamp


def version(trial: Path, number: int, **files: str) -> Path:
    run = trial / f"version_{number}"
    for name, text in files.items():
        file = run / (name.replace("__", "/") + ".csv")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return run


def test_rows_of_a_step_are_split_repeated_and_half_written(tmp_path: Path) -> None:
    text = "epoch,step,train/loss,val/loss\n0,9,1.0,\n0,9,,0.5\n1,19,,0.4\n1,19,,0.3\n1,19,0.9,\n2,29,,nan\n3,39,,0.2"
    version(tmp_path, 0, metrics=text)
    found = read(tmp_path, "val/loss")
    assert [str(value) for value in found.values] == ["0.5", "0.3", "nan"]  # the last row has no end yet
    assert found.finite == (0.5, 0.3)
    assert found.step == 29
    assert found.names == ("train/loss", "val/loss")


def test_the_newest_version_the_tasks_of_a_sequence_and_results(tmp_path: Path) -> None:
    old = version(tmp_path, 0, metrics="step,m\n0,9\n")
    os.utime(old, (1, 1))
    version(
        tmp_path,
        10,
        task_00__metrics="step,m\n0,1\n5,2\n",
        task_01__metrics="step,m\n0,3\n",
        results="query model,gallery 0,AA\n0,49.5,49.5\n1,50.5,51.25\n",
    )
    assert read(tmp_path, "m").values == (1.0, 2.0, 3.0)
    assert read(tmp_path, "AA").values == (51.25,)
    assert read(tmp_path, "query").values == ()
    assert read(tmp_path / "nothing", "m").values == ()


def test_a_stamp_changes_with_every_line_and_version(tmp_path: Path) -> None:
    assert stamp(tmp_path) == ()
    run = version(tmp_path, 0, metrics="step,m\n", task_00__metrics="step,m\n")
    first = stamp(tmp_path)
    assert stamp(tmp_path) == first
    with (run / "task_00" / "metrics.csv").open("a") as file:
        file.write("0,1\n")
    second = stamp(tmp_path)
    version(tmp_path, 0, results="m\n1\n")
    assert len({first, second, stamp(tmp_path)}) == 3
