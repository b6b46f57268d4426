"""CARFT through the pipeline: both signals against their formulas, graded rewards, and its limits ReFT and PPO."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch import multiprocessing as mp
from torch.nn.functional import cosine_similarity

from datamodules.batches import Prompt
from tests.llm_rl.conftest import Policy
from tests.llm_rl.test_actor_critic import fit, ppo
from tests.llm_rl.test_fine_tuner import Watch, parameters
from zoo.llm_rl.advantages import GroupAdvantage
from zoo.llm_rl.batches import Minibatch, Rollout, Sample
from zoo.llm_rl.carft import AnnotatedContrast
from zoo.llm_rl.contrast import common_masks, negative_losses, positive_losses
from zoo.llm_rl.critic import Critic
from zoo.llm_rl.fine_tuner import PolicyFineTuner
from zoo.llm_rl.imitation import worked_solutions
from zoo.llm_rl.rewards import NumericAnswer, Reward
from zoo.llm_rl.rollouts import Generation

CRITIC = {"embedding": 64}
PROMPTS = [
    Prompt("a", "1+2=", "3", "2+1=3"),
    Prompt("b", "1+1=", "2", "1+1=2"),
    Prompt("c", "0+2=", "2", "2+0=2"),
    Prompt("d", "3+3=", "6", "3+3=6"),
]
WRITTEN = ["1+2=3", "1+1=7", "a0b0=2", "no"]


class First(Reward):
    """1 for completions that begin with a digit, else 0."""

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [float(sample.text[:1].isdigit()) for sample in samples]


def carft(policy: Policy, auxiliary: AnnotatedContrast | None, **more: Any) -> PolicyFineTuner:
    return ppo(policy, **{"critic": Critic(**CRITIC), "auxiliary": auxiliary, "rewards": {"answer": First()}, **more})


def built(policy: Policy, auxiliary: AnnotatedContrast, **more: Any) -> PolicyFineTuner:
    """A learner with its heads, without a fit."""
    learner = carft(policy, auxiliary, rewards={"answer": NumericAnswer()}, **more)
    learner.policy.build()
    torch.manual_seed(0)
    assert learner.critic is not None
    learner.heads = learner.critic.build(learner.policy.hidden_size)
    return learner.eval()


def written(learner: PolicyFineTuner, texts: Sequence[str] = WRITTEN) -> Rollout:
    """A rollout of the prompts with these completions."""
    prompts = [prompt._replace(completion=text) for prompt, text in zip(PROMPTS, texts, strict=False)]
    ids = torch.tensor(learner.encode(prompts))
    row = torch.arange(len(prompts))
    empty = Rollout(ids, ids > -1, ids[:, :0], ids[:, :0] > -1, row, row < 0, row)
    return worked_solutions(learner, prompts, empty)


def prepared(learner: PolicyFineTuner, rollout: Rollout, **weights: float) -> tuple[Tensor, dict[str, Tensor]]:
    samples = learner.read(PROMPTS[: len(rollout.mask)], *rollout[2:4], rollout.truncated, rollout.key)
    learner.weights |= weights
    reward, parts = learner.score(samples)
    assert learner.auxiliary is not None
    with torch.no_grad():
        return learner.auxiliary.prepare(learner, samples, rollout, reward, parts)


def term(learner: PolicyFineTuner, rollout: Rollout, extra: dict[str, Tensor]) -> Tensor:
    """The loss of all rows as one minibatch."""
    assert learner.auxiliary is not None
    ones, weight = rollout.mask.float(), extra["weight"]
    coefficient = weight / weight.sum(0).clamp(min=1e-8)
    batch = Minibatch(rollout, ones, ones, value_coefficient=ones, row_coefficient=coefficient, extra=extra)
    return learner.auxiliary.loss(learner, learner.states(learner.policy, rollout), batch)[0]


def embeddings(learner: PolicyFineTuner, rollout: Rollout, chain: Tensor) -> Tensor:
    """Each row's by itself, from transformers' own hidden states."""
    assert learner.heads is not None
    found = []
    for row in range(len(rollout.mask)):
        prompt, text = rollout.prompt_ids[row], rollout.response_ids[row][rollout.mask[row]]
        states = learner.policy.decoder(torch.cat([prompt, text])[None]).last_hidden_state[0, len(prompt) - 1 : -1]
        value, embedding = learner.heads["policy"](states)
        own = chain[row][rollout.mask[row]]
        found.append((value[own].softmax(0)[:, None] * embedding[own]).sum(0))
    return torch.stack(found)


# --- the signals -----------------------------------------------------------------------------------------------------


def test_the_positive_term_is_the_mean_over_right_completions(policy: Policy) -> None:
    learner = built(policy, AnnotatedContrast(c=0.5), rollout=Generation(1, 8))
    rollout = written(learner)
    reward, extra = prepared(learner, rollout)
    assert reward.tolist() == pytest.approx([1, 0.1, 1, 0])
    annotated = worked_solutions(learner, PROMPTS, rollout)
    first = embeddings(learner, annotated, annotated.mask)
    torch.testing.assert_close(extra["annotated"], first, atol=1e-5, rtol=0)
    losses = positive_losses(first, embeddings(learner, rollout, rollout.mask))
    assert term(learner, rollout, extra).item() == pytest.approx(losses[[0, 2]].mean().item() / 2, abs=1e-5)


def test_only_numbers_make_up_the_chain(policy: Policy) -> None:
    learner = built(policy, AnnotatedContrast(c=1.0, emb_tokens="numbers"), rollout=Generation(1, 8))
    rollout = written(learner)
    _, extra = prepared(learner, rollout)
    texts = [[learner.policy.tokenizer.convert_ids_to_tokens(int(i)) for i in row] for row in rollout.response_ids]
    numbers = torch.tensor([[text.isdigit() for text in row] for row in texts])
    assert numbers.sum(1).tolist() == [3, 3, 3, 0]
    assert torch.equal(extra["chain"], numbers)
    annotated = worked_solutions(learner, PROMPTS, rollout)
    chain = torch.tensor([[True, False, True, False, True, False]] * 4)
    losses = positive_losses(embeddings(learner, annotated, chain), embeddings(learner, rollout, numbers))
    assert term(learner, rollout, extra).item() == pytest.approx(losses[[0, 2]].mean().item(), abs=1e-5)


@pytest.mark.parametrize("critic", [Critic(), None])
def test_mean_states_compare_chains_with_or_without_a_critic(policy: Policy, critic: Critic | None) -> None:
    auxiliary = AnnotatedContrast(c=1.0, emb_source="mean_hidden", partial_reward="embedding")
    more: dict[str, Any] = {"rollout": Generation(1, 8)}
    if critic is None:
        more = {"rollout": Generation(4, 8), "advantage": GroupAdvantage(), "critic": None}
    learner = carft(policy, auxiliary, **{"critic": critic, "rewards": {"answer": NumericAnswer()}, **more}).eval()
    learner.policy.build()
    rollout = written(learner)
    reward, extra = prepared(learner, rollout)

    def means(rollout: Rollout) -> Tensor:
        found = []
        for prompt, text, mask in zip(rollout.prompt_ids, rollout.response_ids, rollout.mask, strict=True):
            ids = torch.cat([prompt, text[mask]])
            found.append(learner.policy.decoder(ids[None]).last_hidden_state[0, len(prompt) - 1 : -1].mean(0))
        return torch.stack(found)

    first, second = means(worked_solutions(learner, PROMPTS, rollout)), means(rollout)
    graded = 0.1 * cosine_similarity(first, second) + 0.2
    torch.testing.assert_close(reward, torch.tensor([1, graded[1].item(), 1, 0]), atol=1e-5, rtol=0)
    wanted = positive_losses(first, second)[[0, 2]].mean()
    assert term(learner, rollout, extra).item() == pytest.approx(wanted.item(), abs=1e-4)
    if critic is None:
        fit(learner, 2)


@pytest.mark.parametrize("signal", ["neg", "both"])
def test_the_negative_term_parts_what_wrong_completions_share_from_the_rest(policy: Policy, signal: Any) -> None:
    learner = built(policy, AnnotatedContrast(signal, c=1.0), rollout=Generation(1, 8))
    rollout = written(learner)
    _, extra = prepared(learner, rollout)
    annotated = worked_solutions(learner, PROMPTS, rollout)
    shared, common = common_masks(annotated.response_ids, annotated.mask, rollout.response_ids, rollout.mask)
    assert common[1].int().tolist() == [1, 1, 1, 1, 0, 1, 0]  # 1+1= and the end
    parts = (annotated, annotated.mask & ~shared), (rollout, common), (rollout, rollout.mask & ~common)
    losses = negative_losses(*(embeddings(learner, *part) for part in parts))
    wanted = losses[[1, 3]].mean()  # both end as the annotated chain does
    if signal == "both":
        positive = positive_losses(extra["annotated"], embeddings(learner, rollout, rollout.mask))
        wanted = (wanted + positive[[0, 2]].mean()) / 2
    assert term(learner, rollout, extra).item() == pytest.approx(wanted.item(), abs=1e-5)


def test_the_official_mask_sums_over_all_if_one_is_right(policy: Policy) -> None:
    auxiliary = AnnotatedContrast(c=1.0, mask_mode="official_broadcast")
    learner = built(policy, auxiliary, rollout=Generation(1, 8))
    rollout = written(learner)
    _, extra = prepared(learner, rollout)
    losses = positive_losses(extra["annotated"], embeddings(learner, rollout, rollout.mask))
    assert term(learner, rollout, extra).item() == pytest.approx(losses.sum().item(), abs=1e-4)
    nobody = extra | {"weight": torch.zeros(4, 1)}
    assert term(learner, rollout, nobody).item() == 0


def test_a_completion_that_is_the_annotated_chain_has_its_embedding(policy: Policy) -> None:
    learner = built(policy, AnnotatedContrast(c=1.0, partial_reward="embedding"), rollout=Generation(1, 8))
    rollout = written(learner, [str(PROMPTS[0].completion)])
    reward, extra = prepared(learner, rollout)
    again = embeddings(learner, rollout, rollout.mask)
    torch.testing.assert_close(extra["annotated"], again, atol=1e-5, rtol=0)
    with pytest.warns(UserWarning, match="no negatives"):
        loss = term(learner, rollout, extra)
    assert loss.item() == pytest.approx((1 - 0.9) / 0.2, abs=1e-4)
    assert reward.tolist() == [1]


def test_prompt_tokens_and_dropped_rows_have_no_part_in_the_chain(policy: Policy) -> None:
    learner = built(policy, AnnotatedContrast(c=1.0), rollout=Generation(1, 8))
    rollout = written(learner)
    _, extra = prepared(learner, rollout)
    states = learner.states(learner.policy, rollout).detach().requires_grad_()
    assert len(states) == rollout.mask.sum()  # the prompt's own are not among them
    ones, weight = rollout.mask.float(), extra["weight"]
    valued = ones * torch.tensor([1.0, 1, 1, 0])[:, None]  # the last only fills up a pass
    batch = Minibatch(rollout, ones, ones, value_coefficient=valued, row_coefficient=weight / 2, extra=extra)
    assert learner.auxiliary is not None
    loss = learner.auxiliary.loss(learner, states, batch)[0]
    own = embeddings(learner, rollout, rollout.mask)[:3]
    assert loss.item() == pytest.approx(positive_losses(extra["annotated"][:3], own)[[0, 2]].mean().item(), abs=1e-5)
    loss.backward()
    last = torch.arange(4)[:, None].expand_as(rollout.mask)[rollout.mask] == 3
    assert states.grad is not None
    assert (states.grad[last] == 0).all()
    assert (states.grad[~last] != 0).any()


def _work(rank: int, folder: Path, learner: PolicyFineTuner) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    rows = [torch.arange(3), torch.arange(3, 4)][rank]
    whole = written(learner)
    _, extra = prepared(learner, whole)
    ones, weight = whole.mask[rows].float(), extra["weight"] / extra["weight"].sum(0)
    batch = Minibatch(
        whole.take(rows),
        ones,
        ones,
        value_coefficient=ones,
        row_coefficient=weight[rows] * 2,  # data parallelism averages
        extra={name: values[rows] for name, values in extra.items()},
    )
    assert learner.auxiliary is not None
    learner.auxiliary.loss(learner, learner.states(learner.policy, batch.rollout), batch)[0].backward()
    grads = torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None])
    distributed.all_reduce(grads)
    torch.save(grads / 2, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_two_ranks_with_unequal_rows_have_the_gradient_of_one(policy: Policy, tmp_path: Path) -> None:
    learner = built(policy, AnnotatedContrast(c=1.0), rollout=Generation(1, 8))
    rollout = written(learner)
    term(learner, rollout, prepared(learner, rollout)[1]).backward()
    expected = torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None])
    learner.zero_grad()
    mp.start_processes(_work, (tmp_path, learner), nprocs=2, start_method="fork")
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected, atol=1e-5, rtol=1e-4)
    assert expected.norm() > 1e-3


# --- graded rewards --------------------------------------------------------------------------------------------------


def test_wrong_numbers_get_a_partial_reward(policy: Policy) -> None:
    texts = ["1+2=4", "2", "7", "no"]
    fixed = built(policy, AnnotatedContrast("none", partial_reward="fixed"), rollout=Generation(1, 8))
    assert prepared(fixed, written(fixed, texts))[0].tolist() == pytest.approx([0.1, 1, 0.1, 0])
    assert prepared(fixed, written(fixed, texts), answer=2.0)[0].tolist() == pytest.approx([0.2, 2, 0.2, 0])
    graded = built(policy, AnnotatedContrast("none", partial_reward="embedding"), rollout=Generation(1, 8))
    rollout = written(graded, texts)
    reward, _ = prepared(graded, rollout)
    annotated = worked_solutions(graded, PROMPTS, rollout)
    first, second = (embeddings(graded, part, part.mask) for part in (annotated, rollout))
    wanted = 0.2 + 0.1 * cosine_similarity(first, second)
    assert reward.tolist() == pytest.approx([wanted[0].item(), 1, wanted[2].item(), 0], abs=1e-5)
    plain = built(policy, AnnotatedContrast(partial_reward="none"), rollout=Generation(1, 8))
    assert prepared(plain, written(plain, texts))[0].tolist() == [0, 1, 0, 0]


def test_a_partial_reward_of_the_answer_itself_is_not_added_to(policy: Policy) -> None:
    learner = built(policy, AnnotatedContrast("none", partial_reward="fixed"), rollout=Generation(1, 8))
    learner.rewards = {"answer": NumericAnswer(partial=0.4)}
    assert prepared(learner, written(learner, ["9", "9", "2", "no"]))[0].tolist() == pytest.approx([0.1, 0.1, 1, 0])


# --- fits ------------------------------------------------------------------------------------------------------------


def test_without_signal_it_is_reft_and_with_weight_0_too(policy: Policy) -> None:
    """PPO with the answer's reward, 0.1 for a wrong number."""
    found = []
    for auxiliary, partial in (
        (None, 0.1),
        (AnnotatedContrast("none", partial_reward="fixed"), 0.0),
        (AnnotatedContrast("pos", c=0.0, partial_reward="fixed"), 0.0),
    ):
        watch = Watch()
        learner = carft(policy, auxiliary, rewards={"answer": NumericAnswer(partial=partial)}, minibatches=2)
        fit(learner, 4, callbacks=[watch])
        found.append((parameters(learner), watch.metrics[-1]["train/reward"]))
    for weights, reward in found[1:]:
        assert torch.equal(weights, found[0][0])
        assert reward == pytest.approx(found[0][1])
    assert 0 < found[0][1] < 1


