"""``--ckpt_path`` by catalogue name and exported folder; what does not fit is one clear error."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from zoo import catalogue, pretrained
from zoo.cli import ZooCLI, run
from zoo.exporting import export

CONFIG = "noise_mask/baseline_pneumonia"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``run`` is a run folder of a classifier and ``exported`` what was exported of it."""
    folder = tmp_path_factory.mktemp("trained")
    words = ["--model.init_args.backbone.init_args.width=4", "--trainer.logger=false"]
    model = run(["--config", CONFIG, *words], execute=False).model
    (folder / "run" / "checkpoints").mkdir(parents=True)
    content = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "pytorch-lightning_version": "2.6.0",
        "global_step": 5,
        "epoch": 0,
    }
    torch.save(content, folder / "run" / "checkpoints" / "last.ckpt")
    export(str(folder / "run"), folder / "exported")
    return folder


def command(subcommand: str, checkpoint: str, tmp_path: Path, width: int = 4, classes: int = 2) -> Any:
    return run(
        [
            *(subcommand, "--config", CONFIG, "--run_dir", str(tmp_path), f"--ckpt_path={checkpoint}"),
            *(f"--model.init_args.backbone.init_args.width={width}", f"--model.init_args.num_classes={classes}"),
            *("--trainer.limit_test_batches=2", "--trainer.limit_val_batches=2", "--trainer.enable_progress_bar=false"),
        ]
    )


@pytest.mark.parametrize("subcommand", ["validate", "test"])
def test_an_exported_folder_scores_as_the_checkpoint_that_it_is_of(
    subcommand: str, trained: Path, tmp_path: Path
) -> None:
    file = str(trained / "run" / "checkpoints" / "last.ckpt")
    expected = command(subcommand, file, tmp_path).trainer.callback_metrics
    for name in ("exported", "exported/model.safetensors"):
        assert command(subcommand, str(trained / name), tmp_path).trainer.callback_metrics == expected


def test_a_name_of_the_catalogue_scores_as_init_from_does(tmp_path: Path) -> None:
    name = "few_shot/conv64f_omniglot"
    words = ["test", "--config", "few_shot/heads_omniglot", "--run_dir", str(tmp_path)]
    words += [f"--data.init_args.{which}" for which in ("base_mean=false", "degrade=null")]
    words += ['--data.init_args.test=[{"way": 5, "shot": 1, "query": 5, "episodes": 40}]']
    words += ['--model.init_args.heads={"cosine": {"class_path": "NearestCentroid"}}']
    words += ["--trainer.enable_progress_bar=false"]
    start = run([*words, f"--model.init_args.init_from=zoo://{name}"]).trainer.callback_metrics
    named = run([*words, "--model.init_args.init_from=null", f"--ckpt_path=zoo://{name}"]).trainer.callback_metrics
    assert named == start
    assert start["test/accuracy@5w1s"] > 60


def refusal(capsys: pytest.CaptureFixture[str], *given: Any, **more: Any) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit):
        command(*given, **more)
    printed = capsys.readouterr().err
    return printed[printed.index("error: ") :]


def test_fit_points_to_init_from(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "fit", str(trained / "exported"), tmp_path)
    assert "exported holds weights only; resume from last, or start from it by init_from" in said


@pytest.mark.parametrize("name", ["exported", "run/checkpoints/last.ckpt"])
def test_another_class_count_is_one_sentence(
    name: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, "test", str(trained / name), tmp_path, classes=3)
    assert "does not fit ImageClassifier: head.weight is (2, 4) there and (3, 4) in the model" in said
    assert "that is another number of classes" in said
    said = refusal(capsys, "test", str(trained / name), tmp_path, width=8)
    assert "backbone.blocks.0.0.weight is (4, 1, 3, 3) there and (8, 1, 3, 3) in the model" in said
    assert "as are" in said
    assert "another number" not in said
    assert len(said) < 700


