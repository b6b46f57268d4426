"""Log-probabilities and entropies of a language model's tokens, without the logits of all tokens at once."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_LOGITS = 2**25  # logits that exist in float32 at once, 128 MiB


def chunk_of(weight: Tensor) -> int:
    """Tokens whose logits are computed at once for an output embedding [V, H], unless told otherwise."""
    return max(CHUNK_LOGITS // len(weight), 1)


def token_log_probs(
    hidden: Tensor, weight: Tensor, target: Tensor, chunk: int | None = None, temperature: float = 1.0
) -> Tensor:
    """``log softmax(W h / temperature)[target]``: [...] float32 of hidden states [..., H] and targets [...] int64.

    Args:
        hidden: states that predict, one for each target.
        weight: output embedding W [V, H].
        target: tokens in [0, V).
        chunk: tokens whose V logits exist in float32 at once, in the backward pass too; default: 128 MiB of them.
        temperature: positive; what the tokens were sampled with.

    The product with W has the type that autocast gives it, else that of W; the softmax is float32 always.
    """
    if hidden.shape[:-1] != target.shape:
        raise ValueError(f"hidden {tuple(hidden.shape)} and target {tuple(target.shape)}: one state for each target")
    result: Tensor = _TokenLogProbs.apply(*_operands(hidden, weight, chunk, temperature), target)
    return result


def entropy(hidden: Tensor, weight: Tensor, chunk: int | None = None, temperature: float = 1.0) -> Tensor:
    """Entropy in nats of ``softmax(W h / temperature)``: [...] float32. Arguments as for ``token_log_probs``."""
    result: Tensor = _Entropy.apply(*_operands(hidden, weight, chunk, temperature))
    return result


def _operands(
    hidden: Tensor, weight: Tensor, chunk: int | None, temperature: float
) -> tuple[Tensor, Tensor, int, float]:
    chunk = chunk_of(weight) if chunk is None else chunk
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: must be at least 1")
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: must be positive")
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return hidden.to(dtype), weight.to(dtype), chunk, temperature


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, chunk: int, temperature: float, target: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight, target)
        ctx.chunk, ctx.temperature = chunk, temperature
        result = torch.empty(target.shape, dtype=torch.float32, device=hidden.device)
        for rows, logits in _logits(hidden, weight, chunk, temperature):
            chosen = logits.gather(1, target.reshape(-1, 1)[rows])[:, 0]
            result.view(-1)[rows] = chosen - logits.logsumexp(1)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, target = ctx.saved_tensors

        def of_logits(rows: slice, logits: Tensor) -> Tensor:
            """(one-hot - p) times the gradient of each token."""
            g = grad.reshape(-1, 1)[rows]
            return logits.log_softmax(1).exp_().mul_(-g).scatter_add_(1, target.reshape(-1, 1)[rows], g)

        return (*_backward(ctx, hidden, weight, of_logits), None, None, None)


class _Entropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, chunk: int, temperature: float) -> Tensor:
        ctx.chunk, ctx.temperature = chunk, temperature
        result = torch.empty(hidden.shape[:-1], dtype=torch.float32, device=hidden.device)
        for rows, logits in _logits(hidden, weight, chunk, temperature):
            log_p = logits.log_softmax(1)
            result.view(-1)[rows] = -torch.linalg.vecdot(log_p.exp(), log_p)
        ctx.save_for_backward(hidden, weight, result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, result = ctx.saved_tensors

        def of_logits(rows: slice, logits: Tensor) -> Tensor:
            """-p (log p + entropy) times the gradient of each token."""
            log_p = logits.log_softmax(1)
            p = log_p.exp()
            return log_p.add_(result.view(-1, 1)[rows]).mul_(p).mul_(-grad.reshape(-1, 1)[rows])

        return (*_backward(ctx, hidden, weight, of_logits), None, None)


def _logits(hidden: Tensor, weight: Tensor, chunk: int, temperature: float) -> Iterator[tuple[slice, Tensor]]:
    """One chunk after the other: its rows among all tokens, and its logits [chunk, V] float32."""
    states = hidden.reshape(-1, hidden.shape[-1])
    for start in range(0, len(states), chunk):
        rows = slice(start, start + chunk)
        yield rows, _product(states[rows], weight.T).div_(temperature)


def _backward(
    ctx: Any, hidden: Tensor, weight: Tensor, of_logits: Callable[[slice, Tensor], Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of hidden states and weight from those of each chunk's logits; W's sum is kept in float32."""
    states = hidden.reshape(-1, hidden.shape[-1])
    for_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
    for_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
    for rows, logits in _logits(hidden, weight, ctx.chunk, ctx.temperature):
        g = of_logits(rows, logits).div_(ctx.temperature).to(weight.dtype)
        if for_states is not None:
            for_states[rows] = g @ weight
        if for_weight is not None:
            for_weight += _product(g.T, states[rows])
    return (
        None if for_states is None else for_states.view(hidden.shape),
        None if for_weight is None else for_weight.to(weight.dtype),
    )


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in float32; on CUDA not rounded to the type of low-precision factors."""
    if a.is_cuda and a.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a @ b).float()