def test_passes_of_an_optimiser_step_add_up_to_one_without_negatives(policy: Policy) -> None:
    """The denominator is of one pass, so the terms are equal only as far as their numerators go."""
    found = []
    for passes in (1, 3):
        auxiliary = AnnotatedContrast("pos", c=1.0, gather_grad=False, sim_cap=1.0)
        learner = carft(policy, auxiliary)
        fit(learner, 2, accumulate_grad_batches=passes)
        found.append(parameters(learner))
    torch.testing.assert_close(found[1], found[0], atol=2e-5, rtol=0)
    without = carft(policy, None)
    fit(without, 2)
    assert (found[0] - parameters(without)).norm() > 0.05


def test_right_completions_are_drawn_to_the_annotated_chains_up_to_the_cap(policy: Policy) -> None:
    learner = built(policy, AnnotatedContrast(c=1.0, gather_grad=False), rollout=Generation(1, 8))
    rollout = written(learner, ["=m=ono=3"])
    _, extra = prepared(learner, rollout)
    optimizer = torch.optim.SGD(learner.parameters(), lr=3e-4)
    similarities = []
    for _ in range(12):
        with torch.no_grad():
            own = embeddings(learner, rollout, rollout.mask)
        similarities.append(float(cosine_similarity(extra["annotated"], own)))
        optimizer.zero_grad()
        with pytest.warns(UserWarning, match="no negatives"):
            term(learner, rollout, extra).backward()
        optimizer.step()
    assert similarities[0] < 0.85
    assert 0.9 <= similarities[-1] < 0.95
    assert similarities[-1] == similarities[-2]


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(policy: Policy, tmp_path: Path) -> None:
    def made() -> PolicyFineTuner:
        return carft(policy, AnnotatedContrast("both", c=0.1, partial_reward="embedding"), minibatches=2)

    whole, half, rest = made(), made(), made()
    fit(whole, 4)
    fit(half, 3).save_checkpoint(tmp_path / "half.ckpt")
    fit(rest, 4, resume=tmp_path / "half.ckpt")
    assert torch.equal(parameters(rest), parameters(whole))


