"""Embeddings of texts by any Hugging Face encoder, written shard by shard and kept in the cache folder."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torch.nn.functional import normalize

from datamodules.semantics import TextEncoder, made_once
from datamodules.sources import atomic, cache_dir
from zoo.language.loading import choose_device, fingerprint, load

Pooling = Literal["mean", "pooler", "cls"]


class HuggingFaceEncoder(TextEncoder):
    """``embed_texts`` with its settings, as a part that a config gives to data. See there."""

    def __init__(
        self,
        model: str = "sentence-transformers/all-MiniLM-L6-v2",
        revision: str | None = None,
        pooling: Pooling = "mean",
        batch_size: int = 64,
        max_length: int = 256,
        device: str = "auto",
        normalise: bool = False,
    ) -> None:
        _check(pooling, batch_size, max_length)
        self.settings: dict[str, Any] = {
            "revision": revision,
            "pooling": pooling,
            "batch_size": batch_size,
            "max_length": max_length,
            "device": device,
            "normalise": normalise,
        }
        self.model = model

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return embed_texts(texts, self.model, **self.settings)


def embed_texts(
    texts: Sequence[str],
    model: str = "sentence-transformers/all-MiniLM-L6-v2",
    *,
    revision: str | None = None,
    pooling: Pooling = "mean",
    batch_size: int = 64,
    max_length: int = 256,
    device: str = "auto",
    normalise: bool = False,
    shard_batches: int = 32,
    progress: bool = True,
) -> np.ndarray:
    """The vectors of texts, [N, D] float32, as a memory map of a file in the cache folder.

    The file's key is a sha256 of texts, model and settings. Texts are embedded in the order of their length, equal
    ones once, so that equal texts have equal vectors. Each shard of ``shard_batches`` batches is a file of its own
    until all are there: after a kill, the next call goes on behind the last whole shard.

    Args:
        texts: none empty.
        model: hub name, local folder, or ``package:name/folder``. SRA-CL uses
            ``princeton-nlp/sup-simcse-roberta-large`` with pooling ``pooler``.
        revision: of a model of the hub: branch, tag or commit.
        pooling: ``mean`` over a text's tokens, ``cls`` is the first token, ``pooler`` the model's own layer on it.
        batch_size: texts at once.
        max_length: tokens that a text is cut to; the model's own limit if that is lower.
        device: ``auto`` or a torch device.
        normalise: make vectors of length 1.
        shard_batches: batches that a kill can lose.
        progress: show a bar.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: for texts that are empty (their places), a model without the layer that ``pooler`` needs or with
            weights missing, and vectors that are not finite.
    """
    _check(pooling, batch_size, max_length)
    if not texts:
        raise ValueError("there are no texts to embed")
    if empty := [i for i, text in enumerate(texts) if not text.strip()]:
        raise ValueError(f"{len(empty)} of {len(texts)} texts are empty, the first are number {empty[:5]}")
    # the batch size is part of the key: padding changes the last digits
    settings = [fingerprint(model, revision), pooling, batch_size, max_length, normalise]
    digest = hashlib.sha256(json.dumps([settings, list(texts)]).encode()).hexdigest()
    file = cache_dir() / "embeddings" / f"{digest[:24]}.npy"

    def build(temporary: Path) -> None:
        size = batch_size * shard_batches
        distinct = sorted(dict.fromkeys(texts), key=lambda text: (-len(text), text))
        shards = file.with_suffix("") / f"{size}"
        encode = _Encoder(model, revision, pooling, max_length, device)
        _write_shards(distinct, shards, size, batch_size, encode, progress)
        _join(distinct, texts, shards, size, temporary, normalise)
        shutil.rmtree(file.with_suffix(""))

    return made_once(file, build)


def _check(pooling: str, batch_size: int, max_length: int) -> None:
    if pooling not in get_args(Pooling):
        raise ValueError(f"pooling={pooling!r}: must be one of {', '.join(get_args(Pooling))}")
    for name, value in (("batch_size", batch_size), ("max_length", max_length)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")


class _Encoder:
    """A loaded model and its tokenizer."""

    def __init__(self, model: str, revision: str | None, pooling: Pooling, max_length: int, device: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = load(AutoTokenizer, model, revision)
        self.tokenizer.padding_side = "right"  # the first token is where ``cls`` looks for it
        network, found = load(AutoModel, model, revision, output_loading_info=True)
        missing = [key for key in found["missing_keys"] if pooling == "pooler" or not key.startswith("pooler.")]
        if missing:
            raise ValueError(
                f"model {model!r} lacks {len(missing)} weights, such as {sorted(missing)[0]}, which would be random; "
                "use another pooling, or a model that was trained with them"
            )
        self.device = choose_device(device)
        self.network = network.eval().to(self.device)
        self.pooling, self.model = pooling, model
        self.max_length = min(max_length, self.tokenizer.model_max_length)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """[len(texts), D] float32 on the CPU."""
        words = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        ).to(self.device)
        output = self.network(**words)
        if self.pooling == "mean":
            vectors = mean_pooling(output.last_hidden_state.float(), words["attention_mask"])
        elif self.pooling == "cls":
            vectors = output.last_hidden_state[:, 0]
        elif getattr(output, "pooler_output", None) is None:
            raise ValueError(f"model {self.model!r} has no pooler: use pooling mean or cls")
        else:
            vectors = output.pooler_output
        return vectors.float().cpu()


def mean_pooling(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean of hidden states [B, T, D] over the tokens that ``mask`` [B, T] marks with 1: [B, D]."""
    weight = mask[..., None].to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1).clamp_min(1)


def _write_shards(
    texts: Sequence[str], folder: Path, size: int, batch_size: int, encode: _Encoder, progress: bool
) -> None:
    for shard in track(range(0, len(texts), size), "embedding", disable=not progress):
        file = folder / f"{shard}.npy"
        if file.is_file():
            continue
        part = texts[shard : shard + size]
        vectors = torch.cat([encode(part[i : i + batch_size]) for i in range(0, len(part), batch_size)])
        if not vectors.isfinite().all():
            text = part[int((~vectors.isfinite().all(1)).nonzero()[0])]
            raise ValueError(f"model {encode.model!r} gives a vector that is not finite for the text {text[:80]!r}")
        with atomic(file) as temporary, temporary.open("wb") as out:
            np.save(out, vectors.numpy(), allow_pickle=False)


def _join(distinct: Sequence[str], texts: Sequence[str], folder: Path, size: int, file: Path, normalise: bool) -> None:
    """Write the shards' vectors in the order of ``texts``, each to all places that its text has."""
    place = {text: i for i, text in enumerate(distinct)}
    wanted = np.array([place[text] for text in texts])
    order = np.argsort(wanted, kind="stable")
    ordered = wanted[order]
    for shard in range(0, len(distinct), size):
        vectors = np.load(folder / f"{shard}.npy", allow_pickle=False)
        if normalise:
            vectors = normalize(torch.from_numpy(vectors), dim=1).numpy()
        if shard == 0:
            shape = (len(texts), vectors.shape[1])
            rows = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
        low, high = np.searchsorted(ordered, [shard, shard + size])
        mine = order[low:high]
        rows[mine] = vectors[wanted[mine] - shard]
    rows.flush()
