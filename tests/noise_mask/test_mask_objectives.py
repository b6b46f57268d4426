"""The objectives: the worked example, closed-form gradients, and which of them is a policy gradient."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Beta

from zoo.noise_mask import LogSumExp, Reinforce
from zoo.noise_mask.masks import sample_cells
from zoo.noise_mask.objectives import beta_entropy, beta_log_density, coupled_loss

A, B, M = [0.7, 0.2, -0.1, 0.5], [0.1, 0.4, 0.3, 0.0], [0.7, 0.3, 0.5, 0.9]
ZERO = torch.zeros(())


def example() -> tuple[Tensor, Tensor, Tensor]:
    a, b, m = (torch.tensor([x], dtype=torch.float64) for x in (A, B, M))
    return a.requires_grad_(), b.requires_grad_(), m


def test_worked_example_of_the_official_objective() -> None:
    a, b, m = example()
    density = beta_log_density(a, b, m)
    expected = torch.tensor([[0.363605, 0.215736, 0.003503, 0.431650]]).double()
    torch.testing.assert_close(density.detach(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(density, Beta(a.exp(), b.exp()).log_prob(m), atol=1e-12, rtol=0)
    assert density.sum().item() == pytest.approx(1.014494, abs=1e-6)
    loss, multiplier = LogSumExp()(a, b, m, torch.tensor([1.5], dtype=torch.float64))
    assert multiplier.item() == pytest.approx(1.652993, abs=1e-6)
    assert loss.item() == pytest.approx(2.479489, abs=1e-6)
    loss.backward()
    grad_a = torch.tensor([[0.150095, -0.060521, 0.163694, 0.365428]]).double()
    grad_b = torch.tensor([[0.082687, 0.221793, -0.001520, -0.420927]]).double()
    torch.testing.assert_close(a.grad, grad_a, atol=1e-6, rtol=0)
    torch.testing.assert_close(b.grad, grad_b, atol=1e-6, rtol=0)
    weight = torch.tensor([[0.275439, 0.237579, 0.192148, 0.294834]]).double()
    torch.testing.assert_close(density.softmax(1).detach(), weight, atol=1e-6, rtol=0)
    # the closed form of the gradient
    alpha, beta, w = a.detach().exp(), b.detach().exp(), density.detach().softmax(1)
    both = torch.digamma(alpha + beta)
    torch.testing.assert_close(a.grad, 1.5 * w * alpha * (m.log() - torch.digamma(alpha) + both), atol=1e-12, rtol=0)
    torch.testing.assert_close(
        b.grad, 1.5 * w * beta * ((1 - m).log() - torch.digamma(beta) + both), atol=1e-12, rtol=0
    )


def test_batch_and_sample_rewards() -> None:
    log_density, cost = torch.tensor([1.0, 3.0]), torch.tensor([0.2, 2.0])
    assert coupled_loss(log_density, cost, "batch", ZERO, False).item() == pytest.approx(2.2)
    assert coupled_loss(log_density, cost, "sample", ZERO, False).item() == pytest.approx(3.1)
    # with a baseline of 1: 2 * 0.1, and the mean of -0.8 and 3; plus the plain mean of 1.1
    one = torch.ones(())
    assert coupled_loss(log_density, cost, "batch", one, True).item() == pytest.approx(0.2 + 1.1)
    assert coupled_loss(log_density, cost, "sample", one, True).item() == pytest.approx(1.1 + 1.1)


def test_detach_weight_leaves_the_classifier_the_plain_gradient() -> None:
    for reward in ("batch", "sample"):
        log_density, cost = torch.tensor([1.0, 3.0], requires_grad=True), torch.tensor([0.2, 2.0], requires_grad=True)
        coupled_loss(log_density, cost, reward, ZERO, True).backward()  # type: ignore[arg-type]
        assert cost.grad is not None
        assert log_density.grad is not None
        torch.testing.assert_close(cost.grad, torch.tensor([0.5, 0.5]))
        expected = torch.tensor([0.55, 0.55] if reward == "batch" else [0.1, 1.0])
        torch.testing.assert_close(log_density.grad, expected)


def test_the_policy_gradient_scales_with_the_cost() -> None:
    grads = []
    for k in (1.0, 3.0):
        a, b, m = example()
        LogSumExp()(a, b, m, torch.tensor([k * 1.5], dtype=torch.float64))[0].backward()
        grads.append(a.grad)
    torch.testing.assert_close(3 * grads[0], grads[1])


def test_only_the_sum_of_log_densities_is_a_policy_gradient() -> None:
    """Two cells, cost (m1 + m2 - 1)^2, whose mean is var(m1) + var(m2) + (mean(m1) + mean(m2) - 1)^2."""
    start = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    alpha = start.exp()
    mean, variance = alpha / (alpha + 1), alpha / ((alpha + 1) ** 2 * (alpha + 2))
    (truth,) = torch.autograd.grad(variance.sum() + (mean.sum() - 1) ** 2, start)
    torch.testing.assert_close(truth, torch.tensor([-0.028240, -0.004572]).double(), atol=1e-6, rtol=0)
    torch.manual_seed(0)
    a, b = start.detach().expand(400_000, 2).clone().requires_grad_(), torch.zeros(400_000, 2, dtype=torch.float64)
    m = sample_cells(a, b)
    cost = (m.sum(1) - 1) ** 2

    def estimate(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, a)[0].sum(0)

    reinforce = estimate(Reinforce(baseline="none")(a, b, m, cost)[0])
    torch.testing.assert_close(reinforce, truth, atol=2e-3, rtol=0)
    official = estimate(LogSumExp(reward="sample")(a, b, m, cost)[0])
    torch.testing.assert_close(official, torch.tensor([0.0087, -0.0217]).double(), atol=1.5e-3, rtol=0)
    # with the cost of the batch, here of two, the other image's cost is only noise: half of the gradient is left
    log_density = Reinforce().log_density(beta_log_density(a, b, m)).view(-1, 2)
    halved = estimate((log_density.mean(1) * cost.view(-1, 2).mean(1)).mean())
    torch.testing.assert_close(halved, truth / 2, atol=2e-3, rtol=0)


def test_one_cell_makes_both_objectives_equal() -> None:
    cells = torch.randn(5, 1)
    torch.testing.assert_close(LogSumExp(detach_weight=True).log_density(cells), Reinforce().log_density(cells))


def test_a_baseline_lowers_the_variance_and_follows_the_cost() -> None:
    objective = Reinforce(baseline_decay=0.5)
    a = b = torch.zeros(4, 3)
    m = torch.full((4, 3), 0.5)
    for cost in (2.0, 4.0):
        objective(a, b, m, torch.full((4,), cost))
    # weights 1/4 and 1/2 of the costs 2 and 4, over their sum
    assert (objective.average[0] / objective.average[1]).item() == pytest.approx((0.25 * 2 + 0.5 * 4) / 0.75)
    before = objective.average.clone()
    objective.eval()(a, b, m, torch.full((4,), 9.0))
    assert torch.equal(objective.average, before)
    assert "average" not in LogSumExp().state_dict()
    torch.manual_seed(0)
    a = torch.zeros(20_000, 2, requires_grad=True)
    m = sample_cells(a, torch.zeros(20_000, 2))
    cost = 5 + m.sum(1)
    spread = {}
    for baseline in (0.0, 6.0):
        loss = coupled_loss(
            beta_log_density(a, b.new_zeros(20_000, 2), m).sum(1), cost, "sample", torch.tensor(baseline), True
        )
        spread[baseline] = torch.autograd.grad(loss, a)[0].var(0).mean()
    assert spread[6.0] < 0.05 * spread[0.0]


def test_entropy_is_that_of_torch_and_its_coefficient_counts_cells_once() -> None:
    a, b, m = example()
    torch.testing.assert_close(beta_entropy(a, b), Beta(a.exp(), b.exp()).entropy(), atol=1e-12, rtol=0)
    cost = torch.tensor([1.5], dtype=torch.float64)
    plain, regularised = (LogSumExp(entropy_coef=c)(a, b, m, cost)[0] for c in (0.0, 0.2))
    torch.testing.assert_close(plain - regularised, 0.2 * beta_entropy(a, b).mean())


@pytest.mark.parametrize(("grid", "expected"), [(2, 1.55), (4, 2.96), (8, 4.35), (16, 5.74), (32, 7.12), (64, 8.51)])
def test_the_classifiers_gradient_is_multiplied_by_the_log_of_the_number_of_cells(grid: int, expected: float) -> None:
    torch.manual_seed(0)
    masks = max(20, 80_000 // grid**2)
    a, b = torch.rand(2, masks, grid**2)
    log_density = LogSumExp().log_density(beta_log_density(a, b, sample_cells(a, b)))
    assert log_density.mean().item() == pytest.approx(expected, abs=0.02)
    assert log_density.mean().item() == pytest.approx(math.log(grid**2) + 0.18, abs=0.03)


def test_with_one_cell_the_multiplier_is_often_negative() -> None:
    torch.manual_seed(0)
    a, b = torch.rand(2, 100_000, 1)
    negative = (beta_log_density(a, b, sample_cells(a, b)) < 0).float().mean().item()
    assert negative == pytest.approx(0.2375, abs=0.01)
    with pytest.raises(ValueError, match=r"mask.grid=1 with LogSumExp"):
        LogSumExp().check_grid(1)
    LogSumExp(detach_weight=True).check_grid(1)
    Reinforce().check_grid(1)


def test_samples_at_the_ends_have_finite_densities_and_gradients() -> None:
    a = torch.tensor([[-3.0, 3.0, -3.0, 3.0]], requires_grad=True)
    b = torch.tensor([[3.0, -3.0, -3.0, 3.0]], requires_grad=True)
    for end in (0.0, 1.0):
        density = beta_log_density(a, b, torch.full((1, 4), end))
        assert density.isfinite().all()
        assert torch.autograd.grad(density.sum(), a)[0].isfinite().all()


def test_a_decay_out_of_range_names_the_field() -> None:
    with pytest.raises(ValueError, match=r"objective.baseline_decay=1.0: must lie in \[0, 1\)"):
        Reinforce(baseline_decay=1.0)
