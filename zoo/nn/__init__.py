"""Layers and backbones that two or more families use. Needs torch alone."""

from zoo.nn.backbones import Backbone, Conv64F, TimmBackbone
from zoo.nn.position import sine_position
from zoo.nn.resnet12 import ResNet12

__all__ = ["Backbone", "Conv64F", "ResNet12", "TimmBackbone", "sine_position"]
