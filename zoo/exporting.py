"""``python -m zoo export``: a run as a folder that loads anywhere, on the Hugging Face hub too."""

import argparse
import copy
import shutil
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

import zoo
from zoo import catalogue, pretrained
from zoo.checkpoint_io import CARD, CONFIG, EXPERIMENT, FOLDER, WEIGHTS, is_exported, sha256, write_weights
from zoo.console import run_command
from zoo.model_card import model_card, started_from
from zoo.provenance import experiment_of, made_by, results_of

LANGUAGE_MODEL, BASE_MODEL = "language_model", "base_model"
LICENCE = "Apache-2.0"


def export(
    run: str, out: str | Path, licence: str | None = None, trust: Collection[str] = (), config: str | None = None
) -> Path:
    """Write the model of a run as a folder that :func:`zoo.load` rebuilds without the run and its data.

    It holds ``model.safetensors``, ``config.yaml``, a model card, and the run's own config as ``experiment.yaml``; of
    a language model also ``language_model``, as transformers reads it, with adapters added in. It is loaded once, and
    what comes back compared, before it gets its name.

    Args:
        run: run folder or ``.ckpt`` file.
        out: the folder; must be new or empty.
        licence: of the weights, by its SPDX name; default: Apache-2.0, unless they started from weights of others.
        trust: see :func:`zoo.load`.
        config: name of the experiment; default: the shipped one that the run's folder is named after.

    Raises:
        FileNotFoundError: if there is no such run.
        FileExistsError: if ``out`` holds something.
        ValueError: if the model cannot be rebuilt, or the licence of the weights is not known.
    """
    file, out = pretrained.locate(run), Path(out)
    if file.is_dir():
        raise ValueError(f"{run} is exported already")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise FileExistsError(f"{out} is there already: give another folder, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    module, content = pretrained.restore(str(file), trust)
    others = started_from(module.hparams)
    if licence is None and others:
        raise ValueError(
            f"the weights started from {', '.join(sorted(others))}, whose licence may bind them: give licence, by its "
            "SPDX name"
        )
    extras = {key: content.extras[key] for key in getattr(module, "exported_state", ()) if key in content.extras}
    experiment, dropped = experiment_of(file)
    folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        origin = {"licence": licence or LICENCE, **made_by(file, module, config)}
        if experiment is not None:
            origin["command"] = f"python -m zoo fit --config {EXPERIMENT}"
            (folder / EXPERIMENT).write_text(_yaml(experiment), encoding="utf-8")
        write_model(folder, module, extras, origin)
        (folder / CARD).write_text(model_card(out.name, module, origin, results_of(file), dropped), encoding="utf-8")
        _check(folder, module, trust)
        folder.chmod(0o755)  # mkdtemp's 0700 would hide it from other users
        folder.replace(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return out


def write_model(folder: Path, module: Any, extras: dict[str, Any], origin: dict[str, Any]) -> None:
    """Write the weights of a module and ``config.yaml``, with the arguments that it is rebuilt by and files' sha256."""
    hidden = ("_class_path", "_instantiator")
    arguments = copy.deepcopy({key: value for key, value in module.hparams.items() if key not in hidden})
    parts = _write_language_models(folder, module, arguments)
    write_weights(folder / WEIGHTS, module.state_dict(), parts)
    config: dict[str, Any] = {"model": {"class_path": module.hparams["_class_path"], "init_args": arguments}}
    if extras:
        config["extras"] = extras
    # without the experiment, which loading does not read
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != EXPERIMENT]
    config["files"] = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    (folder / CONFIG).write_text(_yaml({**config, "made_by": origin}), encoding="utf-8")


def _write_language_models(folder: Path, module: nn.Module, arguments: dict[str, Any]) -> dict[str, str]:
    """Write each language model as transformers reads it, and have its arguments name what is in the folder.

    Returns the files with tensors of the module as they are, and what these tensors' names begin with in it.
    """
    from zoo.language.models import LanguageModel

    parts: dict[str, str] = {}
    state = module.state_dict()
    found = {name: model for name, model in module.named_modules() if isinstance(model, LanguageModel)}
    for name, model in found.items():
        place = LANGUAGE_MODEL if len(found) == 1 else f"{LANGUAGE_MODEL}_{name}"
        _save_network(folder / place, model, merge=True)
        files = sorted((folder / place).glob("*.safetensors"))
        if all(_is_part(file, f"{name}.network.", state) for file in files):
            parts |= {file.relative_to(folder).as_posix(): f"{name}.network." for file in files}
        given = _arguments_of(arguments, name)
        anywhere = given["pretrained"] is not None and not Path(given["pretrained"]).expanduser().is_dir()
        if not given["init_from"] and (given["pretrained"] is None or (anywhere and model.lora is not None)):
            continue  # the state dict has all weights, or those that it lacks can be had as before
        if model.lora is not None:
            place = place.replace(LANGUAGE_MODEL, BASE_MODEL)
            _save_network(folder / place, model, merge=False)
        given.update(pretrained=f"{FOLDER}/{place}", init_from=None)
        given.update(dict.fromkeys(("config", "tokenizer", "gguf_file", "revision")))
    return parts


def _is_part(file: Path, prefix: str, state: dict[str, Any]) -> bool:
    """Whether all tensors of a file are in ``state``: not if adapters are added in, or the file has other names."""
    from safetensors import safe_open

    with safe_open(file, "pt") as content:
        names = list(content.keys())
        return all(
            prefix + name in state and torch.equal(content.get_tensor(name), state[prefix + name]) for name in names
        )


def _arguments_of(arguments: dict[str, Any], name: str) -> dict[str, Any]:
    """The arguments of the part that a module keeps under ``name``, which is that of its parameter."""
    for part in name.split("."):
        arguments = arguments[part]["init_args"]
    return arguments


def _save_network(folder: Path, model: Any, merge: bool) -> None:
    from zoo.language import checkpoints

    network = copy.deepcopy(model.network)
    if model.lora is not None:
        (checkpoints.merge_lora if merge else checkpoints.remove_lora)(network)
    network.config.use_cache = True
    network.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # weights are written for their owner alone


def _check(folder: Path, module: nn.Module, trust: Collection[str]) -> None:
    """Raises ``ValueError`` if what was written does not give the same tensors again."""
    again, own = pretrained.load(str(folder), trust).state_dict(), module.state_dict()
    names = [name for name in own if not name.endswith("_extra_state")]  # it tells how the tokenizer came
    if wrong := [name for name in names if name not in again or not torch.equal(own[name], again[name])]:
        raise ValueError(f"{len(wrong)} tensors do not come back as they were, such as {wrong[0]}")


class _WithoutAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True  # reading a checkpoint refuses them


def _yaml(content: Any) -> str:
    text: str = yaml.dump(content, Dumper=_WithoutAliases, sort_keys=False, allow_unicode=True, width=120)
    return text


def catalogue_entry(folder: Path, name: str) -> str:
    """The lines for an exported folder in ``checkpoints.yaml``; source, data and metrics are to be filled in."""
    made = catalogue.load_yaml((folder / CONFIG).read_text(encoding="utf-8"))["made_by"]
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != CARD]
    entry = {
        "source": {"bundled": name.replace("/", "/weights/", 1)},
        "files": {path.relative_to(folder).as_posix(): sha256(path) for path in files},
        "size": sum(path.stat().st_size for path in files),
        "licence": made["licence"],
        "config": made["config"] or "",
        "data": "",
        "metrics": {},
        "versions": made["versions"],
    }
    return _yaml({name: entry})


