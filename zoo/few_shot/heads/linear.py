"""Baseline and Baseline++ (Chen et al. 2019, arXiv 1904.04232): a layer trained by SGD on each episode."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Episode, FeatureKind, Head

Parameters = tuple[Tensor, Tensor]


class Baseline(Head):
    """A linear layer trained on the supports: SGD, momentum and dampening 0.9, batches of 4, 100 passes.

    Initial weights and the order of the minibatches come from ``seed`` and are the same for every episode,
    so a result does not depend on which episodes share a batch. Gradients are written out, which lets the
    head train under ``torch.inference_mode``.

    Args:
        features: transform of the features before training.
        lr: learning rate.
        weight_decay: L2 penalty in the gradient of every parameter.
        batch_size: supports in a step; the last one of a pass may be smaller.
        passes: times the supports are gone through.
        seed: of the initial weights and the order of the supports.
    """

    momentum = 0.9
    dampening = 0.9

    def __init__(
        self,
        features: FeatureKind = "UN",
        lr: float = 0.01,
        weight_decay: float = 1e-3,
        batch_size: int = 4,
        passes: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(features)
        if not (lr > 0 and weight_decay >= 0 and batch_size >= 1 and passes >= 0):
            raise ValueError(
                f"lr={lr}, weight_decay={weight_decay}, batch_size={batch_size}, passes={passes}: lr must be "
                "positive, batch_size at least 1, the others not negative"
            )
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.passes = passes
        self.seed = seed

    def initial(self, way: int, dim: int, generator: torch.Generator) -> Parameters:
        """Weight [N, D] and bias [N], uniform within 1/sqrt(D) as in ``torch.nn.Linear``."""
        bound = 1 / math.sqrt(dim)
        weight = torch.empty(way, dim).uniform_(-bound, bound, generator=generator)
        return weight, torch.empty(way).uniform_(-bound, bound, generator=generator)

    def logits(self, parameters: Parameters, x: Tensor) -> Tensor:
        """[E, N, D] and [E, N], x [E, B, D] -> [E, B, N]."""
        weight, bias = parameters
        return x @ weight.mT + bias.unsqueeze(1)

    def gradients(self, parameters: Parameters, x: Tensor, error: Tensor) -> Parameters:
        """Gradients of the loss whose gradient with respect to the logits is error [E, B, N]."""
        return error.mT @ x, error.sum(1)

    @torch.no_grad()
    def score(self, episode: Episode) -> Tensor:
        support, label, query, way, *_ = episode
        generator = torch.Generator().manual_seed(self.seed)
        target = F.one_hot(label, way).to(support)
        start = self.initial(way, support.shape[-1], generator)
        parameters = [p.to(support).expand(len(support), *p.shape).clone() for p in start]
        velocity: list[Tensor] | None = None
        for _ in range(self.passes):
            order = torch.randperm(support.shape[1], generator=generator).to(support.device)
            for batch in order.split(self.batch_size):
                x = support[:, batch]
                error = self.logits((parameters[0], parameters[1]), x).softmax(-1) - target[:, batch]
                gradient = [
                    g + self.weight_decay * p
                    for g, p in zip(
                        self.gradients((parameters[0], parameters[1]), x, error / len(batch)),
                        parameters,
                        strict=True,
                    )
                ]
                if velocity is None:  # the first step is not dampened, as in torch.optim.SGD
                    velocity = gradient
                else:
                    velocity = [
                        self.momentum * v + (1 - self.dampening) * g for v, g in zip(velocity, gradient, strict=True)
                    ]
                parameters = [p - self.lr * v for p, v in zip(parameters, velocity, strict=True)]
        return self.logits((parameters[0], parameters[1]), query)


class BaselinePlusPlus(Baseline):
    """A cosine layer trained like ``Baseline``: logits scale * g_k * cos(x, v_k), g_k learned per class.

    The length g_k, which starts as |v_k|, is in the official code and not in the paper's formula.

    Args:
        features: transform of the features before training.
        lr: learning rate.
        weight_decay: L2 penalty in the gradient of every parameter.
        batch_size: supports in a step; the last one of a pass may be smaller.
        passes: times the supports are gone through.
        seed: of the initial weights and the order of the supports.
        scale: multiplies the cosines; the official code has 2 for up to 200 classes.
    """

    def __init__(
        self,
        features: FeatureKind = "UN",
        lr: float = 0.01,
        weight_decay: float = 1e-3,
        batch_size: int = 4,
        passes: int = 100,
        seed: int = 0,
        scale: float = 2.0,
    ) -> None:
        super().__init__(features, lr, weight_decay, batch_size, passes, seed)
        if not scale > 0:
            raise ValueError(f"scale={scale}: must be positive")
        self.scale = scale

    def initial(self, way: int, dim: int, generator: torch.Generator) -> Parameters:
        """Directions v [N, D], uniform within 1/sqrt(D), and their lengths g [N]."""
        direction, _ = super().initial(way, dim, generator)
        return direction, direction.norm(dim=-1)

    def logits(self, parameters: Parameters, x: Tensor) -> Tensor:
        direction, length = parameters
        cosine = F.normalize(x, dim=-1) @ F.normalize(direction, dim=-1).mT
        return self.scale * length.unsqueeze(1) * cosine

    def gradients(self, parameters: Parameters, x: Tensor, error: Tensor) -> Parameters:
        direction, length = parameters
        unit = F.normalize(direction, dim=-1)
        weight = self.scale * error.mT @ F.normalize(x, dim=-1)
        along = (weight * unit).sum(-1)
        across = weight - along.unsqueeze(-1) * unit
        return across * (length / direction.norm(dim=-1)).unsqueeze(-1), along
