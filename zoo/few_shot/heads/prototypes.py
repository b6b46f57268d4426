"""How transductive clustering (arXiv 2106.09516) gets its prototypes from a clustering.

E episodes have P points each, supports first, then queries; N classes, D dimensions.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import squared_distances
from .graph import gaussian_kernel
from .iteration import iterate


class Points(NamedTuple):
    """What stays fixed: ``x`` [E, P, D], ``valid`` [E, P] bool, ``anchor`` [E, S, N] one-hot support labels,
    ``graph`` [E, P, P] affinities and ``variance`` [E], the squared kernel width sigma^2."""

    x: Tensor
    valid: Tensor
    anchor: Tensor
    graph: Tensor
    variance: Tensor


class Clustering(NamedTuple):
    """What changes: ``label`` [E, P] int64, ``prototype`` [E, N, D], ``log_soft`` [E, P, N] finite log soft
    assignments, ``assignment`` [E, P, N] the Z of the energy, ``energy`` [E] and its past ``trace`` [E, T],
    NaN where an episode had already stopped."""

    label: Tensor
    prototype: Tensor
    log_soft: Tensor
    assignment: Tensor
    energy: Tensor
    trace: Tensor


def members(points: Points, state: Clustering) -> Tensor:
    """Hard assignments [E, P, N] of the valid points."""
    one_hot = F.one_hot(state.label, state.prototype.shape[1]).to(points.x)
    return one_hot * points.valid.unsqueeze(-1)


def mean_prototypes(points: Points, state: Clustering) -> Tensor:
    """K-means: the mean of each cluster's members."""
    member = members(points, state)
    return member.mT @ points.x / member.sum(1).unsqueeze(-1)


def mean_shift_step(x: Tensor, member: Tensor, centre: Tensor, variance: Tensor) -> Tensor:
    """One step c_k -> sum_j w_j x_j / sum_j w_j over members j, w_j = exp(-|c_k - x_j|^2 / (2 sigma^2)).

    x [E, P, D], member [E, P, N] (0 for points that are none), centre [E, N, D], variance sigma^2 [E].
    """
    exponent = -squared_distances(x, centre) / (2 * variance.view(-1, 1, 1))
    # Normalised in the exponent: the ratio is the same and cannot become 0 / 0 far away from the members.
    return exponent.masked_fill(member == 0, -torch.inf).softmax(1).mT @ x


class _Modes(NamedTuple):
    centre: Tensor  # [E, N, D]
    moving: Tensor  # [E, N] bool


class _Members(NamedTuple):
    x: Tensor
    member: Tensor
    variance: Tensor


def mean_shift_prototypes(points: Points, state: Clustering, tolerance: float = 1e-5, limit: int = 1000) -> Tensor:
    """K-modes: mean shift within each cluster from its current prototype to a mode of its density.

    A class stops once no coordinate moves by as much as ``tolerance`` times its largest coordinate.
    """

    def step(_: int, modes: _Modes, fixed: _Members) -> tuple[_Modes, Tensor]:
        new = mean_shift_step(fixed.x, fixed.member, modes.centre, fixed.variance)
        new = torch.where(modes.moving.unsqueeze(-1), new, modes.centre)
        moved = (new - modes.centre).abs().amax(-1)
        moving = modes.moving & (moved >= tolerance * modes.centre.abs().amax(-1))
        return _Modes(new, moving), ~moving.any(1)

    start = _Modes(state.prototype, torch.ones_like(state.prototype[..., 0], dtype=torch.bool))
    fixed = _Members(points.x, members(points, state), points.variance)
    return iterate(step, start, fixed, limit)[0].centre


def data_mode_prototypes(points: Points, state: Clustering) -> Tensor:
    """K-modes on data: for each class the point y that maximises sum_p z_pk k(x_p, y)."""
    kernel = gaussian_kernel(squared_distances(points.x, points.x), points.variance)
    density = kernel @ members(points, state)
    return _pick(points.x, density.masked_fill(~points.valid.unsqueeze(-1), -torch.inf).argmax(1))


def most_assigned_prototypes(points: Points, state: Clustering) -> Tensor:
    """SLK-BO: for each class the data point assigned to it most firmly, argmax_p z_pk."""
    soft = state.assignment.masked_fill(~points.valid.unsqueeze(-1), -torch.inf)
    return _pick(points.x, soft.argmax(1))


def _pick(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
