"""Advantages against worked numbers, closed forms and limits."""

from dataclasses import replace
from math import nan

import pytest
import torch
from torch import Tensor

from zoo.llm_rl.advantages import (
    Advantage,
    Gae,
    Gdpo,
    GroupAdvantage,
    ReinforcePlusPlus,
    gae,
    reward_to_go,
    whiten,
)
from zoo.llm_rl.batches import Scores, Tokens

G1, G2, G3 = [1.0, 0.0, 0.0, 1.0], [1.0] * 4, [0.0, 0.0, 0.0, 1.0]
LENGTH = [2, 4, 4, 2, 3, 3, 3, 3, 4, 4, 4, 1]


def scores_of(reward: list[float], group: list[int], parts: list[list[float]] | None = None) -> Scores:
    count = len(reward)
    columns = [[value] for value in reward] if parts is None else parts
    return Scores(
        reward=torch.tensor(reward),
        group=torch.tensor(group),
        length=torch.tensor(LENGTH[:count]) if count <= len(LENGTH) else torch.ones(count, dtype=torch.long),
        truncated=torch.zeros(count, dtype=torch.bool),
        key=torch.arange(count),
        parts=torch.tensor(columns),
        weights=torch.ones(len(columns[0])),
    )


@pytest.fixture
def scores() -> Scores:
    return scores_of(G1 + G2 + G3, [7] * 4 + [3] * 4 + [5] * 4)


def close(found: Tensor, wanted: list[float], atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, torch.tensor(wanted), atol=atol, rtol=0)


@pytest.mark.parametrize(
    ("advantage", "first", "low", "high"),
    [
        (GroupAdvantage(), 0.86588, -0.49990, 1.49970),
        (GroupAdvantage(eps=1e-6), 0.86602, -0.5, 1.5),
        (GroupAdvantage(ddof=0), 0.99980, -0.57722, 1.73165),
        (GroupAdvantage(scale="none"), 0.5, -0.25, 0.75),
        (GroupAdvantage("leave_one_out", "none"), 0.66667, -0.33333, 1.0),
        (GroupAdvantage(scale="batch"), 0.97082, -0.48541, 1.45623),
    ],
    ids=["grpo", "verl", "population", "dr_grpo", "rloo", "lite"],
)
def test_worked_table_in_any_order_of_rows(
    scores: Scores, advantage: Advantage, first: float, low: float, high: float
) -> None:
    wanted = torch.tensor([first, -first, -first, first, 0, 0, 0, 0, low, low, low, high])
    found = advantage(scores)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert (found[4:8] == 0).all()
    rows = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    mixed = replace(scores, **{name: getattr(scores, name)[rows] for name in ("reward", "group", "length", "parts")})
    torch.testing.assert_close(advantage(mixed), wanted[rows], atol=1e-5, rtol=0)


def test_batch_baseline_has_the_closed_form(scores: Scores) -> None:
    reward = scores.reward
    found = GroupAdvantage("batch", "batch")(scores)
    torch.testing.assert_close(found, (reward - 7 / 12) / (0.5149287 + 1e-4), atol=1e-5, rtol=1e-5)
    assert torch.equal(GroupAdvantage("none", "none")(scores), reward)


def test_whitened_baseline_counts_each_token(scores: Scores) -> None:
    found = GroupAdvantage(scale="none", whiten_tokens=True)(scores)
    up, down, middle, low, high = 1.88649, -1.18164, 0.35242, -0.41461, 2.65352
    close(found, [up, down, down, up, *[middle] * 4, low, low, low, high])
    tokens = found.repeat_interleave(scores.length)
    assert tokens.mean().abs() < 1e-6
    assert tokens.var() == pytest.approx(1, abs=1e-5)


def test_lite_is_dr_grpo_over_the_deviation_of_raw_rewards(scores: Scores) -> None:
    dr, lite, grpo = (GroupAdvantage(scale=scale)(scores) for scale in ("none", "batch", "group"))
    torch.testing.assert_close(lite * (scores.reward.std() + 1e-4), dr)
    ratio = lite[[0, 1, 8, 11]] / grpo[[0, 1, 8, 11]]
    torch.testing.assert_close(ratio[::2], ratio[1::2])
    centred = dr.std()  # dividing by this one would be another method
    assert centred == pytest.approx(0.39886, abs=1e-5)
    assert scores.reward.std() == pytest.approx(0.51493, abs=1e-5)


def test_one_wrong_among_eight() -> None:
    reward = [1.0] * 7 + [0.0] + [1.0] * 4 + [0.0] * 4
    scores = scores_of(reward, [0] * 8 + [1] * 8)
    grpo = GroupAdvantage(eps=1e-9)(scores)
    assert grpo[7] == pytest.approx(-2.475, abs=1e-3)
    assert (grpo[7] / grpo[8]).abs() == pytest.approx(2.65, abs=5e-3)
    lite = GroupAdvantage(scale="batch", eps=1e-9)(scores)
    assert lite[7] == pytest.approx(-0.875 / float(torch.tensor(reward).std()), abs=1e-5)
    assert (lite[7] / lite[8]).abs() == pytest.approx(1.75, abs=1e-5)


