"""Few-shot learning: base-class training batches, and episodes over a table of images for evaluation."""

import hashlib
import math
from abc import ABC, abstractmethod
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchvision.transforms import v2

from datamodules.batches import BaseBatch, EpisodeBatch, ImageBatch, PairBatch
from datamodules.degrade import Degrade
from datamodules.episodes import (
    EpisodeSet,
    EpisodeSpec,
    PoolImages,
    check_episodes,
    gather,
    images,
    sample_episodes,
    tabulate,
)
from datamodules.images import FewShotSet, ImageStore, Pools, Split
from datamodules.loaders import KeyedBatchSampler, Keys, ResumableLoader
from datamodules.pairs import check_pairs, sample_pairs
from datamodules.streams import key, uniform

# Part of a key that tells the uses of one (seed, epoch, index) apart.
_CHOOSE, _AUGMENT, _DEGRADE = range(3)


class Augment(ABC):
    """A random change of images that depends on each image and its key alone."""

    @abstractmethod
    def __call__(self, image: Tensor, keys: np.ndarray) -> Tensor:
        """uint8 [B, C, H', W'] for ``image`` [B, C, H, W] uint8 and ``keys`` [B] uint64."""


class TorchvisionAugment(Augment):
    """Random resized crop, AutoAugment (ImageNet policy), colour jitter and horizontal flip, image by image.

    The defaults are the usual recipe for few-shot training at 84 px. CRLNet's queries (official code) have
    ``autoaugment=True, jitter=0, flip=False``.

    Args:
        size: side of the images that come out, in pixels.
        scale: range of the crop's area, as a fraction of the image's.
        autoaugment: apply a random sub-policy of AutoAugment.
        jitter: strength of the change in brightness, contrast and saturation; 0 for none.
        flip: mirror half of the images.
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.08, 1.0),
        autoaugment: bool = False,
        jitter: float = 0.4,
        flip: bool = True,
    ) -> None:
        steps: list[torch.nn.Module] = [v2.RandomResizedCrop(size, scale, antialias=True)]
        steps += [v2.AutoAugment()] * autoaugment
        steps += [v2.ColorJitter(jitter, jitter, jitter)] * (jitter > 0)
        steps += [v2.RandomHorizontalFlip()] * flip
        self.steps = v2.Compose(steps)

    def __call__(self, image: Tensor, keys: np.ndarray) -> Tensor:
        # torchvision draws from torch's global generator: seed it for each image, then put it back
        with torch.random.fork_rng(devices=[]):
            done = []
            for one, seed in zip(image, keys.tolist(), strict=True):
                torch.random.default_generator.manual_seed(seed)
                done.append(self.steps(one))
        return torch.stack(done)


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
        image, flat = store.image[torch.from_numpy(rows.ravel())], keys.ravel()
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
        image = (self.pools.query or self.pools.support).image[torch.from_numpy(query)]
        if self.query == "degraded":
            image = self.degraded(image, key(self.seed, epoch, index, _DEGRADE))
        elif self.query == "autoaugment":
            image = self.augment(image, key(self.seed, epoch, index, _AUGMENT))
        return PairBatch(self.pools.support.image[torch.from_numpy(support)], image, torch.from_numpy(label))


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


class FewShot(LightningDataModule):
    """Training batches of base classes, and evaluation episodes over images that are embedded once.

    ``val_dataloader`` and ``test_dataloader`` are lists: the images that any episode needs (``PoolBatch``),
    with ``base_mean`` the base classes' images (``BaseBatch``), then the episodes of each spec in turn
    (``EpisodeRows``). Every rank gets the whole pool, since each needs the whole table of features, and its
    share of the base images and of the episodes. Evaluation episodes are the same in every epoch and run.

    Args:
        dataset: the classes, their images, and the images' mean and standard deviation.
        training: what ``fit`` trains on; null for evaluation only.
        val: kinds of episodes to validate on.
        test: kinds of episodes to test on.
        degrade: makes the hard images of sets that have none of their own; clutter is of base classes.
        base_mean: also hand out the base images, for heads that centre features.
        pool_batch_size: images of a rank's evaluation batch.
        episode_batch_size: episodes of a rank's evaluation batch.
        num_workers: processes that load images, for each loader of images; 0 loads in the main process.
        seed: of order, augmentation, pairs and degradation; episodes have the seed of their spec.
        predict_support: folder with one folder of labelled images a class.
        predict_query: folder of images, or one image, to classify.
    """

    def __init__(
        self,
        dataset: FewShotSet,
        training: TrainingBatches | None,
        val: list[EpisodeSpec],
        test: list[EpisodeSpec],
        degrade: Degrade | None = None,
        base_mean: bool = False,
        pool_batch_size: int = 256,
        episode_batch_size: int = 50,
        num_workers: int = 0,
        seed: int = 0,
        predict_support: str | None = None,
        predict_query: str | None = None,
    ) -> None:
        super().__init__()
        self.dataset, self.training, self.degrade, self.base_mean = dataset, training, degrade, base_mean
        self.specs: dict[Split, list[EpisodeSpec]] = {"val": val, "test": test}
        self.pool_batch_size, self.episode_batch_size = pool_batch_size, episode_batch_size
        self.num_workers, self.seed = num_workers, seed
        self.predict_support, self.predict_query = predict_support, predict_query
        self.pools: dict[Split, Pools] = {}
        for split, specs in self.specs.items():
            names = [spec.name for spec in specs]
            if len(set(names)) < len(names):
                raise ValueError(f"{split}: the episode specs {names} must differ in name; drop one")

    @property
    def base_classes(self) -> int:
        """Number of classes in the training split."""
        return len(self.pools["train"].support.classes)

    def setup(self, stage: str) -> None:
        """Loads the splits that ``stage`` needs and checks everything that is asked of them."""
        if stage == "predict":
            self._setup_predict()
        evaluated: dict[str, list[Split]] = {"fit": ["val", "test"], "validate": ["val"], "test": ["test"]}
        splits = [split for split in evaluated.get(stage, []) if self.specs[split]]
        if stage == "fit" or self.base_mean or any(self._degrades(split) for split in splits):
            splits.insert(0, "train")
        for split in splits:
            if split not in self.pools:
                self.pools[split] = self.dataset.load(split)
                rank_zero_info(self._describe(split))
            for spec in self.specs.get(split, []):
                hard = self.pools[split] if spec.hard else Pools(self.pools[split].support)
                check_episodes(hard, spec, split)
                if spec.hard and self.pools[split].query is None and self.degrade is None:
                    raise ValueError(f"{split}: {spec.name} has no pool of hard queries and degrade is null")
        for one, other in combinations(self.pools, 2):
            if both := set(self.pools[one].support.classes) & set(self.pools[other].support.classes):
                raise ValueError(
                    f"the {one} and {other} splits share {len(both)} classes, such as {min(both)!r}: "
                    "they must be disjoint"
                )
        if stage == "fit":
            self._setup_fit()

    def _degrades(self, split: Split) -> bool:
        return self.degrade is not None and any(spec.hard for spec in self.specs[split])

    def _describe(self, split: Split) -> str:
        classes = self.pools[split].support.classes
        digest = hashlib.sha256("\n".join(classes).encode()).hexdigest()[:12]
        lines = [f"{split}: {len(classes)} classes (sha256 {digest}), {images(self.pools[split])} images"]
        return "\n  ".join(lines + [f"{spec.name}: {spec}" for spec in self.specs.get(split, [])])

    def _setup_fit(self) -> None:
        if self.training is None:
            raise ValueError("training is null, so this data module can only evaluate; set it to fit")
        self.training.setup(self.pools["train"], self.seed, self.degrade)
        if self.trainer is not None and 0 < self.trainer.num_sanity_val_steps < math.inf:
            rank_zero_info("No sanity check: episodes need the features of the whole pool.")
            self.trainer.num_sanity_val_steps = 0

    def _setup_predict(self) -> None:
        if self.predict_support is None or self.predict_query is None:
            raise ValueError("predict_support and predict_query must both be given to predict")
        folders = [path for path in _visible(Path(self.predict_support), "predict_support") if path.is_dir()]
        if len(folders) < 2:
            raise ValueError(
                f"predict_support={self.predict_support}: {len(folders)} class folder(s); at least 2 are "
                "needed, each with that class's images"
            )
        supports = [_visible(folder, f"predict_support: class {folder.name!r}") for folder in folders]
        query = Path(self.predict_query)
        queries = [query] if query.is_file() else _visible(query, "predict_query")
        paths = [str(path) for paths in (*supports, queries) for path in paths]
        label = np.repeat(np.arange(len(folders)), [len(paths) for paths in supports])
        self.predict_classes = [folder.name for folder in folders]
        self.predict_files = [str(path) for path in queries]
        store = ImageStore(self.dataset.read(paths), torch.zeros(len(paths), dtype=torch.long), ("",))
        rows = np.arange(len(paths))
        support, queried = rows[None, : len(label)], rows[None, len(label) :]
        self._predict_data = (
            PoolImages(Pools(store), rows),
            EpisodeSet("predict", len(folders), support, label[None], queried, np.full_like(queried, -1)),
        )
        if self.base_mean:
            self.pools["train"] = self.dataset.load("train")

    def train_dataloader(self) -> ResumableLoader:
        training = self.training
        assert training is not None
        length, size = len(training), training.batch_size
        sampler = KeyedBatchSampler(length, size, shuffle=True, seed=self.seed, drop_last=True)
        return ResumableLoader(training, sampler, self.num_workers)

    def val_dataloader(self) -> list[ResumableLoader]:
        return self._evaluation("val", self.trainer.limit_val_batches if self.trainer is not None else 1.0)

    def test_dataloader(self) -> list[ResumableLoader]:
        return self._evaluation("test", self.trainer.limit_test_batches if self.trainer is not None else 1.0)

    def predict_dataloader(self) -> list[ResumableLoader]:
        pool, episode = self._predict_data
        limit = 1.0 if self.trainer is None else self.trainer.limit_predict_batches
        whole = isinstance(limit, float) and limit == 1  # the number 1 means one batch
        if not whole and len(pool) > limit * self.pool_batch_size:
            raise ValueError(
                f"limit_predict_batches={limit} lets in fewer than the {len(pool)} images given; leave it out "
                "or raise pool_batch_size"
            )
        return self._loaders(pool, [episode])

    def _evaluation(self, split: Split, limit: int | float) -> list[ResumableLoader]:
        specs = self.specs[split]
        if not specs:
            return []
        pools = self.pools[split]
        ids, episodes = tabulate(pools, specs)
        if isinstance(limit, float) and limit != 1:
            raise ValueError(
                f"limit_{split}_batches={limit}: a part of the pool serves no episode; give a number of "
                "batches, or specs with fewer episodes"
            )
        if isinstance(limit, int) and len(ids) > (room := limit * self.pool_batch_size):
            fits = room // sum(spec.way * (spec.shot + spec.query) for spec in specs)
            if fits < 1:
                raise ValueError(
                    f"limit_{split}_batches={limit} of pool_batch_size={self.pool_batch_size} lets in {room} "
                    f"images, too few for an episode of each of {[spec.name for spec in specs]}; raise either"
                )
            rank_zero_info(f"limit_{split}_batches={limit} leaves at most {fits} episodes of each spec.")
            ids, episodes = tabulate(pools, [replace(s, episodes=min(s.episodes, fits)) for s in specs])
        bank = self.pools["train"].support.image if self._degrades(split) else None
        return self._loaders(PoolImages(pools, ids, self.seed, self.degrade, bank), episodes)

    def _loaders(self, pool: PoolImages, episodes: list[EpisodeSet]) -> list[ResumableLoader]:
        whole = KeyedBatchSampler(len(pool), self.pool_batch_size, rank=0, world_size=1)
        loaders = [ResumableLoader(pool, whole, self.num_workers)]
        if self.base_mean:
            base = BaseImages(self.pools["train"], KeyedBatchSampler(1, 1).world()[1])
            share = KeyedBatchSampler(len(base), self.pool_batch_size)
            loaders.append(ResumableLoader(base, share, self.num_workers))
        return loaders + [
            ResumableLoader(some, KeyedBatchSampler(len(some), self.episode_batch_size)) for some in episodes
        ]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Scales uint8 images of any batch to [0, 1] and normalises them, in the Trainer's precision."""
        mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (self.dataset.mean, self.dataset.std))
        found = {k: v for k, v in batch._asdict().items() if isinstance(v, Tensor) and v.dtype == torch.uint8}
        done = {
            name: image.float().sub_((255 * mean).to(image.device)).div_((255 * std).to(image.device))
            for name, image in found.items()
        }
        batch = batch._replace(**done)
        return batch if self.trainer is None else self.trainer.precision_plugin.convert_input(batch)


def _parts(keys: Keys) -> tuple[int, np.ndarray]:
    """The epoch, which a batch's keys share, and the indices [B] int64."""
    return keys[0][0], np.array([index for _, index in keys])


def _visible(folder: Path, what: str) -> list[Path]:
    """What lies in a folder, sorted by name, without hidden files; raises where that is nothing."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{what}: {folder} is not a folder")
    found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if not found:
        raise ValueError(f"{what}: {folder} is empty")
    return found
