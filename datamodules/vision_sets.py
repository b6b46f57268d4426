"""Labelled image sets from files: CIFAR, ImageNet32, Fashion-MNIST and class folders."""

import gzip
import hashlib
import math
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from filelock import FileLock

from datamodules.files import class_folders, image_files, npz_array, statistics
from datamodules.image_sets import ImageSet, Part, check_labels, from_labels
from datamodules.images import ImageForm, ImageStore, from_files, mapped

CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


class _Rgb32(ImageSet):
    """What the 32x32 colour sets share.

    Args:
        root: the folder of the set.
        mean, std: of each channel; those of CIFAR-100 unless given, so that the sets serve one model together.
    """

    form = ImageForm(32)

    def __init__(
        self, root: str, mean: tuple[float, ...] = CIFAR100_MEAN, std: tuple[float, ...] = CIFAR100_STD
    ) -> None:
        self.root = Path(root).expanduser()
        self.mean, self.std = statistics(mean, std, 3)


class CifarClasses(_Rgb32):
    """CIFAR-10 or CIFAR-100 (Krizhevsky 2009), python version, from https://www.cs.toronto.edu/~kriz/cifar.html.

    Args:
        root: the folder that holds ``cifar-10-batches-py`` or ``cifar-100-python``.
        classes: which of the two.
        download: let torchvision fetch it (170 MB) if it is not there.
    """

    def __init__(
        self,
        root: str,
        classes: Literal[10, 100] = 100,
        download: bool = False,
        mean: tuple[float, ...] = CIFAR100_MEAN,
        std: tuple[float, ...] = CIFAR100_STD,
    ) -> None:
        super().__init__(root, mean, std)
        if classes not in (10, 100):
            raise ValueError(f"CifarClasses.classes={classes}: must be 10 or 100")
        self.classes, self.download = classes, download

    @property
    def name(self) -> str:
        return f"cifar{self.classes}"

    def load(self, split: Part) -> ImageStore:
        """The images of a part, which torchvision reads once their checksums are right, as in ``ImageSet``."""
        from torchvision.datasets import CIFAR10, CIFAR100

        self.check_part(split)
        archive = CIFAR10 if self.classes == 10 else CIFAR100
        try:
            if self.download:
                self.root.mkdir(parents=True, exist_ok=True)
                with FileLock(self.root / ".cifar.lock"):  # several ranks ask at once
                    archive(str(self.root), train=split == "train", download=True)
            data = archive(str(self.root), train=split == "train")
        except RuntimeError as error:
            raise FileNotFoundError(
                f"CIFAR-{self.classes} is not in {self.root / archive.base_folder}, or a file there is not the "
                "published one; set download: true, or unpack the python version of "
                "https://www.cs.toronto.edu/~kriz/cifar.html there"
            ) from error
        return from_labels(data.data.transpose(0, 3, 1, 2), np.array(data.targets), data.classes, split)


class ImageNet32Classes(_Rgb32):
    """Classes of ImageNet at 32x32 (Chrabaszcz et al. 2017), from https://image-net.org/download-images.

    Reads the npz form, ``train_data_batch_1.npz`` ... ``train_data_batch_10.npz`` and ``val_data.npz`` (its test
    part); the other published form are pickles, which run what is in them. The first call keeps the classes' images
    in the cache folder, later ones map that file.

    Args:
        root: the folder of these files.
        first: the first class, from 0, in the files' own order.
        count: number of classes.
    """

    def __init__(
        self,
        root: str,
        first: int = 0,
        count: int = 1000,
        mean: tuple[float, ...] = CIFAR100_MEAN,
        std: tuple[float, ...] = CIFAR100_STD,
    ) -> None:
        super().__init__(root, mean, std)
        if not 0 <= first < first + count <= 1000:
            raise ValueError(
                f"ImageNet32Classes: first={first} and count={count} must give at least one class of [0, 1000)"
            )
        self.first, self.count = first, count

    def load(self, split: Part) -> ImageStore:
        """The images of a part, as in ``ImageSet``."""
        self.check_part(split)
        names = [f"train_data_batch_{i}.npz" for i in range(1, 11)] if split == "train" else ["val_data.npz"]
        files = [str(self.root / name) for name in names]
        for path in files:
            if not Path(path).is_file():
                raise FileNotFoundError(
                    f"{path} does not exist; get the 32x32 npz files from https://image-net.org/download-images and "
                    "unpack them there (pickles are not read)"
                )
        labels = [npz_array(path, "labels", (-1,)).astype(np.int64) - 1 - self.first for path in files]
        chosen = [np.flatnonzero((label >= 0) & (label < self.count)) for label in labels]
        label = np.concatenate([some[rows] for some, rows in zip(labels, chosen, strict=True)])
        place = np.argsort(np.argsort(label, kind="stable"))

        def fill(pixels: np.ndarray) -> None:
            start = 0
            for path, some, rows in zip(files, labels, chosen, strict=True):
                image = npz_array(path, "data", (len(some), 3072))
                pixels[place[start : start + len(rows)]] = image[rows].reshape(-1, 3, 32, 32)
                start += len(rows)

        classes = tuple(f"imagenet{number:04d}" for number in range(self.first, self.first + self.count))
        check_labels(label, classes, split)
        image = mapped(files, f"imagenet32 {self.first} {self.count}", (len(label), 3, 32, 32), fill)
        return ImageStore(image, torch.from_numpy(np.sort(label)), classes, kind=split)