@pytest.mark.parametrize("baseline", ["group", "leave_one_out"])
@pytest.mark.parametrize("scale", ["group", "none"])
def test_a_constant_for_a_prompt_changes_nothing(scores: Scores, baseline: str, scale: str) -> None:
    advantage = GroupAdvantage(baseline, scale)  # type: ignore[arg-type]
    shift = torch.tensor([3.0] * 4 + [-0.5] * 4 + [0.25] * 4)
    before = advantage(scores)
    torch.testing.assert_close(advantage(replace(scores, reward=scores.reward + shift)), before, atol=1e-6, rtol=0)
    assert before.reshape(3, 4).sum(1).abs().max() < 1e-6


def test_scale_of_rewards_cancels_in_lite(scores: Scores) -> None:
    advantage = GroupAdvantage(scale="batch", eps=1e-9)
    torch.testing.assert_close(advantage(replace(scores, reward=10 * scores.reward)), advantage(scores))


@pytest.mark.parametrize("value", [0.1, -0.3, 1e6 + 0.1])
def test_equal_rewards_give_exactly_zero(value: float) -> None:
    scores = scores_of([value] * 6, [0, 0, 0, 1, 1, 1])
    for advantage in (
        GroupAdvantage(),
        GroupAdvantage("batch", "batch"),
        GroupAdvantage("leave_one_out", "none"),
        Gdpo(),
    ):
        assert (advantage(scores) == 0).all()


def test_unscorable_rows_stay_out_of_the_statistics() -> None:
    scores = scores_of([1.0, 0.0, nan, 1.0] + [nan] * 4, [0] * 4 + [1] * 4)
    third = 1 / 3
    close(GroupAdvantage(scale="none")(scores), [third, -2 * third, 0, third, 0, 0, 0, 0])
    close(GroupAdvantage("leave_one_out", "none")(scores), [0.5, -1, 0, 0.5, 0, 0, 0, 0])
    close(GroupAdvantage("batch", "none")(scores), [third, -2 * third, 0, third, 0, 0, 0, 0])
    lone = scores_of([1.0, nan, 0.5, 0.5], [0, 0, 1, 1])
    for advantage in (GroupAdvantage(), GroupAdvantage("leave_one_out", "none")):
        assert (advantage(lone) == 0).all()
    assert (GroupAdvantage(whiten_tokens=True)(scores_of([nan] * 4, [0, 0, 1, 1])) == 0).all()


def test_gdpo_standardises_each_reward_alone() -> None:
    parts = [[1.0, 100.0], [0.0, 300.0], [1.0, 200.0], [0.0, 200.0]]
    scores = replace(scores_of([0.0] * 4, [0, 0, 0, 0], parts), weights=torch.tensor([2.0, 1.0]))
    first, second = 0.5 / (3**-0.5 + 1e-4), 100 / (200 / 6**0.5 + 1e-4)
    total = torch.tensor([2 * first - second, -2 * first + second, 2 * first, -2 * first])
    torch.testing.assert_close(Gdpo()(scores), total / (total.std() + 1e-4))
    missing = replace(scores, parts=torch.tensor([[1.0, nan], [0.0, nan], [1.0, nan], [0.0, nan]]))
    torch.testing.assert_close(
        Gdpo(eps=1e-9)(missing), GroupAdvantage(eps=1e-9)(replace(scores, reward=scores.parts[:, 0]))
    )
    dropped = Gdpo()(replace(scores, reward=torch.tensor([nan, 0.0, 0.0, 0.0])))
    rest = replace(scores_of([0.0] * 3, [0] * 3, parts[1:]), weights=scores.weights)
    torch.testing.assert_close(dropped, torch.cat([torch.zeros(1), Gdpo()(rest)]))


def test_groups_of_one() -> None:
    scores = scores_of([0.5, -2.0], [0, 1])
    with pytest.raises(ValueError, match="num_generations=1"):
        GroupAdvantage()(scores)
    for scale in ("group", "none"):
        close(GroupAdvantage(scale=scale, allow_single=True)(scores), [0.5, -2.0])  # type: ignore[arg-type]
    assert GroupAdvantage().compares
    assert not GroupAdvantage(allow_single=True).compares
    close(GroupAdvantage("batch", "none")(scores), [1.25, -1.25])


@pytest.mark.parametrize("value", [float("inf"), -float("inf")])
def test_infinite_reward_names_the_sample(value: float) -> None:
    with pytest.raises(ValueError, match="sample 2"):
        GroupAdvantage()(scores_of([0.0, 1.0, value, 1.0], [0, 0, 1, 1]))


