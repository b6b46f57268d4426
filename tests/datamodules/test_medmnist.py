"""MedMNIST's files, the bundled PneumoniaMNIST, and several sets joined into one."""

import math
import urllib.request
from dataclasses import replace
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import medmnist
from datamodules.image_sets import GaussianClasses, ImageSet, OmniglotClasses
from datamodules.joined_sets import JoinedSets
from datamodules.medmnist import PUBLISHED, MedMnist, PneumoniaMnist
from datamodules.sources import bundled
from datamodules.vision_sets import FashionMnist

PARTS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published sets in small: 5, 3 and 4 images of three classes, two of them in all parts and one twice."""
    for name, published in PUBLISHED.items():
        counts = {"train": 5, "val": 3, "test": 4}
        monkeypatch.setitem(PUBLISHED, name, replace(published, images=counts, classes=("x", "y", "z")))


def write(path: Path, size: int = 28, rgb: bool = False, dtype: Any = np.uint8, **changed: np.ndarray) -> Path:
    """A file in MedMNIST's layout; image i of a part is full of 10 i, plus 1 and 2 in green and blue."""
    arrays = {}
    for part, label in (("train", [2, 0, 1, 0, 2]), ("val", [1, 2, 0]), ("test", [0, 2, 1, 2])):
        image = np.zeros((len(label), size, size, 3), np.uint8) + np.arange(3, dtype=np.uint8)
        image += 10 * np.arange(len(label), dtype=np.uint8)[:, None, None, None]
        image[:, 0, -1] = 255
        arrays |= {f"{part}_images": image if rgb else image[..., 0], f"{part}_labels": np.array(label, dtype)[:, None]}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays | changed)
    return path


class TestBundled:
    def test_counts_of_parts_and_classes(self) -> None:
        dataset = PneumoniaMnist()
        stores = [dataset.load(part) for part in PARTS]
        assert dataset.parts == PARTS
        assert [store.count.tolist() for store in stores] == [[1214, 3494], [135, 389], [234, 390]]
        assert {store.classes for store in stores} == {("normal", "pneumonia")}
        pixels = stores[0].image.double() / 255
        assert (float(pixels.mean()), float(pixels.std())) == pytest.approx((*dataset.mean, *dataset.std), abs=5e-4)

    def test_each_array_is_the_original_one(self, test_data: Path) -> None:
        with np.load(test_data / "pneumoniamnist" / "pneumoniamnist.npz") as original:
            for part in PARTS:
                store, label = PneumoniaMnist().load(part), original[f"{part}_labels"][:, 0]
                assert torch.equal(store.label, torch.from_numpy(label).sort().values)
                for number in (0, 1):
                    assert np.array_equal(
                        store.image[store.label == number, 0], original[f"{part}_images"][label == number]
                    )

    def test_no_test_image_is_in_another_part(self) -> None:
        seen = [{bytes(one.numpy().tobytes()) for one in PneumoniaMnist().load(part).image} for part in PARTS]
        assert [len(images) for images in seen] == [4690, 524, 621]  # 18 and 3 images are there twice
        assert [len(seen[0] & seen[1]), len(seen[0] & seen[2]), len(seen[1] & seen[2])] == [8, 0, 0]

    def test_licence_names_authors_licence_and_changes(self) -> None:
        text = bundled("PneumoniaMNIST.LICENSE").read_text()
        for part in ("https://creativecommons.org/licenses/by/4.0/", "Yang", "Kermany", "826 of the 1,214 normal"):
            assert part in text


