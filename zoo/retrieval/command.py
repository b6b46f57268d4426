"""``python -m zoo gallery``: build a gallery of images, search it, add to it and remove from it."""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from datamodules.search import Search
from datamodules.sources import atomic
from zoo.console import console, run_command
from zoo.retrieval.embedder import Embedder
from zoo.retrieval.files import labelled_files
from zoo.retrieval.gallery import Gallery, Hit
from zoo.retrieval.pictures import ROWS, picture_grid


def run(args: Sequence[str]) -> None:
    """Run one command; ``args`` are the command line's words after ``gallery``. Exits with 2 after an error."""
    run_command(_parser(), args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m zoo gallery",
        description="Search images by their nearest neighbours. A gallery is embedded once; a newer model searches it "
        "as it is where the two models share their embedding space, and is refused where they do not.",
    )
    commands = parser.add_subparsers(metavar="build|query|add|remove|info", required=True)

    def command(name: str, function: object, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function)
        if name != "build":
            sub.add_argument("--gallery", required=True, metavar="DIR", help="folder of the gallery")
        if name != "info":
            sub.add_argument("--images", required=True, nargs="+", metavar="PATH", help="folders and files of images")
        if name in ("build", "query", "add"):
            sub.add_argument("--checkpoint", required=True, help=".ckpt file, run folder or name of the catalogue")
            sub.add_argument("--device", default="auto", help="where the model runs; default: auto")
        return sub

    build = command("build", _build, "Embed images and save them as a gallery.")
    build.add_argument("--out", required=True, metavar="DIR", help="folder of the gallery; one there is replaced")
    build.add_argument("--index", default="Flat", help="faiss index, such as Flat (exact), HNSW32 or IVF256,Flat")
    query = command("query", _query, "Find the nearest gallery images of each query image.")
    query.add_argument("--k", type=int, default=5, help="images to find for each query; default: 5")
    query.add_argument("--out", metavar="CSV", help="write all that is found to this table")
    query.add_argument("--grid", metavar="PNG", help=f"draw the first {ROWS} queries with what is found")
    command("add", _add, "Embed more images and add them to a gallery.")
    command("remove", _remove, "Remove images, or all below a folder, from a gallery.")
    command("info", _info, "Show what a gallery holds and which models may search it.")
    return parser


def _build(given: argparse.Namespace) -> None:
    gallery = Gallery.build(given.images, _embedder(given), Search(index=given.index))
    gallery.save(given.out)
    print(f"{len(gallery)} images in {given.out}")


def _query(given: argparse.Namespace) -> None:
    gallery = Gallery.load(given.gallery)
    queries = [file for file, _ in labelled_files(given.images)]
    found = gallery.query(queries, _embedder(given), given.k)
    if given.out is not None:
        _write(Path(given.out), queries, found)
    table = Table("query", "rank", "file", "label", "score")
    for file, hits in list(zip(queries, found, strict=True))[:ROWS]:
        for hit in hits:
            table.add_row(file if hit.rank == 1 else "", str(hit.rank), hit.file, hit.label, f"{hit.score:.4f}")
    console().print(table)
    if len(queries) > ROWS:
        print(f"the first {ROWS} of {len(queries)} queries; --out writes all")
    if given.grid is not None:
        rows = [
            (file, [(hit.file, f"{hit.label or Path(hit.file).name}\n{hit.score:.3f}") for hit in hits])
            for file, hits in zip(queries, found, strict=True)
        ]
        figure = picture_grid(rows)
        with atomic(Path(given.grid)) as temporary:
            figure.savefig(temporary, format="png", dpi=120)


def _write(file: Path, queries: Sequence[str], found: Sequence[Sequence[Hit]]) -> None:
    with atomic(file) as temporary, temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as out:
        writer = csv.writer(out)
        writer.writerow(("query", "rank", "file", "label", "score"))
        for query, hits in zip(queries, found, strict=True):
            writer.writerows((query, hit.rank, hit.file, hit.label, hit.score) for hit in hits)


def _add(given: argparse.Namespace) -> None:
    gallery = Gallery.load(given.gallery)
    added = gallery.add(given.images, _embedder(given))
    gallery.save(given.gallery)
    print(f"{len(added)} images added, {len(gallery)} in {given.gallery}")


def _remove(given: argparse.Namespace) -> None:
    gallery = Gallery.load(given.gallery)
    removed = gallery.remove(given.images)
    gallery.save(given.gallery)
    print(f"{len(removed)} images removed, {len(gallery)} in {given.gallery}")


def _info(given: argparse.Namespace) -> None:
    gallery = Gallery.load(given.gallery)
    space = gallery.space or f"none: searched only by the weights {gallery.digest[:12]}"
    table = Table(show_header=False, title=given.gallery)
    for name, value in (
        ("images", len(gallery)),
        ("labels", len(set(gallery.labels))),
        ("width", gallery.embedding.shape[1]),
        ("embedding space", space),
        ("image form", gallery.image_form),
        ("index", gallery.search.index),
    ):
        table.add_row(name, str(value))
    console().print(table)


def _embedder(given: argparse.Namespace) -> Embedder:
    return Embedder.from_checkpoint(given.checkpoint, given.device)
