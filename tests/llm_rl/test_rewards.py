"""Rewards: numbers in texts, the worked values of RandomCalculation and DAPO, corruptions, lengths, weighted sums."""

import json
import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.batches import Prompt
from zoo.llm_rl.batches import Sample
from zoo.llm_rl.rewards import (
    ContinuousAnswer,
    FormatReward,
    FunctionReward,
    Inverted,
    LengthReward,
    MajorityIncorrect,
    NumericAnswer,
    RandomReward,
    Reward,
    SoftOverlong,
    score,
)
from zoo.llm_rl.rewards import votes as votes_module
from zoo.llm_rl.rewards.answers import canonical, extract, numbers_in, to_number
from zoo.llm_rl.rewards.numeric import continuous
from zoo.llm_rl.rewards.votes import majority_votes, read_votes, write_votes


def sample(text: str = "", answer: str | None = "5", id: str = "p", tokens: int = 3, key: int = 0) -> Sample:
    return Sample(Prompt(id, "?", answer), text, tokens, False, key)


class Given(Reward):
    """The value that stands in the completion."""

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [None if s.text == "none" else float(s.text) for s in samples]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", "5"),
        ("-5", "-5"),
        ("−5", "-5"),
        ("- 5", "-5"),
        ("+7", "7"),
        (".5", "1/2"),
        ("5.", "5"),
        ("0.250", "1/4"),
        ("1,234", "1234"),
        ("12,345.6", "61728/5"),
        ("1{,}234", "1234"),
        (r"1\,234", "1234"),
        (r"1,\!234", "1234"),
        ("1/3", "1/3"),
        ("-1 / 3", "-1/3"),
        (r"\frac{1}{2}", "1/2"),
        (r"\dfrac12", "1/2"),
        (r"-\tfrac{3}{4}", "-3/4"),
        (r"\frac{-1}{2}", "-1/2"),
        (r"3\frac{1}{2}", "7/2"),
        ("-3 1/2", "-7/2"),
        ("50%", "50"),
        (r"12.5\%", "25/2"),
        ("$12", "12"),
        (r"\$1{,}000.50", "2001/2"),
        ("12 cm", "12"),
        ("12cm", "12"),
        (r"12\text{ cm}^2", "12"),
        ("60 km/h", "60"),
        ("5 m/s^2", "5"),
        ("5 apples.", "5"),
        (r"90^\circ", "90"),
        ("x = 7", "7"),
        (r"x \approx \frac{7}{2}", "7/2"),
        ("$1/2 = 0.5$", "1/2"),
        ("1.5e3", "1500"),
        ("1e+20", str(10**20)),
        (r"1.5 \times 10^{3}", "1500"),
        ("2·10^4", "20000"),
        (r"3 \cdot 10^{-2}", "3/100"),
        ("10^{-3}", "1/1000"),
        ("(5)", "5"),
        (r"\left(5\right)", "5"),
        ("**5**", "5"),
        (r"\textbf{5}", "5"),
    ],
)
def test_numbers(text: str, value: str) -> None:
    assert to_number(text) == Fraction(value)
    assert canonical(text) == value
    assert text == "- 5" or numbers_in(f"So it is {text} and so on")[-1] == Fraction(value)


@pytest.mark.parametrize(
    "text",
    [
        *("", "abc", "nan", "inf", r"\infty", "1/0", r"\frac{1}{0}", "1,23", "1,2", "(3,4)", "3:2", "1.2.3", "1e9999"),
        *("5x", "5 x", r"2\pi", "2 pi", r"\sqrt{2}", "2^3", "5 or 6", "x = 2, y = 3", "9" * 5000, "2*3", "2**3"),
        *(r"\frac{1}{2}\frac{3}{4}", "__import__('os').system('false')"),
    ],
)
def test_what_is_no_single_number(text: str) -> None:
    assert to_number(text) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"first \boxed{1}, then \boxed{\frac{1}{2}} of 7", r"\frac{1}{2}"),
        (r"\boxed{5} #### 6", "5"),
        ("It is 4.\n#### 1,000 \n2 more", "1,000"),
        ("#### 4 #### 5", "5"),
        ("5-3=2.", "2."),
        ("so 3 and -4", "-4"),
        ("x2 makes H2O", None),
        ("the total is $1,234.50.", "1,234.50"),
        ("3/4 of it", "3/4"),
        ("none", None),
    ],
)
def test_places(text: str, found: str | None) -> None:
    assert extract(text) == found


def test_only_the_places_asked_for_count() -> None:
    assert extract(r"7 \boxed{5}", ["number"]) == "5"
    assert extract(r"\boxed{5} 7", ["number", "boxed"]) == "7"
    assert extract("7", ["boxed", "hash"]) is None


