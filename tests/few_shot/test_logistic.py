"""Batched logistic regression against closed forms, first-order conditions and scikit-learn."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.few_shot.heads import logistic_regression


def random_problems(scale: float = 1.0, n: int = 25, dim: int = 64, count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    # A common offset, as features after a ReLU have it.
    x = scale * (torch.randn(count, n, dim, generator=generator, dtype=torch.float64) + 3)
    return x, torch.arange(n).remainder(5).expand(count, n)


def violation(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, C: float) -> float:
    """Largest violation of W = C sum_i (y_i - p_i) x_i' and sum_i (y_i - p_i) = 0."""
    residual = F.one_hot(y, bias.shape[-1]) - (x @ weight.mT + bias.unsqueeze(1)).softmax(-1)
    return max((weight - C * residual.mT @ x).abs().max().item(), C * residual.sum(1).abs().max().item())


def test_two_points_on_a_line() -> None:
    weight, bias = logistic_regression(torch.tensor([[[-1.0], [1.0]]]).double(), torch.tensor([[0, 1]]), 2)
    w = weight[0, 1, 0].item()
    assert w == pytest.approx(0.5213, abs=5e-5)
    assert w == pytest.approx(2 / (1 + np.exp(2 * w)), abs=1e-9)
    assert weight[0, 0, 0].item() == pytest.approx(-w)
    assert bias.abs().max().item() < 1e-9


def test_three_classes_in_the_plane() -> None:
    x = torch.tensor([[[1, 0], [0.8, 0.2], [0, 1], [0.1, 0.9], [-1, 0], [-0.9, -0.3]]])
    weight, bias = logistic_regression(x, torch.tensor([[0, 0, 1, 1, 2, 2]]), 3)
    expected = torch.tensor([[0.8793, -0.3417], [-0.0162, 0.8324], [-0.8631, -0.4908]])
    torch.testing.assert_close(weight[0], expected, rtol=0, atol=6e-5)
    torch.testing.assert_close(bias[0], torch.tensor([0.0853, -0.1663, 0.0810]), rtol=0, atol=6e-5)
    probability = (weight[0] @ torch.tensor([0.5, 0.5]) + bias[0]).softmax(-1)
    torch.testing.assert_close(probability, torch.tensor([0.4385, 0.3919, 0.1696]), rtol=0, atol=6e-5)


@pytest.mark.parametrize(
    ("scale", "n", "dim", "C"),
    [(1.0, 25, 64, 1.0), (0.1, 5, 64, 1.0), (1.0, 30, 3, 1.0), (10.0, 25, 640, 1.0), (1.0, 25, 16, 1000.0)],
)
def test_first_order_conditions(scale: float, n: int, dim: int, C: float) -> None:
    x, y = random_problems(scale, n, dim)
    weight, bias = logistic_regression(x, y, 5, C)
    assert violation(x, y, weight, bias, C) < 1e-6
    assert bias.sum(1).abs().max().item() < 1e-8


def test_float32_input_gives_the_optimum_rounded_to_float32() -> None:
    x, y = random_problems()
    x = x.float()
    exact = logistic_regression(x.double(), y, 5)
    rounded = logistic_regression(x, y, 5)
    assert rounded[0].dtype == torch.float32
    for value, truth in zip(rounded, exact, strict=True):
        assert torch.equal(value, truth.float())


def test_agrees_with_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = random_problems(dim=16, count=2)
    weight, bias = logistic_regression(x, y, 5, C=0.5)
    for e in range(2):
        peer = linear_model.LogisticRegression(C=0.5, solver="newton-cholesky", tol=1e-10, max_iter=500)
        peer.fit(x[e].numpy(), y[e].numpy())
        np.testing.assert_allclose(weight[e].numpy(), peer.coef_, rtol=0, atol=1e-7)
        gauged = peer.intercept_ - peer.intercept_.mean()
        np.testing.assert_allclose(bias[e].numpy(), gauged, rtol=0, atol=1e-6)


def test_a_fit_does_not_depend_on_its_batch() -> None:
    x, y = random_problems()
    x = x * torch.tensor([0.01, 1, 10, 0.1, 30, 1]).view(-1, 1, 1).double()
    weight, bias = logistic_regression(x, y, 5)
    for e in range(len(x)):
        alone = logistic_regression(x[e : e + 1], y[e : e + 1], 5)
        torch.testing.assert_close(alone[0][0], weight[e], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(alone[1][0], bias[e], rtol=1e-9, atol=1e-9)


def test_shifting_and_rotating_the_samples() -> None:
    x, y = random_problems(n=10, dim=4)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    shift = torch.tensor([5.0, -3.0, 100.0, 0.0]).double()
    weight, bias = logistic_regression(x, y, 5)
    turned, moved = logistic_regression(x @ rotation + shift, y, 5)
    torch.testing.assert_close(turned, weight @ rotation, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(moved, bias - turned @ shift, rtol=1e-7, atol=1e-7)


def test_identical_samples_leave_the_class_frequencies() -> None:
    x = torch.ones(1, 4, 3).double()
    weight, bias = logistic_regression(x, torch.tensor([[0, 0, 0, 1]]), 2)
    assert weight.abs().max().item() < 1e-9
    assert bias.softmax(-1).flatten().tolist() == pytest.approx([0.75, 0.25])


def test_bad_input_is_refused_and_a_short_run_warns() -> None:
    x, y = random_problems()
    with pytest.raises(ValueError, match="class 5 has no support example"):
        logistic_regression(x, y, 6)
    with pytest.raises(ValueError, match="C=-1"):
        logistic_regression(x, y, 5, C=-1)
    with pytest.raises(ValueError, match="NaN"):
        logistic_regression(x / 0, y, 5)
    with pytest.raises(ValueError, match=r"y \(6, 24\)"):
        logistic_regression(x, y[:, :24], 5)
    with pytest.warns(RuntimeWarning, match="6 of 6 logistic regressions not converged in 1"):
        logistic_regression(x, y, 5, max_iter=1)
