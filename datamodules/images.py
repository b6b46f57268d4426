"""Image pools in memory or memory-mapped: one tensor of images, sorted by class."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from datamodules.sources import atomic, cache_dir

Split = Literal["train", "val", "test"]
Batch = TypeVar("Batch", bound=NamedTuple)


@dataclass(frozen=True)
class ImageStore:
    """All images of a set of classes.

    ``image`` [M, C, H, W] uint8 (may be a memory map), or float32 that is normalised already, ``label`` [M] int64
    ascending in [0, classes), ``classes`` their names, ``files`` where each image came from (may be empty), ``kind``
    the word for this pool in error messages.
    """

    image: Tensor
    label: Tensor
    classes: tuple[str, ...]
    files: Sequence[str] = ()
    kind: str = "image"

    @cached_property
    def count(self) -> Tensor:
        """Images of each class, [classes] int64."""
        return torch.bincount(self.label, minlength=len(self.classes))

    @cached_property
    def start(self) -> Tensor:
        """Row of the first image of each class, [classes] int64."""
        return self.count.cumsum(0) - self.count


@dataclass(frozen=True)
class Pools:
    """Where the supports and the queries of an episode come from.

    With ``query`` None both come from ``support`` and no image is on both sides of an episode. Two stores
    have the same classes in the same order.
    """

    support: ImageStore
    query: ImageStore | None = field(default=None)


class FewShotSet(ABC):
    """A data set whose classes are split into train (base), val and test (novel)."""

    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @abstractmethod
    def load(self, split: Split) -> Pools:
        """The pools of a split. Raises ``ValueError`` or ``FileNotFoundError`` that names what is wrong."""

    @abstractmethod
    def read(self, paths: Sequence[str]) -> Tensor:
        """A user's own image files in the form of this set: [len(paths), C, H, W] uint8."""


@dataclass(frozen=True)
class ImageForm:
    """The form that image files are brought into when they are read.

    The shorter side is resized to ``resize`` pixels (``size`` if None), then the central square of side
    ``size`` is cut out. ``channels`` 1 is grey and 3 RGB. ``invert`` turns dark ink on white into light
    ink on black; ``resample`` is the filter of the resizing, antialiased either way.
    """

    size: int
    channels: int = 3
    resize: int | None = None
    invert: bool = False
    resample: Literal["bilinear", "box"] = "bilinear"

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {self.channels}")
        if self.size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {self.size}")
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"resize must be at least size={self.size}, got {self.resize}")


def from_classes(
    images: Sequence[Tensor], classes: Sequence[str], files: Sequence[Sequence[str]] = (), kind: str = "image"
) -> ImageStore:
    """A store of ``images``, one uint8 tensor [n, C, H, W] for each of ``classes``, sorted by class name.

    ``files`` holds the origins of each class's images, or nothing. Raises ``ValueError`` for a class without
    images and for two classes of one name.
    """
    order = _class_order([len(x) for x in images], classes, kind)
    counts = torch.tensor([len(images[i]) for i in order])
    return ImageStore(
        image=torch.cat([images[i] for i in order]),
        label=torch.repeat_interleave(torch.arange(len(order)), counts),
        classes=tuple(classes[i] for i in order),
        files=[name for i in order for name in files[i]] if files else (),
        kind=kind,
    )


def from_files(
    files: Sequence[Sequence[str]], classes: Sequence[str], form: ImageForm, kind: str = "image"
) -> ImageStore:
    """A store of image files, one list for each of ``classes``, sorted by class name; a memory map.

    The first call reads the files and keeps the pixels in the cache folder; later ones map that file, unless
    the list, a size or a modification time has changed. Raises as ``from_classes`` and ``read_images`` do.
    """
    order = _class_order([len(x) for x in files], classes, kind)
    paths = [str(path) for i in order for path in files[i]]

    def fill(pixels: np.ndarray) -> None:
        for row, image in enumerate(_read(paths, form)):
            pixels[row] = image

    return ImageStore(
        image=mapped(paths, repr(form), (len(paths), form.channels, form.size, form.size), fill),
        label=torch.repeat_interleave(torch.arange(len(order)), torch.tensor([len(files[i]) for i in order])),
        classes=tuple(classes[i] for i in order),
        files=paths,
        kind=kind,
    )


def read_images(paths: Sequence[str], form: ImageForm) -> Tensor:
    """Image files as [len(paths), C, H, W] uint8.

    Raises ``FileNotFoundError`` or ``ValueError`` that names the file.
    """
    for path in paths:
        _stat(path)
    if not paths:
        raise ValueError("no image files given")
    return torch.from_numpy(np.stack(list(_read(paths, form))))


