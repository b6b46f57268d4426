"""The answers that most samples of a model give, as a file: the pass before training against wrong majorities."""

import argparse
import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.sources import atomic
from zoo.console import run_command
from zoo.llm_rl.rewards.answers import ANYWHERE, Place, canonical, extract

_FIELDS = ("id", "completion", "answer")


class Vote(NamedTuple):
    """What ``votes`` of ``samples`` completions of a prompt say, and whether it is the reference answer."""

    id: str
    answer: str
    votes: int
    samples: int
    correct: bool


def majority_votes(attempts: Iterable[tuple[str, str, str]], places: Sequence[Place] = ANYWHERE) -> list[Vote]:
    """The most common answer to each prompt; of equally common ones, the one that came first.

    Completions without an answer do not vote; prompts with no other are left out.

    Args:
        attempts: prompt id, completion and reference answer of each sample.
        places: where the answer may stand, see ``NumericAnswer``.

    Raises:
        ValueError: for a prompt with two references.
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    tried: Counter[str] = Counter()
    references: dict[str, str] = {}
    for id, completion, reference in attempts:
        if references.setdefault(id, canonical(reference)) != canonical(reference):
            raise ValueError(f"prompt {id!r} has two reference answers, {references[id]!r} and {reference!r}")
        tried[id] += 1
        if (found := extract(completion, places)) is not None:
            counts[id][canonical(found)] += 1
    best = {id: count.most_common(1)[0] for id, count in counts.items()}
    return [Vote(id, answer, n, tried[id], answer == references[id]) for id, (answer, n) in best.items()]


def write_votes(file: str | Path, votes: Iterable[Vote]) -> None:
    """One JSON object a line."""
    with atomic(Path(file)) as temporary, temporary.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(vote._asdict(), ensure_ascii=False) + "\n" for vote in votes)


def read_votes(file: str | Path) -> list[Vote]:
    """What ``write_votes`` wrote. Raises ``ValueError`` that names the line for anything else."""
    found = []
    for where, row in json_rows(Path(file)):
        try:
            vote = Vote(**row)
        except TypeError:
            raise ValueError(f"{where}: expected the fields {', '.join(Vote._fields)}, got {', '.join(row)}") from None
        if not isinstance(vote.id, str) or not isinstance(vote.answer, str) or not isinstance(vote.correct, bool):
            raise ValueError(f"{where}: id and answer must be texts, correct true or false")
        found.append(vote)
    return found


def json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place, for messages, and object of each line of a file of JSON lines that is not empty."""
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: no JSON ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: expected a JSON object, got {line[:40]!r}")
            yield f"{path}, line {number}", row


def read_attempts(path: Path) -> Iterator[tuple[str, str, str]]:
    """Id, completion and answer of stored samples: ``predictions.csv``, or JSON lines with these fields."""
    for where, row in _csv_rows(path) if path.suffix == ".csv" else json_rows(path):
        if lacking := [name for name in _FIELDS if row.get(name) is None]:
            raise ValueError(f"{where}: there is no {lacking[0]}; needed are {', '.join(_FIELDS)}")
        id, completion, answer = (str(row[name]) for name in _FIELDS)
        yield id, completion, answer


def _csv_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines), 1):
            yield f"{path}, row {number}", row


def run(args: Sequence[str]) -> None:
    """``python -m zoo votes``; ``args`` are the command line's words after it. Exits with 2 after an error."""
    parser = argparse.ArgumentParser(
        prog="python -m zoo votes",
        description="Count what most samples of a model answer to each prompt: the file that the reward "
        "MajorityIncorrect reads. Make samples by `predict` with several samples a prompt.",
    )
    parser.add_argument("samples", nargs="+", help="predictions.csv, or JSON lines with id, completion and answer")
    parser.add_argument("--places", nargs="+", choices=ANYWHERE, default=ANYWHERE, help="where answers may stand")
    parser.add_argument("--out", required=True, metavar="JSONL", help="one prompt with its majority answer a line")
    parser.set_defaults(command=_count)
    run_command(parser, args)


def _count(given: argparse.Namespace) -> None:
    votes = majority_votes((row for file in given.samples for row in read_attempts(Path(file))), given.places)
    if not votes:
        raise ValueError(f"{', '.join(given.samples)}: no completion has an answer; check --places")
    write_votes(given.out, votes)
    print(
        f"{len(votes):,} prompts, of which {sum(not vote.correct for vote in votes):,} have a wrong majority, in "
        f"{given.out}"
    )
