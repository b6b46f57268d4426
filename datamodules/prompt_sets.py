"""Sets of prompts: where tasks for a language model come from."""

import json
import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.batches import Prompt
from datamodules.expressions import last_boxed
from datamodules.interactions import text_lines
from datamodules.sources import download
from datamodules.streams import key, uniform
from datamodules.text_lines import json_object

_GSM8K = "https://raw.githubusercontent.com/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/"
_GSM8K_SHA256 = {
    "train": "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
    "test": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
}
_SVAMP = "https://raw.githubusercontent.com/arkilpatel/SVAMP/689d7ccac74b9983a2ac7cc3b264f441b99e7c53/SVAMP.json"
_SVAMP_SHA256 = "5be77703a6d891ae476d7c082787ad361392aa02453b132516cdd5f4e7934e3e"


class PromptSet(ABC):
    """Prompts by split, ``train``, ``val`` and ``test``; splits that a set does not have are absent."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self).__name__

    @abstractmethod
    def load(self) -> dict[str, list[Prompt]]:
        """All prompts, in a fixed order.

        Raises:
            FileNotFoundError, ValueError: for files that are not there, or whose lines are wrong; names both.
        """


class PromptLines(PromptSet):
    """Own prompts, a JSON object a line: ``prompt``, and if need be ``answer``, ``completion`` and ``id``.

    All other fields are kept for rewards, as ``info``. Without ``id`` a prompt is called after its file and line.

    Args:
        train: file of the prompts to train on.
        val: file of those to validate with.
        test: file of those to test with.
    """

    def __init__(self, train: str | None = None, val: str | None = None, test: str | None = None) -> None:
        files = {"train": train, "val": val, "test": test}
        self.files = {split: Path(file).expanduser() for split, file in files.items() if file is not None}
        if not self.files:
            raise ValueError(f"{type(self).__name__}: give a file for at least one of train, val, test")

    @property
    def name(self) -> str:
        return ", ".join(path.name for path in self.files.values())

    def load(self) -> dict[str, list[Prompt]]:
        """As in ``PromptSet``."""
        return {split: self._read(path) for split, path in self.files.items()}

    def _read(self, path: Path) -> list[Prompt]:
        found = []
        for number, line in text_lines(path):
            where = f"{path}, line {number}"
            row = json_object(line, where)
            id = _text(row, "id", where, f"{path.stem}-{number}")
            found.append(self._prompt(str(id), row, where))
        if not found:
            raise ValueError(f"{path} holds no prompts")
        return found

    def _prompt(self, id: str, row: dict[str, Any], where: str) -> Prompt:
        text, answer, completion = _needed(row, "prompt", where), _text(row, "answer", where), row.get("completion")
        if completion is not None and not isinstance(completion, str):
            raise ValueError(f"{where}: completion is {completion!r}, expected a text")
        return Prompt(id, text, answer, completion, _others(row, "id", "prompt", "answer", "completion"))


class MathLines(PromptLines):
    r"""Problems in the form of MATH (arXiv 2103.03874), a JSON object a line: ``problem`` and ``solution``.

    The answer is the field ``answer`` where there is one, else what the solution's last ``\boxed{}`` holds; it may
    be no number. The id is ``unique_id`` where there is one; all other fields are kept as ``info``.

    Args:
        train: file of the problems to train on.
        val: file of those to validate with.
        test: file of those to test with, such as MATH-500's.
    """

    def _prompt(self, id: str, row: dict[str, Any], where: str) -> Prompt:
        solution, answer = row.get("solution"), _text(row, "answer", where)
        if solution is not None and not isinstance(solution, str):
            raise ValueError(f"{where}: solution is {solution!r}, expected a text")
        if answer is None:
            answer = None if solution is None else last_boxed(solution)
        if not answer:
            raise ValueError(rf"{where}: there is neither an answer nor a solution with a whole \boxed{{}}")
        info = _others(row, "id", "unique_id", "problem", "solution", "answer")
        id = str(_text(row, "unique_id", where, id))
        return Prompt(id, _needed(row, "problem", where), answer, solution, info)


class Gsm8k(PromptSet):
    """GSM8K (arXiv 2110.14168, MIT): 7,473 and 1,319 problems of grade-school mathematics with worked solutions.

    Args:
        root: folder of ``train.jsonl`` and ``test.jsonl``; null to download them once.
        val: so many of the training problems, drawn by ``seed``, are to validate with.
        seed: of that draw.
        notes: keep the calculator's notes in the solutions, such as ``<<48/2=24>>``.
    """

    name = "GSM8K"

    def __init__(self, root: str | None = None, val: int = 0, seed: int = 0, notes: bool = False) -> None:
        self.root, self.val, self.seed, self.notes = root, val, seed, notes

    def load(self) -> dict[str, list[Prompt]]:
        """As in ``PromptSet``; ``answer`` is the number behind ``####``, without commas."""
        found = {}
        for split, digest in _GSM8K_SHA256.items():
            url = f"{_GSM8K}grade_school_math/data/{split}.jsonl"
            path = _local(self.root, f"{split}.jsonl", url, digest, "Gsm8k")
            found[split] = [self._prompt(path, split, number, line) for number, line in text_lines(path)]
        return cut_validation(found, self.val, self.seed)

    def _prompt(self, path: Path, split: str, number: int, line: str) -> Prompt:
        where = f"{path}, line {number}"
        row = json_object(line, where)
        question, solution = _needed(row, "question", where), _needed(row, "answer", where)
        _, mark, answer = solution.rpartition("####")
        answer = answer.strip().replace(",", "")
        if not mark or not _is_number(answer):
            raise ValueError(f"{where}: the answer ends in {solution[-30:]!r}, expected #### and a number")
        completion = solution if self.notes else re.sub(r"<<.*?>>", "", solution)
        return Prompt(f"gsm8k-{split}-{number}", question, answer, completion)


