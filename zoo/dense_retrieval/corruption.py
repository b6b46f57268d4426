"""Documents with words or tokens masked out, so that a model must not rely on a few of them."""

from collections.abc import Sequence

import numpy as np

MASK = "_"


def corrupt_words(text: str, rate: float, rng: np.random.Generator) -> str:
    """``text`` with each word, between white space, independently replaced by ``_`` with probability ``rate``.

    LLM-QL, arXiv 2504.05216, "document corruption". White space becomes single spaces; a ``rate`` of 0 returns the
    text untouched and draws nothing.
    """
    if rate == 0:
        return text
    words = text.split()
    return " ".join(MASK if hit else word for word, hit in zip(words, rng.random(len(words)) < rate, strict=True))


def corrupt_tokens(
    tokens: Sequence[int], maskable: Sequence[bool], mask: int, rate: float, rng: np.random.Generator
) -> list[int]:
    """``tokens``, of which each ``maskable`` one is independently replaced by ``mask`` with probability ``rate``."""
    hits = (rng.random(len(tokens)) < rate) & np.asarray(maskable, dtype=bool)
    return [mask if hit else token for token, hit in zip(tokens, hits, strict=True)]


def sample_generator(key: int) -> np.random.Generator:
    """The stream of a sample by its 64-bit key, signed or not."""
    return np.random.default_rng(key % 2**64)
