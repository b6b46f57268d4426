"""How many words are masked, which are not, and that a key decides."""

import numpy as np

from zoo.dense_retrieval.corruption import corrupt_tokens, corrupt_words, sample_generator


def test_rate_zero_returns_the_text_untouched() -> None:
    text = " two  spaces\nand a line "
    assert corrupt_words(text, 0.0, sample_generator(1)) == text


def test_rate_one_masks_every_word_and_keeps_their_number() -> None:
    assert corrupt_words(" two  spaces\nand a line ", 1.0, sample_generator(1)) == "_ _ _ _ _"


def test_rate_of_words_within_three_deviations() -> None:
    text = " ".join(f"w{i}" for i in range(10_000))
    words = corrupt_words(text, 0.6, sample_generator(7)).split(" ")
    assert len(words) == 10_000
    assert abs(words.count("_") - 6000) <= 150
    assert all(word in ("_", f"w{i}") for i, word in enumerate(words))


def test_neighbouring_words_are_masked_independently() -> None:
    words = corrupt_words(" ".join(["w"] * 40_000), 0.5, sample_generator(3)).split(" ")
    hit = np.array([word == "_" for word in words], float)
    assert abs(np.corrcoef(hit[:-1], hit[1:])[0, 1]) < 0.015  # three deviations of 1 / sqrt(40000)


def test_tokens_that_are_not_maskable_stay() -> None:
    tokens = list(range(100, 10_100))
    maskable = [i % 2 == 0 for i in range(10_000)]
    found = corrupt_tokens(tokens, maskable, 4, 0.6, sample_generator(5))
    assert found[1::2] == tokens[1::2]
    assert abs(found.count(4) - 3000) <= 104  # three deviations of sqrt(5000 * 0.24)


def test_the_key_decides_signed_or_not() -> None:
    text = " ".join(["w"] * 64)
    masked = [corrupt_words(text, 0.5, sample_generator(key)) for key in (-1, 2**64 - 1, 0)]
    assert masked[0] == masked[1] != masked[2]
