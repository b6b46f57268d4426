"""D3S against worked numbers, brute force over all subsets, and its limits."""

from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from math import nan

import pytest
import torch
from torch import Tensor

from zoo.llm_rl.advantages import GroupAdvantage
from zoo.llm_rl.batches import Scores, Tokens
from zoo.llm_rl.d3s import D3S, between, most_varied, top_of_rows

REWARD = [1.0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1]


def scores_of(reward: list[float], size: int, progress: float | None = 0.0) -> Scores:
    count = len(reward)
    return Scores(
        reward=torch.tensor(reward),
        group=torch.arange(count) // size,
        length=torch.ones(count, dtype=torch.long),
        truncated=torch.zeros(count, dtype=torch.bool),
        key=torch.arange(count),
        parts=torch.tensor(reward)[:, None],
        weights=torch.ones(1),
        progress=progress,
    )


@pytest.fixture
def advantage() -> Tensor:
    return GroupAdvantage()(scores_of(REWARD, 4))


def chosen(mask: Tensor) -> set[int]:
    return set(mask.nonzero()[:, 0].tolist())


def variance(x: Tensor) -> float:
    return float(x.double().var(correction=0))


@pytest.mark.parametrize(
    ("size", "wanted", "value"),
    [
        (2, {0, 6}, 1.39899),
        (4, {0, 5, 6, 7}, 1.09947),
        (6, {0, 1, 4, 5, 6, 7}, 0.88856),
        (8, set(range(8)), 0.74972),
        (12, set(range(12)), 0.49981),
    ],
)
def test_worked_batch(advantage: Tensor, size: int, wanted: set[int], value: float) -> None:
    found = most_varied(advantage, size)
    assert chosen(found) == wanted
    assert variance(advantage[found]) == pytest.approx(value, abs=1e-5)
    if size <= 4:
        assert variance(advantage[found]) >= 1


