"""Omniglot (Lake et al. 2015): a subset that ships with the package, and the full set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.images import (
    FewShotSet,
    ImageForm,
    ImageStore,
    Pools,
    Split,
    from_classes,
    from_files,
    read_images,
    rotations,
    select,
)
from datamodules.sources import bundled
from datamodules.streams import generator

FORM = ImageForm(size=28, channels=1, invert=True, resample="box")
MEAN, STD = (0.084,), (0.240,)  # of the 3,120 bundled training drawings, ink = 1
BUNDLED_ALPHABETS: dict[Split, tuple[str, ...]] = {
    "train": ("Balinese", "Greek", "Korean", "Latin", "Sanskrit"),
    "val": ("Early_Aramaic",),
    "test": ("Japanese_(katakana)", "Tagalog"),
}


class BundledOmniglot(FewShotSet):
    """The authors' two small background sets: 242 characters of 8 alphabets, 20 drawings each, 28x28.

    Split by alphabet: 156 characters for train, 22 for val, 64 for test. Accuracies on it are not comparable
    with those published for the full set.

    Args:
        rotations: each quarter turn of a training character is a class of its own (624 in place of 156).
        rotate_evaluation: the same for val (88) and test (256).
        max_base_classes: keep only the first that many training classes of a seeded shuffle.
        seed: of that shuffle.
    """

    channels = FORM.channels
    size = FORM.size
    mean = MEAN
    std = STD

    def __init__(
        self,
        rotations: bool = True,
        rotate_evaluation: bool = False,
        max_base_classes: int | None = None,
        seed: int = 0,
    ) -> None:
        if max_base_classes is not None and max_base_classes < 1:
            raise ValueError(f"max_base_classes must be at least 1 or null, got {max_base_classes}")
        self.rotations, self.rotate_evaluation = rotations, rotate_evaluation
        self.max_base_classes, self.seed = max_base_classes, seed

    def load(self, split: Split) -> Pools:
        """The drawings of a split, as in ``FewShotSet``."""
        turn = self.rotations if split == "train" else self.rotate_evaluation
        store = _turned(bundled_drawings(BUNDLED_ALPHABETS[split]), turn)
        if split == "train" and self.max_base_classes is not None:
            if self.max_base_classes > len(store.classes):
                raise ValueError(f"max_base_classes={self.max_base_classes}, but there are only {len(store.classes)}")
            order = generator(self.seed).permutation(len(store.classes))
            store = select(store, sorted(order[: self.max_base_classes].tolist()))
        return Pools(store)

    def read(self, paths: Sequence[str]) -> Tensor:
        """Drawings (dark ink on white) from files, as in ``FewShotSet``."""
        return read_images(paths, FORM)


class Omniglot(FewShotSet):
    """The full Omniglot: 1,623 characters, 20 drawings each, read at 28x28 from ``root/omniglot-py``.

    Args:
        root: where torchvision's ``Omniglot`` keeps the set.
        split: ``vinyals`` is the split in 1,028/172/423 characters that Prototypical Networks used;
            ``random`` holds out 423 characters for test and ``validation_classes`` of the other 1,200.
        download: let torchvision fetch the two zips (14 MB) if they are not there.
        rotations: each quarter turn is a class of its own, in training (4,112 of ``vinyals``).
        rotate_evaluation: the same for val and test (688 and 1,692), as in Prototypical Networks.
        validation_classes: for ``random`` only.
        seed: of ``random``.
        splits_dir: a folder with ``train.txt``, ``val.txt`` and ``test.txt`` of lines ``alphabet/character``
            in place of the ``vinyals`` lists.
    """

    channels = FORM.channels
    size = FORM.size
    mean = MEAN
    std = STD

    def __init__(
        self,
        root: str,
        split: Literal["vinyals", "random"] = "vinyals",
        download: bool = False,
        rotations: bool = True,
        rotate_evaluation: bool = True,
        validation_classes: int = 100,
        seed: int = 0,
        splits_dir: str | None = None,
    ) -> None:
        if not 0 <= validation_classes < 1200:
            raise ValueError(f"validation_classes must lie in [0, 1200), got {validation_classes}")
        self.root, self.split, self.download = Path(root), split, download
        self.rotations, self.rotate_evaluation = rotations, rotate_evaluation
        self.validation_classes, self.seed, self.splits_dir = validation_classes, seed, splits_dir

    def load(self, split: Split) -> Pools:
        """The drawings of a split, as in ``FewShotSet``."""
        folders = self._folders()
        if self.split == "random":
            classes = random_split(list(folders), self.validation_classes, self.seed)[split]
            if not classes:
                raise ValueError("the random split has no val classes: validation_classes is 0")
        elif self.splits_dir is None:
            classes = vinyals_split()[split]
        else:
            classes = _listed(Path(self.splits_dir) / f"{split}.txt")
        if missing := [name for name in classes if name not in folders]:
            raise FileNotFoundError(
                f"{len(missing)} of {len(classes)} {split} characters are not under {self.root}, "
                f"the first is {missing[0]}"
            )
        files = [sorted(str(path) for path in folders[name].glob("*.png")) for name in classes]
        store = from_files(files, classes, FORM)
        return Pools(_turned(store, self.rotations if split == "train" else self.rotate_evaluation))

    def read(self, paths: Sequence[str]) -> Tensor:
        """Drawings (dark ink on white) from files, as in ``FewShotSet``."""
        return read_images(paths, FORM)

    def _folders(self) -> dict[str, Path]:
        """The folder of each ``alphabet/character``."""
        if self.download:
            from torchvision.datasets import Omniglot as Archive

            for background in (True, False):
                Archive(str(self.root), background=background, download=True)
        folders: dict[str, Path] = {}
        for part in ("images_background", "images_evaluation"):
            folder = self.root / "omniglot-py" / part
            if not folder.is_dir():
                raise FileNotFoundError(f"{folder} does not exist; set download: true, or unpack {part}.zip there")
            folders |= {f"{path.parent.name}/{path.name}": path for path in folder.glob("*/character*")}
        return dict(sorted(folders.items()))


def bundled_drawings(alphabets: Sequence[str]) -> ImageStore:
    """The bundled drawings of some alphabets: a class a character, 20 drawings each."""
    with np.load(bundled("omniglot_small.npz")) as file:
        images, classes = file["image"], [str(name) for name in file["classes"]]
    rows = [i for i, name in enumerate(classes) if name.split("/")[0] in alphabets]
    return from_classes([torch.from_numpy(images[i])[:, None] for i in rows], [classes[i] for i in rows])


def vinyals_split() -> dict[Split, list[str]]:
    """The characters of each split of Vinyals et al. (2016) as ``alphabet/character``: 1,028, 172 and 423."""
    classes: dict[Split, list[str]] = {"train": [], "val": [], "test": []}
    for line in bundled("omniglot_vinyals.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            split, alphabet, first, last = line.split()
            numbers = range(int(first), int(last) + 1)
            classes[split] += [f"{alphabet}/character{number:02d}" for number in numbers]  # type: ignore[index]
    return classes


def random_split(classes: Sequence[str], validation: int, seed: int) -> dict[Split, list[str]]:
    """A seeded shuffle of the 1,623 characters: 1,200 - ``validation`` for train, ``validation``, 423."""
    if len(classes) != 1623:
        raise ValueError(f"the full Omniglot has 1623 characters, found {len(classes)}")
    shuffled = [classes[i] for i in generator(seed).permutation(len(classes))]
    train = 1200 - validation
    return {"train": shuffled[:train], "val": shuffled[train:1200], "test": shuffled[1200:]}


def _listed(path: Path) -> list[str]:
    """The ``alphabet/character`` lines of a file; lines may end in ``/rotNNN``, as published lists do."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; splits_dir needs train.txt, val.txt and test.txt")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted({"/".join(line.split("/")[:2]) for line in lines if line})


def _turned(store: ImageStore, turn: bool) -> ImageStore:
    return rotations(store) if turn else store