class Svamp(PromptSet):
    """SVAMP (arXiv 2103.07191, MIT): 1,000 one-step problems; the first 700 by number train, as in later work.

    Args:
        root: folder of ``SVAMP.json``; null to download it once.
        train: number of problems to train on, ``val`` included; the others are the test.
        val: so many of these, drawn by ``seed``, are to validate with.
        seed: of that draw.
    """

    name = "SVAMP"

    def __init__(self, root: str | None = None, train: int = 700, val: int = 0, seed: int = 0) -> None:
        self.root, self.train, self.val, self.seed = root, train, val, seed

    def load(self) -> dict[str, list[Prompt]]:
        """As in ``PromptSet``."""
        path = _local(self.root, "SVAMP.json", _SVAMP, _SVAMP_SHA256, "Svamp")
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: no JSON ({error})") from error
        if not isinstance(rows, list) or not 0 < self.train < len(rows):
            kind = f"{len(rows)} problems" if isinstance(rows, list) else type(rows).__name__
            raise ValueError(f"Svamp.train={self.train}: {path} has {kind}, of which some must be left to test with")
        prompts = [_svamp_prompt(row, f"{path}, problem {at}") for at, row in enumerate(rows, 1)]
        prompts.sort(key=lambda prompt: int(prompt.id.removeprefix("chal-")))
        return cut_validation({"train": prompts[: self.train], "test": prompts[self.train :]}, self.val, self.seed)


def _svamp_prompt(row: Any, where: str) -> Prompt:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object, got {str(row)[:40]!r}")
    id = _needed(row, "ID", where)
    if not re.fullmatch(r"chal-\d+", id):
        raise ValueError(f"{where}: ID is {id!r}, expected chal- and a number")
    answer = row.get("Answer")
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        raise ValueError(f"{where}: Answer is {answer!r}, expected a number")
    body = _needed(row, "Body", where).strip()
    text = f"{body}{'' if body[-1] in '.?!,' else '.'} {_needed(row, 'Question', where).strip()}"
    return Prompt(id, text, f"{answer:.15g}", info={"equation": row.get("Equation"), "type": row.get("Type")})


def cut_validation(splits: dict[str, list[Prompt]], count: int, seed: int) -> dict[str, list[Prompt]]:
    """The splits, with ``count`` of the training prompts, drawn by ``seed``, as ``val``; all in their old order."""
    if count == 0:
        return splits
    train = splits["train"]
    if not 0 < count < len(train):
        raise ValueError(f"val={count}: must be from 0 to {len(train) - 1}, for {len(train)} training prompts")
    chosen = set(np.argsort(uniform(key(seed), len(train)), kind="stable")[:count].tolist())
    val = [prompt for at, prompt in enumerate(train) if at in chosen]
    return {**splits, "train": [prompt for at, prompt in enumerate(train) if at not in chosen], "val": val}


def _local(root: str | None, file: str, url: str, digest: str, name: str) -> Path:
    """The file in a folder, or its download."""
    if root is None:
        return download(url, digest)
    path = Path(root).expanduser() / file
    if not path.is_file():
        raise FileNotFoundError(
            f"{name}.root: {path} does not exist; it is to be had at {url}, and downloaded where root is left out"
        )
    return path


def _needed(row: dict[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        what = f"{name} is {value!r}" if name in row else f"there is no {name} (fields: {', '.join(row) or 'none'})"
        raise ValueError(f"{where}: {what}, expected a text")
    return value


def _text(row: dict[str, Any], name: str, where: str, default: str | None = None) -> str | None:
    """A field that may be a number or left out."""
    value = row.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{where}: {name} is {value!r}, expected a text or a number")
    return str(value)


def _others(row: dict[str, Any], *known: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in known}


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)", text) is not None
