"""Weights by name, path and run folder; what does not fit is refused."""

import dataclasses
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from safetensors.torch import save_file

import zoo
from datamodules.degrade import Degrade
from datamodules.episodes import EpisodeSpec
from datamodules.few_shot import FewShot
from datamodules.omniglot import BundledOmniglot
from zoo import catalogue
from zoo.checkpoint_io import read, sha256
from zoo.exporting import export
from zoo.few_shot import HeadComparison
from zoo.few_shot.heads import NearestCentroid
from zoo.language import LanguageModel, Lora
from zoo.nn import Conv64F
from zoo.nn.backbones import TimmBackbone
from zoo.noise_mask import ImageClassifier
from zoo.pretrained import DoesNotFit, init_from, locate, read_state, take
from zoo.rebuilding import _value, build


def test_every_bundled_checkpoint_loads_ready_to_use() -> None:
    assert "few_shot/conv64f_omniglot" in zoo.available()
    for entry in catalogue.checkpoints():
        if "bundled" in entry.source:
            model, network = zoo.load(entry.name), zoo.load_network(f"zoo://{entry.name}")
            assert isinstance(model, LightningModule)
            assert not model.training
            own = {name: tensor for name, tensor in model.network.state_dict().items() if not name.endswith("_state")}
            assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in own.items())


def test_entries_state_what_was_measured_and_the_size_of_their_files() -> None:
    for entry in catalogue.checkpoints():
        assert entry.licence
        assert entry.data
        assert entry.versions["torch"]
        assert set(entry.source) & {"bundled", "hub", "url", "wheel"}
        if "bundled" in entry.source:
            folder = locate(entry.name)
            assert entry.size == sum((folder / file).stat().st_size for file in entry.files) < 10_000_000


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(FileNotFoundError, match=r"'few_shot/nothing' is neither .*few_shot/conv64f_omniglot"):
        zoo.load("few_shot/nothing")


NAME = "few_shot/conv64f_omniglot"
ENTRY = next(c for c in catalogue.checkpoints() if c.name == NAME)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a bundled checkpoint's folder."""
    return Path(shutil.copytree(locate(NAME), tmp_path / "copy"))


def listed(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """The catalogue has one entry, a bundled one with these changes."""
    monkeypatch.setattr(catalogue, "checkpoints", lambda: [dataclasses.replace(ENTRY, name="one", **changes)])


def test_a_changed_byte_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, source={"bundled": str(folder)})
    assert type(zoo.load("one")).__name__ == "HeadComparison"
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors differs from the catalogue's sha256 for 'one'"):
        zoo.load("one")


@pytest.mark.parametrize("kind", ["url", "wheel"])
def test_a_checkpoint_is_fetched_from_a_url_and_out_of_a_wheel(
    kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    expected = zoo.load(NAME).state_dict()
    wheel = tmp_path / "p-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"p/model/{file.name}")
    source = {"url": folder.as_uri()}
    if kind == "wheel":
        source = {"wheel": wheel.as_uri(), "sha256": sha256(wheel), "folder": "p/model"}
    listed(monkeypatch, source=source)
    state = zoo.load("one").state_dict()
    shutil.rmtree(folder)
    wheel.unlink()
    assert all(torch.equal(value, state[name]) for name, value in expected.items())
    assert zoo.load("zoo://one").state_dict().keys() == state.keys()  # without its source
    wrong = {"model.safetensors": "0" * 64, "config.yaml": "1" * 64}
    listed(monkeypatch, source={"url": (tmp_path / "none").as_uri()}, files=wrong)
    with pytest.raises(ConnectionError, match="cannot download"):
        zoo.load("one")


def edited(folder: Path, change: Callable[[dict[str, Any]], Any]) -> str:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    change(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return str(folder)


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> str:
    state = read_state(str(folder))
    change(state)
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
    return str(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda s: s.pop("backbone.blocks.0.0.weight"),
            "lacks 1 of the model's 28 tensors, such as backbone.blocks.0.0",
        ),
        (lambda s: s.update(surplus=torch.ones(1)), "1 of its tensors have no place in the model, such as surplus"),
        (
            lambda s: s.update({"backbone.blocks.3.1.bias": torch.ones(5)}),
            r"backbone.blocks.3.1.bias is \(5,\) there and \(64,\) in the model",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named_in_one_line(change: Any, reason: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=rf"does not fit HeadComparison: .*{reason}") as raised:
        zoo.load(rewritten(folder, change))
    assert str(raised.value).count("\n") == 0


def test_another_class_count_is_named(tmp_path: Path) -> None:
    model = ImageClassifier(Conv64F(1, width=4), 3)
    folder = tmp_path / "three"
    folder.mkdir()
    spec = {"class_path": "zoo.nn.Conv64F", "init_args": {"in_channels": 1, "width": 4}}
    arguments = {"backbone": spec, "num_classes": 5}
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"model": {"class_path": "zoo.noise_mask.ImageClassifier", "init_args": arguments}})
    )
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"head.weight is \(3, 4\) there and \(5, 4\) .* another number of classes"):
        zoo.load(str(folder))


