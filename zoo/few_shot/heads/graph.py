"""Affinity graphs over the points of an episode, for the Laplacian term of transductive clustering."""

import torch
from torch import Tensor

from .base import squared_distances


def knn_graph(x: Tensor, valid: Tensor, knn: int) -> Tensor:
    """Directed graph with weight 1 from each point to its knn - 1 nearest others: [E, P, P], zero diagonal.

    ``knn`` counts the point itself, as the official code of arXiv 2106.09516 does, but a point is left out
    by its index and not as its own nearest neighbour, so duplicates do not turn into self-loops.

    Args:
        x: [E, P, D] points, the first one of each episode valid.
        valid: [E, P] bool, False for padding, which neither has nor is a neighbour.
        knn: 2 up to the number of valid points.

    Raises:
        ValueError: knn out of that range.
    """
    fewest = int(valid.sum(1).min())
    if not 2 <= knn <= fewest:
        raise ValueError(f"knn={knn} counts the point itself: it must be 2 up to P={fewest}, the points")
    distance = squared_distances(x, x).masked_fill(~valid.unsqueeze(1), torch.inf)
    distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    neighbour = distance.topk(knn - 1, dim=-1, largest=False).indices
    return torch.zeros_like(distance).scatter_(-1, neighbour, 1.0) * valid.unsqueeze(-1)


def kernel_variance(x: Tensor, valid: Tensor, graph: Tensor, divisor: float) -> Tensor:
    """sigma^2 [E] = sum_pq W_pq |x_p - x_q|^2 / (divisor P) over the directed kNN graph W.

    The official code divides by 5 although its graph has 2 neighbours; knn - 1 gives the mean squared
    distance to the neighbours.
    """
    total = (graph * squared_distances(x, x)).sum((1, 2))
    # All points equal gives 0; any positive width then means the same.
    return (total / (divisor * valid.sum(1))).clamp_min(torch.finfo(x.dtype).eps)


def directed(graph: Tensor, x: Tensor, valid: Tensor, variance: Tensor) -> Tensor:
    """The kNN graph as it is (official). The energy of the bound updates may rise."""
    return graph


def symmetric(graph: Tensor, x: Tensor, valid: Tensor, variance: Tensor) -> Tensor:
    """(W + W') / 2."""
    return (graph + graph.mT) / 2


def symmetric_psd(graph: Tensor, x: Tensor, valid: Tensor, variance: Tensor) -> Tensor:
    """The symmetric graph with -lambda_min added on the diagonal, so that -Z'WZ is concave."""
    graph = symmetric(graph, x, valid, variance)
    lift = -torch.linalg.eigvalsh(graph)[:, :1].clamp_max(0)
    return graph + torch.diag_embed(lift * valid)


def gaussian(graph: Tensor, x: Tensor, valid: Tensor, variance: Tensor) -> Tensor:
    """exp(-|x_p - x_q|^2 / (2 sigma^2)) between all points, diagonal included: positive semi-definite."""
    both = valid.unsqueeze(1) & valid.unsqueeze(2)
    return gaussian_kernel(squared_distances(x, x), variance) * both


def gaussian_kernel(distance: Tensor, variance: Tensor) -> Tensor:
    """exp(-d / (2 sigma^2)) for squared distances [E, ., .] and sigma^2 [E]."""
    return torch.exp(-distance / (2 * variance.view(-1, 1, 1)))


GRAPHS = {
    "directed": directed,
    "symmetric": symmetric,
    "symmetric_psd": symmetric_psd,
    "gaussian": gaussian,
}
