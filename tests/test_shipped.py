"""Bundled checkpoints measure what the catalogue states, from their files and bundled data alone.

By default those that take long are measured on a part of their test data; marked slow, all are on the whole.
"""

from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import pytest

import zoo
from zoo import catalogue
from zoo.cli import run
from zoo.tasks import HasTasks

WITHOUT_INTERVAL = 0.5
"""Percentage points within which a metric that states no interval must lie."""


@dataclass(frozen=True)
class Measure:
    """How to measure a checkpoint: the experiment, further words for it, and where the results have its metrics.

    ``quick`` are further words for ``share`` of the test data. ``cells`` has for each metric of the catalogue the
    values that tell its row of the results, and the column.
    """

    config: str
    cells: dict[str, tuple[dict[str, Any], str]]
    words: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    share: float = 1.0


def episodes(count: int, *kinds: str) -> str:
    tests = [f"{{way: 5, shot: 1, query: 15, episodes: {count}, hard: {kind}}}" for kind in kinds]
    return f"--data.init_args.test=[{', '.join(tests)}]"


BACKBONE = Measure(
    "few_shot/pretrain_omniglot",
    {
        "5-way 1-shot accuracy, cosine": ({"episodes": "5w1s"}, "accuracy"),
        "5-way 1-shot accuracy, cosine, hard queries": ({"episodes": "5w1s-hard"}, "accuracy"),
    },
    quick=(episodes(200, "false", "true"),),
    share=0.2,
)


def server(kind: str, classes: int) -> Measure:
    words = [f"--model.init_args.classifier={kind}", f"--data.init_args.initial={classes}"]
    words.append(f"--data.init_args.dataset.init_args.rotations={str(classes > 114).lower()}")
    cells: dict[str, tuple[dict[str, Any], str]] = {"1:N accuracy on 64 novel characters": ({}, "accuracy")}
    return Measure("stationary/server_omniglot", cells, tuple(words))


ARITHMETIC = Measure(
    "llm_rl/grpo_arithmetic",
    {"accuracy on 1,000 problems": ({}, "rewards/answer")},
    quick=("--trainer.limit_test_batches=1",),
    share=0.25,
)
MEASURES = {
    "few_shot/conv64f_omniglot": BACKBONE,
    "few_shot/conv64f_omniglot_degraded": BACKBONE,
    "few_shot/crlnet_omniglot": Measure(
        "few_shot/crlnet_omniglot",
        {
            "5-way 1-shot accuracy": ({"episodes": "5w1s", "head": "crlnet"}, "accuracy"),
            "5-way 1-shot accuracy, hard queries": ({"episodes": "5w1s-hard", "head": "crlnet"}, "accuracy"),
            "5-way 5-shot accuracy, hard queries": ({"episodes": "5w5s-hard", "head": "crlnet"}, "accuracy"),
        },
        quick=(episodes(50, "true"),),
        share=0.05,
    ),
    "noise_mask/finetune_pneumonia": Measure(
        "noise_mask/finetune_pneumonia",
        {"accuracy": ({}, "accuracy"), "balanced accuracy": ({}, "balanced_accuracy"), "AUC": ({}, "auc")},
        ("--model.init_args.init_from=null",),
    ),
    "recommenders/sasrec_retail": Measure(
        "recommenders/sasrec_retail",
        {"HR@10": ({}, "hr@10 %"), "HR@20": ({}, "hr@20 %"), "NDCG@20": ({}, "ndcg@20 %")},
    ),
    "dense_retrieval/retriever_topics": Measure(
        "dense_retrieval/retriever_topics", {"MRR@10": ({}, "mrr@10 %"), "Recall@100": ({}, "recall@100 %")}
    ),
    "llm_rl/grpo_arithmetic": ARITHMETIC,
    "llm_rl/tiny_arithmetic": ARITHMETIC,
    **{
        f"stationary/{kind}_omniglot_{classes}": server(f"{kind.capitalize()}Classifier", classes)
        for kind in ("learnable", "simplex")
        for classes in (114, 228, 456)
    },
}
BUNDLED = {entry.name: entry for entry in catalogue.checkpoints() if "bundled" in entry.source}


def measured(name: str, folder: Path, *more: str) -> list[dict[str, Any]]:
    measure = MEASURES[name]
    words = ["--config", measure.config, f"--run_dir={folder}", "--trainer.accelerator=cpu", *measure.words, *more]
    words += ["--trainer.enable_progress_bar=false"]
    built = run(words, execute=False)
    model: Any = zoo.load(name)
    if isinstance(built.datamodule, HasTasks):
        built.datamodule.set_task(0)
    built.trainer.test(model, built.datamodule, verbose=False)
    return list(model.results())


def compare(name: str, rows: list[dict[str, Any]], share: float) -> int:
    """Check the metrics that ``rows`` hold and count them; a part of the data may be off by more."""
    found = 0
    for metric, (which, column) in MEASURES[name].cells.items():
        stated = BUNDLED[name].metrics[metric]
        row = next((row for row in rows if which.items() <= row.items()), None)
        if row is None:
            continue
        value = 100 * row[column] if column == "rewards/answer" else row[column]
        interval = WITHOUT_INTERVAL if stated.ci95 is None else stated.ci95
        assert abs(value - stated.value) <= interval / sqrt(share), f"{metric}: {value:.2f}, stated {stated}"
        found += 1
    return found


def test_every_bundled_checkpoint_states_what_is_measured_here() -> None:
    assert set(MEASURES) == set(BUNDLED)
    for name, entry in BUNDLED.items():
        assert set(entry.metrics) == set(MEASURES[name].cells), name
        assert entry.size < 10_000_000
        assert entry.config in catalogue.configs(), name


@pytest.mark.parametrize("name", MEASURES)
def test_a_bundled_checkpoint_measures_what_it_states(name: str, tmp_path: Path) -> None:
    measure = MEASURES[name]
    assert compare(name, measured(name, tmp_path, *measure.quick), measure.share) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, measure in MEASURES.items() if measure.quick])
def test_a_bundled_checkpoint_measures_it_on_all_its_test_data(name: str, tmp_path: Path) -> None:
    assert compare(name, measured(name, tmp_path), 1.0) == len(MEASURES[name].cells)


@pytest.mark.parametrize("name", MEASURES)
def test_it_is_a_part_of_the_package_and_loads_in_eval_mode(name: str) -> None:
    entry = BUNDLED[name]
    folder = Path(zoo.__file__).parent / entry.source["bundled"]
    assert sum((folder / file).stat().st_size for file in entry.files) == entry.size
    assert not any(part.training for part in zoo.load(name).modules())
