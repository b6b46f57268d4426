"""ResNet12 and DropBlock: sizes, parameter count, schedule, and what DropBlock clears."""

import pytest
import torch
from torch.nn import functional as F

from zoo.nn.resnet12 import DropBlock, ResNet12, dropblock, dropblock_gamma, dropblock_rate

TINY = (4, 4, 4, 4)


def test_parameters() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in ResNet12().parameters()) == 12_424_320


@pytest.mark.parametrize(("image", "side"), [(84, 5), (224, 14), (32, 2), (16, 1)])
def test_sizes_in_eval_mode(image: int, side: int) -> None:
    net = ResNet12(widths=TINY).eval()
    assert net(torch.zeros(1, 3, image, image)).shape == (1, 4, side, side)
    assert net.out_size(image) == side
    assert net.channels == 4


def test_too_small_images() -> None:
    with pytest.raises(ValueError, match="at least 16 px for four poolings, got 15"):
        ResNet12(widths=TINY)(torch.zeros(1, 3, 15, 15))
    small = torch.randn(2, 3, 32, 32)
    with pytest.raises(ValueError, match="blocks of 5 need maps of at least 5x5, got 4x4"):
        ResNet12(widths=TINY)(small)
    assert ResNet12(widths=TINY, block_size=2)(small).shape == (2, 4, 2, 2)
    assert ResNet12(widths=TINY, drop_rate=0)(small).shape == (2, 4, 2, 2)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="4 blocks"):
        ResNet12(widths=(8, 8))
    with pytest.raises(ValueError, match="drop_rate"):
        ResNet12(drop_rate=1.0)
    with pytest.raises(ValueError, match="block_size"):
        ResNet12(block_size=0)


def test_initial_weights_are_kaiming_fan_out() -> None:
    torch.manual_seed(0)
    conv = ResNet12(widths=(8, 8, 8, 64)).get_submodule("layer4.0.conv2")
    assert conv.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


def test_schedule_and_gamma_worked_numbers() -> None:
    calls = torch.tensor([0, 1, 20_000, 40_000, 80_000])
    rate = dropblock_rate(calls, 0.1)
    torch.testing.assert_close(rate, torch.tensor([0, 2.5e-6, 0.05, 0.1, 0.1]))
    assert dropblock_gamma(rate[3], 14, 14, 5).item() == pytest.approx(0.00784, abs=1e-7)
    assert dropblock_gamma(rate[3], 28, 28, 5).item() == pytest.approx(0.005444, abs=5e-7)
    assert dropblock_gamma(rate[3], 5, 5, 5).item() == pytest.approx(0.1)


def test_dropblock_clears_whole_blocks_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    out = dropblock(torch.ones(8, 32, 14, 14), torch.tensor(0.01), 5)
    cleared = out == 0
    assert out.mean().item() == pytest.approx(1, abs=1e-5)
    # every cleared position lies in a cleared 5x5 square: opening the mask by that square changes nothing
    corners = -F.max_pool2d(-cleared.float(), 5, stride=1)
    opened = F.max_pool2d(F.pad(corners, [4] * 4), 5, stride=1)
    assert torch.equal(opened.bool(), cleared)


def test_dropblock_clears_the_expected_share() -> None:
    torch.manual_seed(0)
    gamma = 0.00784
    out = dropblock(torch.ones(64, 200, 14, 14), torch.tensor(gamma), 5)
    # a position is kept if none of the corners whose block covers it is drawn
    covering = F.conv2d(F.pad(torch.ones(1, 1, 10, 10), [4] * 4), torch.ones(1, 1, 5, 5))
    expected = 1 - ((1 - gamma) ** covering).mean().item()
    assert (out == 0).float().mean().item() == pytest.approx(expected, abs=0.002)
    share = (out == 0).float().mean((0, 1))
    assert share[0, 0].item() == pytest.approx(gamma, abs=0.004)
    assert share[7, 7].item() == pytest.approx(1 - (1 - gamma) ** 25, abs=0.015)


def test_dropblock_counts_training_calls_and_saves_the_count() -> None:
    x = torch.ones(1, 1, 5, 5)
    default, official = DropBlock(), DropBlock(count_eval_calls=True)
    for module in (default, official):
        module(x)
        module(x)
        module.eval()
        assert torch.equal(module(x), x)
    assert (default.calls.item(), official.calls.item()) == (2, 3)
    resumed = DropBlock()
    resumed.load_state_dict(default.state_dict())
    assert resumed.calls.item() == 2


def test_resnet12_counts_one_call_a_forward_in_blocks_three_and_four() -> None:
    net = ResNet12(widths=TINY)
    net(torch.randn(2, 3, 84, 84))
    counts = {name: buffer.item() for name, buffer in net.named_buffers() if name.endswith("calls")}
    assert counts == {"layer3.0.drop.calls": 1, "layer4.0.drop.calls": 1}


def test_dropped_everything_is_zero_not_nan() -> None:
    assert dropblock(torch.ones(1, 1, 5, 5), torch.tensor(1.0), 5).abs().sum() == 0


def test_element_dropout_after_blocks_one_and_two() -> None:
    net = ResNet12(widths=TINY)
    rates = [m.p for m in net.modules() if isinstance(m, torch.nn.Dropout)]
    assert rates == [0.1, 0.1]
