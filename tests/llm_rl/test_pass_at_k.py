"""pass@k against the table of n = 8, c = 2, and against all subsets counted out."""

from itertools import combinations

import pytest

from zoo.llm_rl.pass_at_k import mean_pass_at_k, pass_at_k


@pytest.mark.parametrize(("k", "expected"), [(1, 0.25), (2, 13 / 28), (4, 11 / 14), (8, 1.0)])
def test_two_of_eight(k, expected):
    assert pass_at_k(8, 2, k) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("correct", range(7))
def test_is_the_share_of_subsets_with_a_right_one(correct):
    for k in range(1, 7):
        subsets = list(combinations(range(6), k))
        share = sum(any(at < correct for at in subset) for subset in subsets) / len(subsets)
        assert pass_at_k(6, correct, k) == pytest.approx(share, abs=1e-15)


def test_mean_weighs_problems_equally():
    means = mean_pass_at_k({"a": [True, False], "b": [False] * 4}, ks=(1, 2))
    assert means == {"pass@1": 0.25, "pass@2": 0.5}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pass_at_k(4, 5, 1), "correct=5"),
        (lambda: pass_at_k(4, 1, 5), "k=5: must be from 1 to the 4"),
        (lambda: pass_at_k(4, 1, 0), "k=0"),
        (lambda: mean_pass_at_k({}), "nothing to take a mean of"),
        (lambda: mean_pass_at_k({"p7": [True]}, ks=(1, 2)), "'p7' has 1 samples, too few for k=2"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
