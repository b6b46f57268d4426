"""CANON's advantage and schedules against worked numbers, its closed form and its limits."""

import warnings
from dataclasses import replace
from math import nan

import pytest
import torch
from torch import Tensor

from zoo.llm_rl.advantages import GroupAdvantage
from zoo.llm_rl.batches import Scores
from zoo.llm_rl.canon import AccuracyMu, Canon, CosineMu, canon_advantage, high_half

R, C = [1.0, 0.0, 1.0, 1.0], [0.1, 0.2, 0.3, 0.4]


def scores_of(
    reward: list[float] | Tensor, metric: list[float] | Tensor, group: list[int] | Tensor | None = None
) -> Scores:
    reward, metric = torch.as_tensor(reward), torch.as_tensor(metric)
    count = len(reward)
    return Scores(
        reward=reward,
        group=torch.zeros(count, dtype=torch.long) if group is None else torch.as_tensor(group),
        length=(10 * metric).nan_to_num().round().long(),
        truncated=torch.zeros(count, dtype=torch.bool),
        key=torch.arange(count) * 7919 - 3,
        parts=reward[:, None],
        weights=torch.ones(1),
        entropy=metric,
    )


def random_scores(prompts: int, size: int, seed: int = 0) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(prompts * size, generator=generator)
    reward = torch.rand(prompts * size, generator=generator).round()
    metric = torch.rand(prompts * size, generator=generator)
    return scores_of(reward, metric, torch.arange(prompts).repeat_interleave(size)[rows])


@pytest.mark.parametrize("metric", ["entropy", "length"])
@pytest.mark.parametrize(
    ("mu", "wanted"),
    [
        (1.0, [0, -1, 0.5, 0.5]),
        (0.0, [0.5, -0.5, 0, 0]),
        (0.5, [0.25, -0.75, 0.25, 0.25]),
        (0.3, [0.35, -0.65, 0.15, 0.15]),
    ],
)
def test_worked_numbers(metric: str, mu: float, wanted: list[float]) -> None:
    advantage = Canon(metric, mu)  # type: ignore[arg-type]
    torch.testing.assert_close(advantage(scores_of(R, C)), torch.tensor(wanted))
    assert advantage.metrics() == {"canon/mu": mu}
    turned = scores_of(R[::-1], C[::-1])
    torch.testing.assert_close(advantage(turned), torch.tensor(wanted[::-1]))


def test_weighted_set() -> None:
    long = Canon("length", mu=1.0, alpha=0.9)(scores_of(R, C))
    torch.testing.assert_close(long, torch.tensor([0.1, -0.9, 0.4, 0.4]))
    # low set {1, 0}, weighted: low 0.9 R - 1; high R - 0.9 * 0.5
    low = Canon("entropy", mu=1.0, alpha=0.9)(scores_of(R, C))
    torch.testing.assert_close(low, torch.tensor([-0.1, -1.0, 0.55, 0.55]))
    assert torch.equal(Canon("entropy", mu=1.0, alpha=0.9, weighted_set="high")(scores_of(R, C)), long)
    half = Canon("length", mu=0.5, alpha=0.9)(scores_of(R, C))
    torch.testing.assert_close(half, 0.5 * long + 0.5 * torch.tensor([0.5, -0.5, 0, 0]))
    shifted = Canon("length", mu=1.0, alpha=0.9, beta=0.25)(scores_of(R, C))
    torch.testing.assert_close(shifted, long + torch.tensor([-0.25, -0.25, 0.25, 0.25]))


@pytest.mark.parametrize("mu", [0.0, 0.25, 0.5, 1.0])
def test_closed_form_over_groups_in_any_order(mu: float) -> None:
    scores = random_scores(5, 8)
    found = Canon("entropy", mu)(scores)
    assert scores.entropy is not None
    for group in range(5):
        rows = (scores.group == group).nonzero()[:, 0]
        rows = rows[scores.entropy[rows].argsort()]
        halves = scores.reward[rows].reshape(2, 4)
        own, other = halves.mean(1, keepdim=True), halves.mean(1, keepdim=True).flip(0)
        torch.testing.assert_close(found[rows], (halves - own + mu * (own - other)).flatten())
    weighted = Canon("entropy", mu, alpha=0.7)(scores)
    for advantage in (found, weighted):
        assert torch.zeros(5).index_add(0, scores.group, advantage).abs().max() < 1e-5
    assert mu == 0 or not torch.allclose(weighted, found)


