"""Selection of completions and tokens, and two gloo processes against one for all that compares tokens."""

from collections.abc import Callable
from dataclasses import replace
from math import nan
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed
from torch import multiprocessing as mp

from zoo.llm_rl.advantages import Gae, GroupAdvantage, ReinforcePlusPlus
from zoo.llm_rl.batches import Scores, Tokens
from zoo.llm_rl.d3s import D3S
from zoo.llm_rl.selection import (
    Difficulty,
    DynamicSampling,
    OverlongFilter,
    Selection,
    TopEntropy,
    kth_largest,
    ordered,
    top_tokens,
)


def scores_of(reward: list[float], group: list[int], truncated: list[bool] | None = None) -> Scores:
    count = len(reward)
    return Scores(
        reward=torch.tensor(reward),
        group=torch.tensor(group),
        length=torch.ones(count, dtype=torch.long),
        truncated=torch.tensor(truncated or [False] * count),
        key=torch.arange(count),
        parts=torch.tensor([[value, 1.0] for value in reward]),
        weights=torch.tensor([1.0, 0.0]),
    )


def keep(part: Selection, entropy: Tensor, mask: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    mask = torch.ones_like(entropy, dtype=torch.bool) if mask is None else mask
    weight = mask.float() if weight is None else weight
    truncated = torch.zeros(len(mask), dtype=torch.bool)
    return part.tokens(Tokens(mask, entropy=entropy), torch.ones_like(entropy), truncated, weight, None)


def test_overlong_filter() -> None:
    truncated = torch.tensor([False, True])
    weight = torch.tensor([[0.5, 1.0], [1.0, 1.0]])
    part = OverlongFilter()
    found = part.tokens(Tokens(weight > 0), weight, truncated, weight, None)
    assert found.tolist() == [[0.5, 1.0], [0.0, 0.0]]
    scores = scores_of([1.0, 0.0, 1.0, 0.0], [0] * 4, [False, False, False, True])
    assert part.compared(scores) is scores
    out = OverlongFilter(exclude_from_baseline=True)
    assert out.exclude_from_baseline
    found = GroupAdvantage(scale="none")(out.compared(scores))
    torch.testing.assert_close(found, torch.tensor([1 / 3, -2 / 3, 1 / 3, 0]))
    assert out.sequences(scores, found).all()


def test_order_of_codes_is_that_of_numbers() -> None:
    x = torch.tensor([-torch.inf, -2.5, -1e-40, -0.0, 0.0, 1e-40, 1.0, 1.0000001, 3e38, torch.inf])
    code = ordered(x)
    assert code[3] == code[4]
    assert (code.diff()[[0, 1, 2, 4, 5, 6, 7, 8]] > 0).all()
    assert code.min() >= 0
    assert code.max() < 2**32


def test_kth_largest_agrees_with_sorting() -> None:
    generator = torch.Generator().manual_seed(0)
    code = ordered(torch.randn(300, generator=generator).mul(4).round() / 3)
    down = code.sort(descending=True).values
    for k in (1, 2, 77, 150, 299, 300):
        value, ties = kth_largest(code, k)
        assert value == down[k - 1]
        assert ties == k - int((code > value).sum())


def test_top_tokens_cuts_ties_by_position() -> None:
    key = torch.tensor([[1.0, 5.0, 2.0], [2.0, 2.0, 9.0]])
    among = torch.tensor([[True, True, True], [True, True, False]])
    assert top_tokens(key, among, 3).tolist() == [[False, True, True], [True, False, False]]


@pytest.mark.parametrize("q", [0.2, 0.3, 0.05, 0.77, 1.0])
@pytest.mark.parametrize("count", [1, 2, 10, 11, 137])
def test_top_entropy_is_the_quantile(q: float, count: int) -> None:
    entropy = torch.rand(1, count, generator=torch.Generator().manual_seed(count))
    threshold = entropy.double().quantile(1 - q)
    near = (entropy - threshold).abs() < 1e-9
    found = keep(TopEntropy(q), entropy) > 0
    assert torch.equal(found[~near], (entropy >= threshold)[~near])
    assert found[near].all()


def test_top_entropy_keeps_ties_and_weights_and_skips_what_has_none() -> None:
    entropy = torch.tensor([[1.0, 2.0, 3.0, 9.0], [2.0, 2.0, 9.0, nan]])
    mask = torch.tensor([[True, True, True, False], [True, True, True, False]])
    weight = torch.tensor([[0.5, 0.5, 0.5, 0.0], [1.0, 1.0, 0.0, 0.0]])
    part = TopEntropy(0.5)
    assert keep(part, entropy, mask, weight).tolist() == [[0.0, 0.5, 0.5, 0.0], [1.0, 1.0, 0.0, 0.0]]
    assert part.metrics() == {"top_entropy/tokens": 0.8}
    assert keep(part, entropy, mask, torch.zeros(2, 4)).sum() == 0


def test_difficulty_excludes_its_bounds() -> None:
    reward = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.5, nan, nan, nan]
    scores = scores_of(reward, [4, 4, 1, 1, 2, 2, 0, 0, 3, 3])
    part = Difficulty(0.0, 1.0)
    kept = part.sequences(scores, torch.zeros(10))
    assert kept.tolist() == [True, True, False, False, False, False, True, True, False, False]
    assert part.metrics() == {"difficulty/prompts": 0.4}
    assert not Difficulty(0.5, 1.0).sequences(scores, torch.zeros(10)).any()


