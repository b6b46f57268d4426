"""What items and prefixes say in words: texts from titles and attributes, prompts for a language model, its answers."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from datamodules.sequence_store import PAD, Prefixes, SequenceStore
from datamodules.sources import atomic

MISSING = "missing"
Attributes = Mapping[str, Mapping[str, str]]


def read_attributes(file: str | Path) -> dict[str, dict[str, str]]:
    """The attributes of items by item id, from ``.csv``, ``.tsv``, a RecBole ``.item`` file or JSON lines.

    The first column or field is the id; of RecBole's column names, ``name:type``, the type is left out.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming file and line, for a line that cannot be read and an id that comes twice.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of item attributes {path}")
    found: dict[str, dict[str, str]] = {}
    with path.open(encoding="utf-8-sig", newline="") as lines:
        for number, row in _json_rows(path, lines) if path.suffix == ".jsonl" else _table_rows(path, lines):
            item, *_ = row.values()
            if item in found:
                raise ValueError(f"{path}, line {number}: item {item!r} comes a second time")
            found[item] = row
    return found


def _table_rows(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, str]]]:
    if path.suffix == ".item":  # RecBole splits at tabs whatever quotes there are
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(lines, delimiter="," if path.suffix == ".csv" else "\t")
    names = [name.split(":")[0].strip() for name in next(reader, [])]
    for row in filter(None, reader):  # without empty lines
        if len(row) != len(names):
            raise ValueError(f"{path}, line {reader.line_num}: {len(row)} fields, but the header has {len(names)}")
        yield reader.line_num, dict(zip(names, row, strict=True))


def _json_rows(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, str]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is no JSON: {error}") from error
        if not isinstance(row, dict) or not row:
            raise ValueError(f"{path}, line {number} is no object with fields")
        yield number, {name: "" if value is None else str(value) for name, value in row.items()}


def item_texts(store: SequenceStore, attributes: Attributes | None = None, template: str = "{title}") -> list[str]:
    """The texts of items 1 to V: their attributes in a template; what an item lacks reads "missing".

    Args:
        store: its titles are the attribute ``title`` where ``attributes`` have none.
        attributes: by item id.
        template: with attributes in braces, such as ``{title} by {brand}``; ``{description:.500}`` cuts.

    Raises:
        ValueError: for an attribute that no item has, and if all texts are the same.
    """
    rows = list(_described(store, attributes))
    known = {name for row in rows for name in row}
    asked = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    if unknown := sorted(asked - known):
        have = ", ".join(sorted(known)) or "no titles and no attributes"
        raise ValueError(f"template {template!r} asks for {', '.join(unknown)}, but items have {have}")
    texts = [_filled(template, row) for row in rows]
    if len(texts) > 1 and len(set(texts)) == 1:
        raise ValueError(f"template {template!r} gives all {len(texts)} items the text {texts[0]!r}")
    return texts


def _described(store: SequenceStore, attributes: Attributes | None) -> Iterator[dict[str, str]]:
    for number, item in enumerate(store.item_ids):
        if item != PAD or number:
            row = {} if store.titles is None else {"title": store.titles[number]}
            yield {**row, **(attributes or {}).get(item, {})}


class _Known(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return MISSING


def _filled(template: str, row: Mapping[str, str]) -> str:
    return template.format_map(_Known({name: value.strip() or MISSING for name, value in row.items()}))


def item_ids(store: SequenceStore) -> list[str]:
    """The names of items 1 to V in prompts, answers and tables: their original ids."""
    return list(store.item_ids[1:])


def prefix_ids(store: SequenceStore, pool: Prefixes) -> list[str]:
    """The names of a pool's prefixes: ``user/n`` is the first n items of a user, whatever the pool and the cut."""
    return [
        f"{user}/{length}"
        for user, count in zip(store.user_ids, pool.count.tolist(), strict=True)
        for length in range(1, count + 1)
    ]


@dataclass(frozen=True)
class Answers:
    """What was read back: ``text`` by id, and ``problems``: kind -> what has it (ids, or numbers of lines)."""

    text: dict[str, str]
    problems: dict[str, list[str]]

    @property
    def unanswered(self) -> list[str]:
        """Ids without a usable answer."""
        return [id for kind in ("missing", "empty", "null") for id in self.problems.get(kind, [])]

    def report(self) -> str:
        """The counts, with the first five of each kind."""
        kinds = [
            f"{len(found)} {kind} ({', '.join(found[:5])}{', ...' if len(found) > 5 else ''})"
            for kind, found in self.problems.items()
        ]
        return "; ".join([f"{len(self.text)} answered", *kinds])


def read_answers(file: str | Path, ids: Iterable[str]) -> Answers:
    """Answers from JSON lines ``{"id": ..., "text": ...}``, checked against the ids that were asked.

    The first usable answer to an id stands, so that a file to which later answers were appended reads as one. Problems
    are ``missing``, ``empty`` and ``null`` (an id has no other answer), ``repeated`` (more than one usable answer),
    ``unknown`` ids, and ``unreadable`` lines, such as a last one that was cut off. A file that is not there holds
    no answers.
    """
    asked = dict.fromkeys(ids)
    text: dict[str, str] = {}
    bad: dict[str, str] = {}
    problems: dict[str, list[str]] = {k: [] for k in ("missing", "empty", "null", "repeated", "unknown", "unreadable")}
    for number, row in enumerate(_lines(file), 1):
        if not isinstance(row, dict) or "id" not in row or not isinstance(row.get("text"), str | None):
            problems["unreadable"].append(f"line {number}")
            continue
        id, answer = str(row["id"]), row.get("text")
        if id not in asked:
            problems["unknown"].append(id)
        elif answer is None or answer.strip().lower() == "null":
            bad.setdefault(id, "null")
        elif not answer.strip():
            bad.setdefault(id, "empty")
        elif id in text:
            problems["repeated"].append(id)
        else:
            text[id] = answer
    for id in asked:
        if id not in text:
            problems[bad.get(id, "missing")].append(id)
    for kind in ("repeated", "unknown"):
        problems[kind] = list(Counter(problems[kind]))
    return Answers(text, {kind: found for kind, found in problems.items() if found})


def _lines(file: str | Path) -> Iterator[Any]:
    if not Path(file).is_file():
        return
    with Path(file).open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                yield None


def all_answers(file: str | Path, ids: Sequence[str]) -> list[str]:
    """The answers to all ids, in their order.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: with the report, if an id has none.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"there is no file of answers {file}")
    answers = read_answers(file, ids)
    if answers.unanswered:
        raise ValueError(
            f"{file} leaves {len(answers.unanswered)} of {len(ids)} prompts without an answer: {answers.report()}; "
            "`python -m zoo semantics prompts --answers ...` writes those prompts again"
        )
    return [answers.text[id] for id in ids]


def write_failures(answers: Answers, file: Path) -> None:
    """One JSON line ``{"id": ..., "problem": ...}`` for each id without a usable answer."""
    with atomic(file) as temporary, temporary.open("w", encoding="utf-8") as out:
        for kind in ("missing", "empty", "null"):
            out.writelines(json.dumps({"id": id, "problem": kind}) + "\n" for id in answers.problems.get(kind, []))
