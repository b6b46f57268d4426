"""Noise masks: Beta cells, how a policy's outputs and a moving average make them, and the way from cells to pixels."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.distributed import global_mean

Upsample = Literal["nearest", "bilinear"]


def mix(base: Tensor, output: Tensor, weight: float) -> Tensor:
    """Log-concentrations ``weight * base + (1 - weight) * output``: [N] and [B, N] to [B, N].

    From the official code, with weight 0.9.
    """
    return weight * base + (1 - weight) * output


def moving_average(base: Tensor, output: Tensor, decay: float) -> Tensor:
    """``decay * base + (1 - decay) * output``: both [N]; the official code's update of its base, with decay 0.99."""
    return decay * base + (1 - decay) * output


@torch.no_grad()
def sample_cells(a: Tensor, b: Tensor) -> Tensor:
    """Beta(exp a, exp b) of each cell, [B, N] in [0, 1], without gradient; from torch's generator of the device."""
    return torch.distributions.Beta(a.exp(), b.exp(), validate_args=False).sample()


def gaussian_kernel(kernel: int, sigma: float) -> Tensor:
    """``exp(-x^2 / (2 sigma^2))`` at the ``kernel`` integers around 0, scaled to sum 1: [kernel] float32."""
    x = torch.arange(kernel, dtype=torch.float64) - (kernel - 1) / 2
    weight = torch.exp(-0.5 * (x / sigma) ** 2)
    return (weight / weight.sum()).float()


