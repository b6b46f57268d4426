"""The mean of the weights of the last epochs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zoo.distributed import global_mean


def average_states(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each floating-point tensor of some state dicts; other tensors, such as counters, are the last's."""
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(last.dtype)
        if last.is_floating_point()
        else last.clone()
        for name, last in states[-1].items()
    }


class AverageLast(Callback):
    """After a fit, writes the mean of the last epochs' weights as ``checkpoints/average.ckpt``.

    Running statistics of BatchNorm are not averaged but made anew, as the mean over training batches without masks and
    over ranks: those of averaged weights are not the average of theirs. The module itself keeps its last weights.

    Args:
        epochs: number of epochs to average over.
        statistics_batches: number of training batches for the statistics.

    Raises:
        ValueError: for numbers below 1; at the start of a fit whose ``max_epochs`` is not known.
    """

    def __init__(self, epochs: int = 3, statistics_batches: int = 100) -> None:
        if epochs < 1 or statistics_batches < 1:
            raise ValueError(
                f"AverageLast: epochs={epochs} and statistics_batches={statistics_batches} must be above 0"
            )
        self.epochs, self.statistics_batches = epochs, statistics_batches
        self._states: list[dict[str, Tensor]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"states": self._states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._states = state_dict["states"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.max_epochs is None or trainer.max_epochs < 1:
            raise ValueError(
                f"trainer.max_epochs={trainer.max_epochs}: AverageLast must know which epochs are the last"
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert trainer.max_epochs is not None
        if trainer.current_epoch >= trainer.max_epochs - self.epochs:
            self._states.append({name: value.cpu().clone() for name, value in pl_module.state_dict().items()})
            del self._states[: -self.epochs]  # of a run that had ended before and goes on

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        log_dir = trainer.log_dir  # a broadcast: all ranks must ask
        assert trainer.max_epochs is not None
        if log_dir is None:
            return
        if len(self._states) < min(self.epochs, trainer.max_epochs):
            rank_zero_warn(
                f"AverageLast: the fit ended before epoch {trainer.max_epochs}, so there is no average of the last ones"
            )
            return
        last = {name: value.clone() for name, value in pl_module.state_dict().items()}
        pl_module.load_state_dict(average_states(self._states))
        estimate_statistics(trainer, pl_module, self.statistics_batches)
        file = Path(log_dir) / "checkpoints" / "average.ckpt"
        trainer.save_checkpoint(file, weights_only=True)
        pl_module.load_state_dict(last)
        rank_zero_info(f"Mean of the last {len(self._states)} epochs: {file}")


@torch.no_grad()
def estimate_statistics(trainer: Trainer, module: LightningModule, batches: int) -> None:
    """Give each BatchNorm that ``module(image)`` runs the mean statistics of training batches, over all ranks."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats]
    used: list[nn.Module] = []
    hooks = [norm.register_forward_hook(lambda norm, *_: used.append(norm)) for norm in norms]
    momenta = [norm.momentum for norm in norms]
    kept = [{name: value.clone() for name, value in norm.named_buffers()} for norm in norms]
    training = module.training
    module.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    for _, batch in zip(range(batches), trainer.train_dataloader, strict=False):  # type: ignore[arg-type,call-overload]
        module(trainer.strategy.batch_to_device(batch).image)
    for hook in hooks:
        hook.remove()
    for norm, momentum, before in zip(norms, momenta, kept, strict=True):
        norm.momentum = momentum
        if norm not in used:  # the policy's: its statistics stay as they were
            for name, value in before.items():
                norm.get_buffer(name).copy_(value)
        elif isinstance(norm.running_mean, Tensor) and isinstance(norm.running_var, Tensor):
            for running in (norm.running_mean, norm.running_var):
                running.copy_(global_mean(running, running.new_ones(())))
    module.train(training)
