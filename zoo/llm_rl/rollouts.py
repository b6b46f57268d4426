"""Completions to learn from: where they come from, and how those of several rounds are joined."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datamodules.streams import key
from zoo.language.generation import Sampling, generate, left_padded
from zoo.language.models import LanguageModel
from zoo.llm_rl.batches import Rollout

if TYPE_CHECKING:
    from zoo.llm_rl.fine_tuner import PolicyFineTuner


class RolloutSource(ABC):
    """Makes ``group_size`` completions of each prompt; ``sampling`` is what log-probabilities are computed at.

    ``number``: how many rollouts there were before, set before each. ``models``: further networks that it uses, which
    are moved and sharded with the policy, but are no part of the module nor of its checkpoints. ``needs_start``:
    whether the policy as it was at the start has to be kept.
    """

    group_size: int
    sampling: Sampling
    keep_log_probs: bool = False
    number: int = 0
    models: Sequence[LanguageModel] = ()
    needs_start: bool = False

    def check(self, learner: "PolicyFineTuner") -> None:  # noqa: B027  most have nothing to ask
        """ValueError if the module's other parts do not go with it; called when the module is made."""

    def setup(self, learner: "PolicyFineTuner") -> None:  # noqa: B027
        """Before a fit, on the CPU, when the policy is built."""

    @abstractmethod
    def __call__(
        self, policy: LanguageModel, prompts: Sequence[Sequence[int]], keys: Tensor, together: bool
    ) -> Rollout:
        """Rows ``p * group_size + g`` of P prompts as tokens, with their ``keys`` [P] int64.

        ``together``: all ranks must run the network equally often, as sharded weights need it.
        """


class Generation(RolloutSource):
    """The policy's own samples.

    Args:
        group_size: G, completions of a prompt.
        max_new_tokens: where a completion ends at the latest.
        temperature: above 0; log-probabilities are those at this temperature.
        top_k: draw among as many likeliest tokens; 0 for all. Log-probabilities are those of all tokens.
        top_p: draw among the likeliest tokens that hold this share of probability.
        prompts_at_once: prompts whose completions are generated together, to save memory; null for all.
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
        if group_size < 1:
            raise ValueError(f"group_size={group_size}: must be at least 1")
        if temperature == 0:
            raise ValueError("temperature=0: completions of a prompt would all be the same; use 1.0")
        if prompts_at_once is not None and prompts_at_once < 1:
            raise ValueError(f"prompts_at_once={prompts_at_once}: must be at least 1, or null for all")
        self.group_size, self.prompts_at_once, self.keep_log_probs = group_size, prompts_at_once, keep_log_probs
        self.sampling = Sampling(max_new_tokens, temperature, top_k, top_p)

    def __call__(
        self, policy: LanguageModel, prompts: Sequence[Sequence[int]], keys: Tensor, together: bool
    ) -> Rollout:
        at_once = self.prompts_at_once or len(prompts)
        parts = [
            self._some(policy, prompts[start : start + at_once], keys[start : start + at_once], together)
            for start in range(0, len(prompts), at_once)
        ]
        return join(parts)

    def _some(self, policy: LanguageModel, prompts: Sequence[Sequence[int]], keys: Tensor, together: bool) -> Rollout:
        streams = sample_keys(keys, self.group_size)
        made = generate(policy, prompts, streams.numpy().astype("uint64"), self.sampling, together)
        ids, mask = left_padded(prompts, policy.tokenizer.pad_token_id, made.ids.device)
        count = self.group_size
        whole = Rollout(
            ids.repeat_interleave(count, 0),
            mask.repeat_interleave(count, 0),
            made.ids,
            made.mask,
            keys.to(ids.device).repeat_interleave(count),
            made.truncated,
            streams.flatten().to(ids.device),
            made.log_prob if self.keep_log_probs else None,
        )
        return whole.take(torch.arange(len(whole.group), device=ids.device))


def sample_keys(keys: Tensor, group_size: int) -> Tensor:
    """A random stream for each completion, [P, G] int64, of prompts with the streams ``keys`` [P] int64."""
    numbers = key(keys.cpu().numpy()[:, None], torch.arange(group_size).numpy())
    return torch.from_numpy(numbers.astype("int64"))


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
