"""What data modules of one labelled image set share: normalising on the device, and loaders of images to evaluate."""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from datamodules.batches import IndexedImages
from datamodules.episodes import take
from datamodules.image_sets import ImageSet
from datamodules.images import ImageStore, normalised_batch
from datamodules.loaders import KeyedBatchSampler, Keys, ResumableLoader
from datamodules.streams import uniform


class LabelledData(LightningDataModule):
    """Evaluation loaders of ``IndexedImages``; every batch is normalised as the images of ``dataset``."""

    def __init__(self, dataset: ImageSet, eval_batch_size: int, num_workers: int) -> None:
        super().__init__()
        self.dataset, self.eval_batch_size, self.num_workers = dataset, eval_batch_size, num_workers

    def prepare_data(self) -> None:
        """With several ranks: downloads and reads files into the cache, once a node, before all ranks ask for them."""
        if self.trainer is not None and self.trainer.world_size > 1:
            for part in self.dataset.parts:
                self.dataset.load(part)

    @property
    def image_form(self) -> dict[str, Any]:
        """How to read image files for a model of these data, as plain data: the fields of ``ImageForm``, mean and std.

        Empty where images are no pictures.
        """
        if self.dataset.form is None:
            return {}
        return asdict(self.dataset.form) | {"mean": list(self.dataset.mean), "std": list(self.dataset.std)}

    def evaluation(self, image: Tensor, label: Tensor, rows: np.ndarray | None = None) -> ResumableLoader:
        """The given rows of images and their labels, all unless told, in order."""
        images = EvaluatedImages(image, label, np.arange(len(label)) if rows is None else rows)
        return ResumableLoader(images, KeyedBatchSampler(len(images), self.eval_batch_size), self.num_workers)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Scales uint8 images to [0, 1] and normalises them, in the Trainer's precision."""
        batch = normalised_batch(batch, self.dataset.mean, self.dataset.std)
        return batch if self.trainer is None else self.trainer.precision_plugin.convert_input(batch)


class EvaluatedImages:
    """Rows of images as stored: a keyed data set of ``IndexedImages``; keys' epochs play no part."""

    def __init__(self, image: Tensor, label: Tensor, rows: np.ndarray) -> None:
        self.image, self.label, self.rows = image, label, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, keys: Keys) -> IndexedImages:
        place = np.array([i for _, i in keys])
        rows = self.rows[place]
        return IndexedImages(take(self.image, rows), take(self.label, rows), torch.from_numpy(place))


def drawn_rows(store: ImageStore, label: int, key: np.ndarray) -> np.ndarray:
    """Rows of the images of a class in random order, a pure function of ``key`` [] and the number of its images."""
    draws = uniform(key, int(store.count[label]))
    return int(store.start[label]) + np.argsort(draws, kind="stable")
