"""Means with intervals over numbered samples."""

import pytest
import torch

from zoo.distributed import global_mean
from zoo.metrics import IndexedMean, confidence_interval


def test_interval_of_two_episodes() -> None:
    mean, half, n = confidence_interval(torch.tensor([60.0, 80.0]))
    assert (mean, n) == (70, 2)
    assert half == pytest.approx(1.96 * 10 / 2**0.5)
    assert half == pytest.approx(13.859, abs=1e-3)


def test_interval_without_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        confidence_interval(torch.tensor([]))


def test_random_labels_score_chance_within_the_interval() -> None:
    generator = torch.Generator().manual_seed(0)
    right = torch.randint(5, (2000, 75), generator=generator) == torch.randint(5, (2000, 75), generator=generator)
    mean, half, _ = confidence_interval(100 * right.double().mean(1))
    assert abs(mean - 20) < 2 * half
    assert half < 0.25


def test_a_number_that_comes_twice_counts_once() -> None:
    metric = IndexedMean()
    metric.update(torch.tensor([3.0, 1.0]), torch.tensor([7, 2]))
    metric.update(torch.tensor([1.0, 5.0]), torch.tensor([2, 4]))
    assert metric.compute().tolist() == [1, 5, 3]


def test_global_mean_on_one_process_is_the_plain_mean() -> None:
    assert global_mean(torch.tensor([6.0, 9.0]), torch.tensor(3)).tolist() == [2, 3]
