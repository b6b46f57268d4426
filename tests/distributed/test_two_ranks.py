"""Two gloo processes against one: the same episodes, accuracies and, without BatchNorm, the same weights."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn

from datamodules.degrade import Degrade
from datamodules.episodes import EpisodeSpec
from datamodules.few_shot import FewShot
from datamodules.omniglot import BundledOmniglot
from datamodules.training import Episodes, Pairs, TrainingBatches
from zoo.few_shot import CRLNet, CRLNetHead, HeadComparison, ProtoNet
from zoo.few_shot.heads import NearestCentroid
from zoo.nn import Backbone, Conv64F


class Pixels(Backbone):
    """A linear map of 7x7 patches: no BatchNorm, whose statistics would span the rank's images alone."""

    channels = 8

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 7, stride=7)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.conv(image)
        return maps

    def out_size(self, image_size: int) -> int:
        return image_size // 7


def data(training: TrainingBatches | None, workers: int = 0) -> FewShot:
    return FewShot(
        BundledOmniglot(max_base_classes=20),
        training,
        val=[],
        test=[EpisodeSpec(query=2, episodes=7), EpisodeSpec(shot=2, query=2, episodes=5, hard=True)],
        degrade=Degrade(),
        base_mean=True,
        episode_batch_size=2,
        num_workers=workers,
    )


def trainer(ranks: int, folder: Path, **options: object) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="auto" if ranks == 1 else "ddp_fork",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **options,  # type: ignore[arg-type]
    )


class Saving:
    """Writes each episode's accuracy, which stays in a forked process otherwise."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self, module: HeadComparison) -> None:
        if module.global_rank == 0:
            torch.save(module._accuracies, self.file)


def evaluate(ranks: int, folder: Path, workers: int = 0) -> dict[tuple[str, str], torch.Tensor]:
    torch.manual_seed(0)
    heads = {"cosine": NearestCentroid("UN", "cosine"), "centred": NearestCentroid("CL2N")}
    module = HeadComparison(Conv64F(1, width=8), heads, "cosine")
    finish, save = module._finish, Saving(folder / f"{ranks}_{workers}.pt")
    module._finish = lambda stage: (finish(stage), save(module))[0]  # type: ignore[method-assign,func-returns-value]
    trainer(ranks, folder).test(module, data(None, workers), verbose=False)
    return torch.load(save.file, weights_only=True)


def test_each_episode_scores_the_same_on_one_and_two_ranks_with_and_without_workers(tmp_path: Path) -> None:
    one = evaluate(1, tmp_path)
    assert {key: len(values) for key, values in one.items()} == {
        (spec, head): n for spec, n in (("5w1s", 7), ("5w2s-hard", 5)) for head in ("cosine", "centred")
    }
    for other in (evaluate(2, tmp_path), evaluate(1, tmp_path, workers=2)):
        for key, values in one.items():
            torch.testing.assert_close(other[key], values)


def protonet() -> LightningModule:
    return ProtoNet(Pixels(), temperature=20.0, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))


def crlnet() -> LightningModule:
    module = CRLNet(
        Pixels(),
        28,
        head=lambda channels, size: CRLNetHead(channels, size, heads=2, hidden=8, mlp_hidden=8, dropout=0.0),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
    )
    norm = module.head.layers[0].filters[0].norm.eval()
    norm.train = lambda mode=True: norm  # type: ignore[method-assign]
    return module


def train(ranks: int, folder: Path, kind: str) -> dict[str, torch.Tensor]:
    seed_everything(0)
    make, training = {
        "protonet": (protonet, lambda n: Episodes(EpisodeSpec(way=3, query=2, episodes=8), batch_episodes=4 // n)),
        "crlnet": (crlnet, lambda n: Pairs(batch_size=16 // n, query="degraded")),
    }[kind]
    module = make()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    file = folder / f"{kind}_{ranks}.pt"
    module.on_train_end = lambda: torch.save(module.state_dict(), file) if module.global_rank == 0 else None  # type: ignore[method-assign]
    trainer(ranks, folder, max_steps=2, limit_val_batches=0).fit(module, data(training(ranks)))
    after = torch.load(file, weights_only=True)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    return after


@pytest.mark.parametrize("kind", ["protonet", "crlnet"])
def test_two_ranks_with_half_the_batch_train_to_the_same_weights(kind: str, tmp_path: Path) -> None:
    one, two = train(1, tmp_path, kind), train(2, tmp_path, kind)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
