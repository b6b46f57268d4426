"""Chunked log-probabilities and entropies: the plain formulas' values and gradients, in a chunk's memory."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.language.log_probs import entropy, token_log_probs

V, H = 37, 6


@pytest.fixture
def given() -> tuple[Tensor, Tensor, Tensor]:
    """States [2, 7, H], weight [V, H] and targets [2, 7]."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(2, 7, H, generator=generator), torch.randn(V, H, generator=generator)
    return hidden, weight, torch.randint(V, (2, 7), generator=generator)


def plain_log_probs(hidden: Tensor, weight: Tensor, target: Tensor, temperature: float) -> Tensor:
    logits = (hidden @ weight.T / temperature).float()
    return logits.log_softmax(-1).gather(-1, target[..., None])[..., 0]


def plain_entropy(hidden: Tensor, weight: Tensor, target: Tensor, temperature: float) -> Tensor:
    return torch.distributions.Categorical(logits=(hidden @ weight.T / temperature).float()).entropy()


def value_and_gradients(function: Callable[..., Tensor], hidden: Tensor, weight: Tensor) -> list[Tensor]:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    value = function(hidden, weight)
    upstream = torch.linspace(-1, 2, value.numel()).reshape(value.shape)
    return [value, *torch.autograd.grad((value * upstream).sum(), [hidden, weight])]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 4, 14, 1000])
def test_values_and_gradients_are_the_plain_ones(
    given: tuple[Tensor, Tensor, Tensor], chunk: int, temperature: float
) -> None:
    hidden, weight, target = given
    for chunked, plain in (
        (lambda h, w: token_log_probs(h, w, target, chunk, temperature), plain_log_probs),
        (lambda h, w: entropy(h, w, chunk, temperature), plain_entropy),
    ):
        found = value_and_gradients(chunked, hidden, weight)
        expected = value_and_gradients(lambda h, w, f=plain: f(h, w, target, temperature), hidden, weight)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_equal_logits_give_the_uniform_distribution() -> None:
    hidden, weight = torch.zeros(3, H), torch.randn(V, H)
    assert token_log_probs(hidden, weight, torch.tensor([0, 5, 36])).tolist() == pytest.approx([-math.log(V)] * 3)
    assert entropy(hidden, weight).tolist() == pytest.approx([math.log(V)] * 3)


def test_one_state_and_target_are_enough(given: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, target = given
    expected = (weight @ hidden[0, 0]).log_softmax(0)[target[0, 0]]
    torch.testing.assert_close(token_log_probs(hidden[0, 0], weight, target[0, 0]), expected)


def test_a_frozen_weight_gets_no_gradient(given: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, target = given
    hidden.requires_grad_()
    token_log_probs(hidden, weight, target, 4).sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None
    logits = (hidden.detach() @ weight.T).requires_grad_()
    logits.log_softmax(-1).gather(-1, target[..., None]).sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(hidden.grad, logits.grad @ weight)


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, Tensor):
                self.elements = max(self.elements, made.numel())
        return out


@pytest.mark.parametrize("what", ["log_probs", "entropy"])
def test_no_tensor_is_larger_than_the_logits_of_a_chunk(what: str) -> None:
    tokens, chunk = 64, 8  # V * tokens = 2368, V * chunk = 296, and states and weight are smaller still
    hidden, weight = torch.randn(tokens, 2, requires_grad=True), torch.randn(V, 2, requires_grad=True)
    target = torch.randint(V, (tokens,))
    with Largest() as plain:
        (plain_log_probs if what == "log_probs" else plain_entropy)(hidden, weight, target, 1).sum().backward()
    with Largest() as chunked:
        value = (
            token_log_probs(hidden, weight, target, chunk) if what == "log_probs" else entropy(hidden, weight, chunk)
        )
        value.sum().backward()
    assert plain.elements == V * tokens
    assert chunked.elements == V * chunk


def test_nothing_of_the_logits_is_kept_for_the_backward_pass(given: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, target = given
    weight.requires_grad_()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x):
        (token_log_probs(hidden, weight, target, 4).sum() + entropy(hidden, weight, 4).sum()).backward()
    assert max(kept) == V * H  # of logits it would be 14 V
    assert V * H < 14 * V


def test_softmax_is_float32_under_autocast_and_in_bfloat16(given: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, target = given
    logits = (hidden.bfloat16() @ weight.bfloat16().T).float()
    expected = logits.log_softmax(-1).gather(-1, target[..., None])[..., 0]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = value_and_gradients(lambda h, w: token_log_probs(h, w, target), hidden, weight)
        assert entropy(hidden, weight).dtype == torch.float32
    assert [x.dtype for x in mixed] == [torch.float32] * 3
    torch.testing.assert_close(mixed[0], expected, rtol=1e-6, atol=1e-6)
    low = value_and_gradients(lambda h, w: token_log_probs(h, w, target), hidden.bfloat16(), weight.bfloat16())
    assert [x.dtype for x in low] == [torch.float32, torch.bfloat16, torch.bfloat16]
    torch.testing.assert_close(low[0], expected, rtol=1e-6, atol=1e-6)
    full = value_and_gradients(lambda h, w: plain_log_probs(h, w, target, 1), hidden, weight)
    torch.testing.assert_close(mixed[1:], full[1:], rtol=0.05, atol=0.05)


def test_wrong_arguments_are_named(given: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, target = given
    with pytest.raises(ValueError, match=r"hidden \(2, 6, 6\) and target \(2, 7\): one state for each"):
        token_log_probs(hidden[:, 1:], weight, target)
    with pytest.raises(ValueError, match="chunk=0"):
        entropy(hidden, weight, 0)
    with pytest.raises(ValueError, match="temperature=0"):
        entropy(hidden, weight, temperature=0)
