"""Execution rewards: the paper's numbers, extraction, and programs that hang, fail or come twice."""

import sys
from pathlib import Path

import pytest

from datamodules.batches import Prompt
from datamodules.stack_programs import StackProblems
from zoo.llm_rl import postfix
from zoo.llm_rl.batches import Sample
from zoo.llm_rl.bootstrap import Attempt, bootstrap
from zoo.llm_rl.execution import ExecutionReward, check_problems, execution_reward
from zoo.llm_rl.languages import LanguageSpec, PostfixLanguage, PythonLanguage, QLanguage, StdinLanguage
from zoo.llm_rl.sandbox import Outcome

FAST = PythonLanguage([sys.executable, "-I", "-S"])  # without site-packages
SQUARES = [(f"print(f({n}))", f"{n * n}\n") for n in (0, 2, 3, 4, 5)]
# x * x and x + x agree at 0 and 2
SQUARE, DOUBLE = "def f(x): return x * x", "def f(x): return x + x"


def prompt(tests, id="p"):
    return Prompt(id, "", info={"tests": [{"test_code": code, "expected_output": out} for code, out in tests]})


def sample(text, tests=SQUARES, key=0, id="p"):
    return Sample(prompt(tests, id), text, len(text), False, key)


def stack_sample(text, tests=(("1 2", "2 1"), ("3 4", "4 3"), ("5 5", "5 5")), key=0, id="p"):
    return sample(text, tests, key, id)


def reward(spec=FAST, **options):
    options = {"allow_code_execution": True, "timeout_s": 20.0, **options}
    return ExecutionReward(spec, **options)


def in_process(**options):
    return reward(PostfixLanguage(in_process=True), **options)


def test_reward_is_the_papers():
    assert execution_reward(3, 5) == pytest.approx(0.6, abs=1e-12)
    assert execution_reward(5, 5) == 2.0
    assert execution_reward(5, 5, 1.0, 0.5) == 1.5
    assert execution_reward(0, 5) == 0.0


def test_python_from_end_to_end():
    cube_at_start = "def f(x): return x * x if x < 4 else 0"  # three of five
    texts = [SQUARE, f"Here it is:\n```python\n{SQUARE}\n```", DOUBLE, cube_at_start, "def f(x: return", "", "```\n```"]
    assert reward()([sample(text) for text in texts]) == pytest.approx([2.0, 2.0, 0.4, 0.6, 0, 0, 0], abs=1e-12)


def test_a_test_that_hangs_fails_alone():
    hangs = "def f(x):\n    while x == 3: pass\n    return x * x"
    slow = reward(timeout_s=1.5)
    assert slow([sample(hangs)]) == [pytest.approx(0.8, abs=1e-12)]
    assert (slow.ran, slow.timed_out) == (5, 1)


def test_ten_runs_at_once_agree():
    texts = [f"{code}  # {run}" for run in range(10) for code in ("def f(x): return {x * x}.pop()", DOUBLE)]
    tests = SQUARES[1:4]
    values = reward(workers=10)([sample(text, tests) for text in texts])
    assert values == [2.0, pytest.approx(1 / 3)] * 10


def test_a_set_prints_in_the_same_order_each_time():
    code = "print({str(n) for n in range(20)})"
    spec = PythonLanguage()
    assert len({spec.run(code, f"# {run}", 20.0).stdout for run in range(3)}) == 1


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({}, [2.0, 1 / 3]),
        ({"w_perfect": 0.5}, [1.5, 1 / 3]),
        ({"w_base": 3.0, "perfect_bonus": 0.25}, [3.25, 1.0]),
        ({"kind": "fraction"}, [1.0, 1 / 3]),
        ({"kind": "binary"}, [1.0, 0.0]),
        ({"max_tests": 1}, [2.0, 0.0]),
        ({"max_tests": None}, [2.0, 1 / 3]),
    ],
)
def test_kinds_and_weights(options, values):
    # drop dup leaves the first number twice, which is right for the stack 5 5 alone
    assert in_process(**options)([stack_sample("swap"), stack_sample("drop dup")]) == pytest.approx(values, abs=1e-12)


def test_random_tests_are_those_of_a_prompt_and_change():
    tests = [(f"{n} 1", f"{1 if n % 2 else 2} {n}") for n in range(10)]  # swap passes every second one
    choose = in_process(max_tests=3, test_subset="random", kind="fraction")
    groups = [[stack_sample("swap", tests, key=group * 10 + at) for at in range(4)] for group in range(12)]
    found = [choose(group) for group in groups]
    assert all(len(set(values)) == 1 for values in found)
    assert len({values[0] for values in found}) > 1
    assert [in_process(max_tests=3, test_subset="random", kind="fraction")(group) for group in groups] == found
    together = choose([one for group in (groups[0], groups[1]) for one in group])  # one prompt, so one draw
    assert len(set(together)) == 1


