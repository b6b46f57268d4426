"""Completions of many prompts at once, each from a random stream of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.streams import uniform
from zoo.distributed import any_rank
from zoo.language.configs import position_limit

if TYPE_CHECKING:
    from zoo.language.models import LanguageModel

COMPACT = 0.75  # rows that have ended are computed on until this share of the batch is left


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Args:
        max_new_tokens: where a completion ends at the latest.
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_k: draw among as many likeliest tokens; 0 for all.
        top_p: draw among the likeliest tokens that hold this share of probability.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens}: must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature}: must be at least 0, which takes the likeliest token")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: must be at least 0, which is all tokens")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must be in (0, 1]")


class Completions(NamedTuple):
    """``ids`` [N, T] int64 with padding behind, ``mask`` [N, T] bool (EOS included), ``truncated`` [N] bool: no EOS.

    ``log_prob`` [N, T] float32: of each token among all tokens at the temperature, whatever ``top_k`` and ``top_p``
    left.
    """

    ids: Tensor
    mask: Tensor
    truncated: Tensor
    log_prob: Tensor


def choose(logits: Tensor, draw: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The tokens [N] int64 that numbers in [0, 1) stand for, and their log-probabilities [N] float32.

    Inverts the cumulated probabilities in the order of tokens: a token is a function of its logits and its number.

    Args:
        logits: [N, V].
        draw: [N] float64, uniform.
        sampling: temperature, ``top_k`` and ``top_p``.
    """
    if sampling.temperature == 0:
        best = logits.argmax(1, keepdim=True)
        return best[:, 0], logits.float().log_softmax(1).gather(1, best)[:, 0]
    p = (logits.float() / sampling.temperature).softmax(1)
    kept = p
    if 0 < sampling.top_k < p.shape[1]:
        kept = kept.where(kept >= kept.topk(sampling.top_k).values[:, -1:], 0)
    if sampling.top_p < 1:
        ordered, index = kept.sort(descending=True)
        share = ordered.cumsum(1) / ordered.sum(1, keepdim=True)
        inside = share - ordered / ordered.sum(1, keepdim=True) < sampling.top_p
        kept = kept.where(torch.zeros_like(inside).scatter(1, index, inside), 0)
    total = kept.double().cumsum(1)
    chosen = torch.searchsorted(total, draw[:, None] * total[:, -1:], right=True).clamp_(max=p.shape[1] - 1)
    return chosen[:, 0], p.gather(1, chosen)[:, 0].log()


def generate(
    model: "LanguageModel",
    prompts: Sequence[Sequence[int]],
    keys: np.ndarray,
    sampling: Sampling,
    together: bool = False,
) -> Completions:
    """G completions of each of P prompts; row ``p * G + g`` is completion g of prompt p.

    A prompt is read once for its G completions, and a row that has ended is computed no further. A completion depends
    on its prompt, its key and the weights alone, up to rounding.

    Args:
        model: built, on its device; dropout should be off.
        prompts: tokens, at least one of each.
        keys: [P, G] uint64, each the random stream of a completion.
        sampling: how tokens are drawn, and how many at most.
        together: all ranks take the same number of steps, as sharded weights need it.

    Raises:
        ValueError: for an empty prompt, a prompt that leaves fewer positions than ``max_new_tokens``, and NaN logits.
    """
    limit, longest = position_limit(model.network.config), max(map(len, prompts))
    if limit is not None and longest + sampling.max_new_tokens > limit:
        raise ValueError(
            f"a prompt of {longest} tokens with max_new_tokens={sampling.max_new_tokens}: the network has {limit} "
            "positions; lower max_new_tokens, or leave long prompts out"
        )
    if empty := [number for number, prompt in enumerate(prompts) if not len(prompt)]:
        raise ValueError(f"prompt {empty[0]} has no token: give it at least one, such as a BOS token")
    # inference mode is faster, but sharded weights that are gathered in it are of no use to a later backward pass
    with torch.no_grad() if together else torch.inference_mode():
        made = _generate(model, prompts, keys, sampling, together)
    if made.log_prob.isnan().any():
        raise ValueError("the network's logits are NaN: if it was training, lower the learning rate")
    return Completions(*(part.clone() for part in made))


