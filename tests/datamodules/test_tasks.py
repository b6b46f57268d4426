import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from datamodules.augment import RandomCropFlip
from datamodules.batches import ImageBatch, IndexedImages
from datamodules.image_sets import GaussianClasses, ImageSet, Part
from datamodules.images import ImageForm, ImageStore
from datamodules.tasks import ClassIncremental

Become = Callable[[int, int], None]


class Tiny(ImageSet):
    """Grey 2x2 images that hold their class, their number within it, 1 for test, and 9."""

    form = ImageForm(2, channels=1)
    mean, std = (0.2,), (0.5,)

    def __init__(self, classes: int = 10, train: int = 12, test: int = 3) -> None:
        self.classes, self.count = classes, {"train": train, "test": test}
        self.names = {split: tuple(f"class{i}" for i in range(classes)) for split in self.count}
        self.loads: list[Part] = []

    def load(self, split: Part) -> ImageStore:
        self.loads.append(split)
        label = torch.arange(self.classes).repeat_interleave(self.count[split])
        number = torch.arange(self.count[split]).repeat(self.classes)
        part = torch.full_like(label, split == "test")
        image = torch.stack([label, number, part, torch.full_like(label, 9)], 1).to(torch.uint8)
        return ImageStore(image.view(-1, 1, 2, 2), label, self.names[split])

    def read(self, paths: Sequence[str]) -> Tensor:
        values = torch.tensor([int(Path(path).read_text()) for path in paths], dtype=torch.uint8)
        return values.view(-1, 1, 1, 1).repeat(1, 1, 2, 2)


def make(dataset: ImageSet | None = None, task: int | None = None, **options: Any) -> ClassIncremental:
    options = {"retrieval": None, "initial": 4, "increment": 3, "rehearsal": 5, "batch_size": 8} | options
    data = ClassIncremental(dataset or Tiny(), **options)
    if task is not None:
        data.set_task(task)
    return data


def seen(batch: ImageBatch | IndexedImages, first: int = 0) -> list[tuple[int, int]]:
    """Class and number of each image; checks the label against the image."""
    assert batch.image.dtype == torch.uint8
    assert (batch.image[:, 0, 0, 0] == batch.label + first).all()
    return [tuple(x) for x in batch.image[:, 0, 0].tolist()]


def epoch_of(data: ClassIncremental, epoch: int = 0) -> list[list[tuple[int, int]]]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return [seen(batch) for batch in loader]