class Counted(PostfixLanguage):
    """Runs in this process, counts, and takes too long as often as it is told to."""

    def __init__(self, slow: int = 0) -> None:
        super().__init__(in_process=True)
        self.runs, self.slow = 0, slow

    def run(self, solution: str, test: str, timeout_s: float) -> Outcome:
        self.runs += 1
        return Outcome(None, "", "", True) if self.runs <= self.slow else super().run(solution, test, timeout_s)


def test_the_same_code_runs_once():
    spec = Counted()
    both = reward(spec)
    texts = ["swap", "```\nswap\n```", "<answer>swap</answer>", "drop dup", "swap"]
    first = both([stack_sample(text) for text in texts])
    assert spec.runs == 6
    assert first[0] == first[1] == first[2] == first[4] == 2.0
    assert both([stack_sample(text) for text in texts]) == first
    assert spec.runs == 6
    both([stack_sample("swap", [("1 2", "1 2")])])
    assert spec.runs == 7


def test_a_timeout_gets_a_second_chance():
    with pytest.warns(UserWarning, match="2 of 3 programs took longer than timeout_s=20.0, and less when run again"):
        assert reward(Counted(slow=2), workers=1)([stack_sample("swap")]) == [2.0]
    spec = Counted(slow=100)
    never = reward(spec, workers=1)
    assert never([stack_sample("swap")]) == [0.0]
    assert (spec.runs, never.ran, never.timed_out) == (6, 3, 3)


def test_worked_solutions_pass_in_the_sandbox_and_out_of_it():
    problems = StackProblems(train=2, test=1, tests=2).load()["train"]
    samples = [Sample(problem, problem.completion or "", 1, False, 0) for problem in problems]
    samples += [samples[0]._replace(text="drop drop drop drop")]
    assert in_process()(samples) == reward(PostfixLanguage())(samples) == [2.0, 2.0, 0.0]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("<answer>1</answer>\n```python\n2\n```\n```\n3\n```", "1"),
        ("```\n3\n```\n```Python\n2\n```", "2"),
        ("```ruby\n3\n```\n```\n4\n```", "3"),
        ("  print(5)\n", "print(5)"),
        ("```python\n2\n```\n<reasoning>no</reasoning><answer>\n```\n6\n```\n```py\n7\n```</answer>", "7"),
        ("````python\nx = '''\n```\n'''\n````", "x = '''\n```\n'''"),
        ("```python\nx = '```'  # ```\n```\nmore", "x = '```'  # ```"),
        ("cut off:\n```python\nx = 1", "x = 1"),
        ("<answer>x = 2", "x = 2"),
        ("print('a```b')", "print('a```b')"),
        ("<answer> </answer>x", None),
        ("```python\n```", None),
        ("\n", None),
    ],
)
def test_extraction(text, code):
    assert FAST.extract(text) == code


def test_q_programs_end_once_and_fail_at_the_word_error():
    spec = QLanguage()
    assert spec.wrap("f:{x+1};\nexit 0;\n", "show f 1;") == ("f:{x+1};\n\nshow f 1;\nexit 0;\n", "")
    assert spec.wrap("f:{x+1};", "show f 1;") == ("f:{x+1};\n\nshow f 1;\nexit 0;\n", "")
    assert not spec.succeeded(Outcome(0, "2", "a warning of an error"))
    assert spec.succeeded(Outcome(0, "2", "a warning"))
    assert FAST.succeeded(Outcome(0, "2", "a warning of an error"))
    assert not FAST.succeeded(Outcome(1, "2", ""))
    assert not FAST.succeeded(Outcome(None, "2", "", True))


def test_outputs_match_without_white_space_around():
    assert FAST.match(" 1\n", "1")
    assert FAST.match('""\n', "")
    assert FAST.match("", '""')
    assert not FAST.match("1 2", "12")


def test_a_program_that_reads_its_input():
    spec = StdinLanguage("python", [sys.executable, "-I", "-S"], ".py")
    tests = [("1 2\n3", "6"), ("5", "5"), ("1", "2")]
    assert reward(spec)([sample("import sys; print(sum(map(int, sys.stdin.read().split())))", tests)]) == [
        pytest.approx(2 / 3)
    ]


def test_code_is_never_run_unasked():
    with pytest.raises(ValueError, match="allow_code_execution=false"):
        ExecutionReward(FAST)


