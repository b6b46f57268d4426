"""CRLNet's head against worked numbers, limits in which it reduces to something simpler, and invariants."""

import math

import pytest
import torch
from torch import Tensor

from zoo.few_shot.crlnet_network import CRLNetHead, pair_cosine, pair_loss

SMALL = {"channels": 8, "map_size": 3, "heads": 2, "hidden": 16, "mlp_hidden": 16}


def close(actual: Tensor, expected: list[float] | float) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=actual.dtype), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("channels", "map_size", "cross", "own", "mlp", "conv", "total"),
    [
        (640, 14, 6_729_088, 5_089_408, 6_822_528, 1_767, 18_642_791),
        (2048, 7, 50_364_416, 33_583_104, 12_591_104, 444, 96_539_068),
        (384, 1, 3_055_232, 2_464_640, 5_773_696, 12, 11_293_580),
    ],
)
def test_parameter_counts(channels: int, map_size: int, cross: int, own: int, mlp: int, conv: int, total: int) -> None:
    with torch.device("meta"):
        head = CRLNetHead(channels, map_size)
    layer = head.layers[0]

    def count(*modules: torch.nn.Module) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    assert count(layer.cross) == cross
    assert count(layer.represent.attention, layer.represent.project) == own
    assert count(layer.represent.mlp) == mlp
    assert count(layer.filters) == conv
    assert count(head) == total


def test_loss_worked_example_and_rejects_class_ids() -> None:
    q = torch.tensor([[1.0, 0], [0, 1], [3, 4], [1, 1]])
    s = torch.tensor([[1.0, 0], [1, 0], [4, 3], [-1, -1]])
    label = torch.tensor([1, 0, 1, 0])
    cosine = pair_cosine(q, s)
    close(cosine, [1, 0, 0.96, -1])
    close(pair_loss(cosine, label), 0.2504)
    close(pair_loss(cosine[1:3], label[1:3], "bce"), -(math.log(0.5) + math.log(0.98)) / 2)
    assert pair_cosine(torch.zeros(1, 2), torch.ones(1, 2)).item() == 0
    with pytest.raises(ValueError, match=r"got \[0, 1, 3\]"):
        pair_loss(cosine, torch.tensor([1, 0, 3, 0]))
    with pytest.raises(ValueError, match="'hinge' is unknown"):
        pair_loss(cosine, label, "hinge")


def random_maps(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 8, 3, 3, generator=torch.Generator().manual_seed(seed)).relu()


def test_full_backbone_weight_scores_like_the_backbone() -> None:
    f_s, f_q = random_maps(4), random_maps(4, 1)
    e_s, e_q = CRLNetHead(**SMALL, residual_backbone_weight=1.0)(f_s, f_q)
    torch.testing.assert_close(e_s, f_s.mean((2, 3)))
    torch.testing.assert_close(pair_cosine(e_q, e_s), pair_cosine(f_q.mean((2, 3)), f_s.mean((2, 3))))


def test_residual_weight_interpolates_linearly() -> None:
    f_s, f_q = random_maps(4), random_maps(4, 1)
    e = {}
    for w in (0.0, 0.25, 1.0):
        torch.manual_seed(0)
        e[w] = CRLNetHead(**SMALL, residual_backbone_weight=w).eval()(f_s, f_q)[1]
    torch.testing.assert_close(e[0.25], 0.25 * e[1.0] + 0.75 * e[0.0])


def test_constant_conditioned_map_shifts_the_backbone_by_a_constant() -> None:
    head = CRLNetHead(**SMALL).eval()
    represent = head.layers[0].represent
    with torch.no_grad():
        represent.mlp[-1].weight.zero_()
    f_s, f_q = random_maps(5), random_maps(5, 1)
    e_s, e_q = head(f_s, f_q)
    for e, f in ((e_s, f_s), (e_q, f_q)):
        shift = e - f.mean((2, 3)) / 2
        torch.testing.assert_close(shift, shift[:1].expand_as(shift))


def test_no_correlation_equals_full_with_a_silent_filter() -> None:
    full, without = CRLNetHead(**SMALL).eval(), CRLNetHead(**SMALL, mode="no_correlation").eval()
    missing = without.load_state_dict(full.state_dict(), strict=False).missing_keys
    assert missing == []
    f_s, f_q = random_maps(4), random_maps(4, 1)
    expected = without(f_s, f_q)
    with torch.no_grad():
        full.layers[0].filters[0].bias.fill_(5.0)
    assert not torch.allclose(full(f_s, f_q)[0], expected[0])
    with torch.no_grad():
        full.layers[0].filters[0].weight.zero_()
        full.layers[0].filters[0].bias.zero_()
    torch.testing.assert_close(full(f_s, f_q), expected)
    # nothing of the partner is left
    torch.testing.assert_close(without(f_s, random_maps(4, 2))[0], expected[0])


