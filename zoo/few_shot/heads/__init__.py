"""Classifiers of few-shot episodes on frozen features; plain torch, usable without Lightning."""

from .base import Episode, FeatureKind, Head, check_episode, class_means, index_labels, transform_features
from .centroid import NearestCentroid, cosine_scores, prototype_logits
from .linear import Baseline, BaselinePlusPlus
from .logistic import LogisticRegression, logistic_regression
from .transductive import (
    LaplacianTuning,
    QueryClusters,
    TransductiveClustering,
    select_laplacian_weight,
    tune_laplacian_weight,
)

__all__ = [
    "Baseline",
    "BaselinePlusPlus",
    "Episode",
    "FeatureKind",
    "Head",
    "LaplacianTuning",
    "LogisticRegression",
    "NearestCentroid",
    "QueryClusters",
    "TransductiveClustering",
    "check_episode",
    "class_means",
    "cosine_scores",
    "index_labels",
    "logistic_regression",
    "prototype_logits",
    "select_laplacian_weight",
    "transform_features",
    "tune_laplacian_weight",
]