class Run:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("place", ["weights.ckpt", "weights.pt", "copy/model.safetensors", "hyper_parameters"])
def test_a_pickle_with_code_is_refused_and_not_run(place: str, folder: Path, tmp_path: Path) -> None:
    trace, file = tmp_path / "ran", tmp_path / ("whole.ckpt" if place == "hyper_parameters" else place)
    content = {"state_dict": {}, "hyper_parameters": {"_class_path": "zoo.nn.Conv64F", "x": Run(trace)}}
    torch.save(content if place == "hyper_parameters" else {"state_dict": {"a": Run(trace)}}, file)
    name = str(folder if place.startswith("copy") else file)
    for function in (zoo.load, zoo.load_network, read_state):
        with pytest.raises(ValueError, match=r"weights_only|is damaged, or no safetensors file") as raised:
            function(name)
        assert len(str(raised.value)) < 500
    assert not trace.exists()
    pickle.loads(pickle.dumps(Run(trace)))  # as it would have, read in the common way
    assert trace.exists()


def test_classes_of_other_packages_are_refused_before_their_import(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "ran"
    package = "from pathlib import Path\nfrom zoo.few_shot import *\nfrom zoo.nn import *\n"
    (tmp_path / "stranger.py").write_text(f"{package}Path({str(trace)!r}).touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    name = edited(folder, lambda c: c["model"]["init_args"]["backbone"].update(class_path="stranger.Conv64F"))
    with pytest.raises(ValueError, match=r"'stranger.Conv64F': importing stranger would run its code.*trust"):
        zoo.load(name)
    assert not trace.exists()
    assert type(zoo.load(name, trust=["stranger"])).__name__ == "HeadComparison"
    assert trace.exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda a: a.update(
                backbone={
                    "class_path": "torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler",
                    "init_args": {"entrypoint": "touch", "args": ["ran"], "env": {}},
                }
            ),
            "SubprocessHandler' is no Backbone",
        ),
        (lambda a: a.update(optimizer="os.system"), "importing os would run its code"),
        (lambda a: a.update(optimizer="torch.hub.load"), "'torch.hub.load' makes no Optimizer"),
        (lambda a: a.update(optimizer={"class_path": "torch.nn.Linear", "init_args": {}}), "is no Optimizer"),
        (lambda a: a.update(backbone={"class_path": "zoo.cli.os.system"}), "cannot be imported"),
        (lambda a: a.update(backbone={"class_path": "Conv64F"}), "must be the full path of a class"),
        (lambda a: a.update(pools=3), "unexpected keyword argument 'pools'"),
        (lambda a: a.update(scheduler_interval="hour"), "scheduler_interval='hour' must be one of epoch, step"),
        (
            lambda a: a.update(
                backbone={
                    "class_path": "zoo.nn.TimmBackbone",
                    "init_args": {"name": "resnet18", "options": {"checkpoint_path": "${folder}/evil.json"}},
                }
            ),
            "options must not have checkpoint_path, as timm may run code",
        ),
        (
            lambda a: a.update(
                backbone={
                    "class_path": "zoo.nn.TimmBackbone",
                    "init_args": {"name": "hf-hub:nobody/none"},
                    "dict_kwargs": {"pretrained": "yes"},
                }
            ),
            "pretrained='yes' must be true or false",
        ),
    ],
)
def test_a_config_makes_nothing_but_parts_of_the_right_kind(change: Any, reason: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=rf"cannot be rebuilt: .*{reason}"):
        zoo.load(edited(folder, lambda config: change(config["model"]["init_args"])))
    assert not Path("ran").exists()


