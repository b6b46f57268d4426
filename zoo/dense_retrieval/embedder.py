"""Texts to unit vectors: a language model, a template for each kind of text, and the pooling of its states."""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import normalize

from datamodules.batches import Document
from zoo.dense_retrieval.evaluation import Kind
from zoo.dense_retrieval.prompts import fields, fill
from zoo.language.models import LanguageModel
from zoo.language.text_embedding import mean_pooling
from zoo.language.tokenizers import require_eos

Pooling = Literal["last", "mean", "cls"]
CPU_TOKENS = 2048  # at once on a CPU: parts of similar length pad less, and small ones are no slower there
QUERY = (
    "Instruct: Given a web search query, retrieve the most relevant passage that answer the query.\n"
    "Query:  {text}\nThe most relevant passage:"
)
PASSAGE = "Instruct: Given a retrieved passage, summarize the passage.\nPassage:  {title} {text}\nSummarization:"


class Embedder(nn.Module):
    """Vectors [B, H] of documents, as LLM-QL's second stage makes them (arXiv 2504.05216) by default.

    With pooling ``last``, texts end with the tokenizer's end of sequence, whose state in the last column is the vector;
    padding is on the left then, on the right otherwise. Texts are cut on the right, before the end token.

    Args:
        language_model: the network.
        pooling: ``last`` for decoders; ``mean`` over tokens or ``cls``, the first token, for encoders.
        query_template, passage_template: texts around a document's ``{fields}``.
        query_length, passage_length: tokens that texts are cut to, special ones included.
        pad: to the ``longest`` of a batch, or to the full ``length``.
        normalise: make vectors of length 1.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        pooling: Pooling = "last",
        query_template: str = QUERY,
        passage_template: str = PASSAGE,
        query_length: int = 32,
        passage_length: int = 156,
        pad: Literal["longest", "length"] = "longest",
        normalise: bool = True,
    ) -> None:
        super().__init__()
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling={pooling!r}: must be one of {', '.join(get_args(Pooling))}")
        if pad not in ("longest", "length"):
            raise ValueError(f"pad={pad!r}: must be longest or length")
        if pooling == "cls" and language_model.kind == "causal":
            raise ValueError("pooling=cls: the first token of a causal model sees no other; use last or mean")
        for name, length in (("query_length", query_length), ("passage_length", passage_length)):
            if length < 2:
                raise ValueError(f"{name}={length}: must be at least 2")
        for name, template in (("query_template", query_template), ("passage_template", passage_template)):
            if not fields(template):
                raise ValueError(f"{name}={template!r}: has no field such as {{text}}")
        self.language_model, self.pooling, self.pad, self.normalise = language_model, pooling, pad, normalise
        self.templates: dict[Kind, str] = {"query": query_template, "passage": passage_template}
        self.lengths: dict[Kind, int] = {"query": query_length, "passage": passage_length}

    def tokens(self, documents: Sequence[Document], kind: Kind) -> list[np.ndarray]:
        """Tokens [t] int64 of each document in its template, at most ``query_length`` or ``passage_length``.

        Raises:
            ValueError: for a document without any text, and with pooling ``last`` for a tokenizer without EOS.
        """
        tokenizer, length = self.language_model.tokenizer, self.lengths[kind]
        texts = [fill(self.templates[kind], document).text for document in documents]
        end = [require_eos(tokenizer)] if self.pooling == "last" else []
        tokenizer.truncation_side = "right"
        rows = tokenizer(texts, truncation=True, max_length=length - len(end), return_attention_mask=False)["input_ids"]
        return [np.array(row if row[-1:] == end else row + end, np.int64) for row in rows]

    def padded(self, rows: Sequence[np.ndarray], kind: Kind) -> tuple[Tensor, Tensor]:
        """Tokens [B, T] int64 and where there are any, [B, T] bool, on the model's device."""
        size = np.array([len(row) for row in rows])[:, None]
        width = self.lengths[kind] if self.pad == "length" else int(size.max())
        column = np.arange(width)
        real = column >= width - size if self.pooling == "last" else column < size
        ids = np.full(real.shape, self.language_model.tokenizer.pad_token_id or 0, np.int64)
        ids[real] = np.concatenate(rows)
        device = next(self.language_model.parameters()).device
        return torch.from_numpy(ids).to(device, non_blocking=True), torch.from_numpy(real).to(device, non_blocking=True)

    def forward(self, documents: Sequence[Document], kind: Kind) -> Tensor:
        """Vectors [B, H] float32."""
        rows = self.tokens(documents, kind)
        # ranks that share a model's weights need equally many forwards, which parts of unequal batches are not
        shared = isinstance(self.language_model, FSDPModule)
        apart = next(self.language_model.parameters()).device.type == "cpu" and not shared
        most = max(1, CPU_TOKENS // max(map(len, rows))) if apart else len(rows)
        return self.in_parts(rows, kind, most, self.pooled)

    def in_parts(
        self, rows: Sequence[np.ndarray], kind: Kind, most: int, encode: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Vectors [B, H] of tokens, at most ``most`` texts of similar length at a time by ``encode``, as ``pooled``."""
        order = np.argsort([-len(row) for row in rows], kind="stable")
        batches = [[rows[at] for at in some] for some in np.split(order, range(most, len(order), most))]
        parts = [encode(*self.padded(some, kind)) for some in batches]
        return torch.cat(parts)[torch.from_numpy(np.argsort(order)).to(parts[0].device)]

    def pooled(self, ids: Tensor, real: Tensor) -> Tensor:
        """Vectors [B, H] float32 of tokens [B, T] where ``real`` [B, T]."""
        left = self.pooling == "last"
        # positions count from a text's first token, so that padding moves nothing
        position = (real.cumsum(1) - 1).clamp(min=0) if left else None
        hidden = self.language_model.hidden(ids, real.long(), position)
        with torch.autocast(ids.device.type, enabled=False):
            if left:
                vectors = hidden[:, -1].float()
            elif self.pooling == "mean":
                vectors = mean_pooling(hidden.float(), real)
            else:
                vectors = hidden[:, 0].float()
            return normalize(vectors, dim=1) if self.normalise else vectors
