"""A small catalogue, batches of it with all fields, and sequences that a model can learn."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from datamodules.batches import SequenceBatch
from datamodules.sequence_files import PairLines
from datamodules.sequences import SequentialRecommendation
from zoo.recommenders import Attention, Recommender, SASRec
from zoo.recommenders.contrastive import Contrastive

ITEMS, LENGTH, POOL = 40, 6, 12


def tables() -> SimpleNamespace:
    """Texts' vectors of 12 prefixes and 3 neighbours of each."""
    generator = torch.Generator().manual_seed(1)
    neighbors = torch.stack([torch.randperm(POOL - 1, generator=generator)[:3] for _ in range(POOL)])
    neighbors += neighbors >= torch.arange(POOL)[:, None]
    return SimpleNamespace(
        pool_embedding=torch.randn(POOL, 5, generator=generator).numpy(), pool_neighbors=neighbors.numpy()
    )


@pytest.fixture
def batch() -> SequenceBatch:
    """Eight samples; neighbours hold items 31 to 40 and nothing else does."""
    generator = torch.Generator().manual_seed(0)

    def drawn(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high + 1, shape, generator=generator)

    item_seq = drawn(1, 30, 8, LENGTH)
    item_seq[:3, :2] = 0
    prefix = torch.randperm(POOL, generator=generator)[:8]
    views, neighbors, same = drawn(1, 30, 8, 2, LENGTH), drawn(31, 40, 8, 3, LENGTH), drawn(1, 30, 8, LENGTH)
    return SequenceBatch(item_seq, drawn(1, 30, 8), prefix, views, neighbors, same)


@pytest.fixture
def built() -> Callable[..., Recommender]:
    """Makes a recommender of the small catalogue, ready to train, the same initial encoder each time."""

    def make(dropout: float = 0.0, **parts: Contrastive) -> Recommender:
        torch.manual_seed(0)
        encoder = SASRec(8, 16, 1, 2, dropout, dropout, LENGTH)
        model = Recommender(encoder, contrastive=parts, num_items=ITEMS)
        torch.nn.init.normal_(model.encoder.item_embedding.weight)
        for part in model._parts().values():
            part.build(8, 5)
            part.prepare(tables())
            if isinstance(getattr(part, "synthesizer", None), Attention):
                part.synthesizer.dropout = 0.0  # type: ignore[union-attr]
        return model

    return make


@pytest.fixture
def rounds(tmp_path: Path) -> Callable[..., SequentialRecommendation]:
    """60 users who walk round a circle of 12 items, from different places: the next item is certain."""

    def make(**settings: object) -> SequentialRecommendation:
        lines = [f"u{u} " + " ".join(f"i{(u + step) % 12}" for step in range(5 + u % 6)) for u in range(60)]
        (tmp_path / "rounds.txt").write_text("\n".join(lines) + "\n")
        return SequentialRecommendation(
            PairLines(str(tmp_path / "rounds.txt")),
            **{"max_length": LENGTH, "batch_size": 32, **settings},  # type: ignore[arg-type]
        )

    return make
