"""The arrows between packages point one way."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHARED = {"callbacks", "language", "losses", "metrics", "nn", "retrieval", "sweeps"}
TOOLS = [  # they read no data set
    f"datamodules.{tool}" for tool in ("batches", "expressions", "loaders", "search", "sources", "streams")
]
FAMILIES = {p.name for p in (ROOT / "zoo").iterdir() if (p / "__init__.py").is_file()} - SHARED


def imports(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def starts(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


@pytest.mark.parametrize("file", sorted((ROOT / "datamodules").rglob("*.py")), ids=lambda f: f.name)
def test_datamodules_know_nothing_of_zoo(file: Path) -> None:
    assert not [name for name in imports(file) if starts(name, "zoo")]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_families_know_neither_each_other_nor_the_command_line(family: str) -> None:
    banned = [f"zoo.{other}" for other in FAMILIES - {family}] + ["zoo.cli", "zoo.callbacks", "zoo.listing"]
    for file in (ROOT / "zoo" / family).rglob("*.py"):
        assert not [name for name in imports(file) if starts(name, *banned)], file
        data = [name for name in imports(file) if starts(name, "datamodules")]
        assert not [name for name in data if not starts(name, *TOOLS)], file


@pytest.mark.parametrize("part", ["cli.py", "callbacks", "metrics", "nn", "distributed.py", "pretrained.py"])
def test_shared_parts_know_no_family(part: str) -> None:
    path = ROOT / "zoo" / part
    for file in [path] if path.is_file() else path.rglob("*.py"):
        assert not [name for name in imports(file) if starts(name, *(f"zoo.{f}" for f in FAMILIES))], file
