"""The README.md of an exported model, as the Hugging Face hub shows it."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from zoo import catalogue
from zoo.checkpoint_io import EXPERIMENT, FOLDER


def model_card(
    title: str,
    module: Any,
    made_by: Mapping[str, Any],
    results: Sequence[Mapping[str, str]],
    arguments: Mapping[str, Any],
    with_experiment: bool,
) -> str:
    """Markdown with the hub's front matter: what it is, how to use it, what it measured, whose work it is.

    Args:
        title: of the card.
        module: the model.
        made_by: of the export's ``config.yaml``.
        results: rows of the run's ``results.csv``.
        arguments: the model's, for the names of hub models that it starts from.
        with_experiment: whether the run's own config lies beside it.
    """
    methods = _methods(module, str(made_by["config"]))
    papers = sorted({paper for method in methods for paper in method.papers})
    tags = ["lightning", "zoo-of-papers", *(method.name for method in methods)]
    tags += [f"arxiv:{word}" for paper in papers for word in paper.split() if word[:4].isdigit() and "." in word]
    front = {"license": str(made_by["licence"]).lower(), "library_name": "zoo-of-papers", "tags": tags}
    if bases := sorted(_hub_models(arguments)):
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
    lines += ["", "## How it was made", "", f"Experiment `{made_by['config']}`; {versions}."]
    if with_experiment:
        lines += ["", f"`{made_by['command']}` repeats it: `{EXPERIMENT}` is the run's whole config."]
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


def _hub_models(arguments: Any) -> set[str]:
    if isinstance(arguments, Mapping):
        own = arguments.get("pretrained")
        found = set().union(*map(_hub_models, arguments.values()))
        hub = isinstance(own, str) and own.count("/") == 1 and not own.startswith((FOLDER, "package:", ".", "/"))
        return found | {str(own)} if hub else found
    return set()


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
