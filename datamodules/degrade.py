"""Hard versions of clean images: small, shifted, turned, cluttered, occluded, blurred, dark, noisy."""

import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.streams import uniform

Range = tuple[float, float]
# Clutter is what a square window (a fraction of the side) shows of another image, shrunk by a factor.
CLUTTER_WINDOW, CLUTTER_SCALE = 0.5, (0.4, 0.8)
DRAWS_IMAGE, DRAWS_CLUTTER = 11, 8


class Degrade:
    """Degrades a batch of images; what happens to an image depends on its key and the bank alone.

    The steps in order, each switched off by 0 or None. All lengths are fractions, so that strengths mean the
    same at any resolution. The defaults are those of the procedural hard images of the CRLNet experiments,
    with a slight blur added.

    Args:
        scale: range of the factor by which the image is shrunk.
        shift: greatest shift in each direction, as a fraction of half the side.
        rotation: greatest rotation either way, in radians.
        clutter: number of pieces of other images that are laid over each image.
        clutter_weight: range of their weight against the image itself, 1 for full strength.
        occlusion: range of the side of a square of one random grey level, as a fraction of the image's side.
        blur: range of a Gaussian's standard deviation, as a fraction of the side.
        brightness: range of the factor on all pixels.
        noise: standard deviation of Gaussian noise, where pixels lie in [0, 1].
        ink: True for light ink on black: what lies beyond the edge is black, and clutter is laid over by
            maximum. False for photographs: the edge is a mirror, and clutter is blended in by weight.
    """

    def __init__(
        self,
        scale: Range | None = (0.6, 0.85),
        shift: float = 0.3,
        rotation: float = 0.3,
        clutter: int = 2,
        clutter_weight: Range = (0.3, 0.6),
        occlusion: Range | None = (0.17, 0.29),
        blur: Range | None = (0.0, 0.02),
        brightness: Range | None = (0.5, 1.0),
        noise: float = 0.05,
        ink: bool = True,
    ) -> None:
        _check_range("scale", scale, 0.1, 4.0)
        _check_range("clutter_weight", clutter_weight, 0.0, 1.0)
        _check_range("occlusion", occlusion, 0.0, 1.0)
        _check_range("blur", blur, 0.0, 0.25)
        _check_range("brightness", brightness, 0.0, 2.0)
        limits = (("shift", shift, 1.0), ("rotation", rotation, math.pi), ("noise", noise, 1.0))
        for name, value, high in limits:
            if not 0 <= value <= high:
                raise ValueError(f"{name} must lie in [0, {high:.4g}], got {value}")
        if not 0 <= clutter <= 16:
            raise ValueError(f"clutter must be a number of pieces in [0, 16], got {clutter}")
        self.scale, self.shift, self.rotation, self.clutter = scale or None, shift, rotation, clutter
        self.clutter_weight = clutter_weight
        self.occlusion, self.blur = occlusion or None, blur or None
        self.brightness, self.noise, self.ink = brightness or None, noise, ink

    def __call__(self, image: Tensor, keys: np.ndarray, bank: Tensor | None = None) -> Tensor:
        """The degraded ``image`` [B, C, H, W] uint8, on its device.

        ``keys`` [B] uint64 of ``datamodules.streams.key``; ``bank`` [M, C, H, W] uint8 holds the images that
        clutter is taken from. Raises ``ValueError`` for shapes or dtypes that do not fit, and for clutter
        without a bank.
        """
        if image.dtype != torch.uint8 or image.ndim != 4:
            raise ValueError(f"images must be [B, C, H, W] uint8, got {list(image.shape)} {image.dtype}")
        if keys.shape != (len(image),):
            raise ValueError(f"keys must be [{len(image)}], one for each image, got {list(keys.shape)}")
        if self.clutter and (bank is None or not len(bank) or bank.shape[1:] != image.shape[1:]):
            found = None if bank is None else list(bank.shape)
            raise ValueError(
                f"clutter={self.clutter} needs a bank of images of shape {list(image.shape[1:])}, got {found}"
            )
        geometry = bool(self.scale or self.shift or self.rotation)
        if not (geometry or self.clutter or self.occlusion or self.blur or self.brightness or self.noise):
            return image
        draws = uniform(keys, DRAWS_IMAGE + DRAWS_CLUTTER * self.clutter)
        u = torch.from_numpy(draws).to(device=image.device, dtype=torch.float32)
        x = image.float() / 255
        if geometry or self.clutter:
            x = self._compose(x, u, bank)
        if self.occlusion:
            side = _between(u[:, 4], self.occlusion)
            x = torch.where(_square(x, side, u[:, 5], u[:, 6]), u[:, 7, None, None, None], x)
        if self.blur:
            x = gaussian_blur(x, _between(u[:, 8], self.blur) * x.shape[-1], self.blur[1] * x.shape[-1])
        if self.brightness:
            x = x * _between(u[:, 9], self.brightness)[:, None, None, None]
        if self.noise:
            x = x + self.noise * _noise(u[:, 10], x[0].numel()).view_as(x)
        return (x * 255).round().clamp(0, 255).to(torch.uint8)

    def _compose(self, x: Tensor, u: Tensor, bank: Tensor | None) -> Tensor:
        """Move each image and lay its clutter over it: one sampling of B * (1 + clutter) images."""
        scale = _between(u[:, 0], self.scale) if self.scale else torch.ones_like(u[:, 0])
        angle = (2 * u[:, 1] - 1) * self.rotation
        parts, matrices = [x], [inverse_affine(scale, angle, (2 * u[:, 2:4] - 1) * self.shift)]
        pieces = u[:, DRAWS_IMAGE:].unflatten(1, (self.clutter, DRAWS_CLUTTER))
        for v in pieces.unbind(1):
            assert bank is not None
            chosen = (v[:, 0] * len(bank)).long().clamp(max=len(bank) - 1)
            parts.append(bank[chosen.to(bank.device)].to(x.device).float() / 255)
            turn = (2 * v[:, 2] - 1) * math.pi
            matrices.append(inverse_affine(_between(v[:, 1], CLUTTER_SCALE), turn, 1.2 * v[:, 3:5] - 0.6))
        stacked = torch.cat(parts)
        grid = F.affine_grid(torch.cat(matrices), list(stacked.shape), align_corners=False)
        padding = "zeros" if self.ink else "reflection"
        sampled = F.grid_sample(stacked, grid, padding_mode=padding, align_corners=False)
        moved, *clutter = sampled.split(len(x))
        for v, piece in zip(pieces.unbind(1), clutter, strict=True):
            weight = _between(v[:, 5], self.clutter_weight)[:, None, None, None]
            inside = _square(x, torch.full_like(v[:, 6], CLUTTER_WINDOW), v[:, 6], v[:, 7])
            if self.ink:
                moved = torch.where(inside, torch.maximum(moved, weight * piece), moved)
            else:
                moved = torch.where(inside, torch.lerp(moved, piece, weight), moved)
        return moved


