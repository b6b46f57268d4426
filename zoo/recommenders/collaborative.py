"""Neighbours by the model's own vectors instead of texts': the ablation "collaborative retrieval" of SRA-CL."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn.functional import normalize

from zoo.recommenders.contrastive import InterUser
from zoo.recommenders.evaluation import SCORES_AT_ONCE
from zoo.recommenders.recommender import Recommender
from zoo.recommenders.synthesis import Attention


def nearest(vectors: Tensor, k: int, rows_at_once: int | None = None, group: Tensor | None = None) -> Tensor:
    """The k other rows of highest cosine for each row of [n, d], nearest first, [n, k] int64.

    Args:
        vectors: [n, d].
        k: at most n - 1.
        rows_at_once: to compare with all others; null for as many as ``SCORES_AT_ONCE`` allows.
        group: [n] int64; rows of the same group are no neighbours.

    Raises:
        ValueError: if a row has fewer than k candidates.
    """
    most = len(vectors) - (1 if group is None else int(group.bincount().max()))
    if not 1 <= k <= most:
        raise ValueError(f"k={k}: must lie in [1, {most}], the number of candidates")
    unit, rows = normalize(vectors, dim=1), torch.arange(len(vectors), device=vectors.device)
    found = []
    for some in rows.split(rows_at_once or max(1, SCORES_AT_ONCE // len(vectors))):
        score = unit[some] @ unit.T
        excluded = some[:, None] == rows if group is None else group[some, None] == group
        found.append(score.masked_fill(excluded, -torch.inf).topk(k).indices)
    return torch.cat(found)


class CollaborativeNeighbors(Callback):
    """Before each epoch, replaces the data's tables of similar prefixes and items by neighbours in the model's vectors.

    The data must have the views ``Neighbors`` and ``Substitute``, or one of them, and make batches in the main process.
    The attention of the synthesizer goes on reading the texts' vectors, of the new neighbours. A run that resumes in
    mid-epoch takes neighbours in the vectors that it resumes with.

    Args:
        exclude_same_user: take no prefixes of the same user.
        encode_at_once: prefixes a pass of the encoder.
    """

    def __init__(self, exclude_same_user: bool = False, encode_at_once: int = 1024) -> None:
        self.exclude_same_user, self.encode_at_once = exclude_same_user, encode_at_once

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fit_loop.restarted_mid_epoch:  # Lightning calls no on_train_epoch_start then
            self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(pl_module, Recommender):
            raise ValueError(f"CollaborativeNeighbors needs a Recommender, got {type(pl_module).__name__}")
        if data.num_workers:
            raise ValueError(
                f"num_workers={data.num_workers}: CollaborativeNeighbors changes tables that other processes have "
                "copies of; set data.init_args.num_workers to 0"
            )
        tables = {view.field: view for view in data.views if hasattr(view, "table")}
        if "views" in tables:
            vectors = pl_module.encoder.item_embedding.weight[1:].detach()
            items = nearest(vectors, tables["views"].table.shape[1]) + 1
            tables["views"].table = torch.cat([torch.zeros_like(items[:1]), items]).cpu().numpy()
        if "neighbors" in tables:
            user = data.pool.user(torch.arange(len(data.pool)).numpy())
            group = torch.from_numpy(user).to(pl_module.device) if self.exclude_same_user else None
            found = nearest(self._prefixes(pl_module, data), tables["neighbors"].k, group=group)
            tables["neighbors"].table = found.cpu().numpy()
            for part in pl_module.contrastive.values():
                if isinstance(part, InterUser) and isinstance(part.synthesizer, Attention):
                    part.synthesizer.pool_neighbors = found

    def _prefixes(self, module: Recommender, data: Any) -> Tensor:
        """The vectors [M, d] of all prefixes of the pool, dropout off."""
        (start, end), length = data.pool.bounds(), data.pool.max_length
        item = torch.as_tensor(data.store.item)
        start, end = torch.from_numpy(start), torch.from_numpy(end)
        vectors, was = [], module.encoder.training
        module.encoder.eval()
        with torch.no_grad():
            for first, last in zip(start.split(self.encode_at_once), end.split(self.encode_at_once), strict=True):
                column = last[:, None] - length + torch.arange(length)
                rows = torch.where(column >= first[:, None], item[column.clamp(min=0)].long(), 0)
                vectors.append(module.represent(rows.to(module.device)))
        module.encoder.train(was)
        return torch.cat(vectors)
