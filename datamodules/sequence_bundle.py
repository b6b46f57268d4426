"""A store of sequences as one small ``.npz`` file, the form in which a data set ships with the package."""

from pathlib import Path
from typing import Any

import numpy as np

from datamodules.sequence_store import PAD, SequenceStore

_ARRAYS = ("item", "length", "step", "user_ids", "item_ids", "titles")


def write_bundle(store: SequenceStore, path: Path) -> None:
    """Write a store with titles and whole-number times, such as ``OnlineRetail(root).load()``; no pickle is in it.

    Arrays: ``item`` [N] uint16, ``length`` [users] uint16, ``step`` [N] int32 (time minus the time of the row before,
    0 before the first), ``user_ids`` [users], ``item_ids`` [V] and ``titles`` [V] as text.

    Raises:
        ValueError: if titles are missing, or times are missing or no whole numbers, or a number does not fit its type.
    """
    if store.titles is None or store.time is None or store.time.dtype != np.int64:
        raise ValueError("a bundle needs titles and whole-number times; this store lacks them")
    arrays: dict[str, Any] = {"item": store.item, "length": store.length, "step": np.diff(store.time, prepend=0)}
    for name, kind in (("item", np.uint16), ("length", np.uint16), ("step", np.int32)):
        limit = np.iinfo(kind)
        if arrays[name].min() < limit.min or arrays[name].max() > limit.max:
            raise ValueError(f"{name} goes from {arrays[name].min()} to {arrays[name].max()}, beyond {kind.__name__}")
        arrays[name] = arrays[name].astype(kind)
    texts = {"user_ids": store.user_ids, "item_ids": store.item_ids[1:], "titles": store.titles[1:]}
    arrays |= {name: np.array(list(text)) for name, text in texts.items()}
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_bundle(path: Path) -> SequenceStore:
    """The store that ``write_bundle`` wrote. Raises ``ValueError`` if the file lacks one of its arrays."""
    with np.load(path, allow_pickle=False) as file:
        if missing := [name for name in _ARRAYS if name not in file.files]:
            raise ValueError(f"{path} has no array {missing[0]!r}: it was not written by write_bundle")
        found = {name: file[name] for name in _ARRAYS}
    return SequenceStore(
        item=found["item"].astype(np.int32),
        offset=np.concatenate([[0], np.cumsum(found["length"], dtype=np.int64)]),
        time=np.cumsum(found["step"], dtype=np.int64),
        item_ids=[PAD, *found["item_ids"].tolist()],
        user_ids=found["user_ids"].tolist(),
        titles=["", *found["titles"].tolist()],
    )
