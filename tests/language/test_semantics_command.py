"""``python -m zoo semantics``: from a config to prompts, answers, embeddings and back into the config's tables."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from zoo.__main__ import main
from zoo.experiments import data_of
from zoo.language import embed_texts

ITEMS = {"a": "w1 w2", "b": "w3", "c": "w4 w5 w6", "d": "w1 w2 w9"}
USERS = {"ann": "abcdca", "bob": "dcba", "cy": "badc"}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "toy"
    root.mkdir()
    rows = [f"{user}\t{item}\t{time}" for user, items in USERS.items() for time, item in enumerate(items)]
    (root / "toy.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows, ""]))
    (root / "toy.item").write_text(
        "\n".join(["item_id:token\ttitle:token_seq", *(f"{k}\t{v}" for k, v in ITEMS.items()), ""])
    )
    semantics = {
        "class_path": "datamodules.semantics.Semantics",
        "init_args": {"items": "items.npy", "prefixes": "prefixes.npy", "k": 2},
    }
    dataset = {"class_path": "RecBoleFiles", "init_args": {"root": str(root)}}
    init = {"dataset": dataset, "semantics": semantics, "max_length": 3}
    content = {"data": {"class_path": "SequentialRecommendation", "init_args": init}}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(content))
    return str(tmp_path / "toy.yaml")


def rows(file: str) -> dict[str, dict[str, str]]:
    return {row["id"]: row for row in map(json.loads, Path(file).read_text().splitlines())}


def test_all_steps_from_prompts_to_tables(
    config: str, bert: Path, causal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["semantics", "prompts", "--config", config, "--of", "prefixes", "--out", "p.jsonl"])
    prompts = rows("p.jsonl")
    # ann trains on 4 of 6 items and has 3 prefixes, bob and cy on 2 of 4 and have 1
    assert list(prompts) == ["ann/1", "ann/2", "ann/3", "bob/1", "cy/1"]
    assert prompts["ann/3"]["user"] == "w1 w2; w3; w4 w5 w6"
    answer = ["--model", str(causal), "--device", "cpu", "--max-new-tokens", "3"]
    main(["semantics", "answer", "--prompts", "p.jsonl", "--out", "a.jsonl", *answer])
    first = rows("a.jsonl")
    assert first.keys() == prompts.keys()
    assert "5 answers appended to a.jsonl" in capsys.readouterr().out

    Path("a.jsonl").write_text("".join(json.dumps(first[id]) + "\n" for id in prompts if id != "bob/1"))
    main(["semantics", "prompts", "--config", config, "--of", "prefixes", "--answers", "a.jsonl", "--out", "q.jsonl"])
    assert list(rows("q.jsonl")) == ["bob/1"]
    assert rows("a.failures.jsonl") == {"bob/1": {"id": "bob/1", "problem": "missing"}}
    assert "1 of 5 prompts in q.jsonl" in capsys.readouterr().out
    main(["semantics", "answer", "--prompts", "q.jsonl", "--out", "a.jsonl", *answer])
    assert rows("a.jsonl") == first

    encoder = ["--model", str(bert), "--device", "cpu"]
    main(["semantics", "embed", "--config", config, "--of", "items", "--out", "items.npy", *encoder])
    main(["semantics", "embed", "--config", config, "--of", "prefixes", "--answers", "a.jsonl", "--out", "prefixes.npy",
          *encoder])  # fmt: skip
    data = data_of(config, "SequentialRecommendation")
    texts = [ITEMS[id] for id in data.store.item_ids[1:]]
    np.testing.assert_array_equal(data.tables.item_embedding[1:], embed_texts(texts, str(bert), device="cpu"))
    texts = [first[id]["text"] for id in prompts]
    np.testing.assert_array_equal(data.tables.pool_embedding, embed_texts(texts, str(bert), device="cpu"))
    assert data.tables.pool_neighbors.shape == (5, 2)


def test_wrong_words_are_one_line(config: str, bert: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def failure(*args: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(["semantics", *args])
        assert stopped.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    embed = ["embed", "--config", config, "--model", str(bert), "--out", "x.npy"]
    assert "--of prefixes needs --answers" in failure(*embed, "--of", "prefixes")
    assert "there is no file of answers none.jsonl" in failure(*embed, "--of", "items", "--answers", "none.jsonl")
    assert "must end in .npy" in failure(*embed[:-1], "x.txt", "--of", "items")
    other, out = tmp_path / "other.yaml", ["--of", "items", "--out", "p.jsonl"]
    other.write_text("data: {class_path: FewShotEpisodes}\n")
    assert "FewShotEpisodes" in failure("prompts", "--config", str(other), *out)
    other.write_text("data: {class_path: Retrieval, init_args: {dataset: {class_path: TopicWords}}}\n")
    assert "is a Retrieval, not a SequentialRecommendation" in failure("prompts", "--config", str(other), *out)
    asked = failure("prompts", "--config", config, "--style", "amazon", *out)
    assert "asks for brand, categories, description, price, sales_rank, but items have title" in asked
