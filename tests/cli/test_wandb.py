"""What the overlay ``wandb`` logs, read back from the file that W&B writes offline."""

import base64
import csv
import hashlib
import json
import re
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger

from zoo.callbacks import WandbFiles
from zoo.callbacks.summary import read_rows
from zoo.callbacks.wandb import name_run, wandb_finished
from zoo.cli import run
from zoo.llm_rl.samples import SampleTable

TINY = str(Path(__file__).parent / "tiny.yaml")


def records(file: Path) -> Iterator[Any]:
    """The records of a ``.wandb`` file: a header, then blocks of 32 KiB as in LevelDB's log, parts with their CRC."""
    from wandb.proto import wandb_internal_pb2

    content, at, data = file.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        crc, size, kind = struct.unpack("<IHB", content[at : at + 7])
        part = content[at + 7 : at + 7 + size]
        if len(part) < size:
            return
        assert zlib.crc32(part, zlib.crc32(bytes([kind]))) & 0xFFFFFFFF == crc
        data, at = (data if kind in (3, 4) else b"") + part, at + 7 + size
        if kind in (1, 4):  # a whole record, or its last part
            yield wandb_internal_pb2.Record.FromString(data)


def history(items: list[Any]) -> list[dict[str, Any]]:
    """The rows that were logged, in order; media are dicts."""
    rows = []
    for record in items:
        if record.WhichOneof("record_type") == "history":
            row: dict[str, Any] = {}
            for item in record.history.item:
                *outer, last = item.nested_key or [item.key]
                inner = row
                for name in outer:
                    inner = inner.setdefault(name, {})
                inner[last] = json.loads(item.value_json)
            rows.append(row)
    return rows


def wandb_runs(folder: Path) -> list[list[Any]]:
    """The records of all runs, in the order in which they began; W&B's own process may still be writing the last."""
    until = monotonic() + 30
    while True:
        runs = [list(records(file)) for file in sorted(folder.glob("runs/wandb/offline-run-*/run-*.wandb"))]
        if all(any(r.WhichOneof("record_type") == "exit" for r in items) for items in runs):
            return runs
        assert monotonic() < until, "a run has no end"
        sleep(0.1)


def artifacts(items: list[Any]) -> list[Any]:
    """Those that are models."""
    return [r.artifact for r in items if r.WhichOneof("record_type") == "artifact" and r.artifact.type == "model"]


