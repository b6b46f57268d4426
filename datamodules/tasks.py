"""Class-incremental learning: a sequence of tasks of new classes, with a memory of old images, and retrieval."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from datamodules.augment import Augment
from datamodules.files import image_tree
from datamodules.image_sets import ImageSet, Part
from datamodules.images import ImageStore, of_each_class, select
from datamodules.labelled import LabelledData, drawn_rows
from datamodules.loaders import KeyedBatchSampler, ResumableLoader
from datamodules.streams import key
from datamodules.task_images import TaskImages

# Part of a key that tells the uses of one seed apart.
_MEMORY, _ORDER, _TRAIN = range(3)


class ClassIncremental(LabelledData):
    """Tasks of new classes in the data set's order, then retrieval among other classes.

    Task 0 trains on ``initial`` classes, each later one on ``increment`` more; labels are places in this order. With
    ``rehearsal``, half of a later task's batch is drawn from the memory, images of all earlier classes, and half from
    the new classes, independently for every batch (the official code of d-Simplex, arXiv 2405.02581). Otherwise an
    epoch is a shuffled pass over the new classes.

    ``val_dataloader`` has the test images of the classes known so far; ``test_dataloader`` the queries and the
    gallery; ``predict_dataloader`` the images of ``predict_gallery`` and ``predict_query``, label -1. All are
    ``IndexedImages``. All images, ``retrieval``'s too, are normalised by the mean and standard deviation of
    ``dataset``, since its model is trained on them.

    Args:
        dataset: what the tasks are made of.
        retrieval: what ``test`` searches; null where nothing is tested, which a sequence of tasks always is.
        initial: classes of the first task.
        increment: new classes of each later task, fewer in the last where they do not divide; 0 for a single task.
        classes: first and one past the last of the data set's classes to use; null for all.
        images_per_class: keep only the first that many training images of each class; null for all.
        rehearsal: images of each class that the memory keeps; 0 for none.
        batch_size: images of a rank's training batch.
        eval_batch_size: images of a rank's evaluation batch.
        query_split: the part of ``retrieval`` that the queries are.
        gallery_split: the part that is searched.
        augment: a random change of each training image.
        num_workers: processes that load images, for each loader; 0 loads in the main process.
        seed: of the memory, the order, the draws and the augmentation.
        predict_gallery: folder of images to search, in folders or not.
        predict_query: folder of images, or one image, to search for.
    """

    def __init__(
        self,
        dataset: ImageSet,
        retrieval: ImageSet | None,
        initial: int,
        increment: int = 0,
        classes: tuple[int, int] | None = None,
        images_per_class: int | None = None,
        rehearsal: int = 20,
        batch_size: int = 128,
        eval_batch_size: int = 256,
        query_split: Part = "train",
        gallery_split: Part = "test",
        augment: Augment | None = None,
        num_workers: int = 0,
        seed: int = 0,
        predict_gallery: str | None = None,
        predict_query: str | None = None,
    ) -> None:
        super().__init__(dataset, eval_batch_size, num_workers)
        for name, value, least in (
            ("initial", initial, 1),
            ("increment", increment, 0),
            ("images_per_class", images_per_class, 1),
            ("rehearsal", rehearsal, 0),
        ):
            if value is not None and value < least:
                raise ValueError(f"{name}={value}: must be at least {least}")
        if increment and rehearsal and batch_size % 2:
            raise ValueError(f"batch_size={batch_size}: must be even, half of it comes from the memory")
        if query_split == gallery_split:
            raise ValueError(f"query_split and gallery_split are both {query_split}: every query would find itself")
        if retrieval is not None and retrieval.shape != dataset.shape:
            raise ValueError(f"retrieval has images of {retrieval.shape}, dataset of {dataset.shape}: they must agree")
        self.retrieval, self.initial, self.increment = retrieval, initial, increment
        self.classes, self.images_per_class, self.rehearsal = classes, images_per_class, rehearsal
        self.batch_size, self.augment, self.seed, self.task = batch_size, augment, seed, 0
        self.query_split, self.gallery_split = query_split, gallery_split
        self.predict_gallery, self.predict_query = predict_gallery, predict_query

    @property
    def num_tasks(self) -> int:
        return len(self._known)

    def set_task(self, index: int) -> None:
        """Chooses the task that ``fit`` trains on, from 0; task 0 unless told."""
        self.task = self._checked(index)

    def classes_after(self, index: int) -> int:
        """The number of classes known after task ``index``; 0 for -1."""
        return 0 if index == -1 else self._known[self._checked(index)]

    def memory(self, index: int) -> Tensor:
        """Rows of the training images in memory when task ``index`` starts, ascending, [n] int64.

        Of each earlier class those with the smallest draws, a pure function of the seed and the class.
        """
        store, kept = self._train, []
        for label in range(self.classes_after(index - 1)):
            kept.append(np.sort(drawn_rows(store, label, key(self.seed, _MEMORY, label))[: self.rehearsal]))
        return torch.from_numpy(np.concatenate(kept)) if kept else torch.empty(0, dtype=torch.long)

    def describe(self, index: int) -> dict[str, Any]:
        """Task ``index`` as plain data: new ``classes``, how many are ``known`` before, new ``images``, ``memory``."""
        known, after = self.classes_after(index - 1), self.classes_after(index)
        classes, images = list(self._train.classes[known:after]), len(self._new(index))
        return {"classes": classes, "known": known, "images": images, "memory": self.memory(index).tolist()}

    def setup(self, stage: str) -> None:
        """Loads what ``stage`` needs and checks it."""
        validates = self.trainer is None or self.trainer.limit_val_batches
        if stage in ("fit", "validate"):
            _ = self._known, self._held_out if validates else None
        elif stage == "test":
            _ = self._searched
        elif stage == "predict":
            self._setup_predict()

    @cached_property
    def _train(self) -> ImageStore:
        store = self._chosen("train")
        return store if self.images_per_class is None else of_each_class(store, 0, self.images_per_class)

    @cached_property
    def _held_out(self) -> ImageStore:
        store = self._chosen("test")
        if store.classes != self._train.classes:
            raise ValueError("the train and the test part of dataset have different classes")
        return store

    def _chosen(self, split: Part) -> ImageStore:
        store = self.dataset.load(split)
        if self.classes is None:
            return store
        first, last = self.classes
        if not 0 <= first < last <= len(store.classes):
            raise ValueError(f"classes={self.classes}: must be a range within [0, {len(store.classes)})")
        return select(store, range(first, last))

    @cached_property
    def _known(self) -> list[int]:
        """Classes known after each task."""
        total, count = len(self._train.classes), self._train.count
        if self.initial > total:
            raise ValueError(f"initial={self.initial}, but there are only {total} classes")
        if not self.increment:
            return [self.initial]
        known = [*range(self.initial, total, self.increment), total]
        if left := (total - self.initial) % self.increment:
            rank_zero_info(f"{total} classes make {len(known)} tasks; the last has {left} new classes only.")
        if len(known) > 1 and (few := int((count[: known[-2]] < self.rehearsal).sum())):
            least = int(count[: known[-2]].min())
            rank_zero_warn(
                f"{few} classes have fewer than rehearsal={self.rehearsal} images, down to {least}: the memory keeps "
                "all of theirs"
            )
        return known

    @cached_property
    def _searched(self) -> tuple[ImageStore, ImageStore]:
        if self.retrieval is None:
            raise ValueError("retrieval is null, so there is nothing to test on; give an image set")
        query, gallery = self.retrieval.load(self.query_split), self.retrieval.load(self.gallery_split)
        if query.classes != gallery.classes:
            raise ValueError(
                f"the {self.query_split} and the {self.gallery_split} part of retrieval have different classes"
            )
        return query, gallery

    def _setup_predict(self) -> None:
        if self.predict_gallery is None or self.predict_query is None:
            raise ValueError("predict_gallery and predict_query must both be given to predict")
        if not Path(self.predict_gallery).is_dir():
            raise FileNotFoundError(f"predict_gallery: {self.predict_gallery} is not a folder")
        gallery = image_tree(Path(self.predict_gallery), "predict_gallery")
        query = image_tree(Path(self.predict_query), "predict_query")
        self.predict_files = gallery, query
        self._predict_images = [self.dataset.read(files) for files in self.predict_files]

    def _checked(self, index: int) -> int:
        if not 0 <= index < self.num_tasks:
            raise ValueError(f"task {index}: must lie in [0, {self.num_tasks})")
        return index

    def _new(self, index: int) -> np.ndarray:
        """Rows of the new classes' training images."""
        ends = self._train.count.cumsum(0)
        known, after = self.classes_after(index - 1), self.classes_after(index)
        return np.arange(int(ends[known - 1]) if known else 0, int(ends[after - 1]))

    def train_dataloader(self) -> ResumableLoader:
        task, size, new, memory = self.task, self.batch_size, self._new(self.task), self.memory(self.task).numpy()
        images = TaskImages(self._train, new, memory, size, int(key(self.seed, _TRAIN, task)), self.augment)
        if not len(memory):
            order = int(key(self.seed, _ORDER, task))
            sampler = KeyedBatchSampler(len(new), size, shuffle=True, seed=order, drop_last=True)
        else:  # places in an epoch mean nothing but which draw it is, so there are always enough for a step
            step = size * KeyedBatchSampler(1, 1).world()[1]
            sampler = KeyedBatchSampler(max(len(images), step), size, drop_last=True)
        return ResumableLoader(images, sampler, self.num_workers)

    def val_dataloader(self) -> list[ResumableLoader]:
        store, classes = self._held_out, self.classes_after(self.task)
        held = int(store.count[:classes].sum())
        return [self.evaluation(store.image[:held], store.label[:held])]

    def test_dataloader(self) -> list[ResumableLoader]:
        return [self.evaluation(store.image, store.label) for store in self._searched]

    def predict_dataloader(self) -> list[ResumableLoader]:
        return [self.evaluation(image, torch.full((len(image),), -1)) for image in self._predict_images]
