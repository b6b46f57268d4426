"""``python -m zoo`` in this process: run folders, resuming, errors, predictions."""

import csv
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from PIL import Image

from datamodules.search import Search
from datamodules.sources import bundled
from zoo.__main__ import command_line
from zoo.cli import ZooCLI, run
from zoo.pretrained import read_state

TINY = str(Path(__file__).parent / "tiny.yaml")


class Killed(Exception):
    """Stands for whatever ends a run in the middle."""


class KillAt(Callback):
    """Raises before a step starts, as a crash would, or presses Ctrl-C."""

    def __init__(self, step: int, press: bool = False) -> None:
        self.step, self.press = step, press

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            if not self.press:
                raise Killed
            signal.raise_signal(signal.SIGINT)


def fit(folder: Path, *args: str) -> ZooCLI:
    return run(["fit", "--config", TINY, "--run_dir", str(folder), *args])


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_state(str(folder / "tiny" / "version_0" / "checkpoints" / "last.ckpt"))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ZooCLI]:
    folder = tmp_path_factory.mktemp("runs")
    return folder, fit(folder)


def test_run_folder_holds_config_metrics_checkpoints_results_and_figures(fitted: tuple[Path, ZooCLI]) -> None:
    folder = fitted[0] / "tiny" / "version_0"
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == {
        "config.yaml",
        "metrics.csv",
        "results.csv",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "figures/training_curves.png",
        "figures/accuracy_by_shots.png",
        "figures/episode.png",
    }
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["class_path"] == "zoo.few_shot.CRLNet"
    with (folder / "results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(r["episodes"], r["head"]) for r in rows] == [
        (spec, head) for spec in ("5w1s", "5w2s-hard") for head in ("crlnet", "cosine")
    ]
    assert all(r["n"] == "7" for r in rows)


def test_checkpoint_rebuilds_the_model_without_its_config(fitted: tuple[Path, ZooCLI]) -> None:
    path = fitted[0] / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    model = LightningModule.load_from_checkpoint(path, weights_only=True)
    assert type(model).__name__ == "CRLNet"
    expected = last_weights(fitted[0])
    assert expected.keys() == model.state_dict().keys()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_a_checkpoint_does_not_need_the_weights_its_run_started_from(
    fitted: tuple[Path, ZooCLI], tmp_path: Path
) -> None:
    start = tmp_path / "start.ckpt"
    start.write_bytes((fitted[0] / "tiny" / "version_0" / "checkpoints" / "best.ckpt").read_bytes())
    fit(tmp_path, "--trainer.max_steps=1", "--checkpoint_every=1", f"--model.init_args.init_from={start}")
    start.unlink()
    last = tmp_path / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    model = LightningModule.load_from_checkpoint(last, weights_only=True)
    expected = read_state(str(fitted[0] / "tiny" / "version_0" / "checkpoints" / "best.ckpt"))
    assert torch.equal(model.backbone.blocks[0][0].weight, expected["backbone.blocks.0.0.weight"])


def test_a_run_folder_is_a_place_to_start_from(fitted: tuple[Path, ZooCLI]) -> None:
    from_run, from_runs = (read_state(str(fitted[0] / "tiny" / part)) for part in ("version_0", "."))
    assert from_run.keys() == from_runs.keys()
    assert "backbone.blocks.0.0.weight" in from_run