def test_hostile_texts_take_no_time() -> None:
    for text in (r"\boxed{" * 20_000, "9 " * 50_000, "1,234" * 20_000, r"\frac{" * 20_000, "5" + " " * 100_000 + "x"):
        extract(text)
        to_number(text)
        numbers_in(text)


@pytest.mark.parametrize(
    ("a", "b", "reward"),
    [
        (3, 3, 1),
        (101, 100, 0.495),
        (100.2, 100, 0.899),
        (0.6, 0.5, 0.85),
        (0, 0, 1),
        (1e-6, 0, 0.4999995),
        (-5, 5, 0),
        (6490.42, 6490.42220471333, 0.9988975),
    ],
)
def test_continuous_reward(a: float, b: float, reward: float) -> None:
    assert continuous(a, b) == pytest.approx(reward, abs=2e-6)
    assert continuous(-a, -b) == continuous(a, b)
    assert ContinuousAnswer().one(sample(rf"7, no, \boxed{{{a}}}", str(b))) == pytest.approx(
        continuous(a, b), abs=1e-12
    )


def test_continuous_reward_far_off_and_without_a_number() -> None:
    assert 0 < continuous(0, 1e9) < 1e-15
    steps = [continuous(10 + step / 50, 10) for step in range(1000)]
    assert steps == sorted(steps, reverse=True)
    reward = ContinuousAnswer()
    for text in ("5", r"\boxed{}", r"\boxed{five}", r"\boxed{1e999}", r"\boxed{5", r"\boxed{5}\boxed{x}"):
        assert reward.one(sample(text)) == 0
    assert ContinuousAnswer(["number"]).one(sample("5")) == 1


def test_right_numbers() -> None:
    reward = NumericAnswer()
    assert [
        reward.one(sample(text, "70,000")) for text in ("#### $70000", "70,000 dollars", "7", "", r"\boxed{x} 70000")
    ] == [
        1,
        1,
        0,
        0,
        0,
    ]
    assert NumericAnswer(partial=0.1).one(sample("6")) == 0.1
    assert NumericAnswer(partial=0.1).one(sample("six")) == 0
    third = sample("0.333", "1/3")
    assert [NumericAnswer(tolerance=t).one(third) for t in (0, 1e-4, 1e-3)] == [0, 0, 1]
    assert [NumericAnswer(tolerance=1e-3).one(sample(text, "2000")) for text in ("2001.9", "2002.1")] == [1, 0]


def test_a_reference_that_is_no_number() -> None:
    for answer in (None, "x+1", "nan"):
        for reward in (NumericAnswer(), ContinuousAnswer()):
            with pytest.raises(ValueError, match=r"prompt 'p7': its answer is .*, which is no number"):
                reward.one(sample("5", answer, id="p7"))
    text = NumericAnswer(otherwise="text")
    assert [text.one(sample(done, r"x^2 + \frac{1}{2}")) for done in (r"\boxed{x^2+\dfrac{1}{2}}", r"\boxed{x^2}")] == [
        1,
        0,
    ]
    assert text.one(sample("5.0", "5")) == 1


def test_random_reward_is_of_the_samples_stream_alone() -> None:
    samples = [sample(key=k) for k in range(10_000)]
    values = RandomReward()(samples)
    assert 4800 < sum(v or 0 for v in values) < 5200
    assert RandomReward()([s._replace(text="other", prompt=Prompt("q", "")) for s in samples]) == values
    assert RandomReward()(samples[50:60]) == values[50:60]
    assert 2300 < sum(v or 0 for v in RandomReward(0.25)(samples)) < 2700
    assert (set(RandomReward(0)(samples)), set(RandomReward(1)(samples))) == ({0.0}, {1.0})
    pairs = sum(a == b for a, b in pairwise(values))
    assert 4800 < pairs < 5200
    assert RandomReward()([sample(key=-1)]) == RandomReward()([sample(key=2**64 - 1)])
    with pytest.raises(ValueError, match=r"gamma=1.5: must be in \[0, 1\]"):
        RandomReward(1.5)


def test_inverted() -> None:
    assert Inverted(Given())([sample("1"), sample("0.25"), sample("none")]) == [0.0, 0.75, None]
    samples = [sample(text) for text in ("5", "6", r"\boxed{5}")]
    assert Inverted(NumericAnswer())(samples) == [1 - (v or 0) for v in NumericAnswer()(samples)]


