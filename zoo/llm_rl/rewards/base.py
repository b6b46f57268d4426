"""What a reward is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from zoo.llm_rl.batches import Sample


class Reward(ABC):
    """Scores the completions of one rank; all those of a prompt are among them."""

    @abstractmethod
    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        """One number a sample, in their order; None for a sample that it cannot score."""


class SampleReward(Reward):
    """A reward that looks at one sample at a time."""

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [self.one(sample) for sample in samples]

    @abstractmethod
    def one(self, sample: Sample) -> float | None:
        """The reward of one sample."""
