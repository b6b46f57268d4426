"""Samples of a retriever's training: which passages of a query come in which epoch, and queries to evaluate."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from datamodules.batches import Document, QueryBatch, RetrievalBatch
from datamodules.loaders import Keys
from datamodules.retrieval_store import Corpus, Examples, Passage
from datamodules.streams import key, uniform

Positive = Literal["window", "uniform"]

# Part of a key that tells the uses of one seed apart.
_SAMPLE, _POSITIVE, _NEGATIVE, _REPEAT = range(4)


class TrainingExamples:
    """Samples: a keyed data set of ``RetrievalBatch``."""

    def __init__(self, examples: Examples, corpus: Corpus, group: int, positive: Positive, seed: int) -> None:
        self.examples, self.corpus, self.group, self.positive, self.seed = examples, corpus, group, positive, seed

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, keys: Keys) -> RetrievalBatch:
        query: list[Document] = []
        passages: list[Passage] = []
        for epoch, index in keys:
            found = self.examples[index]
            query.append({"text": found.query})
            positives, negatives = self.examples.count[index].tolist()
            first, rest = chosen(self.seed, epoch, index, positives, negatives, self.group, self.positive)
            passages += [found.positive[first], *(found.negative[at] for at in rest)]
        return RetrievalBatch(
            query,
            [passage_document(passage, self.corpus) for passage in passages],
            torch.tensor([passage.row for passage in passages]),
            torch.from_numpy(key(self.seed, _SAMPLE, *np.array(keys).T).view(np.int64)),
        )


def chosen(
    seed: int, epoch: int, index: int, positives: int, negatives: int, group: int, positive: Positive = "window"
) -> tuple[int, list[int]]:
    """The positive and the ``group`` - 1 negatives of sample ``index`` in ``epoch``, as places in their lists.

    LLM-QL, arXiv 2504.05216, official code: positive (h + epoch) mod ``positives``; negatives, shuffled once, from
    epoch (group - 1) mod ``negatives`` on, round their end; fewer than group - 1 are drawn with replacement.
    """
    h = int(key(seed, _POSITIVE, index))
    if positive == "uniform":
        first = int(uniform(key(seed, _POSITIVE, index, epoch), 1)[0] * positives)
    else:
        first = (h + epoch) % positives
    asked = group - 1
    if negatives < asked:
        drawn = uniform(key(seed, _REPEAT, index, epoch), asked) * negatives
        return first, drawn.astype(np.int64).tolist()
    if not asked:
        return first, []
    order = np.argsort(uniform(key(seed, _NEGATIVE, index), negatives), kind="stable")
    window = (epoch * asked + np.arange(asked)) % negatives
    return first, order[window].tolist()


class EvaluatedQueries:
    """Queries by row: a keyed data set of ``QueryBatch``; keys' epochs play no part."""

    def __init__(self, text: Sequence[str]) -> None:
        self.text = text

    def __len__(self) -> int:
        return len(self.text)

    def __getitems__(self, keys: Keys) -> QueryBatch:
        rows = [index for _, index in keys]
        return QueryBatch([{"text": self.text[row]} for row in rows], torch.tensor(rows))


def passage_document(passage: Passage, corpus: Corpus) -> Document:
    """What an example's passage says."""
    return corpus[passage.row] if passage.document is None else passage.document