# --- wrong settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"signal": "positive"}, "signal='positive': must be one of none, pos, neg, both"),
        ({"mask_mode": "official"}, "mask_mode='official'"),
        ({"emb_tokens": "digits"}, "emb_tokens='digits'"),
        ({"partial_reward": "0.1"}, r"partial_reward='0.1'"),
        ({"tau": 0.0}, r"tau=0.0: must be positive"),
        ({"c": -1.0}, r"c=-1.0: must be at least 0"),
        ({"sim_cap": 1.5}, r"sim_cap=1.5"),
        ({"signal": "none", "partial_reward": "none"}, "changes nothing"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnnotatedContrast(**settings)


def test_the_critic_must_have_an_embedding_and_prompts_a_chain(policy: Policy) -> None:
    with pytest.raises(ValueError, match="embedding: 64"):
        carft(policy, AnnotatedContrast(), critic=Critic())
    with pytest.raises(ValueError, match="embedding: 64"):
        carft(policy, AnnotatedContrast(), critic=None, advantage=GroupAdvantage(), rollout=Generation(2))
    carft(policy, AnnotatedContrast("none"), critic=Critic())  # ReFT needs none
    learner = built(policy, AnnotatedContrast(), rollout=Generation(1, 8))
    rollout = written(learner)
    prompts = [prompt._replace(completion=None) for prompt in PROMPTS]
    samples = learner.read(prompts, *rollout[2:4], rollout.truncated, rollout.key)
    reward, parts = learner.score(samples)
    assert learner.auxiliary is not None
    with pytest.raises(ValueError, match="prompt 'a' has no completion"):
        learner.auxiliary.prepare(learner, samples, rollout, reward, parts)
