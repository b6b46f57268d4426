"""Same-or-different pairs for training a comparison (CRLNet, arXiv 2502.01183, official data set)."""

import numpy as np

from datamodules.images import Pools
from datamodules.streams import key, uniform


def check_pairs(pools: Pools) -> None:
    """Raises ``ValueError`` where a class cannot give a positive, or no class a negative."""
    classes, count = pools.support.classes, pools.support.count
    if len(classes) < 2:
        raise ValueError(f"{len(classes)} class(es): need at least 2 classes to draw negatives")
    if pools.query is not None and pools.query.classes != classes:
        raise ValueError("the support and the query pool have different classes")
    need = 2 if pools.query is None else 1
    if (count < need).any():
        short = int((count < need).int().argmax())
        raise ValueError(
            f"class {classes[short]!r} has {int(count[short])} image(s) to pair with; positives need {need}: "
            "add images or drop the class"
        )


def sample_pairs(pools: Pools, seed: int, epoch: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Support rows, query rows and labels (1 for the same class), [B] int64 each.

    Item i has image i of the query pool as its query. Even i get a positive: an image of the same class from
    the support pool, another one than the query if there is one pool. Odd i get a negative: a class uniform
    among the others, then an image uniform within it. Each draw depends on (seed, epoch, i) alone.

    Raises ``ValueError`` as ``check_pairs`` does.
    """
    check_pairs(pools)
    query_rows = np.asarray(indices)
    store = pools.query or pools.support
    same = query_rows % 2 == 0
    own = store.label.numpy()[query_rows]
    start, count = pools.support.start.numpy(), pools.support.count.numpy()
    which, where = uniform(key(seed, epoch, query_rows), 2).T

    other = np.floor(which * (len(count) - 1)).astype(np.int64)
    other += other >= own
    chosen = np.where(same, own, other)
    if pools.query is None:  # skip the query's own place
        place = np.floor(where * (count[chosen] - same)).astype(np.int64)
        place += same & (place >= query_rows - start[own])
    else:
        place = np.floor(where * count[chosen]).astype(np.int64)
    return start[chosen] + place, query_rows, same.astype(np.int64)
