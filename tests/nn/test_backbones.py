"""Backbones and the position code: sizes, parameter counts, worked numbers."""

import pytest
import torch

from zoo.nn.backbones import Conv64F, TimmBackbone
from zoo.nn.position import sine_position


def test_conv64f_parameters() -> None:
    assert sum(p.numel() for p in Conv64F().parameters()) == 113_088


@pytest.mark.parametrize(
    ("image", "pools", "side"), [(84, 4, 5), (32, 4, 2), (28, 4, 1), (16, 4, 1), (28, 2, 7), (28, 0, 28)]
)
def test_conv64f_sizes(image: int, pools: int, side: int) -> None:
    net = Conv64F(in_channels=1, width=8, pools=pools)
    assert net(torch.zeros(2, 1, image, image)).shape == (2, 8, side, side)
    assert net.out_size(image) == side
    assert net.channels == 8


def test_conv64f_pools_the_first_blocks() -> None:
    net = Conv64F(pools=2)
    assert [len(block) for block in net.blocks] == [4, 4, 3, 3]


def test_conv64f_errors() -> None:
    with pytest.raises(ValueError, match="15 px vanish in 4 poolings: use at least 16"):
        Conv64F()(torch.zeros(1, 3, 20, 15))
    with pytest.raises(ValueError, match="3 px vanish in 2 poolings"):
        Conv64F(pools=2).out_size(3)
    with pytest.raises(ValueError, match="pools must be 0 to 4"):
        Conv64F(pools=5)


def test_timm_resnet50_last_level_on_meta_device() -> None:
    with torch.device("meta"):
        net = TimmBackbone("resnet50")
        assert net(torch.zeros(2, 3, 224, 224)).shape == (2, 2048, 7, 7)
        assert net.out_size(224) == 7
        level = TimmBackbone("resnet50", out_index=3)
        assert (level.channels, level.out_size(224)) == (1024, 14)
    assert net.channels == 2048


@pytest.mark.parametrize("option", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained"])
def test_timm_is_given_no_file_to_unpickle(option: str) -> None:
    with pytest.raises(ValueError, match=f"options must not have {option}, as timm may run code"):
        TimmBackbone("resnet10t", options={option: "a.json"})


def test_timm_class_and_patch_tokens() -> None:
    name, options = "vit_tiny_patch16_224", {"img_size": 48, "depth": 1}
    torch.manual_seed(0)
    cls = TimmBackbone(name, tokens="cls", in_channels=1, options=options).eval()
    patch = TimmBackbone(name, tokens="patch", in_channels=1, options=options).eval()
    patch.load_state_dict(cls.state_dict())
    image = torch.randn(2, 1, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(cls(image)[:, :, 0, 0], cls.model(image))
        grid = patch(image)
        tokens = patch.model.forward_features(image)
    assert grid.shape == (2, 192, 3, 3)
    # row 1, column 2 of the grid is patch 5, behind the class token
    torch.testing.assert_close(grid[:, :, 1, 2], tokens[:, 1 + 5])
    assert (cls.out_size(48), patch.out_size(48), cls.channels) == (1, 3, 192)


def test_timm_out_size_leaves_the_model_alone() -> None:
    net = TimmBackbone("resnet10t").train()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    assert net.out_size(65) == 3
    assert all(module.training for module in net.modules())
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_timm_models_without_the_tokens_asked_for() -> None:
    with pytest.raises(ValueError, match="resnet10t has no tokens"):
        TimmBackbone("resnet10t", tokens="cls")
    with torch.device("meta"), pytest.raises(ValueError, match="has no class token: use tokens='patch'"):
        TimmBackbone("vit_base_patch16_siglip_224", tokens="cls")


def test_sine_position_worked_numbers() -> None:
    cell = torch.tensor([0, -1, 0.031411, 0.999507])
    code = sine_position(2, 2, 8)
    assert code.shape == (8, 2, 2)
    torch.testing.assert_close(code[:, 0, 0], torch.cat([cell, cell]), atol=1e-5, rtol=0)
    tall = sine_position(4, 2, 8)
    y = torch.tensor([1, 0, 0.015707, 0.999877])
    torch.testing.assert_close(tall[:4, 0, 0], y, atol=1e-5, rtol=0)
    torch.testing.assert_close(tall[4:, 0, 0], cell, atol=1e-5, rtol=0)
    # y varies along rows only, x along columns only
    assert torch.equal(tall[:4, :, 0], tall[:4, :, 1])
    assert torch.equal(tall[4:, 0], tall[4:, 3])


def test_sine_position_needs_multiples_of_four() -> None:
    with pytest.raises(ValueError, match="got 6"):
        sine_position(2, 2, 6)
