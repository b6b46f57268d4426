"""Hidden states of completions: a prompt is read once for all its completions, and there is little padding."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from zoo.language.configs import places_tokens_alone
from zoo.language.models import LanguageModel
from zoo.language.packing import block_mask, pack
from zoo.llm_rl.batches import Rollout, group_index

SHARED = 0.9  # prompts are read once where this leaves as large a share of the tokens, padding included, or less


def predicting_states(model: LanguageModel, rollout: Rollout, together: bool = False) -> Tensor:
    """Hidden states [N, H] that each of the N tokens of ``rollout.mask`` is predicted from, row after row.

    Prompts are read once for all their rows where that saves enough and ``reads_once`` allows it.

    Args:
        model: built.
        rollout: rows of one ``group`` have the same prompt.
        together: the weights are split over ranks, which must all run the network equally often: it runs once.
    """
    if together or not rollout.mask.any():
        return row_by_row(model, rollout)
    length = (rollout.prompt_mask.sum(1) + rollout.mask.sum(1)).tolist()
    # accelerators gain from few passes
    sizes = similar(length) if rollout.mask.device.type == "cpu" else [len(length)]
    if reads_once(model):
        layout, start, apart = Layout.of(rollout), 0, 0
        for size in sizes:
            apart += size * (max(length[start : start + size]) - 1)
            start += size
        if layout.tokens <= SHARED * apart:
            return prompts_once(model, rollout, layout)
    rows = torch.arange(len(length), device=rollout.mask.device).split(sizes)
    return torch.cat([row_by_row(model, rollout.take(some)) for some in rows])


def reads_once(model: LanguageModel) -> bool:
    """Whether completions can go on from a cache of their prompts.

    That takes rotary positions, layers without windows, and attention with a mask of rows and columns; with gradient
    checkpointing transformers uses no cache.
    """
    config = model.network.config
    if model.gradient_checkpointing or model.attention not in ("sdpa", "eager") or not places_tokens_alone(config):
        return False
    from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer for layer in _cache(config).layers)


def row_by_row(model: LanguageModel, rollout: Rollout) -> Tensor:
    """Hidden states [N, H] as of ``predicting_states``, of rows that are computed together, each with its prompt.

    Padding is behind, where causal attention needs no mask for it.
    """
    prompt, length = rollout.prompt_mask.sum(1, keepdim=True), rollout.mask.sum(1, keepdim=True)
    ids = torch.cat([rollout.prompt_ids, rollout.response_ids], 1)
    column = torch.arange(int((prompt + length).amax()) - 1, device=ids.device)  # nothing is predicted from the last
    ids = ids.gather(1, (column + rollout.prompt_ids.shape[1] - prompt).clamp(max=ids.shape[1] - 1))
    states = model.hidden(ids, torch.ones_like(ids))
    return states[(column >= prompt - 1) & (column < prompt + length - 1)]


class Layout(NamedTuple):
    """Where the tokens of a rollout's b rows stand when its P prompts are read once.

    ``first`` [P] int64 is a row of each prompt, ``prompt`` [b] int64 each row's prompt. Behind them their completions,
    several in a row of ``width`` columns: ``place`` [b] int64 is where a completion begins in the flattened rows, and
    ``owner`` [R] int64 the prompt of each of these rows.
    """

    first: Tensor
    prompt: Tensor
    place: Tensor
    owner: Tensor
    width: int
    tokens: int

    @classmethod
    def of(cls, rollout: Rollout) -> Self:
        """The layout of a rollout; ``tokens`` counts padding too."""
        prompt, count = group_index(rollout.group)
        length = (rollout.mask.sum(1) - 1).clamp(min=0).tolist()  # nothing is predicted from the last token
        rows: list[list[int]] = [[] for _ in count]
        for row, number in enumerate(prompt.tolist()):
            rows[number].append(row)
        width, place = max(length), [0] * len(length)
        owner: list[int] = []
        for number, some in enumerate(rows):
            for packed in pack([length[row] for row in some], width):
                start = len(owner) * width
                for at in packed:
                    place[some[at]] = start
                    start += length[some[at]]
                owner.append(number)
        first = torch.tensor([some[0] for some in rows], device=prompt.device)
        longest = int(rollout.prompt_mask.sum(1).amax())
        return cls(
            first,
            prompt,
            torch.tensor(place, device=prompt.device),
            torch.tensor(owner, device=prompt.device),
            width,
            len(rows) * longest + len(owner) * width,
        )


def prompts_once(model: LanguageModel, rollout: Rollout, layout: Layout) -> Tensor:
    """Hidden states [N, H] as of ``predicting_states``: prompts go into a cache that keeps their gradient."""
    prompts = rollout.take(layout.first)
    length, columns = prompts.prompt_mask.sum(1, keepdim=True), prompts.prompt_ids.shape[1]
    column = torch.arange(columns, device=length.device)
    ids = prompts.prompt_ids.gather(1, (column + columns - length).clamp(max=columns - 1))  # padding behind
    cache = _cache(model.network.config)
    states = model.hidden(ids, torch.ones_like(ids), past_key_values=cache)
    last = states[torch.arange(len(ids), device=ids.device), length[:, 0] - 1]
    if not layout.width:
        return last.index_select(0, layout.prompt[rollout.mask[:, 0]])

    goes_on = rollout.mask[:, 1:]  # the tokens that another follows
    step = torch.arange(goes_on.shape[1], device=ids.device)
    place = layout.place[:, None] + step
    shape = len(layout.owner), layout.width

    def laid_out(values: Tensor, padding: int) -> Tensor:
        """Values [b, T - 1] of the rows' tokens in their places [R, width]."""
        flat = values.new_full((shape[0] * shape[1],), padding)
        return flat.index_copy(0, place[goes_on], values[goes_on]).view(shape)

    row = torch.arange(len(place), device=ids.device)[:, None].expand_as(place)
    seen = (column < length)[layout.owner][:, None, None].expand(-1, 1, layout.width, -1)
    mask = torch.cat([seen, block_mask(laid_out(row, -1))], -1)
    cache.reorder_cache(layout.owner)
    written = model.hidden(
        laid_out(rollout.response_ids[:, :-1], 0), mask, laid_out(length[layout.prompt] + step, 0), cache
    )
    source = torch.cat([layout.prompt[:, None], len(last) + place], 1)[rollout.mask]
    return torch.cat([last, written.flatten(0, 1)]).index_select(0, source)


def similar(length: Sequence[int], least: int = 256) -> list[int]:
    """How many of the rows, in their order, to compute together, so that short ones get less padding.

    With rows of falling ``length``, a part ends before one that is less than 3/4 as long as the part's first, where
    both the part and what is left have ``least`` tokens or more.
    """
    sizes, start = [], 0
    for row, tokens in enumerate(length):
        if 4 * tokens < 3 * length[start] and min(sum(length[start:row]), sum(length[row:])) >= least:
            sizes.append(row - start)
            start = row
    return [*sizes, len(length) - start]


def spread(values: Tensor, mask: Tensor) -> Tensor:
    """Values [N] of the tokens of a mask [b, T], row after row, as [b, T]; 0 elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def _cache(config: Any) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=config)
