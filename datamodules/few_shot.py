"""Few-shot learning: base-class training batches, and episodes over a table of images for evaluation."""

import hashlib
import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info

from datamodules.degrade import Degrade
from datamodules.episodes import (
    EpisodeSet,
    EpisodeSpec,
    ExampleEpisode,
    PoolImages,
    check_episodes,
    images,
    tabulate,
)
from datamodules.files import visible
from datamodules.images import FewShotSet, ImageStore, Pools, Split, normalised_batch
from datamodules.loaders import KeyedBatchSampler, ResumableLoader
from datamodules.training import BaseImages, TrainingBatches


class FewShot(LightningDataModule):
    """Training batches of base classes, and evaluation episodes over images that are embedded once.

    ``val_dataloader`` and ``test_dataloader`` are lists: the images that any episode needs (``PoolBatch``),
    with ``base_mean`` the base classes' images (``BaseBatch``), then the episodes of each spec in turn
    (``EpisodeRows``); a test ends with one episode to look at (``EpisodeBatch``), hard where a spec is. Every
    rank gets the whole pool, since each needs the whole table of features, and its share of the base images and
    of the episodes. Evaluation episodes are the same in every epoch and run.

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
        seed: of training: order, augmentation, pairs and degradation. Evaluation does not depend on it: episodes
            have the seed of their spec, and an image has one hard version.
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
        """Loads the splits that ``stage`` needs and checks everything that is asked of them.

        Classes that two of the loaded splits share are an error. Only ``fit`` compares every split in use:
        ``validate`` and ``test`` load no split for the comparison alone, and so train only for ``base_mean`` or as
        clutter for degraded images.
        """
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
        folders = [path for path in visible(Path(self.predict_support), "predict_support") if path.is_dir()]
        if len(folders) < 2:
            raise ValueError(
                f"predict_support={self.predict_support}: {len(folders)} class folder(s); at least 2 are "
                "needed, each with that class's images"
            )
        supports = [visible(folder, f"predict_support: class {folder.name!r}") for folder in folders]
        query = Path(self.predict_query)
        queries = [query] if query.is_file() else visible(query, "predict_query")
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
        return self._loaders(pool, [episode], self.pool_batch_size)

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
        at_once = self.pool_batch_size
        if isinstance(limit, int) and limit > 0 and len(ids) > limit * at_once:
            fits = max(1, limit * at_once // sum(spec.way * (spec.shot + spec.query) for spec in specs))
            rank_zero_info(f"limit_{split}_batches={limit} leaves at most {fits} episodes of each spec.")
            ids, episodes = tabulate(pools, [replace(s, episodes=min(s.episodes, fits)) for s in specs])
            at_once = max(at_once, math.ceil(len(ids) / limit))  # a single episode may need more than the batches hold
        bank = self.pools["train"].support.image if self._degrades(split) else None
        pool = PoolImages(pools, ids, self.degrade, bank)
        loaders = self._loaders(pool, episodes, at_once)
        if split == "test":
            shown = next((some for some, spec in zip(episodes, specs, strict=True) if spec.hard), episodes[0])
            loaders.append(ResumableLoader(ExampleEpisode(pool, shown), KeyedBatchSampler(1, 1, rank=0, world_size=1)))
        return loaders

    def _loaders(self, pool: PoolImages, episodes: list[EpisodeSet], at_once: int) -> list[ResumableLoader]:
        whole = KeyedBatchSampler(len(pool), at_once, rank=0, world_size=1)
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
        batch = normalised_batch(batch, self.dataset.mean, self.dataset.std)
        return batch if self.trainer is None else self.trainer.precision_plugin.convert_input(batch)
