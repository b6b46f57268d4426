"""``python -m zoo sweep``: shipped files, checks before the first trial, W&B or local, and the closing report."""

import csv
import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState, create_trial
from PIL import Image
from rich.console import Console
from rich.live import Live

from zoo.callbacks.wandb import has_wandb_account, stay_offline_without_wandb_account
from zoo.catalogue import config_root, find_config
from zoo.run_folder import agent_version
from zoo.sweeps import command, online
from zoo.sweeps.checking import check, probe
from zoo.sweeps.engine import LocalSweep
from zoo.sweeps.parameters import Parameter
from zoo.sweeps.readings import Reading
from zoo.sweeps.report import best_config, importance, importance_bars, parallel_coordinates
from zoo.sweeps.sweep_file import read_sweep
from zoo.sweeps.table import SweepDisplay, short_names, shown

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
SHIPPED = sorted(f"sweeps/{path.stem}" for path in (config_root() / "sweeps").glob("*.yaml"))
FAMILIES = ("few_shot", "stationary", "noise_mask", "recommenders", "dense_retrieval", "llm_rl")
LR = "model.init_args.optimizer.init_args.lr"


def own(folder: Path, **changes: Any) -> Path:
    content = yaml.safe_load(find_config("sweeps/few_shot_protonet").read_text(encoding="utf-8"))
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}))
    return path


def stub(folder: Path, *setup: str, **changes: Any) -> Path:
    program = str(Path(__file__).parent / "stub.py")
    parameters = {"x": {"min": 0.0, "max": 1.0}, "width": {"values": [16, 32]}, "trial": {"value": 9}}
    words = ["${interpreter}", "${program}", *setup, "${args}"]
    fixed = {"program": program, "command": words, "metric": {"name": "val/loss"}, "parameters": parameters}
    return own(folder, **fixed, early_terminate={"type": "hyperband", "min_iter": 99}, **changes)


def test_every_family_has_a_sweep() -> None:
    assert {family for family in FAMILIES if any(name.startswith(f"sweeps/{family}_") for name in SHIPPED)} == set(
        FAMILIES
    )


@pytest.mark.filterwarnings("ignore:Valid config keys")
@pytest.mark.parametrize("name", SHIPPED)
def test_wandb_accepts_a_shipped_sweep(name: str) -> None:
    schema = pytest.importorskip(
        "sweeps.config.cfg", reason="W&B's package sweeps is not installed: its schema is not tried"
    )
    content = yaml.safe_load(find_config(name).read_text(encoding="utf-8"))
    assert "${args}" in content["command"]
    if "run_cap" not in schema.validator.schema["properties"]:  # it came with release 0.3, which wants numpy 1
        content.pop("run_cap", None)
    assert schema.schema_violations_from_proposed_config(content) == []
    assert schema.schema_violations_from_proposed_config({**content, "method": "guess"}) != []


