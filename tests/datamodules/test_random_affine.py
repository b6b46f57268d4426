"""Random affine changes of a batch."""

import numpy as np
import torch

from datamodules.augment import RandomAffine
from datamodules.streams import key


def test_an_image_changes_by_its_key_alone_and_the_identity_range_changes_nothing() -> None:
    image = (torch.arange(3 * 20 * 20) % 256).to(torch.uint8).view(3, 1, 20, 20)
    keys = key(0, np.arange(3))
    changed = RandomAffine()(image, keys)
    assert torch.equal(RandomAffine()(image[1:2], keys[1:2]), changed[1:2])
    assert (changed != image).float().mean() > 0.5
    assert torch.equal(RandomAffine(scale=(1.0, 1.0), shift=0.0, rotation=0.0)(image, keys), image)
