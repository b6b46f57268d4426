"""The attention synthesiser's worked numbers, and what it makes of neighbours."""

from types import SimpleNamespace

import pytest
import torch

from datamodules.batches import SequenceBatch
from zoo.recommenders import Attention, Mean, UniformSample
from zoo.recommenders.synthesis import attention_weights

OUTPUTS = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])


def batch(prefix: list[int]) -> SequenceBatch:
    one = torch.ones(len(prefix), 1, dtype=torch.long)
    return SequenceBatch(one, one[:, 0], torch.tensor(prefix))


def attention(anchor: float, dropout: float = 0.0) -> Attention:
    part = Attention(dropout)
    part.build(1, 1)
    torch.nn.init.ones_(part.weight)
    torch.nn.init.ones_(part.attention)
    pool = torch.tensor([[anchor], [0.5], [1.0], [-1.0]])
    part.prepare(SimpleNamespace(pool_embedding=pool, pool_neighbors=torch.tensor([[1, 2, 3]] * 4)))
    return part


@pytest.mark.parametrize(
    ("anchor", "expected"),
    [
        (1.0, (0.348207, 0.574097, 0.077696)),
        (3.0, (0.348207, 0.574097, 0.077696)),
        (-3.0, (0.351372, 0.388326, 0.260303)),
    ],
)
def test_worked_weights_where_the_anchor_acts_through_the_kink_alone(anchor: float, expected: tuple[float]) -> None:
    semantics = torch.tensor([[[anchor], [0.5], [1.0], [-1.0]]])
    p = attention_weights(semantics, torch.ones(1, 1), torch.ones(2))
    torch.testing.assert_close(p, torch.tensor([expected]), atol=1e-6, rtol=0)


def test_the_score_is_that_of_the_two_projections_side_by_side() -> None:
    generator = torch.Generator().manual_seed(0)
    semantics, weight, a = (torch.randn(*s, generator=generator) for s in ((4, 6, 5), (5, 3), (6,)))
    g = semantics @ weight
    e = torch.cat([g[:, :1].expand(-1, 5, -1), g[:, 1:]], -1) @ a
    expected = torch.where(e > 0, e, 0.2 * e).softmax(-1)
    torch.testing.assert_close(attention_weights(semantics, weight, a), expected)


def test_worked_mixture() -> None:
    torch.testing.assert_close(
        attention(1)(OUTPUTS, batch([0])), torch.tensor([[0.425903, 0.651793]]), atol=1e-6, rtol=0
    )


def test_one_neighbour_is_itself() -> None:
    assert torch.equal(attention(1)(OUTPUTS[:, :1], batch([0])), OUTPUTS[:, 0])


def test_dropped_weights_are_not_normalised_again() -> None:
    torch.manual_seed(0)
    part = attention(1, dropout=0.5)
    full = torch.tensor([0.348207, 0.574097, 0.077696])
    mixed = part(torch.eye(3).expand(4000, 3, 3), batch([0] * 4000))  # the weights themselves
    assert torch.isclose(mixed / full, torch.tensor(2.0), rtol=1e-4).logical_or(mixed == 0).all()
    assert (mixed == 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert (mixed == 0).all(1).float().mean().item() == pytest.approx(1 / 8, abs=0.02)
    torch.testing.assert_close(part.eval()(torch.eye(3)[None], batch([0])), full[None], atol=1e-6, rtol=0)


def test_initial_values_are_xavier_uniform_with_gain_1_414() -> None:
    torch.manual_seed(0)
    part = Attention()
    part.build(64, 384)
    limit = 1.414 * (6 / (384 + 64)) ** 0.5
    assert part.weight.abs().max().item() == pytest.approx(limit, rel=0.01)
    assert part.weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.02)
    assert part.attention.abs().max().item() == pytest.approx(1.414 * (6 / 129) ** 0.5, rel=0.05)


def test_texts_are_neither_trained_nor_saved() -> None:
    part = attention(1)
    assert {name for name, _ in part.named_parameters()} == {"weight", "attention"} == set(part.state_dict())
    assert part.pool_embedding is not None
    assert not part.pool_embedding.requires_grad


def test_one_neighbour_drawn_uniformly_is_all_that_is_encoded() -> None:
    torch.manual_seed(0)
    neighbors = torch.arange(4)[None, :, None].expand(4000, 4, 2)
    chosen = UniformSample().choose(neighbors)
    assert chosen.shape == (4000, 1, 2)
    assert (chosen[:, 0, 0].bincount() / 4000 - 0.25).abs().max() < 0.03
    assert torch.equal(UniformSample()(OUTPUTS[:, 1:2], batch([0])), OUTPUTS[:, 1])
    torch.testing.assert_close(Mean()(OUTPUTS, batch([0])), torch.tensor([[2 / 3, 2 / 3]]))


def test_attention_without_texts_is_an_error() -> None:
    with pytest.raises(ValueError, match="give the data semantics, or choose the synthesizer Mean or UniformSample"):
        Attention().build(4, None)


def test_tables_of_other_sizes_are_errors() -> None:
    part = Attention()
    part.build(4, 8)
    with pytest.raises(ValueError, match="3 rows, pool_neighbors 5"):
        part.prepare(SimpleNamespace(pool_embedding=torch.ones(3, 8), pool_neighbors=torch.zeros(5, 2)))
    with pytest.raises(ValueError, match="have 6 components, the model was built for 8"):
        part.prepare(SimpleNamespace(pool_embedding=torch.ones(5, 6), pool_neighbors=torch.zeros(5, 2)))
