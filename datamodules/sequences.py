"""Sequential recommendation: beginnings of users' sequences to train on, and the items that came next to rank."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info

from datamodules.batches import SequenceBatch, SequenceEvalBatch
from datamodules.loaders import KeyedBatchSampler, Keys, ResumableLoader
from datamodules.sequence_files import read_histories
from datamodules.sequence_splits import Split, leave_one_out, temporal
from datamodules.sequence_store import Prefixes, SequenceSet, SequenceStore, filtered, k_core, windows
from datamodules.sequence_views import Field, NeighborTables, SemanticSource, View
from datamodules.streams import key

# Part of a key that tells the uses of one seed apart.
_ORDER, _VIEW = range(2)


class SequentialRecommendation(LightningDataModule):
    """Users' sequences, to train next-item models on and to rank all items for.

    With ``samples: prefixes``, a user who trains on t items gives t - 1 samples: for i = 2 to t, the items before the
    i-th, of which the last ``max_length`` are kept, and the i-th as the target. With leave-one-out, t is m - 2 of m
    items; users of fewer than 3 train on all they have and are not evaluated. Leave-one-out trains on items that came
    later than other users' test items; ``split: temporal`` does not.

    ``val_dataloader`` and ``test_dataloader`` give ``SequenceEvalBatch`` with the history up to the target,
    ``predict_dataloader`` those of ``predict_histories``.

    Args:
        dataset: what the sequences are.
        max_length: L, the number of items, the most recent ones, that a model sees.
        batch_size: samples of a rank's training batch.
        drop_last: leave out an epoch's incomplete last batch, another one each epoch; the official code keeps it.
        eval_batch_size: histories of a rank's evaluation batch.
        recent: of each user only as many interactions, the last, are used at all, before the filter; null for all.
        min_user_interactions: users with fewer are left out, until users and items left have enough (k-core).
        min_item_interactions: items with fewer are left out likewise.
        split: the last item of each user, or all items after a time, are for the test.
        held_out: shares of the interactions in the validation and the test window of the temporal split.
        samples: every prefix with its target, or each user once with a target at every position, which is another
            training: there are far fewer samples in an epoch.
        semantics: tables of similar items and prefixes, for the views that need them and for the model.
        views: changed copies and relatives of the samples, each a field of ``SequenceBatch``.
        num_workers: processes that make batches; 0 makes them in the main process.
        seed: of the order and the views.
        predict_histories: file of histories to continue, by original ids: ``user item item ...`` lines, or JSON lines
            ``{"user": ..., "items": [...]}``; null to continue every user's whole sequence.
    """

    def __init__(
        self,
        dataset: SequenceSet,
        max_length: int = 20,
        batch_size: int = 256,
        drop_last: bool = False,
        eval_batch_size: int = 1024,
        recent: int | None = None,
        min_user_interactions: int = 0,
        min_item_interactions: int = 0,
        split: Literal["leave_one_out", "temporal"] = "leave_one_out",
        held_out: tuple[float, float] = (0.1, 0.1),
        samples: Literal["prefixes", "users"] = "prefixes",
        semantics: SemanticSource | None = None,
        views: list[View] | None = None,
        num_workers: int = 0,
        seed: int = 0,
        predict_histories: str | None = None,
    ) -> None:
        super().__init__()
        sizes = {"max_length": max_length, "batch_size": batch_size, "eval_batch_size": eval_batch_size}
        for name, value in {**sizes, "recent": recent}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        if min(held_out) <= 0 or sum(held_out) >= 1:
            raise ValueError(f"held_out={held_out}: two positive shares, together below 1")
        if split == "temporal" and semantics is not None and semantics.pool_scope == "official":
            raise ValueError(
                "semantics.pool_scope=official is for split=leave_one_out: with split=temporal the pool would hold all "
                "items of the test window; use pool_scope=train"
            )
        fields = [view.field for view in views or []]
        if twice := [field for field in fields if fields.count(field) > 1]:
            raise ValueError(f"views: two parts give the field {twice[0]!r}; keep one")
        self.dataset, self.max_length, self.seed, self.num_workers = dataset, max_length, seed, num_workers
        self.drop_last = drop_last
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.recent, self.least = recent, (min_user_interactions, min_item_interactions)
        self.split_kind, self.held_out, self.samples = split, held_out, samples
        self.semantics, self.views, self.predict_histories = semantics, views or [], predict_histories

    @cached_property
    def store(self) -> SequenceStore:
        """All interactions that ``recent`` and the filter leave."""
        store = self.dataset.load()
        if self.recent is not None:
            place = np.arange(len(store.item))
            store = filtered(store, place[place >= np.repeat(store.offset[1:], store.length) - self.recent])
        if max(self.least) > 1:
            user = np.repeat(np.arange(len(store.user_ids)), store.length)
            rows, sizes = k_core(user, store.item, *self.least)
            rank_zero_info(f"k-core {self.least}: interactions " + " -> ".join(f"{size:,}" for size in sizes))
            if not len(rows):
                raise ValueError(
                    f"min_user_interactions={self.least[0]}, min_item_interactions={self.least[1]} leave nothing of "
                    f"{self.dataset.name}'s {sizes[0]:,} interactions: lower them"
                )
            store = filtered(store, rows)
        return store

    @property
    def num_items(self) -> int:
        return self.store.num_items

    @property
    def item_ids(self) -> Sequence[str]:
        return self.store.item_ids

    @property
    def titles(self) -> Sequence[str] | None:
        return self.store.titles

    @cached_property
    def split(self) -> Split:
        if self.split_kind == "leave_one_out":
            return leave_one_out(self.store)
        return temporal(self.store, self.held_out)

    @cached_property
    def pool(self) -> Prefixes:
        """The numbered prefixes that ``SequenceBatch.prefix`` counts and that semantics describe.

        They are those that are trained on, or, with the semantics' ``pool_scope: official``, all but each user's whole
        sequence, as in SRA-CL's official code: then validation items stand in some of them.
        """
        official = self.semantics is not None and self.semantics.pool_scope == "official"
        known = self.store.length if official else self.split.train
        return Prefixes(self.store.offset, np.maximum(known - 1, 0), self.max_length)

    @cached_property
    def trained(self) -> np.ndarray:
        """The pool's rows that are samples, [samples] int64, ascending."""
        count, first = np.maximum(self.split.train - 1, 0), self.pool.first[:-1]
        if self.samples == "users":
            return (first + count - 1)[count > 0]
        return np.arange(int(count.sum())) + np.repeat(first - (np.cumsum(count) - count), count)

    @cached_property
    def tables(self) -> NeighborTables | None:
        """What ``semantics`` made for these data; None without."""
        return None if self.semantics is None else self.semantics.tables(self.store, self.pool)

    def statistics(self) -> dict[str, int | float]:
        """The numbers that papers give of a data set, by name."""
        store, length = self.store, self.store.length
        user = np.repeat(np.arange(len(length)), length)
        pairs = len(np.unique(user * (store.num_items + 1) + store.item))
        return {
            "users": len(length),
            "items": store.num_items,
            "interactions": len(store.item),
            "mean length": len(store.item) / len(length),
            "density %": 100 * pairs / len(length) / store.num_items,
            "training samples": len(self.trained),
            "repeated pairs": len(store.item) - pairs,
            "users not evaluated": len(length) - len(self.split.test),
        }

    @cached_property
    def _shown(self) -> None:
        table = self.statistics()
        width = max(map(len, table))
        lines = [f"  {name:<{width}}  {value:,.6g}" if isinstance(value, float) else f"  {name:<{width}}  {value:,}"
                 for name, value in table.items()]  # fmt: skip
        rank_zero_info("\n".join([f"{self.dataset.name}, split {self.split_kind}:", *lines]))
        short = int((self.store.length < 3).sum())
        if short and self.split_kind == "leave_one_out":
            rank_zero_info(f"{short:,} users have fewer than 3 interactions: they are trained on, not evaluated.")

    def setup(self, stage: str) -> None:
        """Reads the data, prints their statistics once, and checks what ``stage`` needs."""
        _ = self._shown
        if stage == "fit":
            if not len(self.trained):
                raise ValueError(f"{self.dataset.name} has no training samples: no user trains on 2 items or more")
            for view in self.views:
                view.prepare(self.store, self.pool, self.trained, self.tables)
        elif stage == "predict":
            _ = self._predicted

    def train_dataloader(self) -> ResumableLoader:
        data = TrainingSequences(self.store, self.pool, self.trained, self.samples == "users", self.views, self.seed)
        order = int(key(self.seed, _ORDER))
        sampler = KeyedBatchSampler(len(data), self.batch_size, shuffle=True, seed=order, drop_last=self.drop_last)
        return ResumableLoader(data, sampler, self.num_workers)

    def val_dataloader(self) -> ResumableLoader:
        return self._asked("validation", self.split.val)

    def test_dataloader(self) -> ResumableLoader:
        return self._asked("test", self.split.test)

    def predict_dataloader(self) -> ResumableLoader:
        item, offset, _ = self._predicted
        number = np.arange(len(offset) - 1)
        return self._evaluation(EvaluatedHistories(item, offset[:-1], offset[1:], None, number, self.max_length))

    @property
    def predict_users(self) -> Sequence[str]:
        """What the users of the predict batches are called, by their number."""
        return self._predicted[2]

    @cached_property
    def _predicted(self) -> tuple[np.ndarray, np.ndarray, Sequence[str]]:
        if self.predict_histories is None:
            return self.store.item, self.store.offset, self.store.user_ids
        number = {name: at for at, name in enumerate(self.store.item_ids) if at}
        return read_histories(Path(self.predict_histories), number)

    def _asked(self, what: str, rows: np.ndarray) -> ResumableLoader:
        if not len(rows):
            raise ValueError(f"{self.dataset.name} has no user to evaluate in {what}, split {self.split_kind}")
        store = self.store
        user = np.searchsorted(store.offset, rows, side="right") - 1
        target = store.item[rows]
        return self._evaluation(EvaluatedHistories(store.item, store.offset[user], rows, target, user, self.max_length))

    def _evaluation(self, data: "EvaluatedHistories") -> ResumableLoader:
        return ResumableLoader(data, KeyedBatchSampler(len(data), self.eval_batch_size), self.num_workers)


