"""Two gloo processes under DDP against one with all prompts: the same rollouts, advantages, selection and weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.tensor import DTensor

from tests.llm_rl.conftest import Policy, policy, weights  # noqa: F401  (fixtures)
from tests.llm_rl.test_fine_tuner import fit, parameters, tuner
from zoo.language import Lora
from zoo.llm_rl.advantages import GroupAdvantage, ReinforcePlusPlus
from zoo.llm_rl.canon import Canon
from zoo.llm_rl.d3s import D3S
from zoo.llm_rl.kl import Kl
from zoo.llm_rl.objectives import ClippedSurrogate
from zoo.llm_rl.selection import Selection, TopEntropy
from zoo.strategies import FSDP2Strategy


class OneRankAlone(Selection):
    """Keeps the completions of one prompt alone, so that another rank has nothing to learn from."""

    def sequences(self, scores: Any, advantage: torch.Tensor) -> torch.Tensor:
        return scores.group == scores.group[advantage.abs().argmax()]


class Keep(Callback):
    """Writes each rank's weights and metrics at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if "time/" not in name}
        torch.save((parameters(pl_module), metrics), self.folder / f"{trainer.world_size}_{trainer.global_rank}.pt")


@pytest.mark.parametrize(
    ("parts", "lora"),
    [
        ({}, None),
        ({"objective": ClippedSurrogate(aggregation="seq_mean_token_mean", kl=Kl(0.1))}, Lora(4, 8, 0.0)),
        ({"advantage": GroupAdvantage(scale="batch"), "selection": [TopEntropy(0.4)]}, None),
        ({"advantage": Canon(), "selection": [OneRankAlone()]}, None),
        ({"advantage": ReinforcePlusPlus(), "num_iterations": 2}, None),
        ({"selection": [D3S(n_init=1, n_final=1, k_init=60, k_final=60, schedule="const")]}, None),
    ],
    ids=["grpo", "lora+kl", "lite+entropy", "canon, an idle rank", "reinforce++", "d3s"],
)
def test_two_ranks_learn_what_one_learns(
    parts: dict[str, Any],
    lora: Lora | None,
    policy: Policy,  # noqa: F811
    tmp_path: Path,
) -> None:
    fit(tuner(policy, lora, **parts), 3, batch_size=6, accumulate_grad_batches=2, callbacks=[Keep(tmp_path)])
    fit(
        tuner(policy, lora, **parts),
        3,
        batch_size=3,
        accumulate_grad_batches=2,
        callbacks=[Keep(tmp_path)],
        devices=2,
        strategy="ddp_fork",
    )
    one, metrics = torch.load(tmp_path / "1_0.pt")
    for rank in range(2):
        two, found = torch.load(tmp_path / f"2_{rank}.pt")
        torch.testing.assert_close(two, one, atol=2e-5, rtol=0)
        assert found == pytest.approx(metrics, abs=1e-4)
    start = tuner(policy, lora)
    start.policy.build()
    assert (one - parameters(start)).norm() > 0.01


@pytest.mark.parametrize("lora", [None, Lora(4, 8, 0.0)], ids=["full", "lora"])
def test_two_ranks_with_half_the_weights_each_learn_what_one_learns(
    lora: Lora | None,
    policy: Policy,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    on_two_ranks: Callable[[Callable[[int], object]], list[Any]],
) -> None:
    parts: dict[str, Any] = {"objective": ClippedSurrogate(kl=Kl(0.1)), "num_iterations": 2}

    def sharded(rank: int) -> object:
        about = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        about |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0, "TORCHELASTIC_RUN_ID": "test"}
        for name, value in about.items():
            monkeypatch.setenv(name, str(value))
        model = tuner(policy, lora, **parts)
        fit(model, 4, batch_size=3, devices=2, strategy=FSDP2Strategy())
        learned = [p.detach() for p in model.parameters() if p.requires_grad]
        assert all(isinstance(p, DTensor) for p in learned)
        return torch.cat([p.full_tensor().flatten() for p in learned if isinstance(p, DTensor)])

    one = tuner(policy, lora, **parts)
    fit(one, 4, batch_size=6)
    for two in on_two_ranks(sharded):
        torch.testing.assert_close(two, parameters(one), atol=2e-5, rtol=0)
