"""Rewards that are wrong on purpose: the controls of RandomCalculation (arXiv 2507.10532)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datamodules.streams import key, uniform
from zoo.llm_rl.batches import Sample
from zoo.llm_rl.rewards.answers import ANYWHERE, Place, canonical, extract
from zoo.llm_rl.rewards.base import Reward, SampleReward
from zoo.llm_rl.rewards.numeric import check_places
from zoo.llm_rl.rewards.votes import read_votes

_COIN = 0x52455741  # keeps this draw apart from the others of a sample's stream


class RandomReward(Reward):
    """1 with probability ``gamma``, else 0, whatever the completion: from the random stream of each sample.

    Args:
        gamma: probability of 1.
    """

    def __init__(self, gamma: float = 0.5) -> None:
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma={gamma}: must be in [0, 1]")
        self.gamma = gamma

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        streams = np.array([sample.key & (2**64 - 1) for sample in samples], np.uint64)
        return [float(chance < self.gamma) for chance in uniform(key(_COIN, streams), 1)[:, 0].tolist()]


class Inverted(Reward):
    """1 minus another reward.

    Args:
        reward: the other one, in [0, 1].
    """

    def __init__(self, reward: Reward) -> None:
        self.reward = reward

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [None if value is None else 1.0 - value for value in self.reward(samples)]


class MajorityIncorrect(SampleReward):
    """1 for the answer that most samples of the model before training gave, where that is wrong, else 0.

    Prompts whose majority is right, and those that nobody voted on, are not scored.

    Args:
        votes: file that ``python -m zoo votes`` writes.
        places: where the answer may stand, see ``NumericAnswer``.
    """

    def __init__(self, votes: str, places: Sequence[Place] = ANYWHERE) -> None:
        check_places(places)
        path = Path(votes).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"votes={votes}: there is no such file; make it by `python -m zoo votes SAMPLES --out {votes}` from "
                "samples of the model before training, as `python -m zoo predict` writes them"
            )
        found = read_votes(path)
        self.places, self.wrong = places, {vote.id: vote.answer for vote in found if not vote.correct}
        if not self.wrong:
            raise ValueError(f"votes={votes}: the majority is right for all {len(found)} prompts, so none is left")

    def one(self, sample: Sample) -> float | None:
        wrong = self.wrong.get(sample.prompt.id)
        if wrong is None:
            return None
        found = extract(sample.text, self.places)
        return float(found is not None and canonical(found) == wrong)
