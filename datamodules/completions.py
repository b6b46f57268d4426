"""Texts to imitate: prompts with their completions, and plain text, which has no prompt."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from datamodules.batches import Prompt
from datamodules.interactions import text_lines
from datamodules.prompt_sets import PromptSet
from datamodules.prompts import Prompts


class PlainText(PromptSet):
    """Lines of UTF-8 files, each a text to learn, with an empty prompt; empty lines are left out.

    Args:
        train: files to train on.
        val: files to validate with; none for no validation.
        test: files to test with; with none, a fit needs ``test_after_fit: false``.
    """

    def __init__(self, train: Sequence[str], val: Sequence[str] = (), test: Sequence[str] = ()) -> None:
        if isinstance(train, str) or not train:
            raise ValueError(f"train={train!r}: must be a list of at least one file")
        self.files = {"train": train, "val": val, "test": test}

    def load(self) -> dict[str, list[Prompt]]:
        return {
            split: [prompt for file in files for prompt in _lines(file)] for split, files in self.files.items() if files
        }


def _lines(file: str) -> Iterator[Prompt]:
    for number, text in text_lines(Path(file).expanduser()):
        yield Prompt(f"{file}:{number}", "", completion=text)


class Completions(Prompts):
    """Prompts with completions to learn, in batches of ``PromptBatch``; arguments as for ``Prompts``."""

    @cached_property
    def splits(self) -> dict[str, list[Prompt]]:
        """All prompts by split.

        Raises:
            ValueError: if one has no completion.
        """
        found = super().splits
        for split, prompts in found.items():
            if lacking := [prompt.id for prompt in prompts if prompt.completion is None]:
                raise ValueError(
                    f"{self.dataset.name}, split {split}: {len(lacking)} of {len(prompts)} prompts have no completion "
                    f"to learn, the first is {lacking[0]!r}: leave them out, or write completions"
                )
        return found
