"""Loading by (epoch, index) keys: a rank-aware batch sampler, and a loader that resumes in mid-epoch."""

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader

from datamodules.streams import key, uniform

Keys = list[tuple[int, int]]


class KeyedDataset(Protocol):
    """A data set that makes a whole batch at once, as a pure function of its (epoch, index) keys."""

    def __len__(self) -> int: ...

    def __getitems__(self, keys: Keys) -> Any: ...


class KeyedBatchSampler:
    """Batches of ``(epoch, index)`` keys, the share of one rank.

    The global batch of step t is positions ``[t*B*W, (t+1)*B*W)`` of the epoch's order for batch size B and
    W ranks; rank r takes the r-th of its W equal parts. So W ranks with batch size B see, step by step, what
    one rank with batch size B*W sees, and all ranks have the same number of batches.

    ``drop_last`` (training) leaves out the incomplete last global batch. Without it (evaluation) the last
    global batch is cut into W equal parts, and the at most W-1 places that are missing are filled with
    indices from the beginning of the order, to be dropped by index. ``rank`` and ``world_size`` are read
    from ``torch.distributed`` when a batch is asked for, unless given.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        if length < 1:
            raise ValueError(f"length={length}: there is nothing to sample from")
        if (rank is None) != (world_size is None):
            raise ValueError(f"rank={rank}, world_size={world_size}: give both or neither")
        self.length, self.size, self.drop = length, batch_size, drop_last
        self.shuffle, self.seed = shuffle, seed
        self.given = None if rank is None or world_size is None else (rank, world_size)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def world(self) -> tuple[int, int]:
        """(rank, world size)."""
        if self.given is not None:
            return self.given
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def __len__(self) -> int:
        world = self.world()[1]
        if not self.drop:
            return math.ceil(self.length / (self.size * world))
        if self.length < self.size * world:
            raise ValueError(
                f"batch_size={self.size} on {world} rank(s) needs {self.size * world} items a step, "
                f"but there are {self.length}: lower batch_size"
            )
        return self.length // (self.size * world)

    def __iter__(self) -> Iterator[Keys]:
        (rank, world), epoch = self.world(), self.epoch
        order = np.arange(self.length)
        if self.shuffle:
            order = np.argsort(uniform(key(self.seed, epoch), self.length), kind="stable")
        for start in range(0, len(self) * self.size * world, self.size * world):
            share = math.ceil(min(self.size * world, self.length - start) / world)
            first = start + rank * share
            chosen = order.take(range(first, first + share), mode="wrap")
            yield [(epoch, index) for index in chosen.tolist()]


class _Rest:
    """What is left of an epoch after ``start`` batches."""

    def __init__(self, sampler: KeyedBatchSampler) -> None:
        self.sampler, self.start = sampler, 0

    def __iter__(self) -> Iterator[Keys]:
        return islice(iter(self.sampler), self.start, None)

    def __len__(self) -> int:
        return len(self.sampler) - self.start


def _identity(batch: Any) -> Any:
    return batch


class ResumableLoader:
    """Iterates over ``dataset.__getitems__(keys)`` and keeps its place in a checkpoint.

    ``state_dict`` counts the batches handed out, not those that workers have prefetched. It is the same on
    all ranks, so the state that rank 0 saves serves every rank. It holds a ``DataLoader`` instead of being
    one because Lightning rebuilds every ``DataLoader`` when it predicts, overfits or injects a distributed
    sampler, and would lose keys and sharding; ``sampler`` is where Lightning looks for ``set_epoch``.
    """

    batch_sampler = None  # Lightning asks whatever has a sampler for this too

    def __init__(self, dataset: KeyedDataset, sampler: KeyedBatchSampler, num_workers: int = 0) -> None:
        self.sampler = sampler
        self._rest = _Rest(sampler)
        self._loader: DataLoader = DataLoader(
            dataset,  # type: ignore[arg-type]  # only __getitems__ is called
            batch_sampler=self._rest,  # type: ignore[arg-type]
            num_workers=num_workers,
            collate_fn=_identity,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
        )
        self._place = (0, 0)
        self._resume = False

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        # A generator, so that nothing is decided before the first batch is asked for: Lightning makes the
        # iterator of a resumed run before it sets the epoch.
        epoch = self.sampler.epoch
        start = self._place[1] if self._resume and self._place[0] == epoch else 0
        self._resume, self._rest.start, self._place = False, start, (epoch, start)
        for handed_out, batch in enumerate(self._loader, start + 1):
            self._place = (epoch, handed_out)
            yield batch

    def state_dict(self) -> dict[str, int]:
        epoch, batch = self._place
        if epoch != self.sampler.epoch:
            epoch, batch = self.sampler.epoch, 0
        if batch >= len(self):
            epoch, batch = epoch + 1, 0
        return {"epoch": epoch, "batch": batch, "global_batch": self._global_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if state["batch"] and state["global_batch"] != self._global_batch:
            raise ValueError(
                f"the checkpoint was saved in mid-epoch with {state['global_batch']} items a step over all "
                f"ranks, now there are {self._global_batch}: restore batch size x ranks, or resume from the "
                "end of an epoch"
            )
        self._place, self._resume = (state["epoch"], state["batch"]), True
        self.sampler.set_epoch(state["epoch"])

    @property
    def _global_batch(self) -> int:
        return self.sampler.size * self.sampler.world()[1]

    # Lightning ends a loader's worker processes through this attribute of DataLoader.
    @property
    def _iterator(self) -> Any:
        return self._loader._iterator

    @_iterator.setter
    def _iterator(self, value: Any) -> None:
        self._loader._iterator = value
