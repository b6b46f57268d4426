"""A sweep's parameters as Optuna searches them, and as a grid."""

import json
from collections.abc import Mapping
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.sweeps.sweep_file import Parameter

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

RANDOM_FIRST = 5  # trials of a Bayesian search before there is anything to learn from


def distribution(parameter: Parameter) -> "BaseDistribution | None":
    """What Optuna draws for one parameter, and ``decode`` makes a value of; None for a constant."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    kind, given = parameter.distribution, parameter.settings
    if kind == "constant":
        return None
    if kind == "categorical":
        return CategoricalDistribution([json.dumps(value) for value in given["values"]])
    if kind == "int_uniform":
        return IntDistribution(given["min"], given["max"])
    # inv_log_uniform_values: the logarithm of 1/x is as uniform as that of x
    return FloatDistribution(given["min"], given["max"], log="log" in kind)


def decode(parameter: Parameter, drawn: Any) -> Any:
    """The value that a trial gets, from what Optuna has drawn: JSON text of a choice, or a number to be quantised."""
    if parameter.distribution == "constant":
        return parameter.settings["value"]
    if isinstance(drawn, str):
        return json.loads(drawn)
    q = parameter.settings.get("q")
    return drawn if q is None else round(drawn / q) * q


def grid(parameters: Mapping[str, Parameter]) -> list[dict[str, str]]:
    """All combinations, as JSON text, in W&B's order: parameters by name, the last one changes fastest. No constants.

    Raises:
        ValueError: for a parameter without a finite list of values.
    """
    axes: dict[str, list[str]] = {}
    for name, parameter in sorted(parameters.items()):
        kind, given = parameter.distribution, parameter.settings
        if kind == "categorical":
            values = given["values"]
        elif kind == "int_uniform":
            values = range(given["min"], given["max"] + 1)
        elif kind == "q_uniform":
            values = np.arange(given["min"], given["max"], given["q"]).tolist()
        elif kind == "constant":
            continue
        else:
            raise ValueError(f"parameters.{name}: a grid has no {kind}; give values, or a whole min and max")
        axes[name] = [json.dumps(value) for value in values]
    return [dict(zip(axes, point, strict=True)) for point in product(*axes.values())]


def sampler(method: str, parameters: Mapping[str, Parameter], number: int) -> "BaseSampler":
    """What draws trial ``number``: a function of the number and the trials before it, so a sweep can be gone on with.

    ``bayes`` is Optuna's tree-structured Parzen estimator, where W&B has a Gaussian process.
    """
    from optuna.samplers import PartialFixedSampler, RandomSampler, TPESampler

    if method == "bayes":
        return TPESampler(seed=number, n_startup_trials=RANDOM_FIRST)
    if method == "grid":
        return PartialFixedSampler(grid(parameters)[number], RandomSampler(seed=number))
    return RandomSampler(seed=number)


def distributions(parameters: Mapping[str, Parameter], method: str) -> "dict[str, BaseDistribution]":
    """What Optuna draws, by name, without constants. In a grid every value is a choice."""
    from optuna.distributions import CategoricalDistribution

    if method == "grid":
        points = grid(parameters)
        return {name: CategoricalDistribution(list(dict.fromkeys(p[name] for p in points))) for name in points[0]}
    found = {name: distribution(parameter) for name, parameter in parameters.items()}
    return {name: each for name, each in found.items() if each is not None}
