"""``python -m zoo gallery`` in this process, with checkpoints of a tiny model."""

import csv
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image
from torch import Tensor, nn

from datamodules.sources import bundled
from zoo import rebuilding
from zoo.__main__ import main
from zoo.retrieval.embedder import Embedder, state_digest
from zoo.retrieval.gallery import Gallery

FORM = {"size": 14, "channels": 1, "resize": None, "invert": True, "resample": "box", "mean": [0.1], "std": [0.3]}


class Tiny(LightningModule):
    """A random projection of the pixels; ``prototypes`` stands for the simplex it was trained with, 0 for none."""

    def __init__(self, width: int, prototypes: int = 0) -> None:
        super().__init__()
        self.project = nn.Linear(14 * 14, width, bias=False)
        self.dropout = nn.Dropout()
        self.prototypes = prototypes

    @property
    def embedding_space(self) -> dict[str, int | str] | None:
        return {"num_prototypes": self.prototypes} if self.prototypes else None

    def forward(self, image: Tensor) -> Tensor:
        return self.dropout(self.project(image.flatten(1)))


def checkpoint(file: Path, prototypes: int = 0, seed: int = 0, form: dict[str, Any] | None = FORM) -> str:
    torch.manual_seed(seed)
    model = Tiny(33, prototypes)
    content = {
        "state_dict": model.state_dict(),
        "hyper_parameters": {
            "_class_path": f"{__name__}.Tiny",
            "_instantiator": "lightning.pytorch.cli.instantiate_module",
            "width": 33,
            "prototypes": prototypes,
        },
        "pytorch-lightning_version": lightning.__version__,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content if form is None else content | {"image_form": form}, file)
    return str(file)


@pytest.fixture(autouse=True)
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model of these tests may be rebuilt."""
    monkeypatch.setattr(rebuilding, "TRUSTED", (*rebuilding.TRUSTED, __name__.partition(".")[0]))


@pytest.fixture
def drawings(tmp_path: Path) -> Path:
    with np.load(bundled("omniglot_small.npz")) as file:
        for name, images in list(zip(file["classes"], file["image"], strict=True))[::60]:
            folder = tmp_path / "drawings" / str(name).replace("/", "-")
            folder.mkdir(parents=True)
            for i in range(4):
                Image.fromarray(255 - images[i]).save(folder / f"{i}.png")
    return tmp_path / "drawings"


def failure(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["gallery", *args])
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    return printed


def test_embedder_is_rebuilt_from_a_run_folder_as_its_checkpoint_says(drawings: Path, tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt", prototypes=5)
    embedder = Embedder.from_checkpoint(str(tmp_path / "run"), device="cpu")
    assert embedder.image_form == FORM
    assert embedder.space == {"num_prototypes": 5}
    state = torch.load(file, weights_only=True)["state_dict"]
    assert embedder.digest == state_digest(state)
    paths = sorted(str(path) for path in drawings.rglob("*.png"))[:3]
    boxes = [np.asarray(Image.open(p), dtype=np.float64).reshape(14, 2, 14, 2).mean((1, 3)).round() for p in paths]
    ink = (1 - torch.tensor(np.stack(boxes)).flatten(1) / 255 - 0.1) / 0.3
    expected = nn.functional.normalize(ink @ state["project.weight"].double().T)
    assert torch.allclose(embedder(paths).double(), expected, atol=0.01)  # a box of 2x2 may round either way


def test_build_query_add_remove_and_info(drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = checkpoint(tmp_path / "old.ckpt", 5), checkpoint(tmp_path / "new.ckpt", 5)
    folder, first = str(tmp_path / "gallery"), sorted(drawings.iterdir())[0]
    main(["gallery", "build", "--images", str(drawings), "--checkpoint", old, "--out", folder])
    assert f"20 images in {folder}" in capsys.readouterr().out
    out, grid = tmp_path / "found" / "nearest.csv", tmp_path / "found" / "grid.png"
    main(
        [
            *("gallery", "query", "--gallery", folder, "--images", str(first), "--checkpoint", new),
            *("--k", "3", "--out", str(out), "--grid", str(grid)),
        ]
    )
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["rank"] for row in rows] == ["1", "2", "3"] * 4
    for row in rows[::3]:
        assert row["file"] == row["query"]
        assert row["label"] == first.name
        assert float(row["score"]) == pytest.approx(1, abs=1e-5)
    assert Image.open(grid).size[0] > 300
    main(["gallery", "remove", "--gallery", folder, "--images", str(first / "0.png"), str(first / "1.png")])
    assert "2 images removed, 18 in" in capsys.readouterr().out
    assert str(first / "0.png") not in Gallery.load(folder).files
    main(["gallery", "add", "--gallery", folder, "--images", str(first / "0.png"), "--checkpoint", new])
    assert Gallery.load(folder).labels[-1] == first.name
    capsys.readouterr()
    main(["gallery", "info", "--gallery", folder])
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("19", "33", "num_prototypes", "Flat"))


def test_models_that_do_not_compare_are_refused_in_one_line(
    drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "gallery")
    five, six = checkpoint(tmp_path / "5.ckpt", 5), checkpoint(tmp_path / "6.ckpt", 6)
    main(["gallery", "build", "--images", str(drawings), "--checkpoint", five, "--out", folder])
    query = ("query", "--gallery", folder, "--images", str(drawings), "--checkpoint")
    assert "num_prototypes is 6 in the model and 5 in the gallery; build" in failure(capsys, *query, six)
    learned, other = checkpoint(tmp_path / "a.ckpt"), checkpoint(tmp_path / "b.ckpt", seed=1)
    main(["gallery", "build", "--images", str(drawings), "--checkpoint", learned, "--out", folder])
    main(["gallery", *query, learned, "--k", "1"])
    assert "digest of the weights" in failure(capsys, *query, other)


def test_mistakes_are_named_in_one_line(drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = ("build", "--images", str(drawings), "--out", str(tmp_path / "gallery"), "--checkpoint")
    silent = checkpoint(tmp_path / "silent.ckpt", form=None)
    assert "does not say how to read images (no image_form): train with" in failure(capsys, *build, silent)
    strange = checkpoint(tmp_path / "strange.ckpt", form=FORM | {"colour": 1})
    assert "image_form {'size': 14" in failure(capsys, *build, strange)
    assert "'nowhere' is neither a file, a run folder nor" in failure(capsys, *build, "nowhere")
    good = checkpoint(tmp_path / "good.ckpt")
    assert "device 'quantum' cannot be used" in failure(capsys, *build, good, "--device", "quantum")
    assert "Flatt" in failure(capsys, *build, good, "--index", "Flatt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    assert "text.ckpt: the model cannot be rebuilt" in failure(capsys, *build, str(tmp_path / "text.ckpt"))
    assert not (tmp_path / "gallery").exists()
    assert "embeddings.npy is missing" in failure(capsys, "info", "--gallery", str(tmp_path / "gallery"))