@pytest.mark.parametrize("seed", range(6))
def test_no_subset_varies_more(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(9, generator=generator) + 100 * (seed % 2)
    if seed >= 3:
        x = x.round()
    for size in range(1, 10):
        found = variance(x[most_varied(x, size)])
        best = max(variance(x[list(some)]) for some in combinations(range(9), size))
        assert found == pytest.approx(best, abs=1e-5)


def exact_split(x: Tensor, size: int) -> int:
    """How many of the smallest to take, with fractions, where rounding can't part what ties."""
    values = sorted(Fraction(value) for value in x.tolist())
    found = []
    for k in range(size + 1):
        some = values[:k] + values[len(values) - size + k :]
        mean = sum(some) / size
        found.append((-sum((value - mean) ** 2 for value in some), abs(2 * k - size), k))
    return min(found)[-1]


def test_split_is_that_of_exact_arithmetic() -> None:
    generator = torch.Generator().manual_seed(0)
    for trial in range(240):
        x = torch.rand(3 + trial % 7, generator=generator)
        x = (torch.cat([3.7 * x, -3.7 * x]), (3 * x).round() / 3, (4 * x).round() / 40 + 1e4)[trial % 3]
        size = int(torch.randint(1, len(x) + 1, (), generator=generator))
        order, k = x.argsort(stable=True), exact_split(x, size)
        wanted = torch.cat([order[:k], order[len(x) - size + k :]])
        assert chosen(most_varied(x, size)) == set(wanted.tolist())


def test_ties_of_the_split_and_of_values() -> None:
    assert chosen(most_varied(torch.tensor([0.0, 0, 0, 0]), 2)) == {0, 3}
    assert chosen(most_varied(torch.tensor([0.1, -0.1, 0.1, -0.1, 0.0]), 3)) == {1, 0, 2}  # k = 1 before k = 2
    assert chosen(most_varied(torch.tensor([1.0, 2.0]), 5)) == {0, 1}
    assert chosen(most_varied(torch.tensor([]), 5)) == set()
    tie = torch.tensor([0.9, 0.1, 0.5, 0.2])
    assert chosen(most_varied(torch.tensor([0.0, 0, 1, 1]), 2, tie)) == {1, 2}


@pytest.mark.parametrize("seed", range(3))
def test_sign_and_scale_do_not_matter(seed: int) -> None:
    x = torch.randn(20, generator=torch.Generator().manual_seed(seed))
    for size in (4, 7, 12):
        found = chosen(most_varied(x, size))
        assert chosen(most_varied(-x, size)) == found
        assert chosen(most_varied(8 * x, size)) == found


def test_over_the_batch_and_within_groups(advantage: Tensor) -> None:
    scores = scores_of(REWARD, 4)
    batch = D3S(n_init=2, n_final=4, tie="index")
    assert chosen(batch.sequences(scores, advantage)) == {0, 1, 4, 5, 6, 7}
    assert batch.metrics()["d3s/n"] == 2
    assert batch.metrics()["d3s/sequences"] == 0.5
    assert batch.metrics()["d3s/variance"] == pytest.approx(0.88856, abs=1e-5)
    group = D3S("group", n_init=2, n_final=4, tie="index")
    assert chosen(group.sequences(scores, advantage)) == {0, 1, 6, 5, 8, 11}
    rows = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    mixed = replace(scores, reward=scores.reward[rows], group=scores.group[rows])
    found = group.sequences(mixed, advantage[rows])
    assert torch.zeros(3).index_add(0, mixed.group, found.float()).tolist() == [2, 2, 2]
    assert advantage[rows][found].unique().numel() == 5


def test_random_ties_are_those_of_the_completions(advantage: Tensor) -> None:
    scores = scores_of(REWARD, 4)
    part = D3S(n_init=2, n_final=4)
    kept = part.sequences(scores, advantage)
    rows = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    mixed = replace(scores, reward=scores.reward[rows], group=scores.group[rows], key=scores.key[rows])
    assert torch.equal(part.sequences(mixed, advantage[rows]), kept[rows])
    sets = {tuple(sorted(chosen(part.sequences(replace(scores, key=scores.key + i), advantage)))) for i in range(20)}
    assert sets == {tuple(sorted({0, wrong, 4, 5, 6, 7})) for wrong in (1, 2, 3)}


def test_schedules(advantage: Tensor) -> None:
    assert [between(4, 16, p, "linear") for p in (0, 0.5, 1)] == [4, 10, 16]
    assert [between(4, 16, p, "cosine") for p in (0, 0.5, 1)] == pytest.approx([4, 10, 16])
    assert between(4, 16, 0.25, "cosine") == pytest.approx(4 + 12 * 0.1464466)
    assert between(4, 16, 0.7, "const") == 4
    for progress, number in ((0.0, 3), (0.5, 8), (0.75, 10), (1.0, 12)):
        part = D3S(n_init=1, n_final=4, tie="index")  # over three prompts 3 + 9 p, rounded
        assert part.sequences(scores_of(REWARD, 4, progress), advantage).sum() == number
    for progress, number in ((0.0, 1), (0.5, 3), (1.0, 4)):  # within a prompt 1 + 3 p, 2.5 up
        part = D3S("group", n_init=1, n_final=4)
        assert part.sequences(scores_of(REWARD, 4, progress), advantage).sum() == 3 * number
    fixed = D3S(n_init=2, n_final=4, schedule="const")
    assert fixed.sequences(scores_of(REWARD, 4, None), advantage).sum() == 6


def test_pods_compares_only_what_it_has_chosen() -> None:
    scores = scores_of([0.0, 0.2, 0.5, 1.0, 1.0, 1.0, 1.0, 0.0], 4)
    part = D3S("group", "reward", "none", n_init=2, n_final=4, tie="index")
    compared = part.compared(scores)
    assert chosen(~compared.reward.isnan()) == {0, 3, 6, 7}
    advantage = GroupAdvantage(eps=1e-9)(compared)
    half = 0.5**0.5
    torch.testing.assert_close(advantage, torch.tensor([-half, 0, 0, half, 0, 0, half, -half]))
    assert chosen(part.sequences(scores, advantage)) == {0, 3, 6, 7}
    assert chosen(part.sequences(compared, advantage)) == {0, 3, 6, 7}
    assert D3S().compared(scores) is scores


def select(part: D3S, key: Tensor, advantage: Tensor, mask: Tensor | None = None) -> list[list[float]]:
    mask = torch.ones_like(key, dtype=torch.bool) if mask is None else mask
    given = advantage[:, None].expand_as(key)
    truncated = torch.zeros(len(key), dtype=torch.bool)
    return part.tokens(Tokens(mask, entropy=key), given, truncated, mask.float(), scores_of([0.0], 1)).tolist()


ENTROPY = torch.tensor([[0.1, 1.0, 0.5], [0.8, 0.2, 2.0]])
A = torch.tensor([2.0, -1.0])


def test_tokens() -> None:
    part = D3S(k_init=50)
    assert select(part, ENTROPY, A) == [[0, 1, 1], [0, 0, 1]]
    assert part.metrics() == {"d3s/k": 50, "d3s/tokens": 0.5}
    assert select(D3S(token="entropy", k_init=50), ENTROPY, A) == [[0, 1, 0], [1, 0, 1]]
    assert select(D3S(token_scope="response", k_init=50), ENTROPY, A) == [[0, 1, 1], [1, 0, 1]]
    assert select(D3S(token_scope="response", k_init=34), ENTROPY, A) == [[0, 1, 0], [0, 0, 1]]
    assert select(D3S(k_init=1, k_final=2), ENTROPY, A) == [[0, 1, 0], [0, 0, 0]]
    assert select(D3S(token_scope="response", k_init=1), ENTROPY, A) == [[0, 1, 0], [0, 0, 1]]
    mask = torch.tensor([[True, False, True], [True, True, True]])
    assert select(D3S(k_init=40), ENTROPY, A, mask) == [[0, 0, 1], [0, 0, 1]]
    assert select(D3S(), ENTROPY, A, torch.zeros_like(mask)) == [[0] * 3] * 2


def test_ties_of_tokens_go_by_position() -> None:
    flat = torch.ones(2, 3)
    assert select(D3S(k_init=50), flat, torch.zeros(2)) == [[1, 1, 1], [0, 0, 0]]
    rows = top_of_rows(flat, torch.tensor([[True, True, True], [False, True, False]]), 50)
    assert rows.tolist() == [[True, True, False], [False, True, False]]


def test_everything_is_the_host_itself(advantage: Tensor) -> None:
    part = D3S(n_init=4, n_final=4, k_init=100, k_final=100)
    scores = scores_of(REWARD, 4)
    assert part.sequences(scores, advantage).all()
    weight = torch.rand(12, 3).add(0.1)
    mask = torch.ones(12, 3, dtype=torch.bool)
    tokens = Tokens(mask, entropy=torch.rand(12, 3))
    assert torch.equal(part.tokens(tokens, weight, mask[:, 0], weight, scores), weight)
    none = D3S("none", k_init=10)
    assert none.sequences(scores, advantage).all()
    bare = D3S(token="none")
    assert not bare.needs_entropy
    assert bare.tokens(Tokens(mask), weight, mask[:, 0], weight, scores) is weight


def test_equal_rewards_still_give_their_number() -> None:
    scores = scores_of([1.0] * 12, 4)
    advantage = GroupAdvantage()(scores)
    assert D3S(n_init=2, n_final=4).sequences(scores, advantage).sum() == 6


def test_gradient_stays_away_from_other_tokens() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = torch.tensor(select(D3S(k_init=50), ENTROPY, A))
    taken = logits.log_softmax(-1)[..., 0]
    (-(weight * A[:, None] * taken).sum() / weight.sum()).backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad.abs().sum(-1) > 0, weight > 0)


