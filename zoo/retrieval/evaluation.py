"""Evaluation of retrieval, query by query, in shares that several ranks can take and put together exactly."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch import distributed as dist
from torchmetrics.utilities.distributed import gather_all_tensors

from datamodules.search import Search, check_widths
from zoo.retrieval import metrics as M
from zoo.retrieval.embeddings import EmbeddingTable, class_templates

HITS_AT_ONCE = 2**22  # queries times depth

AT_K: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "recall": lambda relevance, relevant, k: M.recall_at(relevance, k),
    "precision": lambda relevance, relevant, k: M.precision_at(relevance, k),
    "map": M.map_at,
}
AT_R = {"map@r": M.map_at_r, "r_precision": M.r_precision}
WHOLE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "map": M.average_precision,
    "mrr": lambda relevance, relevant: M.reciprocal_rank(relevance),
}


@dataclass(frozen=True)
class RetrievalResult:
    """Values of the counted queries, in the order of their ids, and what follows from them.

    ``id`` and ``label`` [n] int64 of the queries, ``per_query`` [n] float64 in [0, 1] by metric, ``n_excluded`` the
    queries without a relevant gallery item, which are not among the n.
    """

    id: Tensor
    label: Tensor
    per_query: dict[str, Tensor]
    n_excluded: int

    @property
    def n_queries(self) -> int:
        """Counted queries."""
        return len(self.id)

    @property
    def scores(self) -> dict[str, float]:
        """Means over queries."""
        return {name: values.mean().item() for name, values in self.per_query.items()}

    @property
    def macro(self) -> dict[str, float]:
        """Means over classes of the means over each class's queries."""
        _, place, count = self.label.unique(return_inverse=True, return_counts=True)
        per_class = {name: torch.bincount(place, values) / count for name, values in self.per_query.items()}
        return {name: values.mean().item() for name, values in per_class.items()}

    def over_ranks(self, device: torch.device | str = "cpu") -> "RetrievalResult":
        """The result of all ranks' shares, the same on every rank and as one process would have it.

        All ranks must call it. ``device`` is where the process group communicates.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return self
        columns = [self.id, self.label, torch.tensor([self.n_excluded]), *self.per_query.values()]
        id, label, excluded, *values = (torch.cat(gather_all_tensors(x.to(device))).cpu() for x in columns)
        order = id.argsort()
        per_query = {name: x[order] for name, x in zip(self.per_query, values, strict=True)}
        return RetrievalResult(id[order], label[order], per_query, int(excluded.sum()))


class RetrievalEvaluator:
    """Ranks a gallery for every query by exact search and scores the ranking. Relevant means: of the same label.

    A query without a relevant item in the gallery is left out and counted. A negative label is unknown: such a
    gallery item is relevant to none.

    Args:
        metrics: ``recall@K``, ``precision@K``, ``map@K`` (over min(R, K)), ``map@r``, ``r_precision``, and, over the
            whole ranking, ``map`` and ``mrr``; with templates also ``accuracy``. Default: recall@1, recall@5,
            recall@10, map@r and r_precision; with templates ``accuracy``.
        template: ``mean`` replaces the gallery by one template a class, its normalised mean; ``accuracy`` is then the
            share of queries whose nearest template is their class's.
        search: backend, device and chunk; the index must be Flat.
        absent: what to do with queries without a relevant item, leave them out (``exclude``) or stop (``error``).
        depth: hits kept a query; default: as many as the metrics need, for ``map@r`` and ``r_precision`` the largest
            number of relevant items.

    Raises:
        ValueError: for an unknown metric, K < 1, an approximate index and ``accuracy`` without templates.
    """

    def __init__(
        self,
        metrics: Sequence[str] | None = None,
        template: Literal["none", "mean"] = "none",
        search: Search | None = None,
        absent: Literal["exclude", "error"] = "exclude",
        depth: int | None = None,
    ) -> None:
        for name, value, allowed in (
            ("template", template, ("none", "mean")),
            ("absent", absent, ("exclude", "error")),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r}: must be {' or '.join(allowed)}")
        if depth is not None and depth < 1:
            raise ValueError(f"depth={depth}: must be at least 1")
        usual = ("recall@1", "recall@5", "recall@10", "map@r", "r_precision")
        self.names = tuple(metrics if metrics is not None else ("accuracy",) if template == "mean" else usual)
        self.template, self.absent, self.depth = template, absent, depth
        self.search = search if search is not None else Search()
        if not self.search.exact:
            raise ValueError(
                f"metrics are for exact search: index must be Flat, got {self.search.index!r}; what an index misses "
                "is measured by recall_against_flat"
            )
        if "accuracy" in self.names and template == "none":
            raise ValueError("accuracy compares with one template a class: set template to mean, or use recall@1")
        for name in self.names:
            self._needs(name, 1, 1)

    def __call__(
        self, query: EmbeddingTable, gallery: EmbeddingTable | None = None, rank: int = 0, world: int = 1
    ) -> RetrievalResult:
        """Scores of the share of ``rank`` among ``world``; ``over_ranks`` of the result puts the shares together.

        Shares are whole chunks of queries, the same for any ``world``, so that each score is computed alike. Every
        rank needs the whole tables. Without a gallery each query searches all others: it is removed from its own
        hits by id.

        Raises:
            ValueError: for tables of different width, unknown query labels, no query with a relevant item (or with
                ``absent`` "error" any query without), a depth that is too small, templates without a gallery.
        """
        own = gallery is None
        if own and self.template == "mean":
            raise ValueError("template mean needs a gallery: a query must not be part of its own class's template")
        gallery = query if gallery is None else gallery
        check_widths(query.embedding, gallery.embedding)
        if self.template == "mean":
            gallery = class_templates(gallery)
        relevant = self._relevant(query, gallery, own)
        depth = self._depth(relevant, len(gallery) - own)
        find = self.search.over(gallery.embedding)
        blocks = torch.arange(len(query)).split(min(self.search.chunk, max(1, HITS_AT_ONCE // depth)))[rank::world]
        values: list[list[Tensor]] = [[] for _ in self.names]
        counted = []
        for block in blocks:
            rows = block[relevant[block] > 0]
            counted.append(rows)
            if len(rows):
                hits = find(query.embedding[rows], depth + own)[1]
                if own:
                    hits = _without(hits, rows)
                relevance = (gallery.label[hits] == query.label[rows, None]) & (hits >= 0)
                for column, name in zip(values, self.names, strict=True):
                    column.append(self._score(name, relevance, relevant[rows]))
        none = torch.empty(0, dtype=torch.float64)
        rows = torch.cat([torch.empty(0, dtype=torch.int64), *counted])
        order = query.id[rows].argsort()
        per_query = {name: torch.cat([none, *v])[order] for name, v in zip(self.names, values, strict=True)}
        excluded = sum(len(block) for block in blocks) - len(rows)
        return RetrievalResult(query.id[rows][order], query.label[rows][order], per_query, excluded)

    def _relevant(self, query: EmbeddingTable, gallery: EmbeddingTable, own: bool) -> Tensor:
        """R of each query, [Q] int64."""
        unknown = int((query.label < 0).sum())
        if unknown:
            raise ValueError(f"{unknown} queries have a negative label, hence no known class: leave them out")
        classes, count = gallery.label.unique(return_counts=True)
        place = torch.searchsorted(classes, query.label).clamp(max=len(classes) - 1)
        relevant = torch.where(classes[place] == query.label, count[place] - int(own), 0)
        alone = query.label[relevant == 0]
        if len(alone) and (self.absent == "error" or len(alone) == len(query)):
            labels = alone.unique().tolist()
            shown = ", ".join(map(str, labels[:5])) + (", ..." if len(labels) > 5 else "")
            raise ValueError(
                f"{len(alone)} of {len(query)} queries have no relevant item in the gallery, as their labels "
                f"({len(labels)}: {shown}) {'come only once' if own else 'are absent from it'}: check the labels"
                + ("" if len(alone) == len(query) else ", or leave such queries out with absent: exclude")
            )
        return relevant

    def _needs(self, name: str, most: int, whole: int) -> int:
        """Hits that a metric needs, where a query has at most ``most`` relevant items and a ranking ``whole``."""
        if name == "accuracy":
            return 1
        if name in AT_R:
            return most
        if name in WHOLE:
            return whole
        found = re.fullmatch(f"({'|'.join(AT_K)})@(-?[0-9]+)", name)
        if found is None:
            known = [f"{kind}@K" for kind in AT_K] + [*AT_R, *WHOLE, "accuracy"]
            raise ValueError(f"metric {name!r} is unknown: choose from {', '.join(known)}")
        if int(found[2]) < 1:
            raise ValueError(f"metric {name!r}: k must be at least 1")
        return int(found[2])

    def _depth(self, relevant: Tensor, whole: int) -> int:
        needs = {name: self._needs(name, int(relevant.max()), whole) for name in self.names}
        for name, needed in needs.items():
            if self.depth is not None and self.depth < needed:
                raise ValueError(
                    f"depth={self.depth} is less than the {needed} hits a query that {name} needs here: increase "
                    "depth or use map@k"
                )
        return self.depth or max(needs.values(), default=1)

    def _score(self, name: str, relevance: Tensor, relevant: Tensor) -> Tensor:
        if name == "accuracy":
            return M.recall_at(relevance, 1)
        if name in AT_R:
            return AT_R[name](relevance, relevant)
        if name in WHOLE:
            return WHOLE[name](relevance, relevant)
        kind, k = name.split("@")
        return AT_K[kind](relevance, relevant, int(k))


def _without(hits: Tensor, rows: Tensor) -> Tensor:
    """Hits [n, k + 1] less the query's own row [n], or less the last hit where it is not among them: [n, k]."""
    own_last = (hits == rows[:, None]).byte().argsort(dim=1, stable=True)
    return hits.gather(1, own_last)[:, :-1]
