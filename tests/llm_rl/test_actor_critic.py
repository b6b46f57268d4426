"""PPO with a critic through the whole pipeline: GAE in closed form, what is learned, passes, ranks and resumed runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from datamodules.batches import Prompt
from datamodules.prompt_sets import PromptSet
from datamodules.prompts import Prompts
from tests.llm_rl.conftest import Policy
from tests.llm_rl.test_fine_tuner import QUIET, ShareOf, Watch, adam, parameters, sgd
from zoo.language import Lora
from zoo.llm_rl import PolicyFineTuner
from zoo.llm_rl.advantages import Gae
from zoo.llm_rl.batches import Sample
from zoo.llm_rl.critic import Critic
from zoo.llm_rl.imitation import Imitation, worked_solutions
from zoo.llm_rl.kl import Kl
from zoo.llm_rl.objectives import ClippedSurrogate
from zoo.llm_rl.rewards import Reward
from zoo.llm_rl.rollouts import Generation


class Sums(PromptSet):
    """Sums of two digits with worked solutions."""

    name = "sums"

    def load(self) -> dict[str, list[Prompt]]:
        pairs = [(a, b) for a in range(4) for b in range(4)]
        return {"train": [Prompt(f"{a}{b}", f"{a}+{b}=", f"{a + b}", f"{b}+{a}={a + b}") for a, b in pairs]}


class Sevens(Reward):
    """How many 7 there are among the first tokens, less one."""

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [sample.text.count("7") - 1.0 for sample in samples]


def ppo(policy: Policy, lora: Lora | None = None, **more: Any) -> PolicyFineTuner:
    given: dict[str, Any] = {
        "rewards": {"share": ShareOf()},
        "rollout": Generation(group_size=1, max_new_tokens=8),
        "advantage": Gae(),
        "critic": Critic(),
        "objective": ClippedSurrogate(),
        "optimizer": sgd,
        **more,
    }
    return PolicyFineTuner(policy(lora), **given)


def fit(model: PolicyFineTuner, steps: int, batch_size: int = 8, resume: Path | None = None, **more: Any) -> Trainer:
    torch.manual_seed(0)  # of heads, which have random weights at first
    trainer = Trainer(max_steps=steps, **{**QUIET, **more})
    trainer.fit(model, datamodule=Prompts(Sums(), batch_size), ckpt_path=resume, weights_only=True)
    return trainer


class Half(Critic):
    """Values every state at first at 0.5."""

    def build(self, size: int) -> torch.nn.ModuleDict:
        heads = super().build(size)
        for name, value in heads.named_parameters():
            torch.nn.init.constant_(value, 0.5 if name.endswith("output.bias") else 0.0)
        return heads


def test_advantages_and_returns_in_closed_form(policy: Policy) -> None:
    """With V = 1/2 and the reward R at the end, gamma 1: A_t = lam^(T-1-t) (R - 1/2)."""
    watch = Watch()
    fit(ppo(policy, rewards={"sevens": Sevens()}, advantage=Gae(1.0, 0.9), critic=Half()), 1, callbacks=[watch])
    (batch,) = watch.batches
    mask, length = batch.rollout.mask, batch.rollout.mask.sum(1)
    texts = ppo(policy).policy.build().tokenizer.batch_decode(batch.rollout.response_ids * mask)
    reward = torch.tensor([text.count("7") - 1.0 for text in texts])
    left = (length[:, None] - 1 - torch.arange(mask.shape[1])).clamp(min=0)
    wanted = 0.9**left * (reward - 0.5)[:, None] * mask
    torch.testing.assert_close(batch.advantage, wanted, atol=1e-6, rtol=0)
    assert batch.returns is not None
    assert batch.value is not None
    torch.testing.assert_close(batch.returns, (wanted + 0.5) * mask, atol=1e-6, rtol=0)
    assert torch.equal(batch.value, 0.5 * mask)
    assert reward.unique().numel() > 1
    loss = watch.metrics[0]["train/loss/value_avg"]
    assert loss == pytest.approx(float((wanted.square() / 2).sum() / mask.sum()), abs=1e-6)


def test_a_penalty_in_the_reward_counts_at_every_token(policy: Policy) -> None:
    """With lam 1 an advantage is the sum of all rewards from its token on less the value."""
    watch, kl = Watch(), Kl(0.5, placement="reward")
    model = ppo(policy, advantage=Gae(1.0, 1.0), critic=Half(coefficient=0.0), objective=ClippedSurrogate(kl=kl))
    fit(model, 3, callbacks=[watch])
    batch = watch.batches[-1]
    mask = batch.rollout.mask
    assert batch.old is not None
    assert batch.reference is not None
    penalty = (batch.old - batch.reference) * mask
    assert penalty.abs().max() > 0.01
    texts = model.policy.tokenizer.batch_decode(batch.rollout.response_ids * mask)
    reward = torch.tensor([text.count("7") for text in texts]) / mask.sum(1)
    to_go = penalty.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(batch.advantage, (reward[:, None] - 0.5 * to_go - 0.5) * mask, atol=1e-5, rtol=0)


def test_whitened_advantages_have_mean_0_and_variance_1_over_tokens(policy: Policy) -> None:
    watch = Watch()
    fit(ppo(policy, advantage=Gae(whiten="global")), 1, callbacks=[watch])
    values = watch.batches[0].advantage[watch.batches[0].rollout.mask]
    assert float(values.mean()) == pytest.approx(0, abs=1e-5)
    assert float(values.var()) == pytest.approx(1, abs=1e-4)


def test_it_learns_what_is_rewarded_and_the_critic_its_value(policy: Policy) -> None:
    watch = Watch()
    parts: dict[str, Any] = {"rewards": {"share": ShareOf("3")}, "advantage": Gae(whiten="global")}
    model = ppo(policy, optimizer=lambda p: torch.optim.Adam(p, lr=2e-2), num_iterations=2, **parts)
    fit(model, 80, batch_size=16, callbacks=[watch])
    rewards = [metrics["train/reward"] for metrics in watch.metrics]
    assert sum(rewards[:4]) / 4 < 0.1
    assert sum(rewards[-4:]) / 4 > 0.5
    batch = watch.batches[-1]
    assert batch.returns is not None
    assert batch.value is not None
    error = (batch.value - batch.returns)[batch.rollout.mask].square().mean()
    assert error < 0.5 * batch.returns[batch.rollout.mask].square().mean()


@pytest.mark.parametrize("aggregation", ["token_mean", "seq_mean_token_mean"])
def test_passes_of_an_optimiser_step_add_up_to_one(policy: Policy, aggregation: Any) -> None:
    found = []
    for passes in (1, 3):
        model = ppo(policy, objective=ClippedSurrogate(aggregation=aggregation), auxiliary=Imitation(0.3))
        fit(model, 3, accumulate_grad_batches=passes)
        found.append(parameters(model))
    start = parameters(policy().build())
    assert (found[0][: len(start)] - start).norm() > 0.05
    torch.testing.assert_close(found[1], found[0], atol=2e-5, rtol=0)


@pytest.mark.parametrize("stop", [3, 4])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(policy: Policy, stop: int, tmp_path: Path) -> None:
    """Four optimiser steps a rollout: in the middle of one, or at its end."""
    kl = Kl(0.1, placement="reward")
    parts: dict[str, Any] = {"minibatches": 2, "num_iterations": 2, "optimizer": adam, "auxiliary": Imitation()}

    def made() -> PolicyFineTuner:
        return ppo(policy, objective=ClippedSurrogate(kl=kl), **parts)

    whole, half, rest = made(), made(), made()
    fit(whole, 7)
    fit(half, stop).save_checkpoint(tmp_path / "half.ckpt")
    assert "heads.policy.output.weight" in torch.load(tmp_path / "half.ckpt")["state_dict"]
    fit(rest, 7, resume=tmp_path / "half.ckpt")
    assert torch.equal(parameters(rest), parameters(whole))


def test_a_checkpoint_rebuilds_heads_that_are_wider_than_the_states(policy: Policy, tmp_path: Path) -> None:
    critic = Critic(heads=("policy", "guide"), embedding=64)
    model = ppo(policy, critic=critic)
    fit(model, 1).save_checkpoint(tmp_path / "one.ckpt")
    again = ppo(policy, critic=critic)
    state = torch.load(tmp_path / "one.ckpt")
    again.on_load_checkpoint(state)
    again.load_state_dict(state["state_dict"])
    assert torch.equal(parameters(again), parameters(model))


def test_adapters_and_critic_alone_learn(policy: Policy, tmp_path: Path) -> None:
    model = ppo(policy, Lora(r=2, alpha=4, dropout=0.0))
    trainer = fit(model, 2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all("lora_" in name or name.startswith("heads.") for name in names)
    assert not any("embed_tokens" in name for name in torch.load(tmp_path / "two.ckpt")["state_dict"])
    assert any(p.abs().max() > 0 for name, p in model.named_parameters() if "lora_B" in name)


# --- imitation -------------------------------------------------------------------------------------------------------


def test_imitation_is_the_mean_over_the_tokens_of_worked_solutions(policy: Policy) -> None:
    watch = Watch()
    model = ppo(policy, rewards={"zero": Sevens()}, weights={"zero": 0.0}, auxiliary=Imitation(0.3), critic=Half())
    fit(model, 1, callbacks=[watch])
    start = policy().build()
    completions = {prompt.text: str(prompt.completion) for prompt in Sums().load()["train"]}
    losses = []
    for text in start.tokenizer.batch_decode(watch.batches[0].rollout.prompt_ids, skip_special_tokens=True):
        row = start.tokenizer(text + completions[text])["input_ids"] + [start.tokenizer.eos_token_id]
        with torch.no_grad():
            log_p = start.network(torch.tensor([row])).logits[0].log_softmax(-1)
        losses += [-float(log_p[at - 1, row[at]]) for at in range(1 + len(text), len(row))]
    assert len(losses) == 8 * len("1+2=3]")
    assert watch.metrics[0]["train/loss/imitation"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_imitation_alone_learns_the_solutions(policy: Policy) -> None:
    watch = Watch()
    fit(ppo(policy, auxiliary=Imitation(5.0), optimizer=adam), 40, callbacks=[watch])
    first, last = watch.metrics[0]["train/loss/imitation"], watch.metrics[-1]["train/loss/imitation"]
    assert last < 0.5 * first


def test_solutions_are_tokenised_apart_and_cut_with_a_warning(policy: Policy) -> None:
    model = ppo(policy, rollout=Generation(1, max_new_tokens=4))
    tokenizer = model.policy.build().tokenizer
    prompts = [Prompt("a", "1+2=", completion="3"), Prompt("b", "1+1=", completion="1+1=2")]
    watch = Watch()
    fit(model, 1, batch_size=2, callbacks=[watch])
    with pytest.warns(UserWarning, match="1 of 2 worked solutions are longer than max_new_tokens=4"):
        found = worked_solutions(model, prompts, watch.batches[0].rollout)
    assert tokenizer.convert_ids_to_tokens(found.response_ids[0][found.mask[0]].tolist()) == ["3", "</s>"]
    assert tokenizer.convert_ids_to_tokens(found.response_ids[1].tolist()) == ["1", "+", "1", "="]
    assert found.truncated.tolist() == [False, True]
    with pytest.raises(ValueError, match="prompt 'c' has no completion"):
        worked_solutions(model, [*prompts, Prompt("c", "1+1=", "2")], watch.batches[0].rollout)


def test_wrong_settings_are_named(policy: Policy) -> None:
    with pytest.raises(ValueError, match="Gae needs a critic"):
        ppo(policy, critic=None)
    with pytest.raises(ValueError, match="target_coef=-1"):
        Imitation(-1)