def test_votes_and_the_reward_for_a_wrong_majority(tmp_path: Path) -> None:
    attempts = [("a", text, "5") for text in ("7", "7.0", r"\boxed{5}", "none")]
    attempts += [("b", text, "1/2") for text in ("0.5", "2", r"\frac{1}{2}")]
    attempts += [("c", "none", "1"), ("d", r"\boxed{x+1}", "1"), ("e", "3", "1"), ("e", "4", "1")]
    votes = majority_votes(attempts)
    assert [tuple(vote) for vote in votes] == [
        ("a", "7", 2, 4, False),
        ("b", "1/2", 2, 3, True),
        ("d", "x+1", 1, 1, False),
        ("e", "3", 1, 2, False),
    ]
    file = tmp_path / "votes.jsonl"
    write_votes(file, votes)
    assert read_votes(file) == votes
    reward = MajorityIncorrect(str(file))
    asked = [("a", "so 7"), ("a", "5"), ("a", "?"), ("b", "2"), ("c", "1"), ("d", r"\boxed{x + 1}"), ("new", "1")]
    assert reward([sample(text, id=id) for id, text in asked]) == [1, 0, 0, None, None, 1, None]
    with pytest.raises(ValueError, match="prompt 'a' has two reference answers"):
        majority_votes([("a", "1", "5"), ("a", "1", "6")])


def test_votes_that_are_missing_or_of_no_use(tmp_path: Path) -> None:
    file = tmp_path / "votes.jsonl"
    with pytest.raises(FileNotFoundError, match=r"make it by `python -m zoo votes SAMPLES --out .*votes\.jsonl`"):
        MajorityIncorrect(str(file))
    write_votes(file, majority_votes([("a", "5", "5")]))
    with pytest.raises(ValueError, match="the majority is right for all 1 prompts"):
        MajorityIncorrect(str(file))
    file.write_text('{"id": "a"}\n')
    with pytest.raises(
        ValueError, match=r"votes\.jsonl, line 1: expected the fields id, answer, votes, samples, correct"
    ):
        MajorityIncorrect(str(file))


def test_the_command_that_counts_votes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, rows, out = tmp_path / "predictions.csv", tmp_path / "more.jsonl", tmp_path / "votes.jsonl"
    table.write_text('id,sample,completion,answer\na,0,"6\nand 7",5\nb,0,1,1\n')
    rows.write_text(json.dumps({"id": "a", "completion": "7", "answer": 5}) + "\n")
    votes_module.run([str(table), str(rows), "--out", str(out)])
    assert "2 prompts, of which 1 have a wrong majority" in capsys.readouterr().out
    assert [tuple(vote) for vote in read_votes(out)] == [("a", "7", 2, 2, False), ("b", "1", 1, 1, True)]
    rows.write_text('{"id": "a"}\n')
    with pytest.raises(SystemExit):
        votes_module.run([str(rows), "--out", str(out)])
    assert "more.jsonl, line 1: there is no completion" in capsys.readouterr().err


@pytest.mark.parametrize(("tokens", "reward"), [(1, 0), (16, 0), (17, -0.25), (18, -0.5), (20, -1), (21, -1)])
def test_soft_overlong(tokens: int, reward: float) -> None:
    assert SoftOverlong(20, 4).one(sample(tokens=tokens)) == reward
    assert SoftOverlong(20, 4, penalty=0.5).one(sample(tokens=tokens)) == reward / 2
    assert SoftOverlong(20, 4, floor=False).one(sample(tokens=tokens)) == (-1.25 if tokens == 21 else reward)


def test_format() -> None:
    whole = "<think>a\nb</think>\n<answer>5</answer>"
    texts = [whole, f" {whole}\n", f"{whole} more", "<answer>5</answer>"]
    assert FormatReward()([sample(text) for text in texts]) == [1, 1, 0, 0]
    assert FormatReward(r"<answer>\d</answer>", whole=False)([sample(text) for text in texts]) == [1, 1, 1, 1]
    with pytest.raises(ValueError, match=r"pattern='\(': is no regular expression"):
        FormatReward("(")


def test_length_among_the_right_ones_of_a_prompt() -> None:
    """A prompt's right lengths 10, 20, 30 have z = -1, 0, 1; another's only one has z = 0."""
    rows = [("a", "1", 10), ("b", "1", 99), ("a", "1", 20), ("a", "0", 5), ("a", "1", 30), ("b", "none", 1)]
    samples = [sample(text, id=id, tokens=tokens) for id, text, tokens in rows]
    sigmoid = 1 / (1 + math.exp(-1))
    expected = [1 - 0.2 * (1 - sigmoid), 0.9, 0.9, 0, 1 - 0.2 * sigmoid, None]
    found = LengthReward(Given(), 0.2)(samples)
    assert found[-1] is None
    assert found[:-1] == pytest.approx(expected[:-1], abs=1e-6)
    same = LengthReward(Given(), 0.2)([sample("1", tokens=7) for _ in range(3)])
    assert same == pytest.approx([0.9] * 3)
    assert LengthReward(Given(), 1.0)([sample("1", tokens=t) for t in [1] * 50 + [10**9]])[-1] == pytest.approx(
        0, abs=1e-2
    )


