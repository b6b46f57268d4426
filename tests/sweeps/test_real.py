"""A sweep of real trainings on bundled data, killed in the middle."""

import csv
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from zoo.catalogue import find_config

LR = "model.init_args.optimizer.init_args.lr"


@pytest.mark.slow
def test_finds_a_better_learning_rate_than_a_planted_default_and_survives_kill_9(tmp_path: Path) -> None:
    experiment = yaml.safe_load(find_config("few_shot/protonet_omniglot").read_text(encoding="utf-8"))
    experiment["model"]["init_args"]["optimizer"]["init_args"]["lr"] = 1e-6
    experiment["data"]["init_args"]["test"] = experiment["data"]["init_args"]["val"]
    experiment["trainer"] |= {"max_epochs": 1, "limit_train_batches": 15, "accelerator": "cpu"}
    (tmp_path / "planted.yaml").write_text(yaml.safe_dump(experiment))
    zoo = ["-m", "zoo", "fit", "--config", str(tmp_path / "planted.yaml")]
    sweep = {
        "program": "zoo/__main__.py",
        "command": ["${env}", "${interpreter}", *zoo, "--trainer.enable_progress_bar=false", "${args}"],
        "method": "bayes",
        "metric": {"name": "val/accuracy@5w1s", "goal": "maximize"},
        "run_cap": 12,
        "parameters": {LR: {"min": 1e-6, "max": 0.1, "distribution": "log_uniform_values"}},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    command = [sys.executable, "-m", "zoo", "sweep", str(tmp_path / "sweep.yaml"), "--local", "--workers", "2"]
    command += ["--sweep_dir", str(tmp_path)]
    folder = tmp_path / "sweep"
    process = subprocess.Popen(command)
    while not list(folder.glob("trials/trial_0003/version_0/metrics.csv")):
        assert process.poll() is None
        time.sleep(0.5)
    process.kill()
    process.wait()
    subprocess.run(command, check=True)
    rows = list(csv.DictReader((folder / "trials.csv").open(newline="")))
    assert [row["state"] for row in rows] == ["finished"] * 12
    assert [len(list((folder / "trials").glob(f"trial_{n:04d}/version_*/results.csv"))) for n in range(12)] == [1] * 12
    run = [sys.executable, *zoo[:3], "--run_dir", str(tmp_path / "runs"), "--config"]
    subprocess.run([*run, str(tmp_path / "planted.yaml")], check=True)
    subprocess.run([*run, str(folder / "best.yaml")], check=True)
    default, best = (accuracy(tmp_path / "runs" / name / "version_0") for name in ("planted", "best"))
    assert best == pytest.approx(max(float(row["val/accuracy@5w1s"]) for row in rows), abs=0.5)
    assert best > default + 5


def accuracy(run: Path) -> float:
    rows = csv.DictReader((run / "metrics.csv").open(newline=""))
    return [float(row["val/accuracy@5w1s"]) for row in rows if row["val/accuracy@5w1s"]][-1]
