"""Image classification: parts, what is held out, batches over ranks, and augmentation on the device."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from datamodules.augment import Augment, RandomAffine, RandomCropFlip, TorchvisionAugment
from datamodules.batches import ImageBatch, IndexedImages
from datamodules.classification import Classification, KeyedImages
from datamodules.image_sets import GaussianClasses, ImageSet, OmniglotClasses, Part
from datamodules.images import ImageForm, ImageStore, normalised
from datamodules.medmnist import PneumoniaMnist
from datamodules.streams import key
from datamodules.vision_sets import CifarClasses, FashionMnist, FolderClasses, ImageNet32Classes

Become = Callable[[int, int], None]


class Numbered(ImageSet):
    """Grey 4x4 images of classes of unequal size; their first two pixels are the row, the others noise."""

    form = ImageForm(4, channels=1)
    mean, std = (0.2,), (0.5,)

    def __init__(self, *count: int, val: bool = False) -> None:
        self.count, self.val = count or (20, 30, 50), val
        self.loads: list[Part] = []

    @property
    def parts(self) -> tuple[Part, ...]:
        return ("train", "val", "test") if self.val else ("train", "test")

    def load(self, split: Part) -> ImageStore:
        self.check_part(split)
        self.loads.append(split)
        count = torch.tensor(self.count) // (1 if split == "train" else 5)
        label = torch.arange(len(count)).repeat_interleave(count)
        image = torch.randint(0, 256, (len(label), 1, 4, 4), generator=torch.Generator().manual_seed(0))
        row = torch.arange(len(label))
        image[:, 0, 0, 0], image[:, 0, 0, 1] = row // 256, row % 256
        return ImageStore(image.to(torch.uint8), label, tuple("abcdefg"[: len(count)]))


def make(dataset: ImageSet | None = None, **options: Any) -> Classification:
    return Classification(dataset or Numbered(), **{"batch_size": 10, "validation_fraction": 0.1} | options)


def rows(batch: Any) -> list[int]:
    return (256 * batch.image[:, 0, 0, 0].int() + batch.image[:, 0, 0, 1].int()).tolist()


def trained(data: Classification, epoch: int = 0) -> list[int]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return [row for batch in loader for row in rows(batch)]


def validated(data: Classification) -> list[int]:
    [loader] = data.val_dataloader()
    return [row for batch in loader for row in rows(batch)]


class TestParts:
    def test_pneumonia_has_its_published_counts(self) -> None:
        data = Classification(PneumoniaMnist(), batch_size=64, eval_batch_size=100)
        assert (data.num_classes, data.class_names) == (2, ("normal", "pneumonia"))
        data.setup("fit")
        train, [val], [test] = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
        assert (len(train), len(val), len(test)) == (4708 // 64, 6, 7)
        for loader, count in ((val, [135, 389]), (test, [234, 390])):
            batches = list(loader)
            assert torch.cat([batch.label for batch in batches]).bincount().tolist() == count
            assert torch.cat([batch.row for batch in batches]).tolist() == list(range(sum(count)))
        first = [batch.label for batch in train]
        assert float(torch.cat(first).double().mean()) == pytest.approx(3494 / 4708, abs=2e-3)  # 36 are left out
        assert max(float(label.double().mean()) for label in first) < 1  # the classes are mixed

    def test_only_what_a_stage_needs_is_loaded(self) -> None:
        for stage, parts in (("fit", ["train", "val"]), ("validate", ["val"]), ("test", ["test"])):
            dataset = Numbered(val=True)
            data = make(dataset, validation_fraction=0)
            data.setup(stage)
            assert data.num_classes == 3
            assert dataset.loads == parts

    def test_a_share_of_each_class_is_held_out(self) -> None:
        data = make(Numbered(1214, 3494), validation_fraction=0.1)
        held, kept = validated(data), trained(data)
        assert np.bincount(np.array(held) >= 1214).tolist() == [121, 349]
        assert len(kept) == len(set(kept)) == 4230  # of 4238: an incomplete batch is left out
        assert not set(held) & set(kept)
        assert np.mean(np.array(held)[121:]) == pytest.approx(1214 + 3493 / 2, abs=160)  # a standard deviation is 51
        assert validated(make(Numbered(1214, 3494), batch_size=3)) == held
        assert validated(make(Numbered(1214, 3494), seed=1)) != held
        [loader] = data.val_dataloader()
        assert torch.cat([batch.row for batch in loader]).tolist() == list(range(470))

    def test_at_least_one_image_of_a_class_is_held_out(self) -> None:
        held = validated(make(Numbered(20, 5, 2), validation_fraction=0.1))
        assert np.searchsorted([20, 25], held, side="right").tolist() == [0, 0, 1, 2]
        with pytest.raises(
            ValueError, match=r"validation_fraction=0\.1: of the 1 training image\(s\) of class 'b' none"
        ):
            make(Numbered(20, 1)).setup("fit")

    def test_some_images_of_each_class(self) -> None:
        kept = {n: sorted(trained(make(images_per_class=n, batch_size=3))) for n in (2, 8)}
        held = validated(make())
        assert kept[2] == sorted(set(kept[2]))
        assert np.searchsorted([20, 50], kept[2], side="right").tolist() == [0, 0, 1, 1, 2, 2]
        assert set(kept[2]) < set(kept[8])
        assert len(kept[8]) == 24
        assert not set(kept[8]) & set(held)
        assert validated(make(images_per_class=2)) == held

    def test_sets_without_a_val_part_say_so(self) -> None:
        for dataset in (
            FashionMnist(""),
            OmniglotClasses(),
            GaussianClasses(2),
            CifarClasses(""),
            ImageNet32Classes(""),
        ):
            with pytest.raises(ValueError, match=rf"{dataset.name} has no val part, only train and test"):
                dataset.load("val")
        with pytest.raises(ValueError, match="numbered has no val part: set validation_fraction"):
            make(validation_fraction=0).setup("fit")
        with pytest.raises(ValueError, match=r"validation_fraction=0\.1, but numbered has a val part of its own"):
            make(Numbered(val=True)).setup("fit")

    def test_folders_may_have_a_val_part(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
        for number, name in enumerate(("train/a", "train/b", "val/a", "val/b")):
            (tmp_path / "set" / name).mkdir(parents=True)
            Image.new("RGB", (4, 4), (number,) * 3).save(tmp_path / "set" / name / "0.png")
        dataset = FolderClasses(str(tmp_path / "set"), size=4)
        assert (dataset.name, dataset.parts) == ("set", ("train", "val"))
        assert dataset.load("val").image[:, 0, 0, 0].tolist() == [2, 3]
        with pytest.raises(ValueError, match="set has no test part, only train and val"):
            Classification(dataset, batch_size=1).setup("test")
        (tmp_path / "set" / "val" / "c").mkdir()
        with pytest.raises(ValueError, match="class 'c' is not in both train and val"):
            dataset.load("train")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"batch_size": 0}, "batch_size=0: must be at least 1"),
            ({"eval_batch_size": 0}, "eval_batch_size=0"),
            ({"images_per_class": 0}, "images_per_class=0"),
            ({"validation_fraction": 1.0}, r"validation_fraction=1\.0: must lie in \[0, 1\)"),
            ({"validation_fraction": -0.1}, r"validation_fraction=-0\.1"),
        ],
    )
    def test_bad_values(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make(**options)

    def test_parts_of_other_classes(self) -> None:
        data = make()
        data.setup("fit")
        data.dataset.count = (20, 30)  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="the train and the test part of numbered have different classes"):
            data.setup("test")


class TestBatches:
    def test_an_epoch_is_a_pass_in_another_order(self) -> None:
        first, second = trained(make()), trained(make(), epoch=1)
        assert len(first) == 90
        assert set(first) == set(second)
        assert first != second
        assert trained(make()) == first
        assert trained(make(seed=1)) != first

    def test_two_ranks_see_what_one_sees(self, two_ranks: Become) -> None:
        augments = (None, RandomCropFlip(padding=1), TorchvisionAugment(4))
        alone = [batches(make(augment=augment, batch_size=20)) for augment in augments]
        ranks = []
        for rank in range(2):
            two_ranks(rank, 2)
            ranks.append([batches(make(augment=augment)) for augment in augments])
        for one, *two in zip(alone, *ranks, strict=True):
            assert len(one) == 4
            for whole, *parts in zip(one, *two, strict=True):
                assert torch.equal(whole.image, torch.cat([part.image for part in parts]))
                assert torch.equal(whole.label, torch.cat([part.label for part in parts]))
        assert not torch.equal(alone[0][0].image, alone[1][0].image)

    def test_rows_that_fill_the_last_batch_come_twice(self, two_ranks: Become) -> None:
        seen, labels = [], {}
        for rank in range(2):
            two_ranks(rank, 2)
            [loader] = make(Numbered(25, 50), eval_batch_size=4).test_dataloader()  # 5 + 10 test images
            for batch in loader:
                seen += batch.row.tolist()
                labels |= dict(zip(batch.row.tolist(), batch.label.tolist(), strict=True))
        assert len(seen) == 16
        assert sorted(labels) == list(range(15))
        assert [labels[row] for row in range(15)] == [0] * 5 + [1] * 10

    def test_a_resumed_epoch_has_the_remaining_batches(self) -> None:
        loader = make().train_dataloader()
        whole = [rows(batch) for batch in loader]
        iterator = iter(loader)
        next(iterator)
        resumed = make().train_dataloader()
        resumed.load_state_dict(loader.state_dict())
        assert [rows(batch) for batch in resumed] == whole[1:]


def batches(data: Classification) -> list[ImageBatch]:
    return [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]


class InTheLoader(Augment):
    """The same change, but not batched."""

    def __init__(self, steps: Augment) -> None:
        self.steps = steps

    def __call__(self, image: Tensor, keys: np.ndarray) -> Tensor:
        return torch.cat([self.steps(image[i : i + 1], keys[i : i + 1]) for i in range(len(image))])


class Watcher(LightningModule):
    """Keeps all batches and where the training ones came from."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.found: dict[str, list[Any]] = {"train": [], "val": [], "test": []}

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        self.found["train"].append(batch)
        return self.weight.sum() ** 2

    def validation_step(self, batch: IndexedImages, batch_idx: int) -> None:
        self.found["val"].append(batch)

    def test_step(self, batch: IndexedImages, batch_idx: int) -> None:
        self.found["test"].append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(**options: Any) -> Trainer:
    options = {"accelerator": "cpu", "devices": 1, "max_epochs": 2, "logger": False} | options
    return Trainer(enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **options)


