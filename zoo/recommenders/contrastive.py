"""Contrastive parts of a recommender's loss: inter-user and intra-user (SRA-CL, CL4SRec) and same-target (DuoRec)."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from datamodules.batches import SequenceBatch
from zoo.recommenders.losses import Form, Similarity, check_switches, info_nce
from zoo.recommenders.synthesis import Attention, Synthesizer


class Contrastive(nn.Module):
    """A regulariser by pairs of views: names the sequences that it wants encoded, then takes their vectors.

    A weight of 0 leaves the part out: nothing is encoded for it.

    Args:
        weight: factor of the loss.
        temperature: of InfoNCE.
        similarity: of InfoNCE.
        form: of InfoNCE, see :func:`~zoo.recommenders.losses.info_nce`.
        gather_negatives: take negatives from all ranks, so that W ranks with B samples equal one with W * B.
    """

    needs: ClassVar[Literal["views", "neighbors", "same_target"]]
    """The field of ``SequenceBatch`` that the data must fill."""

    def __init__(
        self,
        weight: float = 0.1,
        temperature: float = 1.0,
        similarity: Similarity = "dot",
        form: Form = "symmetric",
        gather_negatives: bool = False,
    ) -> None:
        super().__init__()
        if not weight >= 0:
            raise ValueError(f"weight={weight}: must be at least 0")
        check_switches(temperature, similarity, form)
        self.weight, self.temperature, self.similarity, self.form = weight, temperature, similarity, form
        self.gather_negatives = gather_negatives

    def build(self, dim: int, semantic_dim: int | None) -> None:
        """Makes the parameters, where there are any, for vectors [d] and texts' vectors [D] (None without texts)."""

    def prepare(self, tables: Any) -> None:
        """Takes what training needs of the data's semantic tables (None without texts)."""

    def sequences(self, batch: SequenceBatch) -> Tensor:
        """What to encode, [B, m, L] int64; each with dropout of its own."""
        raise NotImplementedError

    def forward(self, h: Tensor, views: Tensor, batch: SequenceBatch) -> Tensor:
        """The loss, a scalar, of ``h`` [B, d], the vectors of ``item_seq``, and ``views`` [B, m, d]."""
        raise NotImplementedError

    def field(self, batch: SequenceBatch) -> Tensor:
        """What the part needs of the batch. Raises ``ValueError`` where the data have not filled it."""
        value: Tensor | None = getattr(batch, self.needs)
        if value is None:
            raise ValueError(
                f"{type(self).__name__} needs {self.needs} in the batch: add a view that makes them to the data's views"
            )
        return value

    def info_nce(self, a: Tensor, b: Tensor) -> Tensor:
        """InfoNCE of [B, d] and [B, d] by the part's switches."""
        return info_nce(a, b, self.temperature, self.similarity, self.form, self.gather_negatives)


class IntraUser(Contrastive):
    """Two changed copies of a sequence attract each other: L_IS of SRA-CL, and CL4SRec (arXiv 2010.14395).

    The two differ in how the data change the copies: items replaced by similar ones, or cropped, masked, reordered.
    """

    needs = "views"

    def sequences(self, batch: SequenceBatch) -> Tensor:
        return self.field(batch)

    def forward(self, h: Tensor, views: Tensor, batch: SequenceBatch) -> Tensor:
        return self.info_nce(views[:, 0], views[:, 1])


class InterUser(Contrastive):
    """A sequence and what is synthesised of similar users' sequences attract each other: L_CS of SRA-CL.

    Args:
        synthesizer: makes one vector of the neighbours' vectors; default: ``Attention()``.
        reuse_anchor: take the vector of the main loss as anchor, instead of a second one with fresh dropout (official).
    """

    needs = "neighbors"

    def __init__(
        self,
        weight: float = 0.1,
        synthesizer: Synthesizer | None = None,
        reuse_anchor: bool = False,
        temperature: float = 1.0,
        similarity: Similarity = "dot",
        form: Form = "symmetric",
        gather_negatives: bool = False,
    ) -> None:
        super().__init__(weight, temperature, similarity, form, gather_negatives)
        self.synthesizer = Attention() if synthesizer is None else synthesizer
        self.reuse_anchor = reuse_anchor

    def build(self, dim: int, semantic_dim: int | None) -> None:
        self.synthesizer.build(dim, semantic_dim)

    def prepare(self, tables: Any) -> None:
        self.synthesizer.prepare(tables)

    def sequences(self, batch: SequenceBatch) -> Tensor:
        neighbors = self.synthesizer.choose(self.field(batch))
        return neighbors if self.reuse_anchor else torch.cat([batch.item_seq[:, None], neighbors], 1)

    def forward(self, h: Tensor, views: Tensor, batch: SequenceBatch) -> Tensor:
        if not self.reuse_anchor:
            h, views = views[:, 0], views[:, 1:]
        return self.info_nce(h, self.synthesizer(views, batch))


class DuoRec(Contrastive):
    """Sequences with the same next item attract each other (arXiv 2110.05730).

    Args:
        contrast: by the names of the official code: ``us_x`` a second encoding with fresh dropout against one of a
            sequence with the same target (the paper's loss), ``un`` the main encoding against the second one, ``su``
            against the one with the same target, ``us`` the sum of ``un`` and ``su``.
    """

    needs = "same_target"

    def __init__(
        self,
        weight: float = 0.1,
        contrast: Literal["us_x", "us", "un", "su"] = "us_x",
        temperature: float = 1.0,
        similarity: Similarity = "dot",
        form: Form = "symmetric",
        gather_negatives: bool = False,
    ) -> None:
        super().__init__(weight, temperature, similarity, form, gather_negatives)
        if contrast not in ("us_x", "us", "un", "su"):
            raise ValueError(f"contrast={contrast!r}: must be us_x, us, un or su")
        self.contrast = contrast

    def sequences(self, batch: SequenceBatch) -> Tensor:
        again = [] if self.contrast == "su" else [batch.item_seq]
        same = [] if self.contrast == "un" else [self.field(batch)]
        return torch.stack(again + same, 1)

    def forward(self, h: Tensor, views: Tensor, batch: SequenceBatch) -> Tensor:
        if self.contrast == "us_x":
            return self.info_nce(views[:, 0], views[:, 1])
        return torch.stack([self.info_nce(h, view) for view in views.unbind(1)]).sum()
