import numpy as np
import pytest
import torch

from datamodules.images import ImageStore, Pools
from datamodules.pairs import sample_pairs


def store(counts: list[int]) -> ImageStore:
    label = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    image = torch.zeros(len(label), 1, 1, 1, dtype=torch.uint8)
    return ImageStore(image, label, tuple(f"c{i}" for i in range(len(counts))))


ONE = Pools(store([4, 2, 6, 8]))
TWO = Pools(store([4, 1, 6, 8]), store([5, 5, 1, 3]))


@pytest.mark.parametrize("pools", [ONE, TWO], ids=["one pool", "two pools"])
def test_an_epoch_is_half_and_half_and_labels_are_true(pools: Pools) -> None:
    queries = (pools.query or pools.support).label.numpy()
    for epoch in range(50):
        support, query, label = sample_pairs(pools, 0, epoch, np.arange(len(queries)))
        np.testing.assert_array_equal(query, np.arange(len(queries)))
        np.testing.assert_array_equal(label, 1 - query % 2)
        assert label.sum() == len(queries) / 2
        np.testing.assert_array_equal(pools.support.label.numpy()[support] == queries[query], label == 1)
        if pools.query is None:
            assert (support != query).all()


def test_partners_are_uniform() -> None:
    n = 6000
    draws = np.array([sample_pairs(ONE, 1, epoch, np.array([6, 7])) for epoch in range(n)])
    positive, negative = draws[:, 0, 0], draws[:, 0, 1]
    counts = np.bincount(positive, minlength=20)  # rows 6..11 are class 2; image 6 is the query
    assert np.flatnonzero(counts).tolist() == [7, 8, 9, 10, 11]
    assert abs(counts[7:12] - n / 5).max() < 4 * np.sqrt(n / 5)
    classes = np.bincount(ONE.support.label.numpy()[negative], minlength=4)
    assert classes[2] == 0
    assert abs(classes[[0, 1, 3]] - n / 3).max() < 4 * np.sqrt(n / 3)
    within = np.bincount(negative, minlength=20)[12:]
    assert abs(within - n / 24).max() < 4 * np.sqrt(n / 24)


def test_a_pair_depends_on_seed_epoch_and_index_alone() -> None:
    together = sample_pairs(ONE, 3, 5, np.arange(20))[0]
    np.testing.assert_array_equal(sample_pairs(ONE, 3, 5, np.array([13, 4]))[0], together[[13, 4]])
    assert (sample_pairs(ONE, 3, 6, np.arange(20))[0] != together).any()
    assert (sample_pairs(ONE, 4, 5, np.arange(20))[0] != together).any()


def test_with_two_pools_a_positive_may_be_any_image() -> None:
    support = np.array([sample_pairs(TWO, 0, epoch, np.array([0]))[0][0] for epoch in range(200)])
    assert set(support.tolist()) == {0, 1, 2, 3}


def test_bad_pools() -> None:
    with pytest.raises(ValueError, match=r"class 'c1' has 1 image.*positives need 2"):
        sample_pairs(Pools(store([3, 1])), 0, 0, np.arange(2))
    with pytest.raises(ValueError, match="need at least 2 classes to draw negatives"):
        sample_pairs(Pools(store([3])), 0, 0, np.arange(2))
    with pytest.raises(ValueError, match=r"'c0' has 0 image.*positives need 1"):
        sample_pairs(Pools(store([0, 3]), store([2, 2])), 0, 0, np.arange(2))
