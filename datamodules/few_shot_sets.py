"""Few-shot sets from a user's own image files: class folders, CSV splits, and RD-FSL's two pools."""

import csv
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor

from datamodules.files import class_folders, image_files, statistics
from datamodules.images import FewShotSet, ImageForm, Pools, Split, from_files, read_images
from datamodules.streams import generator

SPLITS: tuple[Split, ...] = ("train", "val", "test")


class _Files(FewShotSet):
    """What the sets below share: a root folder, the form of the images and their normalisation.

    Args:
        root: the folder of the set.
        size: side of the square images in pixels.
        channels: 3 for RGB, 1 for grey.
        resize: shorter side before the centre crop to ``size``; null for ``size`` itself.
        mean, std: of each channel, in [0, 1]; null for ImageNet's (their averages for grey).
    """

    def __init__(
        self,
        root: str,
        size: int = 84,
        channels: int = 3,
        resize: int | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        self.root = Path(root).expanduser()
        self.form = ImageForm(size, channels, resize)
        self.size, self.channels = size, channels
        self.mean, self.std = statistics(mean, std, channels)

    def read(self, paths: Sequence[str]) -> Tensor:
        """A user's own image files, as in ``FewShotSet``."""
        return read_images(paths, self.form)


class ImageFolder(_Files):
    """Class folders: ``root/{train,val,test}/<class>/*`` or, to be split here, ``root/<class>/*``.

    Args:
        split: how a single folder of classes is split: ``random`` by ``fractions`` and ``seed``, or ``cub``,
            the rule for CUB-200-2011 (see ``cub_split``).
        fractions: of the classes for train, val and test.
        seed: of the random split.
    """

    def __init__(
        self,
        root: str,
        size: int = 84,
        channels: int = 3,
        split: Literal["random", "cub"] = "random",
        fractions: tuple[float, float, float] = (0.64, 0.16, 0.2),
        seed: int = 0,
        resize: int | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__(root, size, channels, resize, mean, std)
        if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
            raise ValueError(f"fractions must be non-negative and sum to 1, got {tuple(fractions)}")
        self.split, self.fractions, self.seed = split, fractions, seed

    def load(self, split: Split) -> Pools:
        """The images of a split, as in ``FewShotSet``."""
        folders = self._classes()[split]
        if not folders:
            raise ValueError(f"{self.root} has no {split} classes")
        files = [image_files(folder) for folder in folders]
        return Pools(from_files(files, [folder.name for folder in folders], self.form))

    def _classes(self) -> dict[Split, list[Path]]:
        present = [name for name in SPLITS if (self.root / name).is_dir()]
        if present:
            if len(present) < 3:
                raise FileNotFoundError(
                    f"{self.root} has {' and '.join(present)} but not all of train, val and test; "
                    "add the missing folders, or name the class folders otherwise"
                )
            folders = {name: class_folders(self.root / name) for name in SPLITS}
            _disjoint({name: {path.name for path in paths} for name, paths in folders.items()}, self.root)
            return folders
        everything = {path.name: path for path in class_folders(self.root)}
        if self.split == "cub":
            names = cub_split(list(everything))
        else:
            names = fraction_split(list(everything), self.fractions, self.seed)
        return {name: [everything[c] for c in names[name]] for name in SPLITS}


class CsvSplit(_Files):
    """``root/{train,val,test}.csv`` with the columns ``filename,label``, and the files in ``root/images``.

    The layout in which miniImageNet, tieredImageNet, CIFAR-FS, FC100 and CUB are commonly passed on.
    """

    def load(self, split: Split) -> Pools:
        """The images of a split, as in ``FewShotSet``."""
        tables = {name: self.root / f"{name}.csv" for name in SPLITS if (self.root / f"{name}.csv").is_file()}
        if split not in tables:
            raise FileNotFoundError(f"{self.root / split}.csv does not exist")
        rows = {name: _table(path) for name, path in tables.items()}
        _disjoint({name: {label for _, _, label in table} for name, table in rows.items()}, self.root)
        files: dict[str, list[str]] = {}
        seen: set[str] = set()
        for line, filename, label in rows[split]:
            path = self.root / "images" / filename
            if not path.is_file():
                raise FileNotFoundError(f"{tables[split]}, line {line}: {path} does not exist")
            if filename in seen:
                raise ValueError(f"{tables[split]}, line {line}: {filename} is listed twice")
            seen.add(filename)
            files.setdefault(label, []).append(str(path))
        return Pools(from_files(list(files.values()), list(files), self.form))


class RdFsl(_Files):
    """RD-FSL (CRLNet, arXiv 2502.01183): clean supports and hard queries in two pools; for test only.

    Reads ``root/<dataset>/<class>/{support*,query*}/*``, or a JSON object
    ``{class: [[support paths], [query paths]]}`` with paths relative to ``root``.

    Args:
        root: the folder of the benchmark.
        dataset: the folder of one of its data sets.
        index: the JSON file, relative to ``root``; null to read the folders.
    """

    def __init__(
        self,
        root: str,
        dataset: str,
        index: str | None = None,
        size: int = 224,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__(root, size, mean=mean, std=std)
        self.dataset, self.index = dataset, index

    def load(self, split: Split) -> Pools:
        """The two pools, as in ``FewShotSet``. Raises ``ValueError`` for any split but ``test``."""
        if split != "test":
            raise ValueError(f"RD-FSL is for test only and has no {split} classes; train on another set")
        classes = self._from_index(self.root / self.index) if self.index else self._from_folders()
        supports, queries = [pools[0] for pools in classes.values()], [pools[1] for pools in classes.values()]
        both = _resolved(supports) & _resolved(queries)
        if both:
            warnings.warn(
                f"{self.dataset}: {len(both)} images are in both the support and the query pool, "
                f"such as {min(both)}; accuracies will be too high",
                stacklevel=2,
            )
        names = list(classes)
        return Pools(from_files(supports, names, self.form, "support"), from_files(queries, names, self.form, "query"))

    def _from_folders(self) -> dict[str, tuple[list[str], list[str]]]:
        return {
            folder.name: (_pool(folder, "support"), _pool(folder, "query"))
            for folder in class_folders(self.root / self.dataset)
        }

    def _from_index(self, path: Path) -> dict[str, tuple[list[str], list[str]]]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(f"the index {path} does not exist") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path} must hold an object {{class: [[supports], [queries]]}}")
        classes: dict[str, tuple[list[str], list[str]]] = {}
        for name, pools in content.items():
            if not (
                isinstance(pools, list)
                and len(pools) == 2
                and all(isinstance(x, list) and all(isinstance(p, str) for p in x) for x in pools)
            ):
                raise ValueError(f"{path}: class {name!r} must have [[support paths], [query paths]]")
            classes[name] = ([str(self.root / p) for p in pools[0]], [str(self.root / p) for p in pools[1]])
        return classes


def cub_split(classes: Sequence[str]) -> dict[Split, list[str]]:
    """The usual split of CUB-200-2011: sorted class i is train if even, val if i mod 4 = 1, else test."""
    names = sorted(classes)
    return {"train": names[0::2], "val": names[1::4], "test": names[3::4]}


def fraction_split(classes: Sequence[str], fractions: tuple[float, float, float], seed: int) -> dict[Split, list[str]]:
    """A seeded shuffle of the sorted classes, cut at the rounded cumulative ``fractions``."""
    names = sorted(classes)
    shuffled = [names[i] for i in generator(seed).permutation(len(names))]
    first, second = round(fractions[0] * len(names)), round((fractions[0] + fractions[1]) * len(names))
    return {"train": shuffled[:first], "val": shuffled[first:second], "test": shuffled[second:]}


def _resolved(pools: Sequence[Sequence[str]]) -> set[Path]:
    return {Path(name).resolve() for pool in pools for name in pool}


def _pool(folder: Path, kind: str) -> list[str]:
    pools = sorted(path for path in folder.glob(f"{kind}*") if path.is_dir())
    if not pools:
        raise FileNotFoundError(f"class folder {folder} has no {kind}* folder")
    return [name for pool in pools for name in image_files(pool)]


def _table(path: Path) -> list[tuple[int, str, str]]:
    """(line, filename, label) of each row."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if missing := {"filename", "label"} - set(reader.fieldnames or ()):
            names = " and ".join(sorted(missing))
            raise ValueError(f"{path}, line 1: no column {names} in {reader.fieldnames}")
        rows = []
        for row in reader:
            if not (row["filename"] and row["label"]):
                raise ValueError(f"{path}, line {reader.line_num}: filename or label is empty")
            rows.append((reader.line_num, row["filename"], row["label"]))
    return rows


def _disjoint(classes: dict[Split, set[str]], origin: Path) -> None:
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        if shared := classes.get(first, set()) & classes.get(second, set()):  # type: ignore[call-overload]
            raise ValueError(
                f"{origin}: {first} and {second} share {len(shared)} classes, such as {min(shared)!r}; "
                "splits must not share a class"
            )
