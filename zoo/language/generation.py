"""Completions of many prompts at once, each from a random stream of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from datamodules.streams import uniform
from zoo.distributed import any_rank
from zoo.language.configs import places_tokens_alone, position_limit

if TYPE_CHECKING:
    from zoo.language.models import LanguageModel

COMPACT = 0.75  # rows that have ended are computed on until this share of the batch is left; then others may join


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
    total = kept.cumsum(1, dtype=torch.float64)
    chosen = torch.searchsorted(total, draw[:, None] * total[:, -1:], right=True).clamp_(max=p.shape[1] - 1)
    return chosen[:, 0], p.gather(1, chosen)[:, 0].log()


def generate(
    model: "LanguageModel",
    prompts: Sequence[Sequence[int]],
    keys: np.ndarray,
    sampling: Sampling,
    together: bool = False,
    rows_at_once: int | None = None,
) -> Completions:
    """G completions of each of P prompts; row ``p * G + g`` is completion g of prompt p.

    A prompt is read once for its completions, and rows that have ended make place for others (continuous batching,
    after Orca, OSDI 2022). A completion depends on its prompt, its key and the weights alone, up to rounding; with
    rotary positions that are scaled by the longest of the batch (dynamic, longrope), also on the others.

    Args:
        model: built, on its device; dropout should be off.
        prompts: tokens, at least one of each.
        keys: [P, G] uint64, each the random stream of a completion.
        sampling: how tokens are drawn, and how many at most.
        together: all ranks take the same number of steps, as sharded weights need it; with ``rows_at_once``, they must
            have the same number of completions.
        rows_at_once: completions that are computed at the same time at most, to save memory; None for all. With
            ``together``, and where layers see a window or positions are not plainly rotary, the next ones are begun
            when all of these have ended.

    Raises:
        ValueError: for prompts that ``check_prompts`` refuses, NaN logits, and ``rows_at_once`` below 1.
    """
    check_prompts(model, prompts, sampling)
    if rows_at_once is not None and rows_at_once < 1:
        raise ValueError(f"rows_at_once={rows_at_once}: must be at least 1, or None for all")
    # inference mode is faster, but sharded weights that are gathered in it are of no use to a later backward pass
    with torch.no_grad() if together else torch.inference_mode():
        made = _generate(model, prompts, keys, sampling, together, min(rows_at_once or keys.size, keys.size))
    if made.log_prob.isnan().any():
        raise ValueError("the network's logits are NaN: if it was training, lower the learning rate")
    return Completions(*(part.clone() for part in made))


def check_prompts(
    model: "LanguageModel", prompts: Sequence[Sequence[int]], sampling: Sampling, room: int | None = None
) -> None:
    """Raises ``ValueError`` for an empty prompt, and one that leaves fewer positions than ``max_new_tokens``.

    ``room``: tokens that an engine beside the network has room for, if there is one.
    """
    limit, longest = position_limit(model.network.config), max(map(len, prompts))
    said = f"a prompt of {longest} tokens with max_new_tokens={sampling.max_new_tokens}:"
    if limit is not None and longest + sampling.max_new_tokens > limit:
        raise ValueError(f"{said} the network has {limit} positions; lower max_new_tokens, or leave long prompts out")
    if room is not None and longest + sampling.max_new_tokens > room:
        raise ValueError(
            f"{said} the engine has room for {room}; raise max_model_length or max_prompt_length, lower "
            "max_new_tokens, or leave long prompts out"
        )
    if empty := [number for number, prompt in enumerate(prompts) if not len(prompt)]:
        raise ValueError(f"prompt {empty[0]} has no token: give it at least one, such as a BOS token")


class _Rows(NamedTuple):
    """Completions that are computed: their number ``row`` among all, tokens ``made`` so far, and ``state`` [N, H].

    ``mask`` [N, S] and ``position`` [N, 1] are of the columns in the ``cache`` and of the last of them.
    """

    row: Tensor
    made: Tensor
    state: Tensor
    mask: Tensor
    position: Tensor
    cache: Any


def _generate(
    model: "LanguageModel",
    prompts: Sequence[Sequence[int]],
    keys: np.ndarray,
    sampling: Sampling,
    together: bool,
    at_once: int,
) -> Completions:
    from zoo.language.caches import is_roomy

    device, most, group = next(model.parameters()).device, sampling.max_new_tokens, keys.shape[1]
    ends, limit = torch.tensor(model.end_tokens, device=device), position_limit(model.network.config)
    draw = torch.from_numpy(uniform(keys.reshape(-1), most)).to(device)
    made = torch.full(draw.shape, int(model.tokenizer.pad_token_id or 0), device=device)
    log_prob = torch.zeros(draw.shape, dtype=torch.float32, device=device)
    column = torch.arange(most, device=device)

    rows, begun = _read(model, prompts, group, 0, at_once), at_once
    joins = is_roomy(rows.cache) and places_tokens_alone(model.network.config)
    by_column = joins and model.attention in ("sdpa", "eager")  # a mask that the network does not have to make
    while True:
        at = rows.made[:, None] + column
        number = draw[rows.row[:, None], at.clamp(max=most - 1)]
        mask = torch.cat([rows.mask, rows.mask.new_ones(len(at), most)], 1)
        state, position, width = rows.state, rows.position, rows.mask.shape[1]
        live, steps = torch.ones_like(rows.row, dtype=torch.bool), []
        for step in range(most):
            token, token_log_prob = choose(model.logits(state), number[:, step], sampling)
            steps.append((live, token, token_log_prob))
            live = live & ~torch.isin(token, ends) & (at[:, step] < most - 1)
            going = int(live.sum())
            if not (any_rank(going > 0) if together else going):
                break
            position, width = position + live[:, None], width + 1
            seen = mask[:, None, None, :width] if by_column else mask[:, :width]
            state = model.hidden(token[:, None], seen, position, rows.cache)[:, -1]
            if 0 < going <= COMPACT * len(live) or width == limit:
                break
        was_live, token, token_log_prob = (torch.stack(part, 1) for part in zip(*steps, strict=True))
        places = rows.row[:, None].expand_as(was_live)[was_live], at[:, : len(steps)][was_live]
        made[places], log_prob[places] = token[was_live], token_log_prob[was_live]

        free = min(at_once - going, len(draw) - begun) if not going or (joins and not together) else 0
        if not going and not free:
            break
        more = _read(model, prompts, group, begun, free) if free else None
        begun += free
        if more is not None and not going:
            rows = more
        else:
            rows = _Rows(rows.row, rows.made + len(steps), state, mask[:, :width], position, rows.cache)
            rows = _join(rows, live.nonzero()[:, 0], more, joins)
    end = torch.isin(made, ends)  # padding may look like one, but there is none before the first
    truncated = ~end.any(1)
    length = end.int().argmax(1).masked_fill(truncated, most - 1) + 1
    return Completions(made, column < length[:, None], truncated, log_prob)


def _read(model: "LanguageModel", prompts: Sequence[Sequence[int]], group: int, start: int, count: int) -> _Rows:
    """Completions from number ``start`` on, whose prompts are in a new cache."""
    from zoo.language.caches import empty_cache, take

    device, padding = next(model.parameters()).device, int(model.tokenizer.pad_token_id or 0)
    row = torch.arange(start, start + count, device=device)
    ids, mask = left_padded(prompts[start // group : (start + count - 1) // group + 1], padding, device)
    position, cache = (mask.cumsum(1) - 1).clamp(min=0), empty_cache(model.network.config)
    state = model.hidden(ids, mask, position, cache)[:, -1]
    prompt = row // group - start // group
    take(cache, prompt)
    return _Rows(row, torch.zeros_like(row), state[prompt], mask[prompt], position[prompt, -1:], cache)


def _join(rows: _Rows, kept: Tensor, more: _Rows | None, cut: bool) -> _Rows:
    """The ``kept`` ones of rows, and behind them ``more``; with ``cut``, without columns of padding alone."""
    from zoo.language.caches import take

    row, made, state, mask, position = (part[kept] for part in rows[:5])
    first = int(mask.any(0).int().argmax()) if cut else 0
    take(rows.cache, kept, first, more and more.cache)
    mask = mask[:, first:]
    if more is not None:
        width = max(mask.shape[1], more.mask.shape[1])
        mask, new_mask = (pad(part, (width - part.shape[1], 0), value=False) for part in (mask, more.mask))
        old, new = (row, made, state, mask, position), (*more[:3], new_mask, more.position)
        row, made, state, mask, position = (torch.cat(both) for both in zip(old, new, strict=True))
    return _Rows(row, made, state, mask, position, rows.cache)


def left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of tokens as [N, S] int64 with padding in front, and where their tokens are, [N, S] bool."""
    most = max(map(len, rows))
    ids = torch.tensor([[pad] * (most - len(row)) + list(row) for row in rows], device=device)
    length = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(most, device=device) >= most - length[:, None]
