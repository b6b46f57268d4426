"""Contrastive losses on pairs of views, as pure functions."""

import warnings
from typing import Literal

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.functional import cross_entropy, normalize

from zoo.distributed import gather

Similarity = Literal["dot", "cosine"]
Form = Literal["symmetric", "one_way"]


def info_nce(
    a: Tensor,
    b: Tensor,
    temperature: float = 1.0,
    similarity: Similarity = "dot",
    form: Form = "symmetric",
    gather_negatives: bool = False,
) -> Tensor:
    """InfoNCE of N pairs (a_i, b_i), averaged over the anchors; a scalar.

    ``symmetric`` (official code of SRA-CL; SimCLR): all 2N vectors z = [a; b] are anchors, the positive of each is its
    pair, its negatives are the 2N - 2 others: ``-log exp(s_i,pos) / sum_{j != i} exp(s_ij)``, ``s_ij = <z_i, z_j> /
    temperature``. ``one_way`` (text of SRA-CL, arXiv 2503.04162): anchors are the a_i only, their negatives the N - 1
    other b_j.

    The loss spans the rank's pairs; with ``gather_negatives`` candidates come from all ranks, with gradient, while
    anchors stay the rank's own: the mean over ranks of loss and gradient is that of one process with all pairs.

    Args:
        a: anchors [N, d]; the same N on all ranks if gathered.
        b: their positives [N, d].
        temperature: above 0.
        similarity: inner product, or cosine, which is 0 where a vector is zero.

    Raises:
        ValueError: for shapes that differ, a temperature that is not positive, unknown switches.
    """
    if a.shape != b.shape or a.ndim != 2 or not len(a):
        raise ValueError(f"info_nce: views are {list(a.shape)} and {list(b.shape)}: must both be [N, d] with N > 0")
    check_switches(temperature, similarity, form)
    if similarity == "cosine":
        a, b = normalize(a, dim=-1, eps=1e-8), normalize(b, dim=-1, eps=1e-8)
    all_a, all_b, first = a, b, 0
    if gather_negatives:
        all_b = gather(b)
        all_a = gather(a) if form == "symmetric" else a
        first = dist.get_rank() * len(a) if len(all_b) > len(a) else 0
    total = len(all_b)
    if total == 1:
        warnings.warn("info_nce: a batch of one pair has no negatives, so its loss is 0", stacklevel=2)
    own = torch.arange(first, first + len(a), device=a.device)
    if form == "one_way":
        return cross_entropy(a @ all_b.T / temperature, own)
    logits = torch.cat([a, b]) @ torch.cat([all_a, all_b]).T / temperature
    itself = torch.cat([own, own + total])
    logits = logits.scatter(1, itself[:, None], -torch.inf)
    return cross_entropy(logits, itself.roll(len(a)))


def check_switches(temperature: float, similarity: str, form: str) -> None:
    """Raises ``ValueError`` for a temperature that is not positive or an unknown switch, naming what is allowed."""
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be above 0")
    if similarity not in ("dot", "cosine"):
        raise ValueError(f"similarity={similarity!r}: must be dot or cosine")
    if form not in ("symmetric", "one_way"):
        raise ValueError(f"form={form!r}: must be symmetric or one_way")