class FashionMnist(ImageSet):
    """Fashion-MNIST (Xiao et al. 2017), 10 classes of 28x28, from https://github.com/zalandoresearch/fashion-mnist.

    Args:
        root: the folder of the idx files, gzipped or not, or of torchvision's ``FashionMNIST/raw`` with them.
    """

    form = ImageForm(28, channels=1)
    mean = (0.286,)
    std = (0.353,)

    def __init__(self, root: str) -> None:
        self.root = Path(root).expanduser()

    def load(self, split: Part) -> ImageStore:
        """The images of a part (60,000 and 10,000), as in ``ImageSet``."""
        self.check_part(split)
        name = "train" if split == "train" else "t10k"
        image, label = self._idx(f"{name}-images-idx3-ubyte", 3), self._idx(f"{name}-labels-idx1-ubyte", 1)
        if len(image) != len(label) or image.shape[1:] != (28, 28):
            raise ValueError(f"{self.root}: {name} has images {image.shape} and {len(label)} labels; expected 28x28")
        return from_labels(image[:, None], label.astype(np.int64), FASHION_CLASSES, split)

    def _idx(self, name: str, axes: int) -> np.ndarray:
        places = [folder / file for folder in (self.root, self.root / "FashionMNIST" / "raw")
                  for file in (name, f"{name}.gz")]  # fmt: skip
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise FileNotFoundError(
                f"{places[-1]} does not exist, nor does it lie unpacked or in {self.root}; get it from "
                f"https://github.com/zalandoresearch/fashion-mnist (data/fashion/{name}.gz)"
            )
        try:
            data = (gzip.decompress if path.suffix == ".gz" else bytes)(path.read_bytes())
        except (OSError, EOFError) as error:
            raise ValueError(f"{path} is not a whole gzip file: {error}") from error
        # two zero bytes, 8 for uint8, the number of axes, then the length of each as big-endian uint32
        shape = tuple(np.frombuffer(data[4 : 4 + 4 * axes], ">u4").tolist())
        if data[:4] != bytes((0, 0, 8, axes)) or len(data) != 4 + 4 * axes + math.prod(shape):
            raise ValueError(f"{path} is not an idx file of uint8 with {axes} axes, or is cut off")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


class FolderClasses(ImageSet):
    """Class folders: ``root/{train,val,test}/<class>/*`` or, to be split here in train and test, ``root/<class>/*``.

    The folders are train and at least one of the others; all have the same classes.

    Args:
        root: the folder of the set.
        size: side of the square images in pixels.
        channels: 3 for RGB, 1 for grey.
        resize: shorter side before the centre crop to ``size``; null for ``size`` itself.
        test_fraction: of the images, where they are split here: each by a draw of its own from ``seed`` and its name,
            so that an image stays on its side when others come, go, or the fraction grows.
        seed: of that split; the stages of one experiment must have the same.
        mean, std: of each channel, in [0, 1]; null for ImageNet's (their averages for grey).
    """

    form: ImageForm

    def __init__(
        self,
        root: str,
        size: int = 32,
        channels: int = 3,
        resize: int | None = None,
        test_fraction: float = 0.2,
        seed: int = 0,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        self.root, self.form = Path(root).expanduser(), ImageForm(size, channels, resize)
        self.mean, self.std = statistics(mean, std, channels)
        if not 0 < test_fraction < 1:
            raise ValueError(f"FolderClasses.test_fraction={test_fraction}: must lie between 0 and 1")
        self.test_fraction, self.seed = test_fraction, seed

    @property
    def name(self) -> str:
        return self.root.resolve().name

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(self._folders()) or ("train", "test")

    def _folders(self) -> dict[Part, Path]:
        names: tuple[Part, ...] = ("train", "val", "test")
        return {name: self.root / name for name in names if (self.root / name).is_dir()}

    def _tested(self, file: str) -> bool:
        """Whether a file of the set is in its test part: no file changes sides when others come or go."""
        name = Path(file).relative_to(self.root).as_posix()
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.test_fraction * 2**64

    def load(self, split: Part) -> ImageStore:
        """The images of a part, as in ``ImageSet``."""
        parts = self._folders()
        if not parts:
            self.check_part(split)
            files = {
                folder.name: [file for file in image_files(folder) if self._tested(file) == (split == "test")]
                for folder in class_folders(self.root)
            }
            return from_files(list(files.values()), list(files), self.form, split)
        if len(parts) < 2 or "train" not in parts:
            raise FileNotFoundError(
                f"{self.root} has {' and '.join(parts)} but not both train and test (or val); add the missing folder, "
                "or name the class folder otherwise"
            )
        self.check_part(split)
        folders = {name: {folder.name: folder for folder in class_folders(path)} for name, path in parts.items()}
        for name, classes in folders.items():
            if alone := set(folders["train"]) ^ set(classes):
                raise ValueError(f"{self.root}: class {min(alone)!r} is not in both train and {name}")
        files = {name: image_files(folder) for name, folder in folders[split].items()}
        return from_files(list(files.values()), list(files), self.form, split)
