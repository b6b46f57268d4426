"""Policy Gradient-Driven Noise Mask (2406.14568): a classifier is heated under masks that a policy learns to draw, the
policy is dropped, and a few epochs on clean images follow.
"""

from zoo.noise_mask.averaging import AverageLast
from zoo.noise_mask.classifier import ImageClassifier
from zoo.noise_mask.heating import NoiseMaskHeating
from zoo.noise_mask.masks import NoiseMask
from zoo.noise_mask.objectives import LogSumExp, MaskObjective, Reinforce
from zoo.noise_mask.policy import MaskPolicy
from zoo.noise_mask.schedules import Constant, Cosine, Schedule, StepDecay, Warmup

__all__ = [
    "AverageLast",
    "Constant",
    "Cosine",
    "ImageClassifier",
    "LogSumExp",
    "MaskObjective",
    "MaskPolicy",
    "NoiseMask",
    "NoiseMaskHeating",
    "Reinforce",
    "Schedule",
    "StepDecay",
    "Warmup",
]
