"""A user's own function as a reward."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from zoo.llm_rl.batches import Sample
from zoo.llm_rl.rewards.base import Reward


class FunctionReward(Reward):
    """Calls ``function(prompts=, completions=, answers=, info=)`` with lists that have an entry a sample.

    It gives a list of numbers, or None where it cannot score. ``answers`` are the references, None for a prompt
    without; ``info`` is what else the prompts hold.

    Args:
        path: of the function: ``module.function`` or ``package.module.function``, as it would be imported; a module
            may lie in the working directory.
    """

    runs_code = ("path",)

    def __init__(self, path: str) -> None:
        self.path, self.function = path, _imported(path)

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        values = self.function(
            prompts=[sample.prompt.text for sample in samples],
            completions=[sample.text for sample in samples],
            answers=[sample.prompt.answer for sample in samples],
            info=[sample.prompt.info for sample in samples],
        )
        return list(values)


def _imported(path: str) -> Callable[..., Any]:
    module, _, name = path.rpartition(".")
    if not module or not name.isidentifier():
        raise ValueError(f"path={path!r}: must be module.function")
    here = str(Path.cwd())
    if here not in sys.path:  # as python -m has it, unlike the command zoo
        sys.path.append(here)
    try:
        function = getattr(import_module(module), name)
    except ImportError as error:
        raise ValueError(
            f"path={path!r}: cannot import {module} ({error}); run where it lies, or install it"
        ) from error
    except AttributeError:
        raise ValueError(f"path={path!r}: {module} has no {name}") from None
    if not callable(function):
        raise ValueError(f"path={path!r}: is a {type(function).__name__}, not a function")
    return function