def inverse_affine(scale: Tensor, angle: Tensor, shift: Tensor) -> Tensor:
    """Matrices [B, 2, 3] from output to input coordinates, both [-1, 1], for ``affine_grid``.

    They scale by ``scale`` [B], turn by ``angle`` [B] radians, then move by ``shift`` [B, 2] (x, y): an
    output point p samples the input at R(-angle) (p - shift) / scale.
    """
    cos, sin = angle.cos() / scale, angle.sin() / scale
    rotation = torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], 1)
    return torch.cat([rotation, -rotation @ shift[:, :, None]], 2)


def gaussian_blur(x: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Blur each of ``x`` [B, C, H, W] with its own ``sigma`` [B] in pixels (0 leaves it as it is).

    ``largest`` bounds sigma: kernels reach 3 * ``largest`` pixels either way. Edges are repeated.
    """
    radius = max(1, math.ceil(3 * largest))
    for _ in range(2):  # along the last axis, then, transposed, along the other
        side = x.shape[-1]
        place = torch.arange(-radius, side + radius, device=x.device)
        offset = place - torch.arange(side, device=x.device)[:, None]
        weight = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None, None]) ** 2)
        weight = weight / weight.sum(-1, keepdim=True)
        padded = F.pad(x, (radius, radius, 0, 0), mode="replicate")
        # a product of matrices: a grouped convolution rounds differently from one batch size to the next
        x = (padded.flatten(1, 2) @ weight.mT).unflatten(1, x.shape[1:3]).mT
    return x


def _between(u: Tensor, bounds: Range) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * u


def _square(x: Tensor, side: Tensor, left: Tensor, top: Tensor) -> Tensor:
    """Masks [B, 1, H, W] of squares: ``side`` [B] as a fraction, corners in [0, 1) over where they fit."""

    def span(corner: Tensor, pixels: int) -> Tensor:
        length = (pixels * side).round()
        start = ((pixels - length + 1) * corner).floor().clamp(max=pixels - length)[:, None]
        place = torch.arange(pixels, device=x.device)
        return (place >= start) & (place < start + length[:, None])

    return (span(top, x.shape[2])[:, :, None] & span(left, x.shape[3])[:, None, :])[:, None]


@cache
def _normals() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal(1 << 18, dtype=np.float32))


def _noise(place: Tensor, n: int) -> Tensor:
    """Standard normal numbers [B, n], read from one fixed table from a ``place`` [B] in [0, 1) on.

    A table, since hashing a fresh number for every pixel costs more than all else together.
    """
    table = _normals().to(place.device)
    start = (place * len(table)).long()
    return table[(start[:, None] + torch.arange(n, device=place.device)) % len(table)]


def _check_range(name: str, value: Range | None, low: float, high: float) -> None:
    if value and not (len(value) == 2 and low <= value[0] <= value[1] <= high):
        raise ValueError(f"{name} must be [low, high] within [{low}, {high}] or null, got {value}")
