"""Transductive Few-Shot Learning: Clustering is All You Need? (arXiv 2106.09516): the head and its tuning."""

import copy
import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Episode, FeatureKind, Head, check_episode, class_means, index_labels
from .clustering import (
    METHODS,
    Assign,
    LaplacianAssignment,
    alternate,
    initial_clustering,
    nearest_prototypes,
)
from .graph import GRAPHS, kernel_variance, knn_graph
from .prototypes import Clustering, Points

LAPLACIAN_WEIGHTS = (0.05, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0)
DEFAULT_LAPLACIAN_WEIGHT = 0.7


class QueryClusters(NamedTuple):
    """``label`` [E, U] int64 in the ids of the support labels, ``assignment`` [E, U, N] on the simplex
    (classes by ascending id), ``energy`` [E, T] of each round, NaN once an episode has stopped."""

    label: Tensor
    assignment: Tensor
    energy: Tensor


class TransductiveClustering(Head):
    """Clusters supports and queries of an episode together, from the class means of the supports.

    K-means is ``kmeans``, K-modes ``kmodes_ms``, SLK-means ``kmeans`` with ``laplacian`` and SLK-MS
    ``kmodes_ms`` with ``laplacian``. The defaults are those of the official code; it differs from the paper
    in not holding the supports at their labels (``clamp_support``) and in a directed graph.

    Results depend on how many queries an episode has and on their class proportions (the shift of the
    queries assumes the proportions of the supports), so report them apart from inductive ones.

    Args:
        method: kmeans, kmodes_ms (mean shift), kmodes_data (the mode is a data point) or slk_bo (the most
            firmly assigned data point; needs ``laplacian``).
        laplacian: reward neighbours in the graph for agreeing.
        laplacian_weight: the paper's lambda as it stands in the update softmax(-a + lambda W Z). It goes with
            the scale of the features: ``tune_laplacian_weight`` chooses one.
        knn: neighbours in the graph, the point itself included.
        graph: directed, symmetric, symmetric_psd (eigenvalues lifted to 0) or gaussian (all pairs).
        clamp_support: hold the supports at their labels throughout (the paper's formulation).
        shift_queries: move the queries so that their mean is that of the supports; not done for one query.
        features: transform of the features before anything else.
        sigma: width of the Gaussian kernel, or auto for a width from the neighbours' distances.
        sigma_divisor: see ``kernel_variance``; None is knn - 1.
        bound_factor: multiplies lambda in the update; 2 reads lambda as the weight in the relaxed energy.
        warm_start: begin the bound updates with the last assignments instead of from scratch.
        outer_limit: most rounds of prototypes and assignments; 0 is nearest centroid.
        outer_tolerance: relative change of the energy that ends the rounds.
        inner_limit: most bound updates in a round.
        inner_tolerance: relative change of the relaxed energy that ends the bound updates.
    """

    transductive = True

    def __init__(
        self,
        method: Literal["kmeans", "kmodes_ms", "kmodes_data", "slk_bo"] = "kmeans",
        laplacian: bool = False,
        laplacian_weight: float = DEFAULT_LAPLACIAN_WEIGHT,
        knn: int = 3,
        graph: Literal["directed", "symmetric", "symmetric_psd", "gaussian"] = "directed",
        clamp_support: bool = False,
        shift_queries: bool = True,
        features: FeatureKind = "CL2N",
        sigma: Literal["auto"] | float = "auto",
        sigma_divisor: float | None = 5.0,
        bound_factor: float = 1.0,
        warm_start: bool = False,
        outer_limit: int = 100,
        outer_tolerance: float = 1e-4,
        inner_limit: int = 600,
        inner_tolerance: float = 1e-7,
    ) -> None:
        super().__init__(features)
        for field, value, allowed in (("method", method, METHODS), ("graph", graph, GRAPHS)):
            if value not in allowed:
                raise ValueError(f"{field}={value!r}: choose one of {', '.join(allowed)}")
        if method == "slk_bo" and not laplacian:
            raise ValueError("method=slk_bo takes prototypes from soft assignments: set laplacian=True")
        if laplacian_weight < 0:
            raise ValueError(f"laplacian_weight={laplacian_weight}: must not be negative")
        if knn < 2:
            raise ValueError(f"knn={knn} counts the point itself: it must be 2 up to P, the points")
        if sigma != "auto" and not sigma > 0:
            raise ValueError(f"sigma={sigma}: must be positive or 'auto'")
        for field, number in (("sigma_divisor", sigma_divisor), ("bound_factor", bound_factor)):
            if number is not None and not number > 0:
                raise ValueError(f"{field}={number}: must be positive")
        if laplacian and features == "UN" and laplacian_weight == DEFAULT_LAPLACIAN_WEIGHT:
            warnings.warn(
                f"laplacian_weight={laplacian_weight} suits features of unit norm; the distances of "
                "unnormalised ones can make it irrelevant: tune it or choose L2N or CL2N",
                stacklevel=2,
            )
        self.method = method
        self.laplacian = laplacian
        self.laplacian_weight = laplacian_weight
        self.knn = knn
        self.graph = graph
        self.clamp_support = clamp_support
        self.shift_queries = shift_queries
        self.sigma = sigma
        self.sigma_divisor = knn - 1 if sigma_divisor is None else sigma_divisor
        self.bound_factor = bound_factor
        self.warm_start = warm_start
        self.outer_limit = outer_limit
        self.outer_tolerance = outer_tolerance
        self.inner_limit = inner_limit
        self.inner_tolerance = inner_tolerance

    def score(self, episode: Episode) -> Tensor:
        """Log soft assignments of the queries; their argmax is the cluster."""
        return self._run(episode).log_soft[:, episode.support.shape[1] :]

    def cluster(self, episode: Episode) -> QueryClusters:
        """Like ``forward`` with more to look at; support labels may be any ids, and come back as such."""
        label, ids = index_labels(episode.label, episode.way)
        episode = episode._replace(label=label)
        check_episode(episode)
        with torch.autocast(episode.query.device.type, enabled=False):
            result = self._run(self.prepare(episode))
        first = episode.support.shape[1]
        rounds = int(result.trace.isfinite().sum(1).max()) if self.outer_limit else 0
        return QueryClusters(
            ids.gather(1, result.label[:, first:]),
            result.log_soft[:, first:].softmax(-1),
            result.trace[:, :rounds],
        )

    @torch.no_grad()
    def _run(self, episode: Episode) -> Clustering:
        points = self._points(episode)
        prototype = class_means(episode.support, episode.label, episode.way)
        start = initial_clustering(points, prototype, self.outer_limit)
        weight = 0.0
        assign: Assign = nearest_prototypes
        if self.laplacian:
            weight = self.bound_factor * self.laplacian_weight
            assign = LaplacianAssignment(
                weight, self.clamp_support, self.warm_start, self.inner_limit, self.inner_tolerance
            )
        method = METHODS[self.method]
        return alternate(
            points, start, method, assign, weight, self.clamp_support, self.outer_limit, self.outer_tolerance
        )

    def _points(self, episode: Episode) -> Points:
        support, label, query, way, _, mask = episode
        mask = torch.ones_like(query[..., 0], dtype=torch.bool) if mask is None else mask
        if self.shift_queries:
            query = shift_queries(support, query, mask)
        x = torch.cat([support, query], 1)
        valid = torch.cat([torch.ones_like(label, dtype=torch.bool), mask], 1)
        neighbours = knn_graph(x, valid, self.knn)
        if self.sigma == "auto":
            variance = kernel_variance(x, valid, neighbours, self.sigma_divisor)
        else:
            variance = x.new_full((len(x),), self.sigma**2)
        graph = GRAPHS[self.graph](neighbours, x, valid, variance)
        return Points(x, valid, F.one_hot(label, way).to(x), graph, variance)