@pytest.mark.usefixtures("small")
class TestFiles:
    @pytest.mark.parametrize("size", [28, 64])
    def test_images_are_sorted_by_label_and_channels_come_first(self, tmp_path: Path, cache: Path, size: int) -> None:
        suffix = "" if size == 28 else f"_{size}"
        write(tmp_path / f"bloodmnist{suffix}.npz", size, rgb=True)
        write(tmp_path / f"octmnist{suffix}.npz", size, dtype=np.int64)
        for _ in range(2):
            rgb, grey = (MedMnist(name, str(tmp_path), size).load("train") for name in ("BloodMNIST", "octmnist"))
            assert (rgb.image.shape, grey.image.shape) == ((5, 3, size, size), (5, 1, size, size))
            assert rgb.label.tolist() == grey.label.tolist() == [0, 0, 1, 2, 2]
            assert grey.image[:, 0, 5, 7].tolist() == [10, 30, 20, 0, 40]
            assert rgb.image[:, 2, 5, 7].tolist() == [12, 32, 22, 2, 42]
            assert (rgb.image[:, :, 0, -1] == 255).all()
        assert MedMnist("bloodmnist", str(tmp_path), size).load("val").image[:, 0, 5, 7].tolist() == [20, 0, 10]
        kept = list((cache / "images").iterdir()) if (cache / "images").is_dir() else []
        assert len(kept) == (0 if size == 28 else 3)

    def test_images_larger_than_a_block(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path / "octmnist.npz")
        whole = MedMnist("octmnist", str(tmp_path)).load("train").image
        for block in (1, 2 * 28 * 28 + 1):
            monkeypatch.setattr(medmnist, "_BLOCK", block)
            assert torch.equal(MedMnist("octmnist", str(tmp_path)).load("train").image, whole)

    def test_download_is_checked_by_md5(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = write(tmp_path / "far" / "octmnist_64.npz", 64)
        monkeypatch.setattr(medmnist, "URL", source.parent.as_uri())
        near = MedMnist("octmnist", str(tmp_path / "near"), 64, download=True)
        monkeypatch.setattr("urllib.request.urlopen", _without_query(urllib.request.urlopen))
        with pytest.raises(ValueError, match=r"md5 is .*, expected e229e9440236b774d9f0dfef9d07bdaf"):
            near.load("val")
        sums = ("", md5(source.read_bytes()).hexdigest(), "", "")
        monkeypatch.setitem(PUBLISHED, "octmnist", replace(PUBLISHED["octmnist"], md5=sums))
        assert MedMnist("octmnist", "near", 64, download=True).load("val").label.tolist() == [0, 1, 2]

    def test_a_missing_file_tells_where_it_can_be_had(self, tmp_path: Path) -> None:
        url = r"https://zenodo\.org/records/10519652/files/pathmnist_224\.npz"
        with pytest.raises(
            FileNotFoundError, match=rf"{tmp_path}/pathmnist_224\.npz does not exist; put {url}.*download"
        ):
            MedMnist("pathmnist", str(tmp_path), 224).load("train")

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            (
                {"train_labels": np.array([[0], [1], [2], [3], [0]])},
                r"octmnist\.npz: train labels must lie in \[0, 3\)",
            ),
            ({"train_labels": np.array([[0], [1], [1], [1], [0]])}, "class 'z' has no train images"),
            ({"train_labels": np.zeros((5, 14), int)}, r"octmnist\.npz: 'train_labels' has shape \[5, 14\]"),
            ({"train_labels": np.zeros((4, 1), int)}, r"shape \[4, 1\], expected \[5, 1\]"),
            ({"train_images": np.zeros((5, 28, 28))}, r"octmnist\.npz .*'train_images': it is float64 of shape"),
            (
                {"train_images": np.zeros((5, 28, 27), np.uint8)},
                r"shape \[5, 28, 27\], expected uint8 of \[5, 28, 28\]",
            ),
        ],
    )
    def test_files_that_are_not_the_published_ones(self, tmp_path: Path, changed: dict, message: str) -> None:
        write(tmp_path / "octmnist.npz", **changed)
        with pytest.raises(ValueError, match=message):
            MedMnist("octmnist", str(tmp_path)).load("train")

    def test_a_file_that_is_cut_off(self, tmp_path: Path) -> None:
        path = write(tmp_path / "octmnist.npz")
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ValueError, match=r"octmnist\.npz cannot be read as an npz file"):
            MedMnist("octmnist", str(tmp_path)).load("train")


def _without_query(urlopen: Any) -> Any:
    def opened(request: urllib.request.Request, **options: Any) -> Any:
        request.full_url = request.full_url.removesuffix("?download=1")
        return urlopen(request, **options)

    return opened


