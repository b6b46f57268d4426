"""A modular model zoo on Lightning: families of papers share data modules, callbacks and one command line."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "available", "export", "from_hub", "load", "load_network", "push_to_hub"]

_PLACES = {
    **dict.fromkeys(("available", "from_hub", "load", "load_network"), "zoo.pretrained"),
    **dict.fromkeys(("export", "push_to_hub"), "zoo.exporting"),
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")
