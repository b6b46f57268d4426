"""Runs many independent iterations side by side, each until its own criterion is met."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

State = TypeVar("State", bound=tuple[Tensor, ...])
Constants = TypeVar("Constants", bound=tuple[Tensor, ...])


def iterate(
    step: Callable[[int, State, Constants], tuple[State, Tensor]],
    state: State,
    constants: Constants,
    limit: int,
) -> tuple[State, Tensor]:
    """Repeats ``step`` on B independent problems; each keeps the state at which it was first done.

    Args:
        step: maps (turn, state, constants) to the new state and done [B] bool. It must treat the rows
            independently, so that the result of a problem does not depend on its companions.
        state: NamedTuple of tensors [B, ...].
        constants: NamedTuple of tensors [B, ...] that the step reads.
        limit: most turns; 0 returns the start.

    Returns:
        The final state and which problems were done within the limit [B].
    """
    final = _make(state, [part.clone() for part in state])
    row = torch.arange(len(state[0]), device=state[0].device)
    finished = torch.zeros_like(row, dtype=torch.bool)
    running = ~finished
    for turn in range(limit):
        state, done = step(turn, state, constants)
        ends = running & done
        running = running & ~done
        leaves = running if turn == limit - 1 else ends
        for part, value in zip(final, state, strict=True):
            part[row[ends | leaves]] = value[ends | leaves]
        finished[row[ends]] = True
        if not running.any():
            break
        # Dropping finished problems copies all that remains, so wait until it halves the work.
        if 2 * running.sum() <= len(running):
            state = _make(state, [part[running] for part in state])
            constants = _make(constants, [part[running] for part in constants])
            row, running = row[running], running[running]
    return final, finished


def _make(like: State, parts: list[Tensor]) -> State:
    return type(like)(*parts)
