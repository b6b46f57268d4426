"""CRLNet's correlation filter against worked numbers and the official code's 3D convolution."""

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.few_shot.crlnet_layers import filter_correlation


def correlation_map(support: Tensor, query: Tensor) -> Tensor:
    """R_q[b, i, j, x, y] = sum_c support[b, c, i, j] query[b, c, x, y] for maps [B, C, h, w] (official code).

    Called with the arguments exchanged it gives R_s, the same numbers with the pairs of axes exchanged.
    """
    return torch.einsum("bcij,bcxy->bijxy", support, query)


def tokens(maps: Tensor) -> Tensor:
    return maps.flatten(2).transpose(1, 2)


def test_correlation_worked_example() -> None:
    a_s = torch.tensor([[[[1.0, 0], [0, 1]], [[0, 1], [1, 0]]]])
    a_q = torch.tensor([[[[1.0, 2], [0, 1]], [[0, 1], [1, -1]]]])
    centre = torch.zeros(1, 4, 3, 3)
    centre[..., 1, 1] = 1
    assert filter_correlation(tokens(a_q), tokens(a_s), centre)[0, 0].tolist() == [[2, 6], [2, 0]]
    assert filter_correlation(tokens(a_s), tokens(a_q), centre)[0, 0].tolist() == [[4, 1], [1, 4]]
    ones = torch.ones(1, 4, 3, 3)
    assert filter_correlation(tokens(a_q), tokens(a_s), ones).flatten().tolist() == [10] * 4
    assert filter_correlation(tokens(a_s), tokens(a_q), ones).flatten().tolist() == [10] * 4


def test_filter_equals_the_3d_convolution_of_the_correlation_map() -> None:
    torch.manual_seed(0)
    a_s, a_q = torch.randn(2, 3, 6, 4, 4, dtype=torch.float64)
    weight = torch.randn(1, 4, 4, 3, 3, dtype=torch.float64)
    for own, other in ((a_q, a_s), (a_s, a_q)):
        dense = F.conv3d(correlation_map(other, own), weight, padding=(0, 1, 1)).squeeze(1)
        fast = filter_correlation(tokens(own), tokens(other), weight.flatten(1, 2))
        torch.testing.assert_close(fast, dense, atol=1e-10, rtol=0)
