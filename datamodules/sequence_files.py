"""Readers of interactions: RecBole atomic files, sequence lines, tables with named columns, and histories to continue.

Errors name the file and the line.
"""

import csv
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.interactions import Interactions, moment, text_lines
from datamodules.sequence_store import SequenceSet, SequenceStore


def atomic_columns(path: Path) -> list[str]:
    """The names of an atomic file's columns, whose header has a type with each."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    with path.open("rb") as file:
        header = file.readline().decode("utf-8-sig", "replace").rstrip("\r\n").split("\t")
    fields = [cell.strip().split(":") for cell in header]
    if any(len(field) != 2 or field[1] not in ("token", "token_seq", "float", "float_seq") for field in fields):
        raise ValueError(
            f"{path}, line 1: expected a header of field:type in tab-separated columns with types token, token_seq, "
            f"float, float_seq, found {header}"
        )
    return [field[0] for field in fields]


def atomic_rows(path: Path, columns: Sequence[str | None]) -> Iterator[tuple[str, list[str]]]:
    """("file, line n", cells) of an atomic file, for the wanted columns; a None among them is left out."""
    names = atomic_columns(path)
    given = [column for column in columns if column is not None]
    _check_columns(path, given, names)
    wanted = [names.index(column) for column in given]
    for number, line in text_lines(path):
        if number == 1:
            continue
        cells = line.split("\t")
        if len(cells) != len(names):
            raise ValueError(f"{path}, line {number}: {len(cells)} columns, the header has {len(names)}")
        yield f"{path}, line {number}", [cells[i].strip() for i in wanted]


def read_atomic(
    inter: Path,
    items: Path | None,
    user: str = "user_id",
    item: str = "item_id",
    time: str | None = "timestamp",
    title: str | None = None,
) -> SequenceStore:
    """Atomic files as a store; items are numbered as in the item file where there is one."""
    titles: dict[str, str] | None = None
    known: list[str] = []
    if items is not None:
        title = title or next((name for name in atomic_columns(items) if "title" in name or "name" in name), None)
        found: dict[str, str] = {}
        for where, (name, *text) in atomic_rows(items, [item, title]):
            if name in found:
                raise ValueError(f"{where}: item {name!r} has come before")
            found[name] = text[0] if text else ""
        known, titles = list(found), found if title else None
    collected = Interactions(known)
    for where, (person, thing, *when) in atomic_rows(inter, [user, item, time]):
        if not person or not thing:
            raise ValueError(f"{where}: empty {user if not person else item}")
        collected.add(person, thing, moment(when[0], where) if when else None)
    return collected.store(str(inter), titles)


class RecBoleFiles(SequenceSet):
    """A folder of RecBole's atomic files, ``<name>.inter`` and, for titles, ``<name>.item``.

    Args:
        root: the folder.
        stem: the files' common name; null for the folder's.
        user: column of ``.inter``.
        item: column of both files.
        time: column of ``.inter``; null where lines are in time order.
        title: column of ``.item``; null for the first whose name has "title" or "name" in it.
    """

    def __init__(
        self,
        root: str,
        stem: str | None = None,
        user: str = "user_id",
        item: str = "item_id",
        time: str | None = "timestamp",
        title: str | None = None,
    ) -> None:
        self.root, self.stem = Path(root), stem or Path(root).resolve().name
        self.columns = user, item, time, title

    @property
    def name(self) -> str:
        return self.stem

    def load(self) -> SequenceStore:
        """As in ``SequenceSet``."""
        items = self.root / f"{self.stem}.item"
        return read_atomic(self.root / f"{self.stem}.inter", items if items.is_file() else None, *self.columns)


class PairLines(SequenceSet):
    """A text file of lines ``user item`` or ``user item item ...``, in time order within a user.

    Ids have no spaces in them. Where they are the numbers 1 to V, each used, items keep theirs; 0 is taken, by padding.

    Args:
        file: the text file.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    @property
    def name(self) -> str:
        return self.file.stem

    def load(self) -> SequenceStore:
        """As in ``SequenceSet``."""
        # the file is read twice, as its words take many times the memory of what is kept
        names = {item for _, _, items in _history_lines(self.file) for item in items}
        numbered = [str(i) for i in range(1, len(names) + 1)]
        collected = Interactions(numbered if names == set(numbered) else ())
        for where, user, items in _history_lines(self.file):
            for item in items:
                if item == "0" or (item[0] == "-" and item[1:].isdigit()):
                    raise ValueError(f"{where}: item {item}: number items from 1, 0 is padding")
                collected.add(user, item)
        return collected.store(str(self.file))


