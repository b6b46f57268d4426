"""The README.md of an exported model, as the Hugging Face hub shows it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from zoo import catalogue
from zoo.checkpoint_io import EXPERIMENT


def model_card(
    title: str,
    module: Any,
    made_by: Mapping[str, Any],
    results: Sequence[Mapping[str, str]] = (),
    dropped: Sequence[str] = (),
) -> str:
    """Markdown with the hub's front matter: what it is, how to use it, what it measured, whose work it is.

    Args:
        title: of the card.
        module: the model.
        made_by: of the export's ``config.yaml``.
        results: what was measured with these weights, rows with the same keys.
        dropped: names of what the run's config had and the one beside the card has not.
    """
    methods = _methods(module, made_by["config"] or "")
    papers = sorted({paper for method in methods for paper in method.papers})
    tags = ["lightning", "zoo-of-papers", *(method.name for method in methods)]
    tags += [f"arxiv:{word}" for paper in papers for word in paper.split() if word[:4].isdigit() and "." in word]
    front = {"license": str(made_by["licence"]).lower(), "library_name": "zoo-of-papers", "tags": tags}
    if bases := sorted(name for name in started_from(module.hparams) if _on_hub(name)):
        front["base_model"] = bases
    path = f"{type(module).__module__.rpartition('.')[0]}.{type(module).__name__}"
    how = f" ({', '.join(method.task for method in methods[:1])})" if methods else ""
    lines = ["---", yaml.safe_dump(front, sort_keys=False).strip(), "---", "", f"# {title}", ""]
    lines += [f"`{path}`{how}, a LightningModule of zoo-of-papers.", "", "## Use", "", "```python", "import zoo", ""]
    lines += [
        'model = zoo.load("PATH OR hf://owner/name")  # ready for predict, test or a forward',
        'network = zoo.load_network("PATH OR hf://owner/name")  # the bare nn.Module',
        "```",
        "",
        "On the command line: `--ckpt_path PATH` to test or predict with it; `init_from: PATH` to start a fit from it.",
    ]
    if results:
        lines += ["", "## Measured", "", _table(results)]
    versions = ", ".join(f"{package} {number}" for package, number in made_by["versions"].items())
    experiment = f"Experiment `{made_by['config']}`; " if made_by["config"] else "Made with "
    lines += ["", "## How it was made", "", f"{experiment}{versions}."]
    if "command" in made_by:
        lines += ["", f"`{made_by['command']}` repeats it: `{EXPERIMENT}` is the run's whole config."]
    if dropped:
        lines += [
            "",
            f"Paths of its machine are left out, give your own: {', '.join(f'`{name}`' for name in dropped)}.",
        ]
    lines += ["", "## Licence and citation", "", f"Weights: {made_by['licence']}. Code: Apache-2.0."]
    if papers:
        lines += ["", "Please cite what the method is from:", "", *(f"- {paper}" for paper in papers)]
    return "\n".join(lines) + "\n"


def _methods(module: Any, config: str) -> list[catalogue.Method]:
    """The methods of the catalogue that this class is, of several the one whose experiment this was."""
    path = f"{type(module).__module__}.{type(module).__qualname__}"
    same = [method for method in catalogue.methods() if method.class_path == path]
    name = config.rpartition("/")[2]
    return [method for method in same if name.startswith(f"{method.name}_")] or same


def started_from(arguments: Any) -> set[str]:
    """Names of the weights of others that a model with these arguments starts from: ``pretrained`` of its parts."""
    if isinstance(arguments, list | tuple):
        return set().union(*map(started_from, arguments))
    if not isinstance(arguments, Mapping):
        return set()
    found = set().union(*map(started_from, arguments.values()))
    own = arguments.get("pretrained")
    if own is True:
        found.add(str(arguments.get("name", "pretrained weights")))
    elif isinstance(own, str) and not own.startswith("package:zoo/"):
        found.add(own)
    return found


def _on_hub(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith(("package:", ".", "/", "~")) and not Path(name).is_dir()


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    lines = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0])]
    lines += [" | ".join(_short(value) for value in row.values()) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _short(value: str) -> str:
    try:
        number = float(value)
    except ValueError:
        return value.replace("|", "\\|")
    return value if number.is_integer() else f"{number:.4g}"
