"""Representations for compatible model updates: d-Simplex and d-Simplex-HOC (2405.02581), and ER beside them."""

from zoo.stationary.classifiers import LearnableClassifier, SimplexClassifier
from zoo.stationary.losses import HigherOrderCompatibility
from zoo.stationary.representation import CompatibleRepresentation

__all__ = ["CompatibleRepresentation", "HigherOrderCompatibility", "LearnableClassifier", "SimplexClassifier"]
