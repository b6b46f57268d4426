"""The catalogue: no name twice, configs found by path and by short name, every shipped YAML builds."""

from pathlib import Path
from time import perf_counter

import pytest

from zoo import catalogue
from zoo.cli import run
from zoo.parser import with_config_paths

NEEDS_OTHER_RUN = {
    *("few_shot/crlnet_miniimagenet", "few_shot/crlnet_strokes"),
    *(f"noise_mask/finetune_{name}" for name in ("fashion", "medmnist", "pneumonia", "radimagenet")),
}


def test_a_name_taken_twice_is_an_error() -> None:
    method = catalogue.methods()[0]
    decorate = catalogue.register(method.name, papers=[], task="", config="")
    with pytest.raises(ValueError, match=f"{method.name!r} is taken by {method.class_path}"):
        decorate(type("Other", (), {}))


def test_every_method_names_a_shipped_config_and_its_own_class() -> None:
    for method in catalogue.methods():
        text = catalogue.find_config(method.config).read_text(encoding="utf-8")
        assert method.class_path.rpartition(".")[2] in text


def test_config_by_path_and_by_short_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "mine.yaml"
    own.write_text("seed_everything: 1\n")
    assert catalogue.find_config("mine.yaml") == Path("mine.yaml")
    shipped = catalogue.config_root() / "few_shot" / "crlnet_omniglot.yaml"
    for name in ("few_shot/crlnet_omniglot", "configs/few_shot/crlnet_omniglot.yaml", str(shipped)):
        assert catalogue.find_config(name) == shipped
    with pytest.raises(FileNotFoundError, match="did you mean few_shot/crlnet_omniglot"):
        catalogue.find_config("few_shot/crlnet_omnglot")
    assert with_config_paths(["fit", "--config=overlays/smoke"])[1].endswith("smoke.yaml")


@pytest.mark.parametrize("name", catalogue.configs())
def test_every_shipped_config_builds(name: str, tmp_path: Path) -> None:
    extra = ["--model.init_args.init_from=null"] if name in NEEDS_OTHER_RUN else []
    cli = run(["--config", name, "--run_dir", str(tmp_path), *extra], execute=False)
    assert type(cli.model).__name__ in catalogue.find_config(name).read_text(encoding="utf-8")
    if getattr(cli.datamodule, "training", None) is not None:
        stage, _, metric = cli.config.monitor.partition("/")
        assert stage == "val"
        assert metric in {f"accuracy@{spec.name}" for spec in cli.datamodule.specs["val"]}


@pytest.mark.parametrize("name", catalogue.below("overlays"))
def test_every_overlay_parses_after_an_experiment(name: str, tmp_path: Path) -> None:
    if name.startswith("overlays/fsdp"):
        pytest.skip("FSDP cannot be built without a GPU")
    text = catalogue.find_config(name).read_text(encoding="utf-8")
    experiments = {"For recommenders": "recommenders/sra_cl_ml100k", "For language model": "llm_rl/dapo_arithmetic"}
    experiment = next((of for words, of in experiments.items() if words in text), "few_shot/protonet_omniglot")
    run(["--config", experiment, "--config", name, "--run_dir", str(tmp_path)], execute=False)


BUNDLED = [f"few_shot/{method}_omniglot" for method in ("pretrain", "protonet", "crlnet")]
BUNDLED += ["stationary/hoc_omniglot", "stationary/er_omniglot"]
BUNDLED += ["noise_mask/baseline_pneumonia", "noise_mask/heat_pneumonia"]
BUNDLED += ["recommenders/sasrec_retail", "dense_retrieval/llm_ql_topics", "llm_rl/grpo_arithmetic"]


@pytest.mark.parametrize("config", BUNDLED)
def test_smoke_overlay_runs_a_bundled_experiment(config: str, tmp_path: Path) -> None:
    words = ["fit", "--config", config, "--config", "overlays/smoke", "--run_dir", str(tmp_path)]
    run([*words, "--trainer.enable_progress_bar=false"])
    folder = tmp_path / config.split("/")[1] / "version_0"
    assert (folder / "config.yaml").is_file()
    assert (folder / "metrics.csv").is_file() or (folder / "task_06" / "metrics.csv").is_file()


def test_many_keys_are_read_in_little_time() -> None:
    text = "".join(f"key{at}: 1\n" for at in range(40_000))
    start = perf_counter()
    assert len(catalogue.load_yaml(text)) == 40_000
    assert perf_counter() - start < 8  # half a second alone; comparing each with each takes many times that
    with pytest.raises(ValueError, match="'key7' is there twice"):
        catalogue.load_yaml(f"{text}key7: 2\n")
