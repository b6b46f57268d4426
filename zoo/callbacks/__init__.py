"""What any method can use; nothing here knows a family."""

from zoo.callbacks.checkpointing import KeepLast
from zoo.callbacks.figures import Figures
from zoo.callbacks.predictions import PredictionTable
from zoo.callbacks.retrieval import RetrievalCallback
from zoo.callbacks.seeding import StepSeed
from zoo.callbacks.summary import Summary
from zoo.callbacks.throughput import Throughput
from zoo.callbacks.wandb import WandbFiles

__all__ = [
    "Figures",
    "KeepLast",
    "PredictionTable",
    "RetrievalCallback",
    "StepSeed",
    "Summary",
    "Throughput",
    "WandbFiles",
]
