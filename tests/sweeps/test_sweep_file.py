"""Sweep files mean locally what they mean to W&B: parameters, grids, commands, early stopping."""

import random
from collections import Counter
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from optuna.samplers import RandomSampler

from zoo.sweeps.space import decode, distributions, grid_axes, grid_point, grid_size
from zoo.sweeps.stopping import Hyperband
from zoo.sweeps.sweep_file import SweepFile, expand, read_sweep

SWEEPS_MISSING = "W&B's package sweeps is not installed: its own engine is not compared with"


def sweep(folder: Path, **changes: Any) -> SweepFile:
    content = {
        "program": "train.py",
        "method": "random",
        "metric": {"name": "val/loss"},
        "parameters": {"x": {"value": 1}},
    }
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}))
    return read_sweep(str(path))


@pytest.mark.filterwarnings("ignore:Valid config keys")
@pytest.mark.parametrize(
    "given",
    [
        {"min": 2, "max": 5},
        {"min": -1.0, "max": 3},
        {"min": 2, "max": 5, "distribution": "uniform"},
        {"min": 1e-4, "max": 1e-1, "distribution": "log_uniform_values"},
        {"min": 1e-4, "max": 1e-1, "distribution": "inv_log_uniform_values"},
        {"min": 1, "max": 200, "q": 3, "distribution": "q_log_uniform_values"},
        {"min": 0.0, "max": 2.0, "q": 0.125, "distribution": "q_uniform"},
        {"min": -4, "max": 1.5, "distribution": "log_uniform"},
        {"min": 1, "max": 3, "distribution": "inv_log_uniform"},
        {"min": 0, "max": 5, "q": 3, "distribution": "q_log_uniform"},
        {"values": ["a", 2, None, [1, 2]]},
    ],
)
def test_random_values_are_distributed_as_wandb_draws_them(given: dict[str, Any], tmp_path: Path) -> None:
    params = pytest.importorskip("sweeps.params", reason=SWEEPS_MISSING)
    file = sweep(tmp_path, parameters={"x": given})
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = distributions(file.parameters, "random")
    ours = [decode(file.parameters["x"], study.ask(space).params["x"]) for _ in range(800)]
    theirs = params.HyperParameter("x", given)
    random.seed(0)
    reference = [theirs.sample() for _ in range(800)]
    if "values" in given:
        assert Counter(map(str, ours)).keys() == Counter(map(str, reference)).keys()
        return
    assert {type(value) for value in ours} == {int if np.issubdtype(type(reference[0]), np.integer) else float}
    ends = {
        "log_uniform": np.exp,
        "q_log_uniform": np.exp,
        "inv_log_uniform": lambda value: np.exp(-value),
    }.get(given.get("distribution", ""), float)
    low, high = sorted(ends(given[key]) for key in ("min", "max"))
    half = given.get("q", 0) / 2
    assert low - half <= min(ours) < max(ours) <= high + half
    distance = max(abs(np.mean(np.array(ours) <= edge) - np.mean(np.array(reference) <= edge)) for edge in reference)
    assert distance < 0.1  # two samples of 800 are that far apart once in a thousand times


