"""One-to-one verification: is a pair of images of the same class? Larger scores mean yes.

``positive`` [P] are the scores of pairs of one class, ``negative`` [M] those of pairs of two. A pair is accepted
where its score is at or above the threshold. FAR is the share of negative pairs that are accepted, TAR that of
positive ones, FRR = 1 - TAR.
"""

import warnings

import torch
from torch import Tensor

from datamodules.search import check_widths
from zoo.retrieval.embeddings import EmbeddingTable


def pair_scores(
    query: EmbeddingTable, gallery: EmbeddingTable | None = None, chunk: int = 1024
) -> tuple[Tensor, Tensor]:
    """Cosines of the positive and of the negative pairs of all query and gallery items, ``chunk`` queries at once.

    Without a gallery: all pairs of two query items, each once. The result takes 4 bytes a pair.
    """
    other = query if gallery is None else gallery
    check_widths(query.embedding, other.embedding)
    positive, negative = [], []
    for start in range(0, len(query), chunk):
        part = slice(start, start + chunk)
        first = start if gallery is None else 0
        score = query.embedding[part] @ other.embedding[first:].T
        same = query.label[part, None] == other.label[first:]
        pair = torch.ones_like(same).triu(1) if gallery is None else torch.ones_like(same)
        positive.append(score[same & pair])
        negative.append(score[~same & pair])
    return torch.cat(positive), torch.cat(negative)


def roc_auc(positive: Tensor, negative: Tensor) -> float:
    """The area under the ROC curve: the chance that a positive pair scores above a negative one, ties half."""
    positive, negative = _sorted(positive, negative)
    below = torch.searchsorted(negative, positive) + torch.searchsorted(negative, positive, right=True)
    return (below.double().mean() / (2 * len(negative))).item()


def equal_error_rate(positive: Tensor, negative: Tensor) -> float:
    """The rate where FAR = FRR, linear between the two neighbouring thresholds of the ROC curve."""
    positive, negative = _sorted(positive, negative)
    top = positive.new_tensor([float("inf")])
    threshold = torch.cat([torch.cat([positive, negative]).unique(), top]).flip(0)
    far = 1 - torch.searchsorted(negative, threshold) / len(negative)
    frr = torch.searchsorted(positive, threshold) / len(positive)
    gap = far - frr  # rises from -1 at the first threshold, which accepts nothing, to 1
    after = int((gap >= 0).nonzero()[0, 0])
    before = after - 1
    weight = -gap[before] / (gap[after] - gap[before])
    return torch.lerp(far[before], far[after], weight).item()


def tar_at_far(positive: Tensor, negative: Tensor, far: float) -> float:
    """TAR at the lowest negative score as threshold that keeps FAR at or below ``far``; 1 - FNMR at that FMR.

    Where no negative score does, only pairs above all of them are accepted. Warns below 10 / far negative pairs, with
    which the threshold hangs on a few of them.

    Raises:
        ValueError: if ``far`` is outside (0, 1].
    """
    if not 0 < far <= 1:
        raise ValueError(f"far={far}: must be above 0 and at most 1")
    positive, negative = _sorted(positive, negative)
    if len(negative) * far < 10:
        warnings.warn(f"TAR@FAR={far:g} wants {10 / far:.0f} negative pairs or more, got {len(negative)}", stacklevel=2)
    allowed = int(far * len(negative) + 1e-9)  # 0.29 * 100 is 28.999...
    at_or_above = len(negative) - torch.searchsorted(negative, negative)
    kept = negative[at_or_above <= allowed]
    accepted = positive >= kept[0] if len(kept) else positive > negative[-1]
    return accepted.double().mean().item()


def kfold_accuracy(positive: Tensor, negative: Tensor, folds: int = 10) -> Tensor:
    """Accuracy [folds] of each fold at the threshold that is best on all others (the protocol of LFW).

    Pair i of either kind belongs to fold i % folds. Thresholds lie midway between scores; of equally good ones the
    lowest counts.

    Raises:
        ValueError: for fewer than 2 folds, or fewer pairs of a kind than folds.
    """
    if folds < 2 or min(len(positive), len(negative)) < folds:
        raise ValueError(
            f"folds={folds} with {len(positive)} positive and {len(negative)} negative pairs: take at least 2 folds "
            "and as many pairs of each kind as folds"
        )
    kinds = (positive.double(), negative.double())
    fold = [torch.arange(len(scores)) % folds for scores in kinds]
    accuracy = []
    for k in range(folds):
        threshold = _best_threshold(*(scores[f != k] for scores, f in zip(kinds, fold, strict=True)))
        accepted, rejected = kinds[0][fold[0] == k] >= threshold, kinds[1][fold[1] == k] < threshold
        accuracy.append(torch.cat([accepted, rejected]).double().mean())
    return torch.stack(accuracy)


def _best_threshold(positive: Tensor, negative: Tensor) -> Tensor:
    positive, negative = _sorted(positive, negative)
    values = torch.cat([positive, negative]).unique()
    cuts = torch.cat([values[:1], (values[1:] + values[:-1]) / 2, values.new_tensor([float("inf")])])
    right = len(positive) - torch.searchsorted(positive, cuts) + torch.searchsorted(negative, cuts)
    return cuts[right.argmax()]


def _sorted(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    for name, scores in (("positive", positive), ("negative", negative)):
        if len(scores) == 0:
            raise ValueError(f"there are no {name} pairs: verification needs both kinds")
        if not scores.isfinite().all():
            raise ValueError(f"{int((~scores.isfinite()).sum())} scores of {name} pairs are not finite")
    return positive.double().sort().values, negative.double().sort().values
