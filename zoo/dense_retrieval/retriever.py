"""Contrastive training of an embedder, the second stage of LLM-QL (arXiv 2504.05216), on large batches where asked."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from datamodules.batches import Document, RetrievalBatch
from zoo.catalogue import register
from zoo.dense_retrieval.embedder import Embedder
from zoo.dense_retrieval.evaluation import Kind, PassageRetriever
from zoo.dense_retrieval.losses import contrastive_loss
from zoo.language.models import LanguageModel
from zoo.optimization import optimization


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """The official optimiser: AdamW with learning rate 1e-4, no weight decay."""
    return torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)


@register("dense_retriever", papers=["LLM-QL 2504.05216", "RepLLaMA 2310.08319"], task="dense retrieval",
          config="dense_retrieval/retriever_topics")  # fmt: skip
class DenseRetriever(PassageRetriever):
    """Trains queries towards their passage and away from the batch's others; see ``contrastive_loss``.

    Each query's softmax runs over its own positive, its G - 1 hard negatives and, with ``gather``, all passages of all
    ranks. Accumulated batches add steps, not negatives; for more of those, raise ``batch_size`` and set
    ``encode_at_once``, which gives the gradients of the whole batch with the memory of a part (gradient caching).

    Args:
        embedder: texts to vectors.
        temperature: that scores are divided by.
        gather: take the passages of all ranks.
        mask_same_document: a query's own positive document, brought along by another query, is no negative.
        encode_at_once: texts of a step that are in memory together; each part is computed again in the backward pass,
            for a third more time. Null for all.
        tokenizer_texts: texts of the data to train the tokenizer on, where it is made and not loaded.
        optimizer: made from the parameters that need a gradient.
        scheduler: made from the optimiser; stepped once a step.
        ranking: see :class:`~zoo.dense_retrieval.evaluation.PassageRetriever`.
    """

    def __init__(
        self,
        embedder: Embedder,
        temperature: float = 0.01,
        gather: bool = True,
        mask_same_document: bool = False,
        encode_at_once: int | None = None,
        tokenizer_texts: int = 100_000,
        optimizer: OptimizerCallable = adamw,
        scheduler: LRSchedulerCallable | None = None,
        **ranking: Any,
    ) -> None:
        super().__init__(**ranking)
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}: must be above 0")
        if encode_at_once is not None and encode_at_once < 1:
            raise ValueError(f"encode_at_once={encode_at_once}: must be at least 1")
        self.embedder, self.temperature, self.gather = embedder, temperature, gather
        self.mask_same_document, self.encode_at_once = mask_same_document, encode_at_once
        self.tokenizer_texts, self.optimizer, self.scheduler = tokenizer_texts, optimizer, scheduler

    @property
    def network(self) -> LanguageModel:
        """The language model."""
        return self.embedder.language_model

    def configure_model(self) -> None:
        if self._trainer is None:
            return  # a checkpoint, which is being loaded, builds the network and knows its tokenizer
        data = getattr(self.trainer, "datamodule", None)
        model = self.embedder.language_model.build(None if data is None else data.train_texts(self.tokenizer_texts))
        head = model.network.get_output_embeddings()
        if head is not None and head.weight is not model.network.get_input_embeddings().weight:
            head.requires_grad_(False)  # the loss does not reach it, which DDP takes for a mistake
        if self.device_mesh is not None:
            model.shard(self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> Any:
        return optimization(self, self.optimizer, self.scheduler)

    def embed(self, documents: Sequence[Document], kind: Kind) -> Tensor:
        vectors: Tensor = self.embedder(documents, kind)
        return vectors

    def training_step(self, batch: RetrievalBatch, batch_idx: int) -> Tensor:
        query, passage = self.encode(batch.query, "query"), self.encode(batch.passage, "passage")
        row = batch.row if self.mask_same_document else None
        loss = contrastive_loss(query, passage, self.temperature, self.gather, row)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(query))
        return loss

    def encode(self, documents: Sequence[Document], kind: Kind) -> Tensor:
        """Vectors [B, H] with gradient, in parts of ``encode_at_once`` texts of similar length, which keep nothing."""
        most = self.encode_at_once
        if most is None or len(documents) <= most or not torch.is_grad_enabled():
            return self.embed(documents, kind)
        rows = self.embedder.tokens(documents, kind)
        again = partial(checkpoint, self.embedder.pooled, use_reentrant=False)
        return self.embedder.in_parts(rows, kind, most, again)
