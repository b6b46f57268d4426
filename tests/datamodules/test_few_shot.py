from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from datamodules.batches import BaseBatch, EpisodeBatch, EpisodeRows, ImageBatch, PairBatch, PoolBatch
from datamodules.degrade import Degrade
from datamodules.episodes import EpisodeSpec
from datamodules.few_shot import FewShot
from datamodules.images import ImageStore, Pools, Split, normalised
from datamodules.training import Episodes, Images, Pairs

FIRST = {"train": 0, "val": 60, "test": 110}


class Tiny:
    """Grey 8x8 images that are constant: image r of train has the value r, of val 60 + r, of test 110 + r.

    With ``two`` pools the query pool's images have the value 200 + class.
    """

    channels, size, mean, std = 1, 8, (0.1,), (0.5,)

    def __init__(self, two: bool = False, classes: dict[str, int] | None = None, prefix: str | None = None) -> None:
        self.two, self.prefix = two, prefix
        self.classes = classes or {"train": 6, "val": 5, "test": 4}

    def load(self, split: Split) -> Pools:
        n = self.classes[split]
        names = tuple(f"{self.prefix or split}{i}" for i in range(n))
        label = torch.arange(n).repeat_interleave(10)
        support = ImageStore(self._constant(FIRST[split] + torch.arange(10 * n)), label, names)
        if not self.two:
            return Pools(support)
        label = torch.arange(n).repeat_interleave(4)
        return Pools(support, ImageStore(self._constant(200 + label), label, names))

    def read(self, paths: Sequence[str]) -> Tensor:
        return self._constant(torch.tensor([int(Path(p).read_text()) for p in paths]))

    def _constant(self, values: Tensor) -> Tensor:
        return values.to(torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 8, 8)


FEW = {"way": 3, "query": 2, "episodes": 7}
SPECS = [EpisodeSpec(**FEW), EpisodeSpec(**FEW, shot=5), EpisodeSpec(**FEW, hard=True)]
NO_CLUTTER = Degrade(clutter=0)


def make(dataset: Tiny | None = None, training: Any = None, stage: str | None = "fit", **options: Any) -> FewShot:
    options = {"val": SPECS[:2], "test": SPECS[:2], "pool_batch_size": 8, "episode_batch_size": 3} | options
    module = FewShot(dataset or Tiny(), Images(4) if training is None else training, **options)
    if stage:
        module.setup(stage)
    return module


def value(image: Tensor) -> Tensor:
    """What constant uint8 images hold."""
    assert image.dtype == torch.uint8
    assert (image == image[..., :1, :1]).all()
    return image[..., 0, 0, 0].long()


def episodes(module: FewShot) -> dict[tuple[str, int], list]:
    """Every episode as the values of its images and its labels."""
    pool, *rest = module.val_dataloader()
    table = torch.full((len(pool._loader.dataset), 2), -1)
    for batch in pool:
        assert isinstance(batch, PoolBatch)
        assert batch.size == len(table)
        assert (table[batch.row, 0] == -1).all()
        table[batch.row, 0] = batch.image.float().sum((1, 2, 3)).long()
    assert (table[:, 0] >= 0).all()
    found = {}
    for loader in rest:
        for batch in loader:
            if isinstance(batch, EpisodeRows):
                columns = (
                    table[batch.support, 0],
                    batch.support_label,
                    table[batch.query, 0],
                    batch.query_label,
                )
                for e, number in enumerate(batch.number.tolist()):
                    found[batch.spec, number] = [x[e].tolist() for x in columns]
    return found


@pytest.mark.parametrize("hard", [False, True])
def test_evaluation_is_the_same_for_any_ranks_workers_and_batches(two_ranks: Any, hard: bool) -> None:
    options = {"val": SPECS, "degrade": NO_CLUTTER} if hard else {}
    alone = episodes(make(**options))
    assert len(alone) == 7 * (3 if hard else 2)
    assert episodes(make(num_workers=2, pool_batch_size=50, episode_batch_size=50, **options)) == alone
    shares = []
    for rank in range(2):
        two_ranks(rank, 2)
        shares.append(episodes(make(**options)))
        assert len(shares[rank]) < len(alone)
    assert shares[0] | shares[1] == alone
    assert all(shares[0][n] == shares[1][n] for n in shares[0].keys() & shares[1].keys())


