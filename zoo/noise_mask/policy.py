"""The policy network: an image to the log-concentrations of its mask's cells."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.nn import Backbone, TimmBackbone


def head(width: int, cells: int) -> nn.Sequential:
    """[B, width] to [B, cells]: two blocks of Linear, BatchNorm and ReLU, then Linear (official code)."""
    blocks = [layer for _ in range(2) for layer in (nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU())]
    return nn.Sequential(*blocks, nn.Linear(width, cells))


class MaskPolicy(nn.Module):
    """Images to the two outputs (u, v) that move the log-concentrations of a mask's cells.

    Masks are drawn from torch's generator, which the command line seeds before each training step by (seed, epoch,
    batch, rank): so they differ between ranks, and a resumed run draws what the unbroken one would have.

    Each head runs once a step. The official code runs it twice, with and without gradient, so that the running
    statistics of its BatchNorm move twice; nothing reads them.

    Args:
        cells: number of cells of a mask, grid^2.
        extractor: images to maps, averaged over positions; null for timm's ``resnet10t``, for three channels.
        input_size: height and width to which the policy's copy of the images is averaged down; null for the images
            as they are (official). The policy is the greater part of what masks cost.
    """

    def __init__(self, cells: int, extractor: Backbone | None = None, input_size: int | None = None) -> None:
        super().__init__()
        if input_size is not None and input_size < 1:
            raise ValueError(f"policy.input_size={input_size}: must be at least 1 pixel")
        self.extractor = (extractor or TimmBackbone("resnet10t")).to(memory_format=torch.channels_last)
        self.input_size = input_size
        self.head_a = head(self.extractor.channels, cells)
        self.head_b = head(self.extractor.channels, cells)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """u, v [B, cells] float32 of ``image`` [B, C, H, W]."""
        if self.input_size is not None:
            image = F.adaptive_avg_pool2d(image, self.input_size)
        features = self.extractor(image).mean((-2, -1))
        return self.head_a(features).float(), self.head_b(features).float()
