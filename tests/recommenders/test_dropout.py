import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from zoo.recommenders.dropout import Dropout, attention, dropout


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_keeps_a_share_and_the_mean(p: float) -> None:
    torch.manual_seed(0)
    x = torch.full((200_000,), 3.0, requires_grad=True)
    y = dropout(x, p)
    assert y.unique().tolist() == [0.0, pytest.approx(3 / (1 - p))]
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=0.005)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, y.detach() / 3)


def test_dropout_is_off_in_evaluation_and_whole_at_one() -> None:
    x = torch.ones(10)
    part = Dropout(0.5).eval()
    assert torch.equal(part(x), x)
    assert not dropout(x, 1.0).any()
    torch.manual_seed(0)
    assert (part.train()(x) == 0).any()


def test_attention_equals_torchs_without_dropout_and_on_average_with_it() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 2, 5, 4) for _ in range(3))
    mask = torch.zeros(2, 1, 5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), -1e4)
    whole = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(attention(query, key, value, mask, 0.0), whole)
    torch.testing.assert_close(attention(query, key, value, mask, 1e-9), whole)
    drawn = torch.stack([attention(query, key, value, mask, 0.3) for _ in range(4000)])
    torch.testing.assert_close(drawn.mean(0), whole, atol=0.06, rtol=0)
