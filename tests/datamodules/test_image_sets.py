import gzip
import pickle
from collections.abc import Sequence
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from datamodules.image_sets import GaussianClasses, OmniglotClasses
from datamodules.images import ImageStore, of_each_class
from datamodules.omniglot import bundled_drawings
from datamodules.vision_sets import CifarClasses, FashionMnist, FolderClasses, ImageNet32Classes


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_of_each_class_keeps_places_within_the_class() -> None:
    label = torch.tensor([0, 0, 0, 1, 2, 2])
    store = ImageStore(torch.arange(6).view(6, 1, 1, 1), label, ("a", "b", "c"), list("uvwxyz"))
    middle = of_each_class(store, 1, 2)
    assert (middle.image.flatten().tolist(), middle.label.tolist(), list(middle.files)) == ([1, 5], [0, 2], ["v", "z"])
    assert of_each_class(store, 1, None).image.flatten().tolist() == [1, 2, 5]


class TestOmniglot:
    @pytest.mark.parametrize(("alphabets", "classes"), [(None, 242), (["Greek"], 24), (["Greek", "Latin"], 50)])
    def test_the_last_drawings_are_the_test_part(self, alphabets: list[str] | None, classes: int) -> None:
        dataset = OmniglotClasses(alphabets, held_out=6)
        train, test = dataset.load("train"), dataset.load("test")
        assert train.count.tolist() == [14] * classes
        assert test.count.tolist() == [6] * classes
        assert train.classes == test.classes
        whole = bundled_drawings(dataset.alphabets).image.view(classes, 20, *dataset.shape)
        assert torch.equal(train.image.view(classes, 14, 1, 28, 28), whole[:, :14])
        assert torch.equal(test.image.view(classes, 6, 1, 28, 28), whole[:, 14:])

    def test_turned_characters_are_classes(self) -> None:
        plain, turned = OmniglotClasses(["Greek"]), OmniglotClasses(["Greek"], rotations=True)
        assert len(turned.load("test").classes) == 96
        assert torch.equal(turned.load("test").image[120:240], plain.load("test").image.rot90(1, (2, 3)))

    def test_bad_values(self) -> None:
        with pytest.raises(ValueError, match=r"no alphabet 'Elvish'; choose among Balinese, .*Tagalog"):
            OmniglotClasses(["Greek", "Elvish"])
        with pytest.raises(ValueError, match="an empty list"):
            OmniglotClasses([])
        with pytest.raises(ValueError, match=r"held_out=20: must lie in \[1, 19\]"):
            OmniglotClasses(held_out=20)


class TestGaussian:
    def test_a_class_depends_on_seed_and_number_alone(self) -> None:
        whole, some = GaussianClasses(6, train_images=10), GaussianClasses(2, first=3, train_images=4)
        wide, narrow = whole.load("train"), some.load("train")
        torch.testing.assert_close(narrow.image, wide.image.view(6, 10, 32, 1, 1)[3:5, :4].flatten(0, 1))
        assert narrow.classes == wide.classes[3:5]
        assert narrow.label.tolist() == [0] * 4 + [1] * 4
        other = GaussianClasses(2, first=3, train_images=4, seed=1).load("train")
        assert (other.image - narrow.image).abs().mean() > 0.1
        assert (some.load("test").image[:4] - narrow.image[:4]).abs().mean() > 0.1

    def test_spread_within_and_between_classes(self) -> None:
        store = GaussianClasses(300, train_images=40, noise=0.55).load("train")
        assert store.image.dtype == torch.float32
        z = store.image.double().view(300, 40, 32).atanh()
        within, between = z.var(1).mean(0).sum(), z.mean(1).var(0).sum()
        assert within / between == pytest.approx(0.55**2, rel=0.1)
        assert between == pytest.approx(32, rel=0.2)  # 32 inputs of variance 1

    def test_without_noise_train_and_test_agree(self) -> None:
        still = GaussianClasses(3, train_images=2, test_images=2, noise=0.0)
        assert torch.equal(still.load("train").image, still.load("test").image)
        assert still.load("train").image[::2].view(3, -1).std(0).min() > 0

    def test_bad_values(self) -> None:
        with pytest.raises(ValueError, match="holds no pictures"):
            GaussianClasses(2).read(["x.png"])
        with pytest.raises(ValueError, match="count=0"):
            GaussianClasses(0)
        with pytest.raises(ValueError, match=r"noise=-0\.5 must not be negative"):
            GaussianClasses(2, noise=-0.5)


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