def test_half_is_dr_grpo_and_the_direction_of_the_metric_does_not_matter() -> None:
    scores = random_scores(4, 6)
    torch.testing.assert_close(Canon("entropy", 0.5)(scores), GroupAdvantage(scale="none")(scores))
    assert scores.entropy is not None
    for mu in (0.0, 0.8, 1.0):
        torch.testing.assert_close(
            Canon("entropy", mu)(replace(scores, entropy=-scores.entropy)), Canon("entropy", mu)(scores)
        )


def test_a_metric_that_parts_right_from_wrong_scales_the_advantage_by_mu() -> None:
    scores = scores_of([0.0, 0, 1, 1], C)
    for mu in (0.0, 0.5, 1.0):
        torch.testing.assert_close(Canon("entropy", mu)(scores), mu * torch.tensor([-1.0, -1, 1, 1]))


def test_equal_halves_make_mu_irrelevant() -> None:
    scores = scores_of([1.0, 0, 0, 1], C)
    assert torch.equal(Canon("entropy", 0.0)(scores), Canon("entropy", 1.0)(scores))


def test_random_halves_are_the_completions_own_and_split_evenly() -> None:
    scores = random_scores(40, 8, seed=3)
    advantage = Canon("random", 1.0)
    found = advantage(scores)
    rows = torch.randperm(320, generator=torch.Generator().manual_seed(1))
    mixed = replace(scores, **{name: getattr(scores, name)[rows] for name in ("reward", "group", "key")})
    torch.testing.assert_close(advantage(mixed), found[rows])
    assert not torch.allclose(advantage(replace(scores, key=scores.key + 1000)), found)
    # In expectation over splits R - E[mean of the other half] = R - (the mean of the others) = Dr. GRPO * G / (G - 1).
    mean = torch.stack([advantage(replace(scores, key=scores.key + 1000 * i)) for i in range(300)]).mean(0)
    wanted = GroupAdvantage("leave_one_out", "none")(scores)
    assert (mean - wanted).abs().max() < 0.06
    assert (mean - wanted).square().mean().sqrt() < 0.015


def test_ties() -> None:
    scores = scores_of([1.0, 0, 1, 0], [0.5] * 4)
    for mu in (0.0, 0.5, 1.0):
        torch.testing.assert_close(Canon("length", mu)(scores), torch.tensor([0.5, -0.5, 0.5, -0.5]))
    several = scores_of([1.0, 1, 0, 0], [0.5] * 4)
    by_index = Canon("length", 1.0)(several)
    torch.testing.assert_close(by_index, torch.tensor([1.0, 1, -1, -1]))
    torch.testing.assert_close(Canon("length", 1.0, ties="dr_grpo")(several), torch.tensor([0.5, 0.5, -0.5, -0.5]))
    uneven = scores_of([0.0, 1, 3, 7], [0.5] * 4)
    advantage = Canon("length", 1.0, ties="random")
    by_chance = {tuple(advantage(replace(uneven, key=uneven.key + i)).tolist()) for i in range(30)}
    assert len(by_chance) == 3  # as many as there are pairs of halves of four
    # half of the group ties at the boundary, not more: it is split
    edge = scores_of([1.0, 1, 0, 0], [0.1, 0.5, 0.5, 0.9])
    torch.testing.assert_close(Canon("length", 1.0, ties="dr_grpo")(edge), by_index)
    most = scores_of([1.0, 1, 0, 0], [0.5, 0.5, 0.5, 0.9])
    torch.testing.assert_close(Canon("length", 1.0, ties="dr_grpo")(most), torch.tensor([0.5, 0.5, -0.5, -0.5]))


def test_odd_groups() -> None:
    scores = scores_of([1.0, 0, 1, 1, 0], [0.1, 0.2, 0.3, 0.4, 0.5])
    with pytest.raises(ValueError, match="num_generations=5"):
        Canon("entropy")(scores)
    found = Canon("entropy", 0.5, allow_odd=True)(scores)
    torch.testing.assert_close(found, torch.tensor([0.41667, -0.58333, 0.41667, 0.41667, -0.58333]), atol=1e-5, rtol=0)
    assert high_half(torch.tensor([3.0, 1, 2]), torch.zeros(3)).tolist() == [True, False, True]