def mapped(paths: Sequence[str], form: str, shape: tuple[int, ...], fill: Callable[[np.ndarray], None]) -> Tensor:
    """Images made from files, uint8 of ``shape``, as a memory map that ``fill`` writes at the first call.

    It lies in the cache folder and is made again when the list, ``form``, a size or a modification time changes.
    Raises ``FileNotFoundError`` that names the file.
    """
    digest = hashlib.sha256(form.encode())
    for path in paths:
        status = _stat(path)
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    cached = cache_dir() / "images" / f"{digest.hexdigest()[:32]}.npy"
    if not cached.is_file():
        with atomic(cached) as temporary:
            pixels = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            fill(pixels)
            pixels.flush()
    # copy-on-write: torch warns about read-only arrays, and nothing here can reach the file
    return torch.from_numpy(np.load(cached, mmap_mode="c"))


def normalised(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 images [..., C, H, W] as float32: (image / 255 - mean) / std with each channel's ``mean`` and ``std``."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=image.device).view(-1, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=image.device).view(-1, 1, 1)
    return image.float().mul_(scale).add_(shift)  # addcmul, in one pass, takes three times as long on a CPU


def normalised_batch(batch: Batch, mean: Sequence[float], std: Sequence[float]) -> Batch:
    """A batch whose uint8 images are ``normalised``."""
    found = {k: v for k, v in batch._asdict().items() if isinstance(v, Tensor) and v.dtype == torch.uint8}
    return batch._replace(**{name: normalised(image, mean, std) for name, image in found.items()})


def select(store: ImageStore, classes: Sequence[int]) -> ImageStore:
    """The given classes of a store, in the given order, as classes 0, 1, ... of a new one."""
    chosen = torch.as_tensor(classes, dtype=torch.long)
    if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(store.classes):
        raise ValueError(f"class indices must lie in [0, {len(store.classes)}), got {list(classes)}")
    count = store.count[chosen]
    # how far each class's block of rows moves
    offset = store.start[chosen] - (count.cumsum(0) - count)
    row = torch.arange(int(count.sum())) + torch.repeat_interleave(offset, count)
    label = torch.repeat_interleave(torch.arange(len(chosen)), count)
    return replace(_rows(store, row), label=label, classes=tuple(store.classes[i] for i in chosen.tolist()))


def of_each_class(store: ImageStore, first: int, last: int | None) -> ImageStore:
    """Images ``[first, last)`` of every class, as far as it has them; None for all from ``first`` on."""
    place = torch.arange(len(store.label)) - store.start[store.label]
    kept = place >= first if last is None else (place >= first) & (place < last)
    return _rows(store, kept.nonzero()[:, 0])


def rotations(store: ImageStore) -> ImageStore:
    """Four times the classes: class k*n + c is class c of n, turned counter-clockwise by k quarter turns."""
    n = len(store.classes)
    return replace(
        store,
        image=torch.cat([torch.rot90(store.image, k, (2, 3)) for k in range(4)]),
        label=torch.cat([store.label + k * n for k in range(4)]),
        classes=tuple(f"{name}/rot{90 * k:03d}" for k in range(4) for name in store.classes),
        files=list(store.files) * 4,
    )


def _rows(store: ImageStore, row: Tensor) -> ImageStore:
    files = [store.files[i] for i in row.tolist()] if store.files else ()
    return replace(store, image=store.image.index_select(0, row), label=store.label[row], files=files)


def _class_order(counts: Sequence[int], classes: Sequence[str], kind: str) -> list[int]:
    if len(counts) != len(classes):
        raise ValueError(f"{len(counts)} lists of images for {len(classes)} classes")
    if not classes:
        raise ValueError(f"the {kind} pool has no classes")
    order = sorted(range(len(classes)), key=lambda i: classes[i])
    for i, following in pairwise(order):
        if classes[i] == classes[following]:
            raise ValueError(f"two classes have the name {classes[i]!r}")
    for i in order:
        if not counts[i]:
            raise ValueError(f"class {classes[i]!r}: the {kind} pool is empty; add images or drop the class")
    return order


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError:
        raise FileNotFoundError(f"image file {path} does not exist or cannot be opened") from None


def _read(paths: Sequence[str], form: ImageForm) -> Iterator[np.ndarray]:
    """Each file as [C, H, W] uint8, in order, with a bar when there are many."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        chunks = range(0, len(paths), 256)
        for start in track(chunks, "reading images", transient=True, disable=len(paths) < 2048):
            yield from pool.map(lambda path: _read_one(path, form), paths[start : start + 256])


def _read_one(path: str, form: ImageForm) -> np.ndarray:
    try:
        with Image.open(path) as file:
            if file.mode.startswith(("I", "F")):
                raise ValueError(f"its pixels have more than 8 bits (mode {file.mode}); convert it to 8 bits")
            image = file.convert("L" if form.channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the image {path}: {error}") from error
    shorter = form.resize or form.size
    scale = shorter / min(image.size)
    width, height = (max(shorter, round(side * scale)) for side in image.size)
    resample = Image.Resampling.BOX if form.resample == "box" else Image.Resampling.BILINEAR
    image = image.resize((width, height), resample)
    left, top = (width - form.size) // 2, (height - form.size) // 2
    pixels = np.asarray(image.crop((left, top, left + form.size, top + form.size)))
    pixels = pixels[None] if form.channels == 1 else pixels.transpose(2, 0, 1)
    return 255 - pixels if form.invert else pixels
