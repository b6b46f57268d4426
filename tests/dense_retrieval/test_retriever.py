"""Contrastive training: gradient caching, a fit that learns, and from there to files and answers."""

import csv
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from datamodules.batches import RetrievalBatch
from zoo.__main__ import main
from zoo.cli import ZooCLI, run
from zoo.dense_retrieval import DenseRetriever, Embedder, QueryLikelihood, load_retriever
from zoo.dense_retrieval.runs import read_run
from zoo.metrics.trec import evaluate


def batch(queries: int = 6, group: int = 2) -> RetrievalBatch:
    rng = np.random.default_rng(0)

    def text() -> dict[str, str]:
        return {"text": " ".join(f"w{i}" for i in rng.integers(0, 40, rng.integers(2, 9)))}

    rows = torch.arange(queries * group)
    return RetrievalBatch([text() for _ in range(queries)], [text() for _ in rows], rows, torch.arange(queries))


@pytest.fixture
def retriever(tiny_ql: Callable[..., QueryLikelihood]) -> Callable[..., DenseRetriever]:
    def make(**settings: Any) -> DenseRetriever:
        embedder = Embedder(tiny_ql().language_model, "last", "Find: {text}", "Read: {text}")
        return DenseRetriever(embedder, **{"temperature": 0.1, **settings})

    return make


def gradients(model: DenseRetriever, texts: RetrievalBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    torch.manual_seed(0)
    model.log = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    loss = model.training_step(texts, 0)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradient_caching_changes_no_gradient(retriever: Callable[..., DenseRetriever]) -> None:
    loss, plain = gradients(retriever().train(), batch())
    assert max(grad.abs().max() for grad in plain.values()) > 1e-3
    for at_once in (1, 4, 12):
        cached_loss, cached = gradients(retriever(encode_at_once=at_once).train(), batch())
        torch.testing.assert_close(cached_loss, loss)
        assert cached.keys() == plain.keys()
        for name, grad in plain.items():
            torch.testing.assert_close(cached[name], grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_gradient_caching_draws_dropout_once(retriever: Callable[..., DenseRetriever]) -> None:
    """Of two equal texts with dropout, gradients belong to the vectors of the forward pass, by finite differences."""
    model = retriever(encode_at_once=3).train().double()
    for layer in model.embedder.language_model.decoder.layers:
        layer.mlp.register_forward_hook(lambda _, __, out: torch.nn.functional.dropout(out, 0.5))
    _, grads = gradients(model, batch())
    name, weight = next((n, p) for n, p in model.named_parameters() if n.endswith("layers.1.mlp.down_proj.weight"))
    at, step = divmod(int(grads[name].abs().argmax()), weight.shape[1]), 1e-2
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[at] += sign * step
        values.append(gradients(model, batch())[0])
        with torch.no_grad():
            weight[at] -= sign * step
    assert ((values[0] - values[1]) / (2 * step)).item() == pytest.approx(grads[name][at].item(), rel=0.05)


def test_gradient_caching_holds_one_parts_activations_forwards_and_backwards(
    retriever: Callable[..., DenseRetriever],
) -> None:
    def most_alive(at_once: int | None) -> int:
        model, inputs, alive = retriever(encode_at_once=at_once).train(), [], [0]

        def note(_: Any, given: tuple[torch.Tensor, ...]) -> None:
            inputs.append((weakref.ref(given[0]), len(given[0])))
            alive.append(sum(rows for known, rows in inputs if known() is not None))

        model.embedder.language_model.decoder.layers[0].mlp.down_proj.register_forward_pre_hook(note)
        gradients(model, batch(24))
        assert len(inputs) == (2 if at_once is None else 2 * (24 + 48) // at_once)
        return max(alive)

    assert most_alive(None) == 24 + 48
    assert most_alive(4) == 4


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"encode_at_once": 0}, {"encode_batch_size": 0}])
def test_numbers_out_of_range(settings: dict[str, float], retriever: Callable[..., DenseRetriever]) -> None:
    name, value = next(iter(settings.items()))
    with pytest.raises(ValueError, match=f"{name}={value}: must be"):
        retriever(**settings)


# --- a small run from end to end --------------------------------------------------------------------------------------

PAIRS = 40


def write_set(folder: Path) -> None:
    """A corpus of documents of two words each, and queries that are their first word under another name."""
    (folder / "qrels").mkdir(parents=True)
    with (folder / "corpus.jsonl").open("w") as out:
        for i in range(PAIRS):
            out.write(json.dumps({"_id": f"d{i}", "title": "", "text": f"a{i} b{i % 7}"}) + "\n")
    with (folder / "queries.jsonl").open("w") as out:
        for i in range(PAIRS):
            out.write(json.dumps({"_id": f"q{i}", "text": f"c{i} b{i % 7}"}) + "\n")
    for split in ("train", "dev", "test"):
        lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in range(PAIRS))]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")


def write_config(folder: Path) -> Path:
    network = {
        "config": {
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        },
        "tokenizer": {"class_path": "zoo.language.Words", "init_args": {"max_size": 200}},
    }
    embedder = {"language_model": network, "query_template": "{text}", "passage_template": "{title} {text}"}
    model = {
        "embedder": embedder,
        "temperature": 0.05,
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        "scheduler": {"class_path": "zoo.optimization.LinearWarmup", "init_args": {"warmup": 4, "total": 40}},
        "depth": 20,
        "metrics": ["ndcg@10", "mrr@10", "recall@5"],
        "top_k": 3,
    }
    data = {
        "dataset": {"class_path": "datamodules.retrieval_sets.BeirFolder", "init_args": {"root": str(folder / "set")}},
        "batch_size": 20,
    }
    content = {
        "model": {"class_path": "zoo.dense_retrieval.DenseRetriever", "init_args": model},
        "data": {"class_path": "datamodules.retrieval.Retrieval", "init_args": data},
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 20,
            "enable_progress_bar": False,
            "check_val_every_n_epoch": 20,
        },
        "monitor": "val/ndcg@10",
        "run_dir": str(folder / "runs"),
    }
    (folder / "pairs.yaml").write_text(yaml.safe_dump(content))
    return folder / "pairs.yaml"


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ZooCLI]:
    folder = tmp_path_factory.mktemp("pairs")
    write_set(folder / "set")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(folder / "cache"))
        return folder, run(["fit", "--config", str(write_config(folder))])


