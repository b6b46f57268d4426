"""ResNet12, the usual few-shot backbone, with DropBlock on any device."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.nn.backbones import Backbone


def dropblock_rate(calls: Tensor, drop_rate: float, ramp: int = 40_000) -> Tensor:
    """Share of a map to clear after ``calls`` (integer tensor) forward calls, a float32 tensor.

    Rises linearly from 0 to ``drop_rate`` over ``ramp`` calls, then stays: 1 - keep in the official code of
    CRLNet, where keep = max(1 - drop_rate * calls / ramp, 1 - drop_rate).
    """
    return (calls.float() * (drop_rate / ramp)).clamp(max=drop_rate)


def dropblock_gamma(rate: Tensor, height: int, width: int, block: int) -> Tensor:
    """Probability that a position is the corner of a cleared block (DropBlock, arXiv 1810.12890, eq. 1).

    gamma = rate / block^2 * height * width / ((height - block + 1) (width - block + 1)), for maps of
    height x width where a share ``rate`` is to be cleared.

    Raises:
        ValueError: if a block does not fit into the map.
    """
    if min(height, width) < block:
        raise ValueError(
            f"DropBlock: blocks of {block} need maps of at least {block}x{block}, got {height}x{width}: "
            "use larger images, a smaller block_size, or drop_rate=0"
        )
    return rate / block**2 * (height * width / ((height - block + 1) * (width - block + 1)))


def dropblock(x: Tensor, gamma: Tensor, block: int) -> Tensor:
    """Clear random ``block`` x ``block`` squares of ``x`` [B, C, H, W], each channel on its own.

    The result is scaled by (numbers) / (numbers kept) so that a constant input keeps its mean.
    """
    batch, channels, height, width = x.shape
    corners = torch.rand(batch, channels, height - block + 1, width - block + 1, device=x.device) < gamma
    padded = F.pad(corners.float(), [block - 1] * 4)
    kept = 1 - F.max_pool2d(padded, block, stride=1)
    return x * (kept * (kept.numel() / kept.sum().clamp(min=1))).to(x.dtype)


class DropBlock(nn.Module):
    """DropBlock whose rate grows with the number of training calls.

    ``calls`` is saved with the weights, so that a resumed run drops as an uninterrupted one would. With
    ``count_eval_calls`` evaluation moves the schedule too, as in the official code.
    """

    calls: Tensor

    def __init__(self, drop_rate: float = 0.1, block_size: int = 5, count_eval_calls: bool = False) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.block_size = block_size
        self.count_eval_calls = count_eval_calls
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [B, C, H, W] with blocks cleared in training mode, unchanged in eval mode."""
        if self.training or self.count_eval_calls:
            self.calls += 1
        if not self.training or self.drop_rate == 0:
            return x
        rate = dropblock_rate(self.calls, self.drop_rate)
        gamma = dropblock_gamma(rate, x.shape[-2], x.shape[-1], self.block_size)
        return dropblock(x, gamma, self.block_size)


class ResidualBlock(nn.Module):
    """Three conv3x3-BN with a conv1x1-BN shortcut, LeakyReLU(0.1), MaxPool2, then ``drop``."""

    def __init__(self, in_channels: int, channels: int, drop: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample = nn.Sequential(nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] to [B, channels, H // 2, W // 2]."""
        out = F.leaky_relu(self.bn1(self.conv1(x)), 0.1)
        out = F.leaky_relu(self.bn2(self.conv2(out)), 0.1)
        out = F.leaky_relu(self.bn3(self.conv3(out)) + self.downsample(x), 0.1)
        dropped: Tensor = self.drop(F.max_pool2d(out, 2))
        return dropped


class ResNet12(Backbone):
    """Four residual blocks; 84 px give 5 x 5 maps, 224 px 14 x 14.

    As in CRLNet's official code (arXiv 2502.01183): element-wise dropout after blocks 1 and 2, DropBlock
    after blocks 3 and 4. In training DropBlock needs 5 x 5 maps after block 4 (80 px); for smaller images
    lower ``block_size`` or set ``drop_rate`` to 0.

    Args:
        in_channels: channels of the images.
        widths: channels of the four blocks; (64, 128, 256, 512) is the common smaller variant.
        drop_rate: dropout probability and DropBlock's final dropped share.
        block_size: side of DropBlock's squares.
        official_counter: let evaluation advance DropBlock's schedule, as the official code does.
    """

    def __init__(
        self,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 160, 320, 640),
        drop_rate: float = 0.1,
        block_size: int = 5,
        official_counter: bool = False,
    ) -> None:
        super().__init__()
        if len(widths) != 4:
            raise ValueError(f"ResNet12: widths must name 4 blocks, got {tuple(widths)}")
        if not 0 <= drop_rate < 1:
            raise ValueError(f"ResNet12: drop_rate must be in [0, 1), got {drop_rate}")
        if block_size < 1:
            raise ValueError(f"ResNet12: block_size must be at least 1, got {block_size}")
        self.channels = widths[-1]
        for i, width in enumerate(widths):
            drop = nn.Dropout(drop_rate) if i < 2 else DropBlock(drop_rate, block_size, official_counter)
            # a Sequential of one, because released checkpoints name their weights layer1.0.conv1 and so on
            self.add_module(f"layer{i + 1}", nn.Sequential(ResidualBlock(in_channels, width, drop)))
            in_channels = width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, image: Tensor) -> Tensor:
        """Maps [B, widths[-1], H // 16, W // 16]."""
        self.out_size(min(image.shape[-2:]))
        for layer in self.children():
            image = layer(image)
        return image

    def out_size(self, image_size: int) -> int:
        """Side of the map: ``image_size`` halved (rounded down) four times."""
        if image_size < 16:
            raise ValueError(f"ResNet12: images need at least 16 px for four poolings, got {image_size}")
        return image_size // 16
