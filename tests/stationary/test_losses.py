"""The higher-order compatibility loss: worked examples, the variants it must not be, limits and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from zoo.stationary.classifiers import SimplexClassifier
from zoo.stationary.losses import HigherOrderCompatibility, SameClass, higher_order_contrast
from zoo.stationary.simplex import simplex

OLD = torch.tensor([[1, 0], [0.8, 0.6], [0.28, 0.96]], dtype=torch.float64)
NEW = torch.tensor([[0.6, 0.8], [1, 0], [0, 1]], dtype=torch.float64)
LABEL = torch.tensor([0, 0, 1])


@pytest.mark.parametrize(
    ("same_class", "expected"), [("ones", -2.378314), ("drop", -2.746195), ("positive_in_denominator", 0.236786)]
)
def test_worked_example(same_class: SameClass, expected: float) -> None:
    assert higher_order_contrast(OLD, NEW, LABEL, same_class=same_class).item() == pytest.approx(expected, abs=1e-6)
    longer = higher_order_contrast(3 * OLD, 0.2 * NEW, LABEL, same_class=same_class)
    assert longer.item() == pytest.approx(expected, abs=1e-6)


def test_it_is_neither_plain_info_nce_nor_anchored_at_the_new_model() -> None:
    official = higher_order_contrast(OLD, NEW, LABEL).item()
    plain = cross_entropy(10 * OLD @ NEW.T, torch.arange(3)).item()
    swapped = higher_order_contrast(NEW, OLD, LABEL).item()
    assert (plain, swapped) == (pytest.approx(2.135176, abs=1e-6), pytest.approx(-1.773369, abs=1e-6))
    assert min(abs(official - plain), abs(official - swapped)) > 0.5


def test_gradient_of_the_worked_example_reaches_the_new_model_alone() -> None:
    old, new = OLD.clone().requires_grad_(), NEW.clone().requires_grad_()
    higher_order_contrast(old, new, LABEL).backward()
    expected = torch.tensor([[-2.401400, 3.195201], [-2.665347, -1.995476], [2.831290, -1.209866]]).double()
    assert old.grad is None
    # that is the gradient of unit rows; scaling to unit length takes away its part along each row
    expected -= (expected * NEW).sum(1, keepdim=True) * NEW
    torch.testing.assert_close(new.grad, expected, rtol=0, atol=2e-6)


def test_one_class_alone_stays_finite() -> None:
    label = torch.zeros(3, dtype=torch.long)
    new = NEW.clone().requires_grad_()
    loss = higher_order_contrast(OLD, new, label)
    assert loss.item() == pytest.approx(-6.768054, abs=1e-6)
    loss.backward()
    assert new.grad is not None
    assert new.grad.isfinite().all()
    assert higher_order_contrast(OLD, NEW, label, same_class="drop").item() == -torch.inf


@pytest.mark.parametrize(("count", "expected"), [(10, -7.929918), (1024, -7.013061)])
def test_collapsed_batch(count: int, expected: float) -> None:
    label = torch.arange(10).repeat(2)
    z = simplex(count, torch.float64)[count - 1 - label]
    assert higher_order_contrast(z, z, label).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("same_class", ["ones", "drop", "positive_in_denominator"])
def test_gradients_and_permutations(same_class: SameClass) -> None:
    generator = torch.Generator().manual_seed(0)
    old, new = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    label = torch.tensor([0, 1, 0, 2, 1, 1])

    def loss(z: Tensor) -> Tensor:
        return higher_order_contrast(old, z, label, 3.0, same_class)

    assert torch.autograd.gradcheck(loss, new.requires_grad_())
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    torch.testing.assert_close(higher_order_contrast(old[order], new[order], label[order], 3.0, same_class), loss(new))


def test_rows_of_a_joined_batch_average_to_its_value() -> None:
    old, new = torch.randn(2, 8, 4, dtype=torch.float64)
    label = torch.tensor([0, 1, 0, 2, 1, 1, 0, 0])
    for same_class in ("ones", "drop", "positive_in_denominator"):
        parts = [
            higher_order_contrast(old[i : i + 4], new[i : i + 4], label[i : i + 4], 10.0, same_class, new, label)
            for i in (0, 4)
        ]
        torch.testing.assert_close(sum(parts) / 2, higher_order_contrast(old, new, label, 10.0, same_class))


def test_float32_under_autocast_and_for_half_precision() -> None:
    old, new = torch.randn(2, 6, 64)
    label = torch.arange(6) % 3
    expected = higher_order_contrast(old, new, label)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(higher_order_contrast(old, new, label), expected)
    half = higher_order_contrast(old.bfloat16(), new.bfloat16(), label)
    assert half.dtype == torch.float32
    assert torch.equal(half, higher_order_contrast(old.bfloat16().float(), new.bfloat16().float(), label))


def test_a_zero_embedding_is_clamped() -> None:
    new = NEW.clone()
    new[0] = 0
    loss = higher_order_contrast(OLD, new.requires_grad_(), LABEL)
    loss.backward()
    assert loss.isfinite()
    assert new.grad is not None
    assert new.grad.isfinite().all()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 7, bias=False))


def step(objective: HigherOrderCompatibility | None, old: nn.Module | None) -> tuple[Tensor, list[Any]]:
    """One d-Simplex-HOC step: the loss and the gradients of the model in training."""
    model, classifier = net(), SimplexClassifier(8)
    classifier.grow(0, 3)
    x, label = torch.randn(9, 5, generator=torch.Generator().manual_seed(1)), torch.arange(9) % 3
    z = model(x)
    loss = cross_entropy(classifier(z), classifier.target(label))
    if objective is not None:
        loss = objective(loss, old(x) if old is not None else None, z, label)
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()]


def test_weight_one_is_d_simplex_without_a_previous_model() -> None:
    objective = HigherOrderCompatibility(weight=1.0)
    assert not objective.active
    loss, gradients = step(objective, None)
    plain, plain_gradients = step(None, None)
    assert torch.equal(loss, plain)
    assert all(torch.equal(a, b) for a, b in zip(gradients, plain_gradients, strict=True))


def test_the_weight_is_of_the_cross_entropy_and_the_previous_model_stays() -> None:
    old = net().eval()
    before = {name: value.clone() for name, value in old.state_dict().items()}
    losses = {weight: step(HigherOrderCompatibility(weight), old)[0] for weight in (0.0, 0.1, 1.0)}
    torch.testing.assert_close(losses[0.1], 0.1 * losses[1.0] + 0.9 * losses[0.0])
    assert losses[0.0] < 0 < losses[1.0]
    assert all(p.grad is None for p in old.parameters())
    assert all(torch.equal(before[name], value) for name, value in old.state_dict().items())


def test_identical_models_have_unit_positives() -> None:
    z = normalize(torch.randn(5, 6, dtype=torch.float64))
    label = torch.arange(5)
    expected = (1 + (10 * z @ z.T).exp().masked_fill(torch.eye(5, dtype=torch.bool), 0).sum(1)).log().mean() - 10
    torch.testing.assert_close(higher_order_contrast(z, 4 * z, label), expected)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"weight=1\.5"):
        HigherOrderCompatibility(weight=1.5)
    with pytest.raises(ValueError, match="mu=0"):
        HigherOrderCompatibility(mu=0)
    with pytest.raises(ValueError, match=r"same_class='mask'.*ones, drop, positive_in_denominator"):
        HigherOrderCompatibility(same_class="mask")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"previous_at_replacement='none'.*new_pretrained, last_finetuned"):
        HigherOrderCompatibility(previous_at_replacement="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"weight=0\.1 needs the previous model"):
        HigherOrderCompatibility()(torch.tensor(1.0), None, NEW, LABEL)
    with pytest.raises(ValueError, match=r"old \[3, 2\], new \[3, 1\]"):
        higher_order_contrast(OLD, NEW[:, :1], LABEL)
    with pytest.raises(ValueError, match="2 labels for 3 rows"):
        higher_order_contrast(OLD, NEW, LABEL[:2])
    with pytest.raises(ValueError, match="columns and column_label go together"):
        higher_order_contrast(OLD, NEW, LABEL, columns=NEW)