class TrainingSequences:
    """Samples: a keyed data set of ``SequenceBatch``, a batch of which is one gather."""

    def __init__(
        self, store: SequenceStore, pool: Prefixes, rows: np.ndarray, whole: bool, views: Sequence[View], seed: int
    ) -> None:
        self.item, self.pool, self.rows, self.whole = store.item, pool, rows, whole
        self.views, self.seed = views, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, keys: Keys) -> SequenceBatch:
        epoch, length = keys[0][0], self.pool.max_length
        prefix = self.rows[np.array([i for _, i in keys])]
        start, end = self.pool.bounds(prefix)
        item_seq = windows(self.item, start, end, length)
        target = windows(self.item, start + 1, end + 1, length) if self.whole else self.item[end].astype(np.int64)
        made: dict[Field, torch.Tensor] = {}
        for view in self.views:
            keyed = key(self.seed, _VIEW, epoch, prefix)
            made[view.field] = torch.from_numpy(view(prefix, item_seq, keyed))
        return SequenceBatch(*map(torch.from_numpy, (item_seq, target, prefix)), **made)


class EvaluatedHistories:
    """Histories as slices of a flat array: a keyed data set of ``SequenceEvalBatch``; keys' epochs play no part."""

    def __init__(
        self,
        item: np.ndarray,
        start: np.ndarray,
        end: np.ndarray,
        target: np.ndarray | None,
        user: np.ndarray,
        length: int,
    ) -> None:
        self.item, self.start, self.end, self.user, self.length = item, start, end, user, length
        self.target = np.zeros(len(user), np.int64) if target is None else target

    def __len__(self) -> int:
        return len(self.user)

    def __getitems__(self, keys: Keys) -> SequenceEvalBatch:
        rows = np.array([i for _, i in keys])
        item_seq = windows(self.item, self.start[rows], self.end[rows], self.length)
        target, user = self.target[rows].astype(np.int64), self.user[rows]
        return SequenceEvalBatch(*map(torch.from_numpy, (item_seq, target, user)))