def test_cross_only_pools_the_attended_map() -> None:
    torch.manual_seed(0)
    head = CRLNetHead(**SMALL, mode="cross_only", residual_backbone_weight=0.0).eval()
    e_s, _ = head(random_maps(3), random_maps(3, 1))
    # LayerNorm at its initial values leaves each token with mean 0, and so their average
    torch.testing.assert_close(e_s.mean(1), torch.zeros(3), atol=1e-6, rtol=0)
    assert {name.split(".")[2] for name, _ in head.named_parameters()} == {"cross"}


def test_no_self_attention_is_the_mlp_and_a_projection() -> None:
    head = CRLNetHead(**SMALL, mode="no_self_attention", residual_backbone_weight=0.0).eval()
    layer = head.layers[0]
    f_s, f_q = random_maps(3), random_maps(3, 1)
    terms = head.precompute(f_s, "support"), head.precompute(f_q, "query")
    m_s, _ = layer.correlate(*layer.cross(terms[0].cross, terms[1].cross))
    x = torch.cat([f_s.flatten(2).transpose(1, 2), m_s], 2)
    mlp = layer.represent.mlp
    x = layer.represent.project["s"](mlp[2](mlp[1](mlp[0](x).relu()).relu()))
    torch.testing.assert_close(head(f_s, f_q)[0], x.mean(1))


def test_unshared_parts_are_the_shared_ones_when_equal() -> None:
    shared = CRLNetHead(**SMALL).eval()
    split = CRLNetHead(**SMALL, share_attention=False, share_conv=False).eval()
    weights = shared.state_dict()
    for name in split.state_dict():
        weights.setdefault(
            name,
            weights.get(name.replace("attention.1.", "attention.0.").replace("filters.1.", "filters.0.")),
        )
    split.load_state_dict(weights)
    f_s, f_q = random_maps(4), random_maps(4, 1)
    expected = shared(f_s, f_q)
    torch.testing.assert_close(split(f_s, f_q), expected)
    # the second copies serve the query: changing one leaves the support's attention and filter alone
    with torch.no_grad():
        split.layers[0].represent.attention[1].after_norm.weight.mul_(3)
    e_s, e_q = split(f_s, f_q)
    torch.testing.assert_close(e_s, expected[0])
    assert not torch.allclose(e_q, expected[1])


def test_normalised_correlation_forgets_the_scale() -> None:
    head = CRLNetHead(**SMALL, normalize_correlation=True).eval()
    a_s, a_q = torch.randn(2, 3, 9, 8)
    layer = head.layers[0]
    with torch.no_grad():
        layer.filters[0].norm.bias.fill_(1.0)
    torch.testing.assert_close(layer.correlate(a_s, 10 * a_q), layer.correlate(a_s, a_q))


