"""Layers and backbones that two or more families use. Needs torch alone."""

from zoo.nn.backbones import Backbone, Conv64F, TimmBackbone
from zoo.nn.mlp import MLP
from zoo.nn.position import sine_position
from zoo.nn.resnet12 import ResNet12
from zoo.nn.torchvision_resnet import TorchvisionResNet

__all__ = ["MLP", "Backbone", "Conv64F", "ResNet12", "TimmBackbone", "TorchvisionResNet", "sine_position"]
