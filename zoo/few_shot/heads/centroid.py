"""Nearest class mean: the ProtoNet classifier and SimpleShot's nearest centroid."""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from .base import Episode, FeatureKind, Head, class_means, squared_distances


def prototype_logits(query: Tensor, prototypes: Tensor) -> Tensor:
    """ProtoNet logits -|x - p_k|^2 (Snell et al. 2017, eq. 2): [E, U, D], [E, N, D] -> [E, U, N].

    Summed over dimensions, no temperature. Up to a term that no class depends on this is the linear
    classifier with weights 2 p_k and biases -|p_k|^2.
    """
    return -squared_distances(query, prototypes)


def cosine_scores(query: Tensor, prototypes: Tensor) -> Tensor:
    """Cosines of queries and prototypes: [E, U, D], [E, N, D] -> [E, U, N]."""
    return F.normalize(query, dim=-1) @ F.normalize(prototypes, dim=-1).mT


METRICS = {"euclidean": prototype_logits, "cosine": cosine_scores}


class NearestCentroid(Head):
    """Scores a query by its closeness to the mean of each class's transformed supports.

    SimpleShot (arXiv 1911.04623) is L2N or CL2N with the Euclidean metric, ProtoNet is UN, Euclidean and
    temperature 1. Centroids are not normalised again, so the two metrics can disagree beyond 1-shot.

    Args:
        features: transform of the features before anything else.
        metric: euclidean (-|x - p|^2 / temperature) or cosine (cos(x, p) / temperature).
        temperature: divides the scores; wide features of a pretrained backbone need 16 to 64 (Euclidean,
            UN) lest the softmax saturate. Predictions do not depend on it.
    """

    def __init__(
        self,
        features: FeatureKind = "L2N",
        metric: Literal["euclidean", "cosine"] = "euclidean",
        temperature: float = 1.0,
    ) -> None:
        super().__init__(features)
        if metric not in METRICS:
            raise ValueError(f"metric={metric!r}: choose one of {', '.join(METRICS)}")
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: must be positive")
        self.metric = metric
        self.temperature = temperature

    def score(self, episode: Episode) -> Tensor:
        prototypes = class_means(episode.support, episode.label, episode.way)
        return METRICS[self.metric](episode.query, prototypes) / self.temperature