def test_an_unknown_name_is_an_error_before_anything_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "few_shot/conv64f_omniglot" in refusal(capsys, "test", "zoo://noise_mask/none", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "hf://nobody/none cannot be fetched" in refusal(capsys, "test", "hf://nobody/none", tmp_path)


def test_a_loaded_model_saves_checkpoints_that_load(trained: Path, tmp_path: Path) -> None:
    cli = command("test", str(trained / "exported"), tmp_path)
    cli.trainer.save_checkpoint(tmp_path / "again.ckpt")
    again = zoo.load(str(tmp_path / "again.ckpt"))
    expected = pretrained.read_state(str(trained / "exported"))
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize(
    ("config", "name", "metric", "value"),
    [
        # whose config starts from a run that is not here
        ("noise_mask/finetune_pneumonia", "noise_mask/finetune_pneumonia", "test/balanced_accuracy", 81.24),
        # whose method learns a sequence of tasks
        ("stationary/server_omniglot", "stationary/simplex_omniglot_456", "test/accuracy", 84.38),
    ],
)
def test_a_checkpoint_alone_is_enough_to_test_it(
    config: str, name: str, metric: str, value: float, tmp_path: Path
) -> None:
    words = ["test", "--config", config, "--run_dir", str(tmp_path), f"--ckpt_path=zoo://{name}"]
    cli = run([*words, "--trainer.enable_progress_bar=false"])
    assert float(cli.trainer.callback_metrics[metric]) == pytest.approx(value, abs=0.1)


def test_a_model_from_scratch_is_tested_on_data_without_a_training_split(tmp_path: Path) -> None:
    texts = ["red apple", "green pear", "blue plum"]
    for name, rows in (("corpus", texts), ("queries", texts)):
        lines = [json.dumps({"_id": f"{name}{at}", "title": "", "text": text}) for at, text in enumerate(rows)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "qrels").mkdir()
    qrels = "".join(f"queries{at}\tcorpus{at}\t1\n" for at in range(3))
    (tmp_path / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{qrels}", encoding="utf-8")
    words = ["--config", "dense_retrieval/retriever_topics", "--run_dir", str(tmp_path / "runs")]
    words += ["--model.init_args.embedder.init_args.language_model.init_args.init_from=null"]
    model: Any = run([*words, "--trainer.logger=false"], execute=False).model
    model.network.build(texts)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "a.ckpt")
    words += [f"--data.init_args.dataset={{class_path: BeirFolder, init_args: {{root: {tmp_path}}}}}"]
    cli = run(["test", *words, f"--ckpt_path={tmp_path / 'a.ckpt'}", "--trainer.enable_progress_bar=false"])
    assert 0 < cli.trainer.callback_metrics["test/mrr@10"] <= 1


@pytest.mark.parametrize("subcommand", ["fit", "test"])
def test_a_run_folder_stands_for_its_checkpoint(subcommand: str, trained: Path, tmp_path: Path) -> None:
    if subcommand == "test":
        expected = command("test", str(trained / "run" / "checkpoints" / "last.ckpt"), tmp_path)
        found = command("test", str(trained / "run"), tmp_path)
        assert found.trainer.callback_metrics == expected.trainer.callback_metrics
        return
    words = ["fit", "--config", CONFIG, "--run_dir", str(tmp_path), "--model.init_args.backbone.init_args.width=4"]
    words += ["--trainer.limit_train_batches=4", "--trainer.limit_val_batches=2", "--test_after_fit=false"]
    words += ["--trainer.max_epochs=3", "--trainer.enable_progress_bar=false"]
    first: Any = run([*words, "--trainer.max_steps=1"]).trainer
    (Path(first.log_dir) / "checkpoints" / "best.ckpt").touch()  # has no optimiser, so that no fit goes on from it
    for folder, steps in ((Path(first.log_dir), 2), (Path(first.log_dir).parent, 3)):
        trainer = run([*words, f"--trainer.max_steps={steps}", f"--ckpt_path={folder}"]).trainer
        assert trainer.global_step == steps
        assert trainer.log_dir == first.log_dir


class Trace:
    """Leaves a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("subcommand", ["fit", "test"])
def test_damaged_and_malicious_checkpoints_are_a_few_lines_before_anything_is_built(
    subcommand: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ZooCLI, "instantiate_classes", lambda self: pytest.fail("was built"))
    broken, folder = tmp_path / "broken", tmp_path / "none"
    shutil.copytree(trained / "exported", broken)
    (broken / "model.safetensors").write_bytes(b"1234")
    folder.mkdir()
    (tmp_path / "empty.ckpt").touch()
    torch.save({"state_dict": Trace(tmp_path / "ran")}, tmp_path / "evil.ckpt")
    wrong = [("empty.ckpt", "is damaged, or no file of torch.save"), ("evil.ckpt", "could run code; it was refused")]
    wrong += [("none", "is no checkpoint; give a file, a run folder, last or best")]
    wrong += [("broken", "holds weights only" if subcommand == "fit" else "is damaged, or no safetensors|differs from")]
    for name, reason in wrong:
        said = refusal(capsys, subcommand, str(tmp_path / name), tmp_path)
        assert re.search(rf"ckpt_path: .*({reason})", said)
        assert said.count("\n") <= 3
    assert not (tmp_path / "ran").exists()


def test_a_wrong_digest_is_not_called_missing(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = next(c for c in catalogue.checkpoints() if c.name == "few_shot/conv64f_omniglot")
    files = dict.fromkeys(entry.files, "0" * 64)
    monkeypatch.setattr(catalogue, "checkpoints", lambda: [dataclasses.replace(entry, files=files)])
    said = refusal(capsys, "test", f"zoo://{entry.name}", tmp_path)
    assert "differs from the catalogue's sha256" in said
    assert "does not exist" not in said


def test_a_start_that_does_not_fit_is_one_sentence(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", "--config", CONFIG, "--run_dir", str(tmp_path), "--model.init_args.backbone.init_args.width=4"]
    for start, classes, reason in (
        (trained / "exported", 3, "its head has 2 classes, this model has 3: set reset_head=true"),
        (tmp_path / "none", 2, "none' is neither a file, a run folder"),
    ):
        capsys.readouterr()
        more = [f"--model.init_args.init_from={start}", f"--model.init_args.num_classes={classes}"]
        with pytest.raises(SystemExit) as stop:
            run([*words, *more])
        said = capsys.readouterr().err
        assert stop.value.code == 2
        assert reason in said
        assert said[said.index("error: ") :].count("\n") <= 2
        assert "Union" not in said


def test_weights_of_a_library_are_not_fetched_for_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    words = ["--config", CONFIG, "--run_dir", str(tmp_path), "--model.init_args.backbone.class_path=TimmBackbone"]
    words += [f"--model.init_args.backbone.init_args.{x}" for x in ("name=resnet10t", "in_channels=1")]
    model: Any = run([*words, "--trainer.logger=false"], execute=False).model
    torch.save({"state_dict": model.state_dict()}, tmp_path / "a.ckpt")
    asked: list[bool] = []
    make = timm.create_model

    def create(*given: Any, pretrained: bool = False, **more: Any) -> Any:
        asked.append(pretrained)
        return make(*given, **more)

    monkeypatch.setattr(timm, "create_model", create)
    words += ["--model.init_args.backbone.init_args.pretrained=true", "--trainer.limit_test_batches=1"]
    run(["test", *words, f"--ckpt_path={tmp_path / 'a.ckpt'}", "--trainer.enable_progress_bar=false"])
    assert asked == [False]
    run([*words, "--trainer.logger=false"], execute=False)
    assert asked == [False, True]  # without a checkpoint they are


def test_a_language_model_alone_does_not_pass_for_another_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, "test", "zoo://llm_rl/tiny_arithmetic", tmp_path)
    assert "does not fit ImageClassifier: it holds the weights of one language model, and the model has 0" in said