def shift_queries(support: Tensor, query: Tensor, mask: Tensor) -> Tensor:
    """Adds mean(support) - mean(query) to each episode's queries [E, U, D]; padding stays zero.

    An episode with one query is left alone, with a warning: the shift would put it on the mean.
    """
    count = mask.sum(1)
    if (count == 1).any():
        warnings.warn(
            "an episode has a single query: its shift is skipped and transduction comes close to nearest "
            "centroid; use an inductive head",
            stacklevel=2,
        )
    real = mask.unsqueeze(-1)
    shift = support.mean(1) - (query * real).sum(1) / count.unsqueeze(-1)
    shift = shift * (count > 1).unsqueeze(-1)
    return (query + shift.unsqueeze(1)) * real


class LaplacianTuning(NamedTuple):
    """The chosen ``weight`` and ``accuracy`` [G, E] of each weight tried on each validation episode."""

    weight: float
    accuracy: Tensor


def select_laplacian_weight(accuracy: Tensor, weights: Sequence[float] = LAPLACIAN_WEIGHTS) -> float:
    """The weight with the best mean over the episodes of accuracy [G, E], the first of equals.

    On several ranks gather the episodes first, so that all ranks choose the same weight.
    """
    return weights[int(accuracy.double().mean(1).argmax())]


def tune_laplacian_weight(
    head: TransductiveClustering,
    episode: Episode,
    query_label: Tensor,
    weights: Sequence[float] = LAPLACIAN_WEIGHTS,
) -> LaplacianTuning:
    """Tries every weight on labelled validation episodes; ``head`` itself is left as it is.

    Args:
        head: with ``laplacian`` on.
        episode: E validation episodes (the official code takes 500, for each number of shots anew).
        query_label: [E, U] int64 in [0, N); padded rows are not read.
        weights: in order of preference among equals.

    Raises:
        ValueError: the head has no Laplacian term.
    """
    if not head.laplacian:
        raise ValueError("laplacian=False: the weight has no effect, there is nothing to tune")
    mask = episode.query_mask
    if mask is None:
        mask = torch.ones_like(query_label, dtype=torch.bool)
    trial = copy.copy(head)
    accuracy = []
    for weight in weights:
        trial.laplacian_weight = weight
        correct = (trial(episode).argmax(-1) == query_label) & mask
        accuracy.append(correct.sum(1).double() / mask.sum(1))
    table = torch.stack(accuracy)
    return LaplacianTuning(select_laplacian_weight(table, weights), table)
