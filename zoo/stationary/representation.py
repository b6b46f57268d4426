"""Representations whose later versions are searched against the galleries of earlier ones."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from datamodules.batches import ImageBatch, IndexedImages
from zoo.catalogue import register
from zoo.distributed import gather_objects
from zoo.metrics import IndexedMean
from zoo.nn import Backbone
from zoo.pretrained import init_from, locate, read_state
from zoo.retrieval import (
    EmbeddingStore,
    EmbeddingTable,
    RetrievalEvaluator,
    class_templates,
    load_table,
    save_table,
)
from zoo.stationary import sequence
from zoo.stationary.classifiers import Classifier
from zoo.stationary.losses import HigherOrderCompatibility
from zoo.tasks import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def official_sgd(parameters: Any) -> torch.optim.Optimizer:
    """The official optimiser: SGD, learning rate 1e-3, momentum 0.9, weight decay 5e-4."""
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=5e-4)


GALLERY = "gallery.safetensors"  # in a task's run folder
_PAPER = ["d-Simplex 2405.02581"]
_TASK = "image retrieval across model updates"


@register("dsimplex_hoc", papers=_PAPER, task=_TASK, config="stationary/hoc_omniglot")
@register("dsimplex", papers=_PAPER, task=_TASK, config="stationary/dsimplex_omniglot")
@register("er", papers=["experience replay 1902.10486"], task=_TASK, config="stationary/er_omniglot")
class CompatibleRepresentation(LightningModule):
    """A backbone and a classifier, trained task by task so that old galleries need no new index.

    The embedding is what ``classifier.embed`` makes of the pooled backbone features. A fixed simplex classifier gives
    d-Simplex; with ``compatibility`` it is d-Simplex-HOC; a learnable classifier gives experience replay (ER).
    A task starts from the model of the task before, or, at the tasks of ``replace_at``, from an independently
    pretrained one. The cross-entropy is a mean over the rank's images; see ``HigherOrderCompatibility`` for its span.

    The test extracts the retrieval set's queries and gallery once and searches the galleries of this and all earlier
    tasks, which gives one row of the compatibility matrix. Scores are in percent.

    Args:
        backbone: images [B, C, H, W] to maps [B, D, h, w], averaged over positions.
        classifier: embedding and logits.
        compatibility: a loss that ties the model to the one its task started from.
        replace_at: numbers of the tasks, from 0, that start from the next of ``pretrained``.
        pretrained: a path, a run folder or a catalogue name for each of ``replace_at``.
        evaluator: how queries are scored against a gallery.
        score: which of the evaluator's scores makes the matrix; null for its first.
        decay_all: weight decay also on biases and normalisation layers (the official notebooks; their package: not).
        nearest: number of gallery images that ``predict`` lists for a query.

    Raises:
        ValueError: for ``replace_at`` that is unsorted, or not as long as ``pretrained``.
    """

    task: Task | None = None
    exported_state = ("image_form",)

    def __init__(
        self,
        backbone: Backbone,
        classifier: Classifier,
        compatibility: HigherOrderCompatibility | None = None,
        replace_at: list[int] | None = None,
        pretrained: list[str] | None = None,
        evaluator: RetrievalEvaluator | None = None,
        score: str | None = None,
        decay_all: bool = False,
        nearest: int = 5,
        optimizer: OptimizerCallable = official_sgd,
        scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.replace_at, self.pretrained = list(replace_at or []), list(pretrained or [])
        if len(self.replace_at) != len(self.pretrained):
            raise ValueError(
                f"replace_at names {len(self.replace_at)} tasks {self.replace_at}, but pretrained has "
                f"{len(self.pretrained)} models: give one for each"
            )
        if self.replace_at != sorted(set(self.replace_at)) or min(self.replace_at, default=0) < 0:
            raise ValueError(f"replace_at must be ascending task numbers from 0, got {self.replace_at}")
        self.backbone = backbone.to(memory_format=torch.channels_last)
        self.classifier = classifier
        classifier.build(backbone.channels)
        self.compatibility = compatibility
        self.evaluator = evaluator or RetrievalEvaluator(template="mean", absent="error")
        self.score = score or self.evaluator.names[0]
        if self.score not in self.evaluator.names:
            raise ValueError(f"score={score!r} is none of the evaluator's: {', '.join(self.evaluator.names)}")
        self.decay_all, self.nearest = decay_all, nearest
        self.optimizer, self.scheduler = optimizer, scheduler
        self.previous: nn.ModuleList | None = None
        self._accuracy = IndexedMean()
        self._stores: list[EmbeddingStore] = []
        self._rows: list[dict[str, Any]] = []
        self._gallery: EmbeddingTable | None = None
        self._nearest: list[dict[str, Any]] = []

    @property
    def network(self) -> nn.Module:
        """The backbone."""
        return self.backbone

    @property
    def embedding_space(self) -> dict[str, int | str] | None:
        """What two models must share for their embeddings to be comparable; None: only with itself."""
        return self.classifier.space

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.parameters() if p.requires_grad]
        decayed = [p for p in trained if self.decay_all or p.ndim > 1]
        groups = [{"params": decayed}]
        if rest := [p for p in trained if not (self.decay_all or p.ndim > 1)]:
            groups.append({"params": rest, "weight_decay": 0.0})  # type: ignore[dict-item]
        optimizer = self.optimizer(groups)
        return optimizer if self.scheduler is None else ([optimizer], [self.scheduler(optimizer)])

    def forward(self, image: Tensor) -> Tensor:
        """Embeddings [B, d] of ``image`` [B, C, H, W]; not normalised."""
        return _embed(self.backbone, self.classifier, image)

    # --- tasks ---------------------------------------------------------------------------------------------------

    def start_task(self, task: Task) -> None:
        """The weights of the task before or of the pretrained model, a head for the task's classes, and the previous
        model where ``compatibility`` needs it.

        Raises ``ValueError`` for ``replace_at`` beyond the sequence and for models whose features are not comparable.
        """
        if self.replace_at and self.replace_at[-1] >= task.total:
            raise ValueError(
                f"replace_at={self.replace_at}: there are {task.total} tasks, numbered 0 to {task.total - 1}"
            )
        if task.number == 0:
            self._check_sequence(task)
        before = None if task.number == 0 else str(locate(str(task.folders[task.number - 1])))
        source = before
        if task.number in self.replace_at:
            source = self.pretrained[self.replace_at.index(task.number)]
        rank_zero_info(f"Task {task.number} starts from {source or 'random weights'}")
        self.classifier.grow(0, task.known)
        if source is not None:
            self._take(source, own=source == before)
        if self.compatibility is not None and self.compatibility.active and source is not None:
            old = before if self.compatibility.previous_at_replacement == "last_finetuned" and before else source
            model = self
            if old != source:
                model = copy.deepcopy(self)
                model._take(old, own=True)
            self.previous = copy.deepcopy(nn.ModuleList([model.backbone, model.classifier])).requires_grad_(False)
            self.previous.eval()
        self.classifier.grow(task.known, task.classes)

    def _check_sequence(self, task: Task) -> None:
        """What later tasks will need, on copies, before the first one takes its time."""
        with torch.random.fork_rng(devices=[]):  # a head that grows draws its weights
            classifier, backbone = copy.deepcopy(self.classifier), copy.deepcopy(self.backbone)
            classifier.grow(0, task.final_classes)
            for name in self.pretrained:
                init_from(backbone, name, prefix="backbone.")
                classifier.adopt(read_state(name), "classifier.", own=False)

    def _take(self, name: str, own: bool) -> None:
        init_from(self.backbone, name, prefix="backbone.")
        self.classifier.load_state_dict(self.classifier.adopt(read_state(name), "classifier.", own))

    def train(self, mode: bool = True) -> "CompatibleRepresentation":
        super().train(mode)
        if self.previous is not None:
            self.previous.eval()
        return self

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        for key in [key for key in state if key.startswith("previous.")]:
            del state[key]  # the task's start, which is on disk already
        form = getattr(self.trainer.datamodule, "image_form", None)  # type: ignore[attr-defined]
        if form is not None:
            checkpoint["image_form"] = form

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        own = {key: value for key, value in self.state_dict().items() if key.startswith("previous.")}
        checkpoint["state_dict"].update(own)

    # --- training ------------------------------------------------------------------------------------------------

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        embedding = self(batch.image)
        logits = self.classifier(embedding)
        target = self.classifier.target(batch.label)
        loss = cross_entropy(logits, target)
        self.log("train/cross_entropy", loss)
        self.log("train/accuracy", 100 * (logits.argmax(-1) == target).float().mean())
        if self.compatibility is not None and self.previous is not None:
            with torch.no_grad():
                old = _embed(self.previous[0], self.previous[1], batch.image)
            loss = self.compatibility(loss, old, embedding, batch.label)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self._accuracy = IndexedMean().to(self.device)

    def validation_step(self, batch: IndexedImages, batch_idx: int, dataloader_idx: int = 0) -> None:
        right = self.classifier(self(batch.image)).argmax(-1) == self.classifier.target(batch.label)
        self._accuracy.update(100 * right.float(), batch.row)

    def on_validation_epoch_end(self) -> None:
        self.log("val/accuracy", self._accuracy.compute().mean(), prog_bar=True, sync_dist=True)

    # --- retrieval -----------------------------------------------------------------------------------------------

    def on_test_epoch_start(self) -> None:
        self._stores = [EmbeddingStore(), EmbeddingStore()]

    def test_step(self, batch: IndexedImages, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._stores[dataloader_idx].update(self(batch.image), batch.label, batch.row)

    def on_test_epoch_end(self) -> None:
        query, gallery = (store.compute(name) for store, name in zip(self._stores, ("queries", "gallery"), strict=True))
        self._stores = []
        if self.evaluator.template == "mean":
            gallery = class_templates(gallery)
        number, folders = (0, ()) if self.task is None else (self.task.number, self.task.folders)
        earlier = [load_table(folder / GALLERY) for folder in folders[:number]]
        self._rows = []
        for k, searched in enumerate([*earlier, gallery]):
            scores = sequence.cell(self.evaluator, query, searched, (number, k), self.device)
            self._rows.append({"query model": number, "gallery model": k, **scores})
        for name, value in scores.items():
            self.log(f"test/{name}", value, sync_dist=True)
        if self.task is not None and self.trainer.is_global_zero:
            save_table(gallery, folders[number] / GALLERY)

    def results(self) -> list[dict[str, Any]]:
        """One row a gallery, of a model alone its own: the scores of this model's queries, in percent."""
        return self._rows

    def sequence_results(self, folders: Sequence[Path]) -> list[dict[str, Any]]:
        """One row a task: its row of the compatibility matrix, and AC and AA up to there."""
        return sequence.table(sequence.read(folders, self.score))

    def sequence_figures(self, folders: Sequence[Path]) -> "Mapping[str, Figure]":
        """The compatibility matrix as a heat map."""
        return {"compatibility": sequence.heat_map(sequence.read(folders, self.score))}

    def on_predict_epoch_start(self) -> None:
        self._stores, self._gallery, self._nearest = [EmbeddingStore()], None, []

    def predict_step(self, batch: IndexedImages, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """The gallery first (no rows), then for each query its nearest gallery images with their cosines."""
        embedding = self(batch.image)
        if dataloader_idx == 0:
            self._stores[0].update(embedding, batch.label, batch.row)
            return []
        if self._gallery is None:
            self._gallery = self._stores[0].compute("gallery")
        gallery_files, query_files = self.trainer.datamodule.predict_files  # type: ignore[attr-defined]
        scores, rows = self.evaluator.search(
            normalize(embedding.float()).cpu(), self._gallery.embedding, min(self.nearest, len(self._gallery))
        )
        found = [
            {"query": query_files[row], "rank": rank + 1, "nearest": gallery_files[hit], "score": score}
            for row, some, hits in zip(batch.row.tolist(), scores.tolist(), rows.tolist(), strict=True)
            for rank, (score, hit) in enumerate(zip(some, hits, strict=True))
        ]
        self._nearest += found
        return found

    def on_predict_epoch_end(self) -> None:
        found = [hit for part in gather_objects(self._nearest) for hit in part]
        self._nearest = list({(hit["query"], hit["rank"]): hit for hit in found}.values())

    def figures(self) -> "Mapping[str, Figure]":
        """After a prediction, the first queries beside their nearest images."""
        return {"nearest": sequence.nearest_grid(self._nearest)} if self._nearest else {}


def _embed(backbone: nn.Module, classifier: nn.Module, image: Tensor) -> Tensor:
    if not image.is_floating_point():
        raise TypeError(f"images are {image.dtype}: scale them to [0, 1], normalise them and pass floating point")
    embedding: Tensor = classifier.embed(backbone(image).mean((-2, -1)))  # type: ignore[operator]
    return embedding
