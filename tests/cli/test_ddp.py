"""The whole command line on two gloo processes."""

import csv
import subprocess
import sys
from pathlib import Path

from zoo.cli import run

HERE = Path(__file__).parent
RANKS = ("--trainer.strategy=ddp", "--trainer.devices=2")


def zoo(*words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zoo", *words], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_fit_and_test_run_to_the_end_on_two_ranks(tmp_path: Path) -> None:
    more = ["--trainer.max_epochs=1", "--checkpoint_every=2"]
    zoo("fit", "--config", str(HERE / "tiny.yaml"), "--run_dir", str(tmp_path), *RANKS, *more)
    folder = tmp_path / "tiny" / "version_0"
    assert sorted(p.name for p in (tmp_path / "tiny").iterdir()) == ["version_0"]
    with (folder / "results.csv").open() as stream:
        assert [row["n"] for row in csv.DictReader(stream)] == ["7"] * 4
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert (folder / "figures" / "training_curves.png").is_file()


def test_a_sequence_of_tasks_on_two_ranks_and_its_matrix_again_on_one(tmp_path: Path) -> None:
    words = ["--config", str(HERE / "sequence.yaml"), "--run_dir", str(tmp_path)]
    zoo("fit", *words, *RANKS, "--model.init_args.compatibility.init_args.gather_negatives=true")
    assert sorted(p.name for p in (tmp_path / "sequence").iterdir()) == ["version_0"]
    file = tmp_path / "sequence" / "version_0" / "results.csv"
    by_two = file.read_text()
    file.unlink()
    run(["test", *words, "--ckpt_path", "last"])
    assert file.read_text() == by_two
    assert len(by_two.splitlines()) == 4
