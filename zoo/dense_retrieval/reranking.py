"""A test's further rankings by query likelihood: of the first passages that another ranking found."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from datamodules.batches import Document
from datamodules.search import Hits
from zoo.dense_retrieval.runs import hits_of, read_run
from zoo.dense_retrieval.scoring import Reranker, dirichlet_score

if TYPE_CHECKING:
    from zoo.dense_retrieval.query_likelihood import QueryLikelihood


@dataclass(frozen=True)
class Reranking:
    """Which passages a test ranks by likelihood: the ``first`` of each query's, or of those of a TREC run ``file``;
    with ``mu`` also by counted words, smoothed by as many of the collection."""

    first: int
    file: str | None = None
    mu: float | None = None

    def given(self, queries: Sequence[str], corpus: Any) -> Hits | None:
        """The hits of the file for queries by id; None without a file.

        Raises:
            ValueError: for a run without any of the queries, or with documents that the corpus lacks.
        """
        if self.file is None:
            return None
        run = read_run(self.file)
        if not run.keys() & set(queries):
            raise ValueError(f"rerank_run={self.file}: has none of the queries, such as {queries[0]!r}")
        return hits_of(run, queries, corpus, self.first)

    def rankings(
        self, model: "QueryLikelihood", queries: Sequence[Document], hits: Hits, corpus: Any, rows: Iterable[int]
    ) -> dict[str, Hits]:
        """``hits`` [Q, k] in the order of each likelihood, by the name of the method; ``rows`` are the collection's."""
        ways = {"query likelihood": Reranker(model, model.encode_batch_size).rerank}
        if self.mu is not None:
            texts = (model.plain(corpus[int(row)], "passage") for row in rows)
            ways["counted words"] = DirichletRanker(texts, lambda found: model.plain(found, "passage"), self.mu).rerank
        rank_zero_info(f"reranking {hits[1].shape[1]} passages of {len(queries):,} queries by {', '.join(ways)}")
        return {name: reranked(queries, hits, corpus.documents, rerank) for name, rerank in ways.items()}


class DirichletRanker:
    """Scores passages by ``dirichlet_score``, words being runs of letters and digits in lower case.

    Args:
        texts: of the whole collection.
        text_of: what of a document is counted.
        mu: weight of the collection, in words.
    """

    def __init__(self, texts: Iterable[str], text_of: Callable[[Document], str], mu: float) -> None:
        self.collection = Counter(chain.from_iterable(map(_words, texts)))
        self.total, self.text_of, self.mu = self.collection.total(), text_of, mu

    def rerank(self, query: Document, passages: Sequence[Document]) -> Tensor:
        """Scores [N] of ``passages``."""
        asked = _words(query["text"])
        found = (_words(self.text_of(passage)) for passage in passages)
        return torch.tensor([dirichlet_score(asked, words, self.collection, self.mu, self.total) for words in found])


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def reranked(
    queries: Sequence[Document],
    hits: Hits,
    documents: Callable[[Sequence[int]], Sequence[Document]],
    rerank: Callable[[Document, Sequence[Document]], Tensor],
) -> Hits:
    """The corpus rows of hits [Q, k], each query's by new scores; -inf and -1 stay last.

    Args:
        queries: Q of them.
        hits: scores, which play no part, and corpus rows.
        documents: of corpus rows.
        rerank: scores [n] of a query's documents.
    """
    score, row = torch.full(hits[1].shape, -torch.inf), torch.full_like(hits[1], -1)
    for at, query in enumerate(queries):
        found = hits[1][at][hits[1][at] >= 0]
        if len(found):
            best = rerank(query, documents(found.tolist())).sort(descending=True, stable=True)
            score[at, : len(found)], row[at, : len(found)] = best.values, found[best.indices]
    return score, row
