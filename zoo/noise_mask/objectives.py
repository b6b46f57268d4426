"""What couples classifier and policy: the official log-sum-exp objective, and REINFORCE."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from zoo.distributed import global_mean

EDGE = 1e-6  # a sample this close to 0 or 1 counts as this far: the density has poles and zeros at the ends


def beta_log_density(a: Tensor, b: Tensor, m: Tensor) -> Tensor:
    """log Beta(m; exp a, exp b) of every cell, all [B, N] float32; ``m`` in [0, 1] is drawn EDGE inwards.

    d/da = alpha (log m - digamma(alpha) + digamma(alpha + beta)), d/db the same with 1 - m and beta.
    """
    alpha, beta = a.exp(), b.exp()
    m = m.clamp(EDGE, 1 - EDGE)
    scale = torch.lgamma(alpha + beta) - torch.lgamma(alpha) - torch.lgamma(beta)
    return (alpha - 1) * m.log() + (beta - 1) * torch.log1p(-m) + scale


def beta_entropy(a: Tensor, b: Tensor) -> Tensor:
    """Differential entropy of Beta(exp a, exp b) in nats, of any shape; 0 for the uniform, negative for all others."""
    alpha, beta = a.exp(), b.exp()
    both = alpha + beta
    log_scale = torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(both)
    slope = (alpha - 1) * torch.digamma(alpha) + (beta - 1) * torch.digamma(beta)
    return log_scale - slope + (both - 2) * torch.digamma(both)


def coupled_loss(
    log_density: Tensor,
    cross_entropy: Tensor,
    reward: Literal["batch", "sample"],
    baseline: Tensor,
    detach_weight: bool,
) -> Tensor:
    """The scalar that both networks learn from: L = ``log_density`` [B] of the masks, c = ``cross_entropy`` [B].

    ``sample``: mean(L (c - baseline)); ``batch``: mean(L) (mean(c) - baseline). Its gradient lowers the density of
    masks whose images cost more than the scalar ``baseline``. The classifier's gradient is that of c times L, unless
    ``detach_weight`` makes it that of mean(c) alone.
    """
    cost = cross_entropy - baseline
    if detach_weight:
        cost = cost.detach()
    loss = (log_density * cost).mean() if reward == "sample" else log_density.mean() * cost.mean()
    return loss + cross_entropy.mean() if detach_weight else loss


class MaskObjective(nn.Module, ABC):
    """A scalar loss from the densities of masks and the losses under them.

    All means are over the images of a rank, and DDP averages the gradients: with ``batch`` the ranks' products of means
    are averaged, which is not the product of the means over all ranks (the official code does the same).

    Args:
        reward: the mean cost of a rank's images for each of its masks, or each image's own.
        baseline: cost to compare with: none, or the bias-corrected moving average over all ranks' earlier images.
        baseline_decay: of that average, a step.
        entropy_coef: weight of the masks' entropy (mean over images and cells) that is taken off the loss.
        detach_weight: the classifier learns from the plain cross-entropy, not from that times the log-density.

    Raises:
        ValueError: for a ``baseline_decay`` outside [0, 1).
    """

    average: Tensor

    def __init__(
        self,
        reward: Literal["batch", "sample"],
        baseline: Literal["none", "ema"],
        baseline_decay: float,
        entropy_coef: float,
        detach_weight: bool,
    ) -> None:
        super().__init__()
        if not 0 <= baseline_decay < 1:
            raise ValueError(f"objective.baseline_decay={baseline_decay}: must lie in [0, 1)")
        self.reward, self.entropy_coef, self.detach_weight = reward, entropy_coef, detach_weight
        self.decay = baseline_decay if baseline == "ema" else None
        # the running sum of costs and of its weights, whose quotient is the average
        self.register_buffer("average", torch.zeros(2), persistent=baseline == "ema")

    @abstractmethod
    def log_density(self, cells: Tensor) -> Tensor:
        """Log-densities of cells [B, N] as one number L a mask, [B]."""

    def check_grid(self, grid: int) -> None:
        """Raises ``ValueError`` for a grid that the objective cannot train on."""

    def forward(self, a: Tensor, b: Tensor, m: Tensor, cross_entropy: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and mean(L) without gradient, of masks ``m`` from (a, b) [B, N] with costs [B]; all float32."""
        log_density = self.log_density(beta_log_density(a, b, m))
        baseline = self.average[0] / self.average[1].clamp(min=EDGE)
        loss = coupled_loss(log_density, cross_entropy, self.reward, baseline, self.detach_weight)
        if self.entropy_coef:
            loss = loss - self.entropy_coef * beta_entropy(a, b).mean()
        if self.decay is not None and self.training:
            self._follow(cross_entropy.detach(), self.decay)
        return loss, log_density.detach().mean()

    def _follow(self, cost: Tensor, decay: float) -> None:
        mean = global_mean(cost.sum().view(1), cost.new_full((), len(cost)))
        self.average.mul_(decay).add_((1 - decay) * torch.cat([mean, torch.ones_like(mean)]))


class LogSumExp(MaskObjective):
    """The official objective: L_i = log of the sum of the cells' densities, loss = mean(L) mean(c).

    Two things to know of it. The classifier's gradient is the cross-entropy's times mean(L), about log(grid^2) + 0.2:
    with grid 64 a learning rate of 0.1 acts like 0.85, weight decay excepted. And L's gradient weighs each cell by its
    share of the sum, so it is no unbiased policy gradient (see ``Reinforce``); with one cell the two are the same.
    """

    def __init__(
        self,
        reward: Literal["batch", "sample"] = "batch",
        baseline: Literal["none", "ema"] = "none",
        baseline_decay: float = 0.99,
        entropy_coef: float = 0.0,
        detach_weight: bool = False,
    ) -> None:
        super().__init__(reward, baseline, baseline_decay, entropy_coef, detach_weight)

    def log_density(self, cells: Tensor) -> Tensor:
        return torch.logsumexp(cells, 1)

    def check_grid(self, grid: int) -> None:
        if grid < 2 and not self.detach_weight:
            raise ValueError(
                f"mask.grid={grid} with LogSumExp: the log-density of one cell is often negative, and the classifier "
                "would climb its loss; use a grid of at least 2, or detach_weight=true"
            )


class Reinforce(MaskObjective):
    """The score-function gradient: L_i = sum of the cells' log-densities, and the classifier learns from c alone.

    With ``reward: batch`` the expected policy gradient is 1/B of the true one, as other images' costs only add noise.
    """

    def __init__(
        self,
        reward: Literal["batch", "sample"] = "sample",
        baseline: Literal["none", "ema"] = "ema",
        baseline_decay: float = 0.99,
        entropy_coef: float = 0.0,
    ) -> None:
        super().__init__(reward, baseline, baseline_decay, entropy_coef, detach_weight=True)

    def log_density(self, cells: Tensor) -> Tensor:
        return cells.sum(1)
