"""The higher-order compatibility loss (HOC): ties the embeddings of a new model to those of the one before it."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.distributed import gather

SameClass = Literal["ones", "drop", "positive_in_denominator"]
SAME_CLASS: tuple[SameClass, ...] = ("ones", "drop", "positive_in_denominator")
PreviousAtReplacement = Literal["new_pretrained", "last_finetuned"]
PREVIOUS: tuple[PreviousAtReplacement, ...] = ("new_pretrained", "last_finetuned")


def higher_order_contrast(
    old: Tensor,
    new: Tensor,
    label: Tensor,
    mu: float = 10.0,
    same_class: SameClass = "ones",
    columns: Tensor | None = None,
    column_label: Tensor | None = None,
) -> Tensor:
    """Contrast of old against new embeddings of the same images, a scalar (arXiv 2405.02581, equation 4).

    With s_ij the cosine of old row i and new row j it is the mean over i of
    ``-mu s_ii + log(n_i + sum over j of another class of exp(mu s_ij))``, n_i the number of columns of i's class
    (i among them): the official code multiplies their similarities by zero, which leaves exp(0) = 1 each.

    Args:
        old: embeddings of the previous model, [B, d], of any length; no gradient reaches them.
        new: embeddings of the model in training, [B, d].
        label: [B].
        mu: inverse temperature.
        same_class: what columns of row i's class add to its denominator. ``ones``: 1 each. ``drop``: nothing, so that
            a row without another class is -inf. ``positive_in_denominator``: exp(mu s_ii) once, the others nothing.
        columns: all ranks' new embeddings [N, d], the default is ``new``; the mean over ranks of equal B is then the
            value of the joined batch.
        column_label: [N], with ``columns``.

    Computed in float32 or more, autocast or not. Lengths are clamped at 1e-12.

    Raises:
        ValueError: for shapes that do not fit or an unknown ``same_class``.
    """
    if same_class not in SAME_CLASS:
        raise ValueError(f"same_class={same_class!r}: choose one of {', '.join(SAME_CLASS)}")
    if (columns is None) != (column_label is None):
        raise ValueError("columns and column_label go together: pass both or neither")
    if columns is None or column_label is None:
        columns, column_label = new, label
    if old.shape != new.shape or columns.shape[1:] != new.shape[1:]:
        raise ValueError(
            f"old {list(old.shape)}, new {list(new.shape)} and columns {list(columns.shape)} must agree: "
            "both models embed the same batch in the same number of dimensions"
        )
    if len(label) != len(new) or len(column_label) != len(columns):
        raise ValueError(
            f"{len(label)} labels for {len(new)} rows and {len(column_label)} for {len(columns)} columns: "
            "each needs one label"
        )
    with torch.autocast(new.device.type, enabled=False):
        old, new, columns = _unit(old.detach()), _unit(new), _unit(columns)
        positive = mu * (old * new).sum(1)
        filled = 0.0 if same_class == "ones" else -torch.inf
        denominator = (mu * old @ columns.T).masked_fill(label[:, None] == column_label, filled)
        if same_class == "positive_in_denominator":
            denominator = torch.cat([positive[:, None], denominator], 1)
        return (denominator.logsumexp(1) - positive).mean()


def _unit(z: Tensor) -> Tensor:
    return F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=1, eps=1e-12)


class HigherOrderCompatibility:
    """``weight`` of the cross-entropy and 1 - ``weight`` of the contrast with the previous model (equation 3).

    Args:
        weight: lambda, of the cross-entropy; 1 is d-Simplex alone, which needs no previous model.
        mu: inverse temperature of the contrast.
        same_class: see ``higher_order_contrast``; ``ones`` is the official code's.
        previous_at_replacement: the previous model where a pretrained one replaces the model: that same pretrained one
            (the official code's) or the last one that was fine-tuned.
        gather_negatives: contrast with all ranks' images, which then must be as many on each; else with the rank's.
    """

    def __init__(
        self,
        weight: float = 0.1,
        mu: float = 10.0,
        same_class: SameClass = "ones",
        previous_at_replacement: PreviousAtReplacement = "new_pretrained",
        gather_negatives: bool = False,
    ) -> None:
        if not 0 <= weight <= 1:
            raise ValueError(f"weight={weight}: the cross-entropy's share must be between 0 and 1")
        if not mu > 0:
            raise ValueError(f"mu={mu}: must be above 0")
        if same_class not in SAME_CLASS:
            raise ValueError(f"same_class={same_class!r}: choose one of {', '.join(SAME_CLASS)}")
        if previous_at_replacement not in PREVIOUS:
            raise ValueError(
                f"previous_at_replacement={previous_at_replacement!r}: choose one of {', '.join(PREVIOUS)}"
            )
        self.weight, self.mu, self.same_class = weight, mu, same_class
        self.previous_at_replacement, self.gather_negatives = previous_at_replacement, gather_negatives

    @property
    def active(self) -> bool:
        """Whether the previous model's embeddings are needed."""
        return self.weight < 1

    def __call__(self, cross_entropy: Tensor, old_z: Tensor | None, new_z: Tensor, label: Tensor) -> Tensor:
        """The total: a scalar from the mean cross-entropy, embeddings [B, width] of both models and labels [B].

        Raises:
            ValueError: without the previous model's embeddings where they are needed.
        """
        if not self.active:
            return cross_entropy
        if old_z is None:
            raise ValueError(f"weight={self.weight} needs the previous model's embeddings; only weight=1 does without")
        everyone = (gather(new_z), gather(label)) if self.gather_negatives else (None, None)
        contrast = higher_order_contrast(old_z, new_z, label, self.mu, self.same_class, *everyone)
        return self.weight * cross_entropy + (1 - self.weight) * contrast
