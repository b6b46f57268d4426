"""ReMax: rewards against those of the likeliest completions."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.test_llm_rl import Keep
from tests.llm_rl.conftest import Policy
from tests.llm_rl.test_advantages import scores_of
from tests.llm_rl.test_fine_tuner import ShareOf, Watch, adam, fit, parameters, tuner
from zoo.language import Lora
from zoo.language.generation import Sampling, generate
from zoo.llm_rl import PolicyFineTuner, ReMax
from zoo.llm_rl.advantages import greedy_advantage
from zoo.llm_rl.batches import Rollout, Sample
from zoo.llm_rl.guided import Guided
from zoo.llm_rl.kl import Kl
from zoo.llm_rl.objectives import ClippedSurrogate
from zoo.llm_rl.rewards import RandomReward, Reward
from zoo.llm_rl.rollouts import Generation, RolloutSource, greedy_keys, sample_keys
from zoo.llm_rl.selection import DynamicSampling

PROMPTS = [[3, 11, 4, 12], [5, 11, 6], [2, 12]]


class Length(Reward):
    """Tokens of a completion, None for those of more than ``most``."""

    def __init__(self, most: int = 99) -> None:
        self.most = most
        self.seen: list[list[Sample]] = []

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        self.seen.append(list(samples))
        return [float(sample.tokens) if sample.tokens <= self.most else None for sample in samples]


def remax(policy: Policy, lora: Lora | None = None, **more: Any) -> PolicyFineTuner:
    rollout = Generation(group_size=1, max_new_tokens=10)
    return tuner(policy, lora, **{"advantage": ReMax(), "rollout": rollout, **more})


def untrained(policy: Policy) -> PolicyFineTuner:
    model = remax(policy)
    model.policy.build()
    return model


def test_worked_numbers() -> None:
    reward, greedy = torch.tensor([1.0, 0.0, math.nan, 0.25]), torch.tensor([0.5, 1.0, 1.0, math.nan])
    assert greedy_advantage(reward, greedy).tolist() == [0.5, -1.0, 0.0, 0.0]
    scores = scores_of([1.0, 0.0, math.nan, 0.25], [7, 7, 3, 3])
    assert ReMax()(replace(scores, greedy=greedy)).tolist() == [0.5, -1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="no rewards of likeliest completions"):
        ReMax()(scores)
    with pytest.raises(ValueError, match="must be finite"):
        ReMax()(replace(scores_of([math.inf], [7]), greedy=torch.ones(1)))


@pytest.mark.parametrize("at_once", [None, 2])
def test_the_likeliest_completions_are_one_a_prompt_with_streams_of_their_own(
    policy: Policy, at_once: int | None
) -> None:
    model, keys = policy().build().eval(), torch.tensor([4, 9, -2])
    source = Generation(group_size=3, max_new_tokens=8, temperature=0.7, top_k=2, prompts_at_once=at_once)
    rows = source.greedy(model, PROMPTS, keys, together=False)
    wanted = generate(model, PROMPTS, keys.numpy().astype("uint64")[:, None], Sampling(8, temperature=0))
    width = rows.mask.shape[1]
    assert torch.equal(rows.mask, wanted.mask[:, :width])
    assert torch.equal(rows.response_ids[rows.mask], wanted.ids[wanted.mask])
    assert rows.group.tolist() == [4, 9, -2]
    assert rows.sampled is None
    sampled = sample_keys(keys, 3)
    assert set(rows.key.tolist()).isdisjoint(sampled.flatten().tolist())
    assert torch.equal(rows.key, greedy_keys(keys, 3)[:, 0])
    assert source.sampling == Sampling(8, 0.7, 2)


def test_a_fit_compares_with_the_likeliest_completion_of_the_same_prompt(policy: Policy) -> None:
    watch, reward = Watch(), Length()
    model = remax(policy, rewards={"length": reward}, rollout=Generation(group_size=2, max_new_tokens=10))
    fit(model, 1, callbacks=[watch])
    sampled, likeliest = reward.seen
    assert (len(sampled), len(likeliest)) == (12, 6)
    before = policy().build().eval()
    batch, metrics = watch.batches[0], watch.metrics[0]
    lengths = {}
    for sample in likeliest:
        made = generate(
            before,
            model.encode([sample.prompt]),
            torch.zeros(1, 1).numpy().astype("uint64"),
            Sampling(10, temperature=0),
        )
        lengths[sample.prompt.id] = int(made.mask.sum())
    by_key = {sample.key: sample.tokens - lengths[sample.prompt.id] for sample in sampled}
    found = {key: row[0].item() for key, row in zip(batch.rollout.key.tolist(), batch.advantage, strict=True)}
    assert found == {key: value for key, value in by_key.items() if value or key in found}
    assert any(found.values())
    assert metrics["train/reward_greedy"] == pytest.approx(sum(lengths.values()) / 6)
    tokens = sum(sample.tokens for sample in sampled)
    assert metrics["train/tokens/generated"] == tokens + sum(lengths.values())
    assert metrics["train/tokens/trained"] <= tokens


def test_it_learns_with_one_completion_a_prompt(policy: Policy) -> None:
    watch = Watch()
    fit(remax(policy, optimizer=adam), 40, batch_size=24, callbacks=[watch])
    rewards = [metrics["train/reward"] for metrics in watch.metrics]
    assert sum(rewards[:3]) / 3 < 0.2
    assert sum(rewards[-3:]) / 3 > 0.4


def test_what_cannot_be_compared_teaches_nothing(policy: Policy) -> None:
    """No likeliest completion has a reward, so all advantages are 0."""

    class Sampled(Reward):
        def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
            return [1.0 if len(samples) == 12 else None] * len(samples)

    watch = Watch()
    model = remax(policy, rewards={"some": Sampled()}, rollout=Generation(group_size=2, max_new_tokens=10))
    fit(model, 1, callbacks=[watch])
    assert torch.equal(parameters(model), parameters(untrained(policy)))
    assert watch.metrics[0]["train/reward"] == 1
    assert "train/reward_greedy" not in watch.metrics[0]


def test_a_reward_by_chance_is_drawn_apart(policy: Policy) -> None:
    watch = Watch()
    fit(remax(policy, rewards={"coin": RandomReward()}), 1, batch_size=24, callbacks=[watch])
    assert watch.batches[0].advantage.abs().sum() > 0


def test_the_penalty_in_the_reward_is_the_sampled_completion_s_alone(policy: Policy) -> None:
    watch, kl = Watch(), Kl(0.5, placement="reward")
    fit(remax(policy, rewards={"share": ShareOf()}, objective=ClippedSurrogate(kl=kl)), 3, callbacks=[watch])
    batch = watch.batches[-1]
    assert batch.old is not None
    assert batch.reference is not None
    penalty = 0.5 * ((batch.old - batch.reference) * batch.rollout.mask).sum(1)
    assert penalty.abs().max() > 1e-3
    # what is left is a difference of two shares of a character
    share = batch.advantage[:, 0] + penalty
    tokenizer, own = policy().build().tokenizer, batch.rollout
    texts = tokenizer.batch_decode(own.response_ids)
    mine = torch.tensor([text.count("7") for text in texts]) / own.mask.sum(1)
    others = torch.tensor([n / d for d in range(1, 11) for n in range(d + 1)])
    assert ((mine - share)[:, None] - others).abs().amin(1).max() < 1e-5


def test_dynamic_sampling_takes_the_baseline_along(policy: Policy) -> None:
    watch, reward = Watch(), Length()
    rollout = Generation(group_size=4, max_new_tokens=10)
    model = remax(policy, rewards={"length": reward}, rollout=rollout, dynamic_sampling=DynamicSampling())
    fit(model, 1, batch_size=9, callbacks=[watch])
    likeliest = {s.prompt.id: s.tokens for samples in reward.seen if len(samples) == 9 for s in samples}
    wanted = {
        s.key: s.tokens - likeliest[s.prompt.id] for samples in reward.seen for s in samples if len(samples) == 36
    }
    batch = watch.batches[0]
    assert len(reward.seen) > 2
    found = dict(zip(batch.rollout.key.tolist(), batch.advantage[:, 0].tolist(), strict=True))
    assert found == {key: wanted[key] for key in found}
    assert len(set(found.values())) > 2


def test_a_source_without_likeliest_completions_is_refused(policy: Policy) -> None:
    class Own(RolloutSource):
        group_size, sampling = 2, Sampling(10)

        def __call__(self, *_: Any) -> Rollout:
            raise AssertionError

    with pytest.raises(ValueError, match=r"advantage ReMax needs the likeliest completion of each prompt.*Own"):
        remax(policy, rollout=Own())
    with pytest.raises(NotImplementedError, match="Own"):
        Own().greedy(policy(), [[1]], torch.zeros(1), together=False)
    tuner(policy, rollout=Own())


def test_with_a_guide_the_baseline_is_the_policy_s(policy: Policy) -> None:
    model, keys = policy().build().eval(), torch.tensor([4, 9, -2])
    guided = Guided(critic="group_baseline", group_size=2, max_new_tokens=8).greedy(model, PROMPTS, keys, False)
    alone = Generation(group_size=2, max_new_tokens=8).greedy(model, PROMPTS, keys, False)
    assert torch.equal(guided.response_ids, alone.response_ids)


def test_two_ranks_learn_what_one_learns(policy: Policy, tmp_path: Path) -> None:
    keep: dict[str, Any] = {"callbacks": [Keep(tmp_path)]}
    parts: dict[str, Any] = {"rewards": {"share": ShareOf("b")}}
    fit(remax(policy, **parts), 2, batch_size=6, **keep)
    fit(remax(policy, **parts), 2, batch_size=3, devices=2, strategy="ddp_fork", **keep)
    one, metrics = torch.load(tmp_path / "1_0.pt")
    assert metrics["train/reward_greedy"] > 0
    for rank in range(2):
        two, found = torch.load(tmp_path / f"2_{rank}.pt")
        torch.testing.assert_close(two, one, atol=2e-5, rtol=0)
        assert found == pytest.approx(metrics, abs=1e-4)
    assert (one - parameters(untrained(policy))).norm() > 0.01
