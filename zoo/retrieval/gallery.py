"""A gallery of images that are embedded once and then searched, also by newer models of the same embedding space."""

import csv
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.search import Search
from datamodules.sources import atomic
from zoo.retrieval.embedder import Embedder
from zoo.retrieval.files import Images, absolute, labelled_files

FORMAT = 1
NAMES = ("embeddings.npy", "items.csv", "gallery.json")
COLUMNS = ("file", "label")


@dataclass(frozen=True)
class Hit:
    """One image found for a query: ``score`` is its cosine with the query, ``rank`` counts from 1."""

    file: str
    label: str
    score: float
    rank: int


class Gallery:
    """Image files with their embeddings, and a search in them.

    ``files`` are absolute paths and ``labels`` the names of the folders that the images lie in, "" in a flat folder;
    ``embedding`` [N, d] float32 has rows of unit length. The vectors are the truth: a search index is built of them
    when first needed and dropped when they change. Wherever images are given, a folder stands for all images below it.
    """

    def __init__(
        self,
        files: Sequence[str],
        labels: Sequence[str],
        embedding: Tensor,
        space: Mapping[str, int | str] | None,
        digest: str,
        image_form: Mapping[str, Any],
        search: Search,
    ) -> None:
        self.files, self.labels, self.embedding = list(files), list(labels), embedding
        self.space, self.digest = None if space is None else dict(space), digest
        self.image_form, self.search = dict(image_form), search
        self._search: Callable[[Tensor, int], tuple[Tensor, Tensor]] | None = None

    @classmethod
    def build(cls, images: Images, embedder: Embedder, search: Search | None = None) -> "Gallery":
        """A gallery of a folder of images, or of a list of files and folders."""
        found = labelled_files(images)
        files, labels = [file for file, _ in found], [label for _, label in found]
        identity = (embedder.space, embedder.digest, embedder.image_form)
        gallery = cls(files, labels, embedder(files), *identity, search or Search())
        gallery._nearest()  # an index that cannot be made of these vectors fails here
        return gallery

    def __len__(self) -> int:
        return len(self.files)

    def add(self, images: Images, embedder: Embedder) -> list[str]:
        """Embed images and put them at the end; returns their files.

        Images that share a folder with others of the gallery share their label.

        Raises:
            ValueError: if a file is in the gallery already, or the embedder is not comparable (see ``check``).
        """
        self.check(embedder)
        found = labelled_files(images)
        present = set(self.files)
        if twice := [file for file, _ in found if file in present]:
            raise ValueError(f"{twice[0]} is in the gallery already; remove it first to embed it again")
        known = {os.path.dirname(file): label for file, label in zip(self.files, self.labels, strict=True)}
        labelled = any(self.labels)
        embedding = self._embed([file for file, _ in found], embedder)
        for file, label in found:
            folder = os.path.dirname(file)
            self.files.append(file)
            self.labels.append(known.get(folder, label or (os.path.basename(folder) if labelled else "")))
        self.embedding, self._search = torch.cat([self.embedding, embedding]), None
        return [file for file, _ in found]

    def remove(self, images: Images) -> list[str]:
        """Drop files, or all files below a folder, whether or not they still exist on disk; returns those dropped.

        Raises:
            ValueError: if a file is not in the gallery, or nothing of a folder is, naming it. Nothing is dropped then.
        """
        present, gone = set(self.files), set()
        for path in absolute(images):
            found = {path} & present or {file for file in present if file.startswith(os.path.join(path, ""))}
            if not found:
                raise ValueError(f"{path} is not in the gallery, so it cannot be removed")
            gone |= found
        dropped = [file for file in self.files if file in gone]
        keep = [row for row, file in enumerate(self.files) if file not in gone]
        self.files, self.labels = [self.files[row] for row in keep], [self.labels[row] for row in keep]
        self.embedding, self._search = self.embedding[keep], None
        return dropped

    def query(self, images: Images, embedder: Embedder, k: int = 5) -> list[list[Hit]]:
        """The ``k`` nearest gallery images of each query, nearest first; all of them where the gallery has fewer.

        Raises:
            ValueError: if the embedder is not comparable (see ``check``), or the gallery is empty.
        """
        self.check(embedder)
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if not self.files:
            raise ValueError("the gallery is empty; add images to it")
        query = self._embed([file for file, _ in labelled_files(images)], embedder)
        scores, rows = self._nearest()(query, min(k, len(self)))
        return [
            [
                Hit(self.files[row], self.labels[row], score, rank)
                for rank, (score, row) in enumerate(zip(*found, strict=True), start=1)
                if row >= 0  # an approximate index may find fewer
            ]
            for found in zip(scores.tolist(), rows.tolist(), strict=True)
        ]

    def check(self, embedder: Embedder) -> None:
        """Raise ``ValueError`` unless the embedder's features can be compared with the gallery's.

        They can if both state the same embedding space or, where neither states one, if the weights are the same.
        """
        learned = "no fixed embedding space (a learned classifier compares with itself only)"
        if bool(self.space) != bool(embedder.space):
            differing = [f"the model has {embedder.space or learned}, the gallery's had {self.space or learned}"]
        else:
            ours, theirs = (x.space or {"digest of the weights": x.digest} for x in (self, embedder))
            differing = [
                f"{name} is {theirs.get(name)!r} in the model and {ours.get(name)!r} in the gallery"
                for name in ours | theirs
                if ours.get(name) != theirs.get(name)
            ]
        if differing:
            raise ValueError(
                f"the model's features are not comparable with the gallery's: {', '.join(differing)}; build the "
                "gallery again with this model, or train the model with the simplex of the gallery's"
            )

    def _embed(self, files: Sequence[str], embedder: Embedder) -> Tensor:
        embedding = embedder(files)
        if embedding.shape[1] != self.embedding.shape[1]:
            raise ValueError(
                f"the model's embeddings have {embedding.shape[1]} numbers and the gallery's "
                f"{self.embedding.shape[1]}; build the gallery again with this model"
            )
        return embedding

    def _nearest(self) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
        if self._search is None:
            self._search = self.search.over(self.embedding)
        return self._search

    def save(self, folder: str | Path) -> None:
        """Write ``embeddings.npy``, ``items.csv`` and ``gallery.json``; an earlier gallery there is replaced."""
        embedding = np.ascontiguousarray(self.embedding.numpy(), dtype=np.float32)
        about = {
            "format": FORMAT,
            "width": embedding.shape[1],
            "space": self.space,
            "digest": self.digest,
            "image_form": self.image_form,
            "search": asdict(self.search),
            "sha256": {"embeddings": _sha256(embedding), "files": _sha256(_lines(self.files))},
        }
        with ExitStack() as stack:
            # the three take their places together at the end, so that a stopped save leaves the old gallery
            vectors, items, facts = (stack.enter_context(atomic(Path(folder) / name)) for name in NAMES)
            with vectors.open("wb") as stream:
                np.save(stream, embedding, allow_pickle=False)
            with items.open("w", newline="", encoding="utf-8", errors="surrogateescape") as table:
                writer = csv.writer(table)
                writer.writerow(COLUMNS)
                writer.writerows(zip(self.files, self.labels, strict=True))
            facts.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "Gallery":
        """A saved gallery.

        Raises:
            FileNotFoundError: if one of its files is missing.
            ValueError: if one of its files is damaged or does not fit the others; names it.
        """
        vectors, items, facts = (Path(folder) / name for name in NAMES)
        for file in (vectors, items, facts):
            if not file.is_file():
                raise FileNotFoundError(f"{file} is missing, so {folder} is not a gallery; build one there")
        try:
            about = json.loads(facts.read_text(encoding="utf-8"))
            if about["format"] != FORMAT:
                raise ValueError(f"its format is {about['format']}, this version reads {FORMAT}")
            search, width = Search(**about["search"]), about["width"]
            sums = {what: about["sha256"][what] for what in ("embeddings", "files")}
            known = (about["space"], about["digest"], about["image_form"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{facts} is not a valid description of a gallery: {error!r}") from error
        try:
            with items.open(newline="", encoding="utf-8", errors="surrogateescape") as table:
                header, *rows = csv.reader(table, strict=True)
            if tuple(header) != COLUMNS or any(len(row) != len(COLUMNS) for row in rows):
                raise ValueError(f"its columns must be {','.join(COLUMNS)}")
            files, labels = [row[0] for row in rows], [row[1] for row in rows]
        except (csv.Error, ValueError) as error:
            raise ValueError(f"{items} cannot be read: {error}") from error
        try:
            embedding = np.load(vectors, allow_pickle=False)
        except (OSError, EOFError, ValueError) as error:
            raise ValueError(f"{vectors} cannot be read: {error}") from error
        if embedding.shape != (len(rows), width) or embedding.dtype != np.float32:
            raise ValueError(
                f"{vectors} holds {embedding.dtype} {embedding.shape}, but {items} has {len(rows)} rows and {facts} "
                f"says a width of {width}: they are not of one gallery; build it again"
            )
        for file, what, found in (
            (vectors, "embeddings", _sha256(embedding)),
            (items, "files", _sha256(_lines(files))),
        ):
            if found != sums[what]:
                raise ValueError(
                    f"{file}: its {what} are not those that {facts} was saved with; build the gallery again"
                )
        return cls(files, labels, torch.from_numpy(embedding), *known, search)


def _lines(files: Sequence[str]) -> bytes:
    return b"".join(os.fsencode(file) + b"\0" for file in files)


def _sha256(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()
