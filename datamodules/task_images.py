"""The keyed data set of class-incremental learning: a task's training images."""

import numpy as np

from datamodules.augment import Augment
from datamodules.batches import ImageBatch
from datamodules.episodes import distinct, take
from datamodules.images import ImageStore
from datamodules.loaders import Keys
from datamodules.streams import key, uniform

# Part of a key that tells the uses of one (seed, epoch, number) apart.
_DRAW, _AUGMENT = range(2)


class TaskImages:
    """What a task trains on: a keyed data set of ``ImageBatch``.

    Without a memory, index i is the i-th of the ``new`` rows. With one, the keys are a whole batch of consecutive
    indices, which number the batch: of its rows, half come from ``memory`` and half from ``new``, each half without
    replacement unless it is as large as what it is drawn from or larger.
    """

    def __init__(
        self,
        store: ImageStore,
        new: np.ndarray,
        memory: np.ndarray,
        batch_size: int,
        seed: int,
        augment: Augment | None,
    ) -> None:
        self.store, self.new, self.memory = store, new, memory
        self.batch_size, self.seed, self.augment = batch_size, seed, augment

    def __len__(self) -> int:
        return len(self.new) + len(self.memory)

    def __getitems__(self, keys: Keys) -> ImageBatch:
        epoch, index = keys[0][0], np.array([i for _, i in keys])
        rows = self._drawn(epoch, keys[0][1] // self.batch_size) if len(self.memory) else self.new[index]
        image = take(self.store.image, rows)
        if self.augment is not None:
            image = self.augment(image, key(self.seed, epoch, index, _AUGMENT))
        return ImageBatch(image, take(self.store.label, rows))

    def _drawn(self, epoch: int, batch: int) -> np.ndarray:
        """Rows of one batch, those of the memory first."""
        half, keys = self.batch_size // 2, key(self.seed, epoch, batch, _DRAW, np.arange(2))
        size = np.array([[len(self.memory)], [len(self.new)]])
        repeated = np.floor(uniform(keys, half) * size).astype(np.int64)
        drawn = np.where(size <= half, repeated, distinct(keys, size[:, 0], half))
        return np.concatenate([self.memory[drawn[0]], self.new[drawn[1]]])
