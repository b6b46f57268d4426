"""An exported model of each family, moved and loaded in another process, gives the same outputs bit for bit."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from safetensors.torch import save_file

import zoo
from zoo import catalogue, exporting
from zoo.__main__ import main
from zoo.checkpoint_io import write_weights
from zoo.cli import run
from zoo.exporting import catalogue_entry, export, push_to_hub
from zoo.model_card import started_from
from zoo.rebuilding import build

LORA = '{"r": 2, "alpha": 4, "dropout": 0.0, "targets": ["q_proj", "v_proj"]}'
POLICY = "--model.init_args.policy.init_args"
LANGUAGE = "--model.init_args.embedder.init_args.language_model.init_args"
CONFIGS: dict[str, tuple[str, ...]] = {
    "few_shot": (
        *("few_shot/crlnet_omniglot", "--model.init_args.init_from=null"),
        *("--model.init_args.head.init_args.hidden=16", "--model.init_args.head.init_args.mlp_hidden=16"),
    ),
    "stationary": ("stationary/er_omniglot", "--model.init_args.replace_at=[]", "--model.init_args.pretrained=[]"),
    "noise_mask": ("noise_mask/heat_pneumonia",),
    "recommenders": ("recommenders/sasrec_ml100k", "--model.init_args.encoder.init_args.dim=16"),
    "dense_retrieval": ("dense_retrieval/retriever_topics", f"{LANGUAGE}.config.hidden_size=32"),
    "llm_rl": ("llm_rl/grpo_arithmetic",),
    "lora": ("llm_rl/grpo_arithmetic", f"{POLICY}.lora={LORA}"),
}
OUTPUTS = '''
import sys, torch, zoo
from datamodules.batches import EpisodeRows

def outputs(name, model):
    """What each family's model makes of inputs that are the same in all processes."""
    torch.manual_seed(0)
    image = torch.randn(15, 1, 28, 28)
    rows = torch.arange(15).view(1, 15)
    label = torch.arange(5).view(1, 5)
    texts = [{"text": f"t{i} t{i + 1}"} for i in range(8)]
    with torch.no_grad():
        if name == "few_shot":
            episode = EpisodeRows(rows[:, :5], label, rows[:, 5:], torch.zeros(1, 10).long(), rows[0, :1], 5, "")
            table = model.embed(image)
            scores = model.scores(table, model.table_vectors(table), episode)
            return torch.stack([scores["crlnet"], scores["cosine"]])
        if name in ("stationary", "noise_mask"):
            return model(image)
        if name == "recommenders":
            return model.score(model.represent(torch.randint(1, 31, (4, 20))))
        if name == "dense_retrieval":
            return torch.cat([model.embed(texts, "query"), model.embed(texts, "passage")])
        tokens = torch.tensor([model.policy.tokenizer.encode("12+34=")])
        return model.policy.logits(model.policy.hidden(tokens, torch.ones_like(tokens)))
