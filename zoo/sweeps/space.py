"""A sweep's parameters as Optuna searches them, and as a grid."""

import json
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.sweeps.parameters import Parameter

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


def grid_axes(parameters: Mapping[str, Parameter]) -> dict[str, list[str]]:
    """The values of each parameter as JSON text, parameters by name. No constants.

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
    return axes


def grid_size(axes: Mapping[str, Sequence[str]]) -> int:
    """The number of combinations."""
    return prod(len(values) for values in axes.values())


def grid_point(axes: Mapping[str, Sequence[str]], number: int) -> dict[str, str]:
    """Combination ``number`` in W&B's order: the last parameter changes fastest."""
    point = {}
    for name, values in reversed(list(axes.items())):
        number, at = divmod(number, len(values))
        point[name] = values[at]
    return dict(reversed(list(point.items())))


def sampler(method: str, parameters: Mapping[str, Parameter], seed: int, place: int) -> "BaseSampler":
    """What draws the trial at ``place``: a function of seed, place and earlier trials, so that a sweep can go on.

    ``bayes`` is Optuna's tree-structured Parzen estimator, where W&B has a Gaussian process.
    """
    from optuna.samplers import PartialFixedSampler, RandomSampler, TPESampler

    own = int(np.random.SeedSequence([seed, place]).generate_state(1)[0])
    if method == "bayes":
        return TPESampler(seed=own, n_startup_trials=RANDOM_FIRST)
    if method == "grid":
        return PartialFixedSampler(grid_point(grid_axes(parameters), place), RandomSampler(seed=own))
    return RandomSampler(seed=own)


def distributions(parameters: Mapping[str, Parameter], method: str) -> "dict[str, BaseDistribution]":
    """What Optuna draws, by name, without constants. In a grid every value is a choice."""
    from optuna.distributions import CategoricalDistribution

    if method == "grid":
        axes = grid_axes(parameters)
        return {name: CategoricalDistribution(list(dict.fromkeys(values))) for name, values in axes.items()}
    found = {name: distribution(parameter) for name, parameter in parameters.items()}
    return {name: each for name, each in found.items() if each is not None}
