"""The whole pipeline on a tiny decoder: it learns, resumes exactly, and counts tokens over passes as over one."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from datamodules.batches import Prompt
from datamodules.prompt_sets import PromptSet
from datamodules.prompts import Prompts
from tests.llm_rl.conftest import CONFIG, Policy
from zoo.language import LanguageModel, Lora
from zoo.language.generation import Sampling
from zoo.language.tokenizers import Characters
from zoo.llm_rl import PolicyFineTuner
from zoo.llm_rl.advantages import Gdpo, GroupAdvantage, ReinforcePlusPlus
from zoo.llm_rl.batches import Minibatch, Sample
from zoo.llm_rl.d3s import D3S
from zoo.llm_rl.kl import Kl
from zoo.llm_rl.objectives import ClippedSurrogate, Correction
from zoo.llm_rl.rewards import Reward, SoftOverlong
from zoo.llm_rl.rollouts import Generation
from zoo.llm_rl.selection import DynamicSampling, OverlongFilter

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
    "limit_val_batches": 0,
}


class Digits(PromptSet):
    """One-digit prompts."""

    name = "digits"

    def load(self) -> dict[str, list[Prompt]]:
        prompts = [Prompt(str(n), f"{n % 10}+{n // 10}=", str(n)) for n in range(24)]
        return {"train": prompts, "val": [p._replace(id=f"v{p.id}") for p in prompts[:7]]}


class ShareOf(Reward):
    """The share of a character in a completion."""

    def __init__(self, character: str = "7") -> None:
        self.character = character

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [sample.text.count(self.character) / max(sample.tokens, 1) for sample in samples]


class Constant(Reward):
    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [1.0] * len(samples)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-2)


def tuner(policy: Policy, lora: Lora | None = None, **more: Any) -> PolicyFineTuner:
    given: dict[str, Any] = {
        "rewards": {"share": ShareOf()},
        "rollout": Generation(group_size=4, max_new_tokens=10),
        "optimizer": sgd,
        **more,
    }
    return PolicyFineTuner(policy(lora), **given)


def fit(model: PolicyFineTuner, steps: int, batch_size: int = 6, resume: Path | None = None, **more: Any) -> Trainer:
    torch.manual_seed(0)  # of adapters
    trainer = Trainer(max_steps=steps, **{**QUIET, **more})
    trainer.fit(model, datamodule=Prompts(Digits(), batch_size), ckpt_path=resume, weights_only=True)
    return trainer


def parameters(model: LightningModule) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


class Watch(Callback):
    """Keeps the minibatches, and what was logged at each step."""

    def __init__(self) -> None:
        self.batches: list[Minibatch] = []
        self.metrics: list[dict[str, float]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, _: int
    ) -> None:
        self.batches.append(batch)
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def test_it_learns_to_write_what_is_rewarded(policy: Policy) -> None:
    watch = Watch()
    model = tuner(policy, optimizer=adam, rollout=Generation(group_size=8, max_new_tokens=10))
    fit(model, 60, callbacks=[watch])
    rewards = [metrics["train/reward"] for metrics in watch.metrics]
    assert sum(rewards[:3]) / 3 < 0.2
    assert sum(rewards[-3:]) / 3 > 0.5


@pytest.mark.parametrize(
    "parts",
    [
        {"objective": ClippedSurrogate(aggregation="token_mean")},
        {"objective": ClippedSurrogate(aggregation="seq_mean_token_mean"), "minibatches": 2},
        {"objective": ClippedSurrogate(aggregation="dr_grpo", max_length=10, kl=Kl(0.1))},
        {"advantage": ReinforcePlusPlus(), "num_iterations": 2},
        {"selection": [OverlongFilter(), D3S(n_init=2, n_final=2, k_init=50, k_final=50, schedule="const")]},
    ],
    ids=["token_mean", "sequences", "dr_grpo+kl", "reinforce++", "overlong+d3s"],
)
def test_passes_of_an_optimiser_step_add_up_to_one(policy: Policy, parts: dict[str, Any]) -> None:
    found = []
    for passes in (1, 3):
        model = tuner(policy, **parts)
        fit(model, 4, accumulate_grad_batches=passes)
        found.append(parameters(model))
    start = parameters(policy().build())
    assert (found[0] - start).norm() > 0.05
    torch.testing.assert_close(found[1], found[0], atol=2e-5, rtol=0)


def test_rows_without_advantage_are_left_out_of_the_passes_and_change_nothing(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, rows = [], []
    for everything in (False, True):
        monkeypatch.setattr(PolicyFineTuner, "learns_without_advantage", everything)
        watch, model = Watch(), tuner(policy, rewards={"share": ShareOf("b")})
        fit(model, 3, callbacks=[watch])
        found.append(parameters(model))
        rows.append([len(batch.advantage) for batch in watch.batches])
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=0)
    assert sum(rows[0]) < sum(rows[1]) == 3 * 24


def test_a_rollout_that_teaches_nothing_leaves_the_weights(policy: Policy) -> None:
    model = tuner(policy, rewards={"same": Constant()}, optimizer=lambda p: torch.optim.AdamW(p, lr=0.1))
    watch = Watch()
    with pytest.warns(UserWarning, match="same reward"):
        trainer = fit(model, 2, callbacks=[watch])
    assert trainer.global_step == 2
    assert torch.equal(parameters(model), parameters(policy().build()))
    assert watch.metrics[0]["train/frac_reward_zero_std"] == 1


def test_the_policy_that_sampled_has_ratio_one(policy: Policy) -> None:
    watch, model = Watch(), tuner(policy, minibatches=2, num_iterations=2)
    before = tuner(policy)
    before.policy.build()
    fit(model, 4, callbacks=[watch])
    batch = watch.batches[0]
    states = before.states(before.policy, batch.rollout)
    log_probs = before.policy.token_log_probs(states, batch.rollout.response_ids[batch.rollout.mask])
    assert batch.old is not None
    torch.testing.assert_close(batch.old[batch.rollout.mask], log_probs, atol=1e-5, rtol=0)
    keys = [set(batch.rollout.key.tolist()) for batch in watch.batches]
    assert keys[0].isdisjoint(keys[1])  # a pass takes each row once
    assert keys[0] != keys[2]  # the second pass in another order


@pytest.mark.parametrize("stop", [3, 5, 8])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(policy: Policy, stop: int, tmp_path: Path) -> None:
    """Four optimiser steps a rollout, of two passes each: in the middle of one, or at its end."""
    parts: dict[str, Any] = {"minibatches": 2, "num_iterations": 2, "optimizer": adam}
    whole = tuner(policy, **parts)
    fit(whole, 10, accumulate_grad_batches=2)

    half = tuner(policy, **parts)
    trainer = fit(half, stop, accumulate_grad_batches=2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    rest = tuner(policy, **parts)
    fit(rest, 10, accumulate_grad_batches=2, resume=tmp_path / "half.ckpt")
    assert torch.equal(parameters(rest), parameters(whole))


@pytest.mark.parametrize("change", [{"accumulate_grad_batches": 1}, {"minibatches": 1}])
def test_a_rollout_that_was_cut_otherwise_is_not_gone_on_with(
    policy: Policy, change: dict[str, int], tmp_path: Path
) -> None:
    half = tuner(policy, minibatches=2)
    fit(half, 3, accumulate_grad_batches=2).save_checkpoint(tmp_path / "half.ckpt")
    settings = {"accumulate_grad_batches": 2, "minibatches": 2, **change}
    with pytest.raises(ValueError, match="num_iterations, minibatches and accumulate_grad_batches"):
        fit(
            tuner(policy, minibatches=settings["minibatches"]),
            6,
            accumulate_grad_batches=settings["accumulate_grad_batches"],
            resume=tmp_path / "half.ckpt",
        )


def test_a_rollout_of_a_checkpoint_that_is_tested_is_not_trained_on(policy: Policy, tmp_path: Path) -> None:
    fit(tuner(policy, minibatches=2), 3).save_checkpoint(tmp_path / "half.ckpt")
    checkpoint = torch.load(tmp_path / "half.ckpt", weights_only=True)
    assert checkpoint.pop("rollout")[0] is not None
    torch.save(checkpoint, tmp_path / "none.ckpt")
    found = []
    for name in ("half.ckpt", "none.ckpt"):
        model = tuner(policy, minibatches=2, evaluation=Sampling(10, temperature=0))
        tested = Trainer(**{**QUIET, "limit_val_batches": None})
        tested.validate(model, Prompts(Digits()), ckpt_path=tmp_path / name, verbose=False, weights_only=True)
        fit(model, 1)
        found.append(parameters(model))
    assert torch.equal(found[0], found[1])


def test_dropout_of_the_network_is_turned_off(weights: Path, policy: Policy) -> None:
    def dropping(lora: Lora | None = None) -> LanguageModel:
        config = {**CONFIG, "attention_dropout": 0.5}
        return LanguageModel(config=config, tokenizer=Characters(), init_from=str(weights), lora=lora)

    found = []
    for make in (policy, dropping):
        model = tuner(make)
        fit(model, 2)
        found.append(parameters(model))
    assert torch.equal(found[0], found[1])


def test_groups_of_one_are_not_taken_for_groups_without_spread(policy: Policy) -> None:
    watch = Watch()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*same reward.*")
        fit(tuner(policy, rollout=Generation(group_size=1, max_new_tokens=10), advantage=ReinforcePlusPlus()), 2,
            callbacks=[watch])  # fmt: skip
    assert "train/frac_reward_zero_std" not in watch.metrics[-1]
    assert watch.batches[-1].advantage.abs().sum() > 0


def test_the_reference_is_the_policy_as_it_was(policy: Policy) -> None:
    watch = Watch()
    fit(tuner(policy, objective=ClippedSurrogate(kl=Kl(0.05))), 4, callbacks=[watch])
    first, *_, last = (metrics["train/kl"] for metrics in watch.metrics)
    assert first == pytest.approx(0, abs=1e-6)
    assert last > 1e-4
    batch = watch.batches[-1]
    start = tuner(policy)
    start.policy.build()
    states = start.states(start.policy, batch.rollout)
    wanted = start.policy.token_log_probs(states, batch.rollout.response_ids[batch.rollout.mask])
    assert batch.reference is not None
    torch.testing.assert_close(batch.reference[batch.rollout.mask], wanted, atol=1e-5, rtol=0)


def test_with_lora_the_reference_is_the_policy_without_it(policy: Policy) -> None:
    watch, lora = Watch(), Lora(r=4, alpha=8, dropout=0.0)
    model = tuner(policy, lora, objective=ClippedSurrogate(kl=Kl(0.05)))
    fit(model, 4, callbacks=[watch])
    assert not model._reference
    batch = watch.batches[-1]
    start = tuner(policy)
    start.policy.build()
    states = start.states(start.policy, batch.rollout)
    wanted = start.policy.token_log_probs(states, batch.rollout.response_ids[batch.rollout.mask])
    assert batch.reference is not None
    torch.testing.assert_close(batch.reference[batch.rollout.mask], wanted, atol=1e-5, rtol=0)
    assert watch.metrics[-1]["train/kl"] > 1e-4


def test_a_penalty_in_the_reward_lowers_what_moved_away(policy: Policy) -> None:
    watch = Watch()
    kl = Kl(0.5, placement="reward")
    model = tuner(policy, objective=ClippedSurrogate(ratio="sequence_sum", aggregation="seq_mean_token_sum", kl=kl),
                  advantage=GroupAdvantage(baseline="leave_one_out", scale="none"))  # fmt: skip
    fit(model, 3, callbacks=[watch])
    batch = watch.batches[-1]
    assert batch.old is not None
    assert batch.reference is not None
    penalty = ((batch.old - batch.reference) * batch.rollout.mask).sum(1)
    reward = torch.tensor([t.count("7") for t in model.policy.tokenizer.batch_decode(batch.rollout.response_ids)])
    total = reward / batch.rollout.mask.sum(1) - 0.5 * penalty
    group = batch.rollout.group
    wanted = torch.stack([total[i] - total[(group == group[i]) & (torch.arange(len(group)) != i)].mean()
                          for i in range(len(group))])  # fmt: skip
    torch.testing.assert_close(batch.advantage[:, 0], wanted, atol=1e-4, rtol=1e-3)


def test_dynamic_sampling_fills_the_rollout_with_prompts_that_differ(policy: Policy) -> None:
    watch = Watch()
    model = tuner(policy, rewards={"share": ShareOf("b")}, dynamic_sampling=DynamicSampling(max_batches=30))
    fit(model, 2, callbacks=[watch])
    for batch, metrics in zip(watch.batches, watch.metrics, strict=True):
        assert len(batch.advantage) == 24  # all rows have something to teach
        assert metrics["train/frac_reward_zero_std"] == 0
    assert watch.metrics[-1]["train/dynamic_sampling/batches"] > 1
    hopeless = tuner(policy, rewards={"same": Constant()}, dynamic_sampling=DynamicSampling(max_batches=3))
    with pytest.raises(RuntimeError, match="max_batches=3 batches of prompts 0 of 6"):
        fit(hopeless, 1)


def test_validation_counts_each_prompt_once(policy: Policy) -> None:
    model = tuner(policy, rewards={"share": ShareOf(), "same": Constant()}, weights={"same": 0.5},
                  evaluation=Sampling(10, temperature=0))  # fmt: skip
    trainer = Trainer(**{**QUIET, "limit_val_batches": None})
    (found,) = trainer.validate(model, datamodule=Prompts(Digits(), eval_batch_size=3), verbose=False)
    assert found["val/reward"] == pytest.approx(found["val/rewards/share"] + 0.5, abs=1e-6)
    assert model.results()[0]["prompts"] == 7
    solved = [model.solve(batch)[0][0] for batch in Prompts(Digits(), eval_batch_size=1).val_dataloader()]
    assert found["val/rewards/share"] == pytest.approx(sum(ShareOf()(solved)) / 7, abs=1e-6)  # type: ignore[arg-type]
    assert found["val/length"] == pytest.approx(sum(sample.tokens for sample in solved) / 7)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rollout": Generation(group_size=1)}, "group_size=1"),
        ({"rewards": {}}, "rewards: give at least one"),
        ({"weights": {"other": 1.0}}, "'other' is none of the rewards share"),
        ({"minibatches": 0}, "minibatches=0"),
        ({"lora": Lora(dropout=0.1)}, "policy.lora.dropout=0.1"),
        ({"samples": 4}, "samples=4"),
        ({"system": "be brief"}, "set chat to true"),
        ({"objective": ClippedSurrogate(correction=Correction())}, "keep_log_probs"),
        ({"advantage": Gdpo(), "objective": ClippedSurrogate(kl=Kl(0.1, placement="reward"))}, "Gdpo"),
    ],
)
def test_wrong_settings_are_named(policy: Policy, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tuner(policy, **wrong)


def test_a_rollout_must_hold_its_minibatches(policy: Policy) -> None:
    with pytest.raises(ValueError, match="minibatches=7 in accumulate_grad_batches=4 passes: more than the 24"):
        fit(tuner(policy, minibatches=7), 1, accumulate_grad_batches=4)


def test_a_punished_length_that_completions_do_not_have_is_pointed_out(policy: Policy) -> None:
    with pytest.warns(UserWarning, match="rewards.long.max_length is 48"):
        tuner(policy, rewards={"share": ShareOf(), "long": SoftOverlong(48, 12)})


def test_temperature_zero_cannot_learn() -> None:
    with pytest.raises(ValueError, match="temperature=0"):
        Generation(temperature=0)


class LongLast(Digits):
    def load(self) -> dict[str, list[Prompt]]:
        found = super().load()
        return {**found, "val": [*found["val"], Prompt("long", "1+" * 30, "1")]}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_prompt_length": 12}, "prompt 'long' has 61 tokens, max_prompt_length is 12"),
        ({"evaluation": Sampling(8, 0.0)}, "a prompt of 61 tokens with max_new_tokens=8: the network has 64 positions"),
    ],
)
def test_a_prompt_that_is_too_long_is_found_before_the_first_step(
    given: dict[str, Any], message: str, policy: Policy
) -> None:
    model, watch = tuner(policy, **given), Watch()
    trainer = Trainer(max_steps=1, callbacks=[watch], **{**QUIET, "limit_val_batches": 1, "num_sanity_val_steps": 0})
    with pytest.raises(ValueError, match=message):
        trainer.fit(model, datamodule=Prompts(LongLast(), 6))
    assert not watch.batches
