"""Two gloo processes: one base distribution, masks of their own, and the mean of the ranks' own gradients."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn

from datamodules.batches import ImageBatch, IndexedImages
from zoo.callbacks import StepSeed
from zoo.nn import Backbone
from zoo.noise_mask import ImageClassifier, MaskPolicy, NoiseMask, NoiseMaskHeating

RATE = 0.1


class Patches(Backbone):
    channels = 6

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 4, stride=4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.conv(image))


def heating() -> NoiseMaskHeating:
    torch.manual_seed(0)
    return NoiseMaskHeating(
        Patches(),
        3,
        NoiseMask(4, 3, 1.0),
        lambda cells: MaskPolicy(cells, Patches()),
        lr_ratio=1.0,
        optimizer=lambda p: torch.optim.SGD(p, lr=RATE),
    )


def share(rank: int, step: int) -> ImageBatch:
    generator = torch.Generator().manual_seed(10 * rank + step)
    return ImageBatch(torch.randn(6, 1, 8, 8, generator=generator), torch.arange(6) % 3)


class Share:
    """A rank's own batches."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Any:
        rank = torch.distributed.get_rank()
        return iter([share(rank, step) for step in range(self.steps)])


class Saved(Callback):
    """Each rank's masks and, at the end, its state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        shown = module._cells
        torch.save({"state": module.state_dict(), "cells": shown}, self.folder / f"{trainer.global_rank}.pt")


def fit(folder: Path, steps: int) -> list[dict[str, Any]]:
    module = heating()
    module._cells = []  # type: ignore[assignment]
    forward = module.mask.forward

    def watched(image: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        module._cells.append(cells)  # type: ignore[operator,union-attr]
        return forward(image, cells)

    module.mask.forward = watched  # type: ignore[method-assign]
    Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp_fork",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        max_epochs=1,
        limit_val_batches=0,
        callbacks=[StepSeed(0), Saved(folder)],
    ).fit(module, Share(steps))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


class _At:
    """As much of a Trainer as ``StepSeed`` asks for."""

    current_epoch = 0

    def __init__(self, rank: int) -> None:
        self.global_rank = rank


def test_the_gradient_is_the_mean_of_the_ranks_products(tmp_path: Path) -> None:
    ranks = fit(tmp_path, steps=1)
    start, total = heating().state_dict(), {}
    outputs = []
    for rank in range(2):
        module = heating().train()
        module.log = lambda *_, **__: None  # type: ignore[method-assign]
        module.policy.head_a.register_forward_hook(lambda *parts: outputs.append(parts[-1].detach()))  # type: ignore[union-attr]
        StepSeed(0).on_train_batch_start(_At(rank), module, None, 0)  # type: ignore[arg-type]
        module.training_step(share(rank, 0), 0).backward()
        for name, parameter in module.named_parameters():
            total[name] = total.get(name, 0) + parameter.grad / 2
    for name, gradient in total.items():
        expected = start[name] - RATE * gradient
        torch.testing.assert_close(ranks[0]["state"][name], expected, msg=lambda m, n=name: f"{n}: {m}")
    # the base follows the mean over the images of both ranks
    base = 0.99 * start["mask.base_a"] + 0.01 * torch.cat(outputs).mean(0)
    torch.testing.assert_close(ranks[0]["state"]["mask.base_a"], base)


def test_ranks_share_the_base_and_the_weights_but_not_the_masks(tmp_path: Path) -> None:
    ranks = fit(tmp_path, steps=3)
    one, two = (rank["state"] for rank in ranks)
    for name in ("mask.base_a", "mask.base_b", *(name for name, _ in heating().named_parameters())):
        assert torch.equal(one[name], two[name]), name
    assert not torch.equal(one["mask.base_a"], heating().mask.base_a)
    for first, second in zip(ranks[0]["cells"], ranks[1]["cells"], strict=True):
        assert (first != second).all()


class Rows:
    """A rank's images to evaluate, padded with row 0."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(3)
        image, label = torch.randn(5, 1, 8, 8, generator=generator), torch.tensor([0, 1, 2, 0, 1])
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        row = torch.arange(5) if world == 1 else torch.tensor([[0, 1, 2], [3, 4, 0]])[torch.distributed.get_rank()]
        return iter([IndexedImages(image[row], label[row], row)])


def evaluate(ranks: int, folder: Path) -> dict[str, float]:
    torch.manual_seed(0)
    module = ImageClassifier(Patches(), 3)
    strategy = "auto" if ranks == 1 else "ddp_fork"
    quiet = {"logger": False, "enable_progress_bar": False, "use_distributed_sampler": False}
    trainer = Trainer(accelerator="cpu", devices=ranks, strategy=strategy, default_root_dir=folder, **quiet)  # type: ignore[arg-type]
    return trainer.test(module, Rows(), verbose=False)[0]


def test_scores_are_the_same_on_one_and_two_ranks(tmp_path: Path) -> None:
    one, two = evaluate(1, tmp_path), evaluate(2, tmp_path)
    assert one == two
    assert len(one) == 7