def _generate(
    model: "LanguageModel", prompts: Sequence[Sequence[int]], keys: np.ndarray, sampling: Sampling, together: bool
) -> Completions:
    device, pad = next(model.parameters()).device, int(model.tokenizer.pad_token_id or 0)
    (count, group), most = keys.shape, sampling.max_new_tokens
    ends = torch.tensor(model.end_tokens, device=device)
    ids, mask = left_padded(prompts, pad, device)
    draw = torch.from_numpy(uniform(keys.reshape(-1), most)).to(device)

    made = torch.full((count * group, most), pad, device=device)
    log_prob = torch.zeros(made.shape, dtype=torch.float32, device=device)

    cache = _cache(model.network.config)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    state = model.hidden(ids, mask, position, cache)[:, -1]
    by_column = _takes_columns(model, cache)
    cache.batch_repeat_interleave(group)
    state, mask, position = (part.repeat_interleave(group, 0) for part in (state, mask, position[:, -1:]))
    mask = torch.cat([mask, mask.new_ones(len(mask), most)], 1)
    row = torch.arange(count * group, device=device)  # the completions that are computed
    live = torch.ones_like(row, dtype=torch.bool)  # those of them that have not ended
    for step in range(most):
        token, made_log_prob = choose(model.logits(state), draw[row, step], sampling)
        token = token.where(live, pad)
        made[row, step], log_prob[row, step] = token, made_log_prob.where(live, 0.0)
        live = live & ~torch.isin(token, ends)
        going = int(live.sum())
        if step + 1 == most or not (any_rank(going > 0) if together else going):
            break
        if 0 < going <= COMPACT * len(row):
            kept = live.nonzero()[:, 0]
            cache.batch_select_indices(kept)
            row, token, mask, position, live = (part[kept] for part in (row, token, mask, position, live))
        position = position + 1
        seen = mask[:, : ids.shape[1] + step + 1]
        state = model.hidden(token[:, None], seen[:, None, None] if by_column else seen, position, cache)[:, -1]
    end = torch.isin(made, ends)  # padding may look like one, but there is none before the first
    truncated = ~end.any(1)
    length = end.int().argmax(1).masked_fill(truncated, most - 1) + 1
    return Completions(made, torch.arange(most, device=device) < length[:, None], truncated, log_prob)


def _takes_columns(model: "LanguageModel", cache: Any) -> bool:
    """Whether the mask of one new token can be given as [B, 1, 1, S], which saves the network from making it.

    Not where layers see a window, or positions come from the mask.
    """
    config = model.network.config
    full = all(hasattr(layer, "room") for layer in cache.layers)
    rotary = getattr(config, "rope_parameters", None) is not None and not getattr(config, "alibi", False)
    return full and rotary and model.attention in ("sdpa", "eager")


def left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of tokens as [N, S] int64 with padding in front, and where their tokens are, [N, S] bool."""
    most = max(map(len, rows))
    ids = torch.tensor([[pad] * (most - len(row)) + list(row) for row in rows], device=device)
    length = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(most, device=device) >= most - length[:, None]


def _cache(config: Any) -> Any:
    """An empty cache for a network, whose full attention layers have room to grow in."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    class Roomy(DynamicLayer):
        """Keys and values in a longer buffer: a token is written in its place, where the parent copies all."""

        room: tuple[Tensor, Tensor] | None = None

        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            start = self.get_seq_length()
            stop = start + key_states.shape[-2]
            if self.room is None or self.room[0].shape[-2] < stop:
                shape = *key_states.shape[:-2], stop + max(stop // 2, 32)
                self.room = (
                    key_states.new_empty(*shape, key_states.shape[-1]),
                    value_states.new_empty(*shape, value_states.shape[-1]),
                )
                if self.keys is not None and self.values is not None and start:
                    for buffer, old in zip(self.room, (self.keys, self.values), strict=True):
                        buffer[..., :start, :] = old
            for buffer, new in zip(self.room, (key_states, value_states), strict=True):
                buffer[..., start:stop, :] = new
            self.keys, self.values = (buffer[..., :stop, :] for buffer in self.room)
            return self.keys, self.values

        def batch_repeat_interleave(self, repeats: int) -> None:
            self.room = None
            super().batch_repeat_interleave(repeats)

        def batch_select_indices(self, indices: Tensor) -> None:
            self.room = None
            super().batch_select_indices(indices)

    cache = DynamicCache(config=config)
    cache.layers = [Roomy() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