def test_pool_rows_lead_to_the_right_images() -> None:
    for (_, _), (support, support_label, query, query_label) in episodes(make()).items():
        classes = {label: (v // 64 - 60) // 10 for v, label in zip(support, support_label, strict=True)}
        assert len(set(classes.values())) == 3
        assert [classes[label] for label in query_label] == [(v // 64 - 60) // 10 for v in query]
        assert not set(support) & set(query)


def test_two_pools_serve_clean_and_hard_specs() -> None:
    found = episodes(make(Tiny(two=True), val=SPECS))
    for (name, _), (support, _, query, _) in found.items():
        assert max(support) < 64 * 200
        assert min(query) >= 64 * 200 if name == "3w1s-hard" else max(query) < 64 * 200


def test_base_images_come_once_over_the_ranks(two_ranks: Any) -> None:
    seen: list[int] = []
    for rank in range(7):
        two_ranks(rank, 7)
        for batch in make(base_mean=True).val_dataloader()[1]:
            assert isinstance(batch, BaseBatch)
            seen += value(batch.image)[batch.valid].tolist()
    assert sorted(seen) == list(range(60))


def batches(training: Any, epoch: int = 0, **options: Any) -> list:
    loader = make(training=training, **options).train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def test_image_batches_hold_both_pools() -> None:
    found = batches(Images(6))
    assert all(isinstance(batch, ImageBatch) for batch in found)
    assert sorted(v for b in found for v in value(b.image).tolist()) == list(range(60))
    assert all((value(b.image) // 10 == b.label).all() for b in found)
    both = torch.cat([value(b.image) for b in batches(Images(6), dataset=Tiny(two=True))])
    labels = torch.cat([b.label for b in batches(Images(6), dataset=Tiny(two=True))])
    assert len(both) == 84
    assert (labels[both >= 200] == both[both >= 200] - 200).all()
    assert (labels[both < 200] == both[both < 200] // 10).all()


def test_a_share_of_the_images_is_degraded() -> None:
    found = torch.cat(
        [b.image for epoch in range(5) for b in batches(Images(6, degraded=0.5), epoch, degrade=NO_CLUTTER)]
    )
    plain = (found == found[..., :1, :1]).all((1, 2, 3)).float().mean()
    assert 0.35 < plain < 0.65


def test_episode_batches() -> None:
    (first, *_) = batches(Episodes(EpisodeSpec(way=3, shot=2, query=4, episodes=6), batch_episodes=2))
    assert isinstance(first, EpisodeBatch)
    assert first.support.shape == (2, 6, 1, 8, 8)
    assert first.query.shape == (2, 12, 1, 8, 8)
    assert first.way == 3
    support, query = value(first.support), value(first.query)
    classes = support[:, ::2] // 10
    assert (classes.gather(1, first.query_label) == query // 10).all()
    hard = batches(Episodes(EpisodeSpec(way=3, shot=2, query=4, episodes=6, hard=True), 2), degrade=NO_CLUTTER)[0]
    assert torch.equal(hard.support, first.support)
    assert (hard.query != first.query).flatten(2).any(-1).all()


@pytest.mark.parametrize("query", ["clean", "degraded", "autoaugment"])
def test_pair_batches(query: Any) -> None:
    found = batches(Pairs(4, query), degrade=NO_CLUTTER)
    assert all(isinstance(batch, PairBatch) for batch in found)
    assert torch.cat([b.label for b in found]).sum() == 30
    if query == "clean":
        for b in found:
            same = value(b.support) // 10 == value(b.query) // 10
            assert torch.equal(same, b.label == 1)
            assert (value(b.support) != value(b.query)).all()
    again = batches(Pairs(4, query), degrade=NO_CLUTTER, num_workers=2)
    assert all(torch.equal(x, y) for a, b in zip(found, again, strict=True) for x, y in zip(a, b, strict=True))
    later = batches(Pairs(4, query), epoch=1, degrade=NO_CLUTTER)
    assert any(not torch.equal(a.support, b.support) for a, b in zip(found, later, strict=True))


class Watcher(LightningModule):
    """Keeps the batches as a method gets them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.train_batches: list[ImageBatch] = []
        self.found: list[Any] = []

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        self.train_batches.append(batch)
        return (self.weight - batch.image.mean()) ** 2

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.found.append(batch)

    test_step = predict_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(**options: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", devices=1, max_epochs=1, enable_model_summary=False, **(quiet | options))


def test_batches_reach_a_method_normalised_and_named() -> None:
    model, module = Watcher(), make(stage=None, base_mean=True)
    trainer().fit(model, module)
    image = torch.cat([b.image for b in model.train_batches])
    assert image.dtype == torch.float32
    expected = (torch.arange(60) / 255 - 0.1) / 0.5
    torch.testing.assert_close(image[:, 0, 0, 0].sort().values, expected)
    kinds = [type(b) for b in model.found]
    assert kinds == sorted(kinds, key=[PoolBatch, BaseBatch, EpisodeRows].index)  # no sanity check came first
    assert sum(len(b.image) for b in model.found if isinstance(b, BaseBatch)) == 60
    assert [b.spec for b in model.found if isinstance(b, EpisodeRows)] == ["3w1s"] * 3 + ["3w5s"] * 3


@pytest.mark.parametrize("pool_batch_size", [36, 8])  # 9 + 21 images an episode of each: the second is too small
def test_a_limit_on_batches_leaves_whole_episodes(pool_batch_size: int) -> None:
    model, module = Watcher(), make(stage=None, pool_batch_size=pool_batch_size)
    trainer(fast_dev_run=True).fit(model, module)
    pool, *rows = model.found
    assert len(pool.image) == pool.size <= 36
    assert [len(b.number) for b in rows] == [1, 1]


def test_a_fraction_of_the_batches_is_refused() -> None:
    with pytest.raises(ValueError, match=r"limit_val_batches=0\.5"):
        trainer(limit_val_batches=0.5).fit(Watcher(), make(stage=None))


def write(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(number))


def test_prediction_from_folders(tmp_path: Path) -> None:
    for name, number in (("b/x", 3), ("a/y", 1), ("a/z", 2), ("b/.hidden", 9)):
        write(tmp_path / "support" / name, number)
    write(tmp_path / "query" / "q2", 8)
    write(tmp_path / "query" / "q1", 7)
    folders = {"predict_support": str(tmp_path / "support"), "predict_query": str(tmp_path / "query")}
    model, module = Watcher(), make(stage=None, **folders)
    trainer().predict(model, module)
    pool, episode = model.found
    torch.testing.assert_close(pool.image[:, 0, 0, 0], (torch.tensor([1, 2, 3, 7, 8]) / 255 - 0.1) / 0.5)
    assert episode.support.tolist() == [[0, 1, 2]]
    assert episode.support_label.tolist() == [[0, 0, 1]]
    assert episode.query.tolist() == [[3, 4]]
    assert episode.query_label.tolist() == [[-1, -1]]
    assert module.predict_classes == ["a", "b"]
    assert [Path(p).name for p in module.predict_files] == ["q1", "q2"]
    with pytest.raises(ValueError, match=r"limit_predict_batches=1 lets in fewer than the 5 images"):
        trainer(fast_dev_run=True).predict(Watcher(), make(stage=None, **folders, pool_batch_size=4))
    one = make(stage="predict", **folders | {"predict_query": str(tmp_path / "query" / "q2")})
    assert [Path(p).name for p in one.predict_files] == ["q2"]


def test_bad_prediction_folders(tmp_path: Path) -> None:
    support, query = tmp_path / "support", tmp_path / "query"
    write(support / "a" / "x", 1)
    write(query / "q", 2)
    folders = {"predict_support": str(support), "predict_query": str(query)}
    with pytest.raises(ValueError, match="1 class folder"):
        make(stage="predict", **folders)
    (support / "b").mkdir()
    with pytest.raises(ValueError, match=r"class 'b': .*is empty"):
        make(stage="predict", **folders)
    write(support / "b" / "x", 1)
    with pytest.raises(FileNotFoundError, match=r"predict_query: .*nowhere is not a folder"):
        make(stage="predict", **folders | {"predict_query": str(tmp_path / "nowhere")})
    with pytest.raises(ValueError, match="predict_support and predict_query must both be given"):
        make(stage="predict", predict_query=str(query))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val": [EpisodeSpec(way=6)]}, "val: episodes 6w1s: way=6, but there are 5 classes"),
        ({"test": [EpisodeSpec(way=3)]}, "test: .*query=15 needs 16 images.*'test0' has 10"),
        ({"val": SPECS}, "val: 3w1s-hard has no pool of hard queries and degrade is null"),
        ({"val": [SPECS[0], SPECS[0]]}, r"\['3w1s', '3w1s'\] must differ"),
        ({"training": Pairs(4, "degraded")}, "Pairs asks for degraded images, but degrade is null"),
        ({"training": Images(4, degraded=0.5)}, "Images asks for degraded images"),
        (
            {"training": Episodes(EpisodeSpec(way=7, query=2))},
            "training: episodes 7w1s: way=7, but there are 6",
        ),
        ({"training": Episodes(EpisodeSpec(way=2, query=2, hard=True))}, "Episodes asks for degraded images"),
        ({"dataset": Tiny(prefix="x")}, "train and val splits share 5 classes, such as 'x0'"),
    ],
)
def test_mistakes_are_found_before_training(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_evaluation_compares_classes_with_train_where_it_loads_train() -> None:
    with pytest.raises(ValueError, match="train and test splits share 4 classes, such as 'x0'"):
        make(Tiny(prefix="x"), stage="test", base_mean=True)
    assert list(make(Tiny(prefix="x"), stage="test").pools) == ["test"]


def test_fit_needs_training_and_evaluation_does_not() -> None:
    with pytest.raises(ValueError, match="training is null"):
        FewShot(Tiny(), None, SPECS[:1], []).setup("fit")
    module = FewShot(Tiny(), None, [], SPECS[:1])
    module.setup("test")
    assert list(module.pools) == ["test"]
    assert len(module.test_dataloader()) == 3


def test_the_log_names_specs_and_hashes_classes(caplog: Any) -> None:
    with caplog.at_level("INFO"):
        make()
    # printf 'train0\\n...\\ntrain5' | sha256sum
    assert "train: 6 classes (sha256 09728e853076" in caplog.text
    assert "3w5s: EpisodeSpec(way=3, shot=5, query=2, episodes=7" in caplog.text


def test_images_are_normalised_by_channel_under_any_leading_dimensions() -> None:
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1).repeat(2, 4, 1, 2, 2)
    found = normalised(image, (0.5, 0.1, 0.2), (0.25, 0.05, 0.4))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([-2.0, 2, 2]).view(3, 1, 1).expand(2, 4, 3, 2, 2))
    assert image.unique().tolist() == [0, 51, 255]
