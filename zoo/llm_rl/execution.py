"""Rewards for programs that pass their tests (arXiv 2508.06813)."""

import hashlib
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple, get_args

import numpy as np
from torch import distributed as dist

from datamodules.batches import Prompt
from datamodules.streams import key, uniform
from zoo.llm_rl.batches import Sample
from zoo.llm_rl.languages import LanguageSpec
from zoo.llm_rl.rewards import Reward

Kind = Literal["fraction", "binary", "fraction+bonus"]
Subset = Literal["first", "random"]
_REMEMBERED = 200_000  # results of tests
_SUBSET = 1  # part of a key


class Case(NamedTuple):
    """A test of a program: its code or input, and the output that passes."""

    code: str
    expected: str


class ExecutionReward(Reward):
    """Runs the code in completions on the tests of their prompts: ``w_base * passed / all``, and more if all pass.

    ``info`` of a prompt has ``tests``, a list of ``{"test_code": ..., "expected_output": ...}``. A test is passed
    if the program ends in time, without an error, and prints what is expected. Completions without code get 0. The same
    code on the same tests is run once, so that equal completions have equal rewards.

    Args:
        spec: the language of the programs, which also has their limits.
        allow_code_execution: must be true: what the model writes is run on this machine, see ``sandbox.Sandbox``.
        w_base: weight of the share of tests that pass.
        w_perfect: weight of ``perfect_bonus``.
        perfect_bonus: what passing all tests earns.
        max_tests: of a problem, at most; null for all.
        test_subset: the ``first`` of a problem's tests, which a model may come to suit, or ``random`` ones, drawn anew
            for each group of completions; all those of a prompt get the same.
        kind: ``fraction`` leaves out the bonus, ``binary`` all but the bonus.
        workers: programs at a time; null for as many as there are cores, shared between the ranks of a machine.
        timeout_s: of a test. One that takes longer is run once more, as the machine may have been busy.
    """

    runs_code = ("allow_code_execution",)

    def __init__(
        self,
        spec: LanguageSpec,
        allow_code_execution: bool = False,
        w_base: float = 1.0,
        w_perfect: float = 1.0,
        perfect_bonus: float = 1.0,
        max_tests: int | None = 5,
        test_subset: Subset = "first",
        kind: Kind = "fraction+bonus",
        workers: int | None = None,
        timeout_s: float = 2.0,
    ) -> None:
        if not allow_code_execution:
            raise ValueError(
                "allow_code_execution=false: this reward runs programs that the model wrote on this machine; read "
                "zoo.llm_rl.sandbox.Sandbox on what they cannot do, then set it to true"
            )
        for name, value in {"w_base": w_base, "w_perfect": w_perfect, "perfect_bonus": perfect_bonus}.items():
            if not value >= 0:
                raise ValueError(f"{name}={value}: must not be negative")
        for name, count in {"max_tests": max_tests, "workers": workers}.items():
            if count is not None and count < 1:
                raise ValueError(f"{name}={count}: must be at least 1, or null")
        if kind not in get_args(Kind):
            raise ValueError(f"kind={kind!r}: must be one of {', '.join(get_args(Kind))}")
        if test_subset not in get_args(Subset):
            raise ValueError(f"test_subset={test_subset!r}: must be one of {', '.join(get_args(Subset))}")
        if not timeout_s > 0:
            raise ValueError(f"timeout_s={timeout_s}: must be above 0")
        spec.check()
        self.spec, self.max_tests, self.test_subset = spec, max_tests, test_subset
        self.base = 0.0 if kind == "binary" else w_base
        self.bonus = 0.0 if kind == "fraction" else w_perfect * perfect_bonus
        self.workers, self.timeout_s = workers, timeout_s
        self.ran = self.timed_out = 0  # tests, so far
        self._warned = False
        self._known: dict[bytes, bool] = {}

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [execution_reward(sum(each), len(each), self.base, self.bonus) for each in self.passed(samples)]

    def passed(self, samples: Sequence[Sample]) -> list[list[bool]]:
        """For each sample which of its tests it passes.

        Raises:
            ValueError: for prompts whose tests are missing or broken.
            OSError: if the interpreter does not start.
        """
        check_problems(sample.prompt for sample in samples)
        stream: dict[str, int] = {}
        for sample in samples:
            stream[sample.prompt.id] = min(sample.key, stream.get(sample.prompt.id, sample.key))
        found = [self.spec.extract(sample.text) for sample in samples]
        cases = [self._subset(sample.prompt, stream[sample.prompt.id]) for sample in samples]
        asked = {
            _digest(code, case): (code, case)
            for code, each in zip(found, cases, strict=True)
            if code is not None
            for case in each
        }
        known = {id: self._known[id] for id in asked if id in self._known}
        known |= self._run({id: task for id, task in asked.items() if id not in known})
        self._known |= known
        for id in list(self._known)[: max(0, len(self._known) - _REMEMBERED)]:
            del self._known[id]
        return [
            [code is not None and known[_digest(code, case)] for case in each]
            for code, each in zip(found, cases, strict=True)
        ]

    def _subset(self, prompt: Prompt, stream: int) -> list[Case]:
        cases = [Case(test["test_code"], test["expected_output"]) for test in prompt.info["tests"]]
        if self.max_tests is None or len(cases) <= self.max_tests:
            return cases
        if self.test_subset == "first":
            return cases[: self.max_tests]
        order = np.argsort(uniform(key(stream, _SUBSET), len(cases)), kind="stable")
        return [cases[at] for at in sorted(order[: self.max_tests].tolist())]

    def _run(self, tasks: dict[bytes, tuple[str, Case]]) -> dict[bytes, bool]:
        """Which of the programs pass."""

        def run(task: tuple[str, Case]) -> bool | None:
            outcome = self.spec.run(task[0], task[1].code, self.timeout_s)
            if outcome.timed_out:
                return None
            return self.spec.succeeded(outcome) and self.spec.match(outcome.stdout, task[1].expected)

        with ThreadPoolExecutor(self.workers or _share_of_cores()) as pool:
            results = dict(zip(tasks, pool.map(run, tasks.values()), strict=True))
            slow = [id for id, result in results.items() if result is None]
            results |= dict(zip(slow, pool.map(run, [tasks[id] for id in slow]), strict=True))
        still = sum(result is None for result in results.values())
        self.ran, self.timed_out = self.ran + len(tasks), self.timed_out + still
        if len(slow) > still and not self._warned:
            self._warned = True
            warnings.warn(
                f"{len(slow) - still} of {len(tasks)} programs took longer than timeout_s={self.timeout_s}, and less "
                "when run again: the machine is busy, so right answers may fail; use fewer workers or a longer timeout",
                stacklevel=2,
            )
        return {id: bool(result) for id, result in results.items()}


