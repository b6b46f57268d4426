"""What a run leaves in its folder, sent to Weights & Biases too: pictures, results, checkpoints."""

import netrc
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger

from zoo.callbacks.summary import read_rows
from zoo.console import console

RUN_ID = "wandb_id.txt"


class WandbFiles(Callback):
    """Sends figures, ``results.csv`` and checkpoints of the run folder to W&B, where the Trainer has a WandbLogger.

    The logger itself sends metrics and config. The id of the W&B run is kept in the run folder, where
    :func:`name_run` finds it.

    Args:
        checkpoints: send ``best.ckpt`` and ``last.ckpt`` at the end of a fit, as one artifact of type ``model`` with
            these aliases. Runs that are offline keep copies of both until they are synced.
    """

    def __init__(self, checkpoints: bool = True) -> None:
        self.checkpoints = checkpoints
        self._sent: dict[Path, int] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        log_dir = trainer.log_dir  # a broadcast: all ranks must ask
        logger = _logger(trainer)
        if log_dir is None or logger is None:
            return
        folder = Path(log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RUN_ID).write_text(f"{logger.experiment.id}\n", encoding="utf-8")
        self._sent = {file: file.stat().st_mtime_ns for file in _shown(folder)}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """After the hooks in which others write their files; not called if the run fails."""
        log_dir = trainer.log_dir
        logger = _logger(trainer)
        if log_dir is None or logger is None:
            return
        folder = Path(log_dir)
        for file in _shown(folder):
            if self._sent.get(file) != file.stat().st_mtime_ns:
                self._sent[file] = file.stat().st_mtime_ns
                _send(logger, file, "", trainer.global_step)
        if stage == "fit" and self.checkpoints:
            _send_checkpoints(logger, folder, trainer)


def _logger(trainer: Trainer) -> WandbLogger | None:
    """The Trainer's WandbLogger on the rank that talks to W&B."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    return loggers[0] if loggers and trainer.is_global_zero else None


def _shown(folder: Path) -> list[Path]:
    return [file for file in (*sorted(folder.glob("figures/*.png")), folder / "results.csv") if file.is_file()]


def send_sequence(trainer: Trainer, folder: Path) -> None:
    """Send figures and results of a sequence's folder to the W&B run of its latest task."""
    logger = _logger(trainer)
    if logger is not None:
        for file in _shown(folder):
            _send(logger, file, "sequence/", trainer.global_step)


def _send(logger: WandbLogger, file: Path, prefix: str, step: int) -> None:
    if file.suffix == ".png":
        logger.log_image(f"{prefix}figures/{file.stem}", [str(file)], step=step)
    elif rows := read_rows(file):
        logger.log_table(f"{prefix}{file.stem}", list(rows[0]), [list(row.values()) for row in rows], step=step)


def _send_checkpoints(logger: WandbLogger, folder: Path, trainer: Trainer) -> None:
    import wandb

    name = re.sub(r"[^\w.-]+", "-", f"{'-'.join(_name(folder))}-{logger.version}")[-128:]  # W&B allows no more
    about: dict[str, dict[str, Any]] = {"best": {}, "last": {"step": trainer.global_step}}
    chooser = trainer.checkpoint_callback
    if isinstance(chooser, ModelCheckpoint) and chooser.best_model_score is not None:
        about["best"] = {str(chooser.monitor): chooser.best_model_score.item()}
    for which, metadata in about.items():
        path = folder / "checkpoints" / f"{which}.ckpt"
        if path.exists():
            artifact = wandb.Artifact(name, type="model", metadata=metadata)
            if path.is_dir():  # sharded
                artifact.add_dir(str(path), name=path.name)
            else:
                artifact.add_file(str(path))
            logger.experiment.log_artifact(artifact, aliases=[which])


def _name(folder: Path) -> tuple[str, ...]:
    """``<config>``, ``version_<n>`` and, in a sequence, ``task_<n>``."""
    parts = folder.absolute().parts
    return parts[-3:] if parts[-1].startswith("task_") else parts[-2:]


def name_run(logger: WandbLogger, folder: Path) -> None:
    """Call a logger's run as the run folder is called, and go on with the one that has begun there before.

    Tasks of a sequence are a group of runs. What the config or the environment names, as an agent of a sweep does,
    stays. To be called before the logger begins its run.
    """
    name, file = _name(folder), folder / RUN_ID
    own = {"name": "/".join(name)}
    if len(name) == 3:
        own["group"] = "/".join(name[:2])
    if file.is_file():
        own["id"] = file.read_text(encoding="utf-8").strip()
    for key, variable in (("name", "WANDB_NAME"), ("group", "WANDB_RUN_GROUP"), ("id", "WANDB_RUN_ID")):
        if key in own and logger._wandb_init.get(key) is None and variable not in os.environ:
            logger._wandb_init[key] = own[key]
    if logger._wandb_init.get("dir"):  # W&B's own process may have been started in another folder
        logger._wandb_init["dir"] = str(Path(logger._wandb_init["dir"]).absolute())
    if logger._wandb_init.get("anonymous") is None:
        logger._wandb_init.pop("anonymous", None)  # W&B warns of the argument even without a value


def finish_wandb(failed: bool = False) -> None:
    """End this process's W&B run, if there is one; where it was offline, say how to sync all its parts."""
    run: Any = getattr(sys.modules.get("wandb"), "run", None)
    if run is None:
        return
    folder = Path(run.sync_dir)
    run.finish(exit_code=int(failed))
    if run.offline:
        parts = " ".join(str(_short(part)) for part in sorted(folder.parent.glob(f"offline-run-*-{run.id}")))
        console().print(f"To send this run to W&B: wandb sync {parts}", soft_wrap=True, highlight=False)


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


@contextmanager
def wandb_finished() -> Iterator[None]:
    """End the W&B run that begins inside, however that ends; one that was there before goes on."""
    if getattr(sys.modules.get("wandb"), "run", None) is not None:
        yield
        return
    failed = True
    try:
        yield
        failed = False
    finally:
        finish_wandb(failed)


def has_wandb_account() -> bool:
    """Whether a key for W&B's server is in the environment or was left by ``wandb login``."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    try:
        found = netrc.netrc(Path(os.environ.get("NETRC") or "~/.netrc").expanduser()).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return False
    return found is not None and bool(found[2])


def stay_offline_without_wandb_account() -> None:
    """W&B writes to disk alone, and quietly, unless an account is set up: a newcomer is never asked for one."""
    if not has_wandb_account():
        os.environ.setdefault("WANDB_MODE", "offline")
    if os.environ.get("WANDB_MODE") == "offline":
        os.environ.setdefault("WANDB_SILENT", "true")  # the one line that matters is printed at the end
