"""Prompts with completions: keyed batches, plain text, and what is wrong with them."""

from pathlib import Path

import pytest
import torch

from datamodules.batches import Prompt
from datamodules.completions import Completions, PlainText
from datamodules.prompt_sets import PromptSet


class Given(PromptSet):
    name = "given"  # type: ignore[assignment]

    def __init__(self, **splits: list[Prompt]) -> None:
        self.splits = splits

    def load(self) -> dict[str, list[Prompt]]:
        return self.splits


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"p{at}", f"q{at}", completion=f"a{at}") for at in range(count)]


def test_batches_are_those_of_prompts_and_go_on_where_they_stopped() -> None:
    data = Completions(
        Given(train=prompts(12), test=[prompt._replace(id=f"t{prompt.id}") for prompt in prompts(5)]),
        batch_size=2,
        eval_batch_size=2,
    )
    seen = list(data.train_dataloader())
    for batch in seen:
        assert [prompt.completion for prompt in batch.prompt] == [f"a{row}" for row in batch.row.tolist()]
    part = data.train_dataloader()
    steps = iter(part)
    for _ in range(3):
        next(steps)
    resumed = data.train_dataloader()
    resumed.load_state_dict(part.state_dict())
    assert [batch.row.tolist() for batch in resumed] == [batch.row.tolist() for batch in seen[3:]]
    assert torch.cat([batch.row for batch in data.test_dataloader()]).tolist() == [0, 1, 2, 3, 4]
    assert data.val_dataloader() == []


def test_texts_for_a_tokenizer() -> None:
    data = Completions(Given(train=prompts(10)))
    assert list(data.train_texts()) == [f"q{at}a{at}" for at in range(10)]
    assert list(data.train_texts(4)) == ["q0a0", "q3a3", "q6a6", "q9a9"]
    assert len(list(data.train_texts(100))) == 10


def test_lines_of_files_are_texts_without_prompt(tmp_path: Path) -> None:
    first, second, third = tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "c.txt"
    first.write_text("one\n\n  two \n")
    second.write_text("three")
    third.write_text("four\r\n")
    found = PlainText(train=[str(first), str(second)], val=[str(third)]).load()
    assert [(prompt.text, prompt.completion) for prompt in found["train"]] == [
        ("", "one"),
        ("", "  two "),
        ("", "three"),
    ]
    assert [prompt.id for prompt in found["train"]] == [f"{first}:1", f"{first}:3", f"{second}:1"]
    assert found.keys() == {"train", "val"}
    assert found["val"] == [Prompt(f"{third}:1", "", completion="four")]
    with pytest.raises(FileNotFoundError, match=r"d\.txt does not exist"):
        PlainText(train=[str(tmp_path / "d.txt")]).load()
    third.write_text("\n \n")
    with pytest.raises(ValueError, match="PlainText: the split val has no prompts"):
        Completions(PlainText(train=[str(first)], val=[str(third)])).setup("fit")


def test_wrong_input_is_named() -> None:
    lacking = [*prompts(2), Prompt("x7", "q"), Prompt("x8", "q")]
    with pytest.raises(
        ValueError, match="given, split val: 2 of 4 prompts have no completion to learn, the first is 'x7'"
    ):
        Completions(Given(train=[Prompt("t", "q", completion="a")], val=lacking)).setup("fit")
    with pytest.raises(ValueError, match="given: the split train has no prompts"):
        Completions(Given(train=[])).setup("fit")
    with pytest.raises(ValueError, match="batch_size=0: must be at least 1"):
        Completions(Given(), batch_size=0)
    with pytest.raises(ValueError, match=r"train='a\.txt': must be a list"):
        PlainText(train="a.txt")
