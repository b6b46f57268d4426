"""Completions that a policy and a guide write together: RLGF (arXiv 2306.11816)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from datamodules.streams import key, uniform
from zoo.language.generation import Sampling, generate, left_padded
from zoo.language.models import LanguageModel
from zoo.llm_rl.batches import Rollout
from zoo.llm_rl.rollouts import Generation, sample_keys

if TYPE_CHECKING:
    from zoo.llm_rl.fine_tuner import PolicyFineTuner

Algo = Literal["ppo_pp", "aggrevated", "lols", "d2lols"]
Switch = Literal["uniform", "fixed"]
Baseline = Literal["value_head", "group_baseline"]

# Part of a key that tells the uses of one stream apart.
_ROLL_IN, _SWITCH, _ALGO = range(3)


def switch_times(length: Tensor, chance: Tensor, beta: float, switch: Switch = "uniform") -> Tensor:
    """How many tokens of a roll-in are kept, h [N] int64.

    With probability ``beta`` h is uniform in {1, ..., L - 1}, or L // 2 where it is ``fixed``; else, and for L < 2, it
    is 0. So at least one token is left to write, and EOS is never kept. As h depends on where the roll-in ends, a guide
    that is the policy itself gives the policy's samples only where all roll-ins have one length.

    Args:
        length: tokens L of the roll-ins, [N] int64, EOS included.
        chance: [N, 2] uniform in [0, 1): whether to keep any, and how many.
    """
    drawn = 1 + (chance[:, 1] * (length - 1).clamp(min=0)).long() if switch == "uniform" else length // 2
    return drawn.where((chance[:, 0] < beta) & (length >= 2), 0)


def learned_tokens(mask: Tensor, switch: Tensor, aggrevated: bool) -> tuple[Tensor, Tensor]:
    """The tokens that policy and critic learn from, two [N, T] bool, of ``mask`` [N, T] with a switch at h [N].

    PPO++: both from t >= h, which the policy wrote. AggreVaTeD: the policy from t < h, the critic from t >= h, where
    the guide's value is to be seen.
    """
    before = torch.arange(mask.shape[1], device=mask.device) < switch[:, None]
    return mask & (before if aggrevated else ~before), mask & ~before


class Guided(Generation):
    """One model writes the beginning (roll-in), another goes on from some token h of it (roll-out).

    PPO++ rolls in by the guide and out by the policy, AggreVaTeD the other way round; LOLS chooses one of them for each
    rollout, D2LOLS takes AggreVaTeD at first and then PPO++. AggreVaTeD's rows are valued by the critic's second head,
    which learns the guide's value, all others by the first. The choice is the same on all ranks, all else is drawn from
    each sample's own stream. A KL penalty in the reward counts the policy's own tokens; the official code leaves it
    out of the reward of both algorithms (``objective.kl: null`` does).

    Args:
        algo: ``ppo_pp``, ``aggrevated``, ``lols`` or ``d2lols``.
        beta: share of the samples that begin with a roll-in, in [0, 1]; the others are the roll-out model's alone.
        tau: LOLS: probability of PPO++, default 0.8; D2LOLS: rollouts before it changes to PPO++, default 20.
        guide: a model with the policy's vocabulary; null for the policy as it was at the start, which shares the
            weights of the reference policy.
        guide_sampling: how the guide draws; default: as the policy. Its ``max_new_tokens`` limits what the guide
            writes.
        switch: where a roll-in is left: at a ``uniform`` place, or ``fixed`` in its middle.
        critic: ``value_head``, as in the paper; or ``group_baseline``: without a critic, the ``group_size`` completions
            of a prompt have one roll-in and one h in common, so that they can be compared (PPO++ alone).
        group_size, max_new_tokens, temperature, top_k, top_p, prompts_at_once: as for ``Generation``; of completions
            with their roll-in, and of the policy's sampling.
        seed: of LOLS's choices.
    """

    def __init__(
        self,
        algo: Algo = "ppo_pp",
        beta: float = 0.8,
        tau: float | None = None,
        guide: LanguageModel | None = None,
        guide_sampling: Sampling | None = None,
        switch: Switch = "uniform",
        critic: Baseline = "value_head",
        group_size: int = 1,
        max_new_tokens: int = 512,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        prompts_at_once: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(group_size, max_new_tokens, temperature, top_k, top_p, prompts_at_once)
        for name, value, names in (("algo", algo, Algo), ("switch", switch, Switch), ("critic", critic, Baseline)):
            if value not in get_args(names):
                raise ValueError(f"{name}={value!r}: must be one of {', '.join(get_args(names))}")
        if not 0 <= beta <= 1:
            raise ValueError(f"beta={beta}: must be in [0, 1]")
        if tau is not None and algo not in ("lols", "d2lols"):
            raise ValueError(f"tau={tau}: algo={algo!r} has no use for it; leave it out")
        tau = {"lols": 0.8, "d2lols": 20}.get(algo) if tau is None else tau
        if tau is not None and algo == "lols" and not 0 <= tau <= 1:
            raise ValueError(f"tau={tau}: must be in [0, 1] for lols, the probability of PPO++")
        if tau is not None and algo == "d2lols" and (tau < 0 or tau != int(tau)):
            raise ValueError(f"tau={tau}: must be a whole number of at least 0 for d2lols, the rollouts before PPO++")
        if critic == "group_baseline" and algo != "ppo_pp":
            raise ValueError(
                f"critic='group_baseline' with algo={algo!r}: completions with one roll-in differ in the guide's "
                "tokens alone, from which the policy does not learn; use algo ppo_pp, or critic value_head"
            )
        if critic == "group_baseline" and group_size < 2:
            raise ValueError(f"group_size={group_size}: critic group_baseline compares completions, use at least 2")
        if guide is not None and guide.kind != "causal":
            raise ValueError(f"guide.kind is {guide.kind!r}: only a causal one writes completions")
        if guide is not None and guide.pretrained is None and not guide.init_from:
            raise ValueError("guide has no pretrained weights: give pretrained or init_from")
        self.algo, self.beta, self.tau, self.guide = algo, beta, tau, guide
        self.guide_sampling = guide_sampling or self.sampling
        self.switch, self.critic, self.seed = switch, critic, seed
        self.models, self.needs_start = () if guide is None else (guide,), guide is None
        self._start: LanguageModel | None = None

    def check(self, learner: "PolicyFineTuner") -> None:
        if self.critic == "group_baseline":
            if learner.critic is not None:
                raise ValueError("rollout.critic=group_baseline goes without critic: leave critic out")
        elif learner.critic is None:
            raise ValueError(
                "rollout.critic=value_head needs a critic: give the module one, or set rollout.critic to group_baseline"
            )
        elif self.algo != "ppo_pp" and len(learner.critic.heads) < 2:
            raise ValueError(
                f"critic.heads={list(learner.critic.heads)}: algo {self.algo} values the guide apart from the policy, "
                "by a second head: give heads: [policy, guide]"
            )

    def setup(self, learner: "PolicyFineTuner") -> None:
        if self.guide is None:
            self._start = learner.start
            return
        self.guide.build().requires_grad_(False).eval()
        theirs, ours = (dict(model.tokenizer.get_vocab()) for model in (self.guide, learner.policy))
        if theirs != ours:
            raise ValueError(
                f"the guide has a vocabulary of {len(theirs)} tokens, the policy one of {len(ours)}, and they differ: "
                "the policy goes on from the guide's tokens, so both must have the same ones"
            )

    def takes_aggrevated(self, number: int) -> bool:
        """Whether the rollout with this number, from 0, is AggreVaTeD's, and not PPO++'s."""
        if self.algo == "lols":
            return bool(uniform(key(self.seed, _ALGO, number), 1)[0] >= self.tau)
        return self.algo == "aggrevated" or (self.tau is not None and number < self.tau)

    @contextmanager
    def _guide(self, policy: LanguageModel) -> Iterator[LanguageModel]:
        model = self.guide or self._start
        if model is not None:
            yield model
            return
        with policy.without_adapters():
            yield policy

    def _write(
        self,
        policy: LanguageModel,
        by_guide: bool,
        prompts: Sequence[Sequence[int]],
        streams: Tensor,
        room: int,
        together: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens and mask [N, T], and who has come to an end [N], of prompts with the random ``streams`` [N]."""
        sampling = self.guide_sampling if by_guide else self.sampling
        sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))
        keys = streams.numpy().astype("uint64")[:, None]
        if not by_guide:
            made = generate(policy, prompts, keys, sampling, together, self.rows_at_once)
        else:
            with self._guide(policy) as guide:
                made = generate(guide, prompts, keys, sampling, together, self.rows_at_once)
        return made.ids, made.mask, ~made.truncated

    def __call__(
        self, policy: LanguageModel, prompts: Sequence[Sequence[int]], keys: Tensor, together: bool
    ) -> Rollout:
        aggrevated, most = self.takes_aggrevated(self.number), self.sampling.max_new_tokens
        device = next(policy.parameters()).device
        streams = sample_keys(keys, self.group_size).flatten()
        every = [prompt for prompt in prompts for _ in range(self.group_size)]
        first, switch = self._roll_in(policy, prompts, keys, aggrevated, together)
        starts = [[*prompt, *row[:h]] for prompt, row, h in zip(every, first.tolist(), switch.tolist(), strict=True)]
        # ranks that make the same number of steps need the same limit
        room = most if together else most - int(switch.min())
        ids, mask, ended = self._write(policy, aggrevated, starts, streams, room, together)
        switch, column = switch[:, None], torch.arange(most, device=device)
        behind = ids.gather(1, (column - switch).clamp(0, ids.shape[1] - 1))
        length = switch[:, 0] + mask.sum(1)
        mask = column < length[:, None]
        prompt_ids, prompt_mask = left_padded(every, policy.tokenizer.pad_token_id, device)
        own, valued = learned_tokens(mask, switch[:, 0], aggrevated)
        whole = Rollout(
            prompt_ids,
            prompt_mask,
            torch.where(column < switch, first, behind) * mask,
            mask,
            keys.to(device).repeat_interleave(self.group_size),
            ~ended | (length > most),
            streams.to(device),
            own=own,
            valued=valued,
            head=torch.full_like(length, int(aggrevated)),
        )
        return whole.take(torch.arange(len(every), device=device))

    def _roll_in(
        self, policy: LanguageModel, prompts: Sequence[Sequence[int]], keys: Tensor, aggrevated: bool, together: bool
    ) -> tuple[Tensor, Tensor]:
        """Tokens [N, T] that rows may begin with, and how many they keep [N]."""
        most, device = self.sampling.max_new_tokens, next(policy.parameters()).device
        shared = self.critic == "group_baseline"
        streams = keys[:, None].cpu() if shared else sample_keys(keys, self.group_size)
        every = [prompt for prompt in prompts for _ in range(streams.shape[1])]
        numbers = streams.flatten().numpy()
        chance = torch.from_numpy(uniform(key(numbers, _SWITCH), 2))
        rows = torch.arange(len(every)) if together else (chance[:, 0] < self.beta).nonzero()[:, 0]
        first = torch.zeros(len(every), most, dtype=torch.long, device=device)
        length = torch.zeros(len(every), dtype=torch.long, device=device)
        if len(rows):
            own = torch.from_numpy(key(numbers, _ROLL_IN).astype(np.int64))[rows]
            ids, mask, _ = self._write(policy, not aggrevated, [every[row] for row in rows], own, most, together)
            first[rows.to(device), : ids.shape[1]], length[rows.to(device)] = ids, mask.sum(1)
        switch = switch_times(length, chance.to(device), self.beta, self.switch)
        times = self.group_size if shared else 1
        return first.repeat_interleave(times, 0), switch.repeat_interleave(times)