def test_too_few_are_all_kept() -> None:
    scores = scores_of([1.0, nan, nan, 0.0], 4)
    with pytest.warns(UserWarning, match="fewer than 3"):
        found = D3S(n_init=3, n_final=4).sequences(scores, torch.tensor([0.7, 0, 0, -0.7]))
    assert chosen(found) == {0, 3}


def test_bad_input(advantage: Tensor) -> None:
    scores = scores_of(REWARD, 4)
    with pytest.raises(ValueError, match="n_final=16: prompts have only 4"):
        D3S().sequences(scores, advantage)
    with pytest.raises(ValueError, match="n_init=5: prompts have only 4"):
        D3S(n_init=5, schedule="const").sequences(scores, advantage)
    for share in (0.0, 100.5):
        with pytest.raises(ValueError, match=f"k_init={share}"):
            D3S(k_init=share)
    with pytest.raises(ValueError, match="n_init=0"):
        D3S(n_init=0)
    with pytest.warns(UserWarning, match="less and less"):
        D3S(n_init=8, n_final=4)
    with pytest.raises(ValueError, match="nothing is selected"):
        D3S("none", token="none")
    with pytest.raises(ValueError, match="use group"):
        D3S(var_of="reward")
    with pytest.raises(ValueError, match="two or more"):
        D3S("group", "reward", n_init=1)
    with pytest.raises(ValueError, match="index, random"):
        D3S(tie="first")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="set max_steps"):
        D3S(n_init=2, n_final=4).sequences(scores_of(REWARD, 4, None), advantage)
    with pytest.raises(ValueError, match="sample 3 is nan"):
        D3S(n_init=2, n_final=4).sequences(scores, advantage.index_fill(0, torch.tensor([3]), nan))
    mask = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="no entropies"):
        D3S().tokens(Tokens(mask), mask.float(), mask[:, 0], mask.float(), scores)
