"""Objects from class paths and plain arguments: of trusted packages alone, and of the types that are asked for."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

TRUSTED = ("zoo", "datamodules", "torch", "torchvision", "timm", "lightning")
"""Packages whose classes a checkpoint may name."""


def check_trusted(content: Any, trust: Collection[str] = ()) -> None:
    """Raises ``ValueError`` for a ``class_path`` anywhere in ``content`` outside ``TRUSTED`` and ``trust``."""
    if isinstance(content, Mapping):
        if "class_path" in content:
            _trusted(content["class_path"], trust)
        for value in content.values():
            check_trusted(value, trust)
    elif isinstance(content, list | tuple):
        for value in content:
            check_trusted(value, trust)


def build(spec: Mapping[str, Any], base: type | tuple[type, ...], trust: Collection[str] = ()) -> Any:
    """The object of ``{class_path, init_args}`` with all that its arguments name, checked by their annotations alone.

    A class is made only where an argument's type asks for one of its kind, so that nothing else of a trusted package
    can be called. Arguments are those that a parser has read already: numbers and strings are taken as they are.

    Args:
        spec: as in a config, with full class paths.
        base: what the object must be.
        trust: further packages whose classes may be made, and class paths whose arguments may run code
            (``runs_code`` of a class names those arguments).

    Raises:
        ValueError: for a class that is not trusted, is none, or is of another kind, and for code that would be run.
    """
    path = spec["class_path"]
    cls = _resolve(path, trust)
    if not isinstance(cls, type) or not issubclass(cls, base):
        wanted = " or ".join(one.__name__ for one in (base if isinstance(base, tuple) else (base,)))
        raise ValueError(f"class_path {path!r} is no {wanted}")
    return cls(**_arguments(cls, path, _given(spec), trust))


def _trusted(path: Any, trust: Collection[str]) -> None:
    if not isinstance(path, str) or not path.rpartition(".")[0]:
        raise ValueError(f"class_path {path!r} must be the full path of a class, such as zoo.few_shot.CRLNet")
    if not any(path.startswith(f"{package}.") for package in (*TRUSTED, *trust)):
        root = path.partition(".")[0]
        raise ValueError(
            f"class_path {path!r}: importing {root} would run its code, and only {', '.join(TRUSTED)} are trusted; if "
            f"you trust it too, name it in trust ({root!r})"
        )


def _resolve(path: Any, trust: Collection[str]) -> Any:
    _trusted(path, trust)
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"class_path {path!r} cannot be imported ({error}): is the version of its package right?"
        ) from error


def _given(spec: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a spec, those that its parser had no type for (``dict_kwargs``) included."""
    given: dict[str, Any] = {}
    for key in ("init_args", "dict_kwargs"):
        values = spec.get(key) or {}
        if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
            raise ValueError(f"{spec['class_path']}: {key} must have values by name, got {str(values)[:80]}")
        given.update(values)
    return given


def _arguments(cls: type, path: str, given: Mapping[str, Any], trust: Collection[str]) -> dict[str, Any]:
    for name in getattr(cls, "runs_code", ()):
        if given.get(name) and path not in trust:
            raise ValueError(
                f"{path} with {name}={given[name]!r} would run code that the file names; if you trust it, put {path!r} "
                "into trust"
            )
    hints = _hints(cls)
    return {name: _value(value, hints.get(name, Any), trust, f"{path}: {name}") for name, value in given.items()}


@cache
def _hints(cls: type) -> dict[str, Any]:
    """Types of the arguments of a class, those that ``**kwargs`` hand to its bases included."""
    if is_dataclass(cls) or hasattr(cls, "_fields"):
        return get_type_hints(cls)
    found: dict[str, Any] = {}
    for owner in cls.__mro__:
        function = vars(owner).get("__init__")
        if function is None:
            continue
        parameters = inspect.signature(function).parameters.values()
        for parameter in parameters:
            found.setdefault(parameter.name, _annotations(function).get(parameter.name, Any))
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def _annotations(function: Any) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except NameError:  # a name that only type checkers import
        return {name: hint for name, hint in inspect.get_annotations(function).items() if not isinstance(hint, str)}


