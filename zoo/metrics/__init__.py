"""Metrics that torchmetrics lacks."""

from zoo.metrics.compatibility import (
    average_accuracy,
    average_compatibility,
    failing_cells,
    reindexing_gap,
    running_average_accuracy,
    update_gain,
)
from zoo.metrics.interval import IndexedMean, Interval, confidence_interval
from zoo.metrics.ranking import MRR, NDCG, HitRate, RankingMetrics, target_ranks

__all__ = [
    "MRR",
    "NDCG",
    "HitRate",
    "IndexedMean",
    "Interval",
    "RankingMetrics",
    "average_accuracy",
    "average_compatibility",
    "confidence_interval",
    "failing_cells",
    "reindexing_gap",
    "running_average_accuracy",
    "target_ranks",
    "update_gain",
]
