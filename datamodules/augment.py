"""Random changes of training images."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from datamodules.degrade import Degrade, Range


class Augment(ABC):
    """A random change of images that depends on each image and its key alone."""

    @abstractmethod
    def __call__(self, image: Tensor, keys: np.ndarray) -> Tensor:
        """uint8 [B, C, H', W'] for ``image`` [B, C, H, W] uint8 and ``keys`` [B] uint64."""


class TorchvisionAugment(Augment):
    """Random resized crop, AutoAugment (ImageNet policy), colour jitter and horizontal flip, image by image.

    The defaults are the usual recipe for few-shot training at 84 px. CRLNet's queries (official code) have
    ``autoaugment=True, jitter=0, flip=False``.

    Args:
        size: side of the images that come out, in pixels.
        scale: range of the crop's area, as a fraction of the image's.
        autoaugment: apply a random sub-policy of AutoAugment.
        jitter: strength of the change in brightness, contrast and saturation; 0 for none.
        flip: mirror half of the images.
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.08, 1.0),
        autoaugment: bool = False,
        jitter: float = 0.4,
        flip: bool = True,
    ) -> None:
        from torchvision.transforms import v2  # here, since most commands never augment

        steps: list[torch.nn.Module] = [v2.RandomResizedCrop(size, scale, antialias=True)]
        steps += [v2.AutoAugment()] * autoaugment
        steps += [v2.ColorJitter(jitter, jitter, jitter)] * (jitter > 0)
        steps += [v2.RandomHorizontalFlip()] * flip
        self.steps = v2.Compose(steps)

    def __call__(self, image: Tensor, keys: np.ndarray) -> Tensor:
        # torchvision draws from torch's global generator: seed it for each image, then put it back
        with torch.random.fork_rng(devices=[]):
            done = []
            for one, seed in zip(image, keys.tolist(), strict=True):
                torch.random.default_generator.manual_seed(seed)
                done.append(self.steps(one))
        return torch.stack(done)


class RandomAffine(Augment):
    """Random scale, shift and rotation of a whole batch in one sampling; an image's change depends on its key alone.

    Args:
        scale: range of the factor.
        shift: greatest shift in each direction, as a fraction of half the side.
        rotation: greatest rotation either way, in radians.
        ink: beyond the edge lies black, for light ink; False mirrors the edge, for photographs.
    """

    def __init__(self, scale: Range = (0.8, 1.2), shift: float = 0.2, rotation: float = 0.25, ink: bool = True) -> None:
        self.steps = Degrade(
            scale, shift, rotation, clutter=0, occlusion=None, blur=None, brightness=None, noise=0.0, ink=ink
        )

    def __call__(self, image: Tensor, keys: np.ndarray) -> Tensor:
        return self.steps(image, keys)
