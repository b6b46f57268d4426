"""RLGF's rollouts: switch times, who wrote which token and who learns from it, and the limits that are PPO or PPO++."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.llm_rl.conftest import CONFIG, Policy
from tests.llm_rl.test_actor_critic import fit, ppo
from tests.llm_rl.test_fine_tuner import Watch, adam, parameters
from zoo.language import LanguageModel, Lora
from zoo.language.generation import Completions, Sampling
from zoo.language.tokenizers import Characters
from zoo.llm_rl import guided
from zoo.llm_rl.advantages import GroupAdvantage
from zoo.llm_rl.batches import Minibatch, Rollout
from zoo.llm_rl.critic import Critic
from zoo.llm_rl.fine_tuner import PolicyFineTuner
from zoo.llm_rl.guided import Guided, learned_tokens, switch_times
from zoo.llm_rl.kl import Kl
from zoo.llm_rl.objectives import ClippedSurrogate
from zoo.llm_rl.rollouts import Generation

TWO = Critic(heads=("policy", "guide"))


@pytest.fixture
def guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LanguageModel]:
    """Another model, of the policy's vocabulary unless other characters are given."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))

    def make(known: str = "0", ascii: bool = True) -> LanguageModel:
        torch.manual_seed(1)
        file = tmp_path / f"{len(known)}.pt"
        model = LanguageModel(config=CONFIG, tokenizer=Characters(ascii)).build([known])
        torch.save({f"policy.{name}": value for name, value in model.state_dict().items()}, file)
        return LanguageModel(config=CONFIG, tokenizer=Characters(ascii), init_from=str(file))

    return make


def rlgf(policy: Policy, algo: Any, lora: Lora | None = None, **more: Any) -> PolicyFineTuner:
    rollout = Guided(algo, max_new_tokens=8, **more)
    return ppo(policy, lora, rollout=rollout, critic=Critic(heads=TWO.heads))


# --- switch times and masks ------------------------------------------------------------------------------------------


def test_switch_times_are_uniform_and_leave_a_token() -> None:
    chance = torch.from_numpy(np.random.default_rng(0).random((50_000, 2)))
    length = torch.full((50_000,), 5)
    share = torch.bincount(switch_times(length, chance, 0.8), minlength=6) / 50_000
    torch.testing.assert_close(share, torch.tensor([0.2, 0.2, 0.2, 0.2, 0.2, 0.0]), atol=0.01, rtol=0)
    assert (switch_times(length, chance, 0.0) == 0).all()
    assert set(switch_times(length, chance, 1.0).tolist()) == {1, 2, 3, 4}
    for short in (0, 1):
        assert (switch_times(torch.full((50_000,), short), chance, 1.0) == 0).all()


def test_a_fixed_switch_is_in_the_middle() -> None:
    chance = torch.tensor([[0.5, 0.99]] * 5 + [[0.9, 0.99]])
    assert switch_times(torch.tensor([0, 1, 2, 5, 6, 6]), chance, 0.8, "fixed").tolist() == [0, 0, 1, 2, 3, 0]


def test_worked_masks() -> None:
    mask, switch = torch.arange(6)[None] < 5, torch.tensor([2])
    own, valued = learned_tokens(mask, switch, aggrevated=False)
    assert own.int().tolist() == valued.int().tolist() == [[0, 0, 1, 1, 1, 0]]
    own, valued = learned_tokens(mask, switch, aggrevated=True)
    assert (own.int().tolist(), valued.int().tolist()) == ([[1, 1, 0, 0, 0, 0]], [[0, 0, 1, 1, 1, 0]])


# --- rollouts --------------------------------------------------------------------------------------------------------


