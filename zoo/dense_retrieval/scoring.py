"""Ranking by query likelihood: by a language model from one slot a passage, and by counting words."""

import math
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from datamodules.batches import Document
from zoo.dense_retrieval.prompts import fill

if TYPE_CHECKING:
    from transformers import DynamicCache

    from zoo.dense_retrieval.query_likelihood import QueryLikelihood


class Slots(NamedTuple):
    """All that a query needs to know of N passages: the keys and values of E in each of L layers.

    ``key`` and ``value`` [N, L, heads, D], ``hidden`` [N, H] E's output, which predicts the first token, ``position``
    [N] int64 that of E.
    """

    key: Tensor
    value: Tensor
    hidden: Tensor
    position: Tensor


@torch.inference_mode()
def document_slots(model: "QueryLikelihood", passages: Sequence[Document]) -> Slots:
    """Reads passages, uncorrupted, up to E, and keeps E's slot alone.

    Exact under the attention block, because nothing behind E attends to columns before it (LLM-QL, arXiv 2504.05216).

    Raises:
        ValueError: if the model has no attention block: its queries look at all of a passage.
    """
    if not model.attention_block:
        raise ValueError("attention_block is False: a passage is more than one slot; use log_likelihood")
    rows = model.document_layout(passages, "passage").to(model.device)
    cache = _cache()
    hidden = model.language_model.hidden(rows.input_ids, rows.valid, rows.position, cache)
    key, value = (
        torch.stack([getattr(layer, name)[:, :, -1] for layer in cache.layers], 1) for name in ("keys", "values")
    )
    return Slots(key, value, hidden[:, -1], rows.position[:, -1])


@torch.inference_mode()
def score_queries(model: "QueryLikelihood", slots: Slots, queries: Sequence[Document]) -> Tensor:
    """``log P(q | d)`` [N] float32 of query i with the passage of slot i, the closing E included."""
    tokens = model.targets(queries, ["query"] * len(queries))
    length = max(map(len, tokens))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in tokens], device=model.device)
    real = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in tokens], device=model.device)
    cache = _cache()
    for layer, (key, value) in enumerate(zip(slots.key.unbind(1), slots.value.unbind(1), strict=True)):
        cache.update(key[:, :, None], value[:, :, None], layer)
    position = slots.position[:, None] + 1 + torch.arange(length, device=model.device)
    seen = torch.cat([torch.ones_like(real[:, :1]), real], 1)
    hidden = model.language_model.hidden(ids, seen, position, cache)
    before = torch.cat([slots.hidden[:, None], hidden[:, :-1]], 1)
    log_prob = model.language_model.token_log_probs(before[real], ids[real])
    row = real.nonzero()[:, 0]
    return torch.zeros(len(queries), device=model.device).index_add(0, row, log_prob)


def _cache() -> "DynamicCache":
    from transformers import DynamicCache

    return DynamicCache()


class Reranker:
    """Scores passages for queries by a model of stage one; the slots of the last ``keep`` passages stay in memory.

    Without an attention block each pair is run whole.
    """

    def __init__(self, model: "QueryLikelihood", batch_size: int = 32, keep: int = 10_000) -> None:
        for name, value in (("batch_size", batch_size), ("keep", keep)):
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        self.model, self.batch_size, self.keep = model.eval(), batch_size, keep
        self._kept: OrderedDict[str, Slots] = OrderedDict()

    def rerank(self, query: Document, passages: Sequence[Document]) -> Tensor:
        """``log P(q | d)`` [N] float32 on the CPU for each of ``passages``."""
        scores = [
            self._score([query] * len(part), part)
            for part in (passages[i : i + self.batch_size] for i in range(0, len(passages), self.batch_size))
        ]
        return torch.cat([torch.zeros(0), *scores])

    @torch.inference_mode()
    def _score(self, queries: Sequence[Document], passages: Sequence[Document]) -> Tensor:
        if not self.model.attention_block:
            return self.model.log_likelihood(queries, passages).cpu()
        template = self.model.templates["passage"]
        texts = [fill(template, passage).text for passage in passages]
        new = {text: passage for text, passage in zip(texts, passages, strict=True) if text not in self._kept}
        if new:
            made = document_slots(self.model, list(new.values()))
            self._kept.update(zip(new, (Slots(*one) for one in zip(*made, strict=True)), strict=True))
        slots = Slots(*(torch.stack(part) for part in zip(*(self._kept[text] for text in texts), strict=True)))
        for text in texts:
            self._kept.move_to_end(text)
        while len(self._kept) > self.keep:
            self._kept.popitem(last=False)
        return score_queries(self.model, slots, queries).cpu()


def dirichlet_score(
    query: Sequence[str],
    document: Sequence[str],
    collection: Mapping[str, int],
    mu: float = 2500.0,
    total: int | None = None,
) -> float:
    """``log P(q | d)`` of a unigram model of the document, smoothed by the collection's.

    Sum over query words of ``log((tf + mu * P(w | C)) / (|d| + mu))`` (Zhai and Lafferty, SIGIR 2001). Query words that
    the collection lacks say nothing about its documents and are left out.

    Args:
        query, document: words.
        collection: how often each word comes in all documents.
        mu: weight of the collection, in words.
        total: words of the collection, where they are counted already.

    Raises:
        ValueError: if ``mu`` is not above 0 or the collection is empty.
    """
    total = sum(collection.values()) if total is None else total
    if mu <= 0:
        raise ValueError(f"mu={mu}: must be above 0")
    if total == 0:
        raise ValueError("the collection has no words")
    count = Counter(document)
    return sum(
        math.log((count[word] + mu * collection[word] / total) / (len(document) + mu))
        for word in query
        if collection.get(word, 0) > 0
    )
