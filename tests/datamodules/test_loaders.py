from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from datamodules.loaders import KeyedBatchSampler, Keys, ResumableLoader


def epoch_of(sampler: KeyedBatchSampler, epoch: int = 0) -> list[Keys]:
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("length", [48, 53, 59])
def test_ranks_together_see_what_one_rank_sees(length: int, drop_last: bool) -> None:
    def sampler(batch: int, rank: int, world: int) -> KeyedBatchSampler:
        return KeyedBatchSampler(length, batch, True, 3, drop_last, rank, world)

    alone = epoch_of(sampler(12, 0, 1), 2)
    ranks = [epoch_of(sampler(4, r, 3), 2) for r in range(3)]
    assert len(alone) == len(sampler(4, 1, 3)) == (length // 12 if drop_last else -(-length // 12))
    for step, batch in enumerate(alone):
        joined = [k for rank in ranks for k in rank[step]]
        assert joined[: len(batch)] == batch
        assert len(joined) - len(batch) < 3  # fewer repeats than ranks
        assert len({len(rank[step]) for rank in ranks}) == 1
    seen = {i for rank in ranks for batch in rank for _, i in batch}
    assert len(seen) == (length // 12 * 12 if drop_last else length)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    sampler = KeyedBatchSampler(40, 40, True, 5)
    first, second = epoch_of(sampler, 0)[0], epoch_of(sampler, 1)[0]
    assert {e for e, _ in first} == {0}
    assert {e for e, _ in second} == {1}
    assert [i for _, i in first] != [i for _, i in second]
    assert sorted(i for _, i in second) == list(range(40))
    assert epoch_of(sampler, 0)[0] == first
    assert [i for _, i in epoch_of(KeyedBatchSampler(5, 2))[-1]] == [4]


def test_bad_values() -> None:
    with pytest.raises(ValueError, match="batch_size=0"):
        KeyedBatchSampler(5, 0)
    with pytest.raises(ValueError, match="length=0"):
        KeyedBatchSampler(0, 1)
    with pytest.raises(ValueError, match=r"batch_size=4 on 2 rank\(s\) needs 8 items.*are 7"):
        len(KeyedBatchSampler(7, 4, drop_last=True, rank=0, world_size=2))


class Numbers:
    """Item i of epoch e is the number 100 e + i, so a batch tells where it comes from."""

    def __init__(self, length: int = 20) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, keys: Keys) -> Tensor:
        return torch.tensor([100.0 * e + i for e, i in keys])


def make_loader(workers: int = 0) -> ResumableLoader:
    return ResumableLoader(Numbers(), KeyedBatchSampler(20, 4, True, 1, drop_last=True), workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_prefetched_batches_are_not_counted(workers: int) -> None:
    loader = make_loader(workers)
    whole = [batch.tolist() for batch in loader]
    iterator = iter(loader)
    for _ in range(2):
        next(iterator)
    assert loader.state_dict() == {"epoch": 0, "batch": 2, "global_batch": 4}
    resumed = make_loader(workers)
    resumed.load_state_dict(loader.state_dict())
    assert [batch.tolist() for batch in resumed] == whole[2:]
    assert resumed.state_dict() == {"epoch": 1, "batch": 0, "global_batch": 4}
    assert [batch.tolist() for batch in resumed] == whole  # the epoch was not moved on, so all of it again


def test_another_global_batch_is_refused_in_mid_epoch_only() -> None:
    loader = make_loader()
    with pytest.raises(ValueError, match=r"8 items a step.*now there are 4"):
        loader.load_state_dict({"epoch": 1, "batch": 3, "global_batch": 8})
    loader.load_state_dict({"epoch": 1, "batch": 0, "global_batch": 8})
    assert next(iter(loader)).min() >= 100


class Recorder(LightningModule):
    """Fits one weight by momentum to what it sees, so the order of samples shows in the weight."""

    def __init__(self, loader: ResumableLoader, die_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.loader, self.die_at = loader, die_at
        self.seen: list[list[float]] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if len(self.seen) == self.die_at:
            raise KeyboardInterrupt
        self.seen.append(batch.tolist())
        return ((self.weight - batch / 100) ** 2).mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    def train_dataloader(self) -> ResumableLoader:
        return self.loader

    def val_dataloader(self) -> ResumableLoader:
        return ResumableLoader(Numbers(3), KeyedBatchSampler(3, 2))


def run(
    path: Path,
    checkpoint: dict,
    workers: int = 0,
    die_at: int | None = None,
    resume: bool = False,
    **options: Any,
) -> Recorder:
    model = Recorder(make_loader(workers), die_at)
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=3, logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=[ModelCheckpoint(path, save_last=True, filename="{step}", save_top_k=-1, **checkpoint)],
        **options,
    )  # fmt: skip
    try:
        trainer.fit(model, ckpt_path=path / "last.ckpt" if resume else None)
    except (KeyboardInterrupt, SystemExit):
        assert die_at is not None
    return model


EVERY_STEP = {"every_n_train_steps": 1}


@pytest.mark.parametrize(
    ("checkpoint", "die_at", "lost", "workers", "options"),
    [
        (EVERY_STEP, 3, 0, 0, {}),  # batch 3 of 5
        (EVERY_STEP, 8, 0, 2, {}),  # batch 3 of 5 of the second epoch, worker processes
        (EVERY_STEP, 5, 0, 0, {}),  # saved after the last batch, before the epoch's end
        ({"every_n_train_steps": 2}, 9, 1, 2, {}),  # the last checkpoint is older than the crash
        ({"every_n_epochs": 1}, 5, 0, 0, {}),  # saved on validation end, at the epoch's end
        ({"every_n_epochs": 1, "save_on_train_epoch_end": True}, 10, 0, 0, {}),
        ({"every_n_epochs": 1}, 7, 2, 0, {}),
        (
            {"save_on_train_epoch_end": False},
            8,
            1,
            0,
            {"val_check_interval": 2},
        ),  # on validation in mid-epoch
        ({"every_n_epochs": 1}, 6, 0, 0, {"limit_train_batches": 3}),  # the epoch ends before the loader
        (EVERY_STEP, 4, 0, 2, {"limit_train_batches": 3}),
    ],
)
def test_a_resumed_run_sees_what_is_left_and_ends_with_the_same_weights(
    tmp_path: Path, checkpoint: dict, die_at: int, lost: int, workers: int, options: dict
) -> None:
    whole = run(tmp_path / "whole", checkpoint, **options)
    broken = run(tmp_path / "broken", checkpoint, workers, die_at, **options)
    resumed = run(tmp_path / "broken", checkpoint, workers, resume=True, **options)
    assert len(whole.seen) == 3 * options.get("limit_train_batches", 5)
    assert broken.seen == whole.seen[:die_at]
    assert resumed.seen == whole.seen[die_at - lost :]
    assert torch.equal(resumed.weight, whole.weight)
