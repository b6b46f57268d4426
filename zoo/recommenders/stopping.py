"""Early stopping as the official code of SRA-CL does it: on a rounded metric, whose ties count as improvement."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info


class RoundedStopping(Callback):
    """Stops when ``monitor``, rounded, was below its best in more than ``patience`` validations in a row.

    With the default patience that is the 11th. A value equal to the best counts as improvement.

    Args:
        monitor: higher is better.
        patience: worse validations that are allowed.
        decimals: to round to.
    """

    def __init__(self, monitor: str = "val/mrr@10", patience: int = 10, decimals: int = 4) -> None:
        if patience < 0:
            raise ValueError(f"patience={patience}: must be at least 0")
        self.monitor, self.patience, self.decimals = monitor, patience, decimals
        self.best, self.worse = float("-inf"), 0

    def worth_going_on(self, value: float) -> bool:
        """Takes the next value of the monitor; False if training should stop."""
        value = round(value, self.decimals)
        if value >= self.best:
            self.best, self.worse = value, 0
        else:
            self.worse += 1
        return self.worse <= self.patience

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.monitor not in trainer.callback_metrics:
            raise ValueError(
                f"monitor {self.monitor!r} is not logged; there are {', '.join(sorted(trainer.callback_metrics))}"
            )
        if not self.worth_going_on(trainer.callback_metrics[self.monitor].item()):
            trainer.should_stop = True
            rank_zero_info(f"{self.monitor} was below {self.best} in {self.worse} validations in a row: stopped.")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "worse": self.worse}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.worse = state_dict["best"], state_dict["worse"]