def _history_lines(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    for number, line in text_lines(path):
        user, *items = line.split()
        if not items:
            raise ValueError(f"{path}, line {number}: user {user!r} without items; expected `user item item ...`")
        yield f"{path}, line {number}", user, items


class Table(SequenceSet):
    """A CSV, TSV or parquet file with one interaction a row and named columns.

    Parquet needs pyarrow.

    Args:
        file: ends in .csv, .tsv or .parquet.
        user: name of the column.
        item: name of the column.
        time: name of the column, of numbers or ISO dates; null where rows are in time order.
        title: name of the column of items' titles, of which the first is taken; null for none.
    """

    def __init__(self, file: str, user: str, item: str, time: str | None = None, title: str | None = None) -> None:
        self.file, self.user, self.item, self.time, self.title = Path(file), user, item, time, title
        if self.file.suffix not in (".csv", ".tsv", ".parquet"):
            raise ValueError(f"Table.file={file}: must end in .csv, .tsv or .parquet")

    @property
    def name(self) -> str:
        return self.file.stem

    def load(self) -> SequenceStore:
        """As in ``SequenceSet``."""
        columns = [name for name in (self.user, self.item, self.time, self.title) if name is not None]
        rows = _parquet_rows if self.file.suffix == ".parquet" else _delimited_rows
        collected, titles = Interactions(), {}
        for where, (user, item, *rest) in rows(self.file, columns):
            for column, value in ((self.user, user), (self.item, item)):
                if value is None or value == "":
                    raise ValueError(f"{where}: empty {column}")
            collected.add(str(user), str(item), None if self.time is None else moment(rest[0], where))
            if self.title is not None and str(item) not in titles:
                titles[str(item)] = str(rest[-1] or "")
        return collected.store(str(self.file), titles if self.title is not None else None)


def _delimited_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        header = next(reader, [])
        _check_columns(path, columns, header)
        wanted = [header.index(column) for column in columns]
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise ValueError(f"{path}, line {reader.line_num}: {len(row)} columns, the header has {len(header)}")
            yield f"{path}, line {reader.line_num}", [row[i] for i in wanted]


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError(f"reading {path} needs pyarrow: pip install pyarrow, or give a CSV file") from error
    with parquet.ParquetFile(path) as file:
        _check_columns(path, columns, file.schema_arrow.names)
        row = 0
        for batch in file.iter_batches(columns=list(dict.fromkeys(columns))):
            for cells in zip(*(batch.column(name).to_pylist() for name in columns), strict=True):
                row += 1
                yield f"{path}, row {row}", list(cells)


def _check_columns(path: Path, columns: Sequence[str], header: Sequence[str]) -> None:
    for column in columns:
        if column not in header:
            raise ValueError(f"{path}: no column {column!r}; there are {', '.join(header) or 'none'}")


def read_histories(path: Path, number: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Histories to continue: items [N] int32, offsets [users + 1] int64, and what the users are called.

    Lines are ``user item item ...``, or JSON ``{"user": ..., "items": [...]}``, one a user; ``number`` gives an item's
    by its id.
    """
    users: dict[str, None] = {}
    item, offset = array("i"), [0]
    for where, user, items in _json_histories(path) if path.suffix == ".jsonl" else _history_lines(path):
        for name in items:
            if name not in number:
                raise ValueError(f"{where}: unknown item {name!r}; histories are of the items trained on")
            item.append(number[name])
        if user in users:
            raise ValueError(f"{where}: user {user!r} comes again; put a user's items on one line, in time order")
        users[user] = None
        offset.append(len(item))
    if not users:
        raise ValueError(f"{path} holds no histories")
    return np.array(item, np.int32), np.array(offset, np.int64), list(users)


def _json_histories(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    for number, line in text_lines(path):
        where = f"{path}, line {number}"
        try:
            found = json.loads(line)
            user, items = str(found["user"]), list(map(str, found["items"]))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f'{where}: expected {{"user": ..., "items": [...]}} ({error!r})') from error
        if not items or isinstance(found["items"], str):
            raise ValueError(f"{where}: user {user!r} without a list of items")
        yield where, user, items
