"""Interactions of any order as a store of sequences, and reading of text files line by line with their place."""

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from rich import get_console
from rich.progress import wrap_file

from datamodules.sequence_store import PAD, SequenceStore


class Interactions:
    """Takes interactions in any order and makes a ``SequenceStore`` of them.

    Users and items are numbered in the order in which they come first; ``items`` numbers those that it holds before.
    """

    def __init__(self, items: Iterable[str] = ()) -> None:
        self._users: dict[str, int] = {}
        self._items = {name: number for number, name in enumerate(items)}
        self._user, self._item, self._time = array("q"), array("q"), array("d")

    def add(self, user: str, item: str, time: float | None = None) -> None:
        self._user.append(self._users.setdefault(user, len(self._users)))
        self._item.append(self._items.setdefault(item, len(self._items)))
        if time is not None:
            self._time.append(time)

    def store(self, origin: str, titles: Mapping[str, str] | None = None) -> SequenceStore:
        """Sorted by (user, time), where ties keep their order; of equal (user, item, time) only the first is kept.

        Items that never came are left out. An item without a title is called by its id.
        """
        if not self._user:
            raise ValueError(f"{origin} holds no interactions")
        user, item = np.array(self._user), np.array(self._item)
        time = np.array(self._time) if self._time else None
        if time is None:
            order = np.argsort(user, kind="stable")
        else:
            order = np.lexsort((time, user))
            repeated = _repeated(user, item, time)
            if repeated.any():
                rank_zero_info(f"{origin}: {int(repeated.sum()):,} repeats of a (user, item, time) are dropped.")
                order = order[~repeated[order]]
            if (time == np.floor(time)).all():
                time = time.astype(np.int64)
        seen = np.unique(item)
        number = np.zeros(len(self._items), np.int32)
        number[seen] = np.arange(1, len(seen) + 1)
        known = list(self._items)
        ids = [PAD, *(known[i] for i in seen)]
        if titles is not None and (untitled := sum(name not in titles for name in ids[1:])):
            rank_zero_warn(f"{origin}: {untitled:,} items have no title; their ids stand for it")
        return SequenceStore(
            number[item[order]],
            np.concatenate([[0], np.cumsum(np.bincount(user[order]))]),
            None if time is None else time[order],
            ids,
            list(self._users),
            None if titles is None else ["", *(titles.get(name) or name for name in ids[1:])],
        )


def _repeated(user: np.ndarray, item: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Which rows repeat an earlier one: bool [N]."""
    order = np.lexsort((time, item, user))
    same = np.ones(len(order) - 1, bool)
    for column in (user, item, time):
        same &= np.diff(column[order]) == 0
    repeated = np.zeros(len(order), bool)
    repeated[order[1:][same]] = True
    return repeated


def text_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of a text file, empty lines left out, with a progress bar."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    with path.open("rb") as raw:
        yield from decoded_lines(raw, path.stat().st_size, str(path), encoding)


def decoded_lines(raw: BinaryIO, size: int, name: str, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """As ``text_lines``, of an open file of ``size`` bytes."""
    quiet = not get_console().is_terminal
    with wrap_file(raw, size, description=Path(name).name, transient=True, disable=quiet) as reader:
        for number, line in enumerate(cast(Iterable[bytes], reader), 1):
            try:
                text = line.decode(encoding).rstrip("\r\n")
                if number == 1:
                    text = text.removeprefix("\ufeff")
            except UnicodeDecodeError as error:
                raise ValueError(f"{name}, line {number}: not {encoding} text ({error})") from error
            if text.strip():
                yield number, text


def moment(value: Any, where: str) -> float:
    """A time as a number: one already, or an ISO date as seconds since 1970 (UTC unless it says)."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        try:
            day = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))  # of a date too
        except (TypeError, ValueError):
            raise ValueError(f"{where}: time {value!r} is neither a number nor an ISO date") from None
        found = (day if day.tzinfo else day.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(found):
        raise ValueError(f"{where}: time {value!r} is not finite")
    return found
