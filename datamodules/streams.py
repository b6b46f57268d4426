"""Random numbers as pure functions of integers: the same draw for any batch, worker, rank or resumed run."""

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)


def _mix(state: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64-bit words."""
    with np.errstate(over="ignore"):
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))


def _word(value: int | np.ndarray) -> np.ndarray:
    return np.asarray(value & 0xFFFFFFFFFFFFFFFF if isinstance(value, int) else value).astype(np.uint64)


def key(seed: int | np.ndarray, *parts: int | np.ndarray) -> np.ndarray:
    """The 64-bit key of (seed, parts...), uint64 of the parts' broadcast shape.

    The order of the parts matters: each is mixed into the key of those before it.
    """
    state = _mix(_word(seed) + _STEP)
    with np.errstate(over="ignore"):
        for part in parts:
            state = _mix((state ^ _mix(_word(part))) + _STEP)
    return state


def uniform(keys: np.ndarray, n: int) -> np.ndarray:
    """``n`` numbers in [0, 1) for each key [B] uint64: float64 [B, n]; the first m are the same for any n."""
    with np.errstate(over="ignore"):
        counter = np.arange(1, n + 1, dtype=np.uint64) * _STEP
        words = _mix(_word(keys)[..., None] + counter)
    return (words >> np.uint64(11)) * 2.0**-53


def generator(seed: int, *parts: int) -> np.random.Generator:
    """A NumPy generator of its own for (seed, parts...), for draws that ``uniform`` does not cover."""
    return np.random.default_rng(int(key(seed, *parts)))