@pytest.mark.parametrize("options", [{}, {"num_layer": 2}, {"mode": "no_correlation"}, {"share_attention": False}])
def test_cached_and_chunked_pairs_equal_the_naive_ones(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    head = CRLNetHead(**SMALL, **options).eval()
    f_s, f_q = random_maps(3), random_maps(5, 1)
    s_idx, q_idx = torch.tensor([0, 1, 2, 0, 1, 2, 2, 2]), torch.tensor([0, 0, 0, 4, 3, 2, 1, 1])
    terms = head.precompute(f_s, "support"), head.precompute(f_q, "query")
    cached = head.score_pairs(*terms, s_idx, q_idx, chunk=3)
    one_by_one = [pair_cosine(*reversed(head(f_s[s, None], f_q[q, None]))) for s, q in zip(s_idx, q_idx, strict=True)]
    torch.testing.assert_close(cached, torch.cat(one_by_one), atol=1e-5, rtol=0)
    assert cached.std() > 1e-3


def test_permuting_pairs_permutes_the_embeddings() -> None:
    head = CRLNetHead(**SMALL).eval()
    f_s, f_q = random_maps(6), random_maps(6, 1)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    e_s, e_q = head(f_s, f_q)
    torch.testing.assert_close(head(f_s[order], f_q[order]), (e_s[order], e_q[order]))


def zero_gradients(head: CRLNetHead) -> set[str]:
    f_s, f_q = random_maps(6), random_maps(6, 1)
    head.double().zero_grad()
    e_s, e_q = head(f_s.double(), f_q.double())
    pair_loss(pair_cosine(e_q, e_s), torch.tensor([1, 0, 1, 0, 1, 0])).backward()
    return {name for name, p in head.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-12}


def test_only_key_biases_and_a_bias_before_batchnorm_have_no_gradient() -> None:
    torch.manual_seed(0)
    head = CRLNetHead(**SMALL)
    assert len(list(head.parameters())) == 52
    with torch.no_grad():
        head.layers[0].filters[0].norm.bias.fill_(3.0)  # keeps the ReLU behind it alive
    keys = {"layers.0.cross.project.s_k.bias", "layers.0.cross.project.q_k.bias"}
    assert zero_gradients(head.eval()) == keys
    assert zero_gradients(head.train()) == keys | {"layers.0.filters.0.bias"}


def test_initial_values() -> None:
    head = CRLNetHead(64, 3, hidden=96, mlp_hidden=80)
    layer = head.layers[0]
    for attention in (layer.cross.attention[0], layer.represent.attention[0]):
        packed = attention.attention.in_proj
        bound = math.sqrt(6 / (64 + 3 * 64))
        assert 0.99 * bound < packed.weight.abs().max() <= bound
        assert packed.bias.abs().max() == attention.attention.out_proj.bias.abs().max() == 0
        bound = math.sqrt(6 / (64 + 96))
        assert 0.99 * bound < attention.feed_forward.linear1.weight.abs().max() <= bound
    bound = math.sqrt(6 / 128)
    assert 0.99 * bound < layer.cross.project["q_v"].weight.abs().max() <= bound
    bound = 1 / math.sqrt(64)  # the framework's default for 64 inputs
    assert 0.99 * bound < layer.represent.project["q"].weight.abs().max() <= bound
    assert 0.9 / math.sqrt(81) < layer.filters[0].weight.abs().max() <= 1 / math.sqrt(81)


def test_dropout_is_only_in_the_cross_attention() -> None:
    head = CRLNetHead(**SMALL)
    rates = {name: m.p for name, m in head.named_modules() if isinstance(m, torch.nn.Dropout) and m.p > 0}
    assert rates == {"layers.0.cross.attention.0.feed_forward.dropout": 0.1}


def test_batchnorm_sees_support_then_query() -> None:
    head = CRLNetHead(**SMALL)
    norm = head.layers[0].filters[0].norm
    seen: list[Tensor] = []
    norm.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach().mean()))
    a_s, a_q = torch.randn(2, 3, 9, 8)
    head.layers[0].correlate(a_s, a_q)
    assert norm.num_batches_tracked == 2
    close(norm.running_mean[0], (0.9 * 0.1 * seen[0] + 0.1 * seen[1]).item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_correlation_stays_out_of_autocast(dtype: torch.dtype) -> None:
    head = CRLNetHead(**SMALL).eval()
    a_s, a_q = 300 * torch.randn(2, 3, 9, 8)
    expected = head.layers[0].correlate(a_s, a_q)
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(head.layers[0].correlate(a_s, a_q), expected, atol=0, rtol=0)


def test_float16_weights_are_refused_and_bfloat16_agrees() -> None:
    f_s, f_q = random_maps(4), random_maps(4, 1)
    head = CRLNetHead(**SMALL).eval()
    expected = pair_cosine(*head(f_s, f_q))
    half = head.to(torch.bfloat16)(f_s.bfloat16(), f_q.bfloat16())
    torch.testing.assert_close(pair_cosine(*half).float(), expected, atol=0.05, rtol=0)
    with pytest.raises(TypeError, match="overflows in float16"):
        head.half()(f_s.half(), f_q.half())


def test_errors_name_what_is_wrong() -> None:
    head = CRLNetHead(**SMALL)
    f = random_maps(2)
    with pytest.raises(ValueError, match="built for 3x3 maps; got 6x6"):
        head(torch.zeros(2, 8, 6, 6), torch.zeros(2, 8, 6, 6))
    with pytest.raises(ValueError, match="square feature maps, got 3x4"):
        head(torch.zeros(2, 8, 3, 4), f)
    with pytest.raises(ValueError, match=r"needs maps \[B, 8, h, w\], got \(2, 4, 3, 3\)"):
        head(f[:, :4], f)
    with pytest.raises(ValueError, match="aligned pairs, got 2 supports and 1 queries"):
        head(f, f[:1])
    with pytest.raises(TypeError, match="uint8"):
        head(f.byte(), f.byte())
    with pytest.raises(ValueError, match="must divide by 4 and by heads=8, got 36"):
        CRLNetHead(36, 3)
    with pytest.raises(ValueError, match="heads=2, got 6"):
        CRLNetHead(6, 3, heads=2)
    with pytest.raises(ValueError, match="'half'"):
        CRLNetHead(8, 3, heads=2, mode="half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\[0, 1\], got 1.5"):
        CRLNetHead(8, 3, heads=2, residual_backbone_weight=1.5)
    one = CRLNetHead(8, 1, heads=2, hidden=8, mlp_hidden=8)
    with pytest.raises(ValueError, match="batch_size >= 2"):
        one(torch.ones(1, 8, 1, 1), torch.ones(1, 8, 1, 1))
