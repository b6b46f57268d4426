"""What a shipped or own experiment names, without running it."""

from typing import Any

import yaml

from zoo.catalogue import find_config, import_families


def data_of(config: str, kind: str) -> Any:
    """The data module of an experiment, by its name or path.

    Args:
        config: short name or path of a config.
        kind: name of the class that the data must be of.

    Raises:
        FileNotFoundError: if there is no such config.
        ValueError: if the data cannot be made, or are of another class.
    """
    from jsonargparse import ArgumentError, ArgumentParser
    from lightning.pytorch import LightningDataModule

    import_families()  # makes short names of classes known
    file = find_config(config)
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or "data" not in content:
        raise ValueError(f"{file} has no data: of an experiment")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    try:
        data = parser.instantiate_classes(parser.parse_object({"data": content["data"]})).data
    except ArgumentError as error:
        raise ValueError(f"{file}: data: {error}") from error
    if kind not in {base.__name__ for base in type(data).__mro__}:
        raise ValueError(f"{file}: data: is a {type(data).__name__}, not a {kind}; give another experiment")
    return data
