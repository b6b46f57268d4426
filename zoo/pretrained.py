"""Pretrained weights: found by name, path or run folder, verified, and never loaded in silence."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from datamodules import sources
from zoo import catalogue
from zoo.run_folder import find_checkpoint


def available() -> list[str]:
    """Names of all checkpoints in the catalogue."""
    return [c.name for c in catalogue.checkpoints()]


def load(name: str) -> dict[str, Tensor]:
    """State dict of a catalogue checkpoint, a ``.safetensors``, ``.ckpt`` or ``.pt`` file, or a run folder.

    A run folder stands for its ``checkpoints/best.ckpt``, else its ``checkpoints/last.ckpt``, else those of its
    last task; the folder of all runs of a config stands for the newest.

    Raises:
        FileNotFoundError: names the catalogue's checkpoints if nothing fits.
        ValueError: if a file's sha256 is not the catalogue's, or a file holds no state dict.
    """
    return _read(locate(name))


def locate(name: str) -> Path:
    """The file behind a checkpoint's name; see :func:`load`."""
    path = Path(name)
    if path.is_dir():
        newest = find_checkpoint(path, "last") or find_checkpoint(path, "best")
        folders = [path if newest is None else newest.parents[1]]
        folders += sorted(path.glob("task_*"), key=lambda task: int(task.name[5:]), reverse=True)
        for folder in folders:
            for found in (folder / "checkpoints" / "best.ckpt", folder / "checkpoints" / "last.ckpt"):
                if found.is_file():
                    return found
        raise FileNotFoundError(f"run folder {name!r} has no checkpoints/best.ckpt or last.ckpt")
    if path.is_file():
        return path
    entry = next((c for c in catalogue.checkpoints() if c.name == name.removeprefix("zoo://")), None)
    if entry is None:
        raise FileNotFoundError(
            f"checkpoint {name!r} is neither a file, a run folder nor one of the catalogue's: "
            f"{', '.join(available()) or 'none yet'}"
        )
    if entry.url is not None:
        return sources.download(entry.url, entry.sha256, entry.file)
    file = Path(__file__).parent / entry.file
    if hashlib.sha256(file.read_bytes()).hexdigest() != entry.sha256:
        raise ValueError(f"{file} differs from the catalogue's sha256 for {name!r}; install the package again")
    return file


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds neither a state dict of tensors nor one under the key state_dict")
    return state


def init_from(module: nn.Module, name: str, prefix: str = "") -> None:
    """Load the weights of ``name`` that belong to ``module``, a part of which they may be.

    Keys are taken with ``prefix`` (such as ``backbone.``) stripped where the checkpoint has it, else as they are.

    Raises:
        ValueError: if a key or shape of the module has no match, naming the first few; nothing is loaded then.
    """
    state = {key.removeprefix("module."): value for key, value in load(name).items()}
    if prefix and any(key.startswith(prefix) for key in state):
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    own = module.state_dict()
    missing = [key for key, value in own.items() if key not in state or state[key].shape != value.shape]
    if missing:
        found = ", ".join(f"{key} {tuple(value.shape)}" for key, value in list(state.items())[:3])
        wanted = ", ".join(f"{key} {tuple(own[key].shape)}" for key in missing[:3])
        raise ValueError(
            f"init_from {name!r}: {len(missing)} of {len(own)} tensors find no match in it, such as {wanted}; "
            f"it holds {len(state)} tensors, such as {found}. Choose the checkpoint of the same architecture."
        )
    module.load_state_dict({key: state[key] for key in own})
