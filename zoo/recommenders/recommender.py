"""A sequence encoder trained to name the next item, with contrastive parts beside it or without."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from datamodules.batches import SequenceBatch
from zoo.catalogue import register
from zoo.recommenders.contrastive import Contrastive
from zoo.recommenders.encoders import SequenceEncoder, check_sequences
from zoo.recommenders.evaluation import NextItem
from zoo.recommenders.objectives import FullSoftmax, Objective

TASK = "sequential recommendation"


def adam(parameters: Any) -> torch.optim.Optimizer:
    """The official optimiser: Adam with learning rate 1e-3."""
    return torch.optim.Adam(parameters, lr=1e-3, fused=True)


@register("sasrec", papers=["SASRec 1808.09781"], task=TASK, config="recommenders/sasrec_ml100k")
@register("gru4rec", papers=["GRU4Rec 1511.06939"], task=TASK, config="recommenders/gru4rec_ml100k")
@register("cl4srec", papers=["CL4SRec 2010.14395"], task=TASK, config="recommenders/cl4srec_ml100k")
@register("duorec", papers=["DuoRec 2110.05730"], task=TASK, config="recommenders/duorec_ml100k")
@register("sra_cl", papers=["SRA-CL 2503.04162"], task=TASK, config="recommenders/sra_cl_ml100k")
class Recommender(NextItem):
    """``L = L_Rec + sum of weight * L_part``; scores are ``<h, E_v>`` with the encoder's own item table.

    All sequences of a step, the batch's and those that the parts name, are encoded in one pass, each with dropout of
    its own. Parts of weight 0 are left out. L_Rec is a mean over the rank's samples, which DDP averages.

    The encoder is built for the data's number of items, or for that of a checkpoint.

    Args:
        encoder: sequences to vectors.
        objective: L_Rec; default: ``FullSoftmax()``.
        contrastive: parts by name, under which their losses are logged.
        num_items: V, to build the encoder at once, without data.
        encode_at_once: sequences a pass of the encoder; null for all, on a CPU 512, whose results its caches hold.
        optimizer: made from all parameters.
        ranking: see :class:`~zoo.recommenders.evaluation.NextItem`.
    """

    def __init__(
        self,
        encoder: SequenceEncoder,
        objective: Objective | None = None,
        contrastive: dict[str, Contrastive] | None = None,
        num_items: int | None = None,
        encode_at_once: int | None = None,
        optimizer: OptimizerCallable = adam,
        **ranking: Any,
    ) -> None:
        super().__init__(**ranking)
        if "next_item" in (contrastive or {}):
            raise ValueError("contrastive: next_item is the name of the main loss; give the part another")
        if encode_at_once is not None and encode_at_once < 1:
            raise ValueError(f"encode_at_once={encode_at_once}: must be at least 1")
        self.encoder, self.optimizer, self.encode_at_once = encoder, optimizer, encode_at_once
        self.objective = FullSoftmax() if objective is None else objective
        self.contrastive = nn.ModuleDict({name: part for name, part in (contrastive or {}).items() if part.weight > 0})
        if num_items is not None:
            self.encoder.build(num_items)

    @property
    def network(self) -> SequenceEncoder:
        """The sequence encoder."""
        return self.encoder

    @property
    def num_items(self) -> int:
        if self.encoder.num_items is None:
            raise RuntimeError("the encoder is not built: give num_items, data or a checkpoint")
        return self.encoder.num_items

    # --- building ------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Builds for the data. Raises ``ValueError`` if it is built for another number of items."""
        data = getattr(self.trainer, "datamodule", None)
        if data is not None:
            self._build_encoder(data.num_items, "the data have")
        self.check_depth()
        if stage == "fit":
            tables = getattr(data, "tables", None)
            self._build_parts(None if tables is None else tables.pool_embedding.shape[1])

    def on_fit_start(self) -> None:
        tables = getattr(getattr(self.trainer, "datamodule", None), "tables", None)
        for part in self._parts().values():
            part.prepare(tables)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Builds for the sizes of a checkpoint, which brings no data along."""
        state = checkpoint["state_dict"]
        self._build_encoder(len(state["encoder.item_embedding.weight"]) - 1, "the checkpoint has")
        semantic = [len(value) for name, value in state.items() if name.endswith("synthesizer.weight")]
        self._build_parts(semantic[0] if semantic else None)

    def _build_encoder(self, num_items: int, who: str) -> None:
        if self.encoder.num_items is None:
            self.encoder.build(num_items).to(self.device)
        elif self.encoder.num_items != num_items:
            raise ValueError(
                f"{who} {num_items} items, but the model was built for {self.encoder.num_items}: use the data and the "
                "filters that it was trained with"
            )

    def _build_parts(self, semantic_dim: int | None) -> None:
        for part in self._parts().values():
            part.build(self.encoder.dim, semantic_dim)
            part.to(self.device)

    def _parts(self) -> dict[str, Contrastive]:
        return dict(self.contrastive.items())  # type: ignore[arg-type]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())

    # --- training ------------------------------------------------------------------------------------------------

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> Tensor:
        if batch_idx == 0:  # once an epoch: asking a GPU for its values costs time
            check_sequences(batch.item_seq, self.num_items)
        losses = self.losses(batch)
        loss = torch.stack([self.weight(name) * value for name, value in losses.items()]).sum()
        self.log("train/loss", loss, prog_bar=True)
        if len(losses) > 1:
            self.log_dict({f"train/loss_{name}": value for name, value in losses.items()})
        return loss

    def weight(self, name: str) -> float:
        """The factor of one of ``losses``."""
        return 1.0 if name == "next_item" else self._parts()[name].weight

    def losses(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """``next_item`` and the loss of each part, without their weights."""
        parts = self._parts()
        asked = {name: part.sequences(batch) for name, part in parts.items()}
        table, whole = self.encoder.item_embedding.weight, batch.target.ndim == 2
        if whole:
            states, given = self.encoder.states(batch.item_seq), batch.target > 0
            next_item = self.objective(states[given], table, batch.target[given])
            h, views = states[:, -1], self.encode(list(asked.values()))
        else:
            h, *views = self.encode([batch.item_seq[:, None], *asked.values()])
            h = h[:, 0]
            next_item = self.objective(h, table, batch.target)
        own = {name: part(h, view, batch) for (name, part), view in zip(parts.items(), views, strict=True)}
        return {"next_item": next_item, **own}

    def encode(self, sequences: Sequence[Tensor]) -> list[Tensor]:
        """Vectors [B, m, d] of each [B, m, L], ``encode_at_once`` sequences a pass."""
        if not sequences:
            return []
        rows = torch.cat([part.flatten(0, 1) for part in sequences])
        at_once = self.encode_at_once or (512 if rows.device.type == "cpu" else len(rows))
        h = torch.cat([self.encoder(some) for some in rows.split(at_once)])
        sizes = [part.shape[:2] for part in sequences]
        return [part.unflatten(0, size) for part, size in zip(h.split([b * m for b, m in sizes]), sizes, strict=True)]

    # --- ranking -------------------------------------------------------------------------------------------------

    def represent(self, item_seq: Tensor) -> Tensor:
        """The vectors h [B, d] of histories [B, L]."""
        h: Tensor = self.encoder(item_seq)
        return h

    def score(self, known: Tensor) -> Tensor:
        with torch.autocast(known.device.type, enabled=False):  # low precision makes ties
            return known.float() @ self.encoder.item_embedding.weight[1:].float().T
