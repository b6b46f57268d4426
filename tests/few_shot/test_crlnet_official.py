"""CRLNet with weights of the official code: its modules' golden vector, and errors when names do not fit."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from zoo.few_shot.crlnet_network import CRLNetHead, pair_cosine
from zoo.few_shot.crlnet_official import load_official_state


def official_shapes(c: int, h: int, hidden: int) -> list[tuple[str, tuple[int, ...]]]:
    """The 54 head tensors of the official code in its registration order."""

    def linear(name: str, out: int, into: int, *kernel: int) -> list[tuple[str, tuple[int, ...]]]:
        return [(f"{name}.weight", (out, into, *kernel)), (f"{name}.bias", (out,))]

    def norm(name: str) -> list[tuple[str, tuple[int, ...]]]:
        return [(f"{name}.weight", (c,)), (f"{name}.bias", (c,))]

    def attention(name: str) -> list[tuple[str, tuple[int, ...]]]:
        packed = [(f"{name}.in_proj_weight", (3 * c, c)), (f"{name}.in_proj_bias", (3 * c,))]
        return packed + linear(f"{name}.out_proj", c, c)

    def ffn(name: str) -> list[tuple[str, tuple[int, ...]]]:
        return linear(f"{name}.linear1", hidden, c) + linear(f"{name}.linear2", c, hidden) + norm(f"{name}.norm")

    cross = "double_cross_attn.0"
    own = "self_encoder.0"
    out = attention(f"{cross}.cross_attention.multihead_attn") + norm(f"{cross}.cross_attention.norm")
    out += ffn(f"{cross}.cross_attention.ffn_layer")
    for name in ("s_q", "s_k", "s_v", "q_q", "q_k", "q_v"):
        out += linear(f"{cross}.{name}_proj", c, c, 1, 1)
    out += attention(f"{own}.self_encoder.multihead_attn")
    out += norm(f"{own}.self_encoder.pre_norm") + norm(f"{own}.self_encoder.after_norm")
    out += ffn(f"{own}.self_encoder.ffn_layer")
    out += linear(f"{own}.s_proj", c, c, 1, 1) + linear(f"{own}.q_proj", c, c, 1, 1)
    for i, (into, to) in enumerate(pairwise((c + 1, hidden, hidden, c))):
        out += linear(f"mlp.0.layers.{i}", to, into)
    out += linear("conv.0.0", 1, h, h, 3, 3)
    return out + [(f"conv.0.1.{n}", (1,)) for n in ("weight", "bias", "running_mean", "running_var")]


def golden_state() -> dict[str, Tensor]:
    """The deterministic filling that the golden vector was computed with."""
    state = {}
    for i, (name, shape) in enumerate(official_shapes(16, 3, 2048)):
        v = (0.37 * torch.arange(math.prod(shape), dtype=torch.float64) + 1.3 * i).sin().view(shape)
        if name.endswith("running_mean"):
            v = torch.full(shape, 0.1, dtype=torch.float64)
        elif name.endswith("running_var"):
            v = torch.full(shape, 2.0, dtype=torch.float64)
        elif len(shape) > 1:
            v = 0.3 * v
        else:
            v = 1 + 0.1 * v if name.endswith("weight") else 0.1 * v
        state[f"module.{name}"] = v
    state["module.conv.0.1.num_batches_tracked"] = torch.tensor(7)
    state["module.feature_extractor.layer1.weight"] = torch.ones(2)
    return state


@pytest.fixture(scope="module")
def golden() -> tuple[CRLNetHead, Tensor, Tensor]:
    torch.set_default_dtype(torch.float64)
    try:
        head = CRLNetHead(16, 3).eval()
        c = torch.arange(16.0)[:, None, None]
        h = torch.arange(3.0)[:, None]
        w = torch.arange(3.0)
        f_s = (0.5 * c + 0.9 * h + 1.7 * w).sin().relu()[None]
        f_q = (0.3 * c - 0.4 * h + 0.8 * w).cos().relu()[None]
    finally:
        torch.set_default_dtype(torch.float32)
    backbone = load_official_state(head, golden_state())
    assert list(backbone) == ["layer1.weight"]
    return head, f_s, f_q


def close(actual: Tensor, expected: list[float] | float) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=actual.dtype), atol=1e-6, rtol=0)


def test_golden_vector_of_the_official_modules(golden: tuple[CRLNetHead, Tensor, Tensor]) -> None:
    head, f_s, f_q = golden
    layer = head.layers[0]
    with torch.no_grad():
        terms = head.precompute(f_s, "support"), head.precompute(f_q, "query")
        a_s, a_q = layer.cross(terms[0].cross, terms[1].cross)
        m_s, m_q = layer.correlate(a_s, a_q)
        e_s, e_q = head(f_s, f_q)
    close(a_s[0, 0, :4], [-0.039389, 1.153665, -1.508913, 1.478499])
    close(a_q[0, 0, :4], [-1.022057, 1.685392, -0.972166, 0.448381])
    close(m_s.flatten(), [0, 0, 1.716102, 0, 1.502549, 2.781733, 0.893741, 1.306510, 0.421433])
    close(m_q.flatten(), [0, 0, 0, 4.087210, 0, 0, 1.304965, 0, 0])
    close(e_s[0, :4], [-0.020736, 0.722655, -0.575653, 0.657361])
    close(e_q[0, :4], [-0.018929, 0.089999, 0.727326, -0.509311])
    torch.testing.assert_close(pair_cosine(e_q, e_s).item(), -0.63205756, atol=1e-7, rtol=0)


def test_golden_roles_swapped_and_plain_backbone(golden: tuple[CRLNetHead, Tensor, Tensor]) -> None:
    head, f_s, f_q = golden
    with torch.no_grad():
        e_s, e_q = head(f_q, f_s)
    torch.testing.assert_close(pair_cosine(e_q, e_s).item(), -0.68478783, atol=1e-7, rtol=0)
    e_s, e_q = CRLNetHead(16, 3, mode="backbone_only")(f_s, f_q)
    torch.testing.assert_close(pair_cosine(e_q, e_s).item(), 0.65054242, atol=1e-7, rtol=0)


def test_official_state_never_fails_silently() -> None:
    head = CRLNetHead(16, 3)
    with pytest.raises(ValueError, match=r"no weight of CRLNet's head among 1 names such as \['classifier"):
        load_official_state(head, {"classifier.weight": torch.ones(1)})
    state = golden_state()
    with pytest.raises(ValueError, match="neither CRLNet's head nor its backbone"):
        load_official_state(head, {**state, "module.extra.weight": torch.ones(1)})
    del state["module.mlp.0.layers.1.bias"]
    with pytest.raises(RuntimeError, match=r"represent\.mlp\.1\.bias"):
        load_official_state(head, state)
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_official_state(CRLNetHead(16, 4), golden_state())
