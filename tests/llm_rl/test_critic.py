"""Value heads and the clipped value loss against closed forms."""

from typing import Any

import pytest
import torch

from zoo.llm_rl.batches import Minibatch, Rollout
from zoo.llm_rl.critic import Critic, ValueHead, value_loss


@pytest.mark.parametrize(
    ("value", "clip", "loss", "gradient"),
    [
        (0.1, 0.2, 0.405, -0.9),  # within the clip
        (0.5, 0.2, 0.32, 0.0),  # has moved far enough towards the return of 1
        (-0.5, 0.2, 1.125, -1.5),  # has moved away: pulled back
        (2.0, 0.2, 0.5, 1.0),  # has overshot
        (0.5, None, 0.125, -0.5),
    ],
)
def test_worked_numbers_from_an_old_value_of_0(value: float, clip: float | None, loss: float, gradient: float) -> None:
    v = torch.tensor(value, requires_grad=True)
    found = value_loss(v, torch.tensor(0.0), torch.tensor(1.0), clip)
    found.backward()
    assert found.item() == pytest.approx(loss)
    assert v.grad is not None
    assert v.grad.item() == pytest.approx(gradient)


def minibatch(**more: torch.Tensor) -> Minibatch:
    mask = torch.tensor([[True, True], [True, False]])
    ids = torch.zeros(2, 2, dtype=torch.long)
    rollout = Rollout(ids, mask, ids, mask, ids[0], mask[0], ids[0])
    return Minibatch(rollout, torch.zeros(2, 2), torch.zeros(2, 2), **more)


def test_the_loss_weighs_tokens_by_their_own_coefficients() -> None:
    value = torch.tensor([[0.1, 0.5], [-0.5, 7.0]], requires_grad=True)
    coefficient = torch.tensor([[0.5, 0.25], [0.25, 0.0]])
    batch = minibatch(value=torch.zeros(2, 2), returns=torch.ones(2, 2), value_coefficient=coefficient)
    loss, metrics = Critic(coefficient=5.0).loss(value, batch)
    assert loss.item() == pytest.approx(5 * (0.405 / 2 + 0.32 / 4 + 1.125 / 4))
    assert metrics["loss/value_avg"][0].item() == pytest.approx(0.405 + 0.32 + 1.125)
    assert [x.item() for x in metrics["val/clipfrac_avg"]] == [2, 3]
    loss.backward()
    assert value.grad is not None
    torch.testing.assert_close(value.grad, 5 * coefficient * torch.tensor([[-0.9, 0], [-1.5, 0]]))
    loss, metrics = Critic(clip=None, coefficient=1.0).loss(value, batch)
    assert loss.item() == pytest.approx(0.405 / 2 + 0.125 / 4 + 1.125 / 4)
    assert metrics["val/clipfrac_avg"][0].item() == 0
    with pytest.raises(ValueError, match="returns"):
        Critic().loss(value, minibatch())


def test_a_plain_head_is_linear() -> None:
    head = ValueHead(3)
    hidden = torch.randn(2, 5, 3)
    value, embedding = head(hidden)
    torch.testing.assert_close(value, hidden @ head.output.weight[0] + head.output.bias)
    assert embedding is None


def test_the_embedding_shares_the_first_layer_with_the_value() -> None:
    head = Critic(embedding=64, dropout=0.1).build(8)["policy"].eval()
    hidden = torch.randn(2, 5, 8)
    value, embedding = head(hidden)
    assert embedding.shape == (2, 5, 64)
    torch.testing.assert_close(embedding, head.embedding(hidden))
    torch.testing.assert_close(value, head.output(embedding.clamp(min=0))[..., 0])
    assert sum(p.numel() for p in head.parameters()) == 8 * 64 + 64 + 64 + 1
    value, embedding = head.train()(hidden)
    torch.testing.assert_close(value, head.output(embedding.clamp(min=0))[..., 0])  # the same units dropped for both
    assert not torch.allclose(embedding, head.embedding(hidden))


def test_values_keep_their_precision_under_autocast_and_of_bfloat16_states() -> None:
    head = ValueHead(64)
    hidden = torch.randn(100, 64).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value, _ = head(hidden)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, head(hidden.float())[0])


def test_heads_of_two_names_have_parameters_of_their_own() -> None:
    heads = Critic(heads=("policy", "guide")).build(4)
    hidden = torch.randn(1, 1, 4)
    heads["guide"](hidden).value.sum().backward()
    assert list(heads) == ["policy", "guide"]
    assert all(p.grad is None for p in heads["policy"].parameters())
    assert all(p.grad is not None for p in heads["guide"].parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": ()}, r"heads=\[\]"),
        ({"heads": ("a", "a")}, "none twice"),
        ({"clip": 0.0}, r"clip=0\.0"),
        ({"coefficient": -1.0}, r"coefficient=-1\.0"),
        ({"embedding": 0}, "embedding=0"),
        ({"dropout": 1.0}, r"dropout=1\.0"),
    ],
)
def test_bad_settings_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Critic(**arguments)
