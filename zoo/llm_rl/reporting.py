"""What a rollout has to show: numbers under the names that TRL has, and a row for each completion."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.llm_rl.batches import Sample, Scores, group_index


def rollout_metrics(scores: Scores, names: Sequence[str]) -> dict[str, Tensor]:
    """Means over the completions of all ranks; ``names`` are those of the rewards.

    What no completion has to give, such as the deviation within groups of one, is left out.
    """
    length = scores.length.float()
    ended = length[~scores.truncated]
    values = {
        "completions/mean_length": length.mean(),
        "completions/min_length": length.min(),
        "completions/max_length": length.max(),
        "completions/clipped_ratio": scores.truncated.float().mean(),
    }
    if len(ended):
        values["completions/mean_terminated_length"] = ended.mean()
    scored = ~scores.reward.isnan()
    if scored.any():
        values["reward"] = scores.reward[scored].mean()
    deviation = group_deviations(scores.reward[scored], scores.group[scored])
    if len(deviation):
        values |= {"reward_std": deviation.mean(), "frac_reward_zero_std": (deviation == 0).float().mean()}
    for number, name in enumerate(names):
        part = scores.parts[:, number]
        if len(known := part[~part.isnan()]):
            values |= {f"rewards/{name}/mean": known.mean(), f"rewards/{name}/std": known.std(correction=0)}
        right = part >= 1
        if number == 0 and right.any() and not right.all():
            values |= {"length/right": length[right].mean(), "length/wrong": length[~right].mean()}
    if scores.entropy is not None:
        values["entropy"] = scores.entropy.mean()
    return values


def group_deviations(reward: Tensor, group: Tensor) -> Tensor:
    """Standard deviations of the groups that have two rewards or more, of ``reward`` [N] and ``group`` [N]."""
    index, count = group_index(group)
    mean = torch.zeros(len(count), device=reward.device).index_add(0, index, reward) / count
    square = torch.zeros_like(mean).index_add(0, index, (reward - mean[index]).square())
    return (square / (count - 1).clamp(min=1)).sqrt()[count > 1]


def sample_rows(
    names: Sequence[str], samples: Sequence[Sample], reward: Tensor, parts: Tensor, advantage: Tensor, trained: Tensor
) -> list[dict[str, Any]]:
    """A row for each of N completions, of ``reward`` [N], ``parts`` [N, F], mean ``advantage`` [N] and the number of
    tokens that are ``trained`` [N]."""
    rows = []
    columns = (reward.tolist(), parts.tolist(), advantage.tolist(), trained.tolist())
    for sample, total, each, value, tokens in zip(samples, *columns, strict=True):
        rows.append(
            {
                "id": sample.prompt.id,
                "prompt": sample.prompt.text,
                "completion": sample.text,
                "answer": sample.prompt.answer,
                "reward": total,
                **{f"rewards/{name}": one for name, one in zip(names, each, strict=True)},
                "advantage": value,
                "tokens": sample.tokens,
                "tokens trained": tokens,
            }
        )
    return rows