def test_dynamic_sampling_drops_prompts_without_contrast() -> None:
    scores = scores_of([0.1, 0.1, 0.1, 0.2, nan, 0.5, nan, nan], [5, 5, 2, 2, 9, 9, 7, 7])
    part = DynamicSampling()
    assert part.groups(scores).tolist() == [True, False, False, False]  # groups 2, 5, 7, 9
    assert part.rows(scores).tolist() == [False, False, True, True, False, False, False, False]
    assert DynamicSampling(metric=0).rows(scores).sum() == 2
    assert DynamicSampling(metric=1).rows(scores).sum() == 0
    with pytest.raises(ValueError, match="there are 2 rewards"):
        DynamicSampling(metric=2).groups(scores)


def test_bad_input() -> None:
    for q in (0.0, 1.1):
        with pytest.raises(ValueError, match=f"q={q}"):
            TopEntropy(q)
    with pytest.raises(ValueError, match="low must be below high"):
        Difficulty(0.9, 0.9)
    with pytest.raises(ValueError, match="max_batches=-1"):
        DynamicSampling(max_batches=-1)
    for metric in ("accuracy", -1):
        with pytest.raises(ValueError, match="must be reward or the number"):
            DynamicSampling(metric=metric)  # type: ignore[arg-type]
    mask = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="no entropies"):
        TopEntropy().tokens(Tokens(mask), mask.float(), mask[:, 0], mask.float(), None)
    with pytest.raises(ValueError, match="NaN"):
        keep(TopEntropy(), torch.tensor([[1.0, nan]]))


# --- two ranks -------------------------------------------------------------------------------------------------------


def _run(rank: int, work: Callable[[int], object], folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(work(rank), folder / f"{rank}.pt")
    distributed.destroy_process_group()


Ranks = list[tuple[slice, int]]  # rows and columns of each rank


@pytest.mark.parametrize(
    "ranks",
    [[(slice(0, 2), 5), (slice(2, 5), 3)], [(slice(0, 5), 5), (slice(5, 6), 3)], [(slice(0, 0), 2), (slice(0, 5), 5)]],
    ids=["unequal", "second_without_tokens", "first_without_rows"],
)
def test_two_ranks_select_and_whiten_as_one(ranks: Ranks, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(5) < torch.tensor([5, 3, 2, 3, 1, 0])[:, None]
    entropy = (torch.rand(6, 5, generator=generator) * 4).round() / 4  # many ties
    reward, value = torch.rand(2, 6, 5, generator=generator)
    advantage = torch.tensor([1.0, -0.5, 0.5, -1.0, 0.5, 2.0])[:, None].expand(6, 5)
    scores = replace(scores_of([0.0] * 6, [0] * 6), progress=0.25)

    def work(rows: slice, width: int) -> list[Tensor]:
        some = Tokens(mask[rows, :width], entropy=entropy[rows, :width], value=value[rows, :width])
        given, weight = advantage[rows, :width], some.mask.float()
        truncated = torch.zeros(len(weight), dtype=torch.bool)
        parts = [TopEntropy(0.4), D3S(k_init=20, k_final=60), D3S(token="entropy", schedule="const", k_init=35)]
        chosen = [part.tokens(some, given, truncated, weight, scores) for part in parts]
        shares = [torch.tensor(list(part.metrics().values())) for part in parts]
        whitened = [
            ReinforcePlusPlus()(reward[rows, :width], some, None)[0],
            Gae(whiten="global")(reward[rows, :width], some, None)[0],
            Gae(whiten="local")(reward[rows, :width], some, None)[0],
        ]
        return [*chosen, *whitened, *shares]

    mp.start_processes(_run, (lambda rank: work(*ranks[rank]), tmp_path), nprocs=2, start_method="fork")
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    stop = max(rows.stop for rows, _ in ranks)
    whole = work(slice(0, stop), 5)
    kept = [int(part.sum()) for part in whole[:3]]
    count = int(mask[:stop].sum())
    assert kept[1:] == [int(0.3 * count + 0.5), int(0.35 * count + 0.5)]
    valid = entropy[:stop][mask[:stop]]
    assert kept[0] == (valid >= valid.double().quantile(0.6)).sum() < count
    for (rows, width), parts in zip(ranks, found, strict=True):
        for one, two in zip(whole[:5], parts[:5], strict=True):
            torch.testing.assert_close(two, one[rows, :width], atol=1e-6, rtol=1e-6)
        for one, two in zip(whole[6:], parts[6:], strict=True):
            torch.testing.assert_close(two, one)
    if ranks[0][0].stop == 2:
        assert (found[0][5] - whole[5][:2]).abs().max() > 0.05  # a rank's own statistics are others
