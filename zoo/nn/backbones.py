"""Backbones that turn images into feature maps, with one interface for every family."""

from typing import Any, Literal

import torch
from torch import Tensor, nn


class Backbone(nn.Module):
    """Images [B, in_channels, H, W] to maps [B, ``channels``, h, w]; pooling is left to the head."""

    channels: int

    def forward(self, image: Tensor) -> Tensor:
        """Feature maps [B, channels, h, w] of ``image`` [B, in_channels, H, W]."""
        raise NotImplementedError

    def out_size(self, image_size: int) -> int:
        """Side h = w of the map of a square image of ``image_size`` pixels."""
        raise NotImplementedError


class Conv64F(Backbone):
    """Four blocks of [conv3x3, BatchNorm, ReLU], with MaxPool2 after the first ``pools`` of them.

    The Conv4 of Matching and Prototypical Networks (arXiv 1703.05175): 84 px give 64 x 5 x 5, 32 px 2 x 2,
    28 px 1 x 1. Fewer pools keep larger maps for heads that compare positions.

    Raises:
        ValueError: if ``pools`` is outside 0..4, or an image is smaller than 2**pools pixels.
    """

    def __init__(self, in_channels: int = 3, width: int = 64, pools: int = 4) -> None:
        super().__init__()
        if not 0 <= pools <= 4:
            raise ValueError(f"Conv64F: pools must be 0 to 4 (it has four blocks), got {pools}")
        self.channels = width
        self.pools = pools
        blocks = []
        for i in range(4):
            layers: list[nn.Module] = [
                nn.Conv2d(in_channels if i == 0 else width, width, 3, padding=1),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            if i < pools:
                layers.append(nn.MaxPool2d(2))
            blocks.append(nn.Sequential(*layers))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, image: Tensor) -> Tensor:
        """Maps [B, width, H // 2**pools, W // 2**pools]."""
        self.out_size(min(image.shape[-2:]))
        out: Tensor = self.blocks(image)
        return out

    def out_size(self, image_size: int) -> int:
        """Side of the map: ``image_size`` halved (rounded down) ``pools`` times."""
        if image_size < 2**self.pools:
            raise ValueError(
                f"Conv64F: images of {image_size} px vanish in {self.pools} poolings: "
                f"use at least {2**self.pools} px or fewer pools"
            )
        return image_size // 2**self.pools


class TimmBackbone(Backbone):
    """Any timm model with feature maps (``tokens="map"``) or any timm vision transformer.

    Args:
        name: timm's model name, e.g. ``resnet50`` or ``vit_small_patch16_224.dino``.
        pretrained: download timm's weights.
        in_channels: channels of the images.
        tokens: ``map`` takes a level of the feature pyramid; ``cls`` the normalised class token as a 1 x 1
            map (what CRLNet's official code does with DINO); ``patch`` the normalised patch tokens as an
            h x w map.
        out_index: level of the pyramid for ``map``; -1 is the last (layer4 of a ResNet).
        options: further arguments of ``timm.create_model``, e.g. ``{img_size: 96}``.

    Raises:
        ValueError: if the model lacks the tokens asked for, and for options that name a file of weights, which timm
            might unpickle.
    """

    model: Any

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        in_channels: int = 3,
        tokens: Literal["map", "cls", "patch"] = "map",
        out_index: int = -1,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        import timm  # takes seconds, and most configs do not need it

        if files := [option for option in options or {} if option.startswith(("checkpoint_path", "pretrained"))]:
            raise ValueError(
                f"TimmBackbone: options must not have {', '.join(files)}, as timm may run code of such a file: give "
                "init_from of the model for weights in a file, or pretrained: true for timm's own"
            )
        common = {"pretrained": pretrained, "in_chans": in_channels, **(options or {})}
        self.tokens = tokens
        self.in_channels = in_channels
        if tokens == "map":
            self.model = timm.create_model(name, features_only=True, out_indices=(out_index,), **common)
            self.channels = self.model.feature_info.channels()[-1]
            return
        self.model = timm.create_model(name, num_classes=0, **common)
        self.channels = self.model.num_features
        if not hasattr(self.model, "num_prefix_tokens"):
            raise ValueError(f"TimmBackbone: {name} has no tokens: use tokens='map' in place of {tokens!r}")
        self.prefix = int(self.model.num_prefix_tokens)
        if tokens == "cls" and getattr(self.model, "cls_token", None) is None:
            raise ValueError(f"TimmBackbone: {name} has no class token: use tokens='patch'")

    def forward(self, image: Tensor) -> Tensor:
        """Maps [B, channels, h, w]; 1 x 1 for the class token."""
        if self.tokens == "map":
            level: Tensor = self.model(image)[0]
            return level
        tokens: Tensor = self.model.forward_features(image)  # [B, prefix + patches, channels]
        if self.tokens == "cls":
            return tokens[:, 0, :, None, None]
        patches = tokens[:, self.prefix :].transpose(1, 2)
        down_y, down_x = self.model.patch_embed.patch_size
        return patches.unflatten(2, (image.shape[-2] // down_y, image.shape[-1] // down_x))

    @torch.no_grad()
    def out_size(self, image_size: int) -> int:
        """Side of the map, found by passing one blank image through the model in eval mode."""
        if self.tokens == "cls":
            return 1
        weight = next(self.parameters())
        training = self.training
        try:
            self.eval()
            return int(self(weight.new_zeros(1, self.in_channels, image_size, image_size)).shape[-1])
        finally:
            self.train(training)
