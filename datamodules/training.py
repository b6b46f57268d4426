"""Keyed data sets over the base classes: what methods train on, and the images as stored."""

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.augment import Augment, TorchvisionAugment
from datamodules.batches import BaseBatch, EpisodeBatch, ImageBatch, PairBatch
from datamodules.degrade import Degrade
from datamodules.episodes import EpisodeSpec, check_episodes, gather, images, sample_episodes, take
from datamodules.images import ImageStore, Pools
from datamodules.loaders import Keys
from datamodules.pairs import check_pairs, sample_pairs
from datamodules.streams import key, uniform

# Part of a key that tells the uses of one (seed, epoch, index) apart.
_CHOOSE, _AUGMENT, _DEGRADE = range(3)


class TrainingBatches(ABC):
    """What a method trains on; a keyed data set once ``setup`` has given it the base classes."""

    batch_size: int
    degrades = False

    def setup(self, pools: Pools, seed: int, degrade: Degrade | None) -> None:
        """Raises ``ValueError`` where the pools cannot serve."""
        if self.degrades and degrade is None:
            raise ValueError(f"{type(self).__name__} asks for degraded images, but degrade is null: give one")
        self.pools, self.seed, self.degrade = pools, seed, degrade

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitems__(self, keys: Keys) -> Any: ...

    def degraded(self, image: Tensor, keys: np.ndarray) -> Tensor:
        assert self.degrade is not None
        return self.degrade(image, keys, self.pools.support.image)


class Images(TrainingBatches):
    """Labelled images of the base classes (``ImageBatch``), of both pools where there are two.

    Args:
        batch_size: images of one rank's batch.
        augment: a random change of each image.
        degraded: share of the images that are degraded first, drawn anew in each epoch.
    """

    def __init__(self, batch_size: int, augment: Augment | None = None, degraded: float = 0.0) -> None:
        if not 0 <= degraded <= 1:
            raise ValueError(f"Images.degraded={degraded}: must lie in [0, 1]")
        self.batch_size, self.augment, self.share, self.degrades = batch_size, augment, degraded, degraded > 0

    def __len__(self) -> int:
        return images(self.pools)

    def __getitems__(self, keys: Keys) -> ImageBatch:
        epoch, index = _parts(keys)
        image, label = gather(self.pools, index)
        chosen = uniform(key(self.seed, epoch, index, _CHOOSE), 1)[:, 0] < self.share
        if chosen.any():
            at = torch.from_numpy(chosen)
            image[at] = self.degraded(image[at], key(self.seed, epoch, index[chosen], _DEGRADE))
        if self.augment is not None:
            image = self.augment(image, key(self.seed, epoch, index, _AUGMENT))
        return ImageBatch(image, label)


class Episodes(TrainingBatches):
    """Episodes of base classes with their images (``EpisodeBatch``), new ones in each epoch.

    Args:
        spec: the episodes; ``spec.episodes`` of them make an epoch, over all ranks.
        batch_episodes: episodes of one rank's batch.
        augment: a random change of each image.
    """

    def __init__(self, spec: EpisodeSpec, batch_episodes: int = 1, augment: Augment | None = None) -> None:
        self.spec, self.batch_size, self.augment = spec, batch_episodes, augment

    def setup(self, pools: Pools, seed: int, degrade: Degrade | None) -> None:
        self.degrades = self.spec.hard and pools.query is None
        super().setup(pools if self.spec.hard else Pools(pools.support), seed, degrade)
        check_episodes(self.pools, self.spec, "training")

    def __len__(self) -> int:
        return self.spec.episodes

    def __getitems__(self, keys: Keys) -> EpisodeBatch:
        epoch, index = _parts(keys)
        support, support_label, query, query_label = sample_episodes(self.pools, self.spec, epoch, index)
        place = np.arange(support.shape[1] + query.shape[1])
        image_keys = key(self.seed, epoch, index[:, None], place)
        cut, queries = support.shape[1], self.pools.query or self.pools.support
        return EpisodeBatch(
            self._images(self.pools.support, support, image_keys[:, :cut], hard=False),
            torch.from_numpy(support_label),
            self._images(queries, query, image_keys[:, cut:], hard=self.degrades),
            torch.from_numpy(query_label),
            self.spec.way,
        )

    def _images(self, store: ImageStore, rows: np.ndarray, keys: np.ndarray, hard: bool) -> Tensor:
        image, flat = take(store.image, rows.ravel()), keys.ravel()
        if hard:
            image = self.degraded(image, key(_DEGRADE, flat))
        if self.augment is not None:
            image = self.augment(image, key(_AUGMENT, flat))
        return image.unflatten(0, rows.shape)


class Pairs(TrainingBatches):
    """Pairs of the same and of different base classes (``PairBatch``), as CRLNet trains on them.

    Args:
        batch_size: pairs of one rank's batch.
        query: what the query image is: ``clean`` as stored, ``degraded``, or ``autoaugment`` (random resized
            crop and AutoAugment, the official recipe). The support is as stored.
    """

    def __init__(self, batch_size: int, query: Literal["clean", "degraded", "autoaugment"] = "clean") -> None:
        self.batch_size, self.query, self.degrades = batch_size, query, query == "degraded"

    def setup(self, pools: Pools, seed: int, degrade: Degrade | None) -> None:
        super().setup(pools, seed, degrade)
        check_pairs(pools)
        size = pools.support.image.shape[-1]
        self.augment = TorchvisionAugment(size, autoaugment=True, jitter=0, flip=False)

    def __len__(self) -> int:
        return len((self.pools.query or self.pools.support).label)

    def __getitems__(self, keys: Keys) -> PairBatch:
        epoch, index = _parts(keys)
        support, query, label = sample_pairs(self.pools, self.seed, epoch, index)
        image = take((self.pools.query or self.pools.support).image, query)
        if self.query == "degraded":
            image = self.degraded(image, key(self.seed, epoch, index, _DEGRADE))
        elif self.query == "autoaugment":
            image = self.augment(image, key(self.seed, epoch, index, _AUGMENT))
        return PairBatch(take(self.pools.support.image, support), image, torch.from_numpy(label))


class BaseImages:
    """All images of the base classes as stored: a keyed data set of ``BaseBatch``.

    Its length is the number of images rounded up to a multiple of ``world_size``; the surplus is not valid.
    """

    def __init__(self, pools: Pools, world_size: int) -> None:
        self.pools, self.length = pools, math.ceil(images(pools) / world_size) * world_size

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, keys: Keys) -> BaseBatch:
        _, index = _parts(keys)
        held = images(self.pools)
        return BaseBatch(gather(self.pools, index % held)[0], torch.from_numpy(index < held))


def _parts(keys: Keys) -> tuple[int, np.ndarray]:
    """The epoch, which a batch's keys share, and the indices [B] int64."""
    return keys[0][0], np.array([index for _, index in keys])
