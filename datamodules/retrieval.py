"""Dense retrieval: queries with passages to train a retriever on, and queries to rank a corpus for."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from datamodules.batches import Document, QueryBatch, RetrievalBatch
from datamodules.interactions import text_lines
from datamodules.loaders import KeyedBatchSampler, ResumableLoader
from datamodules.retrieval_examples import judged_examples, read_examples
from datamodules.retrieval_samples import EvaluatedQueries, Positive, TrainingExamples, passage_document
from datamodules.retrieval_store import Examples, Qrels, Queries, RetrievalData, RetrievalSet
from datamodules.streams import key, uniform

Stage = Literal["train", "val", "test", "predict"]

# Part of a key that tells the uses of one seed apart.
_ORDER, _OTHERS, _SAMPLES = range(3)


class Retrieval(LightningDataModule):
    """A corpus with queries, to train retrievers on and to rank the corpus for.

    A sample is a query with ``group`` passages: one that answers it and ``group`` - 1 negatives, which change from
    epoch to epoch (LLM-QL, arXiv 2504.05216, and Tevatron): of positives the one at (h + epoch) mod their number, h a
    number of the sample's own; negatives, once shuffled, in a window that moves on by ``group`` - 1 each epoch.
    A query with fewer negatives than that has them drawn with replacement.

    ``train_dataloader`` gives ``RetrievalBatch``, the others ``QueryBatch``; a method reads the documents to search
    from ``data.corpus`` by the rows ``eval_rows``.

    Args:
        dataset: where the data come from.
        batch_size: queries of a rank's training batch.
        group: G, passages of a training query.
        eval_batch_size: queries of a rank's evaluation batch.
        positive: the window above, or one positive drawn uniformly in each epoch.
        negatives: file of Tevatron's JSON lines, such as mined negatives, whose queries and passages are then trained
            on in place of the data set's own; null for the data set's own.
        val_documents: validation searches the relevant documents and this many others; null for all.
        splits: names of the data set's splits for ``train``, ``val`` and ``test``, which default to train, dev and
            test; null in place of a name for no validation.
        num_workers: processes that make batches; 0 makes them in the main process.
        seed: of the order, the draws and the documents of ``val_documents``.
        predict_queries: text file of queries, one a line; null for the test split's.
    """

    def __init__(
        self,
        dataset: RetrievalSet,
        batch_size: int = 32,
        group: int = 1,
        eval_batch_size: int = 64,
        positive: Positive = "window",
        negatives: str | None = None,
        val_documents: int | None = None,
        splits: dict[str, str | None] | None = None,
        num_workers: int = 0,
        seed: int = 0,
        predict_queries: str | None = None,
    ) -> None:
        super().__init__()
        for name, value in {"batch_size": batch_size, "group": group, "eval_batch_size": eval_batch_size}.items():
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        if val_documents is not None and val_documents < 0:
            raise ValueError(f"val_documents={val_documents}: must be at least 0, or null for all")
        if unknown := sorted(set(splits or {}) - {"train", "val", "test"}):
            raise ValueError(f"splits: {unknown[0]!r} is none of train, val, test")
        self.dataset, self.batch_size, self.group, self.eval_batch_size = dataset, batch_size, group, eval_batch_size
        self.positive, self.negatives, self.val_documents = positive, negatives, val_documents
        self.splits: dict[str, str | None] = {"train": "train", "val": "dev", "test": "test", **(splits or {})}
        self.num_workers, self.seed, self.predict_queries = num_workers, seed, predict_queries

    @cached_property
    def data(self) -> RetrievalData:
        return self.dataset.load()

    @cached_property
    def examples(self) -> Examples:
        """What is trained on, checked for ``group``."""
        data = self.data
        found = data.examples
        if self.negatives is not None:
            found = read_examples(Path(self.negatives).expanduser(), data.corpus)
            rank_zero_info(f"training on the {len(found):,} queries of {self.negatives}")
        elif found is None:
            found = judged_examples(data.corpus, self.queries("train"), self.qrels("train"))
        if not len(found):
            raise ValueError(f"{self.dataset.name} has no query with a relevant document to train on")
        count = found.count[:, 1]
        if self.group > 1 and not count.all():
            raise ValueError(
                f"group={self.group} asks for negatives, but {int((count == 0).sum()):,} queries have none, the first "
                f"{found.ids[int(count.argmin())]!r}: give negatives, a file of mined ones, or group=1 for in-batch "
                "negatives alone"
            )
        if few := int((count < self.group - 1).sum()):
            rank_zero_warn(f"{few:,} queries have fewer than {self.group - 1} negatives: drawn with replacement")
        return found

    def prepare_data(self) -> None:
        _ = self.data  # one process a machine fills the cache of unpacked files and line starts

    def setup(self, stage: str) -> None:
        """Reads the data, says once how much there is, and checks what ``stage`` needs."""
        _ = self._shown
        if stage == "fit":
            _ = self.examples
        if stage == "validate" or (stage == "fit" and self.splits["val"] is not None):
            self.queries("val")
        elif stage in ("test", "predict"):
            self.queries(cast(Stage, stage))

    @cached_property
    def _shown(self) -> None:
        data = self.data
        rank_zero_info(f"{self.dataset.name}: {len(data.corpus):,} documents")
        for split, queries in data.queries.items():
            relevant = sum(grade > 0 for grades in data.qrels[split].values() for grade in grades.values())
            rank_zero_info(f"  {split}: {len(queries):,} queries, {relevant:,} relevant documents")

    def _split(self, stage: Stage) -> str:
        name, known = self.splits["test" if stage == "predict" else stage], self.data.queries
        if name not in known:
            raise ValueError(
                f"splits.{stage}={name!r}: {self.dataset.name} has {', '.join(known) or 'no judged queries'}; name one "
                "of them" + (", or null for no validation" if stage == "val" else "")
            )
        return cast(str, name)

    def queries(self, stage: Stage) -> Queries:
        """The queries that ``stage`` is about; ``QueryBatch.row`` is a query's place in them."""
        if stage == "predict" and self.predict_queries is not None:
            return self._predicted
        return self.data.queries[self._split(stage)]

    @cached_property
    def _predicted(self) -> Queries:
        found = list(text_lines(Path(cast(str, self.predict_queries)).expanduser()))
        if not found:
            raise ValueError(f"predict_queries={self.predict_queries}: the file holds no queries")
        return Queries([str(number) for number, _ in found], [text.strip() for _, text in found])

    def qrels(self, stage: Stage) -> Qrels:
        """The judgements of the queries of ``stage``; none for queries from a file."""
        if stage == "predict" and self.predict_queries is not None:
            return {}
        return self.data.qrels[self._split(stage)]

    def eval_rows(self, stage: Stage) -> np.ndarray:
        """The rows of the corpus that ``stage`` searches, [documents] int64, ascending."""
        every = np.arange(len(self.data.corpus))
        if stage != "val" or self.val_documents is None:
            return every
        judged = [id for grades in self.qrels("val").values() for id, grade in grades.items() if grade > 0]
        rows = self.data.corpus.rows(judged)
        chance = uniform(key(self.seed, _OTHERS, every), 1)[:, 0]
        chance[rows[rows >= 0]] = -1
        count = int((chance < 0).sum()) + self.val_documents
        return np.sort(np.argsort(chance, kind="stable")[:count])

    def train_texts(self, limit: int | None = None) -> Iterator[str]:
        """Queries and documents to train a tokenizer on, at most ``limit`` of each, evenly spaced."""
        examples, corpus = self.examples, self.data.corpus
        for index in _spaced(len(examples), limit):
            found = examples[index]
            yield found.query
            if not len(corpus):
                yield _text(passage_document(found.positive[0], corpus))
        for row in _spaced(len(corpus), limit):
            yield _text(corpus[row])

    def train_dataloader(self) -> ResumableLoader:
        seed = int(key(self.seed, _SAMPLES))
        data = TrainingExamples(self.examples, self.data.corpus, self.group, self.positive, seed)
        order = int(key(self.seed, _ORDER))
        sampler = KeyedBatchSampler(len(data), self.batch_size, shuffle=True, seed=order, drop_last=True)
        return ResumableLoader(data, sampler, self.num_workers)

    def val_dataloader(self) -> ResumableLoader | list[ResumableLoader]:
        return [] if self.splits["val"] is None else self._asked("val")

    def test_dataloader(self) -> ResumableLoader:
        return self._asked("test")

    def predict_dataloader(self) -> ResumableLoader:
        return self._asked("predict")

    def _asked(self, stage: Stage) -> ResumableLoader:
        data = EvaluatedQueries(self.queries(stage).text)
        return ResumableLoader(data, KeyedBatchSampler(len(data), self.eval_batch_size), self.num_workers)

    def transfer_batch_to_device(
        self, batch: RetrievalBatch | QueryBatch, device: torch.device, dataloader_idx: int
    ) -> RetrievalBatch | QueryBatch:
        """Moves the tensors alone: Lightning's own way looks into every text."""
        if isinstance(batch, RetrievalBatch):
            return batch._replace(row=batch.row.to(device), key=batch.key.to(device))
        return batch._replace(row=batch.row.to(device))


def _text(document: Document) -> str:
    return " ".join(filter(None, document.values()))


def _spaced(count: int, limit: int | None) -> Iterator[int]:
    """At most ``limit`` of 0 to ``count`` - 1, evenly spaced."""
    taken = count if limit is None else min(limit, count)
    return (at * count // taken for at in range(taken))
