"""Local sweeps of a stub of a training: search, side by side, kill and resume, failures, early stopping."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from zoo.sweeps.engine import LocalSweep, SweepFailed
from zoo.sweeps.processes import Child, worker_env
from zoo.sweeps.readings import read
from zoo.sweeps.sweep_file import SweepFile, read_sweep
from zoo.sweeps.table import SweepDisplay

HERE = Path(__file__).parent
X = {"x": {"min": 0.0, "max": 1.0}}


def sweep_file(folder: Path, *setup: str, **changes: Any) -> Path:
    content = {
        "program": str(HERE / "stub.py"),
        "method": "random",
        "metric": {"name": "val/loss", "goal": "minimize"},
        "parameters": X,
        "command": ["${env}", "${interpreter}", "${program}", *setup, "${args}"],
        **changes,
    }
    path = folder / "planted.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def make(file: Path, total: int, workers: int = 1, **settings: Any) -> LocalSweep:
    read: SweepFile = read_sweep(str(file))
    display = SweepDisplay(list(read.searched))
    return LocalSweep(read, file.parent / "sweep", total, workers, display, poll=0.02, **{"seed": 0, **settings})


def log(sweep: Path, number: int) -> list[list[str]]:
    text = (sweep / "trials" / f"trial_{number:04d}" / "version_0" / "log.txt").read_text()
    return [line.split() for line in text.splitlines()]


def test_twelve_trials_come_closer_to_the_planted_optimum_than_the_default(tmp_path: Path) -> None:
    sweep = make(sweep_file(tmp_path, method="bayes"), total=12, workers=2)
    assert sweep.run()
    best = sweep.records.best()
    assert best is not None
    assert best.value is not None
    assert [trial.state.name for trial in sweep.records.trials] == ["COMPLETE"] * 12
    assert best.value == pytest.approx((best.params["x"] - 0.3) ** 2 + 0.25)  # of the last step of four
    assert best.value - 0.25 < (1.0 - 0.3) ** 2 / 50  # the default is x = 1


def test_two_trials_run_side_by_side_and_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("zoo.sweeps.engine.cores", lambda: 6)
    sweep = make(sweep_file(tmp_path, "nap=0.1"), total=4, workers=2)
    assert sweep.run()
    spans = [(float(lines[0][-1]), float(lines[-1][-1])) for lines in (log(sweep.folder, n) for n in range(4))]
    at_once = [sum(start <= moment < end for start, end in spans) for moment, _ in spans]
    assert max(at_once) == 2
    assert {log(sweep.folder, number)[0][2] for number in range(4)} == {"3"}


@pytest.mark.parametrize(
    ("worker", "workers", "devices", "own"),
    [(1, 2, ["0", "1", "2", "3", "4"], "1,3"), (2, 3, ["4", "7"], "4"), (0, 1, ["GPU-a", "GPU-b"], "GPU-a,GPU-b")],
)
def test_workers_share_the_devices(worker: int, workers: int, devices: list[str], own: str) -> None:
    assert worker_env(worker, workers, devices, cores=8) == {"CUDA_VISIBLE_DEVICES": own}


def start(file: Path, total: int) -> "subprocess.Popen[str]":
    words = [sys.executable, str(HERE / "sweeper.py"), str(file), str(file.parent / "sweep"), str(total), "2"]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent)}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)


def wait_for(sweep: Path, number: int, steps: int) -> None:
    """Until a trial has made some steps."""
    place = sweep / "trials" / f"trial_{number:04d}" / "version_0" / "place.txt"
    until = time.monotonic() + 30
    while not (place.is_file() and place.read_text() and int(place.read_text()) >= steps):
        assert time.monotonic() < until, f"trial {number} has not come to step {steps}"
        time.sleep(0.02)


def check_that_no_step_was_made_twice(sweep: Path, trials: int, steps: int) -> None:
    for number in range(trials):
        folder = sweep / "trials" / f"trial_{number:04d}" / "version_0"
        rows = (folder / "metrics.csv").read_text().splitlines()[1:]
        made = Counter(row.split(",")[0] for row in rows if row.endswith(","))
        assert made == {str(step): 1 for step in range(steps)}, number
        assert [line[0] for line in log(sweep, number)].count("end") == 1, number
    assert len(list((sweep / "trials").iterdir())) == trials


def kill_at(file: Path, total: int, number: int) -> list[Child]:
    """Start a sweep, kill it when trial ``number`` has made a step, and return the two that it leaves behind."""
    process = start(file, total)
    wait_for(file.parent / "sweep", number, 1)
    process.kill()
    process.wait()
    folders = [file.parent / "sweep" / "trials" / f"trial_{n:04d}" for n in (number - 1, number)]
    orphans = [found for folder in folders if (found := Child.find(folder))]
    assert len(orphans) == 2
    return orphans


def test_goes_on_after_kill_9_with_the_same_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = sweep_file(tmp_path, "nap=0.08", "steps=5")
    orphans = kill_at(file, 12, 5)
    sweep = make(file, 12, workers=2)
    assert sweep.run()
    assert "trial_0005 still runs: stopping it" in capsys.readouterr().out
    assert all(orphan.ended() for orphan in orphans)
    assert [trial.state.name for trial in sweep.records.trials] == ["COMPLETE"] * 12
    check_that_no_step_was_made_twice(sweep.folder, 12, 5)
    assert [line[1] for line in log(sweep.folder, 5) if line[0] == "start"] != ["0"]  # it went on
    (tmp_path / "other").mkdir()
    unbroken = make(sweep_file(tmp_path / "other", "steps=1"), 12, workers=4)
    assert unbroken.run()
    assert [trial.params["x"] for trial in sweep.records.trials] == [
        trial.params["x"] for trial in unbroken.records.trials
    ]


def test_a_trial_that_ended_while_nobody_looked_is_not_run_again(tmp_path: Path) -> None:
    file = sweep_file(tmp_path, "nap=0.1")
    for orphan in kill_at(file, 3, 1):
        while not orphan.ended():
            time.sleep(0.02)
    sweep = make(file, 3, workers=2)
    assert sweep.run()
    assert [len([line for line in log(sweep.folder, n) if line[0] == "start"]) for n in range(3)] == [1, 1, 1]
    check_that_no_step_was_made_twice(sweep.folder, 3, 4)


def test_goes_on_after_ctrl_c_where_the_trials_have_saved(tmp_path: Path) -> None:
    file, sweep = sweep_file(tmp_path, "nap=0.1", "steps=8"), tmp_path / "sweep"
    process = start(file, 4)
    wait_for(sweep, 1, 2)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "press Ctrl-C again" in said
    places = [int(log(sweep, number)[-1][1]) for number in (0, 1)]
    assert all(log(sweep, number)[-1][0] == "stop" and 2 <= place < 8 for number, place in enumerate(places))
    resumed = make(file, 4, workers=2)
    assert resumed.run()
    assert [[line[1] for line in log(sweep, number) if line[0] == "start"] for number in (0, 1)] == [
        ["0", str(place)] for place in places
    ]
    check_that_no_step_was_made_twice(sweep, 4, 8)


def test_a_failing_trial_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    points = {"x": {"values": [0.5, 0.1, 0.3]}}
    sweep = make(sweep_file(tmp_path, "fail=0.1", method="grid", parameters=points), total=9)
    assert sweep.run()
    assert [trial.state.name for trial in sweep.records.trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert sweep.records.trials[1].user_attrs["error"] == "exit status 3: first line\nthe data are\nnot there"


def test_three_failures_and_nothing_else_end_a_sweep(tmp_path: Path) -> None:
    sweep = make(sweep_file(tmp_path, "fail=all"), total=12)
    with pytest.raises(SweepFailed, match=r"(?s)first 3 trials failed.*not there"):
        sweep.run()
    assert len(sweep.records.trials) == 3


def test_the_first_trial_without_the_metric_ends_the_sweep_and_the_metric_may_be_mended(tmp_path: Path) -> None:
    setup = ("steps=2", "metric=val/lost")
    sweep = make(sweep_file(tmp_path, *setup), total=3)
    with pytest.raises(
        SweepFailed, match="trial_0000 failed: it has not logged val/loss, but val/lost, train/loss; mend"
    ):
        sweep.run()
    mended = {"name": "val/lost", "goal": "maximize"}
    sweep = make(sweep_file(tmp_path, *setup, metric=mended), total=3)
    assert sweep.run()
    assert [trial.state.name for trial in sweep.records.trials] == ["FAIL", *["COMPLETE"] * 3]  # the first ran again
    assert [trial.user_attrs.get("retry_of") for trial in sweep.records.trials] == [None, 0, None, None]
    best = sweep.records.best()
    assert best is not None
    assert best.value == max(trial.value or 0.0 for trial in sweep.records.trials)
    assert sweep.records.study.best_trial.number == best.number  # Optuna searches for the same
    with pytest.raises(ValueError, match="metric changed since"):
        make(sweep_file(tmp_path, *setup), total=3).run()


def test_a_sweep_of_failures_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(SweepFailed, match=r"(?s)no trial has succeeded.*not there"):
        make(sweep_file(tmp_path, "fail=all"), total=2).run()


def states(sweep: LocalSweep) -> list[str]:
    return [trial.state.name for trial in sweep.records.trials]


def test_failed_trials_are_run_again_on_request(tmp_path: Path) -> None:
    points = {"x": {"values": [0.5, 0.1, 0.3]}}
    file = sweep_file(tmp_path, f"broken={tmp_path / 'broken'}", "fail=0.1", method="grid", parameters=points)
    (tmp_path / "broken").touch()
    assert make(file, 9).run()
    (tmp_path / "broken").unlink()
    sweep = make(file, 9)
    assert sweep.run()
    assert states(sweep) == ["COMPLETE", "FAIL", "COMPLETE"]
    for _ in range(2):  # the second has nothing left to do
        sweep = make(file, 9, retry_failed=True)
        assert sweep.run()
        assert states(sweep) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert sweep.records.trials[3].params == sweep.records.trials[1].params == {"x": "0.1"}
    assert sweep.records.finished == 3


def test_after_nothing_but_failures_the_next_session_runs_them_again(tmp_path: Path) -> None:
    points = {"x": {"values": [0.5, 0.1, 0.3, 0.4]}}
    file = sweep_file(tmp_path, f"broken={tmp_path / 'broken'}", "fail=all", method="grid", parameters=points)
    (tmp_path / "broken").touch()
    with pytest.raises(SweepFailed):
        make(file, 9).run()
    (tmp_path / "broken").unlink()
    sweep = make(file, 9)
    assert sweep.run()
    done = {trial.params["x"] for trial in sweep.records.trials if trial.state.name == "COMPLETE"}
    assert done == {"0.5", "0.1", "0.3", "0.4"}
    assert states(sweep) == ["FAIL"] * 3 + ["COMPLETE"] * 4


def test_draws_follow_the_seed_of_the_folder(tmp_path: Path) -> None:
    def draws(name: str, **settings: Any) -> list[float]:
        (tmp_path / name).mkdir(exist_ok=True)
        sweep = make(sweep_file(tmp_path / name, "steps=1"), 2, **settings)
        assert sweep.run()
        return [trial.params["x"] for trial in sweep.records.trials]

    assert draws("a", seed=1) == draws("b", seed=1) == draws("a", seed=None)  # kept
    assert draws("a", seed=1) != draws("c", seed=2)
    assert draws("d", seed=None) != draws("e", seed=None)
    with pytest.raises(ValueError, match=r"--seed 3: .* has seed 1"):
        draws("a", seed=3)


def test_a_soft_stop_reaches_through_a_wrapper(tmp_path: Path) -> None:
    words = [
        "/bin/sh",
        "-c",
        '"$@"; exit $?',
        "wrapper",
        "${interpreter}",
        "${program}",
        "nap=0.1",
        "steps=50",
        "${args}",
    ]
    file, sweep = sweep_file(tmp_path, command=words), tmp_path / "sweep"
    process = start(file, 1)
    wait_for(sweep, 0, 2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert log(sweep, 0)[-1][0] == "stop"


def test_what_outlives_its_keeper_is_ended(tmp_path: Path) -> None:
    file, sweep = sweep_file(tmp_path, "nap=0.2", "steps=50"), tmp_path / "sweep"
    process = start(file, 1)
    wait_for(sweep, 0, 1)
    child = Child.find(sweep / "trials" / "trial_0000")
    assert child is not None
    trial = child.process.children()[0]
    child.process.kill()
    process.communicate(timeout=30)
    psutil.wait_procs([trial], timeout=5)
    assert not trial.is_running() or trial.status() == psutil.STATUS_ZOMBIE


def test_only_what_has_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    monkeypatch.setattr("zoo.sweeps.records.read", lambda *given: reads.append("") or read(*given))
    sweep = make(sweep_file(tmp_path, "nap=0.4", "steps=2"), 1)
    assert sweep.run()
    assert 1 <= len(reads) <= 6  # of 40 looks; its files are made and written 4 times


def test_trials_that_lag_are_stopped_early(tmp_path: Path) -> None:
    points = {"x": {"values": [0.31, 0.9, 0.3, 0.8]}}
    stop = {"type": "hyperband", "min_iter": 2, "eta": 3}
    file = sweep_file(tmp_path, "nap=0.12", "steps=8", method="grid", parameters=points, early_terminate=stop)
    sweep = make(file, total=4)
    assert sweep.run()
    assert [trial.state.name for trial in sweep.records.trials] == ["COMPLETE", "PRUNED", "COMPLETE", "PRUNED"]
    assert [log(sweep.folder, number)[-1][0] for number in (1, 3)] == ["stop", "stop"]
    steps = len(sweep.records.trials[1].intermediate_values)
    assert 2 <= steps <= 5
    assert sweep.records.trials[1].value == pytest.approx(0.36 + 1 / steps)
    best = sweep.records.best()
    assert best is not None
    assert best.number == 2


def test_a_sweep_ends_when_a_trial_reaches_the_target(tmp_path: Path) -> None:
    metric = {"name": "val/loss", "goal": "minimize", "target": 0.255}
    points = {"x": {"values": [0.9, 0.31, 0.5, 0.7]}}
    sweep = make(sweep_file(tmp_path, method="grid", metric=metric, parameters=points), total=4)
    assert sweep.run()
    assert len(sweep.records.trials) == 2


def test_a_changed_file_and_a_folder_in_use_are_refused(tmp_path: Path) -> None:
    file, sweep = sweep_file(tmp_path, "nap=0.2"), tmp_path / "sweep"
    process = start(file, 3)
    wait_for(sweep, 0, 1)
    with pytest.raises(ValueError, match="is in use by another sweep command"):
        make(file, 3).run()
    process.terminate()
    process.wait(30)
    changed = sweep_file(tmp_path, parameters={"x": {"min": 0.0, "max": 2.0}})
    with pytest.raises(ValueError, match="command, parameters changed since"):
        make(changed, 3).run()
    assert make(sweep_file(tmp_path, "nap=0.2", run_cap=2, project="mine"), 2).run()
