"""Heating: a classifier trained under noise masks that a policy learns to draw (arXiv 2406.14568)."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.nn.functional import cross_entropy

from datamodules.batches import ImageBatch
from zoo.catalogue import register
from zoo.nn import Backbone
from zoo.noise_mask import figures
from zoo.noise_mask.classifier import PAPER, TASK, ImageClassifier, ParameterGroup, official_sgd
from zoo.noise_mask.masks import NoiseMask, sample_cells
from zoo.noise_mask.objectives import LogSumExp, MaskObjective
from zoo.noise_mask.policy import MaskPolicy
from zoo.noise_mask.schedules import Schedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@register("noise_mask", papers=PAPER, task=TASK, config="noise_mask/heat_pneumonia")
class NoiseMaskHeating(ImageClassifier):
    """A classifier that sees each training image under a mask, and the policy that the masks are drawn from.

    Both learn from one scalar on one sample, so one optimiser with two parameter groups steps both, under automatic
    optimisation: gradient clipping (of the joint norm) and accumulation work as ever. With accumulation the
    base distribution moves once a batch, not once an optimiser step.

    Its checkpoint is the heated classifier: ``ImageClassifier(init_from=...)`` takes it and leaves the policy out.

    On several ranks the base distribution follows the mean over all images, masks differ by rank (the command line
    seeds torch by rank before each step; a Trainer of your own must do the same), and the gradient is the mean of the
    ranks' own products of log-density and loss (``MaskObjective``).

    Args:
        mask: the masks' form; ``NoiseMask()``, the official one, unless given.
        policy: makes the policy for a number of cells; null draws all masks from the base distribution as it was
            initialised: the control with random masks.
        objective: the common loss; ``LogSumExp()``, the official one, unless given.
        lr_ratio: the policy's learning rate over the classifier's.
        policy_schedule: factor of the policy's learning rate by epoch; ``schedule`` is the classifier's.
        update_every: the policy takes part in every so many optimiser steps, and rests in the others.
        eval_mask: ``base`` also evaluates under one mask a batch from the base distribution (the official validation).

    Raises:
        ValueError: for a value out of range, or a grid that the objective cannot train on; in training for a batch of
            one image, and for a loss that is not finite.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        mask: NoiseMask | None = None,
        policy: Callable[[int], MaskPolicy] | None = MaskPolicy,
        objective: MaskObjective | None = None,
        lr_ratio: float = 0.1,
        update_every: int = 1,
        eval_mask: Literal["none", "base"] = "none",
        init_from: str | None = None,
        reset_head: bool = False,
        optimizer: OptimizerCallable = official_sgd,
        schedule: Schedule | None = None,
        policy_schedule: Schedule | None = None,
    ) -> None:
        super().__init__(backbone, num_classes, init_from, reset_head, optimizer=optimizer, schedule=schedule)
        if not lr_ratio > 0:
            raise ValueError(f"lr_ratio={lr_ratio}: must be above 0; policy=null trains without a policy")
        if update_every < 1:
            raise ValueError(f"update_every={update_every}: must be at least 1 step")
        self.mask = mask or NoiseMask()
        self.objective = objective or LogSumExp()
        self.objective.check_grid(self.mask.grid)
        self.policy = policy(self.mask.grid**2) if policy is not None else None
        self.lr_ratio, self.update_every, self.eval_mask = lr_ratio, update_every, eval_mask
        self.policy_schedule = policy_schedule
        self._epochs: int | None = None
        self._snapshots: list[figures.Snapshot] = []
        self._class_sum: Tensor | None = None
        self._class_count: Tensor | None = None

    def parameter_groups(self) -> list[ParameterGroup]:
        """The classifier's parameters, then the policy's."""
        parts = [ParameterGroup([*self.backbone.parameters(), *self.head.parameters()], 1.0, self.schedule)]
        if self.policy is not None:
            parts.append(ParameterGroup(list(self.policy.parameters()), self.lr_ratio, self.policy_schedule))
        return parts

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.trainer.precision not in ("32-true", "16-mixed", "bf16-mixed"):
            raise ValueError(
                f"trainer.precision={self.trainer.precision}: masks and their densities need float32 beside the "
                "networks; use 32-true, 16-mixed or bf16-mixed"
            )
        self._epochs, self._snapshots = self.trainer.max_epochs, []
        self._check_batch(getattr(getattr(self.trainer, "datamodule", None), "batch_size", 2))

    def on_train_epoch_start(self) -> None:
        self._class_sum = self._class_count = None

    # --- the method ----------------------------------------------------------------------------------------------

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        a, b = self._concentrations(batch.image)
        with torch.autocast(self.device.type, enabled=False):
            cells = sample_cells(a, b)
            masked = self.mask(batch.image, cells)
        logits = self(masked)
        with torch.autocast(self.device.type, enabled=False):
            cost = cross_entropy(logits.float(), batch.label, reduction="none")
            loss, log_density = self.objective(a, b, cells, cost)
        if not torch.isfinite(loss):
            raise ValueError(self._ranges(loss, a, b, cells))
        self._keep(batch, a, b, cells, masked, batch_idx)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/cross_entropy", cost.detach().mean())
        self.log("train/log_density", log_density)
        self.log("train/accuracy", 100 * (logits.argmax(-1) == batch.label).float().mean())
        return loss

    def _concentrations(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Log-concentrations [B, cells] float32 of the images' masks; the base they mix with moves on afterwards."""
        if self.policy is None:
            return self.mask.base(len(image))
        self._check_batch(len(image))
        u, v = self.policy(image)
        with torch.autocast(self.device.type, enabled=False):
            a, b = self.mask.concentrations(u, v)
            self.mask.follow(u, v)
        return a, b

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.policy is not None and self.global_step % self.update_every:
            for parameter in self.policy.parameters():
                parameter.grad = None  # so that momentum and weight decay rest too

    def evaluated(self, image: Tensor) -> dict[str, Tensor]:
        logits = super().evaluated(image)
        if self.eval_mask == "base":
            with torch.autocast(self.device.type, enabled=False):
                masked = self.mask(image, sample_cells(*self.mask.base(1)))
            logits["base"] = self(masked)
        return logits

    # --- what is wrong, and what it looks like -------------------------------------------------------------------

    def _check_batch(self, images: int) -> None:
        if self.policy is not None and images < 2:
            raise ValueError(
                f"batch_size={images}: the policy's BatchNorm needs at least 2 images on every rank in every training "
                "batch; raise batch_size, and drop an incomplete last batch"
            )

    def _ranges(self, loss: Tensor, a: Tensor, b: Tensor, cells: Tensor) -> str:
        parts = {"alpha": a.exp(), "beta": b.exp(), "m": cells}
        ranges = ", ".join(f"{name} {x.min():.4g} to {x.max():.4g}" for name, x in parts.items())
        return (
            f"the loss is {loss.item()} in epoch {self.current_epoch}, step {self.global_step}: {ranges}; lower the "
            "learning rate or lr_ratio, clip gradients, or guard the log-concentrations by mask.clamp=[-3, 6]"
        )

    @torch.no_grad()
    def _keep(self, batch: ImageBatch, a: Tensor, b: Tensor, cells: Tensor, masked: Tensor, batch_idx: int) -> None:
        """What the pictures need, on rank 0."""
        if self.global_rank:
            return
        if batch_idx == 0 and figures.wanted(self.current_epoch, self._epochs):
            mask = self.mask.pixels(cells[:1], *batch.image.shape[-2:])
            shown = (part[0].detach().cpu() for part in (batch.image, mask, masked))
            self._snapshots.append(figures.Snapshot(self.current_epoch, *shown))
        if self.policy is not None:
            if self._class_sum is None or self._class_count is None:
                self._class_sum = a.new_zeros(self.head.out_features, a.shape[1])
                self._class_count = a.new_zeros(self.head.out_features)
            # the mean of Beta(alpha, beta) is alpha / (alpha + beta)
            self._class_sum.index_add_(0, batch.label, torch.sigmoid(a - b))
            self._class_count.index_add_(0, batch.label, torch.ones_like(a[:, 0]))

    def figures(self) -> "Mapping[str, Figure]":
        """After a fit: an image with its mask in some epochs, and each class's mean mask in the last one (rank 0)."""
        drawn: dict[str, Figure] = {}
        if self._snapshots:
            drawn["masks"] = figures.masks(self._snapshots)
        if self._class_sum is not None and self._class_count is not None:
            seen = self._class_count.nonzero()[:, 0]
            mean = self._class_sum[seen] / self._class_count[seen, None]
            grid = mean.view(-1, self.mask.grid, self.mask.grid).cpu()
            names = getattr(getattr(self.trainer, "datamodule", None), "class_names", None)
            drawn["class_masks"] = figures.class_masks(
                grid, [names[i] if names else f"class {i}" for i in seen.tolist()]
            )
        return drawn
