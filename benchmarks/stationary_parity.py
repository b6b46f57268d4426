"""The stationary family beside the official code: prototypes, compatibility loss with gradient, 1:N score, AC and AA.

Needs a checkout of github.com/miccunifi/iamcl2r (measured at 18495ac):

    python benchmarks/stationary_parity.py --official PATH_OF_THE_CHECKOUT

The official modules are loaded file by file from there.
"""

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from zoo.metrics import average_accuracy, average_compatibility
from zoo.retrieval import RetrievalEvaluator, embedding_table
from zoo.stationary.losses import higher_order_contrast
from zoo.stationary.simplex import simplex


def official(path: Path, name: str) -> Any:
    """One module of the official package."""
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), path / "src" / "iamcl2r" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, required=True)
    path = parser.parse_args().official
    if not hasattr(np, "in1d"):  # gone from NumPy, and called by the official score
        np.in1d = np.isin  # type: ignore[attr-defined]  # noqa: NPY201
    torch.manual_seed(0)
    text = (path / "src" / "iamcl2r" / "models" / "__init__.py").read_text(encoding="utf-8")
    start = text.index("def dsimplex")
    scope: dict[str, Any] = {"torch": torch}
    exec(compile(text[start : text.index("def create_model")], "dsimplex", "exec"), scope)  # its imports need a package
    theirs = scope["dsimplex"](1024, "cpu")
    print(f"prototypes, K=1024: largest difference {(theirs - simplex(1024)).abs().max():.1e}")

    old, new, label = torch.randn(128, 1023), torch.randn(128, 1023), torch.randint(0, 10, (128,))
    ours_z, theirs_z = new.clone().requires_grad_(), new.clone().requires_grad_()
    ours = higher_order_contrast(old, ours_z, label)
    reference = official(path, "methods/hoc").HocLoss(10)(normalize(theirs_z), normalize(old), label)
    ours.backward()
    reference.backward()
    assert ours_z.grad is not None
    assert theirs_z.grad is not None
    print(f"loss: {ours.item():.7f} and {reference.item():.7f}")
    print(
        f"gradient: largest {theirs_z.grad.abs().max():.1e}, difference {(ours_z.grad - theirs_z.grad).abs().max():.1e}"
    )

    centre = torch.randn(10, 64)
    query_label, gallery_label = torch.arange(2000) % 10, torch.arange(500) % 10
    query, gallery = (embedding_table(centre[y] + 2 * torch.randn(len(y), 64), y) for y in (query_label, gallery_label))
    score = RetrievalEvaluator(template="mean")(query, gallery).scores["accuracy"]
    other = official(path, "performance_metrics").identification(
        gallery.embedding, gallery.label, query.embedding, query.label
    )
    print(f"1:N score: {score:.6f} and {other:.6f}")

    matrix = torch.rand(7, 7, dtype=torch.float64).tril() * 0.9
    known = official(path, "compatibility_metrics")
    lower = torch.where(torch.ones(7, 7).tril() == 1, matrix, torch.nan)
    print(f"AC: {average_compatibility(lower):.6f} and {known.average_compatibility(matrix.numpy()):.6f}")
    print(f"AA: {100 * average_accuracy(lower):.6f} and {known.average_accuracy(matrix.numpy()):.6f}")


if __name__ == "__main__":
    main()
