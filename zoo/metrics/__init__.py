"""Metrics that torchmetrics lacks."""

from zoo.metrics.interval import IndexedMean, Interval, confidence_interval

__all__ = ["IndexedMean", "Interval", "confidence_interval"]
