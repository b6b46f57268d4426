"""Answers by a local model: greedy, one by one as in a batch, appended, gone on with."""

import json
from pathlib import Path
from types import SimpleNamespace

import torch

from datamodules.item_prompts import Prompt
from zoo.language.answering import answer_prompts, as_text

PROMPTS = [Prompt(f"p{i}", "w1 w2", " ".join(f"w{j}" for j in range(3 + i))) for i in range(5)]


def answers(file: Path) -> dict[str, str]:
    return {row["id"]: row["text"] for row in map(json.loads, file.read_text().splitlines())}


def greedy(folder: Path, prompt: Prompt, tokens: int) -> str:
    """The likeliest next word again and again, without a cache or padding."""
    from transformers import GPT2LMHeadModel

    network = GPT2LMHeadModel.from_pretrained(folder).eval()
    words = [2, *(int(word[1:]) + 5 for word in f"{prompt.system} {prompt.user}".split()), 3]
    made: list[int] = []
    with torch.inference_mode():
        while len(made) < tokens and made[-1:] != [3]:
            made.append(int(network(torch.tensor([words + made])).logits[0, -1].argmax()))
    return " ".join(f"w{i - 5}" if i > 4 else "[MASK]" for i in made if i > 3)


def test_each_answer_is_the_greedy_one_of_its_prompt_alone(causal: Path, tmp_path: Path) -> None:
    settings = {"max_new_tokens": 4, "device": "cpu", "progress": False}
    expected = {p.id: greedy(causal, p, 4) for p in PROMPTS}
    assert len(set(expected.values())) > 1
    for batch_size in (1, 3):
        file = tmp_path / f"{batch_size}.jsonl"
        assert answer_prompts(PROMPTS, str(causal), file, batch_size=batch_size, **settings) == 5  # type: ignore[arg-type]
        assert answers(file) == expected


def test_only_what_is_unanswered_is_answered(causal: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"id": "p3", "text": "kept"}\n{"id": "p1", "text": null}\n{"id": "p0", "te')
    assert answer_prompts(PROMPTS, str(causal), file, max_new_tokens=2, device="cpu", progress=False) == 4
    lines = file.read_text().splitlines()
    assert lines[:3] == ['{"id": "p3", "text": "kept"}', '{"id": "p1", "text": null}', '{"id": "p0", "te']
    assert [json.loads(line)["id"] for line in lines[3:]] == ["p0", "p1", "p2", "p4"]  # the shortest first


def test_a_chat_template_gets_the_roles() -> None:
    seen: list[object] = []

    def template(messages: list[dict[str, str]], **more: object) -> str:
        seen.append((messages, more))
        return "formatted"

    assert as_text(SimpleNamespace(chat_template="x", apply_chat_template=template), PROMPTS[0]) == "formatted"
    roles = [{"role": "system", "content": "w1 w2"}, {"role": "user", "content": "w0 w1 w2"}]
    assert seen == [(roles, {"tokenize": False, "add_generation_prompt": True})]
