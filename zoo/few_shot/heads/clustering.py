"""The steps of transductive clustering (arXiv 2106.09516): unary terms, bound updates and the alternation.

E episodes have P points each, supports first, then queries; N classes, D dimensions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import squared_distances
from .graph import gaussian_kernel
from .iteration import iterate
from .prototypes import (
    Clustering,
    Points,
    data_mode_prototypes,
    mean_prototypes,
    mean_shift_prototypes,
    members,
    most_assigned_prototypes,
)

Assigned = tuple[Tensor, Tensor]  # log_soft and assignment, both [E, P, N]
Assign = Callable[[Tensor, Tensor, Points, Clustering], Assigned]


# Unary terms: a decreasing score of closeness for the energy


def euclidean_unary(distance: Tensor, variance: Tensor) -> Tensor:
    """|x - m|^2 from squared distances [E, P, N]."""
    return distance


def kernel_unary(distance: Tensor, variance: Tensor) -> Tensor:
    """-exp(-|x - m|^2 / (2 sigma^2)) from squared distances [E, P, N]."""
    return -gaussian_kernel(distance, variance)


class Method(NamedTuple):
    """A clustering method: how prototypes follow from the clustering, and its unary term."""

    prototypes: Callable[[Points, Clustering], Tensor]
    unary: Callable[[Tensor, Tensor], Tensor]


METHODS = {
    "kmeans": Method(mean_prototypes, euclidean_unary),
    "kmodes_ms": Method(mean_shift_prototypes, kernel_unary),
    "kmodes_data": Method(data_mode_prototypes, kernel_unary),
    "slk_bo": Method(most_assigned_prototypes, kernel_unary),
}


# Assignments


def bound_update(unary: Tensor, graph: Tensor, assignment: Tensor, weight: float) -> Tensor:
    """softmax_k(-a + weight W Z), [E, P, N]: minimises the bound on the relaxed energy at Z.

    It is the exact minimiser for ``relaxed_energy`` with coefficient weight / 2 and a symmetric W.
    """
    return (weight * (graph @ assignment) - unary).softmax(-1)


def relaxed_energy(assignment: Tensor, unary: Tensor, graph: Tensor, coefficient: float) -> Tensor:
    """sum Z log Z + sum a Z - coefficient sum_pq w_pq z_p.z_q, [E]; rows of Z that are zero add nothing."""
    terms = assignment * (assignment.clamp_min(1e-20).log() + unary - coefficient * (graph @ assignment))
    return terms.sum((1, 2), dtype=torch.float64)


def discrete_energy(assignment: Tensor, unary: Tensor, graph: Tensor, coefficient: float) -> Tensor:
    """sum a Z - coefficient sum_k Z_k' W Z_k, [E]: the energy whose change ends the outer loop."""
    terms = assignment * (unary - coefficient * (graph @ assignment))
    return terms.sum((1, 2), dtype=torch.float64)


class _Relaxed(NamedTuple):
    assignment: Tensor
    energy: Tensor


class _Field(NamedTuple):
    unary: Tensor
    graph: Tensor
    valid: Tensor
    anchor: Tensor


def minimise_bound(
    unary: Tensor,
    points: Points,
    start: Tensor,
    weight: float,
    clamp_support: bool = False,
    limit: int = 600,
    tolerance: float = 1e-7,
) -> Tensor:
    """Repeats bound updates from ``start`` [E, P, N] until the energy settles; rows of padding are zero.

    An episode stops after its third update or later, once ``relaxed_energy`` with coefficient = weight (what
    the official code monitors) changed by at most ``tolerance`` of itself.

    Args:
        unary: [E, P, N].
        points: graph, validity and support labels.
        start: first Z; its supports are replaced by their labels.
        weight: coefficient in the update.
        clamp_support: hold the supports at their labels in every update instead of in the start only.
        limit: most updates.
        tolerance: relative change of the energy.
    """

    def step(turn: int, state: _Relaxed, field: _Field) -> tuple[_Relaxed, Tensor]:
        z = bound_update(field.unary, field.graph, state.assignment, weight) * field.valid.unsqueeze(-1)
        z = _anchored(z, field.anchor) if clamp_support else z
        energy = relaxed_energy(z, field.unary, field.graph, weight)
        settled = (energy - state.energy).abs() <= tolerance * state.energy.abs()
        return _Relaxed(z, energy), settled & (turn > 1)

    first = _anchored(start * points.valid.unsqueeze(-1), points.anchor)
    state = _Relaxed(first, start.new_zeros(len(start), dtype=torch.float64))
    field = _Field(unary, points.graph, points.valid, points.anchor)
    return iterate(step, state, field, limit)[0].assignment