class TestTasks:
    @pytest.mark.parametrize(
        ("initial", "increment", "known"),
        [
            (10, 15, [10, 25, 40, 55, 70, 85, 100]),
            (10, 3, list(range(10, 101, 3))),
            (40, 0, [40]),
            (100, 7, [100]),
            (30, 40, [30, 70, 100]),
        ],
    )
    def test_classes_of_each_task(self, initial: int, increment: int, known: list[int]) -> None:
        data = make(Tiny(100, 2, 1), initial=initial, increment=increment, rehearsal=1)
        assert data.num_tasks == len(known)
        assert [data.classes_after(i) for i in range(-1, len(known))] == [0, *known]
        described = [data.describe(i) for i in range(len(known))]
        names = [name for task in described for name in task["classes"]]
        assert names == [f"class{i}" for i in range(known[-1])]
        assert [task["known"] for task in described] == [0, *known[:-1]]
        assert [task["images"] for task in described] == [2 * n for n in np.diff([0, *known])]

    def test_a_last_task_that_is_smaller_is_told(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level("INFO"):
            assert make(initial=4, increment=4).num_tasks == 3
        assert "10 classes make 3 tasks; the last has 2 new classes only" in caplog.text

    def test_range_of_classes_and_first_images(self) -> None:
        dataset = Tiny()
        data = make(dataset, classes=(3, 8), initial=2, increment=2, images_per_class=5, batch_size=2, task=2)
        assert (data.num_tasks, data.classes_after(2)) == (3, 5)
        assert data.describe(2)["classes"] == ["class7"]
        batches = [seen(batch, first=3) for batch in data.train_dataloader()]
        assert {c for batch in batches for c, _ in batch[1:]} == {7}
        assert max(number for batch in batches for _, number in batch) == 4
        [val] = data.val_dataloader()
        assert sorted(x for batch in val for x in seen(batch, 3)) == [(c, n) for c in range(3, 8) for n in range(3)]
        assert dataset.loads == ["train", "test"]  # each once

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"initial": 11}, "initial=11, but there are only 10 classes"),
            ({"classes": (2, 11)}, r"classes=\(2, 11\): must be a range within \[0, 10\)"),
            ({"classes": (5, 5)}, r"classes=\(5, 5\)"),
            ({"initial": 0}, "initial=0: must be at least 1"),
            ({"images_per_class": 0}, "images_per_class=0"),
            ({"rehearsal": -1}, "rehearsal=-1"),
            ({"batch_size": 7}, "batch_size=7: must be even"),
            ({"gallery_split": "train"}, "query_split and gallery_split are both train"),
            ({"retrieval": GaussianClasses(2)}, r"\(32, 1, 1\), dataset of \(1, 2, 2\)"),
        ],
    )
    def test_bad_values(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make(**options).setup("fit")

    def test_tasks_out_of_range_and_parts_that_differ(self) -> None:
        for index in (-1, 3):
            with pytest.raises(ValueError, match=rf"task {index}: must lie in \[0, 3\)"):
                make().set_task(index)
        dataset = Tiny()
        dataset.names["test"] = dataset.names["test"][::-1]
        with pytest.raises(ValueError, match="different classes"):
            make(dataset).setup("fit")
        with pytest.raises(ValueError, match="retrieval is null"):
            make().setup("test")


class TestMemory:
    def test_it_keeps_some_of_each_earlier_class_for_good(self) -> None:
        data = make(Tiny(10, 200))
        first, second = data.memory(1), data.memory(2)
        assert data.memory(0).tolist() == []
        assert (first // 200).tolist() == np.repeat(np.arange(4), 5).tolist()
        assert (second // 200).tolist() == np.repeat(np.arange(7), 5).tolist()
        assert torch.equal(second[:20], first)
        assert torch.equal(make(Tiny(10, 200), batch_size=2, augment=RandomCropFlip()).memory(2), second)
        assert (second.diff() > 0).all()
        assert not torch.equal(make(Tiny(10, 200), seed=1).memory(2), second)
        assert len(set((second.view(7, 5) % 200)[:, 0].tolist())) > 3  # classes draw for themselves
        everything = make(Tiny(10, 200), rehearsal=100).memory(2) % 200
        assert float(everything.float().mean()) == pytest.approx(99.5, abs=6)  # a standard deviation is 1.5

    def test_a_class_with_fewer_images_keeps_all_and_warns_once(self, recwarn: pytest.WarningsRecorder) -> None:
        data = make(Tiny(10, 3))
        assert data.memory(1).tolist() == list(range(12))
        assert data.memory(2).tolist() == list(range(21))
        told = [str(w.message) for w in recwarn if "rehearsal=5" in str(w.message)]
        assert told == ["7 classes have fewer than rehearsal=5 images, down to 3: the memory keeps all of theirs"]

    def test_description_is_plain_and_complete(self) -> None:
        data = make()
        plain = json.loads(json.dumps(data.describe(1)))
        assert plain == data.describe(1)
        assert plain["classes"] == ["class4", "class5", "class6"]
        assert (plain["known"], plain["images"], len(plain["memory"])) == (4, 36, 20)


class TestBatches:
    def test_the_first_task_is_the_same_on_one_rank_and_on_two(self, two_ranks: Become) -> None:
        plain = make(batch_size=16)
        augmented = make(Gradient(), batch_size=16, augment=RandomCropFlip(padding=1))
        alone = [[batch.image for batch in data.train_dataloader()] for data in (plain, augmented)]
        assert [len(x) for x in alone] == [3, 3]  # of 48 images
        assert not torch.equal(alone[1][0], torch.cat(list(unaugmented(augmented)))[:16])
        for data in (make(batch_size=8), make(Gradient(), batch_size=8, augment=RandomCropFlip(padding=1))):
            ranks = []
            for rank in range(2):
                two_ranks(rank, 2)
                ranks.append([batch.image for batch in data.train_dataloader()])
            joined = [torch.cat(parts) for parts in zip(*ranks, strict=True)]
            for one, two in zip(alone[data.augment is not None], joined, strict=True):
                assert torch.equal(one, two)

    def test_an_epoch_without_memory_is_a_pass_over_the_new_classes(self) -> None:
        for data, classes in ((make(batch_size=6), range(4)), (make(task=1, batch_size=6, rehearsal=0), range(4, 7))):
            first, second = epoch_of(data), epoch_of(data, 1)
            assert sorted(x for b in first for x in b) == [(c, n) for c in classes for n in range(12)]
            assert first != second
            assert sorted(x for b in second for x in b) == sorted(x for b in first for x in b)

    def test_half_memory_half_new(self) -> None:
        data = make(task=1)
        held = {(row // 12, row % 12) for row in data.memory(1).tolist()}
        batches = epoch_of(data) + epoch_of(data, 1)
        assert len(batches) == 2 * ((36 + 20) // 8)
        for batch in batches:
            assert set(batch[:4]) <= held
            assert all(4 <= c < 7 for c, _ in batch[4:])
            assert len(set(batch)) == 8  # without replacement
        assert len({tuple(batch) for batch in batches}) == len(batches)
        assert {x for batch in batches for x in batch[:4]} == held  # 56 draws of 20

    def test_a_pool_no_larger_than_half_a_batch_is_drawn_with_replacement(self) -> None:
        data = make(task=1, batch_size=40, images_per_class=8)  # memory 20 = half, new 24
        for epoch in range(3):
            [batch] = epoch_of(data, epoch)
            assert len(set(batch[:20])) < 20
            assert len(set(batch[20:])) == 20

    def test_ranks_draw_other_batches_of_one_numbering(self, two_ranks: Become) -> None:
        data = make(task=2, rehearsal=5)  # 36 new + 35 in memory: 8 batches of 8 on one rank
        alone = epoch_of(data, 3)
        assert len(alone) == 8
        shares = []
        for rank in range(2):
            two_ranks(rank, 2)
            shares.append(epoch_of(data, 3))
        assert [batch for step in zip(*shares, strict=True) for batch in step] == alone

    def test_at_least_one_step_on_any_number_of_ranks(self, two_ranks: Become) -> None:
        data = make(task=2, batch_size=64)
        assert len(epoch_of(data)) == 1
        two_ranks(1, 2)
        assert [len(batch) for batch in epoch_of(data)] == [64]

    def test_augmentation_differs_by_rank_epoch_and_place(self, two_ranks: Become) -> None:
        data = make(Gradient(), task=1, initial=1, increment=1, images_per_class=1, rehearsal=1, batch_size=64,
                    augment=RandomCropFlip(padding=2))  # fmt: skip
        found = []
        for rank, epoch in ((0, 0), (1, 0), (0, 1)):
            two_ranks(rank, 2)
            loader = data.train_dataloader()
            loader.sampler.set_epoch(epoch)
            found.append(next(iter(loader)).image)
        for one in found:
            assert len(one[:32].flatten(1).unique(dim=0)) > 15  # of 50 crops, from one image
        assert not torch.equal(found[0], found[1])
        assert not torch.equal(found[0], found[2])

    @pytest.mark.parametrize("task", [0, 1])
    def test_a_resumed_epoch_has_the_remaining_batches(self, task: int) -> None:
        data = make(task=task)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(2)
        whole = [seen(batch) for batch in loader]
        iterator = iter(loader)
        for _ in range(2):
            next(iterator)
        resumed = make(task=task).train_dataloader()
        resumed.load_state_dict(loader.state_dict())
        assert [seen(batch) for batch in resumed] == whole[2:]


class Gradient(Tiny):
    """Grey 4x4 images whose pixels all differ."""

    form = ImageForm(4, channels=1)

    def load(self, split: Part) -> ImageStore:
        store = super().load(split)
        image = torch.arange(1, 17).view(1, 1, 4, 4) + 12 * store.label.view(-1, 1, 1, 1)
        return ImageStore(image.to(torch.uint8), store.label, store.classes)


def unaugmented(data: ClassIncremental) -> list[Tensor]:
    data.augment = None
    return [batch.image for batch in data.train_dataloader()]


class TestEvaluation:
    def test_validation_is_on_the_classes_known(self) -> None:
        data = make(task=1, eval_batch_size=8)
        [loader] = data.val_dataloader()
        batches = list(loader)
        assert [x for batch in batches for x in seen(batch)] == [(c, n) for c in range(7) for n in range(3)]
        assert torch.cat([batch.row for batch in batches]).tolist() == list(range(21))
        assert (batches[0].image[:, 0, 1, 0] == 1).all()

    def test_query_and_gallery_are_parts_of_the_retrieval_set(self, two_ranks: Become) -> None:
        data = make(retrieval=Tiny(2, 4, 3), eval_batch_size=3)
        data.setup("test")
        query, gallery = ([x for batch in loader for x in seen(batch)] for loader in data.test_dataloader())
        assert query == [(c, n) for c in range(2) for n in range(4)]
        assert gallery == [(c, n) for c in range(2) for n in range(3)]
        swapped = make(retrieval=Tiny(), query_split="test", gallery_split="train")
        assert [loader.sampler.length for loader in swapped.test_dataloader()] == [30, 120]
        two_ranks(1, 2)
        assert [batch.row.tolist() for batch in data.test_dataloader()[0]] == [[3, 4, 5], [7]]

    def test_image_form_is_plain_data(self) -> None:
        form = json.loads(json.dumps(make().image_form))
        assert ImageForm(**{k: v for k, v in form.items() if k not in ("mean", "std")}) == Tiny.form
        assert (form["mean"], form["std"]) == ([0.2], [0.5])
        assert make(GaussianClasses(10)).image_form == {}


class Watcher(LightningModule):
    """Keeps one batch of each loader."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.found: dict[tuple[str, int], Any] = {}

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        self.found["train", 0] = batch
        return self.weight.sum() ** 2

    def validation_step(self, batch: IndexedImages, batch_idx: int) -> None:
        self.found["val", 0] = batch

    def test_step(self, batch: IndexedImages, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.found["test", dataloader_idx] = batch

    def predict_step(self, batch: IndexedImages, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.found["predict", dataloader_idx] = batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(**options: Any) -> Trainer:
    options = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "logger": False} | options
    return Trainer(enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **options)


def test_a_trial_by_the_trainer_normalises_in_its_precision(tmp_path: Path) -> None:
    limits = {"limit_train_batches": 2, "limit_val_batches": 1, "limit_test_batches": 1}
    retrieval = Tiny()
    retrieval.mean = (0.9,)  # plays no part: the model is trained on the other
    model, data = Watcher(), make(retrieval=retrieval, eval_batch_size=4)
    trainer(**limits).fit(model, data)
    trainer(**limits, precision="bf16-true").test(model, data, verbose=False)
    for place, dtype in ((("train", 0), torch.float32), (("val", 0), torch.float32), (("test", 1), torch.bfloat16)):
        image, label = model.found[place].image, model.found[place].label
        assert image.dtype == dtype
        near = 1e-6 if dtype == torch.float32 else 2e-3
        torch.testing.assert_close(image[:, 0, 0, 0].float(), (label / 255 - 0.2) / 0.5, atol=near, rtol=0)
    assert model.found["train", 0].label.max() < 4
    assert model.found["test", 0].row.tolist() == [0, 1, 2, 3]

    unseen = Tiny()
    trainer(limit_train_batches=1, limit_val_batches=0).fit(Watcher(), make(unseen))
    assert unseen.loads == ["train"]

    floats = Watcher()
    gaussian = GaussianClasses(10)
    trainer(limit_train_batches=1, limit_val_batches=1).fit(floats, make(gaussian, eval_batch_size=50))
    assert torch.equal(floats.found["val", 0].image, gaussian.load("test").image[:50])


def test_prediction_from_folders(tmp_path: Path) -> None:
    for name, number in (("g/b/x.png", 3), ("g/a/deep/y.JPG", 1), ("g/z.png", 2), ("g/.no/h.png", 9), ("q/q.png", 7)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(str(number))
    (tmp_path / "g" / "notes.txt").write_text("5")
    folders = {"predict_gallery": str(tmp_path / "g"), "predict_query": str(tmp_path / "q")}
    model, data = Watcher(), make(**folders)
    trainer().predict(model, data)
    gallery, query = model.found["predict", 0], model.found["predict", 1]
    torch.testing.assert_close(gallery.image[:, 0, 0, 0], (torch.tensor([1, 3, 2]) / 255 - 0.2) / 0.5)
    assert gallery.label.tolist() == [-1, -1, -1]
    assert gallery.row.tolist() == [0, 1, 2]
    assert query.image.shape == (1, 1, 2, 2)
    assert [[Path(p).name for p in files] for files in data.predict_files] == [["y.JPG", "x.png", "z.png"], ["q.png"]]
    one = make(**folders | {"predict_query": str(tmp_path / "g" / "z.png")})
    one.setup("predict")
    assert one.predict_files[1] == [str(tmp_path / "g" / "z.png")]

    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("1")
    for options, error, message in (
        ({"predict_query": None}, ValueError, "must both be given"),
        ({"predict_gallery": str(tmp_path / "nowhere")}, FileNotFoundError, "predict_gallery: .*is not a folder"),
        ({"predict_gallery": str(tmp_path / "g" / "z.png")}, FileNotFoundError, "predict_gallery: .*is not a folder"),
        ({"predict_query": str(tmp_path / "empty")}, ValueError, "predict_query: .*is empty"),
        ({"predict_query": str(tmp_path / "texts")}, ValueError, r"predict_query: .*no image files \(.bmp, "),
    ):
        with pytest.raises(error, match=message):
            make(**folders | options).setup("predict")