class TestFashionMnist:
    label = np.array([9, 3, 1, 0, 2, 4, 5, 6, 7, 8, 3], np.uint8)

    def write(self, root: Path, packed: bool, name: str = "train") -> None:
        image = np.broadcast_to(np.arange(11, dtype=np.uint8)[:, None, None], (11, 28, 28))
        root.mkdir(parents=True, exist_ok=True)
        for part, array in (("images-idx3", image), ("labels-idx1", self.label)):
            data = idx(np.ascontiguousarray(array))
            path = root / f"{name}-{part}-ubyte"
            Path(f"{path}.gz" if packed else path).write_bytes(gzip.compress(data) if packed else data)

    @pytest.mark.parametrize("packed", [True, False])
    @pytest.mark.parametrize("inner", ["", "FashionMNIST/raw"])
    def test_images_are_sorted_by_label(self, tmp_path: Path, packed: bool, inner: str) -> None:
        self.write(tmp_path / "set" / inner, packed)
        store = FashionMnist(str(tmp_path / "set")).load("train")
        assert store.image[:, 0, 5, 5].tolist() == [3, 2, 4, 1, 10, 5, 6, 7, 8, 9, 0]
        assert store.label.tolist() == [0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9]
        assert store.classes[:3] == ("t-shirt", "trouser", "pullover")

    def test_bad_files(self, tmp_path: Path) -> None:
        self.write(tmp_path, packed=False)
        dataset = FashionMnist(str(tmp_path))
        with pytest.raises(FileNotFoundError, match=r"t10k-images-idx3-ubyte\.gz does not exist.*zalandoresearch"):
            dataset.load("test")
        labels = tmp_path / "train-labels-idx1-ubyte"
        whole = labels.read_bytes()
        labels.write_bytes(whole[:-1])
        with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte is not an idx file.*cut off"):
            dataset.load("train")
        labels.write_bytes(idx(self.label[:-1]))
        with pytest.raises(ValueError, match="and 10 labels"):
            dataset.load("train")
        labels.write_bytes(idx(np.minimum(self.label, 8)))
        with pytest.raises(ValueError, match="class 'ankle boot' has no train images"):
            dataset.load("train")
        labels.unlink()
        Path(f"{labels}.gz").write_bytes(gzip.compress(whole)[:-9])
        with pytest.raises(ValueError, match="not a whole gzip file"):
            dataset.load("train")

    def test_published_test_part(self, test_data: Path) -> None:
        dataset = FashionMnist(str(test_data / "fashion-mnist"))
        store = dataset.load("test")
        assert store.count.tolist() == [1000] * 10
        pixels = store.image.double() / 255
        assert (float(pixels.mean()), float(pixels.std())) == pytest.approx((*dataset.mean, *dataset.std), abs=2e-3)
        with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
            dataset.load("train")


