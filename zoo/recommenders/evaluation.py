"""What all recommenders share: ranking all items for every user, the results, and the best items to predict."""

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from datamodules.batches import SequenceEvalBatch
from zoo.metrics import RankingMetrics, target_ranks
from zoo.metrics.ranking import Ties
from zoo.recommenders.encoders import check_sequences

SCORES_AT_ONCE = 2**25
METRICS = ("hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20", "mrr@10")


class NextItem(LightningModule):
    """Ranks all V items for every user, in chunks of users on the device; only the target's rank is kept.

    Metrics are ``<stage>/hr@10`` and so on, means over users as fractions; a user who comes twice counts once, so the
    result is the same for any number of ranks.

    Args:
        metrics: ``hr@k``, ``ndcg@k``, ``mrr@k``.
        ties: how items with the target's score count, see :func:`zoo.metrics.target_ranks`.
        mask_history: leave out the items of the row, which are never recommended again then. Off by default: people
            buy again, and targets that repeat could not be found.
        top_k: items that a prediction has for each user.
        write_users: write every user's rank of the test as ``users.csv`` in the run folder.
    """

    def __init__(
        self,
        metrics: Sequence[str] = METRICS,
        ties: Ties = "average",
        mask_history: bool = False,
        top_k: int = 10,
        write_users: bool = False,
    ) -> None:
        super().__init__()
        if ties not in ("average", "optimistic", "pessimistic"):
            raise ValueError(f"ties={ties!r}: must be average, optimistic or pessimistic")
        if top_k < 1:
            raise ValueError(f"top_k={top_k}: must be at least 1")
        self.names, self.ties, self.mask_history = tuple(metrics), ties, mask_history
        self.top_k, self.write_users = top_k, write_users
        self._deepest = max((int(name.rpartition("@")[2]) for name in RankingMetrics(metrics).names), default=1)
        self._ranks: RankingMetrics | None = None
        self._results: list[dict[str, Any]] = []

    @property
    def num_items(self) -> int:
        """V."""
        raise NotImplementedError

    def represent(self, item_seq: Tensor) -> Tensor:
        """What is known of histories [B, L], one row each."""
        raise NotImplementedError

    def score(self, known: Tensor) -> Tensor:
        """Scores [B, V] of all items for rows of ``represent``; column j is item j + 1."""
        raise NotImplementedError

    def forward(self, item_seq: Tensor) -> Tensor:
        """Scores [B, V] of all items after histories [B, L] int64 that are padded with 0 on the left."""
        check_sequences(item_seq, self.num_items)
        return self._masked(self.score(self.represent(item_seq)), item_seq)

    def _masked(self, scores: Tensor, item_seq: Tensor) -> Tensor:
        if not self.mask_history:
            return scores
        column = (item_seq - 1).clamp(min=0)
        lowered = torch.where(item_seq > 0, -torch.inf, scores.gather(1, column))
        return scores.scatter_reduce(1, column, lowered, "amin")

    def rank(self, item_seq: Tensor, target: Tensor) -> Tensor:
        """Ranks [B] float32 of targets [B] in 1..V after histories [B, L]."""
        wrong = (target < 1) | (target > self.num_items)
        if wrong.any():
            row = int(wrong.int().argmax())
            raise ValueError(f"target of row {row} is {target[row]}: items are 1 to {self.num_items}")
        return torch.cat([target_ranks(scores, t, self.ties) for scores, t in self._chunks(item_seq, target - 1)])

    def _chunks(self, item_seq: Tensor, other: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Scores [b, V] of a few histories at a time, and the rows [b] of ``other`` [B] that belong to them."""
        check_sequences(item_seq, self.num_items)
        rows = max(1, SCORES_AT_ONCE // self.num_items)
        parts = (part.split(rows) for part in (self.represent(item_seq), item_seq, other))
        for known, seq, rest in zip(*parts, strict=True):
            yield self._masked(self.score(known), seq), rest

    def check_depth(self) -> None:
        """Raises ``ValueError`` if a metric or a prediction goes deeper than there are items."""
        for name, k in (("metrics", self._deepest), ("top_k", self.top_k)):
            if k > self.num_items:
                raise ValueError(f"{name} ask for {k} items, but there are only {self.num_items}: lower k")

    def validation_step(self, batch: SequenceEvalBatch, batch_idx: int) -> None:
        self._evaluate(batch)

    def test_step(self, batch: SequenceEvalBatch, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_start(self) -> None:
        self._ranks = RankingMetrics(self.names).to(self.device)

    def on_test_epoch_start(self) -> None:
        self._ranks = RankingMetrics(self.names).to(self.device)

    def on_validation_epoch_end(self) -> None:
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def _evaluate(self, batch: SequenceEvalBatch) -> None:
        assert self._ranks is not None
        self._ranks.update(self.rank(batch.item_seq, batch.target), batch.user)

    def _finish(self, stage: str) -> None:
        assert self._ranks is not None
        scores = {name: value.item() for name, value in self._ranks.compute().items()}
        for name, value in scores.items():
            self.log(f"{stage}/{name}", value, prog_bar=name == self.names[0], sync_dist=True)
        with self._ranks.sync_context():
            user, rank = self._ranks.per_user()
        self._ranks = None
        self._results = [{"users": len(user), **{f"{name} %": 100 * value for name, value in scores.items()}}]
        log_dir = self.trainer.log_dir if stage == "test" and self.write_users else None
        if log_dir is not None and self.trainer.is_global_zero:
            self._write_users(Path(log_dir) / "users.csv", user, rank)

    def _write_users(self, file: Path, user: Tensor, rank: Tensor) -> None:
        ids = self.trainer.datamodule.store.user_ids  # type: ignore[attr-defined]
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["user", "rank"])
            writer.writerows((ids[u], r) for u, r in zip(user.tolist(), rank.tolist(), strict=True))

    def results(self) -> list[dict[str, Any]]:
        """The last evaluation in percent."""
        return self._results

    def predict_step(self, batch: SequenceEvalBatch, batch_idx: int) -> list[dict[str, Any]]:
        """The best items of each history: rows of user, rank, item, title and score.

        Masked items are left out, so there may be fewer than ``top_k``.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        users, ids, titles = data.predict_users, data.item_ids, data.titles
        rows = []
        for scores, user in self._chunks(batch.item_seq, batch.user):
            score, column = scores.topk(self.top_k)
            for number, values, items in zip(user.tolist(), score.tolist(), (column + 1).tolist(), strict=True):
                for place, (value, item) in enumerate(zip(values, items, strict=True), 1):
                    if value == -math.inf:
                        break
                    named = {"item": ids[item], "title": "" if titles is None else titles[item]}
                    rows.append({"user": users[number], "rank": place, **named, "score": value})
        return rows