def test_arguments_that_run_code_need_trust_in_their_class() -> None:
    spec = {"class_path": "zoo.llm_rl.rewards.FunctionReward", "init_args": {"path": "os.system"}}
    with pytest.raises(ValueError, match=r"path='os\.system' would run code that the file names"):
        build(spec, object)
    assert build(spec, object, trust=[spec["class_path"]]).function is os.system  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["init_args", "dict_kwargs"])
def test_arguments_without_a_type_are_checked_like_others(key: str, folder: Path) -> None:
    spec = {"class_path": "zoo.llm_rl.rewards.FunctionReward", key: {"path": "os.system"}}
    with pytest.raises(ValueError, match=r"path='os\.system' would run code that the file names"):
        build(spec, object)
    spec = {"class_path": "torch.optim.SGD", key: {"lr": 0.5}}
    made = _value(spec, Callable[[Any], torch.optim.Optimizer], (), "optimizer")
    assert made([torch.ones(1, requires_grad=True)]).param_groups[0]["lr"] == 0.5
    with pytest.raises(ValueError, match=rf"SGD: {key} must have values by name, got \['lr'\]"):
        _value({**spec, key: ["lr"]}, Callable[[Any], torch.optim.Optimizer], (), "optimizer")


@pytest.mark.parametrize("error", [IndexError, ImportError, OSError, AssertionError])
def test_whatever_a_constructor_raises_is_one_error(
    error: type[Exception], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any, *given: Any, **more: Any) -> None:
        raise error("of a part")

    monkeypatch.setattr(HeadComparison, "__init__", fail)
    with pytest.raises(ValueError, match=rf"cannot be rebuilt: {error.__name__}: of a part"):
        zoo.load(str(folder))


