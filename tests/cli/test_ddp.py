"""The whole command line on two gloo processes: fit, the test after it, and predict come to an end."""

import csv
import subprocess
import sys
from pathlib import Path

TINY = str(Path(__file__).parent / "tiny.yaml")


def test_fit_and_test_run_to_the_end_on_two_ranks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zoo", "fit", "--config", TINY, "--run_dir", str(tmp_path)]
    ranks = ["--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.max_epochs=1", "--checkpoint_every=2"]
    done = subprocess.run(command + ranks, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "tiny" / "version_0"
    assert sorted(p.name for p in (tmp_path / "tiny").iterdir()) == ["version_0"]
    with (folder / "results.csv").open() as stream:
        assert [row["n"] for row in csv.DictReader(stream)] == ["7"] * 4
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert (folder / "figures" / "training_curves.png").is_file()
