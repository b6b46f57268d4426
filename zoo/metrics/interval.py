"""Means with 95% intervals over numbered samples, exact over any number of ranks."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat


class Interval(NamedTuple):
    """A mean, the half-width of its 95% interval, and the number of samples."""

    mean: float
    ci95: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.ci95:.2f}"


def confidence_interval(values: Tensor) -> Interval:
    """Mean and ``1.96 * s / sqrt(n)`` of [n] samples, s with ddof 0 (the field's few-shot protocol).

    It covers the sampling of episodes, not of training runs.

    Raises:
        ValueError: without samples.
    """
    if values.numel() == 0:
        raise ValueError("confidence_interval needs at least one sample, got none")
    values = values.double()
    half = 1.96 * values.std(correction=0) / values.numel() ** 0.5
    return Interval(values.mean().item(), half.item(), values.numel())


def first_of_each(number: Tensor) -> Tensor:
    """Rows of [n] int64 numbers such that each number comes once, in ascending order, by its first row."""
    order = torch.argsort(number, stable=True)
    ordered = number[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first]


class IndexedMean(Metric):
    """Collects one value a sample, each under its own number; a number that comes twice counts once.

    So samplers may pad a rank's last batch, and the result is the same for any number of ranks.
    """

    full_state_update = False
    value: list[Tensor]
    index: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("value", default=[], dist_reduce_fx="cat")
        self.add_state("index", default=[], dist_reduce_fx="cat")

    def update(self, value: Tensor, index: Tensor) -> None:
        """Add [n] values under [n] int64 numbers."""
        self.value.append(value)
        self.index.append(index)

    def compute(self) -> Tensor:
        """The values in the order of their numbers, [distinct numbers]."""
        value, index = dim_zero_cat(self.value), dim_zero_cat(self.index)
        return value[first_of_each(index)]