def push_to_hub(folder: str | Path, repo: str, public: bool = False) -> str:
    """Upload an exported folder to the repository ``owner/name`` of the Hugging Face hub; gives its address.

    Args:
        folder: that was exported.
        repo: made if there is none.
        public: let all see it; a repository that is there stays as it is.

    Raises:
        ValueError: if it is no exported folder, or the repository is public and ``public`` was not given.
    """
    from huggingface_hub import HfApi

    if not is_exported(Path(folder)):
        raise ValueError(f"{folder} is no exported folder: make one by `python -m zoo export RUN --out {folder}`")
    api = HfApi()
    address = api.create_repo(repo, private=not public, exist_ok=True)
    if not public and not api.repo_info(repo).private:
        raise ValueError(f"{address} can be seen by all: nothing was uploaded; if that is meant, add --public")
    api.upload_folder(repo_id=repo, folder_path=str(folder), commit_message=f"zoo-of-papers {zoo.__version__}")
    return str(address)


def run(args: Sequence[str]) -> None:
    """Run the command; ``args`` are the command line's words after ``export``. Exits with 2 after an error."""
    run_command(_parser(), args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m zoo export",
        description="Write the model of a run as a folder that zoo.load(DIR) rebuilds anywhere: weights as "
        "safetensors, config, model card, and language models as transformers reads them.",
    )
    parser.add_argument("run", metavar="RUN", help="run folder, a version or task folder in it, or a .ckpt file")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; must be new or empty")
    parser.add_argument("--licence", help=f"of the weights, by its SPDX name; default: {LICENCE}, of own weights alone")
    parser.add_argument("--config", metavar="NAME", help="experiment of the run; default: by the run folder's name")
    parser.add_argument("--push", metavar="OWNER/NAME", help="also upload it to this repository of the hub")
    parser.add_argument("--public", action="store_true", help="that all see; without, a new repository is private")
    parser.add_argument("--trust", nargs="*", default=[], metavar="PACKAGE", help="whose classes the model may have")
    parser.add_argument("--entry", metavar="NAME", help="print the lines for the zoo's own catalogue under this name")
    parser.set_defaults(command=_export)
    return parser


def _export(given: argparse.Namespace) -> None:
    folder = export(given.run, given.out, given.licence, given.trust, given.config)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        print(f"{path.stat().st_size / 1e6:8.2f} MB  {path.relative_to(folder).as_posix()}")
    print(f"zoo.load({str(folder)!r}) loads it")
    if given.entry:
        print(f"\n{catalogue_entry(folder, given.entry)}")
    if given.push:
        print(f"uploaded to {push_to_hub(folder, given.push, given.public)}; zoo.load('hf://{given.push}') loads it")