class TestCifar:
    """Tiny files in the published layout: a pickle a batch, an image a row of its red, green and blue planes."""

    def write(self, archive: Any, root: Path, key: str, names: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
        folder = root / archive.base_folder
        folder.mkdir(parents=True)

        def put(name: str, content: dict) -> str:
            data = pickle.dumps(content)
            (folder / name).write_bytes(data)
            return md5(data).hexdigest()

        for part in ("train_list", "test_list"):
            files = [name for name, _ in getattr(archive, part)]
            sums = []
            for number, name in enumerate(files):
                label = list(range(len(names)))[::-1]
                data = np.zeros((len(label), 3, 32, 32), np.uint8)
                data[:, 0], data[:, 1], data[:, 2] = np.array(label)[:, None, None], 100 + number, part == "train_list"
                data[:, 0, 0, 31] = 255
                sums.append([name, put(name, {"data": data.reshape(-1, 3072), key: label})])
            monkeypatch.setattr(archive, part, sums)
        meta = archive.meta
        checksum = put(meta["filename"], {meta["key"]: list(names)})
        monkeypatch.setattr(archive, "meta", meta | {"md5": checksum})

    def test_cifar10_has_its_five_batches_sorted_by_class(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.write(CIFAR10, tmp_path, "labels", ["zebra", "ant", "bee"], monkeypatch)
        dataset = CifarClasses(str(tmp_path), classes=10)
        train = dataset.load("train")
        assert train.classes == ("zebra", "ant", "bee")  # not by name: labels keep their meaning
        assert train.label.tolist() == [0] * 5 + [1] * 5 + [2] * 5
        assert train.image[:, 0, 4, 4].tolist() == train.label.tolist()
        assert train.image[:, 1, 4, 4].tolist() == [100, 101, 102, 103, 104] * 3
        assert (train.image[:, 0, 0, 31] == 255).all()
        assert (train.image[:, 2] == 1).all()
        assert (dataset.load("test").image[:, 2] == 0).all()
        assert dataset.mean == CifarClasses(str(tmp_path)).mean == (0.5071, 0.4867, 0.4408)

    def test_cifar100_and_a_file_that_is_not_the_published_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.write(CIFAR100, tmp_path, "fine_labels", ["b", "a"], monkeypatch)
        dataset = CifarClasses(str(tmp_path))
        assert dataset.load("test").image[:, 0, 9, 9].tolist() == [0, 1]
        (tmp_path / "cifar-100-python" / "train").write_bytes(pickle.dumps({}))
        with pytest.raises(FileNotFoundError, match=r"CIFAR-100 is not in .*cifar-100-python.*download: true"):
            dataset.load("test")
        with pytest.raises(ValueError, match="classes=20"):
            CifarClasses(str(tmp_path), classes=20)  # type: ignore[arg-type]


class TestImageNet32:
    def write(self, root: Path) -> None:
        """Two images a batch, of classes (from 1) i and 1 + i % 4 for batch i; pixels tell batch, place, plane."""
        root.mkdir()
        for i in range(1, 11):
            data = np.zeros((2, 3, 32, 32), np.uint8)
            data += (10 * i + np.arange(2, dtype=np.uint8))[:, None, None, None]
            data[:, 2] += 100
            np.savez(root / f"train_data_batch_{i}.npz", data=data.reshape(2, -1), labels=[i, 1 + i % 4])
        np.savez(root / "val_data.npz", data=np.full((3, 3072), 7, np.uint8), labels=[3, 2, 3])

    def test_classes_are_ranges_of_labels(self, tmp_path: Path, cache: Path) -> None:
        self.write(tmp_path / "set")
        dataset = ImageNet32Classes(str(tmp_path / "set"), first=1, count=2)
        for _ in range(2):
            store = dataset.load("train")
            assert store.classes == ("imagenet0001", "imagenet0002")
            assert store.label.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]  # published labels 2 and 3
            assert store.image[:, 0, 9, 9].tolist() == [11, 20, 51, 91, 21, 30, 61, 101]
            assert store.image[:, 2, 9, 9].tolist() == [111, 120, 151, 191, 121, 130, 161, 201]
        assert len(list((cache / "images").iterdir())) == 1
        assert dataset.load("test").label.tolist() == [0, 1, 1]

    def test_bad_files(self, tmp_path: Path) -> None:
        root = tmp_path / "set"
        self.write(root)
        with pytest.raises(ValueError, match="class 'imagenet0010' has no train images"):
            ImageNet32Classes(str(root), first=8, count=3).load("train")
        with pytest.raises(ValueError, match="first=990 and count=11"):
            ImageNet32Classes(str(root), first=990, count=11)
        np.savez(root / "val_data.npz", data=np.zeros((2, 3073), np.uint8), labels=[1, 1])
        with pytest.raises(ValueError, match=r"val_data.npz: 'data' has shape \[2, 3073\], expected \[2, 3072\]"):
            ImageNet32Classes(str(root), count=1).load("test")
        np.savez(root / "val_data.npz", labels=np.array([{}]))
        with pytest.raises(ValueError, match=r"val_data.npz cannot be read .*'labels'"):  # a pickle inside
            ImageNet32Classes(str(root), count=1).load("test")
        (root / "train_data_batch_7.npz").rename(root / "train_data_batch_7")
        with pytest.raises(FileNotFoundError, match=r"train_data_batch_7\.npz does not exist.*pickles are not read"):
            ImageNet32Classes(str(root), count=4).load("train")


class TestFolders:
    def write(self, root: Path, counts: dict[str, int]) -> None:
        """Image number i of a folder has the value i."""
        for name, count in counts.items():
            (root / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (6, 6), (i, i, i)).save(root / name / f"{i:02d}.png")

    def test_an_image_stays_on_its_side_when_others_come_or_the_fraction_grows(self, tmp_path: Path) -> None:
        self.write(tmp_path / "set", {"b": 40, "a": 80})
        dataset = FolderClasses(str(tmp_path / "set"), size=4, test_fraction=0.3)
        train, test = dataset.load("train"), dataset.load("test")
        assert train.classes == test.classes == ("a", "b")
        assert 20 < len(test.files) < 52  # five standard deviations about 36
        assert sorted([*train.files, *test.files]) == sorted(map(str, (tmp_path / "set").rglob("*.png")))
        assert dataset.read([test.files[0]])[0].tolist() == test.image[0].tolist()
        other = FolderClasses(str(tmp_path / "set"), size=4, test_fraction=0.3, seed=1).load("test")
        assert set(other.files) != set(test.files)
        larger = FolderClasses(str(tmp_path / "set"), size=4, test_fraction=0.4).load("test")
        assert set(test.files) < set(larger.files)
        Image.new("RGB", (6, 6)).save(tmp_path / "set" / "a" / "00x.png")
        assert set(dataset.load("test").files) - {str(tmp_path / "set" / "a" / "00x.png")} == set(test.files)

    def test_train_and_test_folders(self, tmp_path: Path) -> None:
        self.write(tmp_path / "set" / "train", {"a": 2, "b": 1})
        dataset = FolderClasses(str(tmp_path / "set"), size=4, channels=1)
        with pytest.raises(FileNotFoundError, match="has train but not both"):
            dataset.load("train")
        self.write(tmp_path / "set" / "test", {"a": 3})
        with pytest.raises(ValueError, match="class 'b' is not in both"):
            dataset.load("train")
        self.write(tmp_path / "set" / "test", {"b": 1})
        assert dataset.load("test").image[:, 0, 0, 0].tolist() == [0, 1, 2, 0]
        assert dataset.load("train").label.tolist() == [0, 0, 1]
        assert dataset.mean == (0.449,)

    def test_too_small_a_class(self, tmp_path: Path) -> None:
        self.write(tmp_path / "set", {"a": 5, "b": 1})
        with pytest.raises(ValueError, match="the test pool is empty; add images"):
            FolderClasses(str(tmp_path / "set"), test_fraction=1e-9).load("test")
        with pytest.raises(FileNotFoundError, match="the first lines of a config say where its data come from"):
            FolderClasses(str(tmp_path / "nowhere")).load("train")
        with pytest.raises(ValueError, match="test_fraction=1"):
            FolderClasses(str(tmp_path / "set"), test_fraction=1.0)
