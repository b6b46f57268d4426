"""MedMNIST v2: small medical images of one label each, from their published files, and PneumoniaMNIST as bundled."""

import difflib
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from datamodules.files import npz_array
from datamodules.image_sets import ImageSet, Part, check_labels
from datamodules.images import ImageForm, ImageStore, mapped
from datamodules.sources import bundled, download

URL = "https://zenodo.org/records/10519652/files"
SIZES = (28, 64, 128, 224)
_BLOCK = 1 << 24  # bytes of pixels that are unpacked at once


@dataclass(frozen=True)
class _Published:
    """A set as published: ``images`` of each part, ``md5`` of the files of each of ``SIZES``."""

    channels: int
    images: Mapping[Part, int]
    classes: tuple[str, ...]
    md5: tuple[str, ...]


_ORGANS = (
    "bladder", "left femur", "right femur", "heart", "left kidney", "right kidney", "liver", "left lung", "right lung",
    "pancreas", "spleen",
)  # fmt: skip

PUBLISHED = {
    "bloodmnist": _Published(
        3, {"train": 11_959, "val": 1_712, "test": 3_421},
        (
            "basophil", "eosinophil", "erythroblast", "immature granulocyte", "lymphocyte", "monocyte", "neutrophil",
            "platelet",
        ),
        ("7053d0359d879ad8a5505303e11de1dc", "2b94928a2ae4916078ca51e05b6b800b",
         "adace1e0ed228fccda1f39692059dd4c", "b718ff6835fcbdb22ba9eacccd7b2601"),
    ),
    "breastmnist": _Published(
        1, {"train": 546, "val": 78, "test": 156},
        ("malignant", "normal or benign"),
        ("750601b1f35ba3300ea97c75c52ff8f6", "742edef2a1fd1524b2efff4bd7ba9364",
         "363e4b3f8d712e9b5de15470a2aaadf1", "b56378a6eefa9fed602bb16d192d4c8b"),
    ),
    "dermamnist": _Published(
        3, {"train": 7_007, "val": 1_003, "test": 2_005},
        (
            "actinic keratosis or intraepithelial carcinoma", "basal cell carcinoma", "benign keratosis-like lesion",
            "dermatofibroma", "melanoma", "melanocytic nevus", "vascular lesion",
        ),
        ("0744692d530f8e62ec473284d019b0c7", "b70a2f5635c6199aeaa28c31d7202e1f",
         "2defd784463fa5243564e855ed717de1", "8974907d8e169bef5f5b96bc506ae45d"),
    ),
    "octmnist": _Published(
        1, {"train": 97_477, "val": 10_832, "test": 1_000},
        ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
        ("c68d92d5b585d8d81f7112f81e2d0842", "e229e9440236b774d9f0dfef9d07bdaf",
         "0a97e76651ace45c5d943ee3f65b63ae", "abc493b6d529d5de7569faaef2773ba3"),
    ),
    "organamnist": _Published(
        1, {"train": 34_561, "val": 6_491, "test": 17_778},
        _ORGANS,
        ("68e3f8846a6bd62f0c9bf841c0d9eacc", "2dcccc29b88e6da5a01161ef20cda288",
         "eeae80d0a227a8d099027e1b3cfd3b60", "50747347e05c87dd3aaf92c49f9f3170"),
    ),
    "organcmnist": _Published(
        1, {"train": 12_975, "val": 2_392, "test": 8_216},
        _ORGANS,
        ("b9ceb9546e10131b32923c5bbeaea2b1", "3ce34a8724ea6f548e6db4744d03b6a9",
         "773c1f009daa3fe5d9a2a201b2a7ed94", "050f5e875dc056f6768abf94ec9995d1"),
    ),
    "organsmnist": _Published(
        1, {"train": 13_932, "val": 2_452, "test": 8_827},
        _ORGANS,
        ("9ab87b696fb54e2a387ebe992d6ed5f1", "53a6d115339d874c25e309a994ff46d3",
         "ded0c5fa01a95dc4978b956f613e9b8e", "b354719e553fbbb2513d5533f52a4cb1"),
    ),
    "pathmnist": _Published(
        3, {"train": 89_996, "val": 10_004, "test": 7_180},
        (
            "adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa",
            "cancer-associated stroma", "colorectal adenocarcinoma epithelium",
        ),
        ("a8b06965200029087d5bd730944a56c1", "55aa9c1e0525abe5a6b9d8343a507616",
         "ac42d08fb904d92c244187169d1fd1d9", "2c51a510bcdc9cf8ddb2af93af1eadec"),
    ),
    "pneumoniamnist": _Published(
        1, {"train": 4_708, "val": 524, "test": 624},
        ("normal", "pneumonia"),
        ("28209eda62fecd6e6a2d98b1501bb15f", "8f4eceb4ccffa70c672198ea285246c6",
         "05b46931834c231683c68f40c47b2971", "d6a3c71de1b945ea11211b03746c1fe1"),
    ),
    "retinamnist": _Published(
        3, {"train": 1_080, "val": 120, "test": 400},
        ("grade 0", "grade 1", "grade 2", "grade 3", "grade 4"),
        ("bd4c0672f1bba3e3a89f0e4e876791e4", "afda852cc34dcda56f86ad2b2457dbcc",
         "e48e916a24454daf90583d4e6efb1a18", "eae7e3b6f3fcbda4ae613ebdcbe35348"),
    ),
    "tissuemnist": _Published(
        1, {"train": 165_466, "val": 23_640, "test": 47_280},
        (
            "collecting duct or connecting tubule", "distal convoluted tubule", "glomerular endothelial cell",
            "interstitial endothelial cell", "leukocyte", "podocyte", "proximal tubule segment",
            "thick ascending limb",
        ),
        ("ebe78ee8b05294063de985d821c1c34b", "123ece2eba09d0aa5d698fda57103344",
         "61b955355d7425a89687b06cca3ce0c2", "b077128c4a949f0a4eb01517f9037b9c"),
    ),
}  # fmt: skip