def test_a_missing_interpreter_is_named():
    spec = LanguageSpec("nolang", ["no-such-interpreter", "-x"])
    with pytest.raises(FileNotFoundError, match=r"'no-such-interpreter -x {file}'.*set run_cmd of LanguageSpec"):
        reward(spec)
    folder = StdinLanguage("folder", [str(Path(__file__).parent)])
    with pytest.raises(FileNotFoundError, match="interpreter of folder is not found"):
        reward(folder)


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({}, "p7: info has no list of tests"),
        ({"tests": []}, "p7: info has no list of tests"),
        ({"tests": [{"test_code": "1", "expected_output": "1"}, {"test_code": " "}]}, "p7: test 2 has no code"),
        ({"tests": [{"test_code": "1", "expected_output": 5}]}, "p7: expected_output of test 1 is 5"),
        ({"tests": ["1"]}, "p7: test 1 is '1', expected an object"),
    ],
)
def test_problems_without_tests_are_named(info, message):
    with pytest.raises(ValueError, match=message):
        check_problems([prompt(SQUARES), Prompt("p7", "", info=info)])
    with pytest.raises(ValueError, match=message):
        in_process()([Sample(Prompt("p7", "", info=info), "", 0, False, 0)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tests": 0}, "max_tests=0"),
        ({"workers": 0}, "workers=0"),
        ({"w_base": -1.0}, "w_base=-1.0"),
        ({"w_perfect": float("nan")}, "w_perfect=nan"),
        ({"perfect_bonus": -0.5}, "perfect_bonus=-0.5"),
        ({"timeout_s": 0.0}, "timeout_s=0.0"),
        ({"kind": "all"}, "kind='all'"),
        ({"test_subset": "last"}, "test_subset='last'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        reward(**options)


@pytest.mark.parametrize(
    ("program", "stack", "left"),
    [
        ("dup", [1, 2], [1, 2, 2]),
        ("swap", [1, 2], [2, 1]),
        ("over", [1, 2], [1, 2, 1]),
        ("drop", [1, 2], [1]),
        ("+", [5, 2], [7]),
        ("-", [5, 2], [3]),
        ("*", [0, 5, 2], [0, 10]),
        ("over * -", [2, 3], [-4]),
        ("-7 12", [], [-7, 12]),
        ("", [4], [4]),
    ],
)
def test_words_of_the_stack_language(program, stack, left):
    assert postfix.run(program, stack) == left


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("1 +", r"word 2, '\+': takes 2 numbers, the stack has 1"),
        ("1 pop", "word 2, 'pop': there is no such word"),
        ("--1", "no such word"),
        ("٣", "no such word"),
        ("9 " + "dup * " * 5, r"word 11, '\*': the number is beyond 64 bits"),
        ("9" * 20, "beyond 64 bits"),
        ("9" * 5000, "no such word"),
    ],
)
def test_broken_programs_of_the_stack_language(program, message):
    with pytest.raises(ValueError, match=message):
        postfix.run(program, [])


def teacher(answers, tests=()):
    """Solves with the first answer in the first round, with the second in the next, and writes ``tests`` itself."""
    rounds = iter(answers)

    def solve(problems):
        text = next(rounds)
        return [Attempt(text, tests) for _ in problems]

    return solve


SWAP = [prompt([("1 2", "2 1")], "swap"), prompt([("3 4", "4 3"), ("7 7", "7 7")], "swap too")]
OVER = prompt([("1 2", "1 2 1")], "over")


def test_bootstrap_goes_on_with_what_is_unsolved_and_trains_on_what_is():
    taught = []
    rounds = bootstrap([*SWAP, OVER], teacher(["swap", "over"]), in_process(), taught.append, rounds=5)
    assert [(one.attempted, one.accepted, one.right) for one in rounds] == [(3, 2, 2), (1, 1, 1)]
    assert [[p.id for p in known] for known in taught] == [["swap", "swap too"], ["swap", "swap too", "over"]]
    assert [p.completion for p in taught[-1]] == ["swap", "swap", "over"]


def test_bootstrap_is_fooled_by_tests_of_the_same_call():
    own = [{"test_code": "1 1", "expected_output": "1 1 1"}]  # which dup passes, a wrong answer to all three
    for separate, accepted in ((False, 3), (True, 0)):
        solve = teacher(["dup"], own)
        (only,) = bootstrap([*SWAP, OVER], solve, in_process(), lambda known: None, 1, separate_tests=separate)
        assert (only.accepted, only.right) == (accepted, 0)


def test_bootstrap_names_what_it_cannot_use():
    with pytest.raises(ValueError, match="1 attempts at 3 problems"):
        bootstrap([*SWAP, OVER], lambda problems: [Attempt("dup")], in_process(), lambda known: None, 1)
    with pytest.raises(ValueError, match="swap: info has no list of tests"):
        bootstrap(SWAP, teacher(["dup"]), in_process(), lambda known: None, 1, separate_tests=False)
    with pytest.raises(ValueError, match="rounds=0"):
        bootstrap(SWAP, teacher(["dup"]), in_process(), lambda known: None, 0)
