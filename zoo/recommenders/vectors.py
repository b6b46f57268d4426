"""Item and user vectors as files, for any index of inner products: score is ``<user, item>``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from datamodules.batches import SequenceEvalBatch
from zoo.distributed import gather_objects
from zoo.recommenders.recommender import Recommender


def export_vectors(folder: str | Path, name: str, vectors: np.ndarray, ids: Sequence[str]) -> None:
    """Writes ``<name>.npy`` [n, d] float32 and ``<name>.txt``, the id of each row a line.

    Raises:
        ValueError: if there are not as many ids as vectors, or an id has a line break.
    """
    if len(vectors) != len(ids):
        raise ValueError(f"{len(vectors)} vectors, but {len(ids)} ids: give one each")
    if broken := [id for id in ids if len(id.splitlines()) > 1]:
        raise ValueError(f"id {broken[0]!r} has a line break")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{name}.npy", np.ascontiguousarray(vectors, np.float32))
    (folder / f"{name}.txt").write_text("".join(f"{id}\n" for id in ids), encoding="utf-8")


def item_vectors(model: Recommender) -> np.ndarray:
    """The item table [V, d] float32; row j is item j + 1."""
    return model.encoder.item_embedding.weight[1:].detach().float().cpu().numpy()


class ExportVectors(Callback):
    """Writes ``items`` and ``users`` at the end of a prediction: the vectors whose inner products are the scores.

    Args:
        folder: where to; null for ``vectors`` in the run folder.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, Recommender):
            raise ValueError(f"{type(pl_module).__name__} has no vectors to export: use a Recommender")
        self._found: list[tuple[np.ndarray, np.ndarray]] = []  # users and vectors of each batch

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: SequenceEvalBatch, *_: Any
    ) -> None:
        with torch.inference_mode():
            vectors = pl_module.represent(batch.item_seq).float().cpu().numpy()
        self._found.append((batch.user.cpu().numpy(), vectors))

    def on_predict_end(self, trainer: Trainer, pl_module: Any) -> None:
        log_dir = trainer.log_dir  # a broadcast: all ranks must ask
        found = [pair for part in gather_objects(self._found) for pair in part]
        if not trainer.is_global_zero:
            return
        users, vectors = (np.concatenate(part) for part in zip(*found, strict=True))
        users, first = np.unique(users, return_index=True)
        folder, data = Path(self.folder or Path(log_dir or ".") / "vectors"), trainer.datamodule  # type: ignore[attr-defined]
        export_vectors(folder, "items", item_vectors(pl_module), list(data.item_ids[1:]))
        export_vectors(folder, "users", vectors[first], [data.predict_users[user] for user in users])
        rank_zero_info(f"Vectors of {pl_module.num_items} items and {len(users)} users in {folder}")
