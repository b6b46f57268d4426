"""The scores of a classifier, from all logits of a set at once."""

import warnings

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_auroc,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)


def classification_scores(logits: Tensor, label: Tensor) -> dict[str, float]:
    """Accuracy and macro averages in percent, of ``logits`` [n, C] and ``label`` [n] int64 in [0, C); on the CPU.

    ``balanced_accuracy`` is the mean recall, and ``auc`` the mean one-vs-rest area under the ROC curve, over the
    classes that the set has images of. ``precision``, ``recall`` and ``f1`` also count a class, with 0, that is only
    predicted. On a set with all classes balanced accuracy and recall are the same number.
    """
    classes = logits.shape[1]
    probability = logits.double().softmax(1)  # float32 would tie confident images at 1, which the ROC curve counts
    count = torch.bincount(label, minlength=classes)
    present = count > 0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No (positive|negative) samples")
        auc = multiclass_auroc(probability, label, classes, average="none")
    recall = multiclass_recall(probability, label, classes, average="none")
    both_sides = present & (count < len(label))
    scores = {
        "accuracy": (probability.argmax(1) == label).double().mean(),
        "balanced_accuracy": recall[present].mean(),
        "precision": multiclass_precision(probability, label, classes, average="macro"),
        "recall": multiclass_recall(probability, label, classes, average="macro"),
        "f1": multiclass_f1_score(probability, label, classes, average="macro"),
        "auc": auc[both_sides].mean(),
    }
    return {name: 100 * float(value) for name, value in scores.items()}
