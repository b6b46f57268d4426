"""CRLNet (arXiv 2502.01183): every (support, query) pair is embedded with each image conditioned on the other."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.nn.functional import cross_entropy

from datamodules.batches import EpisodeBatch, EpisodeRows, PairBatch
from zoo.catalogue import register
from zoo.few_shot.crlnet_network import CRLNetHead, pair_cosine, pair_loss
from zoo.few_shot.crlnet_official import load_official_state
from zoo.few_shot.evaluation import FewShotModule, check_images
from zoo.few_shot.heads import Head, class_means, logistic_regression
from zoo.nn import Backbone
from zoo.pretrained import read_state

KShot = Literal["logreg", "mean_cosine", "centroid"]


def official_adamw(parameters: Any) -> torch.optim.Optimizer:
    """The official optimiser: AdamW, learning rate 1e-3, weight decay 0.05 on everything."""
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)


@register(
    "crlnet",
    papers=["CRLNet 2502.01183"],
    task="few-shot classification, clean supports and hard queries",
    config="few_shot/crlnet_omniglot",
)
class CRLNet(FewShotModule):
    """A frozen backbone and a conditional head trained on pairs of same or different class; inductive.

    With one shot a query's score for a class is the cosine of the two conditional embeddings. With K shots each
    query gets a logistic regression of its own on the supports' embeddings, all conditioned on that query, and
    its own embedding is the mean over all pairs (``kshot``: ``logreg``, official). The loss is a mean over the
    rank's pairs; the head's only BatchNorm sees the rank's pairs unless ``trainer.sync_batchnorm`` is on.

    Args:
        image_size: side of the images, from which the size of the maps follows.
        head: makes the conditional head from the maps' channels and side.
        heads: further heads, scored on the backbone's features beside ``crlnet``.
        loss: ``mse`` (official) or ``bce`` on ``PairBatch``es; ``EpisodeBatch``es are trained with the softmax over
            an episode's cosines divided by ``temperature``, whatever ``loss`` says.
        kshot: ``logreg``, ``mean_cosine`` or ``centroid``.
        official_checkpoint: weights of the official code, head and backbone, in place of ``init_from``.
        query_per_class: average a query's embedding over the pairs with each class apart (official: over all).
        backbone_train_mode: the official code's frozen backbone is in train mode while the head trains, so its
            dropout is active and its BatchNorm statistics drift.
        pairs_at_once: pairs of an evaluation that go through the head together.

    Raises:
        ValueError: in training, for labels other than 0 and 1; from the head, for maps that do not fit.
    """

    own_heads = ("crlnet",)

    def __init__(
        self,
        backbone: Backbone,
        image_size: int,
        head: Callable[[int, int], CRLNetHead] = CRLNetHead,
        heads: dict[str, Head] | None = None,
        loss: Literal["mse", "bce"] = "mse",
        temperature: float = 0.1,
        kshot: KShot = "logreg",
        query_per_class: bool = False,
        backbone_train_mode: bool = False,
        pairs_at_once: int = 128,
        pooling: Literal["average", "flatten"] = "average",
        init_from: str | None = None,
        official_checkpoint: str | None = None,
        optimizer: OptimizerCallable = official_adamw,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__(backbone, heads or {}, "crlnet", pooling, init_from, optimizer, scheduler, scheduler_interval)
        self.backbone.requires_grad_(False)
        self.head = head(backbone.channels, backbone.out_size(image_size))
        self.loss = loss
        self.temperature = temperature
        self.kshot = kshot
        self.query_per_class = query_per_class
        self.backbone_train_mode = backbone_train_mode
        self.pairs_at_once = pairs_at_once
        if official_checkpoint is not None:
            self._load_official(official_checkpoint)
        self.train(self.training)

    def _load_official(self, name: str) -> None:
        backbone = load_official_state(self.head, read_state(name))
        missing, unexpected = self.backbone.load_state_dict(backbone, strict=False)
        missing = [key for key in missing if not key.endswith("drop.calls")]  # official checkpoints lack them
        if missing or unexpected:
            raise ValueError(
                f"official_checkpoint {name!r} has another backbone: "
                f"missing {missing[:3]}, unexpected {unexpected[:3]}; choose the backbone it was made with"
            )

    def embed(self, image: Tensor) -> Tensor:
        """Images [B, C, H, W] to maps [B, D, h, w], which the head compares in pairs."""
        check_images(image)
        return self.backbone(image)

    def table_vectors(self, table: Tensor) -> Tensor:
        return self.pool(table)

    def train(self, mode: bool = True) -> "CRLNet":
        super().train(mode)
        self.backbone.train(mode and self.backbone_train_mode)
        return self

    def training_step(self, batch: PairBatch | EpisodeBatch, batch_idx: int) -> Tensor:
        if isinstance(batch, EpisodeBatch):
            scores = self.episode_cosines(batch) / self.temperature
            loss = cross_entropy(scores.flatten(0, 1), batch.query_label.flatten())
        else:
            with torch.no_grad():
                support_map, query_map = self.embed(batch.support), self.embed(batch.query)
            e_s, e_q = self.head(support_map, query_map)
            cosine = pair_cosine(e_q, e_s)
            loss = pair_loss(cosine, batch.label, self.loss)
            self.log("train/accuracy", 100 * ((cosine > 0.5) == (batch.label == 1)).float().mean())
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def episode_cosines(self, batch: EpisodeBatch) -> Tensor:
        """Mean cosine [E, U, N] of each query with each class's supports, with gradients."""
        shots = batch.support.shape[1]
        with torch.no_grad():
            maps = self.embed(torch.cat([batch.support, batch.query], 1).flatten(0, 1))
        rows = torch.arange(len(maps), device=maps.device).view(len(batch.support), -1)
        e_s, e_q = self._pairs(maps, rows[:, :shots], rows[:, shots:])
        return kshot_scores(e_s, e_q, batch.support_label, batch.way, "mean_cosine")

    def own_scores(self, table: Tensor, rows: EpisodeRows) -> dict[str, Tensor]:
        one_episode = rows.support.shape[1] * rows.query.shape[1]
        at_once = max(1, 4_000 // one_episode)
        parts = [
            kshot_scores(*self._pairs(table, support, query), label, rows.way, self.kshot, self.query_per_class)
            for support, query, label in zip(
                rows.support.split(at_once), rows.query.split(at_once), rows.support_label.split(at_once), strict=True
            )
        ]
        return {"crlnet": torch.cat(parts)}

    def _pairs(self, table: Tensor, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """e_s and e_q [E, U, S, C] of every pair of an episode; ``support`` [E, S], ``query`` [E, U] rows."""
        supports, s = support.unique(return_inverse=True)
        queries, q = query.unique(return_inverse=True)
        shape = (len(support), query.shape[1], support.shape[1])
        e_s, e_q = self.head.embed_pairs(
            self.head.precompute(table[supports], "support"),
            self.head.precompute(table[queries], "query"),
            s[:, None, :].expand(shape).flatten(),
            q[:, :, None].expand(shape).flatten(),
            self.pairs_at_once,
        )
        return e_s.unflatten(0, shape), e_q.unflatten(0, shape)


def _class_average(x: Tensor, label: Tensor, way: int) -> Tensor:
    """Means over the supports of each class: [E, U, S, C] and labels [E, S] to [E, U, N, C]."""
    flat = class_means(x.flatten(0, 1), label.repeat_interleave(x.shape[1], 0), way)
    return flat.unflatten(0, x.shape[:2])


def kshot_scores(
    support: Tensor, query: Tensor, label: Tensor, way: int, kshot: KShot = "logreg", query_per_class: bool = False
) -> Tensor:
    """Scores [E, U, N] from the embeddings of all pairs (official code, test time).

    Args:
        support, query: e_s and e_q [E, U, S, C]; both depend on the whole pair.
        label: class of each support, [E, S].
        way: number of classes N. With one support a class the score is the pair's cosine.
        kshot: with more supports, ``logreg``: a multinomial logistic regression for each query, fitted to its S
            support embeddings (C = 1, no normalisation) and read at the query's mean embedding;
            ``mean_cosine``: mean of the pairs' cosines; ``centroid``: cosine of the means.
        query_per_class: the query's mean embedding is taken over each class's pairs instead of all.

    Computed in float32 or more whatever the precision of the run: cosines differ in digits that bfloat16 lacks.
    """
    wide = torch.promote_types(support.dtype, torch.float32)
    with torch.autocast(support.device.type, enabled=False):
        return _kshot_scores(support.to(wide), query.to(wide), label, way, kshot, query_per_class)


def _kshot_scores(
    support: Tensor, query: Tensor, label: Tensor, way: int, kshot: KShot, query_per_class: bool
) -> Tensor:
    if support.shape[2] == way or kshot == "mean_cosine":
        return _class_average(pair_cosine(query, support)[..., None], label, way)[..., 0]
    if query_per_class:
        mean_query = _class_average(query, label, way)
    else:
        mean_query = query.mean(2, keepdim=True).expand(-1, -1, way, -1)
    if kshot == "centroid":
        return pair_cosine(mean_query, _class_average(support, label, way))
    samples, classes = support.flatten(0, 1), label.repeat_interleave(support.shape[1], 0)
    if samples.device.type == "mps":  # has no float64
        samples, classes = samples.cpu(), classes.cpu()
    weight, bias = (part.to(mean_query) for part in logistic_regression(samples, classes, way))
    scores = (mean_query.flatten(0, 1) * weight).sum(-1) + bias
    return scores.unflatten(0, support.shape[:2])