def test_bad_input(scores: Scores) -> None:
    with pytest.raises(ValueError, match="group 9 has 1"):
        GroupAdvantage()(scores_of([0.0, 1.0, 1.0, 0.0, 1.0], [0, 0, 1, 1, 9]))
    with pytest.raises(ValueError, match="leave_one_out"):
        GroupAdvantage(baseline="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="whitening cancels"):
        GroupAdvantage(scale="batch", whiten_tokens=True)
    with pytest.raises(ValueError, match="eps=0"):
        GroupAdvantage(eps=0)
    with pytest.raises(ValueError, match="ddof=2"):
        Gdpo(ddof=2)
    with pytest.warns(UserWarning, match="eps alone"):
        GroupAdvantage("batch", "group")
    with pytest.raises(ValueError, match=r"gamma=1\.5"):
        ReinforcePlusPlus(gamma=1.5)
    with pytest.raises(ValueError, match="lam=-1"):
        Gae(lam=-1)
    with pytest.raises(ValueError, match="global, local, none"):
        Gae(whiten="batch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="critic"):
        Gae()(torch.zeros(1, 2), Tokens(torch.ones(1, 2, dtype=torch.bool)), None)


def test_gae_worked() -> None:
    reward, value = torch.tensor([[0.0, 0, 1, 9, 9]]), torch.tensor([[0.5, 0.6, 0.8, 7, 7]])
    mask = torch.tensor([[True, True, True, False, False]])
    advantage, returns = Gae()(reward, Tokens(mask, value=value), None)
    close(advantage, [[0.4705, 0.39, 0.2, 0, 0]])  # type: ignore[list-item]
    close(returns, [[0.9705, 0.99, 1.0, 0, 0]])  # type: ignore[list-item]


def test_gae_limits_and_gaps() -> None:
    generator = torch.Generator().manual_seed(0)
    reward, value = torch.rand(2, 3, 6, generator=generator)
    everything = torch.ones(3, 6, dtype=torch.bool)
    full, returns = gae(reward, value, everything, 0.9, 1.0)
    later = torch.tensor([[0.9 ** (s - t) if s >= t else 0.0 for t in range(6)] for s in range(6)])
    torch.testing.assert_close(returns, reward @ later)
    torch.testing.assert_close(full, reward @ later - value)
    torch.testing.assert_close(reward_to_go(reward, everything, 0.9), reward @ later)
    one, _ = gae(reward, value, everything, 0.9, 0.0)
    torch.testing.assert_close(one, reward + 0.9 * torch.cat([value[:, 1:], torch.zeros(3, 1)], 1) - value)
    spread = torch.tensor([True, False, True, True, False, True])
    gapped, _ = gae(reward, value, spread.expand(3, 6), 0.9, 0.7)
    dense, _ = gae(reward[:, spread], value[:, spread], everything[:, :4], 0.9, 0.7)
    torch.testing.assert_close(gapped[:, spread], dense)
    assert (gapped[:, ~spread] == 0).all()


@pytest.mark.parametrize("width", ["global", "local"])
def test_gae_whitens_after_the_returns(width: str) -> None:
    reward, value = torch.rand(2, 2, 4, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    plain, returns = Gae()(reward, Tokens(mask, value=value), None)
    white, same = Gae(whiten=width)(reward, Tokens(mask, value=value), None)  # type: ignore[arg-type]
    assert torch.equal(returns, same)
    torch.testing.assert_close(white[mask], (plain[mask] - plain[mask].mean()) / plain[mask].std())
    assert (white[~mask] == 0).all()


def test_reinforce_plus_plus_whitens_what_is_still_to_come() -> None:
    reward = torch.tensor([[-0.1, 0.0, 1.0], [0.2, 5.0, 5.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    advantage, returns = ReinforcePlusPlus()(reward, Tokens(mask), None)
    togo = torch.tensor([0.9, 1.0, 1.0, 0.2])
    torch.testing.assert_close(advantage[mask], (togo - togo.mean()) / togo.std())
    assert (advantage[~mask] == 0).all()
    assert returns is None


def test_unscorable_rows_of_tokens_are_left_out() -> None:
    reward = torch.tensor([[0.0, 1.0], [0.0, nan], [0.5, nan]])
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    value = torch.tensor([[0.5, 0.25], [0.1, 0.2], [0.3, 0.4]])
    for advantage in (ReinforcePlusPlus(), Gae(whiten="global")):
        found, returns = advantage(reward, Tokens(mask, value=value), None)
        rows = torch.tensor([0, 2])
        alone, _ = advantage(reward[rows], Tokens(mask[rows], value=value[rows]), None)
        torch.testing.assert_close(found[rows], alone)
        assert (found[1] == 0).all()
    assert returns is not None
    torch.testing.assert_close(returns[1], value[1])


def test_whitening_survives_padding_that_is_not_a_number() -> None:
    x, mask = torch.tensor([[1.0, 3.0, nan]]), torch.tensor([[True, True, False]])
    close(whiten(x, mask, over_ranks=True), [[-(0.5**0.5), 0.5**0.5, 0]])  # type: ignore[list-item]
    assert (whiten(x, torch.zeros(1, 3), over_ranks=True) == 0).all()
