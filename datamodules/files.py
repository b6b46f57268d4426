"""Finding and reading a user's files, and the statistics of image channels."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def visible(folder: Path, what: str) -> list[Path]:
    """What lies in a folder, sorted by name, without hidden files; raises where that is nothing."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{what}: {folder} is not a folder")
    found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if not found:
        raise ValueError(f"{what}: {folder} is empty")
    return found


def class_folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by name, without hidden ones; raises ``FileNotFoundError`` if there are none."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"the folder {folder} does not exist: put the data there (the first lines of a config say where its data "
            "come from), or name another root"
        )
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise FileNotFoundError(f"{folder} has no class folders")
    return found


def image_files(folder: Path) -> list[str]:
    """The image files in a folder, sorted, but not those in folders inside it."""
    return sorted(str(path) for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def image_tree(path: Path, what: str) -> list[str]:
    """The image files in a folder and the folders inside it, sorted, without hidden ones; or the one file given."""
    if path.is_file():
        return [str(path)]
    inside = [file for top in visible(path, what) for file in (top, *top.rglob("*"))]
    hidden = [any(part.startswith(".") for part in file.relative_to(path).parts) for file in inside]
    images = [file for file, no in zip(inside, hidden, strict=True) if not no and file.suffix.lower() in SUFFIXES]
    if not images:
        raise ValueError(f"{what}: {path} holds no image files ({', '.join(sorted(SUFFIXES))})")
    return sorted(map(str, images))


def npz_array(path: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One array of an npz file, of the given shape (-1 for any length)."""
    try:
        with np.load(path) as file:
            found = np.asarray(file[name])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as an npz file with {name!r}: {error}") from error
    if found.ndim != len(shape) or any(n not in (-1, m) for n, m in zip(shape, found.shape, strict=True)):
        raise ValueError(f"{path}: {name!r} has shape {list(found.shape)}, expected {list(shape)}")
    return found


def statistics(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, checked; ImageNet's (their averages for grey) in place of None."""
    pair = tuple(mean or _per_channel(IMAGENET_MEAN, channels)), tuple(std or _per_channel(IMAGENET_STD, channels))
    for name, value in zip(("mean", "std"), pair, strict=True):
        if len(value) != channels:
            raise ValueError(f"{name} needs one value for each of the {channels} channels, got {value}")
    if min(pair[1]) <= 0:
        raise ValueError(f"std must be positive, got {pair[1]}")
    return pair


def _per_channel(rgb: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return rgb if channels == 3 else (round(sum(rgb) / 3, 3),)
