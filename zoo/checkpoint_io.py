"""What checkpoints are on disk: exported folders and ``.ckpt`` files, read without running anything that is in them."""

import hashlib
import json
import pickle
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

from zoo.catalogue import load_yaml

WEIGHTS, CONFIG, CARD, EXPERIMENT = "model.safetensors", "config.yaml", "README.md", "experiment.yaml"
FOLDER = "${folder}"
"""Stands for the exported folder itself in its ``config.yaml``."""

DEPTH = 100
"""How deep a ``config.yaml`` may be nested."""
_STARTS = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
_ENDS = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)


class Content(NamedTuple):
    """What a checkpoint holds.

    Args:
        state: its tensors by name.
        kind: ``model`` for a LightningModule, ``network`` for a bare module, None for weights alone.
        spec: class path and arguments of that.
        extras: plain state beside the tensors, by the keys that checkpoints of the module have for it.
        whole: whether the tensors are all of the module's, and not those of a folder of transformers (``weights:
            transformers`` in ``config.yaml``), which a part of the module reads itself.
    """

    state: dict[str, Tensor]
    kind: str | None = None
    spec: dict[str, Any] = {}
    extras: dict[str, Any] = {}
    whole: bool = True


def is_exported(path: Path) -> bool:
    """Whether this is a folder that ``export`` has written, and no run folder."""
    return (path / WEIGHTS).is_file() and (path / CONFIG).is_file()


def read(path: Path) -> Content:
    """The content of an exported folder, a ``.safetensors`` file or what ``torch.save`` has written.

    Raises:
        ValueError: for damaged files, and for pickles with more than tensors and plain data, which are not run.
    """
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".safetensors":
        return Content(_read_safetensors(path))
    content = _unpickle(path)
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise ValueError(f"{path} holds neither a state dict of tensors nor one under the key state_dict")
    arguments = content.get("hyper_parameters") or {}
    if not isinstance(arguments, Mapping):
        raise ValueError(f"{path}: hyper_parameters must have values by name, got {type(arguments).__name__}")
    arguments = dict(arguments)
    class_path = arguments.pop("_class_path", None)
    arguments.pop("_instantiator", None)
    if class_path is None:
        return Content(state)
    others = {key: value for key, value in content.items() if key != "state_dict"}
    return Content(state, "model", {"class_path": class_path, "init_args": arguments}, others)