def _anchored(assignment: Tensor, anchor: Tensor) -> Tensor:
    return torch.cat([anchor, assignment[:, anchor.shape[1] :]], 1)


# Alternation


def nearest_prototypes(distance: Tensor, unary: Tensor, points: Points, state: Clustering) -> Assigned:
    """Without a graph: one-hot Z of the nearest prototype; log_soft orders the classes by distance."""
    nearest = F.one_hot(distance.argmin(-1), distance.shape[-1]).to(distance)
    return (-distance).log_softmax(-1), nearest * points.valid.unsqueeze(-1)


@dataclass(frozen=True)
class LaplacianAssignment:
    """Assigns by bound updates to convergence; see ``minimise_bound`` for the fields.

    ``warm_start`` begins with the last assignments instead of softmax(-a).
    """

    weight: float
    clamp_support: bool
    warm_start: bool
    limit: int
    tolerance: float

    def __call__(self, distance: Tensor, unary: Tensor, points: Points, state: Clustering) -> Assigned:
        start = state.assignment if self.warm_start else (-unary).softmax(-1)
        z = minimise_bound(unary, points, start, self.weight, self.clamp_support, self.limit, self.tolerance)
        return z.clamp_min(torch.finfo(z.dtype).tiny).log(), z


def initial_clustering(points: Points, prototype: Tensor, limit: int) -> Clustering:
    """Each point to its nearest prototype [E, N, D], supports to their own class."""
    log_soft = (-squared_distances(points.x, prototype)).log_softmax(-1)
    label = torch.cat([points.anchor.argmax(-1), log_soft.argmax(-1)[:, points.anchor.shape[1] :]], 1)
    one_hot = F.one_hot(label, prototype.shape[1]).to(points.x) * points.valid.unsqueeze(-1)
    energy = prototype.new_zeros(len(prototype), dtype=torch.float64)
    trace = energy.new_full((len(energy), limit), torch.nan)
    return Clustering(label, prototype, log_soft, one_hot, energy, trace)


def alternate(
    points: Points,
    state: Clustering,
    method: Method,
    assign: Assign,
    coefficient: float,
    clamp_support: bool,
    limit: int,
    tolerance: float,
) -> Clustering:
    """Prototypes from labels, then assignments from prototypes, until the energy settles.

    An episode stops after its third round or later, once ``discrete_energy`` with ``coefficient`` changed by
    at most ``tolerance`` of itself; or when a class lost all its points, and then it keeps the clustering
    from before that round. The energy need not fall: prototypes come from hard labels, the energy from Z.
    """

    def step(turn: int, old: Clustering, points: Points) -> tuple[Clustering, Tensor]:
        prototype = method.prototypes(points, old)
        distance = squared_distances(points.x, prototype)
        unary = method.unary(distance, points.variance)
        log_soft, assignment = assign(distance, unary, points, old)
        label = log_soft.argmax(-1)
        if clamp_support:
            label[:, : points.anchor.shape[1]] = points.anchor.argmax(-1)
            assignment = _anchored(assignment, points.anchor)
        energy = discrete_energy(assignment, unary, points.graph, coefficient)
        trace = old.trace.clone()
        trace[:, turn] = energy
        new = Clustering(label, prototype, log_soft, assignment, energy, trace)

        lost = (members(points, new).sum(1) == 0).any(-1)
        settled = ((energy - old.energy).abs() <= tolerance * old.energy.abs()) & (turn > 1)
        return _keep(lost, old, new), lost | settled

    return iterate(step, state, points, limit)[0]


def _keep(lost: Tensor, old: Clustering, new: Clustering) -> Clustering:
    """Rows of ``old`` where lost [E], else of ``new``."""
    return Clustering(*(torch.where(lost.view(-1, *[1] * (o.ndim - 1)), o, n) for o, n in zip(old, new, strict=True)))