class Made:
    """A rollout of 48 rows, and what was generated for it: by whom, from what, and with what result."""

    def __init__(self, source: Guided, policy: LanguageModel, monkeypatch: pytest.MonkeyPatch, number: int = 0) -> None:
        generate, self.calls = guided.generate, list[tuple[LanguageModel, Any, Completions]]()

        def watched(model: LanguageModel, prompts: Any, *args: Any) -> Completions:
            found = generate(model, prompts, *args)
            self.calls.append((model, prompts, found))
            return found

        monkeypatch.setattr(guided, "generate", watched)
        source.number = number
        prompts, keys = [[1, 5 + n % 3] for n in range(48 // source.group_size)], torch.arange(48 // source.group_size)
        self.rollout: Rollout = source(policy, prompts, keys, False)
        monkeypatch.setattr(guided, "generate", generate)


def ready(policy: Policy, source: Guided, **more: Any) -> tuple[Guided, LanguageModel]:
    learner = ppo(policy, rollout=source, critic=Critic(heads=TWO.heads), **more)
    learner.policy.build().eval()
    source.setup(learner)
    return source, learner.policy


@pytest.mark.parametrize("algo", ["ppo_pp", "aggrevated"])
def test_a_rollout_is_the_roll_in_up_to_the_switch_and_goes_on_from_there(
    policy: Policy, guide: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch, algo: Any
) -> None:
    source, model = ready(policy, Guided(algo, beta=1.0, guide=guide(), max_new_tokens=8))
    made = Made(source, model, monkeypatch)
    (first, prompts, roll_in), (second, starts, out) = made.calls
    assert (first is source.guide, second is model) == ((algo == "ppo_pp"),) * 2
    rollout, eos = made.rollout, model.end_tokens[0]
    assert rollout.own is not None
    assert rollout.valued is not None
    inside = rollout.own if algo == "aggrevated" else rollout.mask & ~rollout.own
    switch = inside.sum(1).tolist()
    assert torch.equal(rollout.valued, rollout.mask & ~inside)
    lengths = roll_in.mask.sum(1).tolist()
    assert all(1 <= h < length for h, length in zip(switch, lengths, strict=True) if length > 1)
    assert len(set(switch)) > 4
    for row, h in enumerate(switch):
        written = rollout.response_ids[row][rollout.mask[row]].tolist()
        behind = out.ids[row][out.mask[row]].tolist()
        assert starts[row] == prompts[row] + roll_in.ids[row][:h].tolist()
        assert written == (roll_in.ids[row][:h].tolist() + behind)[:8]
        assert bool(rollout.truncated[row]) == (written[-1] != eos)
        assert eos not in written[:-1]
    assert rollout.truncated.any()
    assert rollout.head is not None
    assert (rollout.head == (algo == "aggrevated")).all()


def test_samples_without_roll_in_start_at_the_prompt(policy: Policy, guide: Callable[..., LanguageModel]) -> None:
    source, model = ready(policy, Guided("aggrevated", beta=0.0, guide=guide(), max_new_tokens=8))
    rollout = source(model, [[1, 5]] * 3, torch.arange(3), False)
    assert rollout.own is not None
    assert not rollout.own.any()  # all of it is the guide's
    alone = Generation(1, 8)(source.guide or model, [[1, 5]] * 3, torch.arange(3), False)
    assert torch.equal(rollout.response_ids, alone.response_ids)


def test_each_side_has_its_own_sampling(policy: Policy, guide: Callable[..., LanguageModel]) -> None:
    greedy = Sampling(max_new_tokens=3, temperature=0.0)
    source, model = ready(policy, Guided("ppo_pp", 1.0, None, guide(), greedy, max_new_tokens=8))
    rollout = source(model, [[1, 20]] * 40, torch.arange(40), False)
    assert rollout.own is not None
    switch = (rollout.mask & ~rollout.own).sum(1)
    assert set(switch.tolist()) == {1, 2}  # of three tokens that the guide writes
    assert rollout.response_ids[:, 0].unique().numel() == 1
    assert rollout.response_ids[:, 2].unique().numel() > 5


def test_a_guide_that_is_the_policy_writes_as_the_policy_does(policy: Policy) -> None:
    """But for roll-ins of EOS alone, with probability e, of which nothing is kept: another first token is drawn."""
    beta, count = 0.8, 6000
    source, model = ready(policy, Guided("ppo_pp", beta=beta, max_new_tokens=2))
    rollout = source(model, [[1, 5]] * count, torch.arange(count), False)
    with torch.no_grad():
        size, eos = len(model.tokenizer), model.end_tokens[0]
        first = model.network(torch.tensor([[1, 5]])).logits[0, -1].softmax(-1)
        second = model.network(torch.tensor([[1, 5, token] for token in range(size)])).logits[:, -1].softmax(-1)
    e = first[eos].clone()
    first = first * (1 - beta + beta * e) + beta * first * (torch.arange(size) != eos)
    assert rollout.own is not None
    assert float((~rollout.own[:, 0]).float().mean()) == pytest.approx(beta * (1 - float(e)), abs=0.015)
    seen = torch.bincount(rollout.response_ids[:, 0], minlength=size) / count
    torch.testing.assert_close(seen, first, atol=0.01, rtol=0)
    first[eos] = 0
    seen = torch.bincount(rollout.response_ids[:, 1][rollout.mask[:, 1]], minlength=size) / count
    torch.testing.assert_close(seen, first @ second, atol=0.01, rtol=0)


def test_completions_of_a_group_share_their_roll_in(
    policy: Policy, guide: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Guided("ppo_pp", beta=1.0, guide=guide(), critic="group_baseline", group_size=4, max_new_tokens=8)
    learner = ppo(policy, rollout=source, critic=None, advantage=GroupAdvantage())
    learner.policy.build().eval()
    source.setup(learner)
    made = Made(source, learner.policy, monkeypatch)
    (_, prompts, _), (_, starts, _) = made.calls
    assert (len(prompts), len(starts)) == (12, 48)
    for at in range(0, 48, 4):
        assert all(start == starts[at] for start in starts[at : at + 4])
    assert len({tuple(start) for start in starts}) > 6
    assert made.rollout.own is not None
    own = made.rollout.response_ids * made.rollout.own
    assert all(len({tuple(row) for row in own[at : at + 4].tolist()}) > 1 for at in range(0, 48, 4))
    fit(learner, 1)


# --- which algorithm -------------------------------------------------------------------------------------------------


def chosen(algo: Any, tau: float | None = None, seed: int = 0, count: int = 2000) -> list[bool]:
    source = Guided(algo, tau=tau, seed=seed)
    return [source.takes_aggrevated(number) for number in range(count)]


def test_tau_takes_lols_from_aggrevated_to_ppo_and_d2lols_changes_at_it() -> None:
    assert chosen("lols", 0.0) == chosen("aggrevated") == [True] * 2000
    assert chosen("lols", 1.0) == chosen("ppo_pp") == chosen("d2lols", 0) == [False] * 2000
    assert sum(chosen("lols")) / 2000 == pytest.approx(0.2, abs=0.03)
    assert chosen("lols") != chosen("lols", seed=1)
    assert chosen("d2lols", 7) == [True] * 7 + [False] * 1993
    assert chosen("d2lols") == [True] * 20 + [False] * 1980


@pytest.mark.parametrize("algo", ["lols", "d2lols"])
def test_the_number_of_a_rollout_counts_rollouts_and_outlasts_a_checkpoint(
    policy: Policy, guide: Callable[..., LanguageModel], tmp_path: Path, algo: Any
) -> None:
    """Two optimiser steps a rollout; the checkpoint is of the middle of the second."""
    more: dict[str, Any] = {"tau": 0.5, "seed": 4} if algo == "lols" else {"tau": 2}
    wanted = {"lols": [0, 1, 0, 1], "d2lols": [1, 1, 0, 0]}[algo]
    assert chosen(algo, count=4, **more) == [bool(x) for x in wanted]
    watch, whole, half, rest = Watch(), *(rlgf(policy, algo, guide=guide(), **more) for _ in range(3))
    for learner in (whole, half, rest):
        learner.num_iterations, learner.optimizer = 2, adam
    fit(whole, 8, callbacks=[watch])
    assert [head_of(batch) for batch in watch.batches] == [head for head in wanted for _ in range(2)]
    fit(half, 3).save_checkpoint(tmp_path / "half.ckpt")
    assert not any("guide.network" in name for name in torch.load(tmp_path / "half.ckpt")["state_dict"])
    fit(rest, 8, resume=tmp_path / "half.ckpt")
    assert torch.equal(parameters(rest), parameters(whole))


def head_of(batch: Minibatch) -> int:
    assert batch.rollout.head is not None
    (head,) = batch.rollout.head.unique().tolist()
    return int(head)


# --- learning --------------------------------------------------------------------------------------------------------


def test_without_roll_ins_ppo_plus_plus_is_ppo(policy: Policy) -> None:
    plain = ppo(policy, rollout=Generation(1, max_new_tokens=8), minibatches=2)
    same = ppo(policy, rollout=Guided("ppo_pp", beta=0.0, max_new_tokens=8), minibatches=2)
    for learner in (plain, same):
        fit(learner, 4)
    assert torch.equal(parameters(plain), parameters(same))


@pytest.mark.parametrize(("algo", "tau", "same_as"), [("lols", 1.0, "ppo_pp"), ("lols", 0.0, "aggrevated")])
def test_limits_of_lols_learn_the_same(policy: Policy, algo: Any, tau: float, same_as: Any) -> None:
    found = []
    for learner in (rlgf(policy, algo, tau=tau), rlgf(policy, same_as)):
        fit(learner, 2)
        found.append(parameters(learner))
    assert torch.equal(*found)


@pytest.mark.parametrize("algo", ["ppo_pp", "aggrevated"])
def test_the_policy_learns_from_its_own_tokens_and_the_critic_from_those_behind_the_switch(
    policy: Policy, algo: Any
) -> None:
    watch, learner = Watch(), rlgf(policy, algo, beta=0.7)
    fit(learner, 1, callbacks=[watch])
    (batch,) = watch.batches
    assert batch.rollout.own is not None
    assert batch.value_coefficient is not None
    assert torch.equal(batch.coefficient != 0, batch.rollout.own)
    assert torch.equal(batch.value_coefficient != 0, batch.rollout.valued)
    log_probs = torch.randn(batch.advantage.shape).requires_grad_()
    learner.objective(log_probs, batch, None)[0].backward()
    assert log_probs.grad is not None
    assert (log_probs.grad[~batch.rollout.own] == 0).all()
    assert (log_probs.grad[batch.rollout.own] != 0).any()
    assert learner.heads is not None
    learns, rests = ("guide", "policy") if algo == "aggrevated" else ("policy", "guide")
    start = ppo(policy, critic=TWO)
    fit(start, 1, limit_train_batches=0)  # makes the heads from the same seed
    assert start.heads is not None
    for name, equal in ((learns, False), (rests, True)):
        assert torch.equal(learner.heads[name].output.weight, start.heads[name].output.weight) == equal


def test_the_guides_tokens_are_not_charged_for_leaving_the_reference(
    policy: Policy, guide: Callable[..., LanguageModel]
) -> None:
    """With lam 1, the last token's advantage is its own reward less its value: the guide's has no penalty."""
    kl = ClippedSurrogate(kl=Kl(5.0, placement="reward"))
    watch, learner = Watch(), rlgf(policy, "aggrevated", beta=1.0, guide=guide())
    learner.objective, learner.optimizer = kl, adam
    fit(learner, 6, callbacks=[watch])
    batch = watch.batches[-1]
    last = (batch.rollout.mask.sum(1) - 1)[:, None]
    assert batch.value is not None
    assert batch.old is not None
    assert batch.reference is not None
    gap = (batch.old - batch.reference).gather(1, last)
    assert gap.abs().max() > 0.02
    reward = (batch.advantage + batch.value).gather(1, last)[:, 0]
    texts = learner.policy.tokenizer.batch_decode(batch.rollout.response_ids * batch.rollout.mask)
    share = torch.tensor([text.count("7") for text in texts]) / batch.rollout.mask.sum(1)
    torch.testing.assert_close(reward, share, atol=1e-5, rtol=0)


def test_the_start_is_shared_with_the_reference_and_with_adapters(policy: Policy) -> None:
    learner = rlgf(policy, "ppo_pp")
    learner.objective = ClippedSurrogate(kl=Kl(0.1))
    fit(learner, 1)
    assert learner.start is not None
    assert learner.rollout._start is learner.start  # type: ignore[attr-defined]
    adapted = rlgf(policy, "aggrevated", Lora(r=2, alpha=4, dropout=0.0), beta=0.0)
    adapted.optimizer = adam
    watch = Watch()
    fit(adapted, 3, callbacks=[watch])
    assert adapted.start is None
    rollout, start = watch.batches[-1].rollout, policy().build()
    prompts = [row[mask].tolist() for row, mask in zip(rollout.prompt_ids, rollout.prompt_mask, strict=True)]
    keys = rollout.key.numpy().astype("uint64")[:, None]
    again = guided.generate(start, prompts, keys, Sampling(8))
    width = rollout.mask.shape[1]
    assert torch.equal(again.ids[:, :width] * rollout.mask, rollout.response_ids)


# --- wrong settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algo": "ppo"}, "algo='ppo': must be one of ppo_pp, aggrevated, lols, d2lols"),
        ({"beta": 1.1}, r"beta=1.1: must be in \[0, 1\]"),
        ({"beta": -0.1}, r"beta=-0.1: must be in \[0, 1\]"),
        ({"algo": "lols", "tau": 1.5}, r"tau=1.5: must be in \[0, 1\] for lols"),
        ({"algo": "d2lols", "tau": 2.5}, "tau=2.5: must be a whole number"),
        ({"algo": "d2lols", "tau": -1}, "tau=-1: must be a whole number"),
        ({"algo": "ppo_pp", "tau": 0.5}, "algo='ppo_pp' has no use for it"),
        ({"switch": "never"}, "switch='never'"),
        ({"critic": "group_baseline"}, "group_size=1"),
        ({"critic": "group_baseline", "algo": "aggrevated", "group_size": 4}, "use algo ppo_pp"),
        ({"temperature": 0.0}, "temperature=0"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Guided(**settings)


def test_parts_that_do_not_go_together_are_named(policy: Policy, guide: Callable[..., LanguageModel]) -> None:
    with pytest.raises(ValueError, match=r"critic.heads=\['policy'\]: algo lols values the guide apart"):
        ppo(policy, rollout=Guided("lols"), critic=Critic())
    with pytest.raises(ValueError, match="needs a critic"):
        ppo(policy, rollout=Guided("ppo_pp", group_size=4), critic=None, advantage=GroupAdvantage())
    with pytest.raises(ValueError, match="goes without critic"):
        ppo(policy, rollout=Guided("ppo_pp", critic="group_baseline", group_size=4))
    with pytest.raises(ValueError, match=r"guide.kind is 'encoder'"):
        Guided(guide=LanguageModel(config=CONFIG, tokenizer=Characters(), kind="encoder"))
    with pytest.raises(ValueError, match="guide has no pretrained weights"):
        Guided(guide=LanguageModel(config=CONFIG, tokenizer=Characters()))
    with pytest.raises(ValueError, match=r"a vocabulary of 8 tokens, the policy one of 100, and they differ"):
        fit(ppo(policy, rollout=Guided(guide=guide("xyz", False))), 1)
