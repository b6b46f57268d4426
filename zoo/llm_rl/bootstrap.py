"""Grows a set of verified solutions in turns: solve, run, train on what passed, and again (arXiv 2508.06813)."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from datamodules.batches import Prompt
from zoo.llm_rl.batches import Sample
from zoo.llm_rl.execution import ExecutionReward


class Attempt(NamedTuple):
    """A solution, and tests that the same call wrote for it, if any."""

    completion: str
    tests: Sequence[Mapping[str, str]] = ()


class Round(NamedTuple):
    """Problems that were attempted, accepted, and of these right by the problems' own tests."""

    attempted: int
    accepted: int
    right: int


def bootstrap(
    problems: Sequence[Prompt],
    solve: Callable[[Sequence[Prompt]], Sequence[Attempt]],
    reward: ExecutionReward,
    train: Callable[[Sequence[Prompt]], None],
    rounds: int,
    separate_tests: bool = True,
) -> list[Round]:
    """Lets ``solve`` try what is unsolved and ``train`` learn from all that is solved, until nothing is left to solve.

    Args:
        problems: with tests in ``info``, whose expected outputs come from elsewhere than ``solve``, such as from a
            known solution in another language.
        solve: an attempt at each of some problems.
        reward: runs the tests; an attempt is accepted if it passes all that the reward chooses.
        train: gets all solved problems so far, the solution as ``completion``.
        rounds: at most.
        separate_tests: accept by the problems' tests. False shows why: a call that writes solution and tests at once
            gets broken solutions accepted by tests that are broken in the same way, and is trained on them.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: must be at least 1")
    solved: dict[str, Prompt] = {}
    history = []
    for _ in range(rounds):
        open_ = [problem for problem in problems if problem.id not in solved]
        if not open_:
            break
        attempts = solve(open_)
        if len(attempts) != len(open_):
            raise ValueError(f"solve gave {len(attempts)} attempts at {len(open_)} problems: give one for each")
        right = _passes(reward, open_, attempts)
        if separate_tests:
            accepted = right
        else:
            pairs = zip(open_, attempts, strict=True)
            own = [problem._replace(info={**problem.info, "tests": attempt.tests}) for problem, attempt in pairs]
            accepted = _passes(reward, own, attempts)
        for problem, attempt, passes in zip(open_, attempts, accepted, strict=True):
            if passes:
                solved[problem.id] = problem._replace(completion=attempt.completion)
        both = sum(one and other for one, other in zip(accepted, right, strict=True))
        history.append(Round(len(open_), sum(accepted), both))
        train(list(solved.values()))
    return history


def _passes(reward: ExecutionReward, problems: Sequence[Prompt], attempts: Sequence[Attempt]) -> list[bool]:
    pairs = zip(problems, attempts, strict=True)
    samples = [Sample(problem, attempt.completion, 0, False, 0) for problem, attempt in pairs]
    return [all(each) for each in reward.passed(samples)]
