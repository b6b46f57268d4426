"""Prompts: sets and their bad lines, batches by key, the part of a method that learns from its own samples."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.batches import Prompt, PromptBatch
from datamodules.prompt_sets import Gsm8k, MathLines, PromptLines, PromptSet, Svamp, cut_validation
from datamodules.prompts import Prompts
from datamodules.streams import key


class Numbered(PromptSet):
    def __init__(self, **counts: int) -> None:
        self.counts = counts

    def load(self) -> dict[str, list[Prompt]]:
        return {s: [Prompt(f"{s}{i}", f"{{{i}}}?", str(i)) for i in range(n)] for s, n in self.counts.items()}


def lines(path: Path, *rows: Any) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


def test_a_training_batch_is_a_function_of_seed_epoch_and_place() -> None:
    data = Prompts(Numbered(train=11), batch_size=4, template="Q: {text} A:", seed=3)
    loader = data.train_dataloader()
    batches = list(loader)
    assert len(batches) == 2
    rows = torch.cat([batch.row for batch in batches])
    assert len(set(rows.tolist())) == 8
    expected = key(3, 0, rows.numpy()).view(np.int64)
    torch.testing.assert_close(torch.cat([batch.key for batch in batches]), torch.from_numpy(expected))
    assert [p.text for p in batches[0].prompt] == [f"Q: {{{i}}}? A:" for i in batches[0].row.tolist()]
    loader.sampler.set_epoch(1)
    again = next(iter(loader))
    assert again.key.tolist() == key(3, 1, again.row.numpy()).view(np.int64).tolist()
    assert again.row.tolist() != batches[0].row.tolist()


def test_two_ranks_share_the_batches_of_one(two_ranks: Callable[[int, int], None]) -> None:
    def first(batch_size: int) -> list[tuple[int, int]]:
        batch = next(iter(Prompts(Numbered(train=12), batch_size=batch_size).train_dataloader()))
        return list(zip(batch.row.tolist(), batch.key.tolist(), strict=True))

    alone = first(4)
    parts = []
    for rank in range(2):
        two_ranks(rank, 2)
        parts += first(2)
    assert parts == alone


def test_evaluation_is_the_same_each_time_and_unlike_training() -> None:
    data = Prompts(Numbered(train=4, val=5, test=5), batch_size=4, eval_batch_size=3)
    loader: Any = data.val_dataloader()
    before = torch.cat([batch.key for batch in loader])
    loader.sampler.set_epoch(7)  # as Lightning does
    batches = list(loader)
    assert torch.equal(torch.cat([batch.key for batch in batches]), before)
    assert torch.cat([batch.row for batch in batches]).tolist() == [0, 1, 2, 3, 4]
    others = [batch.key for loader in (data.train_dataloader(), data.test_dataloader()) for batch in loader]
    assert not set(torch.cat(others).tolist()) & set(before.tolist())


def test_max_eval_draws_prompts_for_validation_and_test_alone() -> None:
    data = Prompts(Numbered(train=20, val=20, test=3), max_eval=5, seed=1)
    drawn = data.prompts("val")
    assert len({p.id for p in drawn}) == 5
    assert [p.id for p in drawn] != [f"val{i}" for i in range(5)]
    assert drawn == Prompts(Numbered(val=20), max_eval=5, seed=1).prompts("val")
    assert (len(data.prompts("test")), len(data.prompts("train")), len(data.prompts("predict"))) == (3, 20, 3)


def test_a_method_wraps_the_training_prompts_by_its_experience() -> None:
    data = Prompts(Numbered(train=4), batch_size=2)
    module = SimpleNamespace(experience=lambda loader: ("wrapped", len(loader)))
    data.trainer = SimpleNamespace(lightning_module=module)  # type: ignore[assignment]
    assert data.train_dataloader() == ("wrapped", 2)
    data.trainer = SimpleNamespace(lightning_module=object())  # type: ignore[assignment]
    assert len(data.train_dataloader()) == 2


def test_prompts_to_predict_come_from_a_split_or_a_file(tmp_path: Path) -> None:
    text, rows = tmp_path / "p.txt", tmp_path / "p.jsonl"
    text.write_text("first\n\n third \n")
    rows.write_text('{"prompt": "two\\nlines", "answer": 4}\n')

    def predicted(file: object) -> list[tuple[str, str, str | None]]:
        data = Prompts(Numbered(train=1, test=2), template="<{text}>", predict_prompts=file and str(file))
        return [(p.id, p.text, p.answer) for batch in data.predict_dataloader() for p in batch.prompt]

    assert predicted(text) == [("1", "<first>", None), ("3", "<third>", None)]
    assert predicted(rows) == [("p-1", "<two\nlines>", "4")]
    assert predicted("train") == [("train0", "<{0}?>", "0")]
    assert [id for id, *_ in predicted(None)] == ["test0", "test1"]
    text.write_text("\n")
    with pytest.raises(ValueError, match=r"p\.txt: the file holds no prompts"):
        predicted(text)


def test_setup_says_how_many_there_are_and_what_is_missing(caplog: pytest.LogCaptureFixture) -> None:
    data = Prompts(Numbered(train=1200, test=3))
    with caplog.at_level("INFO"):
        data.setup("fit")
        data.setup("test")
    assert [record.message for record in caplog.records] == ["Numbered: 1,200 train, 3 test prompts"]
    assert data.val_dataloader() == []
    with pytest.raises(ValueError, match="Numbered has no val prompts, only train, test"):
        data.setup("validate")


def test_texts_for_a_tokenizer_are_spread_over_the_training_prompts() -> None:
    assert list(Prompts(Numbered(train=10)).train_texts(4)) == ["{0}?0", "{3}?3", "{6}?6", "{9}?9"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"max_eval": 0}, "max_eval=0: must be at least 1"),
        ({"template": "Q: text"}, r"template='Q: text': must have \{text\}"),
    ],
)
def test_bad_arguments(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prompts(Numbered(train=2), **wrong)


def test_an_id_comes_once_in_all_splits(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"prompt": "x", "id": 7}, {"prompt": "y"})
    with pytest.raises(ValueError, match=r"split test: the id '7' comes a second time"):
        Prompts(PromptLines(train=file, test=file)).setup("fit")


def test_only_tensors_move() -> None:
    data = Prompts(Numbered(train=2), batch_size=2)
    batch: PromptBatch = next(iter(data.train_dataloader()))
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert (moved.row.device.type, moved.key.device.type) == ("meta", "meta")
    assert moved.prompt is batch.prompt


def test_own_lines_keep_what_else_they_hold(tmp_path: Path) -> None:
    full = {"id": "a", "prompt": "1+1?", "answer": 2, "completion": "It is 2", "tests": [1, 2], "level": "easy"}
    file = lines(tmp_path / "own.jsonl", full, "", {"prompt": "2+2?"})
    assert PromptLines(val=file).load() == {
        "val": [
            Prompt("a", "1+1?", "2", "It is 2", {"tests": [1, 2], "level": "easy"}),
            Prompt("own-3", "2+2?", None, None, {}),
        ]
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", r"own\.jsonl, line 2: no JSON"),
        ("[1]", r"line 2: expected a JSON object, got '\[1\]'"),
        ({"text": "x"}, r"line 2: there is no prompt \(fields: text\), expected a text"),
        ({"prompt": "  "}, "line 2: prompt is '  ', expected a text"),
        ({"prompt": "x", "answer": [1]}, r"line 2: answer is \[1\], expected a text or a number"),
        ({"prompt": "x", "completion": 3}, "line 2: completion is 3, expected a text"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, row: Any, message: str) -> None:
    file = lines(tmp_path / "own.jsonl", {"prompt": "fine"}, row)
    with pytest.raises(ValueError, match=message):
        PromptLines(train=file).load()


def test_files_that_are_not_there_or_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="PromptLines: give a file for at least one of train, val, test"):
        PromptLines()
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl does not exist"):
        PromptLines(train=str(tmp_path / "none.jsonl")).load()
    with pytest.raises(ValueError, match=r"empty\.jsonl holds no prompts"):
        PromptLines(train=lines(tmp_path / "empty.jsonl", "")).load()
    for cls in (Gsm8k, Svamp):
        with pytest.raises(FileNotFoundError, match=r"root: .* does not exist; it is to be had at https://raw"):
            cls(str(tmp_path)).load()


def test_the_answer_of_mathematics_is_in_the_last_box(tmp_path: Path) -> None:
    solution = r"First \boxed{1}, so \boxed{\frac{3}{\sqrt{2}}}."
    file = lines(
        tmp_path / "math.jsonl",
        {"problem": "p", "solution": solution, "level": "Level 5"},
        {"problem": "q", "solution": solution, "answer": "7", "unique_id": "test/1"},
    )
    assert MathLines(test=file).load()["test"] == [
        Prompt("math-1", "p", r"\frac{3}{\sqrt{2}}", solution, {"level": "Level 5"}),
        Prompt("test/1", "q", "7", solution, {}),
    ]
    bad = lines(tmp_path / "bad.jsonl", {"problem": "p", "solution": r"\boxed{1"})
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 1: there is neither an answer nor"):
        MathLines(test=bad).load()


def test_bad_lines_of_the_bundled_formats(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"question": "q", "answer": "#### 1"}\n')
    for solution in ("It is 5", "#### five"):
        (tmp_path / "train.jsonl").write_text(json.dumps({"question": "q", "answer": solution}) + "\n")
        with pytest.raises(ValueError, match=r"train\.jsonl, line 1: the answer ends in .* expected #### and a number"):
            Gsm8k(str(tmp_path)).load()
    row = {"ID": "chal-1", "Body": "b", "Question": "q", "Answer": "5"}
    for rows, message in (
        ([row, row], r"SVAMP\.json, problem 1: Answer is '5', expected a number"),
        ({}, "has dict, of which"),
    ):
        (tmp_path / "SVAMP.json").write_text(json.dumps(rows))
        with pytest.raises(ValueError, match=message):
            Svamp(str(tmp_path), train=1).load()


def test_validation_is_cut_from_training() -> None:
    train = Numbered(train=10).load()["train"]
    cut = cut_validation({"train": train, "test": []}, 4, seed=0)
    assert sorted(cut["train"] + cut["val"], key=lambda p: int(p.text[1:-2])) == train
    assert len(cut["val"]) == 4
    assert cut["val"] != cut_validation({"train": train}, 4, seed=1)["val"]
    with pytest.raises(ValueError, match="val=10: must be from 0 to 9, for 10 training prompts"):
        cut_validation({"train": train}, 10, seed=0)


def test_gsm8k(test_data: Path) -> None:
    splits = Gsm8k(str(test_data / "gsm8k"), val=500).load()
    assert {split: len(prompts) for split, prompts in splits.items()} == {"train": 6973, "val": 500, "test": 1319}
    first = next(p for p in splits["train"] + splits["val"] if p.id == "gsm8k-train-1")
    assert first.text.startswith("Natalia sold clips")
    assert first.answer == "72"
    assert first.completion is not None
    assert first.completion.startswith("Natalia sold 48/2 = 24 clips in May.\n")
    assert first.completion.endswith("\n#### 72")
    assert splits["test"][2].answer == "70000"  # 70,000 in some copies
    assert all(float(p.answer or "") == int(p.answer or "") for p in splits["test"])
    assert "<<48/2=24>>" in str(Gsm8k(str(test_data / "gsm8k"), notes=True).load()["train"][0].completion)


def test_svamp(test_data: Path) -> None:
    splits = Svamp(str(test_data / "svamp")).load()
    assert {split: len(prompts) for split, prompts in splits.items()} == {"train": 700, "test": 300}
    first, last = splits["train"][0], splits["test"][-1]
    assert (first.id, first.answer, last.id) == ("chal-1", "51", "chal-1000")
    assert first.text.endswith("25 dollars on each pack. How much do you have to pay to buy each pack?")
    assert first.info == {"equation": "( 76.0 - 25.0 )", "type": "Subtraction"}
