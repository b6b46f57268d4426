"""CARFT's contrast: embeddings, both signals with worked numbers and closed forms, common subsequences, rewards."""

import itertools
import math
import random

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from zoo.llm_rl import contrast
from zoo.llm_rl.contrast import (
    common_masks,
    common_subsequence,
    contrast_loss,
    cot_embedding,
    negative_losses,
    partial_reward,
    positive_losses,
)


def unit(cosine: float) -> Tensor:
    return torch.tensor([[cosine, math.sqrt(1 - cosine**2)]])


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- embeddings ------------------------------------------------------------------------------------------------------


def test_embeddings_are_means_weighted_by_the_softmax_of_values_over_the_chain() -> None:
    value = torch.tensor([[9.0, 0.0, math.log(3), 9.0]])
    embedding = torch.tensor([[[7.0, 7.0], [1.0, 0.0], [0.0, 1.0], [7.0, 7.0]]])
    mask = torch.tensor([[False, True, True, False]])
    torch.testing.assert_close(cot_embedding(value, embedding, mask), torch.tensor([[0.25, 0.75]]))
    assert cot_embedding(value.bfloat16(), embedding.bfloat16(), mask).dtype == torch.float32
    ones = cot_embedding(randn(3, 6), torch.ones(3, 6, 1), randn(3, 6, seed=1) > -1)
    torch.testing.assert_close(ones, torch.ones(3, 1))  # weights sum to 1


def test_tokens_outside_the_chain_have_no_gradient_and_values_have_one() -> None:
    value, embedding = randn(2, 4).requires_grad_(), randn(2, 4, 3).requires_grad_()
    mask = torch.tensor([[False, True, True, False], [False] * 4])
    found = cot_embedding(value, embedding, mask)
    assert (found[1] == 0).all()
    found.square().sum().backward()
    assert value.grad is not None
    assert embedding.grad is not None
    assert torch.equal(value.grad != 0, mask)
    assert torch.equal((embedding.grad != 0).any(-1), mask)


# --- the positive signal ---------------------------------------------------------------------------------------------


def test_two_orthogonal_pairs_of_cosine_0_8() -> None:
    annotated = torch.eye(4)[:2]
    rollout = 0.8 * torch.eye(4)[:2] + 0.6 * torch.eye(4)[2:]
    found = positive_losses(annotated, rollout)
    assert found.tolist() == pytest.approx([-math.log(math.e**4 / (math.e**4 + 1))] * 2, abs=1e-6)
    assert found[0].item() == pytest.approx(0.01815, abs=1e-5)


@pytest.mark.parametrize(
    ("cosine", "gather_grad", "loss", "slope"),
    [(0.5, True, 0.0, 0.0), (0.5, False, 0.0, -5.0), (0.95, True, 0.25, 5.0), (0.95, False, 0.25, 0.0)],
)
def test_one_pair_alone(cosine: float, gather_grad: bool, loss: float, slope: float) -> None:
    angle = torch.tensor(math.acos(cosine), requires_grad=True)
    rollout = torch.stack([angle.cos(), angle.sin()])[None]
    with pytest.warns(UserWarning, match="no negatives"):
        found = positive_losses(unit(1.0), rollout, tau=0.2, gather_grad=gather_grad)
    found.sum().backward()
    assert found.item() == pytest.approx(loss, abs=1e-6)
    assert angle.grad is not None
    assert angle.grad.item() == pytest.approx(slope * -math.sin(angle.item()), abs=1e-5)  # slope is d loss / d cos


def test_without_gathered_gradient_only_the_attraction_is_left() -> None:
    annotated, rollout = randn(5, 4), randn(5, 4, seed=1).requires_grad_()
    positive_losses(annotated, rollout, tau=0.5, gather_grad=False).sum().backward()
    own = rollout.grad
    rollout.grad = None
    (-(normalize(annotated) * normalize(rollout)).sum(1).clamp(max=0.9) / 0.5).sum().backward()
    assert own is not None
    assert rollout.grad is not None
    torch.testing.assert_close(own, rollout.grad)


def test_ranks_together_are_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    annotated = randn(6, 4)

    def gradient(parts: list[slice]) -> tuple[Tensor, Tensor]:
        rollout = randn(6, 4, seed=1).requires_grad_()
        chosen = torch.tensor([True, False, True, False, False, True])
        monkeypatch.setattr(contrast, "gather", lambda _: rollout)
        total = torch.zeros(())
        for rows in parts:
            total = total + contrast_loss(positive_losses(annotated[rows], rollout[rows]), chosen[rows], 3)
        total.backward()
        assert rollout.grad is not None
        return total.detach(), rollout.grad

    loss, grad = gradient([slice(0, 6)])
    both, both_grad = gradient([slice(0, 2), slice(2, 6)])
    torch.testing.assert_close(both, loss)
    torch.testing.assert_close(both_grad, grad)


def test_a_row_without_tokens_is_nobodys_negative() -> None:
    annotated, rollout = randn(4, 3), randn(4, 3, seed=1)
    rollout[3] = 0
    rollout.requires_grad_()
    found = positive_losses(annotated, rollout)
    torch.testing.assert_close(found[:3], positive_losses(annotated[:3], rollout[:3]))
    assert found[3] == 0
    found.sum().backward()
    assert rollout.grad is not None
    assert rollout.grad.isfinite().all()


# --- the negative signal ---------------------------------------------------------------------------------------------


def test_negative_signal_by_hand() -> None:
    annotated_rest, common, rest = unit(1.0), unit(0.6), unit(0.0)
    # numerator cos .6; denominator: common with itself (1) and with the rest (.8)
    expected = math.log(math.exp(1 / 0.5) + math.exp(0.8 / 0.5)) - 0.6 / 0.5
    assert negative_losses(annotated_rest, common, rest, tau=0.5).item() == pytest.approx(expected, abs=1e-6)