def _read_folder(folder: Path) -> Content:
    try:
        config = load_yaml(_plain((folder / CONFIG).read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    kinds = [kind for kind in ("model", "network") if kind in config] if isinstance(config, dict) else []
    if len(kinds) != 1 or not isinstance(config[kinds[0]], dict) or "class_path" not in config[kinds[0]]:
        raise ValueError(f"{folder / CONFIG} must name either a model or a network, by class_path and init_args")
    for key, values in (("init_args", config[kinds[0]].get("init_args")), ("extras", config.get("extras"))):
        if not isinstance(values or {}, dict):
            raise ValueError(f"{folder / CONFIG}: {key} must have values by name, got {str(values)[:80]}")
    spec = _in_folder(config[kinds[0]], str(folder))
    _verify(folder, config.get("files", {}))
    whole = config.get("weights") != "transformers"
    return Content(_read_safetensors(folder / WEIGHTS), kinds[0], spec, config.get("extras") or {}, whole)


def _plain(text: str) -> str:
    """The text of YAML itself, if it is safe to read.

    Raises:
        ValueError: for aliases, since a few lines of them can stand for gigabytes, and for nesting of more than
            ``DEPTH``, since libyaml recurses and a stack that is full ends the process.
    """
    depth = 0
    for token in yaml.scan(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        depth += isinstance(token, _STARTS) - isinstance(token, _ENDS)
        if isinstance(token, yaml.AliasToken) or depth > DEPTH:
            what = f"is nested more than {DEPTH} deep" if depth > DEPTH else f"has the alias *{token.value}"
            raise ValueError(f"line {token.start_mark.line + 1} {what}, which a checkpoint has no need of")
    return text


def _verify(folder: Path, files: Any) -> None:
    """Raises ``ValueError`` if a file has not the sha256 that the export noted in ``config.yaml``."""
    if not isinstance(files, dict):
        raise ValueError(f"{folder / CONFIG}: files must have the sha256 of each file by its name")
    for name, digest in files.items():
        path = _beside(folder, name)
        if sha256_once(path) != digest:
            raise ValueError(f"{path} differs from the sha256 in {folder / CONFIG}: fetch or export the folder again")


def _beside(folder: Path, name: Any) -> Path:
    """A file of an exported folder that another of its files names."""
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{folder} names {name!r}, which is no file inside it")
    if not (folder / name).is_file():
        raise ValueError(f"{folder} lacks {name}: its files belong together, fetch or export it again")
    return folder / name


def _in_folder(content: Any, folder: str) -> Any:
    if isinstance(content, dict):
        return {name: _in_folder(value, folder) for name, value in content.items()}
    if isinstance(content, list):
        return [_in_folder(value, folder) for value in content]
    return content.replace(FOLDER, folder, 1) if isinstance(content, str) and content.startswith(FOLDER) else content


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        parts, aliases = (json.loads(metadata.get(key, "{}")) for key in ("parts", "aliases"))
        for name, prefix in parts.items():
            with safe_open(_beside(path.parent, name), "pt") as file:
                state |= {prefix + key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return state | {name: state[other] for name, other in aliases.items()}
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or no safetensors file ({error})") from error


def check(path: Path) -> None:
    """Raises ``ValueError`` as :func:`read` does for what ``torch.save`` has written; leaves its tensors on disk."""
    _unpickle(path, mmap=zipfile.is_zipfile(path))


def _unpickle(path: Path, mmap: bool = False) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        reason = str(error).partition("WeightsUnpickler error: ")[2].partition("\n")[0] or str(error).partition("\n")[0]
        raise ValueError(
            f"{path} holds more than tensors and plain data, which could run code; it was refused unread "
            f"(weights_only: {reason})"
        ) from error
    except Exception as error:  # reading what is no pickle can end in any
        reason = f"{type(error).__name__} {error}".partition("\n")[0].strip()
        raise ValueError(f"{path} is damaged, or no file of torch.save ({reason})") from error


def write_weights(path: Path, state: Mapping[str, Tensor], parts: Mapping[str, str] | None = None) -> None:
    """Tensors as a safetensors file; one that is there under several names is stored once.

    Args:
        path: of the file.
        state: all tensors by name.
        parts: files in the same folder, with what their tensors' names begin with in ``state``. The file names them
            instead of their tensors, and is read together with them.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    beside: set[str] = set()
    for part, prefix in (parts or {}).items():
        with safe_open(path.parent / part, "pt") as file:
            beside |= {prefix + key for key in file.keys()}  # noqa: SIM118
    kept: dict[str, Tensor] = {}
    places: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    for name in sorted(state, key=lambda name: (name not in beside, name)):
        tensor = state[name].detach()
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in places:
            aliases[name] = places[place]
            continue
        places[place] = name
        if name not in beside:
            kept[name] = tensor.cpu().clone(memory_format=torch.contiguous_format)
    about = {"parts": parts, "aliases": aliases}
    save_file(kept, path, metadata={"format": "pt", **{key: json.dumps(of) for key, of in about.items() if of}})
    path.chmod(0o644)  # it is written for its owner alone


def sha256(path: Path) -> str:
    """Of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_once(path: Path) -> str:
    """As :func:`sha256`; a file that has not changed is read once."""
    return _sha256(path, path.stat().st_mtime_ns)


@cache
def _sha256(path: Path, changed: int) -> str:
    return sha256(path)


def mismatch(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str | None:
    """What is wrong with a state dict for a module that has ``own``, in a sentence; None if it fits."""
    missing, extra = [name for name in own if name not in state], [name for name in state if name not in own]
    wrong = [name for name in own if name in state and own[name].shape != state[name].shape]
    parts = []
    if missing:
        parts.append(f"it lacks {len(missing)} of the model's {len(own)} tensors, such as {', '.join(missing[:3])}")
    if extra:
        parts.append(f"{len(extra)} of its tensors have no place in the model, such as {', '.join(extra[:3])}")
    for name in wrong[:3]:
        parts.append(f"{name} is {tuple(state[name].shape)} there and {tuple(own[name].shape)} in the model")
    if len(wrong) > 3:
        parts.append(f"as are {len(wrong) - 3} more of another shape")
    if wrong and not missing and not extra and all(own[n].shape[1:] == state[n].shape[1:] for n in wrong):
        parts.append("that is another number of classes or items")
    return "; ".join(parts) or None
