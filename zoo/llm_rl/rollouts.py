"""Completions to learn from: where they come from, and how those of several rounds are joined."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datamodules.streams import key
from zoo.language.generation import Completions, Sampling, generate, left_padded
from zoo.language.models import LanguageModel
from zoo.llm_rl.batches import Rollout

if TYPE_CHECKING:
    from zoo.llm_rl.fine_tuner import PolicyFineTuner


class RolloutSource(ABC):
    """Makes ``group_size`` completions of each prompt; ``sampling`` is what log-probabilities are computed at.

    ``number``: how many rollouts there were before, set before each. ``models``: further networks that it uses, which
    are moved and sharded with the policy, but are no part of the module nor of its checkpoints. ``needs_start``:
    whether the policy as it was at the start has to be kept. ``room``: tokens of prompt and completion that it has
    room for, beside the network's own limit; known after ``setup``.
    """

    group_size: int
    sampling: Sampling
    keep_log_probs: bool = False
    number: int = 0
    models: Sequence[LanguageModel] = ()
    needs_start: bool = False
    room: int | None = None

    def check(self, learner: "PolicyFineTuner") -> None:
        """ValueError if the module's other parts do not go with it; called when the module is made."""
        if learner.advantage.needs_greedy and type(self).greedy is RolloutSource.greedy:
            raise ValueError(
                f"advantage {type(learner.advantage).__name__} needs the likeliest completion of each prompt, which "
                f"rollout {type(self).__name__} does not make: use Generation"
            )

    def setup(self, learner: "PolicyFineTuner") -> None:  # noqa: B027
        """Before a fit, on the CPU, when the policy is built."""

    @abstractmethod
    def __call__(
        self, policy: LanguageModel, prompts: Sequence[Sequence[int]], keys: Tensor, together: bool
    ) -> Rollout:
        """Rows ``p * group_size + g`` of P prompts as tokens, with their ``keys`` [P] int64.

        ``together``: all ranks must run the network equally often, as sharded weights need it.
        """

    def greedy(self, policy: LanguageModel, prompts: Sequence[Sequence[int]], keys: Tensor, together: bool) -> Rollout:
        """The policy's likeliest completion of each of P prompts, a row each, for advantages that compare with it."""
        raise NotImplementedError(f"{type(self).__name__} does not make the likeliest completions of prompts")


class Generation(RolloutSource):
    """The policy's own samples.

    Args:
        group_size: G, completions of a prompt.
        max_new_tokens: where a completion ends at the latest.
        temperature: above 0; log-probabilities are those at this temperature.
        top_k: draw among as many likeliest tokens; 0 for all. Log-probabilities are those of all tokens.
        top_p: draw among the likeliest tokens that hold this share of probability.
        prompts_at_once: prompts whose completions are computed at the same time, to save memory; null for all. As
            completions end, those of further prompts take their places; with split weights, when all have ended.
        keep_log_probs: keep the log-probabilities of generation, to correct for what it does differently
            (``objective.correction``); the gap is logged.
    """

    def __init__(
        self,
        group_size: int = 8,
        max_new_tokens: int = 512,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        prompts_at_once: int | None = None,
        keep_log_probs: bool = False,
    ) -> None:
        check_group(group_size, temperature)
        if prompts_at_once is not None and prompts_at_once < 1:
            raise ValueError(f"prompts_at_once={prompts_at_once}: must be at least 1, or null for all")
        self.group_size, self.prompts_at_once, self.keep_log_probs = group_size, prompts_at_once, keep_log_probs
        self.rows_at_once = None if prompts_at_once is None else prompts_at_once * group_size
        self.sampling = Sampling(max_new_tokens, temperature, top_k, top_p)

    def __call__(
        self, policy: LanguageModel, prompts: Sequence[Sequence[int]], keys: Tensor, together: bool
    ) -> Rollout:
        streams = sample_keys(keys, self.group_size)
        numbers = streams.numpy().astype("uint64")
        made = generate(policy, prompts, numbers, self.sampling, together, self.rows_at_once)
        return rows_of(prompts, policy.tokenizer.pad_token_id, keys, streams, made, self.keep_log_probs)

    def greedy(self, policy: LanguageModel, prompts: Sequence[Sequence[int]], keys: Tensor, together: bool) -> Rollout:
        alone = Generation(1, prompts_at_once=self.prompts_at_once)
        alone.sampling = replace(self.sampling, temperature=0.0)
        rows = alone(policy, prompts, keys, together)
        return rows._replace(key=greedy_keys(keys, self.group_size)[:, 0].to(rows.key.device))


def check_group(group_size: int, temperature: float) -> None:
    """ValueError if there is nothing to learn from: no completion of a prompt, or none that differs."""
    if group_size < 1:
        raise ValueError(f"group_size={group_size}: must be at least 1")
    if temperature == 0:
        raise ValueError("temperature=0: completions of a prompt would all be the same; use 1.0")


def sample_keys(keys: Tensor, group_size: int) -> Tensor:
    """A random stream for each completion, [P, G] int64, of prompts with the streams ``keys`` [P] int64."""
    numbers = key(keys.cpu().numpy()[:, None], torch.arange(group_size).numpy())
    return torch.from_numpy(numbers.astype("int64"))


def greedy_keys(keys: Tensor, group_size: int) -> Tensor:
    """Random streams, [P, 1] int64, that are none of ``sample_keys``: for rewards that draw by chance."""
    return sample_keys(keys, group_size + 1)[:, -1:]


def rows_of(
    prompts: Sequence[Sequence[int]], pad: int, keys: Tensor, streams: Tensor, made: Completions, keep_log_probs: bool
) -> Rollout:
    """Completions ``made`` of P prompts with the streams ``keys`` [P], by the ``streams`` [P, G], as a rollout."""
    ids, mask = left_padded(prompts, pad, made.ids.device)
    prompt, group = (part.repeat_interleave(streams.shape[1], 0) for part in (ids, keys.to(ids.device)))
    prompt_mask, own_keys = mask.repeat_interleave(streams.shape[1], 0), streams.flatten().to(ids.device)
    log_prob = made.log_prob if keep_log_probs else None
    whole = Rollout(prompt, prompt_mask, made.ids, made.mask, group, made.truncated, own_keys, log_prob)
    return whole.take(torch.arange(len(group), device=ids.device))


def join(rollouts: Sequence[Rollout]) -> Rollout:
    """The rows of several rollouts, one after the other; prompts get padding in front, completions behind."""
    if len(rollouts) == 1:
        return rollouts[0]
    front = {"prompt_ids", "prompt_mask"}
    parts: dict[str, Any] = {}
    for name in Rollout._fields:
        values = [getattr(rollout, name) for rollout in rollouts]
        if values[0] is None:
            continue
        if values[0].ndim == 2:
            width = max(value.shape[1] for value in values)
            values = [_widen(value, width, name in front) for value in values]
        parts[name] = torch.cat(values)
    return Rollout(**parts)


def _widen(x: Tensor, width: int, front: bool) -> Tensor:
    room = x.new_zeros(len(x), width - x.shape[1])
    return torch.cat([room, x] if front else [x, room], 1)