@pytest.mark.filterwarnings("ignore:Valid config keys")
def test_the_grid_is_wandbs_in_wandbs_order(tmp_path: Path) -> None:
    engine = pytest.importorskip("sweeps.grid_search", reason=SWEEPS_MISSING)
    given = {
        "b": {"values": ["x", "y"]},
        "a": {"min": 1, "max": 3},
        "d": {"value": 7},
        "c": {"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.5},
    }
    file = sweep(tmp_path, method="grid", parameters=given)
    theirs = engine.grid_search_next_runs([], {"method": "grid", "parameters": given}, n=99)
    wanted = [{key: run.config[key]["value"] for key in "abc"} for run in theirs if run is not None]
    axes = grid_axes(file.parameters)
    ours = [
        {key: decode(file.parameters[key], value) for key, value in grid_point(axes, number).items()}
        for number in range(grid_size(axes))
    ]
    assert ours == wanted
    assert len(ours) == 12


def test_a_point_of_a_large_grid_is_not_looked_for(tmp_path: Path) -> None:
    values = {"values": list(range(100))}
    axes = grid_axes(sweep(tmp_path, method="grid", parameters=dict.fromkeys("abcdefgh", values)).parameters)
    assert grid_size(axes) == 100**8
    assert list(grid_point(axes, 102030405).values()) == ["0", "0", "0", "1", "2", "3", "4", "5"]


def test_the_command_is_expanded_as_an_agent_does(monkeypatch: pytest.MonkeyPatch) -> None:
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    values = {"model.init_args.lr": 1e-05, "flag": True, "off": False, "sizes": [1, 2], "name": "a b"}
    macros = utils.create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    for macro in (
        "args",
        "args_no_hyphens",
        "args_no_equals",
        "args_no_boolean_flags",
        "args_append_hydra",
        "args_override_hydra",
        "args_json",
    ):
        assert expand(["run", f"${{{macro}}}"], None, values) == ["run", *macros[macro]]
    assert expand(["${args}"], None, values)[0] == "--model.init_args.lr=1e-05"
    monkeypatch.setenv("PLACE", "here")
    command = ["${envvar:PLACE}/x", "${program}", "${args}"]
    assert expand(command, "p.py", {"a": 1}) == ["here/x", "p.py", "--a=1"]


@pytest.mark.filterwarnings("ignore:Valid config keys")
@pytest.mark.parametrize(
    "stop",
    [
        {"min_iter": 2, "eta": 2},
        {"min_iter": 3, "eta": 1.5, "strict": True},
        {"max_iter": 12, "s": 2, "eta": 2},
        {"max_iter": 9, "s": 5},
    ],
)
@pytest.mark.parametrize("goal", ["minimize", "maximize"])
def test_the_trials_that_are_stopped_are_those_that_wandb_stops(stop: dict[str, Any], goal: str) -> None:
    engine = pytest.importorskip("sweeps.hyperband_stopping", reason=SWEEPS_MISSING)
    run = pytest.importorskip("sweeps.run")
    definitions = pytest.importorskip("sweeps.config.schema").sweep_config_jsonschema["definitions"]
    draw = np.random.default_rng(0)
    rule = Hyperband.of({"type": "hyperband", **stop})
    if "strict" not in definitions["hyperband_stopping"]["properties"]:
        stop = {key: value for key, value in stop.items() if key != "strict"}
        rule = OlderHyperband.of({"type": "hyperband", **stop})
    config = {"method": "random", "metric": {"name": "m", "goal": goal}, "parameters": {"x": {"value": 1}}}
    config["early_terminate"] = {"type": "hyperband", **stop}
    stopped = 0
    for _ in range(20):
        histories = [(3 * draw.normal() + draw.normal(size=draw.integers(0, 14))).round(1).tolist() for _ in range(9)]
        runs = [
            run.SweepRun(name=str(n), state="running", sampledHistory=[{"m": v} for v in h])
            for n, h in enumerate(histories)
        ]
        theirs = {int(found.name) for found in engine.hyperband_stop_runs(runs, config)}
        others = [[h for k, h in enumerate(histories) if k != n] for n in range(9)]
        assert {n for n in range(9) if rule.should_stop(histories[n], others[n], goal)} == theirs
        stopped += len(theirs)
    assert stopped > 10


@dataclass(frozen=True)
class OlderHyperband(Hyperband):
    """As in release 0.2 of W&B's package: a band is judged one value later, and strictly never."""

    def bands(self, longest: int) -> list[int]:
        return [band + 1 for band in super().bands(longest - 1)]


def test_the_best_value_so_far_counts_unless_strict() -> None:
    assert not Hyperband.of({"type": "hyperband", "min_iter": 2}).strict


def test_a_trial_is_judged_by_its_value_at_the_last_band_it_has_passed() -> None:
    others = [[5.0, 4.0, 9.0], [6.0, 3.0], [1.0], [7.0, 2.0]]
    strict, lenient = (Hyperband(min_iter=2, eta=2, strict=strict) for strict in (True, False))
    # at band 2 there are 2, 3, 4 and the own value, of which the third smallest is the threshold
    assert not strict.should_stop([9.0], others, "minimize")
    assert not strict.should_stop([9.0, 3.5, 9.0], others, "minimize")
    assert strict.should_stop([1.0, 4.5, 1.0], others, "minimize")
    assert not lenient.should_stop([1.0, 4.5, 1.0], others, "minimize")
    assert lenient.should_stop([8.0, 4.5, 7.0], others, "minimize")
    assert strict.should_stop([9.0, 1.0], others, "maximize")


def test_bands() -> None:
    assert Hyperband.of({"type": "hyperband", "min_iter": 3}).bands(100) == [3, 9, 27, 81]
    assert Hyperband.of({"type": "hyperband", "max_iter": 27, "s": 2}).bands(100) == [3, 9]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "custom"}, "method: 'custom' is not one of grid, random, bayes"),
        ({"metric": {"goal": "maximize"}}, "metric: must have a name"),
        ({"metric": {"name": "a", "goal": "max"}}, "metric.goal: 'max' is neither minimize nor maximize"),
        ({"parameters": {}}, "parameters: must have at least one"),
        ({"parameters": {"lr": {"min": "1e-4", "max": 1.0}}}, r"parameters.lr.*'1e-4'|lr: must have"),
        ({"parameters": {"lr": {"min": 2.0, "max": 1.0}}}, "min 2.0 is not less than max 1.0"),
        ({"parameters": {"lr": {"distribution": "normal", "mu": 0.0}}}, "lr.distribution: normal cannot be searched"),
        ({"parameters": {"m": {"parameters": {"lr": {"value": 1}}}}}, r"parameters.m: nested.*write m\.<key>"),
        (
            {"parameters": {"lr": {"distribution": "log_uniform_values", "min": 0, "max": 1}}},
            "lr.min: 0 must be above 0",
        ),
        ({"early_terminate": {"type": "hyperband"}}, "early_terminate: must have min_iter, or max_iter and s"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 1}}, "eta: 1 must be a number above 1"),
        (
            {"early_terminate": {"type": "hyperband", "min_iter": 1, "strict": "no"}},
            "strict: 'no' must be true or false",
        ),
        ({"early_terminate": {"type": "hyperband", "min_iter": 2, "max_iter": 9}}, "has both min_iter and max_iter"),
        ({"parameters": {"lr": {"values": [date(2020, 1, 1)]}}}, r"lr: datetime.date\(2020, 1, 1\) \(date\).*quote it"),
        (
            {"parameters": {"lr": {"distribution": ["a"], "min": 0, "max": 1}}},
            r"lr.distribution: \['a'\] must be a name",
        ),
        ({"parameters": {1: {"value": 2}, "a": {"value": 3}}}, r"the name 1 \(int\) must be text"),
        ({"parameters": {"lr": {"min": float("nan"), "max": 1.0}}}, "lr.min: nan .* is no finite number"),
        ({"parameters": {"lr": {"min": 0.0, "max": float("inf")}}}, "lr.max: inf .* is no finite number"),
        ({"parameters": {"lr": {"distribution": "log_uniform", "min": 1, "max": 1000}}}, "are exponents of e"),
        ({"run_cap": 0}, "run_cap: 0 must be a whole number"),
        ({"scheduler": {"engine": "ax"}}, "scheduler: no such key in a local sweep"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        sweep(tmp_path, **changes)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["python", "x.py"], "has no \\$\\{args\\}"),
        (["${what}", "${args}"], "unknown \\$\\{what\\}"),
        (["x", "${args_json_file}"], "take \\$\\{args_json\\}"),
    ],
)
def test_a_command_that_cannot_be_expanded(command: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expand(command, None, {})


def test_impute_is_for_wandb_alone(tmp_path: Path) -> None:
    assert sweep(tmp_path, metric={"name": "a", "impute": "worst"}).metric.name == "a"


def test_a_grid_has_no_ranges_of_fractions(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"parameters\.x: a grid has no uniform"):
        grid_axes(sweep(tmp_path, method="grid", parameters={"x": {"min": 0.0, "max": 1.0}}).parameters)