class MedMnist(ImageSet):
    """One of the 2-D sets of MedMNIST v2 (Yang et al. 2023), from https://doi.org/10.5281/zenodo.10519652.

    All have a train, a val and a test part. ChestMNIST is not read: its images have several labels each.

    ============== ========================= ======= ======== ============ ==================================
    name           images, train/val/test    classes channels licence      what
    ============== ========================= ======= ======== ============ ==================================
    bloodmnist     11,959 / 1,712 / 3,421    8       RGB      CC BY 4.0    blood cells, microscope
    breastmnist    546 / 78 / 156            2       grey     CC BY 4.0    breast, ultrasound
    dermamnist     7,007 / 1,003 / 2,005     7       RGB      CC BY-NC 4.0 skin lesions, dermatoscope
    octmnist       97,477 / 10,832 / 1,000   4       grey     CC BY 4.0    retina, optical coherence
    organamnist    34,561 / 6,491 / 17,778   11      grey     CC BY 4.0    abdominal CT, axial
    organcmnist    12,975 / 2,392 / 8,216    11      grey     CC BY 4.0    abdominal CT, coronal
    organsmnist    13,932 / 2,452 / 8,827    11      grey     CC BY 4.0    abdominal CT, sagittal
    pathmnist      89,996 / 10,004 / 7,180   9       RGB      CC BY 4.0    colon tissue, microscope
    pneumoniamnist 4,708 / 524 / 624         2       grey     CC BY 4.0    chest X-ray
    retinamnist    1,080 / 120 / 400         5       RGB      CC BY 4.0    fundus; the grades are ordered
    tissuemnist    165,466 / 23,640 / 47,280 8       grey     CC BY 4.0    kidney cells, microscope
    ============== ========================= ======= ======== ============ ==================================

    Images of 28 pixels are read into memory. Larger ones are unpacked into the cache folder at the first call, 13.5 GB
    for PathMNIST at 224 pixels, and mapped from there. Mean and standard deviation are 0.5 in each channel, as in
    MedMNIST's own experiments.

    Args:
        name: as in the table.
        root: the folder of the npz file, such as ``pathmnist.npz`` or ``pathmnist_64.npz``.
        size: side of the images in pixels: 28, 64, 128 or 224.
        download: fetch the file into the cache folder if it is not in ``root``.
    """

    form: ImageForm

    def __init__(self, name: str, root: str, size: int = 28, download: bool = False) -> None:
        self._name = name.lower()
        if self._name == "chestmnist":
            raise ValueError("MedMnist.name=chestmnist: its images have several labels each; choose another set")
        if self._name not in PUBLISHED:
            near = difflib.get_close_matches(self._name, PUBLISHED, 1, cutoff=0)[0]
            raise ValueError(f"MedMnist.name={name}: did you mean {near}? There are {', '.join(PUBLISHED)}")
        if size not in SIZES:
            raise ValueError(f"MedMnist.size={size}: must be one of {', '.join(map(str, SIZES))}")
        self.published, self.root, self.download = PUBLISHED[self._name], Path(root).expanduser(), download
        channels = self.published.channels
        self.form, self.mean, self.std = ImageForm(size, channels), (0.5,) * channels, (0.5,) * channels

    @property
    def name(self) -> str:
        return self._name

    @property
    def parts(self) -> tuple[Part, ...]:
        return ("train", "val", "test")

    def load(self, split: Part) -> ImageStore:
        """The images of a part, as in ``ImageSet``."""
        path, size, count = str(self._path()), self.form.size, self.published.images[split]
        label = npz_array(path, f"{split}_labels", (count, 1))[:, 0].astype(np.int64)
        check_labels(label, self.published.classes, split, f"{path}: ")
        place = np.argsort(np.argsort(label, kind="stable"))

        def fill(pixels: np.ndarray) -> None:
            start, stored = 0, (count, size, size) if self.form.channels == 1 else (count, size, size, 3)
            for block in _blocks(path, f"{split}_images", stored):
                rows = place[start : start + len(block)]
                pixels[rows] = block[:, None] if block.ndim == 3 else block.transpose(0, 3, 1, 2)
                start += len(block)

        shape = (count, *self.shape)
        if size == min(SIZES):
            pixels = np.empty(shape, np.uint8)
            fill(pixels)
            image = torch.from_numpy(pixels)
        else:
            image = mapped([path], f"medmnist {split} {shape}", shape, fill)
        return ImageStore(image, torch.from_numpy(np.sort(label)), self.published.classes, kind=split)

    def _path(self) -> Path:
        size = self.form.size
        file = f"{self.name}.npz" if size == min(SIZES) else f"{self.name}_{size}.npz"
        path, url = self.root / file, f"{URL}/{file}?download=1"
        if path.is_file():
            return path
        if not self.download:
            raise FileNotFoundError(f"{path} does not exist; put {url} there, or set download: true")
        return download(url, f"md5:{self.published.md5[SIZES.index(size)]}", file)


