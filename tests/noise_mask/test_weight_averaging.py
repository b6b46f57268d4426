"""The mean of the last epochs' weights, and BatchNorm statistics made anew."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

from zoo.nn import Conv64F
from zoo.noise_mask import AverageLast, ImageClassifier, MaskPolicy, NoiseMask, NoiseMaskHeating
from zoo.noise_mask.averaging import average_states


def test_floats_are_averaged_and_counters_are_not() -> None:
    states = [
        {"w": torch.tensor([1.0, 4.0]), "n": torch.tensor(3)},
        {"w": torch.tensor([2.0, 8.0]), "n": torch.tensor(5)},
    ]
    mean = average_states(states)
    assert mean["w"].tolist() == [1.5, 6.0]
    assert mean["n"].item() == 5
    assert mean["n"].dtype == torch.int64


class States(Callback):
    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        self.seen.append({name: value.clone() for name, value in module.state_dict().items()})


def test_the_last_epochs_are_averaged_with_statistics_of_the_training_set(
    data: Any, quiet_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = NoiseMaskHeating(
        Conv64F(1, width=4, pools=2), 3, NoiseMask(4, 3, 1.0), lambda n: MaskPolicy(n, Conv64F(1, width=4, pools=2)),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.05),
    )  # fmt: skip
    states, average = States(), AverageLast(2, statistics_batches=4)
    quiet_trainer(max_epochs=4, callbacks=[states, average], limit_val_batches=0).fit(module, data())
    saved = torch.load(tmp_path / "checkpoints" / "average.ckpt", weights_only=True)["state_dict"]
    expected = average_states(states.seen[2:])
    for name, value in expected.items():
        if not ("backbone" in name and ("running" in name or "tracked" in name)):
            torch.testing.assert_close(saved[name], value, msg=lambda m, n=name: f"{n}: {m}")
        assert torch.equal(module.state_dict()[name], states.seen[-1][name]), name
    # the first BatchNorm's mean over the four batches, which are the whole training set
    network = Conv64F(1, width=4, pools=2)
    network.load_state_dict({k.removeprefix("backbone."): v for k, v in saved.items() if k.startswith("backbone.")})
    images = torch.cat([batch.image for batch in data().train_dataloader()])
    first = network.blocks[0][0](images).mean((0, 2, 3))
    torch.testing.assert_close(saved["backbone.blocks.0.1.running_mean"], first, atol=1e-5, rtol=1e-4)
    assert (saved["backbone.blocks.0.1.running_mean"] - expected["backbone.blocks.0.1.running_mean"]).abs().max() > 1e-3


def test_a_run_that_had_ended_and_goes_on_averages_its_last_epochs_alone(
    data: Any, quiet_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    def fit(epochs: int, **more: Any) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        module = ImageClassifier(Conv64F(1, width=4, pools=2), 3, optimizer=lambda p: torch.optim.SGD(p, lr=0.05))
        trainer = quiet_trainer(max_epochs=epochs, callbacks=[AverageLast(2)], limit_val_batches=0)
        trainer.fit(module, data(), **more)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return torch.load(tmp_path / "checkpoints" / "average.ckpt", weights_only=True)["state_dict"]

    unbroken = fit(5)
    fit(3)
    for name, value in fit(5, ckpt_path=tmp_path / "last.ckpt", weights_only=True).items():
        torch.testing.assert_close(value, unbroken[name], msg=lambda m, n=name: f"{n}: {m}")


def test_numbers_that_make_no_average_are_refused(data: Any, quiet_trainer: Callable[..., Trainer]) -> None:
    with pytest.raises(ValueError, match="epochs=0"):
        AverageLast(0)
    module = ImageClassifier(Conv64F(1, width=4, pools=2), 3)
    with pytest.raises(ValueError, match=r"trainer.max_epochs=-1: AverageLast must know"):
        quiet_trainer(max_epochs=-1, max_steps=1, callbacks=[AverageLast()]).fit(module, data())
