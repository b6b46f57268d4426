"""Tiny images of three classes, and a quiet Trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor

from datamodules.batches import ImageBatch, IndexedImages
from datamodules.loaders import KeyedBatchSampler, Keys, ResumableLoader

CLASSES, SIZE = 3, 12


def images(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise on a pattern of the class: [count, 1, 12, 12] and labels."""
    generator = torch.Generator().manual_seed(seed)
    pattern = torch.randn(CLASSES, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(7))
    label = torch.arange(count) % CLASSES
    return pattern[label] + torch.randn(count, 1, SIZE, SIZE, generator=generator), label


class Rows:
    def __init__(self, image: Tensor, label: Tensor, training: bool) -> None:
        self.image, self.label, self.training = image, label, training

    def __len__(self) -> int:
        return len(self.label)

    def __getitems__(self, keys: Keys) -> Any:
        row = torch.tensor([index for _, index in keys])
        parts = (self.image[row], self.label[row])
        return ImageBatch(*parts) if self.training else IndexedImages(*parts, row)


class TinyImages(LightningDataModule):
    def __init__(self, batch_size: int = 16, count: int = 64, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.batch_size, self.count, self.num_classes = batch_size, count, num_classes
        self.class_names = tuple(f"class {i}" for i in range(num_classes))

    def train_dataloader(self) -> Any:
        data = Rows(*images(self.count), training=True)
        return ResumableLoader(data, KeyedBatchSampler(len(data), self.batch_size, shuffle=True, drop_last=True))

    def val_dataloader(self) -> Any:
        data = Rows(*images(30, seed=1), training=False)
        return [ResumableLoader(data, KeyedBatchSampler(len(data), self.batch_size))]

    test_dataloader = val_dataloader


@pytest.fixture
def data() -> type[TinyImages]:
    return TinyImages


@pytest.fixture
def batch() -> ImageBatch:
    return ImageBatch(*images(16))


@pytest.fixture
def quiet_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    def make(**options: Any) -> Trainer:
        common = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        common |= {"enable_model_summary": False, "use_distributed_sampler": False, "num_sanity_val_steps": 0}
        return Trainer(**{"default_root_dir": tmp_path, **common, **options})

    return make
