"""``python -m zoo semantics``: prompts about items and prefixes, a local model's answers, embeddings of answers."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from datamodules.item_prompts import STYLES, item_prompts, prefix_prompts, read_prompts, write_prompts
from datamodules.item_texts import (
    all_answers,
    item_ids,
    item_texts,
    prefix_ids,
    read_answers,
    read_attributes,
    write_failures,
)
from datamodules.sources import atomic
from zoo.console import run_command
from zoo.experiments import data_of

if TYPE_CHECKING:
    from datamodules.sequences import SequentialRecommendation


def run(args: Sequence[str]) -> None:
    """Run one command; ``args`` are the command line's words after ``semantics``. Exits with 2 after an error."""
    run_command(_parser(), args)


def _parser() -> argparse.ArgumentParser:
    from zoo.language.text_embedding import Pooling

    parser = argparse.ArgumentParser(
        prog="python -m zoo semantics",
        description="What the texts of items mean, for recommenders that learn from it. Write prompts, let any "
        "language model answer them, give the answers to the config of an experiment or embed them beforehand.",
    )
    commands = parser.add_subparsers(metavar="prompts|answer|embed", required=True)

    def command(name: str, function: object, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function)
        return sub

    def of_data(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--config", required=True, help="experiment whose data: are meant, by name or path")
        sub.add_argument("--of", required=True, choices=["items", "prefixes"], help="what to describe")
        sub.add_argument("--attributes", metavar="FILE", help="item attributes: .csv, .tsv, .item or .jsonl, id first")

    def of_model(sub: argparse.ArgumentParser, kind: str) -> None:
        sub.add_argument("--model", required=True, help=f"{kind}: hub name, folder or package:name/folder")
        sub.add_argument("--revision", help="of a model of the hub: branch, tag or commit")
        sub.add_argument("--device", default="auto", help="where the model runs; default: auto")

    prompts = command("prompts", _prompts, "Write prompts, or those that a file of answers does not answer yet.")
    of_data(prompts)
    prompts.add_argument("--style", default="generic", choices=sorted(STYLES), help="wording; default: generic")
    prompts.add_argument("--domain", help="what is recommended, such as beauty products; default: the style's")
    prompts.add_argument("--answers", metavar="JSONL", help="answers so far; what is wrong with them is shown")
    prompts.add_argument("--seed", type=int, default=0, help="of the histories that items show; default: 0")
    prompts.add_argument("--out", required=True, metavar="JSONL", help='one {"id", "system", "user"} a line')

    answer = command("answer", _answer, "Let a local model answer prompts; goes on with a file that is there.")
    answer.add_argument("--prompts", required=True, metavar="JSONL", help="written by the command prompts")
    of_model(answer, "causal language model")
    answer.add_argument("--batch-size", type=int, default=8, help="prompts at once; default: 8")
    answer.add_argument("--max-new-tokens", type=int, default=256, help="length of an answer; default: 256")
    answer.add_argument("--out", required=True, metavar="JSONL", help='one {"id", "text"} a line is appended')

    embed = command("embed", _embed, "Embed answers, or items without any, into a .npy file with an .ids file beside.")
    of_data(embed)
    embed.add_argument("--answers", metavar="JSONL", help="what to embed; items alone can do without")
    embed.add_argument("--template", default="{title}", help="an item's text without answers; default: {title}")
    of_model(embed, "encoder")
    embed.add_argument("--pooling", default="mean", choices=get_args(Pooling), help="default: mean")
    embed.add_argument("--batch-size", type=int, default=64, help="texts at once; default: 64")
    embed.add_argument("--max-length", type=int, default=256, help="tokens that texts are cut to; default: 256")
    embed.add_argument("--normalise", action="store_true", help="make vectors of length 1")
    embed.add_argument("--out", required=True, metavar="NPY", help="table for semantics: items or prefixes")
    return parser


def _prompts(given: argparse.Namespace) -> None:
    data, style = data_of(given.config, "SequentialRecommendation"), STYLES[given.style]
    attributes = None if given.attributes is None else read_attributes(given.attributes)
    about = data.store, data.pool, style, attributes, given.domain
    prompts = item_prompts(*about, given.seed) if given.of == "items" else prefix_prompts(*about)
    written, total = write_prompts(prompts, given.out, given.answers)
    print(f"{written} of {total} prompts in {given.out}")
    if given.answers is not None:
        answers = read_answers(given.answers, _ids(data, given.of))
        print(f"{given.answers}: {answers.report()}")
        failures = Path(given.answers).with_suffix(".failures.jsonl")
        write_failures(answers, failures)
        print(f"{len(answers.unanswered)} ids without a usable answer in {failures}")


def _answer(given: argparse.Namespace) -> None:
    from zoo.language.answering import answer_prompts

    settings = {"batch_size": given.batch_size, "max_new_tokens": given.max_new_tokens, "device": given.device}
    prompts = read_prompts(given.prompts)
    made = answer_prompts(prompts, given.model, given.out, revision=given.revision, **settings)
    print(f"{made} answers appended to {given.out}: {read_answers(given.out, (p.id for p in prompts)).report()}")


def _embed(given: argparse.Namespace) -> None:
    from zoo.language.text_embedding import embed_texts

    out = Path(given.out)
    if out.suffix != ".npy":
        raise ValueError(f"--out {out}: must end in .npy")
    data = data_of(given.config, "SequentialRecommendation")
    ids = _ids(data, given.of)
    if given.answers is not None:
        texts = all_answers(given.answers, ids)
    elif given.of == "prefixes":
        raise ValueError("--of prefixes needs --answers: without answers a prefix is the mean of its items")
    else:
        attributes = None if given.attributes is None else read_attributes(given.attributes)
        texts = item_texts(data.store, attributes, given.template)
    names = ("model", "revision", "pooling", "batch_size", "max_length", "device", "normalise")
    vectors = embed_texts(texts, **{name: getattr(given, name) for name in names})
    with atomic(out) as temporary, temporary.open("wb") as file:
        np.save(file, vectors, allow_pickle=False)
    with atomic(out.with_suffix(".ids")) as temporary:
        temporary.write_text("".join(f"{id}\n" for id in ids), encoding="utf-8")
    print(f"{len(vectors)} vectors of {vectors.shape[1]} dimensions in {out}")


def _ids(data: "SequentialRecommendation", of: str) -> list[str]:
    return item_ids(data.store) if of == "items" else prefix_ids(data.store, data.pool)
