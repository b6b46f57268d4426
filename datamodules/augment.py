"""Random changes of training images."""

from abc import ABC, abstractmethod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.degrade import Degrade, Range
from datamodules.streams import uniform


class Augment(ABC):
    """A random change of images that depends on each image and its key alone.

    ``batched`` tells that it changes a whole batch at once, on the device of its images.
    """

    batched = False

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

    batched = True

    def __init__(self, scale: Range = (0.8, 1.2), shift: float = 0.2, rotation: float = 0.25, ink: bool = True) -> None:
        self.steps = Degrade(
            scale, shift, rotation, clutter=0, occlusion=None, blur=None, brightness=None, noise=0.0, ink=ink
        )

    def __call__(self, image: Tensor, keys: np.ndarray) -> Tensor:
        return self.steps(image, keys)


class RandomCropFlip(Augment):
    """Random crop out of the image in a black frame, and horizontal flip: the usual CIFAR recipe, in one gather.

    Args:
        padding: width of the frame, and so the greatest shift in each direction, in pixels.
        flip: mirror half of the images.
    """

    batched = True

    def __init__(self, padding: int = 4, flip: bool = True) -> None:
        if padding < 0:
            raise ValueError(f"RandomCropFlip.padding={padding}: must be at least 0")
        self.padding, self.flip = padding, flip

    def __call__(self, image: Tensor, keys: np.ndarray) -> Tensor:
        height, width = image.shape[-2:]
        draws = torch.from_numpy(uniform(keys, 3))
        # whole numbers before the move: some devices have no float64
        corner = (draws[:, :2] * (2 * self.padding + 1)).long().to(image.device)
        row = corner[:, :1] + torch.arange(height, device=image.device)
        column = torch.arange(width, device=image.device).expand(len(keys), -1)
        if self.flip:
            column = torch.where((draws[:, 2:] < 0.5).to(image.device), width - 1 - column, column)
        place = row[:, :, None] * (width + 2 * self.padding) + (corner[:, 1:] + column)[:, None, :]
        index = place.view(len(keys), 1, -1).expand(-1, image.shape[1], -1)
        framed = F.pad(image, [self.padding] * 4)
        return framed.flatten(2).gather(2, index).view(image.shape)
