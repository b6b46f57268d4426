"""Weights by name, path and run folder; what does not fit is refused."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import save_file

import zoo
from datamodules.degrade import Degrade
from datamodules.episodes import EpisodeSpec
from datamodules.few_shot import FewShot
from datamodules.omniglot import BundledOmniglot
from zoo import catalogue
from zoo.few_shot import HeadComparison
from zoo.few_shot.heads import NearestCentroid
from zoo.nn import Conv64F
from zoo.pretrained import init_from


def test_every_checkpoint_of_the_catalogue_loads() -> None:
    assert "few_shot/conv64f_omniglot" in zoo.available()
    for entry in catalogue.checkpoints():
        if entry.url is None:
            assert zoo.load(entry.name).keys() == zoo.load(f"zoo://{entry.name}").keys()


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(FileNotFoundError, match=r"'few_shot/nothing' is neither .*few_shot/conv64f_omniglot"):
        zoo.load("few_shot/nothing")


def test_a_changed_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = catalogue.checkpoints()[0]
    wrong = dataclasses.replace(entry, sha256="0" * 64)
    monkeypatch.setattr(catalogue, "checkpoints", lambda: [wrong])
    with pytest.raises(ValueError, match="differs from the catalogue's sha256"):
        zoo.load(entry.name)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_weights_are_found_with_and_without_prefixes(prefix: str, tmp_path: Path) -> None:
    source, target = Conv64F(1, width=4), Conv64F(1, width=4)
    state = {f"{prefix}{name}": value for name, value in source.state_dict().items()}
    torch.save({"state_dict": {**state, "head.weight": torch.zeros(1)}}, tmp_path / "a.ckpt")
    save_file(state, tmp_path / "a.safetensors")
    for name in ("a.ckpt", "a.safetensors"):
        torch.nn.init.zeros_(target.blocks[0][0].weight)
        init_from(target, str(tmp_path / name), prefix="backbone.")
        assert all(torch.equal(value, target.state_dict()[key]) for key, value in source.state_dict().items())


def test_weights_that_do_not_match_change_nothing(tmp_path: Path) -> None:
    torch.save(Conv64F(1, width=8).state_dict(), tmp_path / "wide.pt")
    module = Conv64F(1, width=4)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match=r"tensors find no match in it, such as blocks.0.0.weight \(4, 1, 3, 3\)"):
        init_from(module, str(tmp_path / "wide.pt"))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_strangers_pickle_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        zoo.load(str(tmp_path / "evil.ckpt"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["few_shot/conv64f_omniglot", "few_shot/conv64f_omniglot_degraded"])
def test_a_bundled_backbone_measures_what_the_catalogue_says(name: str, tmp_path: Path) -> None:
    head = {"cosine": NearestCentroid("UN", "cosine")}
    model = HeadComparison(Conv64F(1, pools=3), head, "cosine", init_from=name)
    specs = [EpisodeSpec(episodes=1000), EpisodeSpec(episodes=1000, hard=True)]
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.test(model, FewShot(BundledOmniglot(), None, val=[], test=specs, degrade=Degrade()), verbose=False)
    stated = next(c.metrics for c in catalogue.checkpoints() if c.name == name)
    clean, hard = (float(word) for word in re.findall(r"([\d.]+) ±", stated))
    assert [row["accuracy"] for row in model.results()] == [
        pytest.approx(clean, abs=0.05),
        pytest.approx(hard, abs=0.05),
    ]
