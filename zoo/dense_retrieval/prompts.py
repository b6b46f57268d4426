"""Texts in templates, their tokens, and the columns that documents, the ending token and queries stand in."""

from collections.abc import Sequence
from string import Formatter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from datamodules.batches import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Positions = Literal["column", "content"]


class Filled(NamedTuple):
    """A template with a document in it; ``spans`` are the characters, from first to before last, that came from it."""

    text: str
    spans: list[tuple[int, int]]


def fill(template: str, document: Document) -> Filled:
    """``template`` with its ``{fields}``; of a field that is absent or empty the white space behind goes too.

    Raises:
        ValueError: if all its fields are empty.
    """
    text, spans, skip = "", [], False
    for literal, field, _, _ in Formatter().parse(template):
        text += literal.lstrip() if skip else literal
        if field is not None:
            value = document.get(field, "")
            skip = not value.strip()
            if not skip:
                spans.append((len(text), len(text) + len(value)))
                text += value
    if not spans:
        raise ValueError(f"document {dict(document)} has nothing for the template {template!r}: leave it out")
    return Filled(text, spans)


def fields(template: str) -> list[str]:
    """The names of the fields of a template, in order."""
    return [field for _, field, _, _ in Formatter().parse(template) if field is not None]


def tokens_of(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], **more: Any) -> Any:
    """The tokenizer's answer for ``texts``, uncut and without special tokens."""
    return tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False, **more)


class Layout(NamedTuple):
    """Rows of a document, the ending token E and what may follow it, as tokens.

    ``input_ids`` and ``position`` [B, T] int64; ``valid`` [B, T] bool, False for padding, which is left of documents
    and right of what follows E; ``end`` is the column of E.
    """

    input_ids: Tensor
    valid: Tensor
    position: Tensor
    end: int

    def to(self, device: torch.device) -> "Layout":
        ids, valid, position = (part.to(device, non_blocking=True) for part in self[:3])
        return Layout(ids, valid, position, self.end)


def layout(
    documents: Sequence[Sequence[int]],
    following: Sequence[Sequence[int]] | None,
    eos: int,
    document_length: int,
    positions: Positions,
) -> Layout:
    """Puts tokens of ``documents`` before E, the token ``eos``, and those of ``following`` behind it.

    The official code pads all documents to ``document_length``. Here they are padded to the longest, and E has the
    position ``document_length`` all the same where ``positions`` is ``column``; with ``content`` positions count a
    row's own tokens from 0. With rotary positions both are one.

    Raises:
        ValueError: if a document is longer than ``document_length``.
    """
    end = max(map(len, documents))
    if end > document_length:
        raise ValueError(f"a document has {end} tokens, but document_length is {document_length}: cut it")
    following = [()] * len(documents) if following is None else following
    length = end + 1 + max(map(len, following))
    ids = torch.full((len(documents), length), eos)
    valid = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (before, after) in enumerate(zip(documents, following, strict=True)):
        start, stop = end - len(before), end + 1 + len(after)
        ids[row, start:stop] = torch.tensor([*before, eos, *after])
        valid[row, start:stop] = True
    if positions == "content":
        position = (valid.cumsum(1) - 1).clamp(min=0)
    else:
        position = (torch.arange(length) + document_length - end).expand(len(ids), -1)
    return Layout(ids, valid, position, end)
