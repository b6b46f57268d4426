"""Early stopping by the official rule, exported vectors, and neighbours by the model's own vectors."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from datamodules.batches import SequenceBatch
from datamodules.sequence_store import windows
from datamodules.sequence_views import Neighbors
from datamodules.sequences import SequentialRecommendation
from zoo.recommenders import (
    Attention,
    CollaborativeNeighbors,
    ExportVectors,
    InterUser,
    Mean,
    Recommender,
    RoundedStopping,
    SASRec,
    collaborative,
    export_vectors,
)
from zoo.recommenders.collaborative import nearest

Rounds = Callable[..., SequentialRecommendation]


def test_the_eleventh_worse_validation_in_a_row_stops() -> None:
    stopping = RoundedStopping()
    assert stopping.worth_going_on(0.05)
    assert [stopping.worth_going_on(0.04) for _ in range(11)] == [True] * 10 + [False]


def test_a_value_that_rounds_to_the_best_is_an_improvement() -> None:
    stopping = RoundedStopping(patience=1)
    assert stopping.worth_going_on(0.05004)
    assert all(stopping.worth_going_on(value) for value in (0.0400, 0.04996, 0.0400, 0.0500, 0.0400))
    assert not stopping.worth_going_on(0.04994)


def test_a_resumed_run_goes_on_counting() -> None:
    stopping, resumed = RoundedStopping(patience=1), RoundedStopping(patience=1)
    stopping.worth_going_on(0.05)
    stopping.worth_going_on(0.04)
    resumed.load_state_dict(stopping.state_dict())
    assert not resumed.worth_going_on(0.0499)


def model(**parts: InterUser) -> Recommender:
    torch.manual_seed(0)
    return Recommender(SASRec(8, 16, 1, 2, 0.0, 0.0, 6), contrastive=parts, metrics=["mrr@10"], top_k=3)


def run(folder: Path, *callbacks: object) -> Trainer:
    off = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    return Trainer(accelerator="cpu", max_epochs=30, default_root_dir=folder, callbacks=list(callbacks), **off)


def test_training_stops_and_a_monitor_that_is_not_logged_is_named(rounds: Rounds, tmp_path: Path) -> None:
    stopping = RoundedStopping(patience=0)
    stopping.best = 2.0  # no mean reciprocal rank gets there
    trainer = run(tmp_path, stopping)
    trainer.fit(model(), rounds())
    assert trainer.current_epoch == 1
    with pytest.raises(ValueError, match=r"monitor 'val/mrr@5' is not logged; there are .*val/mrr@10"):
        run(tmp_path, RoundedStopping("val/mrr@5")).fit(model(), rounds())


def test_exported_vectors_give_the_scores(rounds: Rounds, tmp_path: Path) -> None:
    recommender, data = model(), rounds()
    predictions = run(tmp_path, ExportVectors(str(tmp_path / "vectors"))).predict(recommender, data)
    items, users = (np.load(tmp_path / "vectors" / f"{name}.npy") for name in ("items", "users"))
    item_ids, user_ids = ((tmp_path / "vectors" / f"{name}.txt").read_text().split() for name in ("items", "users"))
    assert items.shape == (12, 8)
    assert user_ids == [f"u{u}" for u in range(60)]
    scores = users @ items.T
    for row in (row for part in predictions for row in part):  # type: ignore[union-attr]
        expected = scores[user_ids.index(row["user"]), item_ids.index(row["item"])]
        assert row["score"] == pytest.approx(expected, abs=1e-5)


def test_vectors_need_an_id_each_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 vectors, but 1 ids"):
        export_vectors(tmp_path, "items", np.ones((2, 3)), ["a"])
    with pytest.raises(ValueError, match="has a line break"):
        export_vectors(tmp_path, "items", np.ones((1, 3)), ["a\nb"])


def test_nearest_rows_by_cosine_never_the_row_itself_nor_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    angle = torch.tensor([0.0, 0.1, 0.3, 0.6, 1.5])
    vectors = torch.stack([angle.cos(), angle.sin()], 1) * torch.tensor([[1.0], [5.0], [0.1], [2.0], [1.0]])
    assert nearest(vectors, 2, rows_at_once=2).tolist() == [[1, 2], [0, 2], [1, 3], [2, 1], [3, 2]]
    monkeypatch.setattr(collaborative, "SCORES_AT_ONCE", 12)

    def topk(scores: Tensor, k: int) -> object:
        sizes.append(scores.numel())
        return torch.topk(scores, k)

    monkeypatch.setattr(Tensor, "topk", topk)
    assert nearest(vectors, 2).tolist() == [[1, 2], [0, 2], [1, 3], [2, 1], [3, 2]]
    assert max(sizes) <= 12
    group = torch.tensor([0, 0, 1, 1, 2])
    assert nearest(vectors, 2, group=group).tolist() == [[2, 3], [2, 3], [1, 0], [1, 0], [3, 2]]
    with pytest.raises(ValueError, match=r"k=4: must lie in \[1, 3\]"):
        nearest(vectors, 4, group=group)


def test_neighbours_follow_the_models_vectors(rounds: Rounds, tmp_path: Path) -> None:
    data = rounds(views=[view := Neighbors(2)])
    data.tables = _Tables(len(data.pool))  # type: ignore[assignment]
    trainer = run(tmp_path, CollaborativeNeighbors(exclude_same_user=True))
    trainer.fit_loop.max_epochs = 1
    recommender = model(inter=InterUser(0.1, Mean()))
    trainer.fit(recommender, data)
    user = data.pool.user(np.arange(len(data.pool)))
    assert view.table.shape == (len(data.pool), 2)
    assert (user[view.table] != user[:, None]).all()
    ends = data.store.item[data.pool.bounds()[1] - 1]
    same = ends[view.table] == ends[:, None]
    callback = CollaborativeNeighbors(encode_at_once=7)
    expected = recommender.eval().represent(torch.from_numpy(windows(data.store.item, *data.pool.bounds(), 6)))
    torch.testing.assert_close(callback._prefixes(recommender, data), expected.detach())
    assert same.mean() > 0.5  # prefixes with the same last item are alike, by chance 1 in 12 is


class _Tables:
    """Zeros for neighbours: all prefixes' are prefix 0."""

    def __init__(self, pool: int) -> None:
        self.pool_embedding, self.pool_neighbors = np.ones((pool, 2), np.float32), np.zeros((pool, 2), np.int64)