@pytest.mark.parametrize(("press", "saved"), [(False, 8), (True, 10)])
def test_stopped_in_mid_epoch_and_resumed_ends_with_the_same_weights(
    press: bool, saved: int, fitted: tuple[Path, ZooCLI], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, stop = ZooCLI._instantiate_trainer, KillAt(9, press)
    monkeypatch.setattr(
        ZooCLI, "_instantiate_trainer", lambda self, config, callbacks: original(self, config, [*callbacks, stop])
    )
    with pytest.raises(SystemExit if press else Killed):
        fit(tmp_path, "--checkpoint_every", "4")
    monkeypatch.undo()
    last = tmp_path / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    state = torch.load(last, weights_only=True)
    assert state["global_step"] == saved  # 6 steps an epoch: in the middle of the second
    best = next(v for k, v in state["callbacks"].items() if k.startswith("ModelCheckpoint"))
    assert best["best_model_score"] is not None
    assert Path(best["best_model_path"]).is_file()
    resumed = fit(tmp_path, "--ckpt_path", "last")
    assert resumed.trainer.log_dir.endswith("version_0")
    ended = last_weights(tmp_path)
    for name, value in last_weights(fitted[0]).items():
        assert torch.equal(value, ended[name]), name
    with (tmp_path / "tiny" / "version_0" / "metrics.csv").open() as stream:
        validated = [row["epoch"] for row in csv.DictReader(stream) if row["val/accuracy@5w1s-hard"]]
    assert validated == ["0", "1"]


def test_the_users_config_wins_over_the_checkpoints(fitted: tuple[Path, ZooCLI]) -> None:
    last = str(fitted[0] / "tiny" / "version_0" / "checkpoints" / "last.ckpt")
    cli = fit(
        fitted[0] / "other",
        "--ckpt_path",
        last,
        "--model.init_args.temperature=0.7",
        "--trainer.max_epochs=3",
        "--test_after_fit=false",
    )
    assert cli.model.temperature == 0.7
    assert cli.trainer.global_step == 18


def test_resuming_without_a_run_starts_from_the_beginning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"no last.ckpt below .*tiny yet"):
        cli = fit(tmp_path, "--ckpt_path", "last", "--trainer.max_steps=1", "--test_after_fit=false")
    assert cli.trainer.global_step == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.init_args.pairs_at_onse=3"], "Did you mean pairs_at_once?"),
        (["--model.init_args.backbone.init_args.chanels=3"], "Did you mean in_channels?"),
        (["--model.init_args.backbone.init_args.zzz=3"], "Conv64F takes in_channels, pools, width\n"),
        (["--model.init_args.optimizer.init_args.lrr=1"], "Did you mean lr?"),
        (["--model", "Crlnett"], "Did you mean CRLNet"),
        (["--trainer.max_epoks=3"], "Did you mean max_epochs"),
        (["--data.init_args.dataset=BundledOmniglott"], "Did you mean BundledOmniglot"),
        (["--monitor_mode=up"], "monitor_mode must be max or min, got 'up'"),
        (["--ckpt_path=nowhere.ckpt"], "'nowhere.ckpt' does not exist"),
        (["--ckpt_path=best"], "no best.ckpt below"),
    ],
)
def test_mistakes_are_named_with_the_nearest_right_word(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_code:
        fit(tmp_path, *args)
    assert exit_code.value.code == 2
    assert message in capsys.readouterr().err


def test_a_fit_does_not_go_on_from_the_best_weights(
    fitted: tuple[Path, ZooCLI], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        fit(tmp_path, "--ckpt_path", str(fitted[0] / "tiny" / "version_0" / "checkpoints" / "best.ckpt"))
    assert "best.ckpt holds weights only; resume from last" in capsys.readouterr().err


@pytest.mark.parametrize("null", ["null", "None"])
def test_a_part_of_a_part_takes_null(null: str, tmp_path: Path) -> None:
    words = ["--config", "llm_rl/sft_stack", "--run_dir", str(tmp_path)]
    cli = run([*words, f"--model.init_args.language_model.init_args.init_from={null}"], execute=False)
    assert cli.model.language_model.init_from == []


def test_an_unknown_config_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="did you mean few_shot/crlnet_omniglot"):
        run(["fit", "--config", "few_shot/crlnet_omniglo"])


def test_the_command_line_gives_a_reason_and_no_traceback_for_errors_of_the_zoo(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("zoo.__main__.main", lambda: Search(chunk=0))
    with pytest.raises(SystemExit) as exit_code:
        command_line()
    assert exit_code.value.code == "error: chunk=0: must be at least 1"
    monkeypatch.setattr("zoo.__main__.main", lambda: int("x"))
    with pytest.raises(ValueError, match="invalid literal"):
        command_line()


def test_a_map_size_that_does_not_fit_the_head_is_named(fitted: tuple[Path, ZooCLI], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"CRLNet head was built for 4x4 maps; got 3x3"):
        fit(tmp_path, "--model.init_args.image_size=32")


def test_predict_writes_names_and_probabilities(fitted: tuple[Path, ZooCLI], tmp_path: Path) -> None:
    import numpy as np

    with np.load(bundled("omniglot_small.npz")) as file:
        drawings = {str(n): 255 - i for n, i in zip(file["classes"], file["image"], strict=True) if "Tagalog" in str(n)}
    for name, images in list(drawings.items())[:3]:
        (tmp_path / "support" / name.split("/")[1]).mkdir(parents=True)
        for i in range(2 if name.endswith("1") else 1):
            Image.fromarray(images[i]).save(tmp_path / "support" / name.split("/")[1] / f"{i}.png")
        (tmp_path / "query").mkdir(exist_ok=True)
        Image.fromarray(images[5]).save(tmp_path / "query" / f"{name.split('/')[1]}.png")
    run(
        [
            *("predict", "--config", TINY, "--run_dir", str(fitted[0]), "--ckpt_path", "best"),
            *("--data.init_args.predict_support", str(tmp_path / "support")),
            *("--data.init_args.predict_query", str(tmp_path / "query")),
        ]
    )
    with (fitted[0] / "tiny" / "version_0" / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [Path(r["file"]).stem for r in rows] == ["character01", "character02", "character03"]
    config = yaml.safe_load((fitted[0] / "tiny" / "version_0" / "config.yaml").read_text())
    assert config["data"]["init_args"]["predict_query"] is None  # still the fit's, not the prediction's
    for row in rows:
        probability = {k: float(v) for k, v in row.items() if k.startswith("character")}
        assert sum(probability.values()) == pytest.approx(1, abs=1e-5)
        assert row["prediction"] == max(probability, key=probability.__getitem__)


def test_wandb_overlay_writes_offline_without_an_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    fit(tmp_path, "--config", "overlays/wandb", "--trainer.max_steps=1", "--test_after_fit=false")
    assert list(tmp_path.glob("runs/wandb/offline-run-*"))
    assert (tmp_path / "tiny" / "version_0" / "metrics.csv").is_file()