def md5(file: Path) -> str:
    return base64.b64encode(hashlib.md5(file.read_bytes()).digest()).decode()


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to run in, without a W&B account."""
    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_SILENT"):
            patch.delenv(name, raising=False)
        patch.setenv("NETRC", str(folder / "none"))
        patch.setenv("WANDB_DATA_DIR", str(folder / "staged"))
        patch.setenv("WANDB_CACHE_DIR", str(folder / "cached"))
        patch.chdir(folder)
        yield folder


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return re.findall(r"wandb sync (.*)", capsys.readouterr().out)


@pytest.fixture(scope="module")
def fitted(offline: Path) -> list[Any]:
    run(["fit", "--config", TINY, "--config", "overlays/wandb", "--run_dir", "out", "--trainer.log_every_n_steps=1"])
    (items,) = wandb_runs(offline)
    return items


def test_config_and_name_are_those_of_the_run_folder(offline: Path, fitted: list[Any]) -> None:
    folder = offline / "out/tiny/version_0"
    begun = next(record.run for record in fitted if record.WhichOneof("record_type") == "run")
    assert begun.display_name == "tiny/version_0"
    assert begun.run_id == (folder / "wandb_id.txt").read_text().strip()
    updates = [u for r in fitted if r.WhichOneof("record_type") == "config" for u in r.config.update]
    sent = next(json.loads(u.value_json) for u in updates if u.key == "cli")
    assert sent == yaml.safe_load((folder / "config.yaml").read_text())


def test_every_metric_has_the_values_of_metrics_csv(offline: Path, fitted: list[Any]) -> None:
    with (offline / "out/tiny/version_0/metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    logged = history(fitted)
    columns = [column for column in rows[0] if column not in ("epoch", "step")]
    assert {"train/loss", "val/accuracy@5w1s-hard", "test/accuracy@5w2s-hard", "fit/seconds"} <= set(columns)
    for column in columns:
        expected = [(int(row["step"]), float(row[column])) for row in rows if row[column]]
        assert [(row["trainer/global_step"], row[column]) for row in logged if column in row] == expected, column


def test_figures_and_results_are_those_of_the_run_folder_once(offline: Path, fitted: list[Any]) -> None:
    folder, logged = offline / "out/tiny/version_0", history(fitted)
    (media,) = offline.glob("runs/wandb/offline-run-*/files")
    drawn = sorted((folder / "figures").glob("*.png"))
    assert len(drawn) == 3
    for figure in drawn:
        (sent,) = [row[key] for row in logged if (key := f"figures/{figure.stem}") in row]
        (name,) = sent["filenames"]
        assert (media / name).read_bytes() == figure.read_bytes()
    (sent,) = [row["results"] for row in logged if "results" in row]
    table = json.loads((media / sent["path"]).read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert rows == read_rows(folder / "results.csv")
    assert len(rows) == 4


def test_checkpoints_are_artifacts_with_their_digests(offline: Path, fitted: list[Any]) -> None:
    models = {
        next(alias for alias in artifact.aliases if alias != "latest"): artifact for artifact in artifacts(fitted)
    }
    assert models.keys() == {"best", "last"}
    assert len({artifact.name for artifact in models.values()}) == 1
    for alias, artifact in models.items():
        file = offline / "out/tiny/version_0/checkpoints" / f"{alias}.ckpt"
        (entry,) = artifact.manifest.contents
        assert (entry.path, entry.digest) == (file.name, md5(file))
    assert json.loads(models["last"].metadata) == {"step": 12}
    assert json.loads(models["best"].metadata).keys() == {"val/accuracy@5w1s-hard"}


def test_a_resumed_fit_goes_on_with_its_run_and_the_line_to_sync_names_both_parts(
    offline: Path, fitted: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = (offline / "out/tiny/version_0/wandb_id.txt").read_text().strip()
    words = ["fit", "--config", TINY, "--config", "overlays/wandb", "--run_dir", "out", "--ckpt_path", "last"]
    run([*words, "--trainer.max_epochs=3", "--test_after_fit=false", "--trainer.callbacks.checkpoints=false"])
    (line,) = printed(capsys)
    assert sorted(line.split()) == sorted(str(p) for p in Path("runs/wandb").glob(f"offline-run-*-{run_id}"))
    assert len(line.split()) == 2
    later = wandb_runs(offline)[-1]
    assert {row["trainer/global_step"] for row in history(later) if "val/accuracy@5w1s-hard" in row} == {17}
    assert not artifacts(later)
    assert not [row for row in history(later) if "results" in row or "figures/episode" in row]


def test_sample_tables_are_those_of_the_run_folder(tmp_path: Path, offline: Path) -> None:
    logger = WandbLogger(save_dir=tmp_path / "runs", offline=True)
    rows = [{"id": n, "completion": f"1 + {n} = {n + 1}", "reward": n / 2, "answer": None} for n in range(2)]
    trainer = SimpleNamespace(
        global_step=5, log_dir=str(tmp_path), is_global_zero=True, logger=logger, loggers=[logger]
    )
    module = SimpleNamespace(sample_rows=lambda: rows)
    with wandb_finished():
        SampleTable(shown=0).on_train_batch_start(trainer, module, None, 0)  # type: ignore[arg-type]
    (logged,) = [row for row in history(wandb_runs(tmp_path)[0]) if "samples" in row]
    assert logged["trainer/global_step"] == 5
    (media,) = tmp_path.glob("runs/wandb/offline-run-*/files")
    table = json.loads((media / logged["samples"]["path"]).read_text())
    sent = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert sent == [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert sent[1] == {"step": 5, **rows[1]}


def test_nothing_happens_without_a_wandb_logger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer(logger=False, default_root_dir=tmp_path, barebones=False, accelerator="cpu")
    callback = WandbFiles()
    with wandb_finished():
        callback.setup(trainer, None, "fit")  # type: ignore[arg-type]
        callback.teardown(trainer, None, "fit")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
    assert not printed(capsys)


def test_a_failed_run_ends_failed_and_a_run_from_before_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stub:
        run: Any = None

    class Run:
        sync_dir, id, offline, ended = "x", "y", False, -1

        def finish(self, exit_code: int) -> None:
            self.ended = exit_code

    def interrupted(stub: Stub, inside: Run) -> None:
        with wandb_finished():
            stub.run = inside
            raise KeyboardInterrupt

    stub = Stub()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    inside = Run()
    with pytest.raises(KeyboardInterrupt):
        interrupted(stub, inside)
    assert inside.ended == 1
    stub.run = before = Run()
    with wandb_finished():
        pass
    assert before.ended == -1


def test_tasks_are_a_group_and_what_the_user_names_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "er" / "version_3" / "task_01"
    folder.mkdir(parents=True)
    (folder / "wandb_id.txt").write_text("abc\n")
    for name in ("WANDB_NAME", "WANDB_RUN_GROUP", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)

    def given(folder: Path, **arguments: str) -> dict[str, Any]:
        logger = WandbLogger(**arguments)  # type: ignore[arg-type]
        name_run(logger, folder)
        return {key: logger._wandb_init.get(key) for key in ("name", "group", "id")}

    assert given(folder) == {"name": "er/version_3/task_01", "group": "er/version_3", "id": "abc"}
    assert given(folder, name="mine", group="ours") == {"name": "mine", "group": "ours", "id": "abc"}
    assert given(folder.parent) == {"name": "er/version_3", "group": None, "id": None}
    monkeypatch.setenv("WANDB_RUN_ID", "of a sweep")
    assert given(folder)["id"] is None