def test_a_fit_learns_synonyms_that_words_do_not_tell(fitted: tuple[Path, ZooCLI]) -> None:
    folder, cli = fitted
    found = cli.model.results()[0]  # of the test behind the fit
    assert found["queries"] == PAIRS
    assert found["ndcg@10 %"] > 90
    trained = {name for name, p in cli.model.named_parameters() if p.requires_grad}
    assert len(trained) == 11  # all but the head that predicts tokens, which has no gradient: DDP would refuse it
    assert not any("lm_head" in name for name in trained)
    run_file = folder / "runs" / "pairs" / "version_0" / "run.trec"
    qrels = {f"q{i}": {f"d{i}": 1} for i in range(PAIRS)}
    scored = read_run(run_file)
    assert {len(hits) for hits in scored.values()} == {20}
    assert 100 * evaluate(scored, qrels, ["ndcg@10"])["ndcg@10"] == pytest.approx(found["ndcg@10 %"], abs=1e-9)


def test_a_file_of_queries_is_answered_alike_by_predict_search_and_python(
    fitted: tuple[Path, ZooCLI], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = fitted
    (tmp_path / "queries.txt").write_text("c3 b3\nc12 b5\n\nc39 b4\n")
    asked = ["--data.init_args.predict_queries", str(tmp_path / "queries.txt")]
    run(["predict", "--config", str(folder / "pairs.yaml"), "--ckpt_path", "last", *asked])
    rows = list(csv.DictReader((folder / "runs" / "pairs" / "version_0" / "predictions.csv").open()))
    assert [(row["query"], row["rank"]) for row in rows[:4]] == [
        ("c3 b3", "1"), ("c3 b3", "2"), ("c3 b3", "3"), ("c12 b5", "1")
    ]  # fmt: skip
    assert [row["id"] for row in rows if row["rank"] == "1"] == ["d3", "d12", "d39"]
    assert rows[0]["text"] == "a3 b3"

    out = tmp_path / "found.csv"
    words = ["search", "--checkpoint", str(folder / "runs" / "pairs"), "--queries", str(tmp_path / "queries.txt")]
    main([*words, "--k", "3", "--out", str(out), "c7 b0"])
    answers = list(csv.DictReader(out.open()))
    assert answers[0]["query"] == "c7 b0"  # queries of the command line come first
    assert [row["id"] for row in answers[3:]] == [row["id"] for row in rows]
    assert "a7 b0" in capsys.readouterr().out

    searcher = load_retriever(str(folder / "runs" / "pairs"), device="cpu")
    hits = searcher.search(["c3 b3"], k=2)[0]
    assert [hit.id for hit in hits] == [row["id"] for row in rows[:2]]
    assert hits[0].score == pytest.approx(float(rows[0]["score"]), abs=1e-5)
    assert hits[0].document["text"] == "a3 b3"
    with pytest.raises(ValueError, match="there are no queries"):
        searcher.search([])


def mined(words: list[str], out: Path) -> list[dict[str, Any]]:
    main(["mine", "--out", str(out), *words])
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_hard_negatives_by_bm25_by_a_run_and_by_a_retriever(fitted: tuple[Path, ZooCLI], tmp_path: Path) -> None:
    folder, _ = fitted
    config = ["--config", str(folder / "pairs.yaml")]
    lines = mined([*config, "--by", "bm25", "--negatives", "3"], tmp_path / "bm25.jsonl")
    assert len(lines) == PAIRS
    for i, line in enumerate(lines):
        assert (line["query_id"], [p["docid"] for p in line["positive_passages"]]) == (f"q{i}", [f"d{i}"])
        ids = [int(p["docid"][1:]) for p in line["negative_passages"]]
        assert len(set(ids)) == 3
        assert i not in ids
        assert {at % 7 for at in ids} == {i % 7}  # BM25 knows the shared word alone
        assert all(p["text"] == f"a{p['docid'][1:]} b{i % 7}" for p in line["negative_passages"])

    version = folder / "runs" / "pairs" / "version_0"
    by_run = mined([*config, "--by", str(version / "run.trec"), "--depth", "4", "--skip", "1"], tmp_path / "run.jsonl")
    for line in by_run:
        best = sorted(read_run(version / "run.trec")[line["query_id"]].items(), key=lambda hit: -hit[1])[:4]
        others = [document for document, _ in best if document != f"d{line['query_id'][1:]}"]
        assert [p["docid"] for p in line["negative_passages"]] == others[1:]

    by_model = mined([*config, "--by", str(version), "--depth", "4", "--skip", "1"], tmp_path / "model.jsonl")
    assert by_model == by_run

    run([
        "fit", *config, "--run_name", "hard", "--data.init_args.negatives", str(tmp_path / "bm25.jsonl"),
        "--data.init_args.group", "3", "--trainer.max_epochs", "1", "--test_after_fit", "false",
    ])  # fmt: skip
    assert (folder / "runs" / "hard" / "version_0" / "checkpoints" / "last.ckpt").is_file()
