"""Baselines without training: the most popular items, and first-order Markov transitions."""

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from datamodules.batches import SequenceBatch
from zoo.catalogue import register
from zoo.recommenders.evaluation import NextItem


def training_items(item: np.ndarray, offset: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Positions in ``item`` [N] that are trained on: of each user u the first ``train[u]`` from ``offset[u]`` on."""
    first = np.cumsum(train) - train
    return np.arange(int(train.sum())) + np.repeat(offset[:-1] - first, train)


def popularity(item: np.ndarray, offset: np.ndarray, train: np.ndarray, num_items: int) -> Tensor:
    """How often each item is interacted with in training, [V] float64; column j is item j + 1."""
    rows = training_items(item, offset, train)
    return torch.from_numpy(np.bincount(item[rows], minlength=num_items + 1)[1:].astype(np.float64))


def transitions(item: np.ndarray, offset: np.ndarray, train: np.ndarray, num_items: int) -> tuple[Tensor, Tensor]:
    """Pairs of items in a row in training, ``last * (V + 1) + next`` [P] int64 ascending, and their counts [P]."""
    rows = training_items(item, offset, train)
    user = np.repeat(np.arange(len(train)), train)
    same = user[1:] == user[:-1]
    last, following = item[rows[:-1][same]].astype(np.int64), item[rows[1:][same]]
    pair, count = np.unique(last * (num_items + 1) + following, return_counts=True)
    return torch.from_numpy(pair), torch.from_numpy(count)


class _Counting(NextItem):
    """Counts the training part of the data in one pass before anything else; a fit of one batch is enough."""

    count: Tensor
    counted: ClassVar[dict[str, torch.dtype]] = {"count": torch.float64}
    """The buffers that counting fills."""

    def __init__(self, **ranking: Any) -> None:
        super().__init__(**ranking)
        for name, dtype in self.counted.items():
            self.register_buffer(name, torch.zeros(0, dtype=dtype))

    @property
    def num_items(self) -> int:
        return len(self.count)

    def setup(self, stage: str) -> None:
        if not len(self.count):
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            self.fit(data.store.item, data.store.offset, data.split.train, data.num_items)
        self.check_depth()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, buffer in self.named_buffers():
            setattr(self, name, torch.zeros_like(checkpoint["state_dict"][name], device=buffer.device))

    def fit(self, item: np.ndarray, offset: np.ndarray, train: np.ndarray, num_items: int) -> None:
        """Counts the first ``train[u]`` items of each user u of flat sequences; see ``SequenceStore``."""
        self.count = popularity(item, offset, train, num_items).to(self.device)

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> Tensor:
        return torch.zeros((), device=self.device, requires_grad=True)

    def configure_optimizers(self) -> None:
        return None


@register(
    "popularity",
    papers=[],
    task="sequential recommendation",
    config="recommenders/popularity_ml100k",
    strategies=["single"],
)
class Popularity(_Counting):
    """Items by how often they come in training, the same for every user."""

    def represent(self, item_seq: Tensor) -> Tensor:
        return item_seq[:, -1]

    def score(self, known: Tensor) -> Tensor:
        return self.count.expand(len(known), -1)


@register(
    "markov",
    papers=[],
    task="sequential recommendation",
    config="recommenders/markov_ml100k",
    strategies=["single"],
)
class Markov(_Counting):
    """Items by how often they came right after the last one; those that never did, by popularity."""

    pair: Tensor
    times: Tensor
    counted: ClassVar[dict[str, torch.dtype]] = {"count": torch.float64, "pair": torch.int64, "times": torch.int64}

    def fit(self, item: np.ndarray, offset: np.ndarray, train: np.ndarray, num_items: int) -> None:
        super().fit(item, offset, train, num_items)
        self.pair, self.times = (part.to(self.device) for part in transitions(item, offset, train, num_items))

    def represent(self, item_seq: Tensor) -> Tensor:
        return item_seq[:, -1]

    def score(self, known: Tensor) -> Tensor:
        """The number of transitions from the last item, plus popularity scaled below 1: [B, V] float64."""
        scores = (self.count / (self.count.sum() + 1)).repeat(len(known), 1)
        width = self.num_items + 1
        first, end = (torch.searchsorted(self.pair, (known + plus) * width) for plus in (0, 1))
        found = end - first
        row = torch.arange(len(known), device=known.device).repeat_interleave(found)
        before = (found.cumsum(0) - found)[row]
        place = first[row] + torch.arange(len(row), device=known.device) - before
        scores[row, self.pair[place] % width - 1] += self.times[place]
        return scores