class PneumoniaMnist(MedMnist):
    """PneumoniaMNIST at 28 pixels, bundled: chest X-rays of children, normal or pneumonia.

    4,708 training, 524 validation and 624 test images, of which 26, 26 and 37.5 % are normal. The images are those of
    MedMNIST v2 (Yang et al. 2023, https://doi.org/10.1038/s41597-022-01721-8; Kermany et al. 2018,
    https://doi.org/10.1016/j.cell.2018.02.010), CC BY 4.0; the order of the training images is not. 8 validation images
    are training images too, no test image is. Mean and standard deviation are those of the training images.
    """

    def __init__(self) -> None:
        super().__init__("pneumoniamnist", str(bundled("pneumoniamnist.npz").parent))
        self.mean, self.std = (0.572,), (0.168,)


def _blocks(path: str, name: str, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """One uint8 array of an npz file, of the given shape, in blocks of rows: whole, it may not fit into memory."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            version = np.lib.format.read_magic(file)
            head = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            found, fortran, dtype = head(file)
            if found != shape or fortran or dtype != np.uint8:
                raise ValueError(f"it is {dtype} of shape {list(found)}, expected uint8 of {list(shape)} row by row")
            rows = max(1, _BLOCK // math.prod(shape[1:]))
            for start in range(0, shape[0], rows):
                block = (min(rows, shape[0] - start), *shape[1:])
                yield np.frombuffer(file.read(math.prod(block)), np.uint8).reshape(block)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as an npz file with {name!r}: {error}") from error
