"""``python -m zoo probe``: whether a model goes on with the questions of a benchmark as if it had read them."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.progress import track
from rich.table import Table

from datamodules.sources import atomic
from zoo.console import console, run_command
from zoo.experiments import data_of
from zoo.llm_rl.contamination import SHORTEST, Probe, probe, split_question, summarise
from zoo.llm_rl.rewards.votes import json_rows

if TYPE_CHECKING:
    from zoo.language.models import LanguageModel

_QUESTION = ("question", "problem", "prompt")  # names of a field, the first that is there counts


class Question(NamedTuple):
    """A question of a benchmark with its answer, where it has one."""

    id: str
    text: str
    answer: str | None


def run(args: Sequence[str]) -> None:
    """Run the command; ``args`` are the command line's words after ``probe``. Exits with 2 after an error."""
    run_command(_parser(), args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m zoo probe",
        description="Give a model the beginning of each question of a benchmark and see how much of the rest it "
        "writes, taking the likeliest token each time. A model that knows the rest has been trained on it.",
    )
    parser.add_argument("--model", required=True, help="causal: hub name, folder or package:name/folder")
    parser.add_argument("--revision", help="of a model of the hub: branch, tag or commit")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", help="experiment whose data: hold the questions, by name or path")
    source.add_argument("--file", metavar="JSONL", help=f"questions, in a field {', '.join(_QUESTION)}, and answer")
    parser.add_argument("--split", default="test", help="of the data of --config; default: test")
    parser.add_argument(
        "--ratios", type=float, nargs="+", default=[0.8, 0.6, 0.4], help="how much is given; default: 0.8 0.6 0.4"
    )
    parser.add_argument("--full", action="store_true", help="give the whole questions too, for the share of answers")
    parser.add_argument("--limit", type=int, help="only so many questions, the first ones")
    parser.add_argument("--unit", choices=["word", "character"], default="word", help="of ROUGE-L; default: word")
    parser.add_argument("--chat-template", action="store_true", help="give the beginning as a user's message")
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=512,
        help="at least; the rest of a question fits in any case; default: 512",
    )
    parser.add_argument("--batch-size", type=int, default=8, help="questions at once; default: 8")
    parser.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto", help="of weights"
    )
    parser.add_argument("--device", default="auto", help="where the model runs; default: auto")
    parser.add_argument("--out", required=True, metavar="JSON", help="all numbers and continuations")
    parser.set_defaults(command=_probe)
    return parser


def _probe(given: argparse.Namespace) -> None:
    for name in ("limit", "max_new_tokens", "batch_size"):
        if (value := getattr(given, name)) is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if wrong := [ratio for ratio in given.ratios if not 0 < ratio < 1]:
        raise ValueError(f"--ratios {wrong[0]}: must be above 0 and below 1; --full gives the whole question")
    questions = _of_file(Path(given.file)) if given.file else _of_config(given.config, given.split)
    usable = [question for question in questions[: given.limit] if len(question.text) >= SHORTEST]
    skipped = len(questions[: given.limit]) - len(usable)
    if not usable:
        raise ValueError(f"there is no question of at least {SHORTEST} characters among {len(questions)}")

    from zoo.language.loading import choose_device
    from zoo.language.models import LanguageModel

    model = LanguageModel(given.model, revision=given.revision, dtype=given.dtype).build().eval()
    model.to(choose_device(given.device))
    if given.chat_template and not model.tokenizer.chat_template:
        raise ValueError(f"--chat-template: the tokenizer of {given.model} has none")
    settings = {name: value for name, value in vars(given).items() if name not in ("command", "out")}
    results: list[dict[str, Any]] = []
    for ratio in [*([1.0] if given.full else []), *given.ratios]:
        cut = [(q.text, "") if ratio == 1 else split_question(q.text, ratio) for q in usable]
        written = _continued(model, cut, given, f"{ratio:.0%} given")
        probes = [
            probe(rest, q.answer, text, given.unit) for q, (_, rest), text in zip(usable, cut, written, strict=True)
        ]
        results.append({"ratio": ratio, **summarise(probes), "each": _rows(usable, cut, written, probes)})
        # after each ratio, so that an interrupted run leaves what it has
        with atomic(Path(given.out)) as temporary:
            report = {**settings, "skipped": skipped, "results": results}
            temporary.write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")
    _show(results)
    print(f"{len(usable):,} questions" + (f", {skipped} too short ones left out" if skipped else ""))
    print(f"all continuations in {given.out}")


def _of_file(path: Path) -> list[Question]:
    found = []
    for number, (where, row) in enumerate(json_rows(path), 1):
        text = next((row[name] for name in _QUESTION if row.get(name) is not None), None)
        if not isinstance(text, str):
            raise ValueError(f"{where}: there is no text in a field {', '.join(_QUESTION)}")
        answer = row.get("answer")
        found.append(Question(str(row.get("id", number)), text.strip(), None if answer is None else str(answer)))
    return found


def _of_config(config: str, split: str) -> list[Question]:
    """The questions of an experiment's data, without its template."""
    splits = data_of(config, "Prompts").splits
    if split not in splits:
        raise ValueError(f"--split {split}: the data of {config} have {', '.join(splits)}")
    return [Question(prompt.id, prompt.text.strip(), prompt.answer) for prompt in splits[split]]


def _continued(
    model: "LanguageModel", cut: Sequence[tuple[str, str]], given: argparse.Namespace, description: str
) -> list[str]:
    """What the model writes after each beginning, in batches of about the same length."""
    from zoo.language.generation import Sampling, generate

    prompts = [_tokens(model.tokenizer, start, given.chat_template) for start, _ in cut]
    rests = [len(model.tokenizer(rest, add_special_tokens=False)["input_ids"]) if rest else 0 for _, rest in cut]
    order = sorted(range(len(cut)), key=lambda at: -len(prompts[at]))
    written = [""] * len(cut)
    for start in track(range(0, len(order), given.batch_size), description):
        rows = order[start : start + given.batch_size]
        # a rest may be cut into other tokens than the file's, hence some more
        most = max(given.max_new_tokens, max(rests[row] for row in rows) + 8)
        keys = np.zeros((len(rows), 1), np.uint64)
        made = generate(model, [prompts[row] for row in rows], keys, Sampling(most, temperature=0.0))
        for row, ids, mask in zip(rows, made.ids, made.mask, strict=True):
            written[row] = str(model.tokenizer.decode(ids[mask], skip_special_tokens=True))
    return written


def _tokens(tokenizer: Any, text: str, chat: bool) -> list[int]:
    """A beginning with the tokenizer's BOS, if it has one, in front, or as a chat."""
    if chat:
        turn = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    first = [] if chat else [token for token in tokenizer("")["input_ids"] if token == tokenizer.bos_token_id]
    return [*first, *tokenizer(text, add_special_tokens=False)["input_ids"]]


def _rows(
    questions: Sequence[Question], cut: Sequence[tuple[str, str]], written: Sequence[str], probes: Sequence[Probe]
) -> list[dict[str, Any]]:
    return [
        {"id": question.id, "given": start, "rest": rest, "continuation": text, **found._asdict()}
        for question, (start, rest), text, found in zip(questions, cut, written, probes, strict=True)
    ]


def _show(results: Sequence[dict[str, Any]]) -> None:
    table = Table("given", "questions", "ROUGE-L", "exact", "answer right", "answer contained")
    for row in results:
        shares = (row[name] for name in Probe._fields)
        cells = ("-" if share is None else f"{share:.1%}" for share in shares)
        table.add_row(f"{row['ratio']:.0%}", str(row["questions"]), *cells)
    console().print(table)
