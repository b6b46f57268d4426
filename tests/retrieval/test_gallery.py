"""A gallery of drawings, embedded by their own pixels so that every score has a closed form."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from datamodules.images import ImageForm
from datamodules.search import Search
from datamodules.sources import bundled
from zoo.retrieval import gallery as gallery_module
from zoo.retrieval.embedder import Embedder, state_digest
from zoo.retrieval.gallery import Gallery
from zoo.retrieval.pictures import picture_grid

MEAN, STD = 0.1, 0.3
SIMPLEX: dict[str, int | str] = {"num_prototypes": 8, "label_order": "from_end"}


def embedder(
    space: dict[str, int | str] | None = None, digest: str = "one", model: nn.Module | None = None
) -> Embedder:
    form = ImageForm(28, channels=1, invert=True)
    return Embedder(model or nn.Flatten(), form, [MEAN], [STD], space, digest, batch_size=7)


@pytest.fixture
def drawings(tmp_path: Path) -> Path:
    """Dark ink on white: six characters of five drawings, ``drawings/<class>/<n>.png``."""
    with np.load(bundled("omniglot_small.npz")) as file:
        for name, images in list(zip(file["classes"], file["image"], strict=True))[::40][:6]:
            folder = tmp_path / "drawings" / str(name).replace("/", "-")
            folder.mkdir(parents=True)
            for i in range(5):
                Image.fromarray(255 - images[i]).save(folder / f"{i}.png")
    return tmp_path / "drawings"


def pixels(files: list[str]) -> np.ndarray:
    ink = [1 - np.asarray(Image.open(file), dtype=np.float64).ravel() / 255 for file in files]
    x = (np.stack(ink) - MEAN) / STD
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_hits_are_those_of_the_cosine_of_normalised_pixels(drawings: Path) -> None:
    gallery = Gallery.build(drawings, embedder())
    assert len(gallery) == 30
    assert gallery.files == sorted(str(path) for path in drawings.rglob("*.png"))
    assert gallery.labels == [Path(file).parent.name for file in gallery.files]
    cosine = pixels(gallery.files) @ pixels(gallery.files).T
    for row, hits in enumerate(gallery.query(gallery.files, embedder(), k=4)):
        order = np.argsort(-cosine[row], kind="stable")[:4]
        assert [hit.file for hit in hits] == [gallery.files[i] for i in order]
        assert hits[0].file == gallery.files[row]
        assert hits[0].score == pytest.approx(1, abs=1e-5)
        assert [hit.score for hit in hits] == pytest.approx(cosine[row, order].tolist(), abs=1e-5)
        assert [hit.label for hit in hits] == [Path(hit.file).parent.name for hit in hits]
        assert [hit.rank for hit in hits] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "search", [Search(), Search(backend="torch"), Search(index="HNSW8"), Search(index="IVF4,Flat")], ids=str
)
def test_a_removed_image_is_found_no_more_and_an_added_one_is(drawings: Path, search: Search) -> None:
    gallery = Gallery.build(drawings, embedder(), search)
    query = gallery.files[7]
    first, second = gallery.query(query, embedder(), k=2)[0]
    assert first.file == query
    assert gallery.remove([query]) == [query]
    assert len(gallery) == len(gallery.embedding) == 29
    hits = gallery.query(query, embedder(), k=30)[0]
    assert query not in [hit.file for hit in hits]
    assert (hits[0].file, hits[0].score) == (second.file, pytest.approx(second.score, abs=1e-5))
    assert gallery.add(query, embedder()) == [query]
    found = gallery.query(query, embedder(), k=1)[0][0]
    assert (found.file, found.label) == (query, Path(query).parent.name)
    assert found.score == pytest.approx(1, abs=1e-5)


def test_k_beyond_the_gallery_gives_all_of_it(drawings: Path) -> None:
    gallery = Gallery.build(drawings, embedder())
    hits = gallery.query(gallery.files[0], embedder(), k=1000)[0]
    assert sorted(hit.file for hit in hits) == gallery.files
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        gallery.query(gallery.files[0], embedder(), k=0)


def test_files_are_one_whether_named_relative_or_absolute(drawings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = Gallery.build(drawings, embedder())
    folder = Path(gallery.files[0]).parent
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=rf"{folder}/0.png is in the gallery already"):
        gallery.add("0.png", embedder())
    with pytest.raises(ValueError, match=rf"{folder}/5.png is not in the gallery"):
        gallery.remove(["0.png", "5.png"])
    assert len(gallery) == 30
    (folder / "0.png").unlink()
    assert gallery.remove(f"../{folder.name}/0.png") == [str(folder / "0.png")]
    assert len(gallery.remove(folder)) == 4
    assert len(gallery) == 25
    gallery.remove(drawings)
    with pytest.raises(ValueError, match="the gallery is empty"):
        gallery.query(drawings, embedder())


def test_added_in_parts_is_built_at_once(drawings: Path) -> None:
    whole = Gallery.build(drawings, embedder())
    one, *others = sorted(drawings.iterdir())
    parts = Gallery.build([*one.iterdir()][:2], embedder())
    parts.add([path for path in one.iterdir() if str(path) not in parts.files], embedder())
    for folder in others:
        parts.add(folder, embedder())
    assert dict(zip(parts.files, parts.labels, strict=True)) == dict(zip(whole.files, whole.labels, strict=True))
    order = [parts.files.index(file) for file in whole.files]
    assert torch.equal(parts.embedding[order], whole.embedding)


def test_a_flat_folder_has_no_labels(drawings: Path) -> None:
    folder, other = sorted(drawings.iterdir())[:2]
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    gallery = Gallery.build(folder, embedder())
    gallery.add(other, embedder())
    assert gallery.labels == [""] * 10


def test_a_newer_model_of_the_same_space_searches_without_embedding_again(drawings: Path) -> None:
    gallery = Gallery.build(drawings, embedder(SIMPLEX, "old"))
    before = gallery.embedding.clone()
    newer = embedder(dict(SIMPLEX), "new")
    assert gallery.query(gallery.files[3], newer, k=1)[0][0].file == gallery.files[3]
    assert torch.equal(gallery.embedding, before)


@pytest.mark.parametrize(
    ("gallery_space", "space", "message"),
    [
        (SIMPLEX, SIMPLEX | {"num_prototypes": 9}, r"num_prototypes is 9 in the model and 8 in the gallery; build"),
        (SIMPLEX, {"num_prototypes": 8}, r"label_order is None in the model and 'from_end' in the gallery"),
        (None, None, r"digest of the weights is 'new' in the model and 'old' in the gallery; build"),
        (None, SIMPLEX, r"the model has .*'num_prototypes': 8.*, the gallery's had no fixed embedding space"),
        (SIMPLEX, None, r"the model has no fixed .*with itself only\), the gallery's had .*'num_prototypes': 8"),
    ],
)
def test_a_model_of_another_space_is_refused_with_both_values(
    gallery_space: dict[str, int | str] | None, space: dict[str, int | str] | None, message: str, drawings: Path
) -> None:
    gallery = Gallery.build(drawings, embedder(gallery_space, "old"))
    extra = drawings / "extra.png"
    extra.write_bytes(Path(gallery.files[0]).read_bytes())
    for action in (gallery.query, gallery.add):
        with pytest.raises(ValueError, match=message):
            action(extra, embedder(space, "new"))
    assert len(gallery) == 30


def test_an_embedding_of_another_width_is_refused(drawings: Path) -> None:
    gallery = Gallery.build(drawings, embedder(SIMPLEX))
    narrow = embedder(SIMPLEX, model=nn.Sequential(nn.Flatten(), nn.Linear(784, 7)))
    with pytest.raises(ValueError, match="have 7 numbers and the gallery's 784"):
        gallery.query(gallery.files[0], narrow)


def test_saved_and_loaded_it_is_the_same(drawings: Path, tmp_path: Path) -> None:
    odd = drawings / 'a "quoted", name\nof two lines' / "ä,1.png"
    odd.parent.mkdir()
    odd.write_bytes(next(drawings.rglob("0.png")).read_bytes())
    gallery = Gallery.build(drawings, embedder(SIMPLEX), Search(index="HNSW8", ef_search=32))
    gallery.save(tmp_path / "gallery")
    loaded = Gallery.load(tmp_path / "gallery")
    assert torch.equal(loaded.embedding, gallery.embedding)
    for name in ("files", "labels", "space", "digest", "image_form", "search"):
        assert getattr(loaded, name) == getattr(gallery, name)
    assert loaded.query(drawings, embedder(SIMPLEX)) == gallery.query(drawings, embedder(SIMPLEX))
    assert sorted(path.name for path in (tmp_path / "gallery").iterdir()) == sorted(gallery_module.NAMES)


def test_labels_may_be_corrected_by_hand(drawings: Path, tmp_path: Path) -> None:
    Gallery.build(drawings, embedder()).save(tmp_path)
    items = tmp_path / "items.csv"
    items.write_text(items.read_text().replace("0.png,", "0.png,corrected "))
    assert sum(label.startswith("corrected ") for label in Gallery.load(tmp_path).labels) == 6


def _drop_last_line(file: Path) -> None:
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))


def _reverse_lines(file: Path) -> None:
    header, *rows = file.read_text().splitlines(keepends=True)
    file.write_text(header + "".join(reversed(rows)))


def _flip_last_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _narrow(file: Path) -> None:
    np.save(file, np.load(file)[:, :-1])


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _format_2(file: Path) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 2}))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("embeddings.npy", Path.unlink, r"embeddings.npy is missing"),
        ("items.csv", Path.unlink, r"items.csv is missing"),
        ("gallery.json", Path.unlink, r"gallery.json is missing"),
        ("items.csv", _drop_last_line, r"embeddings.npy holds float32 \(30, 784\), but .*items.csv has 29 rows"),
        ("items.csv", _reverse_lines, r"items.csv: its files are not those that .*gallery.json was saved with"),
        ("embeddings.npy", _narrow, r"embeddings.npy holds float32 \(30, 783\), but .* width of 784"),
        ("embeddings.npy", _flip_last_bit, r"embeddings.npy: its embeddings are not those"),
        ("embeddings.npy", _cut, r"embeddings.npy cannot be read"),
        ("gallery.json", _cut, r"gallery.json is not a valid description"),
        ("gallery.json", _format_2, r"gallery.json .*its format is 2, this version reads 1"),
    ],
)
def test_a_damaged_folder_is_an_error_that_names_the_file(
    name: str, damage: Callable[[Path], None], message: str, drawings: Path, tmp_path: Path
) -> None:
    Gallery.build(drawings, embedder()).save(tmp_path / "gallery")
    damage(tmp_path / "gallery" / name)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        Gallery.load(tmp_path / "gallery")


def test_a_save_that_fails_leaves_the_earlier_gallery(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = Gallery.build(drawings, embedder())
    gallery.save(tmp_path / "gallery")
    dropped = gallery.remove(gallery.files[0])
    monkeypatch.setattr(csv, "writer", lambda stream: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        gallery.save(tmp_path / "gallery")
    monkeypatch.undo()
    assert Gallery.load(tmp_path / "gallery").files[0] == dropped[0]
    assert len(list((tmp_path / "gallery").iterdir())) == 3


def test_wrong_files_are_named(drawings: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        Gallery.build(drawings / "nowhere", embedder())
    (drawings / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is empty"):
        Gallery.build(drawings / "empty", embedder())
    file = next(drawings.rglob("0.png"))
    with pytest.raises(ValueError, match=rf"{file} is given twice"):
        Gallery.build([drawings, file], embedder())


def test_an_embedding_without_direction_names_the_file(drawings: Path) -> None:
    class OneIsNothing(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            x = image.flatten(1)
            return torch.where(torch.arange(len(x))[:, None] == 2, x * float("nan"), x)

    files = sorted(str(path) for path in drawings.rglob("*.png"))
    with pytest.raises(ValueError, match=rf"of 1 images are zero or not finite, such as that of {files[2]}"):
        embedder(model=OneIsNothing())(files[:5])


def test_digest_knows_every_bit_and_no_order() -> None:
    state = {"a": torch.arange(6.0).view(2, 3), "n": torch.tensor(3), "h": torch.ones(2, dtype=torch.bfloat16)}
    digest = state_digest(state)
    assert digest == state_digest(dict(reversed(state.items())))
    changed = state["a"].clone()
    changed[1, 2] = torch.nextafter(changed[1, 2], torch.tensor(9.0))
    assert digest != state_digest(state | {"a": changed})
    assert digest != state_digest(state | {"a": state["a"].view(3, 2)})


def test_grid_draws_each_query_beside_its_images(drawings: Path) -> None:
    files = sorted(str(path) for path in drawings.rglob("*.png"))
    rows = [(file, [(files[0], "one\n0.9"), (files[1], "$x_$\n0.8"), (files[2], "three")]) for file in files[:20]]
    figure = picture_grid(rows, columns_max=2)
    axes = [ax for ax in figure.axes if ax.images]
    assert len(axes) == 16 * 3
    assert [ax.get_xlabel() for ax in axes[1:3]] == ["one\n0.9", "$x_$\n0.8"]
    shown = np.asarray(axes[0].images[0].get_array())
    assert np.array_equal(shown[..., 0], np.asarray(Image.open(files[0])))
    assert "16 of 20" in figure.get_suptitle()
    figure.draw_without_rendering()  # a caption that is taken for a formula fails here
    with pytest.raises(ValueError, match=r"cannot draw the image .*nothing.png"):
        picture_grid([("nothing.png", [])])
