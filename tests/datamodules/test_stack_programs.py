"""Stack problems and programs: right, apart, and the same for a seed. The language itself says what is right."""

import pytest

from datamodules.stack_programs import StackProblems, StackPrograms
from zoo.llm_rl import postfix


@pytest.fixture(scope="module")
def problems():
    return StackProblems(seed=3).load()


def test_split_shares_no_problem(problems):
    train, test = problems["train"], problems["test"]
    assert (len(train), len(test)) == (300, 100)
    assert len({prompt.id for prompt in train + test}) == 400
    assert len({prompt.text for prompt in train + test}) == 400
    # nor one in other words: no two have the same polynomials, which differ at this point
    at = [10007, 100003, 999983]
    left = {(n, *postfix.run(p.completion, at[:n])) for p in train + test for n in [p.info["inputs"]]}
    assert len(left) == 400


def test_completions_solve_what_the_texts_say(problems):
    for prompt in problems["train"] + problems["test"]:
        assert len(prompt.info["tests"]) == 5
        assert len({test["test_code"] for test in prompt.info["tests"]}) == 5
        assert prompt.info["difficulty"] == len(prompt.completion.split()) <= 4
        for test in prompt.info["tests"]:
            stack = [int(word) for word in test["test_code"].split()]
            assert len(stack) == prompt.info["inputs"]
            assert " ".join(map(str, postfix.run(prompt.completion, stack))) == test["expected_output"]


def test_a_text_reads_as_it_is_computed(problems):
    prompt = next(p for p in problems["train"] if p.info["inputs"] == 2 and "-" in p.text.split("->")[1])
    outputs = prompt.text.split(" -> ")[1].split()
    test = prompt.info["tests"][0]
    a, b = map(int, test["test_code"].split())
    assert [eval(text, {"a": a, "b": b}) for text in outputs] == [int(x) for x in test["expected_output"].split()]


def test_problems_need_all_their_inputs(problems):
    for prompt in problems["test"]:
        with pytest.raises(ValueError, match="the stack has"):
            postfix.run(prompt.completion, [1] * (prompt.info["inputs"] - 1))


def test_seed_is_all_there_is(problems):
    again, other = StackProblems(seed=3).load(), StackProblems(seed=4).load()
    assert again == problems
    assert {p.text for p in other["train"]} != {p.text for p in problems["train"]}
    cut = StackProblems(seed=3, val=40).load()
    assert (len(cut["train"]), len(cut["val"])) == (260, 40)
    assert {p.id for p in cut["train"] + cut["val"]} == {p.id for p in problems["train"]}
    assert cut["test"] == problems["test"]


def test_programs_run_and_leave_what_stands_behind_them():
    splits = StackPrograms(train=2000, val=200, test=100, results=True).load()
    texts = [prompt.completion for prompt in splits["train"] + splits["val"]]
    assert (len(splits["train"]), len(splits["val"]), len(set(texts))) == (2000, 200, 2200)
    assert all(prompt.text == "" for prompt in splits["train"])
    for text in texts:
        program, _, left = text.partition(" -> ")
        assert 2 <= len(program.split()) <= 10
        assert [int(word) for word in left.split()] == postfix.run(program, []) != []
    words = {word for text in texts for word in text.partition(" -> ")[0].split()}
    assert words == {"dup", "swap", "over", "drop", "+", "-", "*", *"123456789"}


def test_programs_are_the_first_of_any_number():
    few, many = (StackPrograms(train=count, seed=5).load()["train"] for count in (50, 400))
    assert [p.completion for p in few] == [p.completion for p in many[:50]]
    assert StackPrograms(train=50, seed=6).load()["train"] != few


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StackProblems(train=0), "train=0"),
        (lambda: StackProblems(tests=99), "tests=99: must be 1 to 50"),
        (lambda: StackProblems(longest=6), "longest=6"),
        (lambda: StackProblems(train=600, longest=3).load(), "train . test = 700: there are 536 problems"),
        (lambda: StackPrograms(longest=11), "longest=11"),
        (lambda: StackPrograms(val=-1), "val=-1"),
        (lambda: StackPrograms(train=20_000, longest=4).load(), "too few programs"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
