"""Contamination probes: cutting questions, ROUGE-L, and the command on a model that knows half of a benchmark."""

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest

from zoo.llm_rl import probe_command
from zoo.llm_rl.contamination import Probe, answers_right, compare_rest, probe, rouge_l, split_question, summarise

QUESTION = "Each pack of dvds costs 76 dollars. How much are  two packs?"


@pytest.mark.parametrize("ratio", [0.8, 0.6, 0.4, 0.01, 0.99])
def test_both_parts_are_the_question_and_no_word_is_cut(ratio: float) -> None:
    for question in (QUESTION, "one two three four", "a bcdefghijklmnop", " lead in"):
        prefix, rest = split_question(question, ratio)
        assert prefix + rest == question
        assert prefix.strip()
        assert rest.strip()
        assert len(prefix) <= max(2, round(ratio * len(question)))
        assert rest[0].isspace() or not any(c.isspace() for c in prefix.strip())


def test_the_cut_is_at_the_space_before_the_ratio() -> None:
    assert split_question("one two three four", 0.6) == ("one two", " three four")  # character 11, in "three"
    assert split_question("one two three four", 0.4) == ("one two", " three four")  # character 7 is the space
    assert split_question("onetwothree", 0.6) == ("onetwot", "hree")  # there is none


@pytest.mark.parametrize(
    ("question", "ratio", "message"),
    [(QUESTION, 0, "ratio=0: must be"), (QUESTION, 1.0, "ratio=1.0: must be"), (" 1+1 ", 0.5, "at least 5 characters")],
)
def test_what_cannot_be_cut(question: str, ratio: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_question(question, ratio)


def table_lcs(a: str, b: str) -> int:
    rows = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            rows[i + 1][j + 1] = rows[i][j] + 1 if x == y else max(rows[i][j + 1], rows[i + 1][j])
    return rows[-1][-1]


def test_rouge_l() -> None:
    assert rouge_l(["the", "cat", "sat", "on", "the", "mat"], ["the", "cat", "on", "a", "mat"]) == pytest.approx(8 / 11)
    assert (rouge_l("ab", "ab"), rouge_l("ab", "ba"), rouge_l("ab", ""), rouge_l("", "ab")) == (1.0, 0.5, 0.0, 0.0)
    stream = random.Random(0)
    for _ in range(200):
        a, b = ("".join(stream.choices("abc", k=stream.randint(1, 80))) for _ in range(2))
        assert rouge_l(a, b) == pytest.approx(2 * table_lcs(a, b) / (len(a) + len(b)))
        assert rouge_l(a, b) == rouge_l(b, a)


def test_the_true_rest_scores_1_and_nothing_0() -> None:
    rest = split_question(QUESTION, 0.6)[1]
    assert compare_rest(rest, rest) == (1.0, True)
    assert compare_rest(rest, rest.strip() + " And so on, for ever.") == (1.0, True)  # only its length counts
    assert compare_rest(rest, " ".join(rest.split())) == (1.0, True)
    assert compare_rest(rest, "") == (0.0, False)
    assert compare_rest("a b c d", "a b x d") == (0.75, False)
    assert compare_rest("abcd", "abxd") == (0.0, False)
    assert compare_rest("abcd", "abxd", "character") == (0.75, False)


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        ("72", r"so \boxed{72} or 71", (True, True)),
        ("72", "72 and then 71", (False, True)),
        ("72", "it is 720", (False, False)),
        ("1000", "that is $1,000.00.", (True, True)),
        ("1/2", r"\boxed{\frac{1}{2}}", (True, True)),
        (r"x^2 + 1", r"we get \boxed{x^2+1}", (True, True)),
        (r"x^2 + 1", r"x^2+1 is no answer, \boxed{3} is", (False, True)),
        ("5", "", (False, False)),
    ],
)
def test_answers(answer: str, text: str, expected: tuple[bool, bool]) -> None:
    assert answers_right(answer, text) == expected


def test_means_are_over_those_that_have_a_measure() -> None:
    whole = probe("", "3", "3")
    assert whole == Probe(None, None, True, True)
    assert probe(" b", None, "b") == Probe(1.0, True, None, None)
    means = summarise([whole, probe(" b c", "4", "b 3"), probe(" b c", None, "b c")])
    assert means == {"questions": 3, "rouge_l": 0.75, "exact": 0.5, "answer": 0.5, "contained": 0.5}
    assert summarise([whole])["rouge_l"] is None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of a tiny Llama over words that says after each word the next one of its vocabulary."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from zoo.language import Words

    folder = tmp_path_factory.mktemp("model")
    words = [f"w{i}" for i in range(60)]
    tokenizer = Words(100).make([" ".join(words)])
    assert tokenizer is not None
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 128, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=False, **sizes
    )
    torch.manual_seed(0)
    network = LlamaForCausalLM(config)
    ids = tokenizer.convert_tokens_to_ids(words)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.zero_()  # the last token alone counts
        embedding = network.model.embed_tokens.weight
        embedding.copy_(torch.eye(len(tokenizer), 128))
        network.lm_head.weight.zero_()
        for here, then in pairwise(ids):
            network.lm_head.weight[then] = embedding[here]
    network.save_pretrained(folder)
    return str(folder)


def test_the_command(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = [{"question": " ".join(f"w{j}" for j in range(i, i + 10)), "answer": "x", "id": f"k{i}"} for i in range(3)]
    new = [{"question": " ".join(f"w{(7 * j + i) % 40}" for j in range(10))} for i in range(2)]
    file, out = tmp_path / "q.jsonl", tmp_path / "out.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*known, *new, {"question": "w1"}]))
    arguments = ["--model", model, "--file", str(file), "--device", "cpu", "--max-new-tokens", "1", "--batch-size", "2"]
    probe_command.run([*arguments, "--ratios", "0.6", "0.4", "--full", "--out", str(out)])
    report = json.loads(out.read_text())
    assert (report["skipped"], [row["ratio"] for row in report["results"]]) == (1, [1.0, 0.6, 0.4])
    whole, *cut = report["results"]
    assert whole["exact"] is None
    assert whole["answer"] == 0
    for row in cut:
        assert row["questions"] == 5
        assert row["exact"] == 0.6  # three of five
        for each in row["each"]:
            start, rest = each["given"], each["rest"]
            last = int(start.split()[-1][1:])
            said = each["continuation"].split()
            assert said == [f"w{j}" for j in range(last + 1, last + 1 + len(said))]
            assert each["exact"] == each["id"].startswith("k")
            assert (each["rouge_l"] == 1) == each["exact"]
            assert len(said) >= len(rest.split())  # whatever --max-new-tokens
    printed = capsys.readouterr().out
    assert "60.0%" in printed
    assert "5 questions, 1 too short ones left out" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ratios", "1.5"], "--ratios 1.5: must be above 0 and below 1"),
        (["--batch-size", "0"], "--batch-size 0: must be at least 1"),
        ([], "q.jsonl, line 1: there is no text in a field question, problem, prompt"),
    ],
)
def test_what_the_command_refuses(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text('{"text": "x"}\n')
    with pytest.raises(SystemExit):
        probe_command.run(["--model", "none", "--file", str(file), "--out", str(tmp_path / "o"), *arguments])
    assert message in capsys.readouterr().err
