import numpy as np
import pytest

from datamodules.streams import generator, key, uniform


def test_known_values() -> None:
    # SplitMix64 from state 0 gives 0xE220A8397B1DCDAF first (its authors' reference code).
    assert uniform(np.zeros(1, dtype=np.uint64), 1)[0, 0] == (0xE220A8397B1DCDAF >> 11) / 2**53
    assert key(0, 1, np.arange(3)).tolist() == [
        7174793512680495251,
        11779430641948426483,
        9561072727905763632,
    ]
    assert key(-1, 3) == key(2**64 - 1, 3) == 3868414398414512434
    np.testing.assert_allclose(
        uniform(key(0, 1, np.arange(2)), 2), [[0.93274184, 0.25242798], [0.10001114, 0.25289084]], atol=5e-9
    )


def test_a_key_depends_on_its_parts_alone() -> None:
    together = key(3, np.arange(50)[:, None], np.arange(7))
    assert together.shape == (50, 7)
    assert together[31, 4] == key(3, 31, 4)
    draws = uniform(together.ravel(), 9)
    np.testing.assert_array_equal(draws[31 * 7 + 4], uniform(key(3, 31, np.array([4])), 20)[0, :9])


def test_order_and_number_of_parts_matter() -> None:
    grid = np.arange(40)
    keys = key(0, grid[:, None], grid).ravel()
    assert len(set(keys.tolist())) == 1600
    assert len({int(k) for k in (key(0, 0), key(0, 0, 0), key(0), key(0, 0, 0, 0))}) == 4
    assert key(1, 2) != key(2, 1)


@pytest.mark.parametrize("axis", ["keys", "draws"])
def test_uniform_and_uncorrelated(axis: str) -> None:
    n = 200_000
    u = uniform(key(7, np.arange(n)), 1)[:, 0] if axis == "keys" else uniform(key(7, np.zeros(1, int)), n)[0]
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 1 / 2) < 4 / np.sqrt(12 * n)
    assert abs(u.var() - 1 / 12) < 4 * np.sqrt(1 / 180 / n)
    counts = np.bincount((u * 100).astype(int), minlength=100)
    chi2 = ((counts - n / 100) ** 2 / (n / 100)).sum()
    assert 50 < chi2 < 158  # 99 degrees of freedom, beyond 1e-4 on either side
    for lag in (1, 2, 7):
        assert abs(np.corrcoef(u[:-lag], u[lag:])[0, 1]) < 4 / np.sqrt(n)


def test_generators_of_other_parts_differ() -> None:
    assert generator(5, 1, 2).random() == generator(5, 1, 2).random()
    assert generator(5, 1, 2).random() != generator(5, 2, 1).random()