def _value(value: Any, hint: Any, trust: Collection[str], where: str) -> Any:
    options = _options(hint)
    if isinstance(value, Mapping):
        return _from_mapping(value, options, trust, where)
    if isinstance(value, list | tuple):
        kind = next((o for o in options if get_origin(o) in (list, tuple, Sequence)), None)
        inner = get_args(kind) or (Any,)
        fixed = get_origin(kind) is tuple and len(inner) == len(value) and inner[-1] is not Ellipsis
        kinds = inner if fixed else [inner[0]] * len(value)
        values = [_value(one, of, trust, where) for one, of in zip(value, kinds, strict=True)]
        return tuple(values) if get_origin(kind) is tuple else values
    if isinstance(value, str) and str not in options:
        if Path in options:
            return Path(value)
        if makers := [o for o in options if get_origin(o) is Callable]:
            return _function(value, _returns(makers[0]), trust)
    _check_choice(value, options, where)
    return value


def _check_choice(value: Any, options: Sequence[Any], where: str) -> None:
    """Raises ``ValueError`` for a word that is none of those an argument offers, and for what is neither yes nor no.

    A library may take other words than ours for the name of something to fetch.
    """
    choices = [choice for option in options if get_origin(option) is Literal for choice in get_args(option)]
    kinds = tuple(option for option in options if isinstance(option, type) and option is not Any)
    if choices and value is not None and value not in choices and not isinstance(value, kinds):
        raise ValueError(f"{where}={value!r} must be one of {', '.join(map(str, choices))}")
    if kinds == options == (bool,) and not isinstance(value, bool | None):
        raise ValueError(f"{where}={value!r} must be true or false")


def _options(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) is Annotated:
        return _options(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return tuple(option for one in get_args(hint) for option in _options(one))
    return (hint,)


def _from_mapping(value: Mapping[str, Any], options: Sequence[Any], trust: Collection[str], where: str) -> Any:
    if "class_path" in value:
        kinds = tuple(option for option in options if isinstance(option, type) and option is not type(None))
        makers = [option for option in options if get_origin(option) is Callable]
        if makers:
            return _maker(value, _returns(makers[0]), trust)
        return build(value, kinds, trust) if kinds else value
    for option in options:
        if get_origin(option) in (dict, Mapping):
            of = get_args(option)[1]
            return {name: _value(one, of, trust, f"{where}.{name}") for name, one in value.items()}
        if isinstance(option, type) and (is_dataclass(option) or hasattr(option, "_fields")):
            return option(**_arguments(option, option.__name__, value, trust))
    return value


def _returns(maker: Any) -> tuple[type, ...]:
    """The classes that a ``Callable[..., Class]`` gives; none where it may give anything."""
    return tuple(option for option in _options(get_args(maker)[-1]) if isinstance(option, type))


def _maker(spec: Mapping[str, Any], kinds: tuple[type, ...], trust: Collection[str]) -> Any:
    """The class with these arguments, still to be called with what comes first, such as parameters."""
    path = spec["class_path"]
    cls = _resolve(path, trust)
    if not isinstance(cls, type) or not issubclass(cls, kinds):
        raise ValueError(f"class_path {path!r} is no {' or '.join(kind.__name__ for kind in kinds)}")
    return partial(cls, **_arguments(cls, path, _given(spec), trust))


def _function(path: str, kinds: tuple[type, ...], trust: Collection[str]) -> Any:
    """A function by its path, if it lies there itself and says that it gives what is asked for."""
    found = _resolve(path, trust)
    if isinstance(found, type):
        fits = issubclass(found, kinds)
    else:
        given = _annotations(found).get("return") if inspect.isfunction(found) else None
        own = getattr(found, "__module__", None) == path.rpartition(".")[0]
        fits = own and isinstance(given, type) and issubclass(given, kinds)
    if not fits:
        raise ValueError(f"{path!r} makes no {' or '.join(kind.__name__ for kind in kinds)}")
    return found
