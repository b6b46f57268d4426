"""A multilayer perceptron behind the interface of an image backbone."""

from itertools import pairwise

from torch import Tensor, nn

from zoo.nn.backbones import Backbone


class MLP(Backbone):
    """[Linear, BatchNorm, ReLU] layers on flattened inputs, for vectors shaped as images [B, in_features, 1, 1]."""

    def __init__(self, in_features: int, hidden: int = 256, layers: int = 2) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"MLP: layers must be at least 1, got {layers}")
        self.channels = hidden
        widths = [in_features] + [hidden] * layers
        blocks = [nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()) for a, b in pairwise(widths)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, image: Tensor) -> Tensor:
        """Maps [B, hidden, 1, 1]."""
        out: Tensor = self.blocks(image.flatten(1))
        return out[:, :, None, None]

    def out_size(self, image_size: int) -> int:
        """1, whatever comes in."""
        return 1
