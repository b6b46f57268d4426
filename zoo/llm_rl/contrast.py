"""Contrast with annotated chains of thought (CARFT, arXiv 2508.15868): embeddings, both signals, graded rewards."""

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from zoo.distributed import gather

MaskMode = Literal["intended", "official_broadcast"]


def cot_embedding(value: Tensor, embedding: Tensor, mask: Tensor) -> Tensor:
    """Embeddings [b, E] float32 of chains of thought (eq. 6): those of tokens, weighted by the softmax of the values.

    Args:
        value: [b, L].
        embedding: [b, L, E].
        mask: [b, L] bool, the tokens of the chain; a row without any has embedding 0 and no gradient.
    """
    value = value.float().masked_fill(~mask, torch.finfo(torch.float32).min)
    weight = value.softmax(1) * mask
    return (weight[..., None] * embedding.float()).sum(1)


def positive_losses(
    annotated: Tensor, rollout: Tensor, tau: float = 0.2, sim_cap: float = 0.9, gather_grad: bool = True
) -> Tensor:
    """Losses [b] that draw completions to the annotated chains (eq. 7); meant for those with a correct answer.

    ``-log(exp(min(cos_ii, sim_cap) / tau) / sum_j exp(cos_ij / tau))`` with cos_ij that of the annotated chain i and
    completion j, where j runs over the completions of all ranks.

    Args:
        annotated, rollout: [b, E] float32, as many rows on every rank.
        tau: temperature, positive.
        sim_cap: similarity beyond which nothing is drawn any closer.
        gather_grad: let gradient flow through the denominator. The official code does not, so that only the attraction
            of the numerator is left.

    A row of zeros (no tokens) has loss 0 and is nobody's negative. With one row in all there are no negatives, and
    the loss is 0 below the cap: a warning says so.
    """
    _check(tau)
    others = gather(rollout if gather_grad else rollout.detach())
    if len(others) == 1:
        warnings.warn("one completion alone has no negatives to contrast with; use larger minibatches", stacklevel=2)
    return _losses(annotated, rollout, annotated, others, tau, sim_cap)


def negative_losses(
    annotated_rest: Tensor,
    common: Tensor,
    rest: Tensor,
    tau: float = 0.2,
    sim_cap: float = 0.9,
    gather_grad: bool = True,
) -> Tensor:
    """Losses [b] that part what a completion shares with its annotated chain from what it does not (eq. 8).

    Like ``positive_losses`` with the numerator between ``annotated_rest`` and ``common``, and a denominator of the
    similarities of ``common`` with ``common`` of this rank's rows and ``rest`` of all ranks'. Meant for completions
    with a wrong answer.

    Args:
        annotated_rest: [b, E], tokens of the annotated chain that the completion lacks.
        common: [b, E], tokens of the completion that are in the annotated chain.
        rest: [b, E], the completion's other tokens.
    """
    _check(tau)
    others = torch.cat([common, gather(rest if gather_grad else rest.detach())])
    return _losses(annotated_rest, common, common, others, tau, sim_cap)


def contrast_loss(losses: Tensor, chosen: Tensor, count: float | Tensor, mask_mode: MaskMode = "intended") -> Tensor:
    """This minibatch's part of the loss, a scalar; the sum over minibatches and ranks is the loss.

    Args:
        losses: [b].
        chosen: [b] bool: correct completions for the positive signal, wrong ones that share a token with the annotated
            chain for the negative one.
        count: for ``intended``, the chosen rows of the whole optimiser step (all minibatches and ranks), so that the
            loss is their mean; for ``official_broadcast``, the number of minibatches.
        mask_mode: ``official_broadcast`` is the official code's product of [b] losses with a [b, 1] mask: the sum of
            the losses of all rows, chosen or not, if any row is chosen, else 0; averaged over minibatches.
    """
    if mask_mode == "intended":
        return losses.where(chosen, 0.0).sum() / max(count, 1)
    if mask_mode != "official_broadcast":
        raise ValueError(f"mask_mode={mask_mode!r}: choose intended or official_broadcast")
    return losses.sum() * chosen.any() / count


def partial_reward(annotated: Tensor, rollout: Tensor) -> Tensor:
    """Rewards [b] in [0.1, 0.3] of wrong answers, by the cosine of the embeddings [b, E] (eq. 10)."""
    return 0.1 * cosine_similarity(annotated, rollout) + 0.2


def common_subsequence(a: Sequence[int], b: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Positions in ``a`` and in ``b`` of a longest common subsequence, ascending.

    Of several, the one that takes late positions of ``a`` (as the official code does). Time and memory grow with
    the product of the lengths.
    """
    equal = np.equal.outer(np.asarray(a), np.asarray(b))
    length = np.zeros((len(a) + 1, len(b) + 1), np.int32)
    for i in range(len(a)):
        best = np.maximum(length[i, 1:], length[i, :-1] + equal[i])
        length[i + 1, 1:] = np.maximum.accumulate(best)
    pairs, i, j = [], len(a), len(b)
    while i and j:
        if equal[i - 1, j - 1]:
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif length[i - 1, j] > length[i, j - 1]:
            i -= 1
        else:
            j -= 1
    found = np.array(pairs[::-1], dtype=np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def common_masks(annotated_ids: Tensor, annotated: Tensor, rollout_ids: Tensor, rollout: Tensor) -> tuple[Tensor, ...]:
    """Tokens that an annotated chain and a completion share in order: bool [b, L*] of the one, [b, L] of the other.

    ``annotated`` [b, L*] and ``rollout`` [b, L] bool mask the tokens of the chains, which alone are compared.
    """
    result = torch.zeros_like(annotated), torch.zeros_like(rollout)
    rows = zip(annotated_ids.cpu(), annotated.cpu(), rollout_ids.cpu(), rollout.cpu(), strict=True)
    for row, (ids, mask, other_ids, other_mask) in enumerate(rows):
        columns = mask.nonzero()[:, 0], other_mask.nonzero()[:, 0]
        found = common_subsequence(ids[mask].numpy(), other_ids[other_mask].numpy())
        for marked, column, index in zip(result, columns, found, strict=True):
            marked[row, column[torch.from_numpy(index)].to(marked.device)] = True
    return result


def _check(tau: float) -> None:
    if tau <= 0:
        raise ValueError(f"tau={tau}: must be positive")


def _losses(first: Tensor, second: Tensor, anchor: Tensor, others: Tensor, tau: float, sim_cap: float) -> Tensor:
    """``log sum_j exp(cos(anchor_i, others_j) / tau) - min(cos(first_i, second_i), sim_cap) / tau``, [b]."""
    attraction = cosine_similarity(first, second).clamp(max=sim_cap) / tau
    similarity = cosine_similarity(anchor[:, None], others[None], dim=-1) / tau
    absent = (others == 0).all(1)
    negatives = similarity.masked_fill(absent, torch.finfo(similarity.dtype).min).logsumexp(1)
    return (negatives - attraction).where((second != 0).any(1), 0.0)
