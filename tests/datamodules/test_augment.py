import pickle
from collections import Counter

import numpy as np
import pytest
import torch

from datamodules.augment import RandomCropFlip, TorchvisionAugment
from datamodules.streams import key


def test_augmentation_depends_on_the_key_alone() -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, 20, 20), dtype=np.uint8))
    keys = key(0, np.arange(6))
    for augment in (TorchvisionAugment(12), TorchvisionAugment(12, autoaugment=True, jitter=0, flip=False)):
        before = torch.random.get_rng_state()
        found = augment(image, keys)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert found.shape == (6, 3, 12, 12)
        assert found.dtype == torch.uint8
        assert torch.equal(augment(image[[4, 1]], keys[[4, 1]]), found[[4, 1]])
        assert not torch.equal(augment(image, key(1, np.arange(6))), found)
        assert torch.equal(pickle.loads(pickle.dumps(augment))(image, keys), found)


def test_crop_and_flip_is_a_window_of_the_framed_image() -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(1, 256, (1, 2, 5, 7), dtype=np.uint8))
    framed = torch.zeros(1, 2, 9, 11, dtype=torch.uint8)
    framed[..., 2:7, 2:9] = image
    windows = {}
    for top in range(5):
        for left in range(5):
            window = framed[0, :, top : top + 5, left : left + 7]
            windows[window.numpy().tobytes()] = (top, left, False)
            windows[window.flip(-1).numpy().tobytes()] = (top, left, True)
    found = RandomCropFlip(padding=2)(image.expand(4000, -1, -1, -1), key(0, np.arange(4000)))
    assert found.dtype == torch.uint8
    seen = Counter(windows[one.numpy().tobytes()] for one in found)
    assert len(seen) == 50
    assert min(seen.values()) > 45  # 80 on average, standard deviation 9
    unflipped = RandomCropFlip(padding=2, flip=False)(image.expand(200, -1, -1, -1), key(0, np.arange(200)))
    assert not any(windows[one.numpy().tobytes()][2] for one in unflipped)
    keys = key(0, np.arange(4000))[[7, 3]]
    assert torch.equal(RandomCropFlip(padding=2)(image.expand(2, -1, -1, -1), keys), found[[7, 3]])
    assert torch.equal(RandomCropFlip(padding=0, flip=False)(image, key(0, np.arange(1))), image)
    with pytest.raises(ValueError, match="padding=-1"):
        RandomCropFlip(padding=-1)
