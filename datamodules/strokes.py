"""Procedural stroke classes, clean and hard: a few-shot set of any size that needs no download."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from datamodules.degrade import Degrade
from datamodules.images import FewShotSet, ImageForm, ImageStore, Pools, Split, read_images
from datamodules.streams import key, uniform

STROKES = 3
CLUTTER_CLASSES = 64
# What the parts of a key stand for: the first part of every key below.
SHAPE, COLOUR, CHANGE = 0, 1, 2
CODE: dict[str, int] = {"train": 0, "val": 1, "test": 2, "clutter": 3}
CLEAN = Degrade((0.9, 0.9), shift=0, rotation=0.15, clutter=0, occlusion=None, blur=None, brightness=None, noise=0.02)
HARD = Degrade(clutter_weight=(1.0, 1.0), blur=None)


class StrokeClasses(FewShotSet):
    """Classes of three random quadratic strokes, coloured at random: only the shape tells them apart.

    Supports are clean (centred, scale 0.9, rotation within 0.15, noise 0.02) and queries hard (``Degrade``
    without blur; clutter are strokes of classes that are in no split). They serve the small experiments with
    CRLNet (arXiv 2502.01183). Class i of a split is a function of (seed, i), so 64 base classes are the first
    of 1,024, and the novel ones stay the same.

    Args:
        base_classes, val_classes, novel_classes: classes for train, val and test.
        images: clean images of each class, and as many hard ones.
        size: side in pixels.
        seed: of everything.
    """

    channels = 3
    mean = (0.074, 0.074, 0.074)
    std = (0.157, 0.157, 0.157)

    def __init__(
        self,
        base_classes: int = 64,
        novel_classes: int = 20,
        val_classes: int = 20,
        images: int = 40,
        size: int = 24,
        seed: int = 0,
    ) -> None:
        for name, value, least in (
            ("base_classes", base_classes, 1),
            ("novel_classes", novel_classes, 1),
            ("val_classes", val_classes, 1),
            ("images", images, 1),
            ("size", size, 8),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.classes: dict[Split, int] = {"train": base_classes, "val": val_classes, "test": novel_classes}
        self.images, self.size, self.seed = images, size, seed

    def load(self, split: Split) -> Pools:
        """The clean and the hard images of a split, as in ``FewShotSet``."""
        return Pools(self._store(split, "support"), self._store(split, "query"))

    def read(self, paths: Sequence[str]) -> Tensor:
        """Image files (light strokes on black), as in ``FewShotSet``."""
        return read_images(paths, ImageForm(self.size))

    def _store(self, split: Split, kind: str) -> ImageStore:
        hard = int(kind == "query")
        count = self.classes[split]
        glyphs = render(control_points(self.seed, CODE[split], np.arange(count)), self.size)
        bank = None
        if hard:
            strokes = control_points(self.seed, CODE["clutter"], np.arange(CLUTTER_CLASSES))
            bank = _coloured(
                render(strokes.flatten(0, 1)[:, None], self.size),
                key(self.seed, COLOUR, CODE["clutter"], np.arange(CLUTTER_CLASSES * STROKES)),
            )
        image = torch.empty((count * self.images, 3, self.size, self.size), dtype=torch.uint8)
        label = torch.arange(count).repeat_interleave(self.images)
        number = np.tile(np.arange(self.images), count)
        for rows in torch.arange(len(label)).split(2048):  # bounds the memory of the float images
            place = (CODE[split], hard, label[rows].numpy(), number[rows.numpy()])
            clean = _coloured(glyphs[label[rows]], key(self.seed, COLOUR, *place))
            image[rows] = (HARD if hard else CLEAN)(clean, key(self.seed, CHANGE, *place), bank)
        width = len(str(count - 1))
        return ImageStore(image, label, tuple(f"{split}{i:0{width}d}" for i in range(count)), (), kind)


def control_points(seed: int, code: int, index: np.ndarray) -> Tensor:
    """Three points in [-0.9, 0.9]^2 for each stroke of the classes ``index`` [N]: [N, 3, 3, 2]."""
    draws = uniform(key(seed, SHAPE, code, index), STROKES * 6)
    return torch.from_numpy(1.8 * draws - 0.9).float().view(-1, STROKES, 3, 2)


def render(points: Tensor, size: int) -> Tensor:
    """Draw quadratic Bezier strokes: ``points`` [N, S, 3, 2] in [-1, 1] to ink [N, size, size] in [0, 1].

    A pixel's ink falls linearly from 1 to 0 over one pixel about the stroke's edge; strokes are 0.07 of
    the side wide.
    """
    t = torch.linspace(0, 1, 2 * size)[:, None]
    basis = torch.cat([(1 - t) ** 2, 2 * t * (1 - t), t**2], 1)
    curves = (basis @ points).flatten(1, 2)
    centre = (2 * torch.arange(size) + 1) / size - 1
    pixels = torch.stack(torch.meshgrid(centre, centre, indexing="xy"), -1).view(-1, 2)
    distance = torch.cat([torch.cdist(pixels, c).min(-1).values for c in curves.split(64)])
    return (0.5 + (0.07 - distance) * size / 2).clamp(0, 1).view(-1, size, size)


def _coloured(ink: Tensor, keys: np.ndarray) -> Tensor:
    """Ink [B, H, W] in a colour of each key's own, no channel below 0.3: [B, 3, H, W] uint8."""
    colour = torch.from_numpy(0.3 + 0.7 * uniform(keys, 3)).float()
    return (ink[:, None] * colour[:, :, None, None] * 255).round().to(torch.uint8)