@pytest.mark.parametrize("name", SHIPPED)
def test_every_value_of_a_shipped_sweep_is_valid_for_its_config(name: str) -> None:
    check(read_sweep(name))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": {LR: {"values": [0.1, "abc"]}}}, rf"parameters.{LR}: 'abc' \(str\): expected float"),
        ({"parameters": {LR + "r": {"value": 1}}}, "lrr: 1 .*'lrr' is not accepted; Did you mean lr"),
        ({"parameters": {"trainer.max_epochs": {"min": 1.0, "max": 4.0}}}, r"max_epochs: 1.0 \(float\): expected int"),
        (
            {"parameters": {"data.init_args.training.init_args.spec.way": {"values": [5, None]}}},
            r"None \(NoneType\): expected int",
        ),
        (
            {"parameters": {"model.init_args.pooling": {"values": ["average", "max"]}}},
            r"'max' .*Literal\['average', 'flatten'\]",
        ),
        ({"parameters": {"model.init_args.backbone": {"value": "Conv65F"}}}, "Conv65F; Did you mean Conv64F"),
        ({"parameters": {"nothing": {"value": 2}}}, r"parameters.nothing: 2 \(int\): unrecognized arguments"),
        ({"metric": {"name": "val/accuracy@5w1s"}}, r"goal: minimize \(by default\).*write goal: maximize"),
        ({"parameters": {"config": {"values": ["overlays/wandb", "overlays/nope"]}}}, "'overlays/nope' .*did you mean"),
        ({"command": ["no-such-program", "${args}"]}, "there is no program 'no-such-program'"),
        ({"command": ["${interpreter}", "-m", "zooo", "${args}"]}, "no module 'zooo'"),
        (
            {"command": ["${interpreter}", "-m", "zoo", "fit", "--config", "few_shot/protnet", "${args}"]},
            "did you mean few_shot",
        ),
        (
            {"command": ["${interpreter}", "${program}", "${args}"], "program": "no.py"},
            "program: there is no file 'no.py'",
        ),
    ],
)
def test_mistakes_are_named_before_the_first_trial(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        check(read_sweep(str(own(tmp_path, **changes))))


@pytest.mark.parametrize(
    "changes",
    [
        {"command": ["${env}", "FOO=1", "${interpreter}", "${program}", "${args}"], "program": __file__},
        {"command": ["${interpreter}", "${program}", "-m", "resnet", "${args}"], "program": __file__},
        {
            "command": ["${interpreter}", "-m", "zoo", "fit", "${args}"],
            "parameters": {"config": {"values": ["few_shot/protonet_omniglot", "few_shot/protonet_omniglot_full"]}},
        },
    ],
)
def test_commands_that_are_fine(changes: dict[str, Any], tmp_path: Path) -> None:
    check(read_sweep(str(own(tmp_path, **changes))))


def test_probes_are_both_ends_and_a_fraction_between() -> None:
    assert list(probe(Parameter("x", "uniform", {"min": 1, "max": 3}))) == [1, 3, pytest.approx(2.236)]
    assert list(probe(Parameter("x", "int_uniform", {"min": 1, "max": 3}))) == [1, 3]
    assert list(probe(Parameter("x", "q_uniform", {"min": 1, "max": 9, "q": 4}))) == [0, 8, 4]


def test_a_local_sweep_ends_with_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "has_wandb_account", lambda: True)
    words = [str(stub(tmp_path)), "--local", "--trials", "6", "--workers", "3", "--sweep_dir", str(tmp_path / "s")]
    command.run(words)
    said, folder = capsys.readouterr().out, tmp_path / "s" / "own"
    rows = list(csv.DictReader((folder / "trials.csv").open(newline="")))
    best = min(rows, key=lambda row: float(row["val/loss"]))
    assert [row["trial"] for row in rows] == list("012345")
    assert {row["parameters.trial"] for row in rows} == {"9"}  # a column of its own
    assert yaml.safe_load((folder / "best.yaml").read_text()) == {"x": float(best["x"])}
    assert f"Best: trial_{int(best['trial']):04d}, val/loss {float(best['val/loss']):.6g}" in said
    for name in ("trials.csv", "best.yaml", "parallel_coordinates.png", "importance.png"):
        assert str(folder / name) in said
    with Image.open(folder / "parallel_coordinates.png") as picture:
        assert picture.size[0] > 600
    command.run(words)  # nothing is left to do
    assert list(csv.DictReader((folder / "trials.csv").open(newline=""))) == rows


def test_failures_are_one_error_and_in_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        command.run([str(stub(tmp_path, "fail=all")), "--local", "--sweep_dir", str(tmp_path / "s")])
    assert "the first 3 trials failed" in capsys.readouterr().err
    assert (tmp_path / "s" / "own" / "trials.csv").read_text().count("not there") == 3


