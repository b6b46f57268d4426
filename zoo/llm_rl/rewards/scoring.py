"""Several rewards as one: the weighted sum, with every reward's result checked."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from zoo.llm_rl.batches import Sample
from zoo.llm_rl.rewards.base import Reward

_SHOWN = 300  # characters of a completion in an error


def score(
    rewards: Mapping[str, Reward], weights: Mapping[str, float], samples: Sequence[Sample]
) -> tuple[Tensor, Tensor]:
    """The weighted sum of rewards, [B] float32, and each of the F rewards alone, [B, F] float32, as TRL sums them.

    What a reward does not score is NaN in its column and left out of the sum; a sample that none scores has a NaN sum.

    Args:
        rewards: by name; the columns are in this order.
        weights: by name; 1 for a reward that is left out.
        samples: B completions.

    Raises:
        ValueError: for weights that are not finite or of no reward, and for a reward that fails or gives too few or too
            many numbers, NaN or infinity; names the reward and the sample.
    """
    if unknown := sorted(set(weights) - set(rewards)):
        raise ValueError(f"weights: {unknown[0]!r} is none of the rewards {', '.join(rewards)}")
    if wrong := [name for name, weight in weights.items() if not math.isfinite(weight)]:
        raise ValueError(f"weights: {wrong[0]} is {weights[wrong[0]]}, must be a finite number")
    parts = torch.tensor([_column(name, reward, samples) for name, reward in rewards.items()], dtype=torch.float32)
    parts = parts.reshape(len(rewards), len(samples)).T.contiguous()
    weight = torch.tensor([weights.get(name, 1.0) for name in rewards], dtype=torch.float32)
    total = (parts * weight).nansum(1)
    return total.masked_fill(parts.isnan().all(1), torch.nan), parts


def _column(name: str, reward: Reward, samples: Sequence[Sample]) -> list[float]:
    try:
        values = list(reward(samples))
    except Exception as error:
        where = _culprit(reward, samples)
        raise ValueError(f"reward {name!r} failed on {where}: {type(error).__name__}: {error}") from error
    if len(values) != len(samples):
        raise ValueError(f"reward {name!r} gave {len(values)} numbers for {len(samples)} samples: give one for each")
    return [_number(name, value, sample) for value, sample in zip(values, samples, strict=True)]


def _number(name: str, value: object, sample: Sample) -> float:
    if value is None:
        return math.nan
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"reward {name!r} is {value!r} for {shown(sample)}: give a finite number, or None for what cannot be scored"
        )
    return number


def _culprit(reward: Reward, samples: Sequence[Sample]) -> str:
    """The first sample that the reward fails on by itself."""
    for sample in samples:
        try:
            reward([sample])
        except Exception:
            return shown(sample)
    return f"{len(samples)} samples together, but on none of them alone"


def shown(sample: Sample) -> str:
    """A sample in an error message."""
    text = sample.text if len(sample.text) <= _SHOWN else f"{sample.text[:_SHOWN]}..."
    return f"prompt {sample.prompt.id!r}, completion {text!r}"