'''
LOADING = f"""{OUTPUTS}
torch.set_num_threads(1)
folder = sys.argv[1]
torch.save({{name: outputs(name, zoo.load(f"{{folder}}/{{name}}")) for name in sys.argv[2:]}}, f"{{folder}}/outputs.pt")
"""
scope: dict[str, Any] = {}
exec(OUTPUTS, scope)


def built(config: str, folder: Path, *words: str) -> LightningModule:
    """The model of an experiment, as the command line builds it."""
    given = ["--config", config, *words, "--run_dir", str(folder / "none"), "--trainer.logger=false"]
    return run(given, execute=False).model


def made(name: str, folder: Path, *words: str) -> LightningModule:
    """A model as the command line makes it, with weights and statistics that no constructor gives."""
    config, *own = CONFIGS[name]
    model: Any = built(config, folder, *own, *words)
    if name == "stationary":
        model.classifier.grow(0, 7)
    if name == "recommenders":
        model.encoder.build(30)
    if name == "dense_retrieval":
        model.embedder.language_model.build([" ".join(f"t{i}" for i in range(20))])
    if name in ("llm_rl", "lora"):
        model.policy.build()
    torch.manual_seed(1)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor += 0.1 * (torch.randn_like if tensor.ndim > 1 else torch.rand_like)(tensor)
    return model.eval()


def saved(model: LightningModule, folder: Path, **more: Any) -> Path:
    """A run folder with a checkpoint, as a fit leaves it."""
    version = folder / "version_0"
    (version / "checkpoints").mkdir(parents=True)
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), **more}
    torch.save(content, version / "checkpoints" / "last.ckpt")
    (version / "config.yaml").write_text("seed_everything: 3\nrun_dir: /home/me/runs\nmodel: {}\n")
    (version / "results.csv").write_text("name,accuracy\nmain,12.345678\n")
    return folder


FORM = {"size": 28, "channels": 1, "mean": [0.1], "std": [0.3]}


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The outputs of models of all families before they were exported and in a process that loaded the exports."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("exports")
        patch.setenv("ZOO_CACHE", str(folder / "cache"))
        before: dict[str, torch.Tensor] = {}
        for name in CONFIGS:
            model = made(name, folder)
            extras = {"image_form": FORM} if name == "stationary" else {}
            runs = saved(model, folder / "runs" / CONFIGS[name][0].rpartition("/")[2], **extras)
            before[name] = scope["outputs"](name, model)
            export(str(runs), folder / "first" / name)
            shutil.rmtree(runs)
        (folder / "first").rename(folder / "moved")
        words = [sys.executable, "-c", LOADING, str(folder / "moved"), *CONFIGS]
        subprocess.run(words, check=True, capture_output=True, cwd=Path(zoo.__path__[0]).parent)
        return before, torch.load(folder / "moved" / "outputs.pt", weights_only=True), folder / "moved"


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_are_the_same_elsewhere(name: str, exports: Any) -> None:
    before, after, _ = exports
    assert before[name].std() > 0.001
    # not to the bit: where tensors begin in a file, and so in memory, chooses the kernels of matrix products
    torch.testing.assert_close(after[name], before[name], rtol=1e-5, atol=2e-5)


def test_what_else_a_checkpoint_knows_comes_along(exports: Any) -> None:
    folder = exports[2]
    config = yaml.safe_load((folder / "stationary" / "config.yaml").read_text())
    assert config["extras"] == {"image_form": FORM}
    assert len(zoo.load(str(folder / "stationary")).classifier.weight) == 7
    assert zoo.load(str(folder / "few_shot")).hparams["init_from"] is None


def test_networks_are_the_parts_that_learn(exports: Any) -> None:
    kinds = {name: type(zoo.load_network(str(exports[2] / name))).__name__ for name in CONFIGS}
    assert kinds == {
        **dict.fromkeys(("few_shot", "stationary", "noise_mask"), "Conv64F"),
        **dict.fromkeys(("dense_retrieval", "llm_rl", "lora"), "LanguageModel"),
        "recommenders": "SASRec",
    }


def test_the_card_has_measurements_licence_and_papers(exports: Any) -> None:
    text = (exports[2] / "few_shot" / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "apache-2.0"
    assert {"crlnet", "arxiv:2502.01183"} <= set(front["tags"])
    assert "| name | accuracy |\n| --- | --- |\n| main | 12.35 |" in text
    assert "- CRLNet 2502.01183" in text
    assert "Experiment `few_shot/crlnet_omniglot`" in text
    experiment = yaml.safe_load((exports[2] / "few_shot" / "experiment.yaml").read_text())
    assert experiment == {"seed_everything": 3, "model": {}}


@pytest.mark.parametrize("name", ["llm_rl", "lora"])
def test_transformers_reads_the_language_model_with_its_adapters_added(name: str, exports: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = exports[2] / name / "language_model"
    network, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = network(torch.tensor([tokenizer.encode("12+34=")])).logits
    assert torch.allclose(logits, exports[0][name], atol=1e-5)
    sizes = [(exports[2] / name / "model.safetensors").stat().st_size, (folder / "model.safetensors").stat().st_size]
    assert sizes[0] < sizes[1] / 10  # frozen weights of a public model are not copied, own ones are stored once


@pytest.mark.parametrize("name", ["llm_rl", "dense_retrieval"])
def test_a_language_model_is_stored_once_and_is_in_what_is_read(name: str, exports: Any, tmp_path: Path) -> None:
    folder = exports[2] / name
    part = next(file for file in folder.glob("*/model.safetensors"))
    whole = zoo.pretrained.read_state(str(folder / "model.safetensors"))
    prefix = {"llm_rl": "policy.network.", "dense_retrieval": "embedder.language_model.network."}[name]
    own, there = torch_names(folder / "model.safetensors"), torch_names(part)
    assert whole.keys() == zoo.load(str(folder)).state_dict().keys()
    assert not own & {prefix + key for key in there}
    assert len(there) > 10
    shutil.copy(folder / "model.safetensors", tmp_path)
    with pytest.raises(ValueError, match="lacks language_model/model"):
        zoo.pretrained.read_state(str(tmp_path / "model.safetensors"))


def torch_names(file: Path) -> set[str]:
    from safetensors import safe_open

    with safe_open(file, "pt") as content:
        return set(content.keys())


def test_a_made_tokenizer_comes_along_where_the_model_is_the_configs_own(exports: Any, tmp_path: Path) -> None:
    config, *own = CONFIGS["dense_retrieval"]
    model: Any = built(config, tmp_path, *own, f"{LANGUAGE}.init_from=null")
    folder = str(exports[2] / "dense_retrieval")
    zoo.pretrained.take(model, zoo.checkpoint_io.read(Path(folder)), folder)  # as --ckpt_path does
    assert torch.equal(scope["outputs"]("dense_retrieval", model.eval()), exports[0]["dense_retrieval"])


@pytest.mark.parametrize(
    "file", ["model.safetensors", "language_model/model.safetensors", "language_model/tokenizer.json"]
)
def test_a_changed_byte_is_found(file: str, exports: Any, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(exports[2] / "llm_rl", folder)
    zoo.load(str(folder))
    content = bytearray((folder / file).read_bytes())
    content[-2] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match="differs from the sha256 in"):
        zoo.load(str(folder))
    (folder / file).unlink()
    with pytest.raises(ValueError, match=f"lacks {file}"):
        zoo.checkpoint_io.read(folder)


def test_a_config_names_no_files_outside_of_its_folder(exports: Any, tmp_path: Path) -> None:
    folder = tmp_path / "stranger"
    shutil.copytree(exports[2] / "noise_mask", folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert set(config["files"]) == {"model.safetensors"}
    for files in ({"../secret": "0"}, {"/etc/hostname": "0"}, {3: "0"}):
        (folder / "config.yaml").write_text(yaml.safe_dump({**config, "files": files}))
        with pytest.raises(ValueError, match="is no file inside it"):
            zoo.load(str(folder))
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "files": ["a"]}))
    with pytest.raises(ValueError, match="must have the sha256"):
        zoo.load(str(folder))


def measured(file: Path, out: Path) -> bool:
    """Whether the card of an export has numbers."""
    return "## Measured" in (export(str(file), out) / "README.md").read_text()


@pytest.mark.filterwarnings("ignore:.*states no measurements")
def test_the_card_has_the_numbers_of_the_file_that_was_tested(exports: Any, tmp_path: Path) -> None:
    version = saved(zoo.load(str(exports[2] / "noise_mask")), tmp_path / "run") / "version_0"
    last = version / "checkpoints" / "last.ckpt"
    best, average = (shutil.copy(last, last.with_name(f"{name}.ckpt")) for name in ("best", "average"))

    def at(seconds: int, *names: str) -> None:
        for name in names:
            os.utime(version / name, (seconds, seconds))

    at(1, "config.yaml")
    at(2, *(f"checkpoints/{file.name}" for file in (last, best, average)))
    at(3, "results.csv")
    assert measured(best, tmp_path / "a")
    with pytest.warns(UserWarning, match=r"is not of last\.ckpt: the card states no measurements"):
        assert not measured(last, tmp_path / "b")

    (version / "test.yaml").write_text("ckpt_path: runs/x/version_0/checkpoints/average.ckpt\n")
    at(4, "test.yaml")
    at(5, "results.csv")
    assert measured(average, tmp_path / "c")
    assert not measured(best, tmp_path / "d")

    at(6, "config.yaml")  # the fit went on
    at(7, "checkpoints/best.ckpt")
    assert not measured(best, tmp_path / "e")
    at(8, "results.csv")
    assert measured(best, tmp_path / "f")
    assert not measured(average, tmp_path / "g")


def test_weights_of_others_need_a_licence(tmp_path: Path) -> None:
    base = tmp_path / "somebodys"
    shutil.copytree(Path(zoo.__path__[0]) / "llm_rl/weights/tiny_arithmetic", base)
    runs = saved(made("llm_rl", tmp_path, f"{POLICY}.pretrained={base}"), tmp_path / "runs")
    with pytest.raises(ValueError, match=f"started from {base}, whose licence may bind them: give licence"):
        export(str(runs), tmp_path / "out")
    folder = export(str(runs), tmp_path / "out", licence="Llama-3.1")
    assert "license: llama-3.1" in (folder / "README.md").read_text()


def test_names_of_weights_of_others() -> None:
    part = {"class_path": "a.B", "init_args": {"pretrained": "Qwen/Qwen2.5-0.5B", "name": "x"}}
    own = {"pretrained": "package:zoo/llm_rl/weights/tiny_arithmetic", "more": {"pretrained": None}}
    timm = {"init_args": {"pretrained": True, "name": "resnet18"}}
    assert started_from({"policy": part, "others": [own, timm], "pretrained": []}) == {"Qwen/Qwen2.5-0.5B", "resnet18"}


@pytest.mark.filterwarnings("ignore:.*states no measurements")
def test_the_experiment_has_no_places_of_the_machine(exports: Any, tmp_path: Path) -> None:
    runs = saved(zoo.load(str(exports[2] / "noise_mask")), tmp_path / "runs")
    language = {"config": {"hidden_size": 8}, "init_from": "/home/me/runs/x", "separator": "/"}
    content = {
        "run_name": "a",
        "trainer": {"default_root_dir": "/home/me", "logger": [{"init_args": {"save_dir": "logs", "name": "n"}}]},
        "model": {"init_args": {"part": {"init_args": language}, "pretrained": ["zoo://a/b", "C:\\me\\b.ckpt"]}},
        "data": {"init_args": {"root": "~/data", "other": "zoo://a/b"}},
    }
    (runs / "version_0" / "config.yaml").write_text(yaml.safe_dump(content))
    folder = export(str(runs), tmp_path / "out")
    assert yaml.safe_load((folder / "experiment.yaml").read_text()) == {
        "trainer": {"logger": [{"init_args": {"name": "n"}}]},
        "model": {"init_args": {"part": {"init_args": {"config": {"hidden_size": 8}, "separator": "/"}}}},
        "data": {"init_args": {"other": "zoo://a/b"}},
    }
    card = (folder / "README.md").read_text()
    for name in ("model.init_args.part.init_args.init_from", "model.init_args.pretrained", "data.init_args.root"):
        assert f"`{name}`" in card.partition("are left out")[2]


def test_a_file_outside_of_a_run_has_no_experiment(
    exports: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = saved(zoo.load(str(exports[2] / "noise_mask")), tmp_path / "heat_pneumonia")
    inside = runs / "version_0" / "checkpoints"
    shutil.copy(inside / "last.ckpt", tmp_path / "x.ckpt")
    monkeypatch.chdir(tmp_path)
    folder = export("x.ckpt", "out")
    card = (folder / "README.md").read_text()
    assert "Experiment" not in card
    assert "Made with zoo-of-papers" in card
    assert "experiment.yaml" not in card + (folder / "config.yaml").read_text()
    assert yaml.safe_load(catalogue_entry(folder, "a/b"))["a/b"]["config"] == ""
    monkeypatch.chdir(inside)
    card = (export("last.ckpt", tmp_path / "again") / "README.md").read_text()
    assert "Experiment `noise_mask/heat_pneumonia`" in card
    assert "`python -m zoo fit --config experiment.yaml` repeats it" in card


def test_adapters_on_weights_of_a_run_bring_those_along(exports: Any, tmp_path: Path) -> None:
    folder = exports[2] / "llm_rl"
    model = made("lora", tmp_path, f"{POLICY}.init_from={folder}")
    expected = scope["outputs"]("lora", model)
    export(str(saved(model, tmp_path / "runs")), tmp_path / "exported")
    shutil.rmtree(tmp_path / "runs")
    again = zoo.load(str(tmp_path / "exported"))
    assert torch.equal(scope["outputs"]("lora", again), expected)
    arguments = again.hparams["policy"]["init_args"]
    assert arguments["init_from"] is None
    assert arguments["pretrained"] == f"{tmp_path}/exported/base_model"


@pytest.mark.parametrize("method", catalogue.methods(), ids=lambda method: method.name)
def test_a_model_is_rebuilt_as_the_parser_made_it(method: catalogue.Method, tmp_path: Path) -> None:
    start = (
        ["--model.init_args.init_from=null"]
        if "init_from: " in catalogue.find_config(method.config).read_text()
        else []
    )
    top = [word for word in start if method.config.startswith(("few_shot", "noise_mask"))]
    model = run(
        ["--config", method.config, *top, "--run_dir", str(tmp_path), "--trainer.logger=false"], execute=False
    ).model
    arguments = {name: value for name, value in model.hparams.items() if not name.startswith("_")}
    again = build({"class_path": model.hparams["_class_path"], "init_args": arguments}, LightningModule)
    assert kinds(again) == kinds(model)


def kinds(part: Any, depth: int = 3) -> Any:
    """The classes that an object is made of, and the plain values between."""
    if isinstance(part, Mapping):
        return {name: kinds(value, depth) for name, value in part.items()}
    if isinstance(part, list | tuple):
        return [kinds(value, depth) for value in part]
    if isinstance(part, int | float | str | None):
        return part
    if isinstance(part, torch.Tensor):
        return tuple(part.shape)
    if not type(part).__module__.startswith("zoo") or not depth:
        return type(part).__name__ if not callable(part) else None
    skipped = ("_hparams", "_hparams_initial", "_hparams_name", "_log_hyperparams")
    own = {name: value for name, value in vars(part).items() if name not in skipped and "hooks" not in name}
    return type(part).__name__, kinds(own, depth - 1)


def test_the_command_writes_the_folder_and_the_lines_of_the_catalogue(
    exports: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = zoo.load(str(exports[2] / "noise_mask"))
    runs = saved(model, tmp_path / "heat_pneumonia")
    out = tmp_path / "out"
    words = ["export", str(runs), "--out", str(out), "--licence", "CC-BY-4.0"]
    main([*words, "--entry", "noise_mask/heated"])
    entry = yaml.safe_load(capsys.readouterr().out.partition("loads it\n")[2])["noise_mask/heated"]
    assert entry["source"] == {"bundled": "noise_mask/weights/heated"}
    assert set(entry["files"]) == {"model.safetensors", "config.yaml", "experiment.yaml"}
    assert entry["size"] == sum((out / file).stat().st_size for file in entry["files"])
    assert (entry["licence"], entry["config"]) == ("CC-BY-4.0", "noise_mask/heat_pneumonia")
    with pytest.raises(SystemExit):
        main(words)
    assert "out is there already: give another folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_goes_to_the_hub_and_comes_back_from_its_cache(
    exports: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    sent: dict[str, Any] = {}
    private_repos = {"me/seen": False}

    class Hub:
        def create_repo(self, repo: str, private: bool, exist_ok: bool) -> str:
            private_repos.setdefault(repo, private)
            return f"https://hub/{repo}"

        def repo_info(self, repo: str) -> Any:
            return SimpleNamespace(private=private_repos[repo])

        def upload_folder(self, **given: Any) -> None:
            sent.update(given)

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    with pytest.raises(ValueError, match="is no exported folder"):
        push_to_hub(tmp_path, "me/model")
    with pytest.raises(ValueError, match="me/seen can be seen by all: nothing was uploaded"):
        push_to_hub(exports[2] / "recommenders", "me/seen")
    assert sent == {}
    push_to_hub(exports[2] / "recommenders", "me/shown", public=True)
    assert push_to_hub(exports[2] / "recommenders", "me/model") == "https://hub/me/model"
    assert private_repos == {"me/seen": False, "me/shown": False, "me/model": True}
    assert sent["repo_id"] == "me/model"

    repo = tmp_path / "hub" / "models--me--model"  # as huggingface_hub lays out what it has fetched
    shutil.copytree(sent["folder_path"], repo / "snapshots" / ("a" * 40))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    model = zoo.load("hf://me/model@main")
    assert torch.equal(scope["outputs"]("recommenders", model), exports[0]["recommenders"])
    with pytest.raises(ConnectionError, match="hf://me/other cannot be fetched"):
        zoo.load("hf://me/other")


def test_a_tensor_of_two_names_is_stored_once(tmp_path: Path) -> None:
    weight = torch.randn(100, 10)
    write_weights(tmp_path / "model.safetensors", {"b": weight, "a": weight, "c": weight[:5]})
    assert (tmp_path / "model.safetensors").stat().st_size < 1.2 * 4 * 1000 + 400
    state = zoo.pretrained.read_state(str(tmp_path / "model.safetensors"))
    assert {name: torch.equal(state[name], weight[: len(state[name])]) for name in state} == dict.fromkeys("abc", True)


def test_a_tensor_in_another_file_of_the_folder_is_not_stored_again(tmp_path: Path) -> None:
    weight, own = torch.randn(100, 10), torch.randn(3)
    save_file({"embed": weight}, tmp_path / "part.safetensors")
    state = {"net.embed": weight, "net.a_head": weight, "own": own}
    write_weights(tmp_path / "model.safetensors", state, {"part.safetensors": "net."})
    assert torch_names(tmp_path / "model.safetensors") == {"own"}
    again = zoo.pretrained.read_state(str(tmp_path / "model.safetensors"))
    assert {name: torch.equal(again[name], state[name]) for name in again} == dict.fromkeys(state, True)


def test_an_export_that_would_not_come_back_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("noise_mask", tmp_path)
    runs = saved(model, tmp_path / "runs")
    whole = exporting.write_weights

    def damaged(path: Path, state: Mapping[str, torch.Tensor], *more: Any) -> None:
        whole(path, {name: value + (name == "head.bias") for name, value in state.items()}, *more)

    monkeypatch.setattr(exporting, "write_weights", damaged)
    with pytest.raises(ValueError, match="1 tensors do not come back as they were, such as head"):
        export(str(runs), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_catalogue_entry_is_one_that_the_catalogue_reads(exports: Any) -> None:
    content = yaml.safe_load(catalogue_entry(exports[2] / "lora", "llm_rl/lora"))["llm_rl/lora"]
    entry = catalogue.Checkpoint(name="llm_rl/lora", **content)
    assert "language_model/config.json" in entry.files
    assert json.dumps(entry.versions).count("transformers") == 1
