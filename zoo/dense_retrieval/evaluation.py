"""What all retrievers share: the corpus searched for every query, metrics, a run file and answers to new queries."""

from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from datamodules.batches import Document, QueryBatch
from datamodules.search import Hits, Search
from zoo.dense_retrieval.index import CorpusIndex, encode_corpus, encode_in_memory, weight_norms
from zoo.dense_retrieval.runs import write_run
from zoo.distributed import gather_objects
from zoo.metrics.trec import Run, deepest, means, per_query, without_self

Kind = Literal["query", "passage"]
Stage = Literal["val", "test", "predict"]
METRICS = ("ndcg@10", "mrr@10", "recall@100")
QUERIES_AT_ONCE = 256  # whose hits are Python objects at a time
SANITY = 256  # documents that the check before a fit searches


class Ranker(LightningModule):
    """Ranks the corpus for every query of the data; a subclass says how.

    Metrics are ``<stage>/ndcg@10`` and so on, means over the queries with judgements, as fractions; a query that comes
    twice counts once and one without hits counts 0, so the result is the same for any number of ranks.

    Args:
        metrics: ``ndcg@k``, ``mrr@k``, ``recall@k``, ``map``, see :mod:`zoo.metrics.trec`.
        relevant_from: the lowest grade that is relevant to the metrics of two grades (all but nDCG); 2 for TREC DL.
        depth: hits of each query in the run of a test.
        top_k: passages that a prediction has for each query.
        drop_self: leave out the document with the query's own id, as BEIR does.
        run_file: write ``run.trec`` in the run folder at a test.
    """

    def __init__(
        self,
        metrics: Sequence[str] = METRICS,
        relevant_from: int = 1,
        depth: int = 1000,
        top_k: int = 10,
        drop_self: bool = False,
        run_file: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("relevant_from", relevant_from), ("depth", depth), ("top_k", top_k)):
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        if deepest(metrics) > depth:
            raise ValueError(f"depth={depth}: metrics ask for {deepest(metrics)} hits; raise depth")
        self.names, self.relevant_from, self.depth = tuple(metrics), relevant_from, depth
        self.top_k, self.drop_self, self.run_file = top_k, drop_self, run_file
        self._known: list[tuple[Tensor, Any]] = []
        self._results: list[dict[str, Any]] = []

    # --- what a subclass gives ---------------------------------------------------------------------------------------

    def prepare(self, stage: Stage) -> None:
        """Makes ready to search the data's ``eval_rows(stage)``."""
        raise NotImplementedError

    def represent(self, queries: Sequence[Document]) -> Any:
        """What ``find`` needs to know of B queries."""
        raise NotImplementedError

    def find(self, known: Sequence[Any], k: int) -> Hits:
        """Scores and corpus rows [Q, k], best first (-inf and -1 where there are fewer), for results of ``represent``.

        All ranks call it the same number of times.
        """
        raise NotImplementedError

    def forget(self) -> None:
        """Gives back the memory that ``prepare`` took."""

    def rankings(self, stage: Stage, row: Tensor, hits: Hits) -> dict[str, Hits]:
        """What is scored, by the name of the method: ``hits`` [Q, k] of the queries ``row`` [Q], and what is made of
        them. Alone, it needs no name."""
        return {"": hits}

    # --- evaluation --------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self._begin("val")

    def on_test_epoch_start(self) -> None:
        self._begin("test")

    def on_predict_epoch_start(self) -> None:
        self._begin("predict")

    def validation_step(self, batch: QueryBatch, batch_idx: int) -> None:
        self._known.append((batch.row, self.represent(batch.query)))

    def test_step(self, batch: QueryBatch, batch_idx: int) -> None:
        self._known.append((batch.row, self.represent(batch.query)))

    def on_validation_epoch_end(self) -> None:
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def on_predict_epoch_end(self) -> None:
        self.forget()

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def rows(self, stage: Stage) -> np.ndarray:
        """The rows of the corpus to search; a few of them in the check before a fit."""
        rows: np.ndarray = self._data.eval_rows(stage)
        return rows[:SANITY] if self.trainer.sanity_checking else rows

    def _begin(self, stage: Stage) -> None:
        self._known = []
        with self.trainer.precision_plugin.forward_context():  # hooks run outside of it, unlike steps
            self.prepare(stage)

    def _finish(self, stage: Stage) -> None:
        cut = stage != "test" and all("@" in name for name in self.names)
        depth = deepest(self.names) if cut else self.depth
        row = torch.cat([row for row, _ in self._known]).cpu()
        hits = self.find([known for _, known in self._known], depth + self.drop_self)
        self._known = []
        self.forget()
        folder = self.run_folder() if stage == "test" and self.run_file else None
        self._results = []
        with self.trainer.precision_plugin.forward_context():
            rankings = self.rankings(stage, row, hits)
        for number, (method, found) in enumerate(rankings.items()):
            name = method.replace(" ", "_") if number else ""
            values = self._values(stage, row, found, depth)
            scores = means(values)
            for metric, value in scores.items():
                shown = not name and metric == self.names[0]
                self.log(f"{stage}/{name}{'/' if name else ''}{metric}", value, prog_bar=shown, sync_dist=True)
            percent = {f"{metric} %": 100 * value for metric, value in scores.items()}
            self._results.append({**({"method": method} if method else {}), "queries": len(values), **percent})
            if folder is not None:
                self._write_run(folder / (f"run_{name}.trec" if name else "run.trec"), row, found)

    def _values(self, stage: Stage, row: Tensor, hits: Hits, depth: int) -> dict[str, dict[str, float]]:
        """Metrics by query id, of the queries of all ranks."""
        judged = self._data.qrels(stage)
        values: dict[str, dict[str, float]] = {}
        for start in range(0, len(row), QUERIES_AT_ONCE):
            part = slice(start, start + QUERIES_AT_ONCE)
            run = self._run(stage, row[part], (hits[0][part], hits[1][part]), depth)
            if known := {query: judged[query] for query in run if query in judged}:
                values |= per_query(run, known, self.names, self.relevant_from)
        return dict(chain.from_iterable(part.items() for part in gather_objects(values)))

    def _run(self, stage: Stage, row: Tensor, hits: Hits, depth: int) -> Run:
        queries, ids = self._data.queries(stage).ids, self._data.data.corpus.ids
        run = {
            queries[query]: {ids[at]: value for at, value in zip(found, score, strict=True) if at >= 0}
            for query, score, found in zip(row.tolist(), hits[0].tolist(), hits[1].tolist(), strict=True)
        }
        if not self.drop_self:
            return run
        return {query: dict(list(found.items())[:depth]) for query, found in without_self(run).items()}

    def _write_run(self, file: Path, row: Tensor, hits: Hits) -> None:
        parts = gather_objects((row, hits))
        if not self.trainer.is_global_zero:
            return
        written: set[int] = set()
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", encoding="utf-8") as out:
            for row, (score, found) in parts:
                for query in range(len(row)):
                    one = slice(query, query + 1)
                    if row[query].item() not in written:
                        write_run(out, self._run("test", row[one], (score[one], found[one]), self.depth))
                        written.add(int(row[query]))
        rank_zero_info(f"The run of {len(written):,} queries is in {file}")

    def run_folder(self) -> Path | None:
        """Where a run's files go; None without a logger. A broadcast: all ranks must ask."""
        log_dir = self.trainer.log_dir
        return None if log_dir is None or self.trainer.logger is None else Path(log_dir)

    def results(self) -> list[dict[str, Any]]:
        """The last evaluation in percent."""
        return self._results

    def predict_step(self, batch: QueryBatch, batch_idx: int) -> list[dict[str, Any]]:
        """The best passages of each query: rows of query id, query, rank, id, title, text and score."""
        corpus, queries = self._data.data.corpus, self._data.queries("predict")
        score, found = self.find([self.represent(batch.query)], self.top_k)
        rows = []
        for number, values, places in zip(batch.row.tolist(), score.tolist(), found.tolist(), strict=True):
            for rank, (at, value) in enumerate(zip(places, values, strict=True), 1):
                if at < 0:
                    break
                document = corpus[at]
                named = {"id": corpus.ids[at], "title": document.get("title", ""), "text": document.get("text", "")}
                asked = {"query_id": queries.ids[number], "query": queries.text[number]}
                rows.append({**asked, "rank": rank, **named, "score": value})
        return rows


