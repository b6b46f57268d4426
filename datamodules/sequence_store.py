"""All users' sequences in flat arrays, the k-core filter, and the numbering of their beginnings ("prefixes")."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

PAD = "[PAD]"


@dataclass(frozen=True)
class SequenceStore:
    """The items of every user in time order, one user after the other.

    Attributes:
        item: [N] int32 in 1 to V; 0 is padding and is never stored.
        offset: [users + 1] int64, user u has ``item[offset[u]:offset[u + 1]]``.
        time: [N] int64 or float64, ascending within a user; None where only the order is known.
        item_ids: the original ids, V + 1 of them, the first ``"[PAD]"``.
        user_ids: the original ids.
        titles: V + 1 names of the items, the first empty; None where there are none.
    """

    item: np.ndarray
    offset: np.ndarray
    time: np.ndarray | None
    item_ids: Sequence[str]
    user_ids: Sequence[str]
    titles: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if len(self.offset) != len(self.user_ids) + 1 or self.offset[0] or self.offset[-1] != len(self.item):
            raise ValueError(
                f"offset must go from 0 to the {len(self.item)} interactions in {len(self.user_ids) + 1} steps, one "
                f"more than users; it has {len(self.offset)} and ends in {self.offset[-1]}"
            )
        if (self.length < 1).any():
            raise ValueError(
                f"user {self.user_ids[int((self.length < 1).argmax())]!r} has no items: leave such users out"
            )
        wrong = (self.item < 1) | (self.item > self.num_items)
        if wrong.any():
            at = int(wrong.argmax())
            raise ValueError(
                f"row {at}, of user {self.user_id(at)!r}, has item {self.item[at]}: items must lie in "
                f"[1, {self.num_items}]"
            )
        if self.titles is not None and len(self.titles) != len(self.item_ids):
            raise ValueError(f"{len(self.titles)} titles for {len(self.item_ids)} item ids: give one for each")
        if self.time is not None and len(self.time) > 1:
            back = np.diff(self.time) < 0
            back[self.offset[1:-1] - 1] = False
            if back.any():
                at = int(back.argmax()) + 1
                raise ValueError(
                    f"row {at}, of user {self.user_id(at)!r}, is earlier than the row before: sort by (user, time), "
                    "stably"
                )

    @property
    def num_items(self) -> int:
        return len(self.item_ids) - 1

    @property
    def length(self) -> np.ndarray:
        """The number of items of each user, [users] int64."""
        return np.diff(self.offset)

    def user_id(self, row: int) -> str:
        """The id of the user whose interaction stands in a row."""
        return self.user_ids[int(np.searchsorted(self.offset, row, side="right")) - 1]


class SequenceSet(ABC):
    """A data set of users' sequences."""

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    @abstractmethod
    def load(self) -> SequenceStore:
        """All interactions, sorted; raises an error that names file, line or id where the data are wrong."""


@dataclass(frozen=True)
class Prefixes:
    """The beginnings of length 1 to ``count[u]`` of each user u, numbered through the users in order.

    It takes memory per user, not per prefix.

    Attributes:
        offset: [users + 1] int64, of the store.
        count: [users] int64, at most the user's number of items.
        max_length: L, the number of items, the most recent ones, that a prefix is cut to.
    """

    offset: np.ndarray
    count: np.ndarray
    max_length: int

    @cached_property
    def first(self) -> np.ndarray:
        """The number of each user's first prefix, and how many there are: [users + 1] int64."""
        return np.concatenate([[0], np.cumsum(self.count)])

    def __len__(self) -> int:
        return int(self.first[-1])

    def user(self, number: np.ndarray) -> np.ndarray:
        """The users that prefixes are of, int64 of the shape of ``number``."""
        return np.searchsorted(self.first, number, side="right") - 1

    def bounds(self, number: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(start, end) of prefixes in ``SequenceStore.item``, int64 of the shape of ``number``; of all unless told.

        Both are after the cut to L items. ``item[end]`` is the item that follows, where there is one.
        """
        number = np.arange(len(self)) if number is None else number
        user = self.user(number)
        begin = self.offset[user]
        end = begin + number - self.first[user] + 1
        return np.maximum(begin, end - self.max_length), end


def windows(item: np.ndarray, start: np.ndarray, end: np.ndarray, length: int) -> np.ndarray:
    """Slices of a flat array as rows padded on the left with 0: int64 [..., length], one gather.

    ``start`` and ``end`` [...] are positions in ``item`` [N]; of a slice that is longer, its last ``length`` items.
    """
    column = end[..., None] - length + np.arange(length)
    found = item.take(column, mode="clip").astype(np.int64)
    found[column < start[..., None]] = 0
    return found


def k_core(user: np.ndarray, item: np.ndarray, least_user: int, least_item: int) -> tuple[np.ndarray, list[int]]:
    """Rows to keep so that each user left has ``least_user`` rows and each item left ``least_item``, and the sizes.

    Users and items with too few are dropped together, counted anew and dropped again until none is left to drop. The
    rows are [n] int64, ascending; the sizes are numbers of rows before each pass and after the last.
    """
    rows, sizes = np.arange(len(user)), [len(user)]
    while True:
        users, items = user[rows], item[rows]
        keep = (np.bincount(users)[users] >= least_user) & (np.bincount(items)[items] >= least_item)
        rows = rows[keep]
        sizes.append(len(rows))
        if sizes[-1] == sizes[-2]:
            return rows, sizes


def filtered(store: SequenceStore, rows: np.ndarray) -> SequenceStore:
    """A store of some of its rows, given in ascending order; users and items that have none are numbered no more."""
    user = np.repeat(np.arange(len(store.user_ids)), store.length)[rows]
    item = store.item[rows]
    users, items = np.unique(user), np.concatenate([[0], np.unique(item)])
    number = np.zeros(store.num_items + 1, np.int32)
    number[items] = np.arange(len(items))
    length = np.bincount(user, minlength=len(store.user_ids))[users]
    return SequenceStore(
        number[item],
        np.concatenate([[0], np.cumsum(length)]),
        None if store.time is None else store.time[rows],
        [store.item_ids[i] for i in items],
        [store.user_ids[u] for u in users],
        None if store.titles is None else [store.titles[i] for i in items],
    )
