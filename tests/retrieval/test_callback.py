"""The callback in a Trainer: leave-one-out and query against gallery, on one rank and, with padding, on two."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.batches import ImageBatch, IndexedImages
from datamodules.loaders import KeyedBatchSampler
from zoo.callbacks import RetrievalCallback
from zoo.retrieval import Embedded, RetrievalEvaluator, Search, embedding_table

METRICS = ("recall@1", "recall@5", "map@r", "r_precision")


class Points(Dataset):
    """Points around class centres; an item is (point, label, row)."""

    def __init__(self, n: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.label = torch.randint(5, (n,), generator=g)
        centre = torch.randn(5, 6, generator=torch.Generator().manual_seed(9))
        self.image = centre[self.label] + torch.randn(n, 6, generator=g)
        self.label[10] = 10 + seed  # alone, hence without a relevant image

    def __len__(self) -> int:
        return len(self.label)

    def __getitems__(self, keys: list[tuple[int, int]]) -> IndexedImages:
        row = torch.tensor([index for _, index in keys])
        return IndexedImages(self.image[row], self.label[row], row)


class Imageless(NamedTuple):
    label: Tensor


class Scale(LightningModule):
    def __init__(self, returns: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([3.0, 1, 1, 0.2, 1, 1]))
        self.returns = returns

    def forward(self, image: Tensor) -> Tensor:
        return image * self.weight

    def training_step(self, batch: IndexedImages, batch_idx: int) -> Tensor:
        return self(batch.image).square().mean()

    def validation_step(self, batch: IndexedImages, batch_idx: int, dataloader_idx: int = 0) -> object:
        return Embedded(batch.image, batch.label, batch.row) if self.returns else None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def loader(points: Points, batch_size: int = 8) -> DataLoader:
    sampler = KeyedBatchSampler(len(points), batch_size)
    return DataLoader(points, batch_sampler=sampler, collate_fn=lambda batch: batch)  # type: ignore[arg-type]


def trainer(folder: Path, callback: RetrievalCallback, ranks: int = 1, **options: object) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="auto" if ranks == 1 else "ddp_fork",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **options,  # type: ignore[arg-type]
    )


class Saving(RetrievalCallback):
    """Writes what each rank has logged, which stays in a forked process otherwise."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = {name: value.item() for name, value in trainer.callback_metrics.items()}
        torch.save(values, Path(trainer.default_root_dir) / f"{trainer.world_size}_{trainer.global_rank}.pt")


@pytest.mark.parametrize("galleries", [0, 1])
def test_two_ranks_log_what_one_process_computes(galleries: int, tmp_path: Path) -> None:
    points = [Points(51, 0), Points(37, 1)][: 1 + galleries]  # 51 and 37 do not divide by 16: rows come twice
    scaled = [embedding_table(Scale()(p.image), p.label) for p in points]
    expected = RetrievalEvaluator(METRICS)(*scaled)
    assert 0.3 < expected.scores["recall@1"] < 0.95
    for ranks in (1, 2):
        evaluator = RetrievalEvaluator(METRICS, search=Search(chunk=8))  # several chunks: both ranks have a share
        trainer(tmp_path, Saving(evaluator), ranks).validate(Scale(), [loader(p) for p in points], verbose=False)
    for file in ("1_0.pt", "2_0.pt", "2_1.pt"):
        logged = torch.load(tmp_path / file, weights_only=True)
        assert logged["val/queries"] == 50
        assert logged["val/queries_excluded"] == 1
        for name in METRICS:
            assert logged[f"val/{name}"] == pytest.approx(expected.scores[name], abs=1e-7)
            assert logged[f"val/{name}/macro"] == pytest.approx(expected.macro[name], abs=1e-7)


def test_a_step_may_return_its_own_embeddings(tmp_path: Path) -> None:
    points = Points(51, 0)
    own, called = (
        trainer(tmp_path, RetrievalCallback(RetrievalEvaluator(METRICS))).validate(
            Scale(returns), loader(points), verbose=False
        )[0]
        for returns in (True, False)
    )
    plain = RetrievalEvaluator(METRICS)(embedding_table(points.image, points.label)).scores
    assert own["val/map@r"] == pytest.approx(plain["map@r"])
    assert own["val/map@r"] != pytest.approx(called["val/map@r"])


def test_batches_without_rows_are_numbered_on_one_rank(tmp_path: Path) -> None:
    points = Points(40, 0)
    batches = [ImageBatch(points.image[i : i + 8], points.label[i : i + 8]) for i in range(0, 40, 8)]
    plain = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    (logged,) = trainer(tmp_path, RetrievalCallback()).validate(Scale(), plain, verbose=False)
    (numbered,) = trainer(tmp_path, RetrievalCallback()).validate(Scale(), loader(points), verbose=False)
    assert logged == numbered
    assert logged["val/queries"] == 39
    bare = DataLoader([Imageless(points.label)], batch_size=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="of type Imageless has no image: give batches"):
        trainer(tmp_path, RetrievalCallback()).validate(Scale(), bare, verbose=False)


class Counting(RetrievalEvaluator):
    calls = 0

    def __call__(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
        self.calls += 1
        return super().__call__(*args, **kwargs)  # type: ignore[arg-type]


def test_a_fit_evaluates_every_n_epochs_and_not_in_the_sanity_check(tmp_path: Path) -> None:
    evaluator = Counting()
    fit = trainer(tmp_path, RetrievalCallback(evaluator, every_n_epochs=2), max_epochs=5)
    fit.fit(Scale(), loader(Points(16, 2)), loader(Points(30, 0)))
    assert evaluator.calls == 2


def test_bad_settings(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every_n_epochs=0"):
        RetrievalCallback(every_n_epochs=0)
    with pytest.raises(ValueError, match="3 validation loaders: RetrievalCallback takes one"):
        trainer(tmp_path, RetrievalCallback()).validate(Scale(), [loader(Points(16, 0))] * 3, verbose=False)
