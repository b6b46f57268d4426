import pickle

import numpy as np
import torch

from datamodules.augment import TorchvisionAugment
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