def test_the_negative_signal_parts_the_common_from_the_rest() -> None:
    common, rest = randn(3, 4).requires_grad_(), randn(3, 4, seed=1).requires_grad_()
    annotated_rest = randn(3, 4, seed=2)

    def similarity() -> Tensor:
        return (normalize(common) * normalize(rest)).sum(1).mean()

    before = similarity().item()
    for _ in range(50):
        loss = negative_losses(annotated_rest, common, rest).sum()
        grads = torch.autograd.grad(loss, (common, rest))
        with torch.no_grad():
            for x, grad in zip((common, rest), grads, strict=True):
                x -= 0.1 * grad
    assert similarity().item() < before - 0.3
    negative_losses(annotated_rest, common, rest, gather_grad=False).sum().backward()
    assert rest.grad is None
    assert common.grad is not None


# --- reduction -------------------------------------------------------------------------------------------------------


def test_worked_numbers_of_both_mask_modes() -> None:
    losses, correct = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([True, False, False, True])
    assert contrast_loss(losses, correct, 2).item() == pytest.approx(2.5)
    assert contrast_loss(losses, correct, 1, "official_broadcast").item() == pytest.approx(10.0)
    mask = correct[:, None].float()
    assert ((losses * mask).sum() / (mask.sum() + 1e-8)).item() == pytest.approx(10.0)  # the official expression
    nobody = torch.zeros(4, dtype=torch.bool)
    assert contrast_loss(losses, nobody, 0).item() == 0
    assert contrast_loss(losses, nobody, 1, "official_broadcast").item() == 0


def test_minibatches_add_up_to_the_mean_over_chosen_rows() -> None:
    losses, chosen = randn(7), torch.tensor([1, 0, 0, 1, 1, 0, 1]).bool()
    parts = zip(losses.split([2, 5]), chosen.split([2, 5]), strict=True)
    total = torch.stack([contrast_loss(loss, row, 4) for loss, row in parts]).sum()
    torch.testing.assert_close(total, losses[chosen].mean())


def test_rows_not_chosen_have_no_gradient_unless_the_official_mask_spreads() -> None:
    annotated, chosen = torch.eye(4)[:3], torch.tensor([True, False, False])
    for mode, rows in (("intended", 1), ("official_broadcast", 3)):
        rollout = randn(3, 4).requires_grad_()
        losses = positive_losses(annotated, rollout, gather_grad=False)
        contrast_loss(losses, chosen, 1, mode).backward()  # type: ignore[arg-type]
        assert rollout.grad is not None
        assert (rollout.grad != 0).any(1).sum() == rows


# --- common subsequences and rewards ---------------------------------------------------------------------------------


def words(text: str) -> list[int]:
    return [ord(word) for word in text.split()]


def test_worked_subsequence() -> None:
    a, b = common_subsequence(words("A G T A B"), words("G X T X A Y"))
    assert (a.tolist(), b.tolist()) == ([1, 2, 3], [0, 2, 4])


@pytest.mark.parametrize(("a", "b"), [("", "A"), ("A", ""), ("A", "G")])
def test_nothing_in_common(a: str, b: str) -> None:
    assert [len(part) for part in common_subsequence(words(a), words(b))] == [0, 0]


def test_subsequences_are_common_and_longest() -> None:
    draw = random.Random(0)
    for _ in range(50):
        a, b = ([draw.randrange(3) for _ in range(draw.randrange(9))] for _ in range(2))
        left, right = (part.tolist() for part in common_subsequence(a, b))
        assert [a[i] for i in left] == [b[j] for j in right]
        assert left == sorted(set(left))
        assert right == sorted(set(right))
        of_b = {c for n in range(len(b) + 1) for c in itertools.combinations(b, n)}
        assert len(left) == max(n for n in range(len(a) + 1) for c in itertools.combinations(a, n) if c in of_b)


def test_only_tokens_of_the_chains_are_compared() -> None:
    annotated = torch.tensor([[5, 1, 2, 3, 0], [5, 7, 7, 0, 0]])
    rollout = torch.tensor([[5, 9, 2, 3, 4], [5, 8, 8, 8, 8]])
    chain, mask = torch.tensor([[0, 1, 1, 1, 0], [0, 1, 1, 0, 0]]).bool(), torch.tensor([[0, 1, 1, 1, 1]] * 2).bool()
    left, right = common_masks(annotated, chain, rollout, mask)
    assert left.int().tolist() == [[0, 0, 1, 1, 0], [0] * 5]
    assert right.int().tolist() == [[0, 0, 1, 1, 0], [0] * 5]


def test_partial_reward_follows_the_cosine() -> None:
    a = torch.tensor([[1.0, 0], [1, 0], [2, 0]])
    b = torch.tensor([[-3.0, 0], [0, 1], [5, 0]])
    assert partial_reward(a, b).tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="tau=0"):
        positive_losses(torch.eye(2), torch.eye(2), tau=0)
    with pytest.raises(ValueError, match="tau=-1"):
        negative_losses(torch.eye(2), torch.eye(2), torch.eye(2), tau=-1)
    with pytest.raises(ValueError, match="mask_mode='both'"):
        contrast_loss(torch.ones(2), torch.ones(2).bool(), 1, "both")  # type: ignore[arg-type]


def test_similarities_are_float32_under_autocast() -> None:
    annotated, rollout = randn(8, 64), randn(8, 64, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        found = positive_losses(annotated, rollout)
    torch.testing.assert_close(found, positive_losses(annotated, rollout))
