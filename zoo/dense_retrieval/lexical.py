"""BM25: the baseline that counts words, and the usual source of hard negatives."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.batches import Document
from datamodules.search import Hits
from zoo.catalogue import register
from zoo.dense_retrieval.evaluation import Ranker, Stage
from zoo.dense_retrieval.prompts import fill

TEMPLATE = "{title} {text}"


class LexicalIndex:
    """BM25 over documents, in Lucene's form (Kamphuis et al., ECIR 2020).

    ``sum over query words of log(1 + (N - df + .5) / (df + .5)) * tf / (tf + k1 * (1 - b + b * |d| / mean |d|))``

    Args:
        texts: of the documents, in order.
        k1, b: weights of frequency and length.
        stop_words: leave out English stop words.
    """

    def __init__(self, texts: Iterable[str], k1: float = 0.9, b: float = 0.4, stop_words: bool = True) -> None:
        import bm25s

        if k1 < 0 or not 0 <= b <= 1:
            raise ValueError(f"k1={k1} must be at least 0 and b={b} between 0 and 1")
        self.stop_words = "en" if stop_words else []
        self._model = bm25s.BM25(method="lucene", k1=k1, b=b)
        tokens = bm25s.tokenize(list(texts), stopwords=self.stop_words, show_progress=False)
        if not tokens.vocab:
            raise ValueError("the documents have no words that BM25 could count")
        self._model.index(tokens, show_progress=False)

    def search(self, queries: Sequence[str], k: int) -> Hits:
        """Scores [Q, k] float32 and document numbers [Q, k] int64; -inf and -1 for documents that share no word."""
        import bm25s

        words = bm25s.tokenize(list(queries), stopwords=self.stop_words, show_progress=False, return_ids=False)
        known = self._model.vocab_dict
        score = torch.full((len(queries), k), -torch.inf)
        row = torch.full((len(queries), k), -1)
        for number, query in enumerate(words):
            if not (kept := [word for word in query if word in known]):
                continue
            scores = self._model.get_scores(kept)
            best = _best(scores, k)
            score[number, : len(best)] = torch.from_numpy(scores[best])
            row[number, : len(best)] = torch.from_numpy(best)
        return score, row


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """Places of the k largest positive scores, descending; equal ones by place."""
    above = np.flatnonzero(scores > 0)
    if len(above) > k:
        least = np.partition(scores[above], len(above) - k)[len(above) - k]
        above = above[scores[above] >= least]
    return above[np.argsort(-scores[above], kind="stable")][:k]


@register(
    "bm25",
    papers=[],
    task="dense retrieval",
    config="dense_retrieval/bm25_boolq",
    strategies=["single"],
)
class BM25(Ranker):
    """Ranks by counting words; there is nothing to train, so ``test`` and ``predict`` need no fit.

    Args:
        k1, b: weights of frequency and length.
        stop_words: leave out English stop words.
        template: what of a document is counted.
        ranking: see :class:`~zoo.dense_retrieval.evaluation.Ranker`.
    """

    def __init__(
        self,
        k1: float = 0.9,
        b: float = 0.4,
        stop_words: bool = True,
        template: str = TEMPLATE,
        **ranking: Any,
    ) -> None:
        super().__init__(**ranking)
        self.k1, self.b, self.stop_words, self.template = k1, b, stop_words, template
        self._rows = torch.empty(0, dtype=torch.int64)
        self._index: LexicalIndex | None = None

    def prepare(self, stage: Stage) -> None:
        corpus, rows = self._data.data.corpus, self.rows(stage)
        texts = (fill(self.template, corpus[int(row)]).text for row in rows)
        self._rows = torch.from_numpy(rows)
        self._index = LexicalIndex(texts, self.k1, self.b, self.stop_words)

    def represent(self, queries: Sequence[Document]) -> list[str]:
        return [query["text"] for query in queries]

    def find(self, known: Sequence[list[str]], k: int) -> Hits:
        assert self._index is not None
        score, place = self._index.search(list(chain.from_iterable(known)), k)
        return score, torch.where(place < 0, -1, self._rows[place])

    def forget(self) -> None:
        self._index = None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return torch.zeros((), device=self.device, requires_grad=True)

    def configure_optimizers(self) -> None:
        return None