def test_a_sweep_that_is_interrupted_leaves_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = LocalSweep.run
    monkeypatch.setattr(LocalSweep, "run", lambda sweep: not whole(sweep))
    with pytest.raises(SystemExit, match="130"):
        command.run([str(stub(tmp_path)), "--local", "--trials", "2", "--sweep_dir", str(tmp_path / "s")])
    assert (tmp_path / "s" / "own" / "trials.csv").is_file()


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_a_sweep_is_local_where_wandb_is_switched_off(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "has_wandb_account", lambda: True)
    monkeypatch.setenv("WANDB_MODE", mode)
    command.run([str(stub(tmp_path)), "--trials", "1", "--sweep_dir", str(tmp_path / "s")])
    assert "Best: trial_0000" in capsys.readouterr().out


def test_an_error_of_wandb_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    def refuse(*given: Any, **where: Any) -> None:
        raise wandb.errors.CommError("no such\nentity")

    monkeypatch.setattr(command, "has_wandb_account", lambda: True)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "sweep", refuse)
    with pytest.raises(SystemExit, match="2"):
        command.run([str(stub(tmp_path)), "--trials", "1"])
    assert capsys.readouterr().err == "error: W&B made no sweep (no such entity); --local runs it without W&B\n"


def test_wandb_runs_the_sweep_where_there_is_an_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    made: list[Any] = []
    agents: list[Any] = []

    class Agent:
        def __init__(self, words: list[str], env: dict[str, str]) -> None:
            agents.append((words, env))

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(command, "has_wandb_account", lambda: True)
    monkeypatch.setattr(wandb, "sweep", lambda content, **where: made.append((content, where)) or "abc123")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(online.subprocess, "Popen", Agent)
    monkeypatch.setattr("zoo.sweeps.processes.visible_devices", lambda: ["0", "1"])
    monkeypatch.setattr(online, "visible_devices", lambda: ["0", "1"])
    file = stub(tmp_path, project="mine")
    content = yaml.safe_load(file.read_text())
    content["parameters"]["y"] = {"distribution": "normal", "mu": 0.0}  # which only W&B can draw from
    file.write_text(yaml.safe_dump(content))
    command.run([str(file), "--trials", "7"])
    assert made == [({**yaml.safe_load(file.read_text()), "run_cap": 7}, {"project": "mine", "entity": None})]
    assert [words[2:] for words, _ in agents] == [["wandb", "agent", "--project", "mine", "abc123"]] * 2
    assert [env["CUDA_VISIBLE_DEVICES"] for _, env in agents] == ["0", "1"]
    assert {env["PATH"].split(os.pathsep)[0] for _, env in agents} == {str(Path(sys.executable).parent)}


def test_an_account_is_a_key_in_the_environment_or_of_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    for variable in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_SILENT", "WANDB_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    assert not has_wandb_account()
    netrc.write_text("machine wandb.example.org\n  login user\n  password x\n")
    assert not has_wandb_account()
    stay_offline_without_wandb_account()
    assert os.environ["WANDB_MODE"] == "offline"
    netrc.write_text("machine api.wandb.ai\n  login user\n  password x\n")
    assert has_wandb_account()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org/")
    assert not has_wandb_account()
    netrc.unlink()
    monkeypatch.setenv("WANDB_API_KEY", "")
    assert not has_wandb_account()
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert has_wandb_account()


def test_runs_of_a_wandb_agent_have_folders_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "f00")
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    assert agent_version() is None
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    assert agent_version() == "version_f00"


def test_best_config_is_an_experiment_of_its_own(tmp_path: Path) -> None:
    run = tmp_path / "trial_0003" / "version_0"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("run_dir: a\nrun_name: b\nckpt_path: c\nmonitor: m\nmodel: {x: 1}\n")
    assert best_config(run.parent) == {"monitor": "m", "model": {"x": 1}}
    assert best_config(tmp_path) is None


def test_short_names_tell_options_apart() -> None:
    names = ["model.init_args.optimizer.init_args.lr", "model.init_args.policy.init_args.lr", "data.init_args.way"]
    assert list(short_names(names).values()) == ["optimizer.lr", "policy.lr", "way"]