class TestOnTheDevice:
    @pytest.mark.parametrize("augment", [RandomCropFlip(padding=1), RandomAffine()])
    def test_batched_augmentation_waits_for_the_transfer_and_gives_the_same(self, augment: Augment) -> None:
        waiting, done = make(augment=augment), make(augment=InTheLoader(augment))
        assert {type(batch) for batch in waiting.train_dataloader()} == {KeyedImages}
        assert {type(batch) for batch in done.train_dataloader()} == {ImageBatch}
        assert trained(waiting) == trained(make())
        for one, two in zip(batches(waiting), batches(done), strict=True):
            assert torch.equal(one.image, two.image)

    def test_the_trainer_hands_out_normalised_batches(self) -> None:
        model, data, augment = Watcher(), make(eval_batch_size=7), RandomCropFlip(padding=1)
        data.augment = augment
        trainer(num_sanity_val_steps=0).fit(model, data)
        trainer(precision="bf16-true").test(model, data, verbose=False)
        store = Numbered().load("train")
        assert [len(model.found[name]) for name in ("train", "val", "test")] == [18, 4, 3]
        for epoch in range(2):
            found = model.found["train"][9 * epoch : 9 * epoch + 9]
            chosen = np.array(trained(make(), epoch))
            assert {type(batch) for batch in found} == {ImageBatch}
            assert torch.equal(torch.cat([batch.label for batch in found]), store.label[chosen])
            changed = augment(store.image[chosen], key(int(key(0, 2)), epoch, chosen))
            assert torch.equal(torch.cat([batch.image for batch in found]), normalised(changed, (0.2,), (0.5,)))
        val, test = torch.cat([b.image for b in model.found["val"][:2]]), model.found["test"][0].image
        torch.testing.assert_close(val, (store.image[validated(make())] / 255 - 0.2) / 0.5)
        assert test.dtype == torch.bfloat16
        trainer(limit_val_batches=0).fit(Watcher(), unseen := make(Numbered(val=True), validation_fraction=0))
        assert unseen.dataset.loads == ["train"]  # type: ignore[attr-defined]

    def test_worker_processes_give_the_same(self) -> None:
        alone = make(augment=RandomCropFlip(padding=1))
        workers = make(augment=RandomCropFlip(padding=1), num_workers=1)
        for one, two in zip(batches(alone), batches(workers), strict=True):
            assert torch.equal(one.image, two.image)

    @pytest.mark.parametrize("augment", [RandomCropFlip(), RandomAffine()])
    def test_batched_augmentation_mixes_no_devices(self, augment: Augment) -> None:
        with FakeTensorMode():  # no numbers, but the device checks of a GPU
            changed = augment(torch.empty(5, 3, 8, 6, dtype=torch.uint8, device="cuda"), key(0, np.arange(5)))
        assert (changed.device.type, changed.shape, changed.dtype) == ("cuda", (5, 3, 8, 6), torch.uint8)

    @pytest.mark.gpu
    def test_crop_and_flip_are_the_same_on_a_gpu(self) -> None:
        image = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
        keys, augment = key(0, np.arange(64)), RandomCropFlip()
        assert torch.equal(augment(image.cuda(), keys).cpu(), augment(image, keys))

    def test_image_form_is_that_of_the_set(self) -> None:
        form = make(PneumoniaMnist()).image_form
        assert (form["size"], form["channels"], form["mean"], form["std"]) == (28, 1, [0.572], [0.168])
        assert make(GaussianClasses(2)).image_form == {}
