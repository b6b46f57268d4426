"""Keeps the start of the command line light: torchmetrics, which Lightning imports, loads transformers eagerly."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any


class _Deferred:
    """Stands for one name of a package until something asks it for an attribute or calls it."""

    def __init__(self, package: str, name: str) -> None:
        self._package, self._name = package, name

    def _resolve(self) -> Any:
        return getattr(import_module(self._package), self._name)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._resolve(), attribute)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._resolve()(*args, **kwargs)


class _DeferredPackage(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Deferred(self.__name__, name)


@contextmanager
def light_imports(package: str = "transformers") -> Iterator[None]:
    """While active, ``from transformers import X`` gives a stand-in that loads transformers on first use."""
    if package in sys.modules:
        yield
        return
    stand_in = _DeferredPackage(package)
    sys.modules[package] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(package) is stand_in:
            del sys.modules[package]
