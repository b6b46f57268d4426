"""Lines of a text file by number, read where they stand, so that millions of them need not be in memory."""

import gzip
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich import get_console
from rich.progress import wrap_file

from datamodules.sources import atomic, cache_dir

Describe = Callable[[str, str], tuple[str, *tuple[int, ...]]]
"""From a line and its place, for messages: the id of what stands on it, and some numbers about it."""

_FORM = 1  # of the cached arrays; to be raised whenever they change
_AT_ONCE = 65536


class IndexedLines:
    """The lines of a file that are not empty: ``len`` of them, each read from disk when asked for.

    Attributes:
        span: [N, 2] int64, the bytes of a line.
        id: [N] UTF-8 bytes of one length, the ids.
        order: [N] int64, the lines sorted by id.
        number: [N, n] int64, what else was noted of a line.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.folder = path, folder
        self.span, self.id, self.order, self.number = (
            np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray)
            for name in ("span", "id", "order", "number")
        )
        self._file = path.open("rb")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.folder)  # a worker maps the same files instead of getting copies

    def __len__(self) -> int:
        return len(self.span)

    def __getitem__(self, row: int) -> str:
        start, end = self.span[row].tolist()
        return os.pread(self._file.fileno(), end - start, start).decode().removeprefix("\ufeff")

    def where(self, row: int) -> str:
        """The place of a line, for messages."""
        return f"{self.path}, entry {row + 1}"

    def repeated(self) -> list[str]:
        """The ids that come more than once, as often as they come again."""
        ordered = self.id[self.order]
        return [id.decode() for id in ordered[1:][ordered[1:] == ordered[:-1]]]


def index_lines(path: Path, kind: str, describe: Describe) -> IndexedLines:
    """Reads a file once to note where its lines are; the notes stay in the cache until the file changes.

    ``describe`` checks a line: it raises ``ValueError``. ``kind`` names it, so that two do not share their notes.
    """
    path = unpacked(path)
    folder = cache_dir() / "lines" / _digest(path, kind)
    arrays = [folder / f"{name}.npy" for name in ("span", "number", "id", "order")]
    if not all(array.is_file() for array in arrays):
        found = _scanned(path, describe)
        for array, values in zip(arrays, (*found, np.argsort(found[-1], kind="stable")), strict=True):
            with atomic(array) as temporary, temporary.open("wb") as file:
                np.save(file, values)
    return IndexedLines(path, folder)


def unpacked(path: Path) -> Path:
    """The file itself, or what a gzip file holds, unpacked once into the cache."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if path.suffix != ".gz":
        return path
    target = cache_dir() / "unpacked" / _digest(path, "") / path.stem
    if not target.is_file():
        with atomic(target) as temporary, gzip.open(path) as packed, temporary.open("wb") as sink:
            try:
                shutil.copyfileobj(packed, sink, 1 << 20)
            except (OSError, EOFError, zlib.error) as error:
                raise ValueError(f"{path} is not a whole gzip file: {error}") from error
    return target


def json_object(line: str, where: str) -> dict[str, Any]:
    """The object on a line of JSON lines."""
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: no JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{where}: expected a JSON object, got {line[:40]!r}")
    return found


def _digest(path: Path, kind: str) -> str:
    state = path.stat()
    told = f"{_FORM} {kind} {path.resolve()} {state.st_size} {state.st_mtime_ns}"
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _scanned(path: Path, describe: Describe) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Span, number and id of every line that is not empty."""
    rows: list[tuple[tuple[int, int], tuple[int, ...], bytes]] = []
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def put_away() -> None:
        spans, numbers, ids = zip(*rows, strict=True)
        parts.append((np.array(spans, np.int64), np.array(numbers, np.int64), np.array(ids, "S")))
        rows.clear()

    end, quiet = 0, not get_console().is_terminal
    with wrap_file(path.open("rb"), path.stat().st_size, description=path.name, transient=True, disable=quiet) as file:
        for count, raw in enumerate(cast(Iterable[bytes], file), 1):
            start, end, where = end, end + len(raw), f"{path}, line {count}"
            try:
                line = raw.decode().removeprefix("\ufeff")
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: not UTF-8 text ({error})") from error
            if not line.strip():
                continue
            id, *number = describe(line.rstrip("\r\n"), where)
            rows.append(((start, end), tuple(number), id.encode()))
            if len(rows) == _AT_ONCE:
                put_away()
    if rows:
        put_away()
    if not parts:
        raise ValueError(f"{path} holds no lines")
    spans, numbers, ids = zip(*parts, strict=True)
    return np.concatenate(spans), np.concatenate(numbers), np.concatenate(ids)
