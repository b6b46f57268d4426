"""Exact multinomial logistic regression for many small problems at once, and the head of RFS built on it."""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Episode, FeatureKind, Head, check_labels
from .iteration import iterate

# Float64 numbers in one stack of Newton matrices; larger batches are fitted in pieces. On a CPU the stack
# should stay in the cache (40% faster), a GPU wants it large.
CPU_CHUNK, GPU_CHUNK = 2**18, 2**24


def logistic_regression(
    x: Tensor, y: Tensor, way: int, C: float = 1.0, max_iter: int = 100, tol: float = 1e-8
) -> tuple[Tensor, Tensor]:
    """Minimises 0.5 |W|_F^2 + C sum_i CE(softmax(W x_i + b), y_i), the sum and not the mean over samples.

    The intercept is not penalised; of its equivalent values the one that sums to zero is returned. All
    arithmetic is float64, so float64 results meet the first-order conditions to about 1e-9 and float32
    results are the exact optimum rounded to float32. The cost per step is N + 1 factorisations of n x n
    matrices whatever D is, which suits few samples (n up to a few hundred).

    Args:
        x: [B, n, D] samples of B independent problems.
        y: [B, n] int64 labels; every problem needs every class.
        way: number of classes N.
        C: weight of the data term, as in scikit-learn.
        max_iter: most Newton steps.
        tol: gradient norm, relative to the gradient at zero if that is larger than 1, below which one last
            Newton step is taken.

    Returns:
        W [B, N, D] and b [B, N] in the dtype of x.

    Raises:
        ValueError: C not positive, shapes that do not fit, NaN or Inf, a class without a sample.
    """
    if not C > 0:
        raise ValueError(f"C={C}: must be positive")
    if x.ndim != 3 or y.shape != x.shape[:2]:
        raise ValueError(f"x {tuple(x.shape)} and y {tuple(y.shape)} must be [B, n, D] and [B, n]")
    if not torch.isfinite(x).all():
        raise ValueError("x holds NaN or Inf")
    check_labels(y, way)
    size = max(1, (CPU_CHUNK if x.device.type == "cpu" else GPU_CHUNK) // (way * x.shape[1] ** 2))
    with torch.no_grad():
        parts = [
            _fit(some.double(), F.one_hot(label, way).double(), C, max_iter, tol)
            for some, label in zip(x.split(size), y.split(size), strict=True)
        ]
    weight, bias, converged = (torch.cat(part) for part in zip(*parts, strict=True))
    if not converged.all():
        warnings.warn(
            f"{int((~converged).sum())} of {len(x)} logistic regressions not converged in {max_iter} steps",
            RuntimeWarning,
            stacklevel=2,
        )
    return weight.to(x.dtype), bias.to(x.dtype)


class _Dual(NamedTuple):
    """W = X^T coefficient with coefficient [B, n, N] (columns sum to zero), bias [B, N]."""

    coefficient: Tensor
    bias: Tensor


class _Problem(NamedTuple):
    """gram [B, n, n] = X X^T, target [B, n, N] one-hot, scale [B]: size of the gradient that counts as 1."""

    gram: Tensor
    target: Tensor
    scale: Tensor


def _fit(x: Tensor, target: Tensor, C: float, max_iter: int, tol: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.mean(1, keepdim=True)
    x = x - mean  # the intercept absorbs the shift
    gram = x @ x.mT
    start = _Dual(torch.zeros_like(target), target.new_zeros(target.shape[0], target.shape[2]))
    at_zero = C * (target - 1 / target.shape[2])
    scale = (at_zero * (gram @ at_zero)).sum((1, 2)).clamp_min(0).sqrt().clamp_min(1)

    def step(_: int, state: _Dual, problem: _Problem) -> tuple[_Dual, Tensor]:
        return _newton_step(state, problem, C, tol)

    (coefficient, bias), converged = iterate(step, start, _Problem(gram, target, scale), max_iter)
    weight = coefficient.mT @ x
    return weight, bias - (weight @ mean.mT).squeeze(-1), converged


def _newton_step(state: _Dual, problem: _Problem, C: float, tol: float) -> tuple[_Dual, Tensor]:
    """One damped Newton step; also says whether the gradient before it was small enough to stop after it.

    With residual r = y - p the optimum has coefficient = C r and sum_i r_i = 0. The Hessian of the data term
    is T = C (diag(p) - p p^T) per sample, and (T^-1 + K)^-1 v = E (v - u) with the blocks
    E_c = D_c^1/2 (I + D_c^1/2 K D_c^1/2)^-1 D_c^1/2, D_c = C diag(p_c), and (sum_c E_c) u = sum_c E_c v_c
    (Rasmussen and Williams, Gaussian Processes for Machine Learning, section 3.5), so no matrix larger than
    n x n is factorised. The intercept is found from the condition that the coefficients sum to zero.
    """
    gram, target, scale = problem
    coefficient, bias = state
    probability = (gram @ coefficient + bias.unsqueeze(1)).softmax(-1)
    residual = C * (target - probability)
    excess = coefficient - residual  # zero at the optimum
    pulled = gram @ excess
    gradient = (excess * pulled).sum((1, 2)).clamp_min(0).sqrt()
    bias_gradient = -residual.sum(1)
    done = torch.maximum(gradient, bias_gradient.abs().amax(1)) <= tol * scale

    root = (C * probability).sqrt().mT  # [B, N, n]
    inner = root.unsqueeze(-1) * gram.unsqueeze(1) * root.unsqueeze(-2)
    inner.diagonal(dim1=-2, dim2=-1).add_(1)
    block = torch.cholesky_inverse(torch.linalg.cholesky(inner))
    block = root.unsqueeze(-1) * block * root.unsqueeze(-2)  # E [B, N, n, n]
    factor = torch.linalg.cholesky(block.sum(1))

    def solve(v: Tensor) -> Tensor:  # (T^-1 + K)^-1 v for v [B, n, N]
        v = v.mT.unsqueeze(-1)
        u = torch.cholesky_solve((block @ v).sum(1), factor)
        return (block @ (v - u.unsqueeze(1))).squeeze(-1).mT

    ones = block.sum(-1).mT  # E_c 1, [B, n, N]
    system = torch.diag_embed(ones.sum(1)) - ones.mT @ torch.cholesky_solve(ones, factor)
    # The system is blind to a common shift of the intercepts; the added 1/N makes their sum zero.
    shift = torch.linalg.solve(system + 1 / system.shape[-1], solve(pulled).sum(1) - bias_gradient)
    change = solve(pulled - shift.unsqueeze(1)) - excess

    slope = (change * pulled).sum((1, 2)) + (bias_gradient * shift).sum(1)
    length = _step_length(state, _Dual(change, shift), problem, C, slope)
    return _Dual(coefficient + length.view(-1, 1, 1) * change, bias + length.view(-1, 1) * shift), done


def _step_length(state: _Dual, change: _Dual, problem: _Problem, C: float, slope: Tensor) -> Tensor:
    """Largest of 1, 1/2, 1/4, ... [B] that lowers the objective by 1e-4 of what its slope promises."""
    fitted, moved = problem.gram @ state.coefficient, problem.gram @ change.coefficient

    def objective(length: Tensor) -> Tensor:
        t = length.view(-1, 1, 1)
        smooth = fitted + t * moved
        penalty = ((state.coefficient + t * change.coefficient) * smooth).sum((1, 2)) / 2
        logit = smooth + (state.bias + length.view(-1, 1) * change.bias).unsqueeze(1)
        return penalty - C * (problem.target * logit.log_softmax(-1)).sum((1, 2))

    length = torch.ones_like(slope)
    now = objective(torch.zeros_like(slope))
    rounding = 1e-12 * (1 + now.abs())
    for _ in range(40):
        too_long = objective(length) > now + 1e-4 * length * slope + rounding
        if not too_long.any():
            break
        length = torch.where(too_long, length / 2, length)
    return length


class LogisticRegression(Head):
    """Logistic regression on the supports of each episode (RFS, arXiv 2003.11539: L2N features, C = 1).

    Args:
        features: transform of the features before the fit.
        C: weight of the data term against 0.5 |W|^2.
    """

    def __init__(self, features: FeatureKind = "L2N", C: float = 1.0) -> None:
        super().__init__(features)
        if not C > 0:
            raise ValueError(f"C={C}: must be positive")
        self.C = C

    def score(self, episode: Episode) -> Tensor:
        weight, bias = logistic_regression(episode.support, episode.label, episode.way, self.C)
        return episode.query @ weight.mT + bias.unsqueeze(1)
