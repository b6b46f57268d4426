"""A modular model zoo on Lightning: families of papers share data modules, callbacks and one command line."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "available", "load"]


def __getattr__(name: str) -> Any:
    if name in ("available", "load"):
        return getattr(import_module("zoo.pretrained"), name)
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")