def execution_reward(passed: int, total: int, base: float = 1.0, bonus: float = 1.0) -> float:
    """``base * passed / total``, and ``bonus`` if all ``total`` > 0 tests pass (arXiv 2508.06813, official code)."""
    return base * passed / total + bonus * (passed == total)


def check_problems(prompts: Iterable[Prompt]) -> None:
    """Raises ValueError if prompts have no tests, or tests without code or expected output; names them."""
    wrong = {prompt.id: fault for prompt in prompts if (fault := _fault(prompt))}
    if wrong:
        shown = "; ".join(f"{id}: {fault}" for id, fault in list(wrong.items())[:10])
        more = f"; and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise ValueError(f"{len(wrong)} problems cannot be tested, mend them or leave them out: {shown}{more}")


def _fault(prompt: Prompt) -> str | None:
    tests = prompt.info.get("tests")
    if not isinstance(tests, Sequence) or isinstance(tests, str) or not tests:
        return "info has no list of tests"
    for number, test in enumerate(tests, 1):
        if not isinstance(test, Mapping):
            return f"test {number} is {test!r}, expected an object"
        code, expected = test.get("test_code"), test.get("expected_output")
        if not isinstance(code, str) or not code.strip():
            return f"test {number} has no code in test_code"
        if not isinstance(expected, str):
            return f"expected_output of test {number} is {expected!r}, expected a text"
    return None


def _digest(code: str, case: Case) -> bytes:
    return hashlib.blake2b(repr((code, *case)).encode("utf-8", "replace"), digest_size=16).digest()


def _share_of_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", ranks)))