class TestNames:
    def test_the_table_of_sets(self) -> None:
        assert len(PUBLISHED) == 11
        assert {name: len(p.classes) for name, p in PUBLISHED.items()} == {
            "bloodmnist": 8, "breastmnist": 2, "dermamnist": 7, "octmnist": 4, "organamnist": 11, "organcmnist": 11,
            "organsmnist": 11, "pathmnist": 9, "pneumoniamnist": 2, "retinamnist": 5, "tissuemnist": 8,
        }  # fmt: skip
        # the paper's total without ChestMNIST and the 107 blank slices that the organ sets have lost since
        assert sum(sum(p.images.values()) for p in PUBLISHED.values()) == 708_069 - 112_120 - 107
        sums = [digest for p in PUBLISHED.values() for digest in p.md5]
        assert len(set(sums)) == 44
        assert all(len(bytes.fromhex(digest)) == 16 for digest in sums)
        for name, p in PUBLISHED.items():
            assert f"{name:<14} {' / '.join(f'{n:,}' for n in p.images.values())}" in str(MedMnist.__doc__)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"name": "pneumonia"}, "name=pneumonia: did you mean pneumoniamnist"),
            ({"name": "xyz"}, "There are bloodmnist, breastmnist"),
            ({"name": "ChestMNIST"}, "chestmnist: its images have several labels each"),
            ({"name": "pathmnist", "size": 32}, "size=32: must be one of 28, 64, 128, 224"),
        ],
    )
    def test_bad_values(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            MedMnist(root="", **options)

    def test_a_users_file_is_read_in_the_form_of_the_set(self, tmp_path: Path) -> None:
        Image.new("RGB", (90, 60), (200, 200, 200)).save(tmp_path / "a.png")
        assert MedMnist("pathmnist", "").read([str(tmp_path / "a.png")]).shape == (1, 3, 28, 28)
        grey = PneumoniaMnist().read([str(tmp_path / "a.png")])
        assert (grey.shape, int(grey.min()), int(grey.max())) == ((1, 1, 28, 28), 200, 200)


@pytest.mark.usefixtures("small")
class TestJoined:
    def sets(self, root: Path) -> list[ImageSet]:
        write(root / "octmnist.npz")
        write(root / "bloodmnist.npz", rgb=True)
        return [MedMnist("octmnist", str(root)), MedMnist("bloodmnist", str(root))]

    def test_labels_follow_the_sets_and_grey_is_repeated(self, tmp_path: Path) -> None:
        joined = JoinedSets(self.sets(tmp_path))
        store = joined.load("train")
        assert store.classes == tuple(f"{name}mnist/{c}" for name in ("oct", "blood") for c in "xyz")
        assert store.label.tolist() == [0, 0, 1, 2, 2, 3, 3, 4, 5, 5]
        assert store.image[:, :, 5, 7].tolist() == [
            [10] * 3, [30] * 3, [20] * 3, [0] * 3, [40] * 3,
            [10, 11, 12], [30, 31, 32], [20, 21, 22], [0, 1, 2], [40, 41, 42],
        ]  # fmt: skip
        assert (joined.shape, joined.parts, joined.mean, joined.std) == ((3, 28, 28), PARTS, (0.5,) * 3, (0.5,) * 3)
        assert joined.load("val").label.tolist() == [0, 1, 2, 3, 4, 5]
        assert JoinedSets(self.sets(tmp_path)[:1], channels=3).load("test").image.shape == (4, 3, 28, 28)
        assert JoinedSets(self.sets(tmp_path)[:1]).load("test").image.shape == (4, 1, 28, 28)

    def test_statistics_are_of_images_from_each_set_equally_often(self) -> None:
        joined = JoinedSets([PneumoniaMnist(), FashionMnist("")])
        ones, others = (
            np.random.default_rng(0).standard_normal(10**6) * s + m for m, s in ((0.572, 0.168), (0.286, 0.353))
        )
        both = np.concatenate([ones, others])
        assert (*joined.mean, *joined.std) == pytest.approx((both.mean(), both.std()), abs=1e-3)
        assert joined.std[0] == pytest.approx(math.sqrt((0.168**2 + 0.353**2) / 2 + 0.143**2))

    def test_parts_are_those_of_all_sets(self) -> None:
        joined = JoinedSets([PneumoniaMnist(), FashionMnist("")])
        assert joined.parts == ("train", "test")
        with pytest.raises(ValueError, match=r"pneumoniamnist\+fashionmnist has no val part, only train and test"):
            joined.load("val")

    def test_bad_joins(self, tmp_path: Path) -> None:
        grey, rgb = self.sets(tmp_path)
        larger, gaussian = MedMnist("octmnist", "", 64), GaussianClasses(2)
        for sets, channels, message in (
            ([], None, "sets is empty"),
            ([PneumoniaMnist(), MedMnist("pneumoniamnist", "")], None, "pneumoniamnist comes twice; .* with itself"),
            ([rgb, larger], None, r"bloodmnist and octmnist must have one size .*size=28.*size=64"),
            ([grey, OmniglotClasses()], None, "octmnist and omniglotclasses must .* be read in one way"),
            ([grey, rgb], 1, "channels=1: bloodmnist has 3"),
            ([grey, gaussian], None, "gaussianclasses holds no pictures"),
        ):
            with pytest.raises(ValueError, match=message):
                JoinedSets(sets, channels)  # type: ignore[arg-type]
