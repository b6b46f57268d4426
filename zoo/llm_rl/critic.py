"""Critics: heads that read the value of a state off a language model's hidden states, and their clipped loss."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from zoo.llm_rl.batches import Minibatch
from zoo.llm_rl.objectives import Metrics


class Valuation(NamedTuple):
    """``value`` [...] float32; ``embedding`` [..., E] float32, None of a head without one."""

    value: Tensor
    embedding: Tensor | None


class ValueHead(nn.Module):
    """Values of hidden states [..., H]: a linear layer, or CARFT's two (arXiv 2508.15868).

    Args:
        size: H.
        embedding: width E of a layer before the value, whose output is the token's embedding; the value is linear in
            its positive part. None for none.
        dropout: of the hidden states.
    """

    def __init__(self, size: int, embedding: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.embedding = None if embedding is None else nn.Linear(size, embedding)
        self.output = nn.Linear(size if embedding is None else embedding, 1)

    def forward(self, hidden: Tensor) -> Valuation:
        with torch.autocast(hidden.device.type, enabled=False):  # bfloat16 has three digits, returns need more
            hidden = self.dropout(hidden.to(self.output.weight.dtype))
            if self.embedding is None:
                return Valuation(self.output(hidden).squeeze(-1).float(), None)
            embedding = self.embedding(hidden)
            return Valuation(self.output(embedding.relu()).squeeze(-1).float(), embedding.float())


class Critic:
    """Settings of the critic and its loss.

    Args:
        heads: names of value heads, each with parameters of its own (RLGF keeps the policy's value and the guide's).
        clip: how far a value may move from that of the rollout before its loss stays the same; None for no clip.
        coefficient: weight of the value loss beside the policy loss.
        embedding, dropout: of ``ValueHead``; CARFT has 64 and 0.1.
    """

    def __init__(
        self,
        heads: Sequence[str] = ("policy",),
        clip: float | None = 0.2,
        coefficient: float = 0.5,
        embedding: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        if not heads or len(set(heads)) < len(heads):
            raise ValueError(f"heads={list(heads)}: name at least one head, and none twice")
        if clip is not None and clip <= 0:
            raise ValueError(f"clip={clip}: must be positive, or None")
        if coefficient < 0:
            raise ValueError(f"coefficient={coefficient}: must be at least 0")
        if embedding is not None and embedding < 1:
            raise ValueError(f"embedding={embedding}: must be at least 1, or None")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: must be in [0, 1)")
        self.heads, self.clip, self.coefficient = tuple(heads), clip, coefficient
        self.embedding, self.dropout = embedding, dropout

    def build(self, size: int) -> nn.ModuleDict:
        """The heads by name, for hidden states of ``size`` numbers."""
        return nn.ModuleDict({name: ValueHead(size, self.embedding, self.dropout) for name in self.heads})

    def loss(self, value: Tensor, minibatch: Minibatch) -> tuple[Tensor, Metrics]:
        """``coefficient`` times the sum of tokens' losses with their ``value_coefficient``, and metrics (sum, count).

        ``value`` [b, T] of the current critic, with gradient; the minibatch needs ``returns``, ``value`` (that of the
        rollout) and ``value_coefficient``.
        """
        old, returns, weight = minibatch.value, minibatch.returns, minibatch.value_coefficient
        if old is None or returns is None or weight is None:
            raise ValueError("the value loss needs returns, value and value_coefficient of the minibatch")
        loss = value_loss(value, old, returns, self.clip)
        valid = weight != 0
        moved = torch.zeros_like(valid) if self.clip is None else (value.detach() - old).abs() > self.clip
        metrics = {"loss/value_avg": loss.detach(), "val/clipfrac_avg": moved.float()}
        pairs = {name: (x.where(valid, 0.0).sum(), valid.sum()) for name, x in metrics.items()}
        return self.coefficient * (weight * loss).sum(), pairs


def value_loss(value: Tensor, old: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """Half the squared error, or that of the value clipped to ``old +- clip`` where it is larger; all elementwise."""
    error = (value - returns).square()
    if clip is not None:
        error = torch.maximum(error, (value.clamp(old - clip, old + clip) - returns).square())
    return error / 2