ALIASES = "a: &a [x, x]\nb: &b [*a, *a]\nmodel: {class_path: zoo.nn.Conv64F, init_args: {q: *b}}\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ALIASES, r"line 2 has the alias \*a"),
        ("model: &m {class_path: zoo.nn.Conv64F, init_args: {q: *m}}\n", r"line 1 has the alias \*m"),
        (f"model: {'[' * 500}{']' * 500}\n", "line 1 is nested more than 100 deep"),
        ("model: {class_path: zoo.nn.Conv64F, init_args: [1]}\n", r"init_args must have values by name, got \[1\]"),
        ("model: {class_path: zoo.nn.Conv64F}\nextras: [1]\n", r"extras must have values by name, got \[1\]"),
    ],
)
def test_a_config_that_is_no_plain_one_is_refused(text: str, reason: str, folder: Path) -> None:
    (folder / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=reason) as raised:
        zoo.load(str(folder))
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("aliases", ["[1]", '{"a": []}', '{"a": "b"}', "1"])
def test_bad_metadata_is_damage(aliases: str, folder: Path) -> None:
    save_file({"x": torch.ones(1)}, folder / "model.safetensors", metadata={"aliases": aliases})
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged, or no safetensors file"):
        zoo.load(str(folder))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"is damaged, or no file of torch.save \(EOFError"),
        (b"hello world, I am text", "is damaged, or no file of torch.save"),
        (b"\x80\x02" + bytes(range(40, 90)), "is damaged, or no file of torch.save|weights_only"),
        ({"state_dict": {}, "hyper_parameters": [1]}, "hyper_parameters must have values by name, got list"),
        ({1: torch.ones(1)}, "holds neither a state dict of tensors"),
    ],
)
def test_files_that_are_no_checkpoints_are_one_error(content: Any, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "a.ckpt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    for function in (zoo.load, read_state):
        with pytest.raises(ValueError, match=reason) as raised:
            function(str(file))
        assert "\n" not in str(raised.value)


def test_a_bare_network_loads_as_such(folder: Path) -> None:
    spec = {"class_path": "zoo.nn.Conv64F", "init_args": {"in_channels": 1, "pools": 3}}
    (folder / "config.yaml").write_text(yaml.safe_dump({"network": spec}))
    rewritten(folder, lambda s: [s.update({n.removeprefix("backbone."): s.pop(n)}) for n in list(s)])
    network, image = zoo.load_network(str(folder)), torch.rand(2, 1, 28, 28)
    assert torch.allclose(network(image), zoo.load_network(NAME)(image), atol=1e-5)  # another layout
    with pytest.raises(ValueError, match=r"holds a bare zoo\.nn\.Conv64F: use zoo\.load_network"):
        zoo.load(str(folder))


def test_init_from_takes_every_kind_of_name(folder: Path) -> None:
    expected = zoo.load_network(NAME).state_dict()
    for name in (NAME, f"zoo://{NAME}", str(folder)):
        target = Conv64F(1, pools=3)
        init_from(target, name, prefix="backbone.")
        assert all(torch.equal(value, expected[key]) for key, value in target.state_dict().items())


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


@pytest.mark.parametrize("name", ["few_shot/conv64f_omniglot", "few_shot/conv64f_omniglot_degraded"])
def test_a_bundled_backbone_measures_what_the_catalogue_says(name: str, tmp_path: Path) -> None:
    head = {"cosine": NearestCentroid("UN", "cosine")}
    model = HeadComparison(Conv64F(1, pools=3), head, "cosine", init_from=name)
    specs = [EpisodeSpec(episodes=1000), EpisodeSpec(episodes=1000, hard=True)]
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.test(model, FewShot(BundledOmniglot(), None, val=[], test=specs, degrade=Degrade()), verbose=False)
    stated = next(c.metrics for c in catalogue.checkpoints() if c.name == name)
    clean, hard = (measured.value for measured in stated.values())
    assert [row["accuracy"] for row in model.results()] == [
        pytest.approx(clean, abs=0.05),
        pytest.approx(hard, abs=0.05),
    ]


@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_a_folder_of_transformers_fills_other_language_models(kind: Any) -> None:
    name = "llm_rl/tiny_arithmetic"
    fields = json.loads((locate(name) / "config.json").read_text())
    config = {key: fields[key] for key in ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers")}
    config |= {key: fields[key] for key in ("num_attention_heads", "num_key_value_heads", "tie_word_embeddings")}
    expected = zoo.load_network(name).network.base_model.state_dict()
    started = LanguageModel(config=config, tokenizer=str(locate(name)), kind=kind, init_from=f"zoo://{name}").build()
    filled = torch.nn.Sequential(LanguageModel(config=config, tokenizer=str(locate(name)), kind=kind))
    take(filled, read(locate(name)), name)
    for network in (started.network, filled[0].network):
        found = network.base_model.state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in found.items())


LANGUAGE = "llm_rl/tiny_arithmetic"


def language_model(**more: Any) -> LanguageModel:
    fields = json.loads((locate(LANGUAGE) / "config.json").read_text())
    names = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = {key: fields[key] for key in (*names, "num_key_value_heads", "tie_word_embeddings")}
    return LanguageModel(config=config, tokenizer=str(locate(LANGUAGE)), **more)


def test_a_folder_of_transformers_leaves_nothing_random() -> None:
    for module, reason in (
        (Conv64F(1), "Conv64F: it holds the weights of one language model, and the model has 0"),
        (torch.nn.ModuleList([language_model(), language_model()]), "ModuleList: .* and the model has 2"),
        (
            torch.nn.ModuleDict({"policy": language_model(), "head": torch.nn.Linear(2, 1)}),
            r"ModuleDict: .*2 tensors of the model would be random, such as head\.weight; use init_from of policy",
        ),
        (language_model(lora=Lora(r=2)), "LanguageModel: .*weights do not fit"),
    ):
        with pytest.raises(DoesNotFit, match=rf"does not fit {reason}"):
            take(module, read(locate(LANGUAGE)), LANGUAGE)


def run_of(folder: Path, content: dict[str, Any], state: dict[str, torch.Tensor]) -> str:
    arguments = {"_class_path": content["class_path"], **content["init_args"]}
    torch.save({"state_dict": state, "hyper_parameters": arguments}, folder / "run.ckpt")
    return str(folder / "run.ckpt")


def policy_of(start: Path, lora: Any = None) -> dict[str, Any]:
    """A fine-tuner of a network from scratch that starts from weights in a folder."""
    fields = {"config": language_model().config, "tokenizer": str(locate(LANGUAGE)), "init_from": str(start)}
    policy = {"class_path": "zoo.language.LanguageModel", "init_args": {**fields, "lora": lora}}
    rewards = {"answer": {"class_path": "zoo.llm_rl.rewards.NumericAnswer"}}
    return {"class_path": "zoo.llm_rl.PolicyFineTuner", "init_args": {"policy": policy, "rewards": rewards}}


def test_a_run_needs_what_it_started_from_for_adapters_alone(tmp_path: Path) -> None:
    start = Path(shutil.copytree(locate(LANGUAGE), tmp_path / "start"))
    spec = policy_of(start)
    model = build(spec, LightningModule)
    model.policy.build()
    torch.nn.init.ones_(model.policy.network.model.norm.weight)
    whole = run_of(tmp_path, spec, model.state_dict())
    spec = policy_of(start, {"r": 2, "dropout": 0.0})
    other = build(spec, LightningModule)
    other.policy.build()
    (tmp_path / "lora").mkdir()
    adapters = run_of(tmp_path / "lora", spec, other.state_dict())
    frozen = zoo.load(adapters).policy.network.model.norm.weight
    shutil.rmtree(start)
    again = zoo.load(whole).policy
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.policy.state_dict().items())
    assert again.network.model.norm.weight.eq(1).all()
    assert not frozen.eq(1).all()
    with pytest.raises(FileNotFoundError, match=r"start' is neither a file"):
        zoo.load(adapters)


