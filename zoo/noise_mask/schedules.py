"""Learning-rate schedules as factors of the epoch, one for each parameter group of an optimiser."""

import math
from abc import ABC, abstractmethod


class Schedule(ABC):
    """The factor of a group's learning rate in epoch 0, 1, ...

    A scheduler of torch drives all groups of an optimiser alike; where each has its own, a factor is all it takes.
    """

    @abstractmethod
    def __call__(self, epoch: int) -> float: ...


class Constant(Schedule):
    """The factor 1."""

    def __call__(self, epoch: int) -> float:
        return 1.0


class StepDecay(Schedule):
    """``factor`` to the number of whole ``every`` epochs that have passed. Raises ``ValueError`` if ``every`` < 1."""

    def __init__(self, every: int = 30, factor: float = 0.1) -> None:
        if every < 1:
            raise ValueError(f"StepDecay.every={every}: must be at least 1 epoch")
        self.every, self.factor = every, factor

    def __call__(self, epoch: int) -> float:
        return self.factor ** (epoch // self.every)


class Cosine(Schedule):
    """Half a cosine from 1 to 0 over ``epochs``, 0 after them. Raises ``ValueError`` if ``epochs`` < 1."""

    def __init__(self, epochs: int) -> None:
        if epochs < 1:
            raise ValueError(f"Cosine.epochs={epochs}: must be at least 1")
        self.epochs = epochs

    def __call__(self, epoch: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(epoch / self.epochs, 1)))


class Warmup(Schedule):
    """A line from ``start`` to 1 over ``epochs``, and then another schedule from its own epoch 0.

    Raises ``ValueError`` if ``epochs`` < 1.
    """

    def __init__(self, epochs: int, start: float = 0.01, then: Schedule | None = None) -> None:
        if epochs < 1:
            raise ValueError(f"Warmup.epochs={epochs}: must be at least 1")
        self.epochs, self.start, self.then = epochs, start, then or Constant()

    def __call__(self, epoch: int) -> float:
        if epoch < self.epochs:
            return self.start + (1 - self.start) * epoch / self.epochs
        return self.then(epoch - self.epochs)
