"""``python -m zoo fit|validate|test|predict``: LightningCLI with run folders, short names and safe resuming."""

import logging
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from datamodules.streams import key
from zoo import catalogue
from zoo.callbacks import Figures, KeepLast, PredictionTable, StepSeed, Summary, Throughput
from zoo.callbacks.wandb import (
    finish_wandb,
    name_run,
    send_sequence,
    stay_offline_without_wandb_account,
    wandb_finished,
)
from zoo.checkpoint_io import Content, check, is_exported, mismatch, read
from zoo.parser import ZooParser, with_config_paths
from zoo.pretrained import STARTS, DoesNotFit, locate, take
from zoo.run_folder import RunLogger, agent_version, find_checkpoint, last_of, version_of
from zoo.tasks import HasTasks, LearnsTasks, SequenceState, TaskStart, announce, missing, show, task_folders, task_of


class SaveConfig(SaveConfigCallback):
    """Saves the resolved config in the run folder (a fit's as ``config.yaml``), and to W&B under the key ``cli``."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        config = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.config.update({"cli": config}, allow_val_change=True)


class ZooCLI(LightningCLI):
    """LightningCLI in subclass mode. The user's config always wins over what a checkpoint has stored.

    A module that ``LearnsTasks`` is fitted and tested task by task, each with a Trainer and a run folder of its own
    inside the folder of the sequence.
    """

    sequence: Path | None = None
    """The folder of the sequence of tasks that was run; None for any other run."""
    _task: int | None = None
    _content: Content | None = None
    """What the checkpoint to test or predict with holds, until the model has it; None where a strategy loads shards."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--monitor", type=str | None, default=None, help="metric that chooses best.ckpt")
        parser.add_argument("--monitor_mode", type=str, default="max", help="max or min of the monitor")
        parser.add_argument("--run_dir", type=str, default="runs", help="folder of all run folders")
        parser.add_argument("--run_name", type=str | None, default=None, help="default: the config's name")
        parser.add_argument("--checkpoint_every", type=int, default=500, help="steps between last.ckpt")
        parser.add_argument("--test_after_fit", type=bool, default=True, help="test after a fit")

    def before_instantiate_classes(self) -> None:
        mode = self._get(self.config, "monitor_mode")
        if self.subcommand not in (None, "fit"):
            self.save_config_kwargs["config_filename"] = f"{self.subcommand}.yaml"
        if mode not in ("max", "min"):
            self.parser.error(f"monitor_mode must be max or min, got {mode!r}")

    def _parse_ckpt_path(self) -> None:
        """Resolve ``last`` and ``best`` to files; never take the model's config from a checkpoint."""
        if "subcommand" not in self.config:
            return
        self.subcommand = self.config["subcommand"]
        config = self.config[self.subcommand]
        if config.get("ckpt_path") in ("last", "best"):
            which = config["ckpt_path"]
            found = find_checkpoint(self._runs, which)
            if found is None and (self.subcommand, which) == ("fit", "last"):
                rank_zero_warn(f"no {which}.ckpt below {self._runs} yet: this run starts from the beginning")
            elif found is None:
                self.parser.error(f"ckpt_path: no {which}.ckpt below {self._runs}; fit first or give a file")
            config["ckpt_path"] = None if found is None else str(found)
        elif config.get("ckpt_path"):
            config["ckpt_path"] = self._located(config["ckpt_path"])
        if config.get("ckpt_path"):
            path = Path(config["ckpt_path"])
            if self.subcommand == "fit" and _holds_weights_only(path):
                self.parser.error(
                    f"ckpt_path: {path} holds weights only; resume from last, or start from it by init_from"
                )
            self._read(path)
        if self.subcommand != "fit" and config.get("ckpt_path"):
            arguments = config.model.get("init_args") or {}
            for name in set(STARTS).intersection(arguments.keys()):
                arguments[name] = None  # the checkpoint has all weights
            for name, value in list(arguments.items()):
                if value is True and f".{name}".endswith(".pretrained"):
                    arguments[name] = False

    def _located(self, name: str) -> str:
        """The file or folder that a checkpoint's name stands for."""
        path = Path(name)
        try:
            if self.subcommand == "fit" and path.is_dir() and (last := last_of(path)) is not None:
                path = last
            elif not _is_sharded(path):
                path = locate(name)
        except FileNotFoundError as error:
            wrong = "is no checkpoint" if path.exists() else "does not exist"
            self.parser.error(f"ckpt_path: {name!r} {wrong}; give a file, a run folder, last or best ({error})")
        except (OSError, ValueError) as error:
            self.parser.error(f"ckpt_path: {error}")
        return str(path)

    def _read(self, path: Path) -> None:
        """Read a checkpoint before anything is made, so that a damaged one is one error."""
        try:
            if self.subcommand != "fit" and not _is_sharded(path):
                self._content = read(path)
            elif path.is_file():
                check(path)
        except (OSError, ValueError) as error:
            self.parser.error(f"ckpt_path: {error}")

    @property
    def _runs(self) -> Path:
        name = self._get(self.config, "run_name")
        if name is None:
            files = [Path(str(getattr(file, "relative", file))) for file in self._get(self.config, "config") or []]
            name = files[0].stem if files else self._get(self.config, "model").class_path.rpartition(".")[2]
        return Path(self._get(self.config, "run_dir")) / name

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (OSError, ValueError) as error:
            if self.subcommand is None or (reason := own_reason(error)) is None:
                raise
            self.parser.error(reason)
        self._dump_config()
        model = self.config_dump["model"]
        plain = {"_class_path": model["class_path"], "_instantiator": "lightning.pytorch.cli.instantiate_module"}
        # a checkpoint brings its own weights: it must not ask again for those that its run started from
        start = dict.fromkeys(STARTS & model.get("init_args", {}).keys())
        self.model.save_hyperparameters({**plain, **model.get("init_args", {}), **start}, logger=False)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = self._get(self.config_init, "trainer")
        if not trainer.fast_dev_run:
            kwargs["logger"] = self._loggers(trainer.logger)
        return super().instantiate_trainer(**kwargs)

    def _loggers(self, given: Any) -> list[Logger] | bool:
        if given is False:
            return False
        others = [] if given in (None, True) else given if isinstance(given, list) else [given]
        if self.sequence is not None:
            run = RunLogger(self.sequence.parent, self.sequence.name, f"task_{self._task:02d}")
        else:
            checkpoint = self._get(self.config, "ckpt_path")
            version = version_of(Path(checkpoint), self._runs) if checkpoint else agent_version()
            run = RunLogger(self._runs.parent, self._runs.name, version)
        for logger in others:
            if isinstance(logger, WandbLogger):
                name_run(logger, Path(run.log_dir))
        return [run, *others]

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        monitor, fits = self._get(self.config, "monitor"), self.subcommand == "fit"
        callbacks = [*callbacks, Summary(monitor), Figures(), PredictionTable(), Throughput()]
        if self._task is not None:
            callbacks.insert(0, TaskStart(self._task))
        if config["enable_progress_bar"] is not False:
            callbacks.append(RichProgressBar(leave=True))
        if self._seed is not None:
            callbacks.append(StepSeed(self._seed))
        if fits and config["enable_checkpointing"] is not False and not config["fast_dev_run"]:
            if monitor is not None:
                mode = self._get(self.config, "monitor_mode")
                callbacks.append(
                    ModelCheckpoint(
                        filename="best",
                        monitor=monitor,
                        mode=mode,
                        save_weights_only=True,
                        enable_version_counter=False,
                    )
                )
            # after the best checkpoint's callback, so that last.ckpt knows this epoch's best
            callbacks.append(KeepLast(self._get(self.config, "checkpoint_every")))
            config["enable_checkpointing"] = True
        elif not fits:
            config["enable_checkpointing"] = False
        return super()._instantiate_trainer(config, callbacks)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if kwargs.get("weights_only") is None:
            kwargs["weights_only"] = True
        if subcommand == "predict":
            kwargs["return_predictions"] = False  # PredictionTable writes them as they come
        if subcommand in ("validate", "test"):
            kwargs["verbose"] = False  # Summary shows the same, once
        if subcommand != "fit" and kwargs.get("ckpt_path") and not _is_sharded(Path(kwargs["ckpt_path"])):
            kwargs["ckpt_path"] = None  # its weights are in the model already
        return kwargs

    @property
    def _seed(self) -> int | None:
        """The seed of this run, or of this task of a sequence; None where the user wants none."""
        seed = self._get(self.config, "seed_everything")
        if seed is None or seed is False:
            return None
        return int(seed) if self._task is None else int(key(int(seed), self._task)) >> 33

    def after_fit(self) -> None:
        """Test the best weights, or the last where no monitor chooses: a run ends with its numbers on the test data."""
        wanted = self._get(self.config, "test_after_fit") and not self.trainer.fast_dev_run  # type: ignore[attr-defined]
        if wanted and self.trainer.state.finished and (self._best or self._get(self.config, "monitor") is None):
            rank_zero_info(f"Testing {self._best or 'the last weights'}")
            self.trainer.test(self.model, self.datamodule, ckpt_path=self._best, weights_only=True, verbose=False)

    @property
    def _best(self) -> str | None:
        """The best checkpoint of the fit that has run, where the config has a monitor."""
        best = next((c for c in self.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None)
        return best.best_model_path or None if best is not None else None

    def _run_subcommand(self, subcommand: str) -> None:
        checkpoint = self._get(self.config, "ckpt_path")
        try:
            self._run_whole(subcommand)
        except (RuntimeError, ValueError) as error:
            if checkpoint and Path(checkpoint).is_file() and "loading state_dict" in str(error):
                reason = mismatch(self.model.state_dict(), read(Path(checkpoint)).state)
                self.parser.error(f"ckpt_path: {checkpoint} does not fit {type(self.model).__name__}: {reason}")
            if isinstance(error, DoesNotFit):
                self.parser.error(f"ckpt_path: {error}")
            raise

    def _run_whole(self, subcommand: str) -> None:
        if not isinstance(self.model, LearnsTasks):
            self._run_model(subcommand)
            return
        if not isinstance(self.datamodule, HasTasks):
            self.parser.error(
                f"{type(self.model).__name__} learns tasks; give data with tasks, such as ClassIncremental"
            )
        checkpoint = self._get(self.config, "ckpt_path")
        index = task_of(Path(checkpoint)) if checkpoint else None
        alone = subcommand == "test" and checkpoint and version_of(Path(checkpoint), self._runs) is None
        if subcommand in ("validate", "predict") or alone:
            self.datamodule.set_task(self.datamodule.num_tasks - 1 if index is None else index)
            self._run_model(subcommand)
            return
        if not isinstance(self.trainer.logger, RunLogger):
            self.parser.error("a sequence of tasks needs its run folder: leave out fast_dev_run and logger: false")
        if checkpoint and (index is None or version_of(Path(checkpoint), self._runs) is None):
            self.parser.error(
                f"ckpt_path: {checkpoint} is no checkpoint of a sequence below {self._runs}; give last to go on, or "
                "start from other weights by replace_at and pretrained"
            )
        self.sequence = Path(self.trainer.logger.log_dir)
        if subcommand == "fit":
            self._fit_tasks(self.sequence, index)
        else:
            self._test_tasks(self.sequence)

    def _run_model(self, subcommand: str) -> None:
        checkpoint = self._get(self.config, "ckpt_path")
        if self._content is not None:
            take(self.model, self._content, checkpoint)  # before a model from scratch asks for training data
            self._content = None  # the model has copies of it
        super()._run_subcommand(subcommand)

    def _begin_task(self, index: int) -> None:
        """A model, a Trainer and random streams for one task, all made anew; the data stay."""
        finish_wandb()  # each task is a W&B run of its own
        self._task, data = index, self.datamodule
        if self._seed is not None:
            seed_everything(self._seed, workers=True, verbose=False)
        self.instantiate_classes()
        self.datamodule = data
        data.set_task(index)
        if self.trainer.is_global_zero:
            announce(index, data)

    def _fit_tasks(self, sequence: Path, resumed: int | None) -> None:
        data, state = self.datamodule, SequenceState(sequence)
        state.check(data)
        if resumed is not None and resumed < len(state.tasks) - 1:
            self.parser.error(f"ckpt_path: task {resumed} of {sequence} is complete, as are later ones; give last")
        if len(state.tasks) == data.num_tasks:
            rank_zero_info(f"All {data.num_tasks} tasks of {sequence} are complete.")
            if self.trainer.is_global_zero:
                show(sequence, data.num_tasks, self.model)
        data.setup("test")  # what is wrong with it shows before the training
        for index in range(len(state.tasks), data.num_tasks):
            self._begin_task(index)
            arguments = self._prepare_subcommand_kwargs("fit")
            if index != resumed:
                arguments["ckpt_path"] = None
            self.trainer.fit(**arguments)
            self.trainer.test(self.model, data, ckpt_path=self._best, weights_only=True, verbose=False)
            if self.trainer.is_global_zero:
                show(sequence, index + 1, self.model)
                send_sequence(self.trainer, sequence)
                state.complete(index, data)

    def _test_tasks(self, sequence: Path) -> None:
        data, state = self.datamodule, SequenceState(sequence)
        state.check(data)
        folders = task_folders(sequence, data.num_tasks)
        if lacking := missing(folders, state):
            self.parser.error(
                f"ckpt_path: {sequence} has no finished model of task {', '.join(map(str, lacking))}; "
                "fit them with --ckpt_path last, or give a checkpoint of a sequence that is complete"
            )
        for index, folder in enumerate(folders):
            self._begin_task(index)
            weights = locate(str(folder))
            self.trainer.test(self.model, self.datamodule, ckpt_path=weights, weights_only=True, verbose=False)
        if self.trainer.is_global_zero:
            show(sequence, len(folders), self.model)


def run(args: Sequence[str] | None = None, *, execute: bool = True) -> ZooCLI:
    """Parse ``args`` (default: the command line) and run its subcommand; return the CLI.

    With ``execute=False`` the words name no subcommand and only the objects are built.
    """
    quiet_known_warnings()
    stay_offline_without_wandb_account()
    with wandb_finished():
        return build(ZooCLI, args, execute=execute)


def build(kind: type[ZooCLI], args: Sequence[str] | None, *, execute: bool = True) -> ZooCLI:
    """The command line as ``run`` has it, of any kind of ZooCLI."""
    catalogue.import_families()
    return kind(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        parser_class=ZooParser,
        save_config_callback=SaveConfig,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        trainer_defaults={"use_distributed_sampler": False, "log_every_n_steps": 10},
        parser_kwargs={"prog": "python -m zoo"},
        load_from_checkpoint_support=False,  # instantiate_classes stores the same for every module
        args=None if args is None else with_config_paths(args),
        run=execute,
    )


def own_reason(error: BaseException | None) -> str | None:
    """What a ``raise`` of the zoo says, which others may have wrapped in pages of their own; None for other errors."""
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        places = [frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__)]
        if frames and places[-1].startswith(("zoo.", "datamodules.")) and (frames[-1].line or "").startswith("raise"):
            return str(error)
        error = error.__cause__
    return None


def _holds_weights_only(path: Path) -> bool:
    """Whether a checkpoint is an exported folder, a file of tensors or a best.ckpt, which no fit can go on from."""
    return is_exported(path) or path.suffix == ".safetensors" or path.name == "best.ckpt"


def _is_sharded(path: Path) -> bool:
    """Whether a checkpoint is a folder with a file a rank, which strategies load: FSDP's, or DeepSpeed's."""
    return (path / "meta.pt").is_file() or (path / "latest").is_file()


def quiet_known_warnings() -> None:
    """Hide warnings of Lightning about itself and about what this command line does on purpose."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.getMessage() and "TPU available" not in record.getMessage()
    )
    for message in (
        "LightningCLI's args parameter",
        ".*LeafSpec.*is deprecated",
        "Found .* in eval mode at the start of training",
        ".*does not have many workers",
        ".*is smaller than the logging interval",
        "(?s).*JsonargparseDeprecationWarning",
        "(?s).*was deprecated in v4",
    ):
        warnings.filterwarnings("ignore", message=message)