def test_unscorable_rows_are_left_out_before_the_split() -> None:
    scores = scores_of([nan, 1.0, 0.0, 1.0, 1.0, nan], [nan, *C, 0.9])
    torch.testing.assert_close(Canon("entropy", 1.0)(scores), torch.tensor([0, 0, -1, 0.5, 0.5, 0]))
    lone = scores_of([nan, nan, nan, 1.0], C)
    assert (Canon("entropy", 1.0, beta=0.1)(lone) == 0).all()
    assert (Canon("entropy", AccuracyMu())(scores_of([nan] * 4, C)) == 0).all()


def test_accuracy_schedules() -> None:
    scores = scores_of(R + [0.0] * 4, C + C, [0] * 4 + [1] * 4)
    for direction, mu in (("up", 0.375), ("down", 0.625)):
        advantage = Canon("entropy", AccuracyMu(direction))  # type: ignore[arg-type]
        torch.testing.assert_close(advantage(scores), Canon("entropy", mu)(scores))
        assert advantage.metrics()["canon/mu"] == pytest.approx(mu)
    with pytest.raises(ValueError, match="rewards that set it"):
        Canon("entropy", AccuracyMu())(scores_of([-1.0, 0, 0, 0], C))


def test_cosine_schedules() -> None:
    steps = (0, 29, 30, 50, 69, 70)
    inter = CosineMu()
    intra = CosineMu(high=0.6, low=0.0, of="intra")
    assert [inter(step, 0.0) for step in steps] == pytest.approx([0.033, 1, 1, 0.7, 0.401, 1], abs=1e-3)
    assert [1 - intra(step, 0.0) for step in steps] == pytest.approx([0.02, 0.6, 0.6, 0.3, 0.001, 0.6], abs=1e-3)
    assert inter(150 + 20, 0.0) == inter(50, 0.0)
    scaled = CosineMu(total=1500, warmup=300)
    assert scaled(500, 0.0) == pytest.approx(0.7)
    scores = replace(scores_of(R, C), step=50)
    torch.testing.assert_close(Canon("entropy", inter)(scores), Canon("entropy", 0.7)(scores))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="entropy, length, random"):
        Canon("perplexity")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="auto, high, low"):
        Canon(weighted_set="long")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="alpha=0"):
        Canon(alpha=0.0)
    with pytest.raises(ValueError, match=r"mu=1\.2"):
        Canon(mu=1.2)
    with pytest.warns(UserWarning, match="outside"):
        outside = Canon(mu=2.0, extrapolate=True)
    torch.testing.assert_close(outside(scores_of([0.0, 0, 1, 1], C)), torch.tensor([-2.0, -2, 2, 2]))
    with pytest.raises(ValueError, match="no entropy"):
        Canon()(replace(scores_of(R, C), entropy=None))
    with pytest.raises(ValueError, match="entropy of sample 2 is NaN"):
        Canon()(scores_of(R, [0.1, 0.2, nan, 0.3]))
    with pytest.raises(ValueError, match="num_generations=1"):
        Canon(allow_odd=True)(scores_of([1.0, 0.0], [0.1, 0.2], [0, 1]))
    with pytest.raises(ValueError, match="CosineMu"):
        CosineMu(total=30)
    with pytest.raises(ValueError, match=r"low=0\.5"):
        CosineMu(low=0.5, high=0.4)
    with pytest.raises(ValueError, match="sideways"):
        AccuracyMu("sideways")  # type: ignore[arg-type]


def test_pairs_warn_once_and_have_no_comparison_within() -> None:
    advantage = Canon("entropy", 0.0)
    pair = scores_of([1.0, 0.0], [0.1, 0.2])
    with pytest.warns(UserWarning, match="2 completions"):
        assert (advantage(pair) == 0).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        advantage(pair)


def test_weighted_function_is_affine_in_mu() -> None:
    generator = torch.Generator().manual_seed(0)
    reward, metric = torch.rand(2, 16, generator=generator)
    group = torch.arange(16) % 2
    high = high_half(metric, group)
    ends = [canon_advantage(reward, group, high, mu, 0.8, 0.1, "low") for mu in (0.0, 1.0)]
    torch.testing.assert_close(
        canon_advantage(reward, group, high, 0.3, 0.8, 0.1, "low"), 0.7 * ends[0] + 0.3 * ends[1]
    )
