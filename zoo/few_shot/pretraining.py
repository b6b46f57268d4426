"""Base pretraining: cross-entropy over all base classes."""

from typing import Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from datamodules.batches import ImageBatch
from zoo.catalogue import register
from zoo.few_shot.evaluation import FewShotModule, adamw
from zoo.few_shot.heads import Head
from zoo.nn import Backbone


@register(
    "base_pretraining",
    papers=["SimpleShot 1911.04623", "RFS 2003.11539"],
    task="few-shot classification",
    config="few_shot/pretrain_omniglot",
)
class BasePretraining(FewShotModule):
    """A backbone with a linear layer over the base classes; validation uses the heads on its features.

    Args:
        num_classes: number of base classes, rotations included.
        image_size: side of the images, for the size of flattened features.
        label_smoothing: share of the target that goes to all classes alike (SimpleShot, SLK: 0.1).

    The loss is the mean over the rank's images; DDP averages gradients, so W ranks with B images each equal one
    rank with W*B (up to BatchNorm, which sees the rank's images unless ``trainer.sync_batchnorm`` is on).
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        image_size: int,
        heads: dict[str, Head],
        main_head: str,
        label_smoothing: float = 0.0,
        pooling: Literal["average", "flatten"] = "average",
        init_from: str | None = None,
        optimizer: OptimizerCallable = adamw,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__(backbone, heads, main_head, pooling, init_from, optimizer, scheduler, scheduler_interval)
        positions = backbone.out_size(image_size) ** 2 if pooling == "flatten" else 1
        self.classifier = nn.Linear(backbone.channels * positions, num_classes)
        self.loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    def on_fit_start(self) -> None:
        """Raises ``ValueError`` if the data have another number of base classes."""
        found = self.trainer.datamodule.base_classes  # type: ignore[attr-defined]
        if found != self.classifier.out_features:
            raise ValueError(
                f"num_classes is {self.classifier.out_features}, but the data have {found} base classes: "
                f"set model.init_args.num_classes to {found}"
            )

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        logits = self.classifier(self(batch.image))
        loss = self.loss(logits, batch.label)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/accuracy", 100 * (logits.argmax(-1) == batch.label).float().mean())
        return loss