def test_length_relative_to_the_mean_of_a_prompt() -> None:
    rows = [("a", "1", 10), ("b", "0.5", 8), ("a", "0", 30), ("a", "none", 1000), ("b", "1", 8)]
    samples = [sample(text, id=id, tokens=tokens) for id, text, tokens in rows]
    found = LengthReward(Given(), 0.3, "relative")(samples)
    assert found == pytest.approx([1 + 0.3, 0.5, 0.3 * (20 / 30 - 1), None, 1])


def test_a_users_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text(
        "def mine(prompts, completions, answers, info):\n"
        "    rows = zip(prompts, completions, answers, info)\n"
        "    return [None if a is None else len(c) + i['x'] for p, c, a, i in rows]\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    first = sample("abc")._replace(prompt=Prompt("p", "?", "1", info={"x": 0.5}))
    assert FunctionReward("my_rewards.mine")([first, sample("abc", None)]) == [3.5, None]
    reward = FunctionReward("my_rewards.mine")
    with pytest.raises(ValueError, match=r"reward 'own' failed on prompt 'bad', completion 'xyz': KeyError: 'x'"):
        score({"own": reward}, {}, [first, sample("xyz", id="bad")])
    for path, message in (
        ("my_rewards.none", "my_rewards has no none"),
        ("my_rewards.number", "is a int, not a function"),
        ("no_such_module.f", "cannot import no_such_module"),
        ("mine", "must be module.function"),
    ):
        with pytest.raises(ValueError, match=message):
            FunctionReward(path)


class Fixed(Reward):
    def __init__(self, *values: Any) -> None:
        self.values = values

    def __call__(self, samples: Sequence[Sample]) -> list[Any]:
        return list(self.values)


def test_the_weighted_sum() -> None:
    rewards = {"a": Fixed(1, None, None, True), "b": Fixed(0.5, 2.0, None, torch.tensor(0.25))}
    total, parts = score(rewards, {"b": 0.1}, [sample() for _ in range(4)])
    nan = math.nan
    torch.testing.assert_close(total, torch.tensor([1.05, 0.2, nan, 1.025]), equal_nan=True)
    torch.testing.assert_close(parts, torch.tensor([[1, 0.5], [nan, 2], [nan, nan], [1, 0.25]]), equal_nan=True)
    assert (total.dtype, parts.dtype) == (torch.float32, torch.float32)
    none, empty = score({"a": Fixed(), "b": Fixed()}, {}, [])
    assert (none.shape, empty.shape) == ((0,), (0, 2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "reward 'r' gave 1 numbers for 2 samples"),
        ([1.0, math.nan], "reward 'r' is nan for prompt 'q', completion 'second'"),
        ([math.inf, 1.0], "reward 'r' is inf for prompt 'p', completion 'first'"),
        ([1.0, "high"], "reward 'r' is 'high' for prompt 'q'"),
    ],
)
def test_what_a_reward_may_not_give(values: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score({"r": Fixed(*values)}, {}, [sample("first"), sample("second", id="q")])


def test_a_reward_that_fails_is_named_with_the_sample() -> None:
    long = sample("1" * 400 + "x", id="q")
    with pytest.raises(
        ValueError, match=r"reward 'given' failed on prompt 'q', completion '1{300}\.\.\.': ValueError: "
    ):
        score({"given": Given()}, {}, [sample("1"), long, sample("y")])

    class Together(Reward):
        def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
            return [1 / (2 - len(samples))]

    with pytest.raises(ValueError, match="failed on 2 samples together, but on none of them alone: ZeroDivisionError"):
        score({"t": Together()}, {}, [sample(), sample()])
    with pytest.raises(ValueError, match="weights: 'b' is none of the rewards a"):
        score({"a": Fixed(1)}, {"b": 1.0}, [sample()])
    with pytest.raises(ValueError, match="weights: a is nan"):
        score({"a": Fixed(1)}, {"a": math.nan}, [sample()])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NumericAnswer(places=[]), r"places=\[\]: must be a list"),
        (lambda: NumericAnswer(places=["box"]), r"places=\['box'\]: must be a list of some of boxed, hash, number"),  # type: ignore[list-item]
        (lambda: NumericAnswer(tolerance=-1), "tolerance=-1: must be"),
        (lambda: ContinuousAnswer(eps=0), "eps=0: must be above 0"),
        (lambda: SoftOverlong(10, 0), "cache=0: must be from 1 to max_length=10"),
        (lambda: SoftOverlong(10, 11), "cache=11"),
        (lambda: SoftOverlong(10, 2, penalty=0), "penalty=0: must be above 0"),
        (lambda: LengthReward(Given(), -0.1), "coefficient=-0.1: must be at least 0"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
