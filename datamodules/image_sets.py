"""Labelled image sets in parts of the same classes: the contract, and those without image files."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.images import ImageForm, ImageStore, from_classes, of_each_class, read_images, rotations
from datamodules.omniglot import BUNDLED_ALPHABETS, FORM, MEAN, STD, bundled_drawings
from datamodules.streams import generator

Part = Literal["train", "val", "test"]
# Part of a key that tells the uses of one (seed, class) apart.
_MAP, _CENTRE, _TRAIN, _TEST = range(4)


class ImageSet(ABC):
    """A data set of labelled images in a train and a test part, and in some a val part.

    ``form`` is the form of its images, None where they are no pictures and so cannot be read from files; ``mean``
    and ``std`` are of each channel, in [0, 1].
    """

    form: ImageForm | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @abstractmethod
    def load(self, split: Part) -> ImageStore:
        """A part, sorted by class; all parts have the same classes in the same order.

        Raises ``ValueError`` or ``FileNotFoundError`` that names what is wrong, such as a part that is none of
        ``parts``.
        """

    @property
    def name(self) -> str:
        """What the set is called where it is one of several."""
        return type(self).__name__.lower()

    @property
    def parts(self) -> tuple[Part, ...]:
        return ("train", "test")

    def check_part(self, split: Part) -> None:
        """Raises ``ValueError`` for a part that the set does not have."""
        if split not in self.parts:
            raise ValueError(f"{self.name} has no {split} part, only {' and '.join(self.parts)}")

    def read(self, paths: Sequence[str]) -> Tensor:
        """A user's own image files in the form of this set: [len(paths), C, H, W] uint8."""
        if self.form is None:
            raise ValueError(f"{type(self).__name__} holds no pictures, so image files cannot be read in its form")
        return read_images(paths, self.form)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        assert self.form is not None
        return self.form.channels, self.form.size, self.form.size


def from_labels(image: np.ndarray, label: np.ndarray, classes: Sequence[str], split: Part) -> ImageStore:
    """A store of images [M, C, H, W] uint8 with labels [M] in any order; the classes keep theirs."""
    check_labels(label, classes, split)
    order = np.argsort(label, kind="stable")
    return ImageStore(torch.from_numpy(image[order]), torch.from_numpy(label[order]), tuple(classes), kind=split)


def check_labels(label: np.ndarray, classes: Sequence[str], split: Part, origin: str = "") -> None:
    """Raises ``ValueError`` for a label [M] that is none of the classes' numbers, and for a class without images.

    The message starts with ``origin``.
    """
    if len(label) and not 0 <= label.min() <= label.max() < len(classes):
        raise ValueError(
            f"{origin}{split} labels must lie in [0, {len(classes)}), found {label.min()} to {label.max()}"
        )
    if not (count := np.bincount(label, minlength=len(classes))).all():
        raise ValueError(f"{origin}class {classes[int(count.argmin())]!r} has no {split} images")


class OmniglotClasses(ImageSet):
    """The bundled Omniglot drawings (Lake et al. 2015): 242 characters of 8 alphabets, 20 drawings each, 28x28.

    Args:
        alphabets: those whose characters are the classes; null for all.
        rotations: each quarter turn of a character is a class of its own.
        held_out: the last that many drawings of a class are its test part.
    """

    form = FORM
    mean = MEAN
    std = STD

    def __init__(self, alphabets: list[str] | None = None, rotations: bool = False, held_out: int = 5) -> None:
        known = sorted(name for names in BUNDLED_ALPHABETS.values() for name in names)
        self.alphabets = known if alphabets is None else alphabets
        if not self.alphabets or (unknown := set(self.alphabets) - set(known)):
            wrong = f"no alphabet {min(unknown)!r}" if self.alphabets else "an empty list"
            raise ValueError(f"OmniglotClasses.alphabets: {wrong}; choose among {', '.join(known)}, or null for all")
        if not 0 < held_out < 20:
            raise ValueError(f"OmniglotClasses.held_out={held_out}: must lie in [1, 19], of 20 drawings a class")
        self.rotations, self.held_out = rotations, held_out

    def load(self, split: Part) -> ImageStore:
        """The first drawings of each character, or those held out, as in ``ImageSet``."""
        self.check_part(split)
        store, cut = bundled_drawings(self.alphabets), 20 - self.held_out
        store = of_each_class(store, 0, cut) if split == "train" else of_each_class(store, cut, None)
        return rotations(store) if self.rotations else store


class GaussianClasses(ImageSet):
    """Procedural classes: Gaussians around random centres in a latent space, seen through a random tanh layer.

    A class is a pure function of ``seed`` and its number, and its first images are the same however many there are,
    so sets of other ``first`` and ``count`` hold other, or the same, classes of one world. An image is float32
    [inputs, 1, 1], in (-1, 1) and so normalised already: tanh(A z) with A ~ N(0, 1 / latent) of the whole set,
    z ~ N(centre, noise^2) and centre ~ N(0, 1).

    Args:
        count: number of classes.
        first: number of the first class.
        train_images, test_images: images of each class.
        latent: dimensions of the latent space.
        inputs: numbers in an image.
        noise: standard deviation of the images of a class in the latent space.
        seed: of the centres, of the layer and of the images.
    """

    form = None
    mean = ()
    std = ()

    def __init__(
        self,
        count: int,
        first: int = 0,
        train_images: int = 100,
        test_images: int = 50,
        latent: int = 12,
        inputs: int = 32,
        noise: float = 0.55,
        seed: int = 0,
    ) -> None:
        sizes = {"count": count, "train_images": train_images, "test_images": test_images}
        for name, value in (sizes | {"latent": latent, "inputs": inputs}).items():
            if value < 1:
                raise ValueError(f"GaussianClasses.{name}={value}: must be at least 1")
        if first < 0 or noise < 0:
            raise ValueError(f"GaussianClasses: first={first} and noise={noise} must not be negative")
        self.count, self.first, self.seed = count, first, seed
        self.images: dict[Part, int] = {"train": train_images, "test": test_images}
        self.latent, self.inputs, self.noise = latent, inputs, noise

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.inputs, 1, 1

    def load(self, split: Part) -> ImageStore:
        """The images of a part, drawn here, as in ``ImageSet``."""
        self.check_part(split)
        layer = generator(self.seed, _MAP).standard_normal((self.latent, self.inputs)) / np.sqrt(self.latent)
        numbers = range(self.first, self.first + self.count)
        blocks = [torch.from_numpy(np.tanh(self._latent(number, split) @ layer)).float() for number in numbers]
        return from_classes([block[:, :, None, None] for block in blocks], [f"gaussian{n:06d}" for n in numbers])

    def _latent(self, number: int, split: Part) -> np.ndarray:
        """The latent images of one class, [images, latent] float64."""
        centre = generator(self.seed, _CENTRE, number).standard_normal(self.latent)
        draws = generator(self.seed, _TRAIN if split == "train" else _TEST, number)
        return centre + self.noise * draws.standard_normal((self.images[split], self.latent))
