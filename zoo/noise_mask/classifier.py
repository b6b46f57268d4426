"""Image classification by cross-entropy: the plain baseline, and the clean fine-tuning of a heated classifier."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

from datamodules.batches import ImageBatch, IndexedImages
from zoo.catalogue import register
from zoo.metrics import IndexedMean, confidence_interval
from zoo.nn import Backbone
from zoo.noise_mask.schedules import Constant, Schedule
from zoo.noise_mask.scores import classification_scores
from zoo.noise_mask.start import start_from

PAPER = ["Policy Gradient-Driven Noise Mask 2406.14568"]
TASK = "image classification"


def official_sgd(parameters: Any) -> torch.optim.Optimizer:
    """The official optimiser of the classifier: SGD, learning rate 0.1, momentum 0.9, weight decay 1e-4 throughout."""
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4)


class ParameterGroup(NamedTuple):
    """Parameters with a learning rate of their own: ``ratio`` to the optimiser's, times ``schedule`` of the epoch."""

    parameters: list[nn.Parameter]
    ratio: float
    schedule: Schedule | None


@register("image_classifier", papers=PAPER, task=TASK, config="noise_mask/baseline_pneumonia")
class ImageClassifier(LightningModule):
    """A backbone, averaged over positions, with a linear head.

    The loss is the mean over a rank's images, whose gradients DDP averages. Evaluation gathers the logits of all ranks
    under the images' row numbers, so a row that comes twice counts once, and scores the whole set: accuracy, balanced
    accuracy, macro precision, recall and F1, and the one-vs-rest AUC, all in percent.

    Args:
        backbone: images [B, C, H, W] to maps [B, D, h, w].
        num_classes: must be that of the data.
        init_from: a classifier's weights, heated or not: a path, a run folder or a catalogue name.
        reset_head: take the backbone of ``init_from`` alone.
        fine_tune: this run is a second stage, and warns if there is no ``init_from``.
        optimizer: made from the parameter groups.
        schedule: factor of the learning rate by epoch; null for a constant one.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        init_from: str | None = None,
        reset_head: bool = False,
        fine_tune: bool = False,
        optimizer: OptimizerCallable = official_sgd,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes}: must be at least 2")
        self.backbone = backbone.to(memory_format=torch.channels_last)
        self.head = nn.Linear(backbone.channels, num_classes)
        self.start, self.fine_tune = init_from, fine_tune
        self.optimizer, self.schedule = optimizer, schedule
        if init_from is not None:
            start_from(self.backbone, self.head, init_from, reset_head)
        self._gathered: dict[str, IndexedMean] = {}
        self._results: list[dict[str, Any]] = []

    @property
    def network(self) -> nn.Module:
        """The backbone."""
        return self.backbone

    def parameter_groups(self) -> list[ParameterGroup]:
        """All that is trained."""
        return [ParameterGroup([p for p in self.parameters() if p.requires_grad], 1.0, self.schedule)]

    def configure_optimizers(self) -> Any:
        groups = self.parameter_groups()
        optimizer = self.optimizer([{"params": group.parameters} for group in groups])
        for made, group in zip(optimizer.param_groups, groups, strict=True):
            made["lr"] *= group.ratio
        return [optimizer], [LambdaLR(optimizer, [_factor(group.schedule or Constant()) for group in groups])]

    def on_fit_start(self) -> None:
        """Raises ``ValueError`` if the data have another number of classes."""
        found = getattr(getattr(self.trainer, "datamodule", None), "num_classes", None)
        if found is not None and found != self.head.out_features:
            raise ValueError(
                f"num_classes is {self.head.out_features}, but the data have {found} classes: "
                f"set model.init_args.num_classes to {found}"
            )
        if self.fine_tune and self.start is None:
            rank_zero_warn("fine_tune without init_from: nothing was heated before, so this run is a plain baseline")

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, num_classes] of ``image`` [B, C, H, W]."""
        if not image.is_floating_point():
            raise TypeError(f"images are {image.dtype}: scale them to [0, 1], normalise them and pass floating point")
        logits: Tensor = self.head(self.backbone(image).mean((-2, -1)))
        return logits

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        logits = self(batch.image)
        loss = cross_entropy(logits, batch.label)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/accuracy", 100 * (logits.argmax(-1) == batch.label).float().mean())
        return loss

    # --- evaluation ----------------------------------------------------------------------------------------------

    def evaluated(self, image: Tensor) -> dict[str, Tensor]:
        """Logits [B, num_classes] by the mask that the images are under; ``none`` for the images as they are."""
        return {"none": self(image)}

    def on_validation_epoch_start(self) -> None:
        self._reset()

    def on_test_epoch_start(self) -> None:
        self._reset()

    def validation_step(self, batch: IndexedImages, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch)

    def test_step(self, batch: IndexedImages, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def _reset(self) -> None:
        self._gathered = {}

    def _evaluate(self, batch: IndexedImages) -> None:
        for name, value in {"label": batch.label, **self.evaluated(batch.image)}.items():
            self._gathered.setdefault(name, IndexedMean().to(self.device)).update(value, batch.row)

    def _finish(self, stage: str) -> None:
        gathered = {name: metric.compute().cpu() for name, metric in self._gathered.items()}
        label, self._results = gathered.pop("label"), []
        for mask, logits in gathered.items():
            scores = classification_scores(logits.float(), label)
            ci95 = confidence_interval(100 * (logits.argmax(1) == label).float()).ci95
            suffix = "" if mask == "none" else f"/{mask}_mask"
            for name, value in [*scores.items(), ("accuracy_ci95", ci95)]:
                self.log(f"{stage}/{name}{suffix}", value, prog_bar=f"{name}{suffix}" == "accuracy", sync_dist=True)
            accuracy = {"accuracy": scores.pop("accuracy"), "ci95": ci95}
            self._results.append({"mask": mask, "images": len(label), **accuracy, **scores})
        self._reset()

    def results(self) -> list[dict[str, Any]]:
        """The scores of the last evaluation in percent; ``ci95`` is the half-width of the accuracy's interval."""
        return self._results


def _factor(schedule: Schedule) -> Callable[[int], float]:
    """A plain function: LambdaLR keeps other callables in checkpoints, and a new config would not count."""
    return lambda epoch: schedule(epoch)