class _Watch(Callback):
    """Which batches were trained on neighbours from the data's tables, prefix 0; saves where it is told to."""

    def __init__(self, view: Neighbors, file: Path | None = None, step: int = -1) -> None:
        self.view, self.file, self.step = view, file, step
        self.old: list[bool] = []

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: SequenceBatch, *_: object) -> None:
        assert isinstance(module, Recommender)
        part = module._parts()["inter"].synthesizer
        self.old.append(not part.pool_neighbors.any() or not self.view.table.any())  # type: ignore[union-attr, operator]

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.file)  # type: ignore[arg-type]

    def on_train_epoch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == -self.step:
            trainer.save_checkpoint(self.file)  # type: ignore[arg-type]


@pytest.mark.parametrize(("place", "left"), [(8, 10), (-12, 6)])  # in the second epoch of six batches, and behind it
def test_a_resumed_run_has_the_models_neighbours_from_its_first_batch(
    place: int, left: int, rounds: Rounds, tmp_path: Path
) -> None:
    file = tmp_path / "a.ckpt"

    def fit(resume: Path | None) -> list[bool]:
        data = rounds(views=[view := Neighbors(2)], batch_size=40, drop_last=True)
        data.tables = _Tables(len(data.pool))  # type: ignore[assignment]
        trainer = run(tmp_path, CollaborativeNeighbors(), watch := _Watch(view, file, 0 if resume else place))
        trainer.fit_loop.max_epochs = 3
        trainer.fit(model(inter=InterUser(0.1, Attention())), data, ckpt_path=resume)
        return watch.old

    assert fit(None) == [False] * 18
    assert fit(file) == [False] * left
