"""Which interactions are trained on and which are asked for."""

from dataclasses import dataclass

import numpy as np

from datamodules.sequence_store import SequenceStore


@dataclass(frozen=True)
class Split:
    """What is trained on and what is asked.

    ``train`` [users] int64: of each user, the number of items, the first ones, that are trained on. ``val`` and
    ``test``: the rows of the store, ascending, whose items are to be predicted from all that came before.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def leave_one_out(store: SequenceStore) -> Split:
    """Each user's last item is for the test and the one before for validation; users of fewer than 3 only train."""
    length = store.length
    end = store.offset[1:][length >= 3]
    return Split(np.where(length < 3, length, length - 2), end - 2, end - 1)


def temporal(store: SequenceStore, held_out: tuple[float, float]) -> Split:
    """Trains on what came before one cut in time, for all users.

    After it come two windows with the shares ``held_out`` of all interactions. Of every user who has earlier items,
    the first item inside the validation window is asked, and the first inside the test window.
    """
    if store.time is None or not len(store.time):
        raise ValueError("split=temporal needs times, but the data set has none: choose leave_one_out")
    cuts = np.sort(store.time)[[int(len(store.time) * (1 - sum(held_out))), int(len(store.time) * (1 - held_out[1]))]]
    user = np.repeat(np.arange(len(store.user_ids)), store.length)
    before = [np.bincount(user[store.time < cut], minlength=len(store.user_ids)) for cut in cuts]
    asked = []
    for count, last in zip(before, (before[1], store.length), strict=True):
        asked.append((store.offset[:-1] + count)[(count > 0) & (count < last)])
    return Split(before[0], *asked)
