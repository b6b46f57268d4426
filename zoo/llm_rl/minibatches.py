"""The minibatches of a rollout: its rows, cut for the optimiser steps and their passes, with their tokens' weights."""

from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor

from datamodules.streams import key, uniform
from zoo.distributed import gather
from zoo.llm_rl.aggregation import coefficients
from zoo.llm_rl.batches import Minibatch, Rollout, Tokens

if TYPE_CHECKING:
    from zoo.llm_rl.fine_tuner import PolicyFineTuner


class Slot(NamedTuple):
    """One minibatch to come: ``rows`` of the rollout, [b] int64, and what a :class:`Minibatch` has of them alone.

    ``idle``: there is nothing to learn from in its whole optimiser step.
    """

    rows: Tensor
    coefficient: Tensor
    value_coefficient: Tensor | None
    row_coefficient: Tensor | None
    idle: bool


class Collected(NamedTuple):
    """One rollout, ready to learn from: what its rows share, and the slots in order."""

    rollout: Rollout
    advantage: Tensor
    tokens: Tokens
    returns: Tensor | None
    extra: dict[str, Tensor] | None
    slots: list[Slot]

    def minibatch(self, slot: Slot) -> Minibatch:
        """What is learned from in one forward pass."""
        rollout = self.rollout.take(slot.rows)
        width = rollout.mask.shape[1]

        def narrow(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[slot.rows, :width]

        tokens, extra = self.tokens, self.extra
        return Minibatch(
            rollout,
            self.advantage[slot.rows, :width],
            slot.coefficient[:, :width],
            narrow(tokens.old),
            narrow(tokens.reference),
            narrow(tokens.value),
            narrow(self.returns),
            None if slot.value_coefficient is None else slot.value_coefficient[:, :width],
            slot.row_coefficient,
            None if extra is None else {name: values[slot.rows] for name, values in extra.items()},
        )

    def state(self) -> dict[str, Any]:
        """As tensors on the CPU, numbers, dicts and lists."""
        parts = {"rollout": self.rollout._asdict(), "tokens": self.tokens._asdict()}
        state: dict[str, Any] = {**self._asdict(), **parts, "slots": [slot._asdict() for slot in self.slots]}
        return {name: _to(value, torch.device("cpu")) for name, value in state.items()}

    @classmethod
    def of(cls, state: dict[str, Any], device: torch.device) -> Self:
        """What ``state`` has written."""
        found = {name: _to(state[name], device) for name in cls._fields}
        parts = {"rollout": Rollout(**found["rollout"]), "tokens": Tokens(**found["tokens"])}
        return cls(**{**found, **parts, "slots": [Slot(**slot) for slot in found["slots"]]})


def cut(learner: "PolicyFineTuner", collected: Collected, rows: Tensor, weight: Tensor, scored: Tensor) -> list[Slot]:
    """The minibatches of all passes over ``rows`` [kept], whose tokens have a ``weight`` [b, T].

    A critic learns from rows that are ``scored`` [b] alone.
    """
    rollout, pieces = collected.rollout, learner.trainer.accumulate_grad_batches
    mask, objective, slots = rollout.mask, learner.objective, []
    length = mask.sum(1) + rollout.prompt_mask.sum(1)
    valued = (mask if rollout.valued is None else rollout.valued & mask) * scored[:, None].float()
    counted = length.float() if collected.extra is None else collected.extra["weight"]
    learned = (weight * collected.advantage.abs()).sum(1)
    sums = torch.ones_like(learned), weight.sum(1), valued.sum(1), learned, counted
    columns = torch.cat([x.reshape(len(mask), -1) for x in sums], 1)
    for iteration in range(learner.num_iterations):
        order = rows
        if learner.minibatches > 1 and len(rows):
            chance = uniform(key(rollout.key[rows].cpu().numpy(), iteration), 1)[:, 0]
            order = rows[torch.from_numpy(chance).argsort().to(rows.device)]
        # the rows of each optimiser step, longest first, so that passes have little padding
        steps = [
            part[length[part].argsort(descending=True, stable=True)] for part in order.tensor_split(learner.minibatches)
        ]
        sizes = torch.stack([columns[part].sum(0) for part in steps])
        totals = gather(sizes[None]).sum(0).tolist()
        for part, (sequences, tokens, values, strength, *counts) in zip(steps, totals, strict=True):
            count = counted.new_tensor(counts).clamp(min=1e-8).reshape(counted.shape[1:])
            if not learner.learns_without_advantage and objective.aggregation != "token_mean_local":
                part = part[learned[part] > 0]  # the others have no gradient
            for some in part.tensor_split(pieces):
                # Lightning averages over accumulated passes, data parallelism over ranks
                scale = pieces * learner.trainer.world_size
                if not len(some):  # all ranks make the same number of passes
                    some, scale = rows.new_zeros(1), 0

                def share(of: Tensor, total: float, some: Tensor = some, n: float = sequences) -> Tensor:
                    size = max(n, 1.0), max(total, 1.0)
                    return coefficients(objective.aggregation, mask[some], of[some], *size, objective.max_length)

                slots.append(
                    Slot(
                        some,
                        share(weight, tokens) * scale,
                        None if learner.critic is None else share(valued, values) * scale,
                        None if collected.extra is None else counted[some] / count * scale,
                        strength == 0 and not learner.learns_without_advantage,
                    )
                )
    return slots


def _to(x: Any, device: torch.device) -> Any:
    if torch.is_tensor(x):
        return x.to(device)
    if isinstance(x, dict):
        return {name: _to(value, device) for name, value in x.items()}
    return [_to(value, device) for value in x] if isinstance(x, list) else x