def test_pretrained_weights_of_a_library_are_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    backbone = TimmBackbone("resnet10t", in_channels=1)
    heads = {"cosine": {"class_path": "zoo.few_shot.heads.NearestCentroid", "init_args": {"features": "UN"}}}
    part = {"class_path": "zoo.nn.TimmBackbone", "init_args": {"name": "resnet10t", "in_channels": 1}}
    part["init_args"]["pretrained"] = True  # type: ignore[index]
    spec = {"class_path": "zoo.few_shot.HeadComparison"}
    spec["init_args"] = {"backbone": part, "heads": heads, "main_head": "cosine"}  # type: ignore[assignment]
    state = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    asked, make = [], timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *given, **more: asked.append(more["pretrained"]) or make(*given, **more)
    )
    model = zoo.load(run_of(tmp_path, spec, state))
    assert asked == [False]
    assert model.hparams["backbone"]["init_args"]["pretrained"] is False
    assert torch.equal(model.state_dict()["backbone.model.conv1.0.weight"], state["backbone.model.conv1.0.weight"])


def test_arguments_that_share_a_value_come_back_from_an_export(tmp_path: Path) -> None:
    head = {"class_path": "zoo.few_shot.heads.NearestCentroid", "init_args": {"features": "UN"}}
    part = {"class_path": "zoo.nn.Conv64F", "init_args": {"in_channels": 1, "width": 4}}
    arguments = {"backbone": part, "heads": {"one": head, "two": head}, "main_head": "two"}
    spec = {"class_path": "zoo.few_shot.HeadComparison", "init_args": arguments}
    run = run_of(tmp_path, spec, build(spec, LightningModule).state_dict())
    folder = export(run, tmp_path / "exported", "MIT")
    assert "*" not in (folder / "config.yaml").read_text()
    assert list(zoo.load(str(folder)).heads) == ["one", "two"]
