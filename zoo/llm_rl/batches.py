"""What the stages of reinforcement learning hand on: samples, their scores, and minibatches to learn from.

P prompts with G completions each make B = P * G samples; S columns of prompt, T of completion, b rows of one rank or
one minibatch, F rewards.
"""

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from datamodules.batches import Prompt


class Sample(NamedTuple):
    """One completion, as rewards see it.

    ``text`` is the completion without special tokens, ``tokens`` its length with EOS; ``truncated`` if it did not end
    by itself. ``key`` is the sample's own random stream, the same for any number of ranks.
    """

    prompt: Prompt
    text: str
    tokens: int
    truncated: bool
    key: int


class Rollout(NamedTuple):
    """Completions of one rank, those of a prompt need not be neighbours.

    ``prompt_ids`` [b, S] int64 and ``prompt_mask`` [b, S] bool are padded on the left, ``response_ids`` [b, T] int64
    and ``mask`` [b, T] bool on the right, EOS included. ``group`` [b] int64 tells prompts apart over all ranks,
    ``truncated`` [b] bool, ``key`` [b] int64 random streams. ``sampled`` [b, T] float32 are log-probabilities that the
    generator reported, None if it has none. Where the policy has not written all: ``own`` [b, T] bool, tokens that the
    policy learns from, ``valued`` [b, T] bool, those that the critic learns from, and ``head`` [b] int64, the number of
    the critic's head that values the row.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    response_ids: Tensor
    mask: Tensor
    group: Tensor
    truncated: Tensor
    key: Tensor
    sampled: Tensor | None = None
    own: Tensor | None = None
    valued: Tensor | None = None
    head: Tensor | None = None

    def take(self, rows: Tensor) -> Self:
        """The rows, without columns that are padding in all of them."""
        some = self._replace(**{name: part[rows] for name, part in self._asdict().items() if part is not None})
        start = some.prompt_mask.shape[1] - int(some.prompt_mask.sum(1).amax()) if len(rows) else 0
        stop = int(some.mask.sum(1).amax()) if len(rows) else 0
        return some._replace(
            prompt_ids=some.prompt_ids[:, start:],
            prompt_mask=some.prompt_mask[:, start:],
            response_ids=some.response_ids[:, :stop],
            mask=some.mask[:, :stop],
            sampled=None if some.sampled is None else some.sampled[:, :stop],
            own=None if some.own is None else some.own[:, :stop],
            valued=None if some.valued is None else some.valued[:, :stop],
        )


@dataclass(frozen=True)
class Scores:
    """What is known of each completion, of all ranks in the order of ranks: the same on every rank.

    Args:
        reward: [B] float32, the weighted sum; NaN for one that no reward could score.
        group: [B] int64, equal for the completions of one prompt.
        length: [B] int64 tokens, EOS included.
        truncated: [B] bool.
        key: [B] int64, random streams, for ties that are to be broken at random.
        parts: [B, F] float32, each reward alone, NaN where it did not score.
        weights: [F] float32.
        entropy: [B] float32, mean over a completion's tokens, in nats; None unless asked for.
        greedy: [B] float32, the reward of the likeliest completion of the row's prompt, NaN if no reward could score
            it; None unless asked for.
        step: optimiser steps taken.
        progress: share of the training that is done, in [0, 1]; None where its length is not known.
    """

    reward: Tensor
    group: Tensor
    length: Tensor
    truncated: Tensor
    key: Tensor
    parts: Tensor
    weights: Tensor
    entropy: Tensor | None = None
    greedy: Tensor | None = None
    step: int = 0
    progress: float | None = None


class Tokens(NamedTuple):
    """Each token of this rank's completions, before the cut into minibatches.

    ``mask`` [b, T] bool; ``old`` [b, T] float32 log-probabilities of the policy that sampled; ``reference`` those of
    the reference policy; ``entropy`` [b, T] float32 in nats; ``value`` [b, T] float32 the critic's. None unless asked
    for.
    """

    mask: Tensor
    old: Tensor | None = None
    reference: Tensor | None = None
    entropy: Tensor | None = None
    value: Tensor | None = None


class Minibatch(NamedTuple):
    """Rows of one forward pass.

    ``rollout`` as above; ``advantage`` [b, T] float32; ``coefficient`` [b, T] float32: the loss is the sum over tokens
    of coefficient times loss, so that it holds the aggregation, the selection and the normaliser over the whole
    optimiser step and all ranks. ``old``, ``reference`` [b, T] float32 as in ``Tokens``; ``returns`` and ``value``
    [b, T] for a critic with its own ``value_coefficient``; ``extra`` and ``row_coefficient`` [b] as of an
    ``Auxiliary``. None where the method has no use for it.
    """

    rollout: Rollout
    advantage: Tensor
    coefficient: Tensor
    old: Tensor | None = None
    reference: Tensor | None = None
    value: Tensor | None = None
    returns: Tensor | None = None
    value_coefficient: Tensor | None = None
    row_coefficient: Tensor | None = None
    extra: dict[str, Tensor] | None = None


def group_index(group: Tensor) -> tuple[Tensor, Tensor]:
    """Groups numbered from 0, [B] int64, and their sizes [groups] int64; ``group`` [B] in any order."""
    _, index, count = torch.unique(group, return_inverse=True, return_counts=True)
    return index, count
