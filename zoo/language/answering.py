"""A local language model that answers prompts, batch by batch, into a file that it goes on with after a kill."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from datamodules.item_prompts import Prompt
from datamodules.item_texts import read_answers
from zoo.language.loading import choose_device, load


@torch.inference_mode()
def answer_prompts(
    prompts: Sequence[Prompt],
    model: str,
    file: str | Path,
    *,
    revision: str | None = None,
    batch_size: int = 8,
    max_new_tokens: int = 256,
    max_length: int = 2048,
    device: str = "auto",
    progress: bool = True,
) -> int:
    """Append answers as JSON lines ``{"id", "text"}`` to a file, for prompts that it has no usable answer to.

    The likeliest token is taken at every step (temperature 0). A model with a chat template gets system and user
    message by it, another the two as plain text.

    Args:
        prompts: with distinct ids.
        model: causal model: hub name, local folder, or ``package:name/folder``.
        file: made if it is not there; a last line that was cut off is left as it is and answered again.
        revision: of a model of the hub.
        batch_size: prompts at once, which are put in the order of their length.
        max_new_tokens: where answers end at the latest.
        max_length: tokens of a prompt; of a longer one, the last.
        device: ``auto`` or a torch device.
        progress: show a bar.

    Returns:
        The number of answers appended.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(file)
    done = read_answers(path, (p.id for p in prompts)).text
    left = sorted((p for p in prompts if p.id not in done), key=lambda p: len(p.system) + len(p.user))
    if not left:
        return 0
    tokenizer = load(AutoTokenizer, model, revision, padding_side="left", truncation_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    network = load(AutoModelForCausalLM, model, revision).eval().to(choose_device(device))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as out:
        if out.tell() and not _ends_line(out):
            out.write(b"\n")
        for start in track(range(0, len(left), batch_size), "answering", disable=not progress):
            batch = left[start : start + batch_size]
            words = tokenizer(
                [as_text(tokenizer, p) for p in batch],
                padding=True,
                truncation=True,
                max_length=max_length,
                add_special_tokens=not tokenizer.chat_template,
                return_tensors="pt",
            ).to(network.device)
            made = network.generate(
                input_ids=words["input_ids"],
                attention_mask=words["attention_mask"],
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
            )
            answers = tokenizer.batch_decode(made[:, words["input_ids"].shape[1] :], skip_special_tokens=True)
            rows = ({"id": p.id, "text": text.strip()} for p, text in zip(batch, answers, strict=True))
            out.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
            out.flush()
    return len(left)


def as_text(tokenizer: Any, prompt: Prompt) -> str:
    """A prompt in the form that the model of a tokenizer was trained on."""
    if not tokenizer.chat_template:
        return f"{prompt.system}\n\n{prompt.user}\n\n"
    messages = [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _ends_line(file: Any) -> bool:
    file.seek(-1, 2)
    return file.read(1) == b"\n"