def test_pictures_place_values_on_their_axes() -> None:
    trials = [({"lr": 1e-4, "way": 5}, 1.0), ({"lr": 1e-2, "way": 20}, 3.0), ({"lr": 1e-3, "way": 10}, 2.0)]
    figure = parallel_coordinates(trials, {"lr": "log", "way": "choices"}, "val/accuracy", "maximize")
    lines = [list(line.get_ydata()) for line in figure.axes[0].lines[:3]]
    assert lines == [pytest.approx([at] * 3) for at in (0.0, 0.5, 1.0)]  # the best is drawn last
    bars = importance_bars({"a.lr": 0.25, "way": 0.75}, "val/accuracy", 12).axes[0]
    assert "12 trials" in bars.get_xlabel()
    assert [bar.get_width() for bar in bars.patches] == [0.25, 0.75]
    assert [label.get_text() for label in bars.get_yticklabels()] == ["lr", "way"]


def test_values_that_look_alike_keep_their_places() -> None:
    trials = [({"encoder": "a.Gru"}, 1.0), ({"encoder": "b.Gru"}, 2.0)]
    lines = parallel_coordinates(trials, {"encoder": "choices"}, "loss", "minimize").axes[0].lines
    assert {float(line.get_ydata()[0]) for line in lines[:2]} == {0.0, 1.0}


def test_importance_finds_what_matters_in_a_dozen_trials() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    first = 0
    for seed in range(10):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        for _ in range(12):
            trial = study.ask()
            values = [trial.suggest_float(name, 0, 1) for name in ("x", "a", "b", "c", "d")]
            study.tell(trial, (values[0] - 0.3) ** 2)
        shares = importance(study)
        first += max(shares, key=lambda name: shares[name]) == "x"
    assert first >= 8  # 2 by the better tenth, the default


def test_a_grid_of_ranges_is_refused_before_all_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parameters = {LR: {"min": 0.1, "max": 1.0}, "nothing": {"value": 1}}
    with pytest.raises(SystemExit, match="2"):
        command.run([str(own(tmp_path, method="grid", parameters=parameters)), "--local"])
    assert "a grid has no uniform" in capsys.readouterr().err


def test_the_live_table_fits_a_terminal_and_shows_what_runs() -> None:
    trials = [create_trial(value=abs(n - 2) + 0.5, params={}, distributions={}) for n in range(18)]
    trials += [create_trial(state=TrialState.RUNNING, params={}, distributions={}) for _ in range(2)]
    for number, trial in enumerate(trials):
        trial.number = number
    lines = io.StringIO()
    display = SweepDisplay(["model.init_args.encoder"])
    display._console = Console(file=lines, force_terminal=True, width=80, height=24)
    display.live = Live(console=display._console)
    records = SimpleNamespace(
        trials=trials,
        best=lambda: trials[2],
        values=lambda t: {"model.init_args.encoder": "zoo.parts.Gru"},
        finished=18,
    )
    running = [SimpleNamespace(trial=trials[n], reading=Reading(step=7)) for n in (18, 19)]
    file = SimpleNamespace(name="own", metric=SimpleNamespace(name="val/loss"))
    display._console.print(display.table(SimpleNamespace(records=records, file=file, running=running, total=20)))  # type: ignore[arg-type]
    text = lines.getvalue()
    assert text.count("\n") <= 23
    assert "own: 18 of 20 trials, 2 of them not shown" in text
    assert text.count("Gru") == 18
    assert "zoo.parts" not in text
    assert [number in text for number in ("0000", "0001", "0002", "0003", "0018", "0019")] == [False] * 2 + [True] * 4


def test_running_trials_and_the_best_are_always_shown() -> None:
    assert shown(range(20), {3, 18, 19}, 5) == [3, 16, 17, 18, 19]
    assert shown(range(20), {0, 1, 2}, 2) == [0, 1, 2]
