"""Prototypical networks (Snell, Swersky, Zemel; arXiv 1703.05175), trained on episodes."""

from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.nn.functional import cross_entropy

from datamodules.batches import EpisodeBatch
from zoo.catalogue import register
from zoo.few_shot.evaluation import FewShotModule, adamw
from zoo.few_shot.heads import Episode, Head, NearestCentroid
from zoo.nn import Backbone


@register(
    "protonet",
    papers=["Prototypical Networks 1703.05175"],
    task="few-shot classification",
    config="few_shot/protonet_omniglot",
)
class ProtoNet(FewShotModule):
    """Softmax over negative squared distances to class means, cross-entropy averaged over an episode's queries.

    Supports and queries of a rank's episodes go through the backbone together, so BatchNorm sees both. W ranks
    with e episodes each average the gradients of W*e episodes a step.

    Args:
        temperature: divides the squared distances (1 in the paper; 16 to 64 helps pretrained 640-d features).
        heads: further heads to evaluate beside ``protonet``.
    """

    def __init__(
        self,
        backbone: Backbone,
        temperature: float = 1.0,
        heads: dict[str, Head] | None = None,
        pooling: Literal["average", "flatten"] = "flatten",
        init_from: str | None = None,
        optimizer: OptimizerCallable = adamw,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        prototypes = NearestCentroid(features="UN", metric="euclidean", temperature=temperature)
        heads = {"protonet": prototypes, **(heads or {})}
        super().__init__(backbone, heads, "protonet", pooling, init_from, optimizer, scheduler, scheduler_interval)
        self.prototypes = prototypes

    def training_step(self, batch: EpisodeBatch, batch_idx: int) -> Tensor:
        shots = batch.support.shape[1]
        images = torch.cat([batch.support, batch.query], 1)
        vectors = self(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        with torch.autocast(vectors.device.type, enabled=False):  # squared distances do not survive bfloat16
            vectors = vectors.float()
            episode = Episode(vectors[:, :shots], batch.support_label, vectors[:, shots:], batch.way)
            logits = self.prototypes.score(episode)
        loss = cross_entropy(logits.flatten(0, 1), batch.query_label.flatten())
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/accuracy", 100 * (logits.argmax(-1) == batch.query_label).float().mean())
        return loss
