"""torchvision's residual networks as backbones."""

from typing import Literal

from torch import Tensor, nn

from zoo.nn.backbones import Backbone


class TorchvisionResNet(Backbone):
    """torchvision's ResNet up to its last maps.

    Args:
        name: ``resnet18`` (512 channels), ``resnet34`` (512) or ``resnet50`` (2048).
        in_channels: channels of the images.
        cifar_stem: a 3x3 first convolution and no pooling, for images of 32 px; False keeps the 7x7 of stride 2.
    """

    def __init__(
        self,
        name: Literal["resnet18", "resnet34", "resnet50"] = "resnet18",
        in_channels: int = 3,
        cifar_stem: bool = False,
    ) -> None:
        super().__init__()
        from torchvision import models  # takes a second, and most configs do not need it

        network = getattr(models, name)(weights=None)
        self.channels = network.fc.in_features
        self.stride = 8 if cifar_stem else 32
        stem: nn.Module = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        if not cifar_stem:
            stem = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")  # type: ignore[arg-type]
        pool = nn.Identity() if cifar_stem else network.maxpool
        self.stem = nn.Sequential(stem, network.bn1, network.relu, pool)
        self.layers = nn.Sequential(network.layer1, network.layer2, network.layer3, network.layer4)

    def forward(self, image: Tensor) -> Tensor:
        """Maps [B, channels, h, w], h = H / 32 rounded up, or H / 8 with the stem for small images."""
        out: Tensor = self.layers(self.stem(image))
        return out

    def out_size(self, image_size: int) -> int:
        """Side of the map: ``image_size`` over the stride, rounded up."""
        return -(-image_size // self.stride)
