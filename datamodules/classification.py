"""Image classification: shuffled training batches, augmented on the device where that is possible, and evaluation."""

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from datamodules.augment import Augment
from datamodules.batches import ImageBatch
from datamodules.episodes import take
from datamodules.image_sets import ImageSet, Part
from datamodules.images import ImageStore
from datamodules.labelled import LabelledData, drawn_rows
from datamodules.loaders import KeyedBatchSampler, Keys, ResumableLoader
from datamodules.streams import key

# Part of a key that tells the uses of one seed apart.
_SPLIT, _ORDER, _AUGMENT = range(3)


class KeyedImages(NamedTuple):
    """An ``ImageBatch`` that is still to be augmented: each image has its key [B] uint64, an array that stays put."""

    image: Tensor
    label: Tensor
    key: np.ndarray


class Classification(LabelledData):
    """Labelled images in a train, a val and a test part, with the class frequencies of the data set.

    ``train_dataloader`` has ``ImageBatch``es, shuffled anew in each epoch, without an incomplete last one.
    ``val_dataloader`` and ``test_dataloader`` are lists of one loader of ``IndexedImages``. An ``augment`` that is
    ``batched`` runs on the device, after a batch has come there: until then its loader's batches are ``KeyedImages``.
    Other ones run in the loader's processes. Images are normalised on the device.

    Args:
        dataset: the images.
        batch_size: images of a rank's training batch.
        augment: a random change of each training image.
        eval_batch_size: images of a rank's evaluation batch.
        validation_fraction: of each class's training images, at least one, to validate on in place of training on
            them; for sets that have no val part.
        num_workers: processes that load images, for each loader; 0 loads in the main process.
        seed: of the order, the augmentation, and the choice of images to hold out or to keep. Two stages of one study
            need the same, or the second trains on what the first was validated on.
        images_per_class: train on that many images of each class only; null for all.
    """

    def __init__(
        self,
        dataset: ImageSet,
        batch_size: int,
        augment: Augment | None = None,
        eval_batch_size: int = 256,
        validation_fraction: float = 0.0,
        num_workers: int = 0,
        seed: int = 0,
        images_per_class: int | None = None,
    ) -> None:
        super().__init__(dataset, eval_batch_size, num_workers)
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "images_per_class": images_per_class}
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        if not 0 <= validation_fraction < 1:
            raise ValueError(f"validation_fraction={validation_fraction}: must lie in [0, 1)")
        self.batch_size, self.augment, self.seed = batch_size, augment, seed
        self.validation_fraction, self.images_per_class = validation_fraction, images_per_class
        self._stores: dict[Part, ImageStore] = {}

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by label; loads the training part if no other part is loaded yet."""
        return self._part(next(iter(self._stores), "train")).classes

    def setup(self, stage: str) -> None:
        """Loads the parts that ``stage`` needs and checks them."""
        if stage == "fit":
            store, (rows, _) = self._part("train"), self._rows
            rank_zero_info(f"train: {len(rows)} of {len(store.label)} images, {len(store.classes)} classes")
        if stage in ("fit", "validate") and (self.trainer is None or self.trainer.limit_val_batches):
            rank_zero_info(f"val: {len(self._validation[1])} images")
        if stage == "test":
            self._part("test")

    def _part(self, split: Part) -> ImageStore:
        if split not in self._stores:
            store = self.dataset.load(split)
            for other, loaded in self._stores.items():
                if loaded.classes != store.classes:
                    raise ValueError(f"the {other} and the {split} part of {self.dataset.name} have different classes")
            self._stores[split] = store
        return self._stores[split]

    @cached_property
    def _rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the training part to train on, and those to validate on in its place, both ascending."""
        store, fraction = self._part("train"), self.validation_fraction
        kept, held = [], []
        for label, name in enumerate(store.classes):
            rows = drawn_rows(store, label, key(self.seed, _SPLIT, label))
            cut = max(1, round(fraction * len(rows))) if fraction else 0
            if cut >= len(rows):
                raise ValueError(
                    f"validation_fraction={fraction}: of the {len(rows)} training image(s) of class {name!r} none "
                    "would be left; lower it, or give that class more images"
                )
            held.append(rows[:cut])
            kept.append(rows[cut:][: self.images_per_class])
        return np.sort(np.concatenate(kept)), np.sort(np.concatenate(held))

    @cached_property
    def _validation(self) -> tuple[ImageStore, np.ndarray]:
        """The store and its rows to validate on."""
        name, fraction = self.dataset.name, self.validation_fraction
        if "val" in self.dataset.parts:
            if fraction:
                raise ValueError(f"validation_fraction={fraction}, but {name} has a val part of its own; leave it out")
            store = self._part("val")
            return store, np.arange(len(store.label))
        if not fraction:
            raise ValueError(
                f"{name} has no val part: set validation_fraction to hold out training images, such as 0.1, or "
                "trainer.limit_val_batches to 0"
            )
        return self._part("train"), self._rows[1]

    def train_dataloader(self) -> ResumableLoader:
        images = TrainingImages(self._part("train"), self._rows[0], int(key(self.seed, _AUGMENT)), self.augment)
        order = int(key(self.seed, _ORDER))
        sampler = KeyedBatchSampler(len(images), self.batch_size, shuffle=True, seed=order, drop_last=True)
        return ResumableLoader(images, sampler, self.num_workers)

    def val_dataloader(self) -> list[ResumableLoader]:
        store, rows = self._validation
        return [self.evaluation(store.image, store.label, rows)]

    def test_dataloader(self) -> list[ResumableLoader]:
        store = self._part("test")
        return [self.evaluation(store.image, store.label)]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augments what is still to be augmented, then normalises as any ``LabelledData``."""
        if isinstance(batch, KeyedImages):
            assert self.augment is not None
            batch = ImageBatch(self.augment(batch.image, batch.key), batch.label)
        return super().on_after_batch_transfer(batch, dataloader_idx)


class TrainingImages:
    """Rows of a store to train on: a keyed data set of ``KeyedImages`` where ``augment`` is batched, else of
    ``ImageBatch``."""

    def __init__(self, store: ImageStore, rows: np.ndarray, seed: int, augment: Augment | None) -> None:
        self.store, self.rows, self.seed, self.augment = store, rows, seed, augment

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, keys: Keys) -> ImageBatch | KeyedImages:
        rows = self.rows[[index for _, index in keys]]
        image, label = take(self.store.image, rows), take(self.store.label, rows)
        if self.augment is None:
            return ImageBatch(image, label)
        image_keys = key(self.seed, keys[0][0], rows)
        if self.augment.batched:
            return KeyedImages(image, label, image_keys)
        return ImageBatch(self.augment(image, image_keys), label)
