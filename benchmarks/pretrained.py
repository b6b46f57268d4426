"""How long ``zoo.load`` takes against ``torch.load`` and the model's constructor: ``python benchmarks/pretrained.py``.

Imports are apart: each model is made once before it is timed. The catalogue's digests are verified in every load that
is timed, the constructor gets its parts as Python code would give them.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from lightning.pytorch import LightningModule

import zoo
from zoo import checkpoint_io
from zoo.few_shot import HeadComparison
from zoo.few_shot.heads import NearestCentroid
from zoo.nn import Conv64F
from zoo.stationary import CompatibleRepresentation, SimplexClassifier


def backbone() -> LightningModule:
    return HeadComparison(Conv64F(1, pools=3), {"cosine": NearestCentroid("UN", "cosine")}, "cosine")


def server() -> LightningModule:
    return CompatibleRepresentation(Conv64F(1, pools=3), SimplexClassifier(1024, label_order="from_start"))


MODELS: dict[str, Callable[[], LightningModule]] = {
    "few_shot/conv64f_omniglot": backbone,
    "stationary/simplex_omniglot_456": server,
}


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Median of as many calls."""
    times = []
    for _ in range(repeats):
        start = perf_counter()
        function()
        times.append(perf_counter() - start)
    return median(times)


def compare(name: str, make: Callable[[], LightningModule], repeats: int, folder: Path) -> tuple[float, float]:
    """Seconds of ``zoo.load`` and of the plain way, which alternate in blocks so that both see the same machine."""
    file = folder / "state.pt"
    torch.save(zoo.load(name).state_dict(), file)

    def plain() -> None:
        model = make()
        model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        model.eval()

    def ours() -> None:
        checkpoint_io._sha256.cache_clear()
        zoo.load(name)

    plain()
    blocks = [(seconds(ours, repeats), seconds(plain, repeats)) for _ in range(5)]
    return median(a for a, _ in blocks), median(b for _, b in blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20, help="loads a block, of five; default: 20")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print("| model | zoo.load, ms | torch.load and constructor, ms | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, make in MODELS.items():
            ours, plain = compare(name, make, repeats, Path(folder))
            print(f"| {name} | {1000 * ours:.2f} | {1000 * plain:.2f} | {ours / plain:.2f} |")


if __name__ == "__main__":
    main()
