"""The parameters of a sweep file: the distributions of W&B, checked; exponents of e become values."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SETTINGS = {
    "constant": {"value"},
    "categorical": {"values"},
    "int_uniform": {"min", "max"},
    "uniform": {"min", "max"},
    "q_uniform": {"min", "max", "q"},
    "log_uniform_values": {"min", "max"},
    "inv_log_uniform_values": {"min", "max"},
    "q_log_uniform_values": {"min", "max", "q"},
}
"""The distributions that are searched locally, and what belongs to each."""
EXPONENTS = {
    "log_uniform": ("log_uniform_values", 1),
    "inv_log_uniform": ("log_uniform_values", -1),
    "q_log_uniform": ("q_log_uniform_values", 1),
}
"""W&B's distributions whose min and max are exponents of e: the same by values, and the exponents' sign."""


@dataclass(frozen=True)
class Parameter:
    """One option of the command; ``settings`` are those of the distribution, such as ``min`` and ``max``."""

    name: str
    distribution: str
    settings: Mapping[str, Any]


def read_parameter(name: str, given: Any, local: bool) -> Parameter:
    """One entry of ``parameters``.

    Args:
        name: of the option.
        given: what the file says of it.
        local: refuse what W&B alone can draw from.

    Raises:
        ValueError: names the field, what is wrong with it and what to do.
    """
    where = f"parameters.{name}"
    if not isinstance(given, dict):
        raise ValueError(f"{where}: must have values, or min and max, not {given!r}")
    if "parameters" in given:
        raise ValueError(f"{where}: nested parameters reach no option; write {name}.<key> as one name")
    settings = {key: value for key, value in given.items() if key != "distribution"}
    kind = given.get("distribution") or _kind(settings)
    if kind is None:
        raise ValueError(f"{where}: must have value, values, or min and max; it has {', '.join(given) or 'nothing'}")
    if not isinstance(kind, str):
        raise ValueError(f"{where}.distribution: {kind!r} must be a name, such as uniform")
    known = [*SETTINGS, *EXPONENTS]
    if kind not in known and not local:
        return Parameter(name, kind, settings)
    if kind not in known:
        raise ValueError(f"{where}.distribution: {kind} cannot be searched locally; take one of {', '.join(known)}")
    if kind.startswith("q_"):
        settings.setdefault("q", 1.0)
    values, sign = EXPONENTS.get(kind, (kind, 0))
    if settings.keys() != SETTINGS[values]:
        wanted = " and ".join(sorted(SETTINGS[values]))
        raise ValueError(f"{where}: {kind} has {wanted}; here are {', '.join(sorted(settings)) or 'none'}")
    _check_settings(where, kind, settings)
    if sign:
        try:
            ends = sorted(math.exp(sign * settings[key]) for key in ("min", "max"))
        except OverflowError:
            raise ValueError(f"{where}: min and max of {kind} are exponents of e; write {values} for values") from None
        settings |= {"min": ends[0], "max": ends[1]}
        _check_settings(where, values, settings)
    return Parameter(name, values, settings)


def _kind(settings: Mapping[str, Any]) -> str | None:
    """The distribution that W&B takes where none is named."""
    if "value" in settings:
        return "constant"
    if "values" in settings:
        return "categorical_w_probabilities" if "probabilities" in settings else "categorical"
    if settings.keys() == {"min", "max"}:
        return "int_uniform" if type(settings["min"]) is type(settings["max"]) is int else "uniform"
    return None


def _check_settings(where: str, kind: str, settings: Mapping[str, Any]) -> None:
    if kind == "categorical" and (not isinstance(settings["values"], list) or not settings["values"]):
        raise ValueError(f"{where}.values: {settings['values']!r} must be a list that is not empty")
    for value in [settings["value"]] if kind == "constant" else settings.get("values", []):
        try:
            json.dumps(value)
        except TypeError:
            raise ValueError(f"{where}: {value!r} ({type(value).__name__}) is no plain value; quote it") from None
    if "min" not in settings:
        return
    for key, value in settings.items():
        if not is_number(value):
            hint = "; YAML wants a point and a sign in 1.0e-4" if isinstance(value, str) else ""
            raise ValueError(f"{where}.{key}: {value!r} ({type(value).__name__}) is no finite number{hint}")
        if kind == "int_uniform" and type(value) is not int:
            raise ValueError(f"{where}.{key}: {value!r} must be a whole number for int_uniform")
    if settings["min"] >= settings["max"]:
        raise ValueError(f"{where}: min {settings['min']} is not less than max {settings['max']}")
    if kind.endswith("log_uniform_values") and settings["min"] <= 0:
        raise ValueError(f"{where}.min: {settings['min']} must be above 0 for {kind}")
    if settings.get("q", 1) <= 0:
        raise ValueError(f"{where}.q: {settings['q']} must be above 0")


def is_number(value: Any) -> bool:
    """Whether a value of a file is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