def pixel_matrix(grid: int, size: int, upsample: Upsample, kernel: int, sigma: float) -> Tensor:
    """What ``grid`` cells of an axis give to each of its ``size`` pixels, [size, grid]; rows sum to 1.

    Upsampling and the Gaussian blur (borders reflected) are linear and act on the axes one by one, so that a mask is
    rows @ cells @ columns^T: two small products in place of an interpolation, a padding and two convolutions.

    Raises:
        ValueError: if the grid is finer than the pixels, or the kernel reaches beyond a reflected border.
    """
    if grid > size:
        raise ValueError(f"mask.grid={grid} is larger than an image side of {size} pixels: use at most {size}")
    if kernel // 2 >= size:
        raise ValueError(
            f"mask.kernel={kernel} is too wide for an image side of {size} pixels: use at most {2 * size - 1}"
        )
    mode = {"nearest": "nearest", "bilinear": "linear"}[upsample]
    cells = F.interpolate(torch.eye(grid)[None], size=size, mode=mode)  # [1, grid, size]
    padded = F.pad(cells, (kernel // 2, kernel // 2), mode="reflect")
    return F.conv1d(padded.transpose(0, 1), gaussian_kernel(kernel, sigma)[None, None])[:, 0].T.contiguous()


def apply_mask(
    image: Tensor,
    mask: Tensor,
    how: Literal["multiply", "add"] = "multiply",
    mean: Tensor | None = None,
    std: Tensor | None = None,
) -> Tensor:
    """The masked image: ``image`` [B, C, H, W] normalised, ``mask`` [B, 1, H, W] (or [1, 1, H, W]) in [0, 1].

    ``multiply``: image * mask; ``add``: image + mask - 1/2 (a mask's mean is about 1/2). With the ``mean`` and ``std``
    of the normalisation, [C, 1, 1] each, this is done on pixels in [0, 1], so that a mask of 0 means black; without
    them on the normalised values, where 0 means the mean grey (the official code).
    """
    if mean is not None and std is not None:
        image = image * std + mean
    image = image * mask if how == "multiply" else image + (mask - 0.5)
    return image if mean is None or std is None else (image - mean) / std


class NoiseMask(nn.Module):
    """The masks of a run: their grid and shape, and the base distribution that all ranks share.

    The base log-concentrations ``base_a`` and ``base_b`` [grid^2] start uniform in [0, 1] (from torch's generator, so
    seeded by the run; ranks take rank 0's) and then follow the policy's outputs. They are buffers: a checkpoint keeps
    them, and every rank holds the same, as the mean that they follow spans the images of all ranks.

    Args:
        grid: cells along each side; an image is covered by grid x grid of them, whatever its height and width.
        kernel, sigma: Gaussian blur of the upsampled mask in pixels; kernel 1 leaves it alone.
        upsample: from cells to pixels.
        apply: multiply the image by the mask, or add the mask less 1/2.
        space: apply it to normalised images (official) or to pixels in [0, 1], which takes ``mean`` and ``std``.
        mean, std: of the normalisation of each channel, for ``space: pixel``.
        mix: weight of the base in a mask's log-concentrations.
        ema: decay of the base, a step.
        clamp: lowest and highest log-concentration, such as [-3, 6]; null for no guard (official).

    Raises:
        ValueError: for a value out of range; when a mask is made, for an image smaller than the grid.
    """

    base_a: Tensor
    base_b: Tensor
    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        grid: int = 64,
        kernel: int = 13,
        sigma: float = 6.0,
        upsample: Upsample = "nearest",
        apply: Literal["multiply", "add"] = "multiply",
        space: Literal["normalised", "pixel"] = "normalised",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        mix: float = 0.9,
        ema: float = 0.99,
        clamp: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        if grid < 1:
            raise ValueError(f"mask.grid={grid}: must be at least 1 cell")
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"mask.kernel={kernel}: must be odd and at least 1")
        if not sigma > 0:
            raise ValueError(f"mask.sigma={sigma}: must be above 0")
        for name, value in (("mix", mix), ("ema", ema)):
            if not 0 <= value <= 1:
                raise ValueError(f"mask.{name}={value}: must lie in [0, 1]")
        if clamp is not None and not clamp[0] < clamp[1]:
            raise ValueError(f"mask.clamp={list(clamp)}: the lowest value must come first")
        if (space == "pixel") != (mean is not None and std is not None):
            raise ValueError(
                f"mask.space={space} with mask.mean={mean}, mask.std={std}: pixel takes the mean and std that images "
                "were normalised by, normalised takes neither"
            )
        self.grid, self.kernel, self.sigma, self.upsample = grid, kernel, sigma, upsample
        self.apply_as, self.mix, self.ema, self.clamp = apply, mix, ema, clamp
        self.register_buffer("base_a", torch.rand(grid**2))
        self.register_buffer("base_b", torch.rand(grid**2))
        self.register_buffer("mean", None if mean is None else torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", None if std is None else torch.tensor(std).view(-1, 1, 1), persistent=False)
        self._matrices: dict[tuple[int, torch.device], Tensor] = {}

    def concentrations(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Log-concentrations a, b [B, grid^2] of each image from the policy's outputs, which alone get gradient."""
        a, b = mix(self.base_a, u, self.mix), mix(self.base_b, v, self.mix)
        return (a, b) if self.clamp is None else (a.clamp(*self.clamp), b.clamp(*self.clamp))

    def base(self, images: int) -> tuple[Tensor, Tensor]:
        """The base distribution for each of ``images``, [images, grid^2]: no policy."""
        return self.base_a.expand(images, -1), self.base_b.expand(images, -1)

    @torch.no_grad()
    def follow(self, u: Tensor, v: Tensor) -> None:
        """Move the base towards the mean of the outputs [B, grid^2] over the images of all ranks."""
        total = torch.cat([u.sum(0), v.sum(0)])
        mean_u, mean_v = global_mean(total, u.new_full((), len(u))).chunk(2)
        self.base_a.copy_(moving_average(self.base_a, mean_u, self.ema))
        self.base_b.copy_(moving_average(self.base_b, mean_v, self.ema))

    def pixels(self, cells: Tensor, height: int, width: int) -> Tensor:
        """Cells [B, grid^2] as a mask [B, 1, height, width]."""
        rows, columns = self._matrix(height, cells.device), self._matrix(width, cells.device)
        return (rows @ cells.view(-1, self.grid, self.grid) @ columns.T)[:, None]

    def forward(self, image: Tensor, cells: Tensor) -> Tensor:
        """The images [B, C, H, W] under the masks of ``cells`` [B, grid^2] or [1, grid^2]."""
        return apply_mask(image, self.pixels(cells, *image.shape[-2:]), self.apply_as, self.mean, self.std)

    def _matrix(self, size: int, device: torch.device) -> Tensor:
        if (size, device) not in self._matrices:
            with torch.inference_mode(False):  # validation may come first, and training needs plain tensors
                matrix = pixel_matrix(self.grid, size, self.upsample, self.kernel, self.sigma)
                self._matrices[size, device] = matrix.to(device)
        return self._matrices[size, device]
