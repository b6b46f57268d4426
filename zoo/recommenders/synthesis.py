"""One vector of several similar users' vectors: by attention over their texts, by a random choice, or by the mean."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, leaky_relu

from datamodules.batches import SequenceBatch


def attention_weights(semantics: Tensor, weight: Tensor, attention: Tensor, slope: float = 0.2) -> Tensor:
    """Weights [B, k] of the neighbours, each row summing to 1 (SRA-CL, arXiv 2503.04162, equations of the synthesiser).

    ``e_j = LeakyReLU(a . [g_u ; g_j])`` with ``g = semantics @ weight``, softmax over j. The anchor's term is the same
    for all j, so it acts through the kink of LeakyReLU alone.

    Args:
        semantics: [B, 1 + k, D], vectors of the texts of the anchor and then of its neighbours.
        weight: W [D, d].
        attention: a [2d], first the anchor's half.
        slope: of LeakyReLU below 0.
    """
    anchor, neighbor = (semantics @ (weight @ half) for half in attention.chunk(2))
    return leaky_relu(anchor[:, :1] + neighbor[:, 1:], slope).softmax(-1)


class Synthesizer(nn.Module):
    """Makes the positive of each sequence from its k neighbours' sequences."""

    def build(self, dim: int, semantic_dim: int | None) -> None:
        """Makes the parameters, unless there are, for vectors [d] and texts' vectors [D] (None without texts)."""

    def prepare(self, tables: Any) -> None:
        """Takes what training needs of the data's tables (``pool_embedding`` [M, D], ``pool_neighbors`` [M, k])."""

    def choose(self, neighbors: Tensor) -> Tensor:
        """Which of the neighbours [B, k, L] to encode: [B, m, L]."""
        return neighbors

    def forward(self, encoded: Tensor, batch: SequenceBatch) -> Tensor:
        """Vectors [B, m, d] to one, [B, d]."""
        raise NotImplementedError


class UniformSample(Synthesizer):
    """One neighbour, drawn uniformly; the others are not encoded."""

    def choose(self, neighbors: Tensor) -> Tensor:
        drawn = torch.randint(neighbors.shape[1], (len(neighbors),), device=neighbors.device)
        return neighbors[torch.arange(len(neighbors), device=neighbors.device), drawn][:, None]

    def forward(self, encoded: Tensor, batch: SequenceBatch) -> Tensor:
        return encoded[:, 0]


class Mean(Synthesizer):
    """The mean of the neighbours."""

    def forward(self, encoded: Tensor, batch: SequenceBatch) -> Tensor:
        return encoded.mean(1)


class Attention(Synthesizer):
    """A learned mean of the neighbours, weighed by their texts; see :func:`attention_weights`.

    The texts' vectors are not trained: they are no parameters and stand in no checkpoint.

    Args:
        dropout: of the weights, which are not normalised again (official code): all k may become 0.
        slope: of LeakyReLU.
    """

    def __init__(self, dropout: float = 0.5, slope: float = 0.2) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: must lie in [0, 1)")
        self.dropout, self.slope = dropout, slope
        # no buffers, which data-parallel training would send from rank to rank at every step
        self.pool_embedding: Tensor | None = None
        self.pool_neighbors: Tensor | None = None

    def build(self, dim: int, semantic_dim: int | None) -> None:
        if "weight" in self._parameters:
            return
        if semantic_dim is None:
            raise ValueError(
                "Attention weighs neighbours by the vectors of their texts, but the data have no semantics: give the "
                "data semantics, or choose the synthesizer Mean or UniformSample"
            )
        self.weight, self.attention = nn.Parameter(torch.empty(semantic_dim, dim)), nn.Parameter(torch.empty(2 * dim))
        nn.init.xavier_uniform_(self.weight, gain=1.414)
        nn.init.xavier_uniform_(self.attention[:, None], gain=1.414)

    def prepare(self, tables: Any) -> None:
        with warnings.catch_warnings():  # nothing writes to these read-only memory maps
            warnings.filterwarnings("ignore", message=".*not writable")
            embedding, neighbors = (torch.as_tensor(t) for t in (tables.pool_embedding, tables.pool_neighbors))
        if len(embedding) != len(neighbors):
            raise ValueError(
                f"pool_embedding has {len(embedding)} rows, pool_neighbors {len(neighbors)}: must be equal"
            )
        if embedding.shape[1] != len(self.weight):
            raise ValueError(
                f"the texts' vectors have {embedding.shape[1]} components, the model was built for {len(self.weight)}: "
                "use the same text encoder"
            )
        self.pool_embedding, self.pool_neighbors = embedding.to(self.weight), neighbors.to(self.weight.device)

    def forward(self, encoded: Tensor, batch: SequenceBatch) -> Tensor:
        p = attention_weights(self.semantics(batch.prefix, encoded.shape[1]), self.weight, self.attention, self.slope)
        p = dropout(p, self.dropout, self.training)
        return (p[:, None] @ encoded)[:, 0]

    def semantics(self, prefix: Tensor, k: int) -> Tensor:
        """Texts' vectors [B, 1 + k, D] of prefixes [B] and of the k nearest neighbours of each."""
        if self.pool_embedding is None or self.pool_neighbors is None:
            raise RuntimeError("Attention has no tables yet: call prepare with the data's")
        rows = torch.cat([prefix[:, None], self.pool_neighbors[prefix, :k].long()], 1)
        return self.pool_embedding[rows]
