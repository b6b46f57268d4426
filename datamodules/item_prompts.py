"""The prompts of SRA-CL (arXiv 2503.04162) for a language model to describe items and the taste behind a prefix."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from datamodules.item_texts import Attributes, item_ids, item_texts, prefix_ids, read_answers
from datamodules.sequence_store import Prefixes, SequenceStore
from datamodules.sources import atomic
from datamodules.streams import key, uniform

NO_HISTORY = "[None]"
SHOWN = 11  # items of a history in an item's prompt


class Prompt(NamedTuple):
    """One question to a language model; ``id`` names the item or prefix that the answer is about."""

    id: str
    system: str
    user: str


@dataclass(frozen=True)
class Style:
    """How prompts are worded; templates take an item's attributes in braces, and ``{domain}`` in the systems."""

    domain: str
    prefix_system: str
    entry: str  # an item of a prefix
    separator: str  # between them
    item_system: str
    item: str
    histories: int = 0  # that end in the item, at most


_PREFIX = (
    "You are an expert in recommending {domain}. You will see what one person has chosen, from the earliest choice to "
    "the latest, {form}. Describe in one paragraph of no more than 100 words what this person in particular prefers. "
    "Write the paragraph only."
)
_ITEM = (
    "You are an expert in recommending {domain}. You will see what is known of one of them{extra}. Answer with a JSON "
    'object of two fields: "summary", what it is and what sets it apart, in no more than {words} words, and "users", '
    "what kind of people would choose it and why, in no more than 50 words. Write the JSON object only."
)
_HISTORIES = ", and histories of people who came to choose it, each from the earliest choice to the latest"

STYLES = {
    "amazon": Style(
        "products",
        _PREFIX.replace("{form}", "as titles with semicolons between them"),
        "{title}",
        "; ",
        _ITEM.replace("{extra}", _HISTORIES).replace("{words}", "80"),
        "Title: {title}\nBrand: {brand}\nCategories: {categories}\nSales rank: {sales_rank}\nPrice: {price}\n"
        "Description: {description:.500}",
        histories=5,
    ),
    "yelp": Style(
        "local businesses",
        _PREFIX.replace("{form}", "one to a line"),
        "{name}, categories: {categories}, city: {city}, stars: {stars}",
        "\n",
        _ITEM.replace("{extra}", "").replace("{words}", "70"),
        "Name: {name}\nCategories: {categories}\nCity: {city}\nState: {state}\nStars: {stars}",
    ),
    "generic": Style(
        "items",
        _PREFIX.replace("{form}", "with semicolons between them"),
        "{title}",
        "; ",
        _ITEM.replace("{extra}", _HISTORIES).replace("{words}", "80"),
        "{title}",
        histories=5,
    ),
}
StyleName = Literal["amazon", "yelp", "generic"]


def prefix_prompts(
    store: SequenceStore, pool: Prefixes, style: Style, attributes: Attributes | None = None, domain: str | None = None
) -> Iterator[Prompt]:
    """A prompt for each prefix of the pool: its items in order. Raises as ``item_texts``."""
    system = style.prefix_system.replace("{domain}", domain or style.domain)
    entries = ["", *item_texts(store, attributes, style.entry)]
    bounds = (x.tolist() for x in pool.bounds())
    for id, start, end in zip(prefix_ids(store, pool), *bounds, strict=True):
        yield Prompt(id, system, style.separator.join(entries[i] for i in store.item[start:end].tolist()))


def item_prompts(
    store: SequenceStore,
    pool: Prefixes,
    style: Style,
    attributes: Attributes | None = None,
    domain: str | None = None,
    seed: int = 0,
) -> Iterator[Prompt]:
    """A prompt for each item: its attributes and, as the style has it, histories that end in it.

    The histories are prefixes of the pool of at least 2 items, drawn by ``seed``, so nothing is shown that the pool
    does not hold. Raises as ``item_texts``.
    """
    system = style.item_system.replace("{domain}", domain or style.domain)
    entries = ["", *item_texts(store, attributes, style.entry)]
    texts = item_texts(store, attributes, style.item)
    drawn = drawn_histories(store, pool, style.histories, seed)
    for number, (id, text) in enumerate(zip(item_ids(store), texts, strict=True), 1):
        if style.histories:
            shown = ["->".join(entries[i] for i in history[-SHOWN:].tolist()) for history in drawn.get(number, ())]
            text += "\nHistories:\n" + "\n".join(shown or [NO_HISTORY])
        yield Prompt(id, system, text)


def drawn_histories(store: SequenceStore, pool: Prefixes, count: int, seed: int) -> dict[int, list[np.ndarray]]:
    """At most ``count`` prefixes of the pool for each item that they end in, a draw without replacement by ``seed``."""
    rows = np.arange(len(pool))
    start, end = pool.bounds()
    rows = rows[end - start > 1]
    last = store.item[end[rows] - 1]
    order = np.lexsort((uniform(key(seed, rows), 1)[:, 0], last))
    rows, last = rows[order], last[order]
    place = np.arange(len(rows)) - np.searchsorted(last, last)
    found: dict[int, list[np.ndarray]] = {}
    for row, item in zip(rows[place < count].tolist(), last[place < count].tolist(), strict=True):
        found.setdefault(item, []).append(store.item[start[row] : end[row]])
    return found


def write_prompts(prompts: Iterable[Prompt], file: str | Path, answers: str | Path | None = None) -> tuple[int, int]:
    """Write prompts as JSON lines ``{"id", "system", "user"}``, less those that ``answers`` holds a usable answer to.

    Returns how many were written and how many there are in all.
    """
    every = list(prompts)
    done = {} if answers is None else read_answers(answers, (prompt.id for prompt in every)).text
    left = [prompt for prompt in every if prompt.id not in done]
    with atomic(Path(file)) as temporary, temporary.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(prompt._asdict(), ensure_ascii=False) + "\n" for prompt in left)
    return len(left), len(every)


def read_prompts(file: str | Path) -> list[Prompt]:
    """Prompts that ``write_prompts`` has written. Raises ``ValueError`` that names file and line, for any other."""
    found = []
    with Path(file).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                found.append(Prompt(str(row["id"]), str(row["system"]), str(row["user"])))
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(f'{file}, line {number} is no prompt {{"id", "system", "user"}}: {error}') from error
    return found
