"""Evaluation that all few-shot methods share: embed each image once, then score thousands of episodes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from datamodules.batches import BaseBatch, EpisodeBatch, EpisodeRows, PoolBatch
from zoo.distributed import global_mean
from zoo.few_shot import figures
from zoo.few_shot.heads import Episode, Head
from zoo.metrics import IndexedMean, confidence_interval
from zoo.nn import Backbone
from zoo.optimization import optimization
from zoo.pretrained import init_from as load_weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """The default optimiser: AdamW with learning rate 1e-3."""
    return torch.optim.AdamW(parameters, lr=1e-3)


def check_images(image: Tensor) -> None:
    """Raises ``TypeError`` for images that are not floating point, such as uint8 ones."""
    if not image.is_floating_point():
        raise TypeError(f"images are {image.dtype}: scale them to [0, 1], normalise them and pass floating point")


class FewShotModule(LightningModule):
    """A backbone and the heads that classify episodes on its features.

    Validation and test read ``PoolBatch``es first and fill a table with one row of features an image; the
    ``EpisodeRows`` that follow gather from it. Every rank fills the whole table and scores its own share of the
    episodes; accuracies are gathered under the episodes' numbers, so the result does not depend on the number
    of ranks. Metrics are ``<stage>/accuracy@<episodes>`` (``main_head``), the same with ``/<head>`` for the
    others, and ``..._ci95`` for the half-width of the 95% interval over episodes; all in percent.

    Args:
        backbone: images [B, C, H, W] to maps [B, D, h, w].
        heads: classifiers of episodes by name; all see the same episodes.
        main_head: the name of the head that the method itself is about.
        pooling: maps to vectors, ``average`` over positions or ``flatten``.
        init_from: weights for the backbone: a path, a run folder or a catalogue name.
        optimizer: made from the parameters that need a gradient.
        scheduler: made from the optimiser; stepped once a ``scheduler_interval``.

    Raises:
        ValueError: if ``main_head`` is not one of the heads.
    """

    def __init__(
        self,
        backbone: Backbone,
        heads: dict[str, Head],
        main_head: str,
        pooling: Literal["average", "flatten"] = "average",
        init_from: str | None = None,
        optimizer: OptimizerCallable = adamw,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__()
        if main_head not in [*heads, *self.own_heads]:
            raise ValueError(f"main_head is {main_head!r}, but the heads are {', '.join([*heads, *self.own_heads])}")
        self.backbone = backbone.to(memory_format=torch.channels_last)
        self.heads = nn.ModuleDict(heads)
        self.main_head = main_head
        self.pooling = pooling
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.scheduler_interval = scheduler_interval
        if init_from is not None:
            load_weights(self.backbone, init_from, prefix="backbone.")
        self._table: Tensor | None = None
        self._vectors: Tensor | None = None
        self._base_sum: Tensor | None = None
        self._base_count = torch.zeros(())
        self._base_mean: Tensor | None = None
        self._metrics: dict[tuple[str, str], IndexedMean] = {}
        self._accuracies: dict[tuple[str, str], Tensor] = {}
        self._example: tuple[EpisodeBatch, Tensor] | None = None

    own_heads: tuple[str, ...] = ()
    """Names of heads that a subclass scores itself, beside ``heads``."""

    @property
    def network(self) -> nn.Module:
        """The backbone."""
        return self.backbone

    def configure_optimizers(self) -> Any:
        return optimization(self, self.optimizer, self.scheduler, self.scheduler_interval)

    def forward(self, image: Tensor) -> Tensor:
        """Images [B, C, H, W] to vectors [B, D], or [B, D*h*w] with ``flatten``."""
        check_images(image)
        return self.pool(self.backbone(image))

    def pool(self, maps: Tensor) -> Tensor:
        """Maps [B, D, h, w] to vectors [B, D] or, flattened, [B, D*h*w]."""
        return maps.flatten(-3) if self.pooling == "flatten" else maps.mean((-2, -1))

    def embed(self, image: Tensor) -> Tensor:
        """What the table keeps of each image, here its vector; a method that compares maps keeps those."""
        return self(image)

    def table_vectors(self, table: Tensor) -> Tensor:
        """The vectors [M, D] of what ``embed`` has put into the table."""
        return table

    def own_scores(self, table: Tensor, rows: EpisodeRows) -> dict[str, Tensor]:
        """Scores [E, U, N] of ``own_heads`` for episodes of rows of the table."""
        return {}

    def scores(self, table: Tensor, vectors: Tensor, rows: EpisodeRows) -> dict[str, Tensor]:
        """Scores [E, U, N] of every head, from the table and its vectors [M, D]; larger is better."""
        episode = Episode(
            vectors[rows.support], rows.support_label, vectors[rows.query], rows.way, base_mean=self._base_mean
        )
        scores = {name: head(episode) for name, head in self.heads.items()}
        return {**self.own_scores(table, rows), **scores}

    def setup(self, stage: str) -> None:
        """Raises ``ValueError`` to predict a class whose name is another column's of the predictions."""
        if stage != "predict":
            return
        names = self.trainer.datamodule.predict_classes  # type: ignore[attr-defined]
        if taken := {"file", "prediction"}.intersection(names):
            raise ValueError(
                f"predict_support: the class folder {min(taken)!r} has the name of a column of predictions.csv; "
                "rename the folder"
            )

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """Rows of file, predicted class and the probability of each class, by the main head."""
        if not isinstance(batch, EpisodeRows):
            self._evaluate(batch)
            return []
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        probability = self.scores(*self._whole_table(), batch)[self.main_head][0].softmax(-1).tolist()
        names, files = data.predict_classes, data.predict_files
        return [
            {"file": file, "prediction": names[row.index(max(row))], **dict(zip(names, row, strict=True))}
            for file, row in zip(files, probability, strict=True)
        ]

    def on_validation_epoch_start(self) -> None:
        self._reset()

    def on_test_epoch_start(self) -> None:
        self._reset()

    def on_predict_epoch_start(self) -> None:
        self._reset()

    def on_validation_epoch_end(self) -> None:
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def _reset(self) -> None:
        self._table = self._vectors = self._base_sum = self._base_mean = self._example = None
        self._base_count = torch.zeros((), device=self.device)
        self._metrics, self._accuracies = {}, {}

    def _evaluate(self, batch: Any) -> None:
        if isinstance(batch, PoolBatch):
            features = self.embed(batch.image)
            if self._table is None:
                if batch.image.abs().amax() > 10:
                    rank_zero_warn("images hold values beyond ±10: were they normalised by the set's mean and std?")
                self._table = features.new_zeros(batch.size, *features.shape[1:])
            self._table[batch.row] = features
        elif isinstance(batch, BaseBatch):
            total = self(batch.image)[batch.valid].float().sum(0)
            self._base_sum = total if self._base_sum is None else self._base_sum + total
            self._base_count = self._base_count + batch.valid.sum()
        elif isinstance(batch, EpisodeRows):
            self._score(batch)
        elif isinstance(batch, EpisodeBatch):
            self._example = (batch, self._classify(batch))
        else:
            raise TypeError(f"evaluation reads PoolBatch, BaseBatch, EpisodeRows or EpisodeBatch, got {type(batch)}")

    def _whole_table(self) -> tuple[Tensor, Tensor]:
        """The filled table and its vectors; the first call after it is full also settles the base mean."""
        if self._table is None:
            raise RuntimeError("episodes came before the PoolBatches that they refer to")
        if self._base_mean is None and self._base_sum is not None:
            self._base_mean = global_mean(self._base_sum, self._base_count)
        if self._vectors is None:
            self._vectors = self.table_vectors(self._table)
        return self._table, self._vectors

    def _score(self, rows: EpisodeRows) -> None:
        for name, scores in self.scores(*self._whole_table(), rows).items():
            accuracy = 100 * (scores.argmax(-1) == rows.query_label).float().mean(-1)
            metric = self._metrics.setdefault((rows.spec, name), IndexedMean().to(self.device))
            metric.update(accuracy, rows.number)

    def _classify(self, batch: EpisodeBatch) -> Tensor:
        """Labels [E, U] by the main head, for episodes that bring their images along."""
        shots, queries = batch.support.shape[1], batch.query.shape[1]
        images = torch.cat([batch.support, batch.query], 1)
        table = self.embed(images.flatten(0, 1))
        rows = torch.arange(len(table), device=table.device).view(len(images), shots + queries)
        episodes = EpisodeRows(
            rows[:, :shots],
            batch.support_label,
            rows[:, shots:],
            batch.query_label,
            torch.arange(len(images), device=table.device),
            batch.way,
            "",
        )
        return self.scores(table, self.table_vectors(table), episodes)[self.main_head].argmax(-1)

    def _finish(self, stage: str) -> None:
        for (spec, head), metric in self._metrics.items():
            values = metric.compute().cpu()
            self._accuracies[spec, head] = values
            interval = confidence_interval(values)
            name = f"{stage}/accuracy@{spec}" + ("" if head == self.main_head else f"/{head}")
            self.log(name, interval.mean, prog_bar=head == self.main_head, sync_dist=True)
            self.log(f"{name}_ci95", interval.ci95, sync_dist=True)
        self._metrics, self._table, self._vectors = {}, None, None

    def results(self) -> list[dict[str, Any]]:
        """One row a set of episodes and head: accuracy and its difference to the main head, in percent.

        The difference is paired over the same episodes, with its own 95% interval.
        """
        rows = []
        for (spec, head), values in self._accuracies.items():
            mean, ci95, n = confidence_interval(values)
            difference = confidence_interval(values - self._accuracies[spec, self.main_head])
            kind = "transductive" if head in self.heads and self.heads[head].transductive else "inductive"
            rows.append(
                {
                    "episodes": spec,
                    "head": head,
                    "kind": kind,
                    "accuracy": mean,
                    "ci95": ci95,
                    f"minus {self.main_head}": difference.mean,
                    "paired ci95": difference.ci95,
                    "n": n,
                }
            )
        return rows

    def figures(self) -> "Mapping[str, Figure]":
        """The example episode with its predictions, and accuracy against shots where several were tested."""
        drawn: dict[str, Figure] = {}
        if self._example is not None:
            drawn["episode"] = figures.episode(*self._example)
        if len({row["episodes"].partition("s")[0] for row in self.results()}) > 1:
            drawn["accuracy_by_shots"] = figures.accuracy_by_shots(self.results())
        return drawn
