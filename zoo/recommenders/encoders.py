"""Encoders of item sequences that are padded on the left: SASRec in RecBole's BERT style, and GRU4Rec."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from zoo.recommenders.dropout import Dropout, attention

MASKED = -10000.0


def check_sequences(item_seq: Tensor, num_items: int) -> None:
    """Checks rows [B, L] of items, padded with 0 on the left.

    Raises:
        ValueError: names the first row that has no item, ends with padding, or holds an id outside [0, num_items].
    """
    bad = ((item_seq < 0) | (item_seq > num_items)).any(1)
    if bad.any():
        row = int(bad.int().argmax())
        ids = item_seq[row]
        raise ValueError(
            f"item_seq row {row} has ids in [{ids.min()}, {ids.max()}]: items are 1 to {num_items}, 0 is padding"
        )
    padded = item_seq[:, -1] == 0
    if padded.any():
        row = int(padded.int().argmax())
        if not item_seq[row].any():
            raise ValueError(f"item_seq row {row} has no item: leave out empty histories")
        raise ValueError(
            f"item_seq row {row}: its last column is padding; pad on the left, so that the last column is the most "
            "recent item"
        )


class SequenceEncoder(nn.Module):
    """Sequences of items to a vector of what comes next. ``build`` makes its parameters, once the items are counted.

    Args:
        dim: d, of the items' vectors and of the output.
        max_length: L, the columns of a sequence.
    """

    item_embedding: nn.Embedding

    def __init__(self, dim: int, max_length: int) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("max_length", max_length)):
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        self.dim, self.max_length = dim, max_length

    @property
    def num_items(self) -> int | None:
        """V, the number of items; None before ``build``."""
        return self.item_embedding.num_embeddings - 1 if "item_embedding" in self._modules else None

    def build(self, num_items: int) -> Self:
        """Makes the item table [V + 1, d], whose row 0 is padding, and all other parameters; draws initial values."""
        if num_items < 1:
            raise ValueError(f"num_items={num_items}: must be at least 1")
        self.item_embedding = nn.Embedding(num_items + 1, self.dim, padding_idx=0)
        self.initialize()
        return self

    def initialize(self) -> None:
        """Draws the initial values of all parameters."""
        raise NotImplementedError

    def states(self, item_seq: Tensor) -> Tensor:
        """One vector a column, [B, L, d], of [B, L] int64; a column sees itself and those before it."""
        raise NotImplementedError

    def forward(self, item_seq: Tensor) -> Tensor:
        """The vector of the last column, [B, d], of [B, L] int64."""
        return self.states(item_seq)[:, -1]

    def _check_length(self, item_seq: Tensor) -> None:
        if item_seq.shape[1] != self.max_length:
            raise ValueError(
                f"sequences have {item_seq.shape[1]} columns, the encoder's max_length is {self.max_length}: set both "
                "to the same"
            )


class Block(nn.Module):
    """Self-attention and feed-forward with a LayerNorm after each sum (post-norm).

    The query, key and value maps are the rows 0 to d, d to 2d and 2d to 3d of one Linear.
    """

    def __init__(self, dim: int, inner: int, heads: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.heads, self.attention_dropout = heads, attention_dropout
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)
        self.attention_norm = nn.LayerNorm(dim, eps=1e-12)
        self.widen, self.narrow = nn.Linear(dim, inner), nn.Linear(inner, dim)
        self.gelu = nn.GELU()
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, last: bool = False) -> Tensor:
        """[B, L, d] of [B, L, d] under an additive mask [B, 1, L, L]; only the last column, [B, 1, d], if ``last``."""
        if last:
            weight, bias, d = self.query_key_value.weight, self.query_key_value.bias, x.shape[-1]
            key, value = linear(x, weight[d:], bias[d:]).chunk(2, -1)
            x, mask = x[:, -1:], mask[:, :, -1:]
            query = linear(x, weight[:d], bias[:d])
        else:
            query, key, value = self.query_key_value(x).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        mixed = attention(query, key, value, mask, self.attention_dropout if self.training else 0.0)
        x = self.attention_norm(self.dropout(self.output(mixed.transpose(1, 2).flatten(-2))) + x)
        out: Tensor = self.norm(self.dropout(self.narrow(self.gelu(self.widen(x)))) + x)
        return out


class SASRec(SequenceEncoder):
    """Self-attentive sequential recommendation (arXiv 1808.09781) in the form of RecBole 1.2 that SRA-CL uses.

    Positions are the columns of the window, so the last item always has the last one. Column i sees the items j <= i;
    other scores are lowered by 10,000. GELU is exact. All Linear and Embedding weights, the padding row too, start from
    N(0, 0.02); the padding row has no effect on the last column, as it is masked.

    Args:
        dim: d.
        inner: width of the feed-forward.
        layers: number of blocks.
        heads: must divide ``dim``.
        dropout: of the summed embeddings and of each block's two outputs.
        attention_dropout: of the attention weights.
        max_length: L.
    """

    def __init__(
        self,
        dim: int = 64,
        inner: int = 256,
        layers: int = 2,
        heads: int = 2,
        dropout: float = 0.5,
        attention_dropout: float = 0.5,
        max_length: int = 20,
    ) -> None:
        super().__init__(dim, max_length)
        if heads < 1 or dim % heads:
            raise ValueError(f"heads={heads}: must divide dim={dim}")
        if layers < 1:
            raise ValueError(f"layers={layers}: must be at least 1")
        self.position_embedding = nn.Embedding(max_length, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, inner, heads, dropout, attention_dropout) for _ in range(layers))

    def initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def states(self, item_seq: Tensor) -> Tensor:
        return self._encode(item_seq, last=False)

    def forward(self, item_seq: Tensor) -> Tensor:
        return self._encode(item_seq, last=True)[:, 0]

    def _encode(self, item_seq: Tensor, last: bool) -> Tensor:
        self._check_length(item_seq)
        x = self.dropout(self.norm(self.item_embedding(item_seq) + self.position_embedding.weight))
        column = torch.arange(self.max_length, device=item_seq.device)
        hidden = (item_seq == 0)[:, None, None] | (column > column[:, None])
        mask = torch.zeros_like(hidden, dtype=x.dtype).masked_fill(hidden, MASKED)
        for block in self.blocks[:-1]:
            x = block(x, mask)
        out: Tensor = self.blocks[-1](x, mask, last)
        return out


class GRU4Rec(SequenceEncoder):
    """Gated recurrent units (arXiv 1511.06939) in RecBole's form: a GRU without biases and a map back to d.

    Padding is zero here and leaves the zero state as it is, so sequences padded on the left give the same as without
    padding. The item table starts from Xavier-normal, the GRU from Xavier-uniform values.

    Args:
        dim: d.
        hidden: width of the state.
        layers: number of GRU layers.
        dropout: of the items' vectors.
        max_length: L.
    """

    def __init__(
        self, dim: int = 64, hidden: int = 128, layers: int = 1, dropout: float = 0.3, max_length: int = 20
    ) -> None:
        super().__init__(dim, max_length)
        self.dropout = Dropout(dropout)
        self.gru = nn.GRU(dim, hidden, layers, bias=False, batch_first=True)
        self.narrow = nn.Linear(hidden, dim)

    def initialize(self) -> None:
        nn.init.xavier_normal_(self.item_embedding.weight)
        for weight in self.gru.parameters():
            nn.init.xavier_uniform_(weight)

    def states(self, item_seq: Tensor) -> Tensor:
        self._check_length(item_seq)
        x = self.dropout(self.item_embedding(item_seq) * (item_seq != 0)[..., None])
        out: Tensor = self.narrow(self.gru(x)[0])
        return out