class PassageRetriever(Ranker):
    """Ranks passages by the inner products of unit vectors.

    Args:
        encode_batch_size: passages a forward when the corpus is encoded.
        search: how vectors are searched; default: exactly, by faiss.
        index_dir: folder of the corpus's vectors for test and predict, which are kept there and used again; null for
            ``index`` in the run folder. Validation keeps them in memory.
        ranking: see :class:`Ranker`.
    """

    def __init__(
        self,
        encode_batch_size: int = 64,
        search: Search | None = None,
        index_dir: str | None = None,
        **ranking: Any,
    ) -> None:
        super().__init__(**ranking)
        if encode_batch_size < 1:
            raise ValueError(f"encode_batch_size={encode_batch_size}: must be at least 1")
        self.encode_batch_size, self.index_dir = encode_batch_size, index_dir
        self.search = Search() if search is None else search
        self._index: CorpusIndex | None = None

    def embed(self, documents: Sequence[Document], kind: Kind) -> Tensor:
        """Unit vectors [B, H] float32 of queries or passages, with gradient where it is on."""
        raise NotImplementedError

    def forward(self, documents: Sequence[Document], kind: Kind) -> Tensor:
        """See ``embed``."""
        return self.embed(documents, kind)

    def prepare(self, stage: Stage) -> None:
        corpus, rows = self._data.data.corpus, self.rows(stage)
        passages, folder = partial(self.embed, kind="passage"), self._index_folder(stage)
        if folder is None:
            self._index = encode_in_memory(passages, corpus, rows, self.encode_batch_size)
        else:
            replace, weights = self.index_dir is None, weight_norms(self)
            self._index = encode_corpus(
                passages, corpus, rows, folder, self.encode_batch_size, replace=replace, weights=weights
            )

    def _index_folder(self, stage: Stage) -> Path | None:
        if stage == "val":
            return None
        if self.index_dir is not None:
            return Path(self.index_dir)
        folder = self.run_folder()
        return None if folder is None else folder / "index"

    def represent(self, queries: Sequence[Document]) -> Tensor:
        return self.embed(queries, "query").float().cpu()

    def find(self, known: Sequence[Tensor], k: int) -> Hits:
        assert self._index is not None
        return self._index.search_over_ranks(torch.cat(list(known)), k, self.search)

    def forget(self) -> None:
        self._index = None
