"""Retrieval metrics of whatever a validation loop embeds."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from zoo.retrieval import Embedded, EmbeddingStore, RetrievalEvaluator


class RetrievalCallback(Callback):
    """Logs ``val/recall@1`` and the like, with ``/macro`` the means over classes, and the numbers of queries.

    With one validation loader every image searches all others; with two, the first holds the queries and the second
    the gallery. Embeddings come from ``validation_step`` where it returns ``Embedded``, else from the module called
    on the batch's ``image``; the batch then has ``label`` and, on several ranks, ``row``, without which images that
    fill a rank's last batch would count twice. Every rank searches its share of the queries and logs the same.

    Args:
        evaluator: metrics and search; default: ``RetrievalEvaluator()``.
        every_n_epochs: of a fit; ``validate`` always evaluates.

    Raises:
        ValueError: if ``every_n_epochs`` < 1; in validation with more than two loaders, or batches that lack a field.
    """

    def __init__(self, evaluator: RetrievalEvaluator | None = None, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs={every_n_epochs}: must be at least 1")
        self.evaluator = evaluator if evaluator is not None else RetrievalEvaluator()
        self.every_n_epochs = every_n_epochs
        self._stores: list[EmbeddingStore] = []
        self._images = 0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stores = []
        fits = trainer.state.fn == "fit"
        if trainer.sanity_checking or (fits and (trainer.current_epoch + 1) % self.every_n_epochs):
            return
        loaders = len(trainer.num_val_batches)
        if loaders > 2:
            raise ValueError(
                f"{loaders} validation loaders: RetrievalCallback takes one, or one of queries and a gallery"
            )
        self._stores, self._images = [EmbeddingStore() for _ in range(loaders)], 0

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._stores:
            embedded = outputs if isinstance(outputs, Embedded) else self._embed(trainer, pl_module, batch)
            self._stores[dataloader_idx].update(*embedded)

    def _embed(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> Embedded:
        fields = ("image", "label") if trainer.world_size == 1 else ("image", "label", "row")
        missing = [field for field in fields if not hasattr(batch, field)]
        if missing:
            raise ValueError(
                f"a validation batch of type {type(batch).__name__} has no {' and no '.join(missing)}: give batches "
                "those fields, or return Embedded from validation_step"
            )
        with trainer.precision_plugin.forward_context():
            embedding = pl_module(batch.image)
        row = getattr(batch, "row", None)
        if row is None:
            row = torch.arange(self._images, self._images + len(batch.label), device=embedding.device)
            self._images += len(row)
        return Embedded(embedding, batch.label, row)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._stores:
            return
        query = self._stores[0].compute("query embeddings")
        gallery = self._stores[1].compute("gallery embeddings") if len(self._stores) == 2 else None
        self._stores = []
        share = self.evaluator(query, gallery, trainer.global_rank, trainer.world_size)
        result = share.over_ranks(pl_module.device)
        values = {"queries": float(result.n_queries), "queries_excluded": float(result.n_excluded), **result.scores}
        values |= {f"{name}/macro": value for name, value in result.macro.items()}
        for name, value in values.items():
            # the mean of the ranks' equal numbers, as Lightning warns about numbers that are not reduced
            pl_module.log(f"val/{name}", value, sync_dist=True)
