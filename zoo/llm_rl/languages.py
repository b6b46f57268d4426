"""Programming languages, as execution rewards see them: how to find code in a text, run it and read what it prints."""

import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from zoo.llm_rl import postfix
from zoo.llm_rl.sandbox import Outcome, Sandbox

_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"^ *(`{3,})[ \t]*([^\s`]*)[^\n`]*\n(.*?)(?:^ *\1`*[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)


class LanguageSpec:
    """A language whose tests are code, to be put behind the solution.

    Args:
        name: of the language.
        run_cmd: command that runs a program, its path in place of ``{file}``, or behind the rest where that is missing.
        file_ext: of the program's file, with the dot.
        fences: names that code blocks of the language carry; the language's own by default.
        ending: code behind each test; where a solution ends in it, it is taken away there.
        failing_words: a program whose error output holds one of them failed, whatever its exit status.
        environment: variables for the programs; they see no others.
        sandbox: limits for the programs.
    """

    def __init__(
        self,
        name: str,
        run_cmd: Sequence[str],
        file_ext: str = "",
        fences: Sequence[str] | None = None,
        ending: str = "",
        failing_words: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        sandbox: Sandbox | None = None,
    ) -> None:
        if isinstance(run_cmd, str) or not run_cmd:
            raise ValueError(f"run_cmd={run_cmd!r}: must be a list, the interpreter and its arguments")
        self.name, self.file_ext, self.ending = name, file_ext, ending
        self.run_cmd = list(run_cmd) if any("{file}" in part for part in run_cmd) else [*run_cmd, "{file}"]
        self.fences = {fence.lower() for fence in (fences or [name])}
        self.failing_words, self.environment = tuple(failing_words), dict(environment or {})
        self.sandbox = sandbox or Sandbox()

    def check(self) -> None:
        """Raises FileNotFoundError if the interpreter is not there."""
        if shutil.which(self.run_cmd[0]) is None:
            raise FileNotFoundError(
                f"the interpreter of {self.name} is not found, the command is {' '.join(self.run_cmd)!r}: install "
                f"{self.run_cmd[0]}, or set run_cmd of {type(self).__name__} to where it is"
            )

    def extract(self, completion: str) -> str | None:
        """The code in a completion; None if there is none.

        What ``<answer>`` holds, or else the whole text; of that the first code block of the language, or else the first
        of any, or else all. Tags and blocks that are not closed go on to the end. A block ends at a line of as many
        backticks as it began with, or more, so that it may hold others.
        """
        answer = _ANSWER.search(completion)
        text = answer[1] if answer else completion
        blocks = [(tag.lower() in self.fences, code) for _, tag, code in _FENCE.findall(text)]
        own = [code for is_own, code in blocks if is_own]
        code = own[0] if own else blocks[0][1] if blocks else text
        return code.strip() or None

    def wrap(self, solution: str, test: str) -> tuple[str, str]:
        """The program that tests a solution, and its standard input."""
        body = solution.strip().removesuffix(self.ending).rstrip() if self.ending else solution
        return f"{body}\n\n{test}\n{self.ending}".rstrip() + "\n", ""

    def run(self, solution: str, test: str, timeout_s: float) -> Outcome:
        """Runs a solution on a test's code."""
        program, stdin = self.wrap(solution, test)
        file = f"program{self.file_ext}"
        command = [part.replace("{file}", file) for part in self.run_cmd]
        command[0] = str(Path(shutil.which(command[0]) or command[0]).absolute())
        return self.sandbox.run(command, {file: program}, stdin, timeout_s, self.environment)

    def succeeded(self, outcome: Outcome) -> bool:
        """Whether a program ran to its end without an error."""
        return outcome.code == 0 and not any(word in outcome.stderr for word in self.failing_words)

    def match(self, stdout: str, expected: str) -> bool:
        """Whether the output is what a test expects; nothing at all and an empty text in quotes are the same."""
        first, second = ("" if text.strip() == '""' else text.strip() for text in (stdout, expected))
        return first == second


class PythonLanguage(LanguageSpec):
    """Python, by default the interpreter that runs this, with all that is installed beside it."""

    def __init__(self, run_cmd: Sequence[str] | None = None, sandbox: Sandbox | None = None) -> None:
        super().__init__(
            "python",
            run_cmd or [sys.executable, "-s", "-P", "-B", "{file}"],
            ".py",
            ["python", "py", "python3"],
            environment={"PYTHONHASHSEED": "0"},  # so that the order of a set is the same in each run
            sandbox=sandbox,
        )


class QLanguage(LanguageSpec):
    """q of kdb+ (arXiv 2508.06813), whose interpreter needs a licence.

    As in the official code a program fails if its error output holds the word ``error``, be it in a warning.

    Args:
        run_cmd: the interpreter and its arguments.
        environment: variables that it needs, such as ``QHOME`` and ``QLIC``.
        sandbox: limits for the programs.
    """

    def __init__(
        self,
        run_cmd: Sequence[str] = ("q", "{file}", "-q"),
        environment: Mapping[str, str] | None = None,
        sandbox: Sandbox | None = None,
    ) -> None:
        super().__init__("q", run_cmd, ".q", ["q", "kdb", "k"], "exit 0;", ["error"], environment, sandbox)


class StdinLanguage(LanguageSpec):
    """A language whose tests are what a program reads; ``test_code`` is its standard input."""

    def wrap(self, solution: str, test: str) -> tuple[str, str]:
        return solution, test


class PostfixLanguage(StdinLanguage):
    """The small language of ``postfix.py``; ``test_code`` is the stack that a program starts with.

    Args:
        in_process: run programs in this process, a thousand times as fast. They can do nothing but count, and
            always end; ``sandbox`` and the time limit have no use then.
        sandbox: limits for the programs.
    """

    def __init__(self, in_process: bool = False, sandbox: Sandbox | None = None) -> None:
        self.in_process = in_process
        super().__init__("postfix", [sys.executable, "-I", "-S", postfix.__file__], ".stack", sandbox=sandbox)

    def run(self, solution: str, test: str, timeout_s: float) -> Outcome:
        if not self.in_process:
            return super().run(solution, test, timeout_s)
        try:
            left = postfix.run(solution, [int(word) for word in test.split()])
        except ValueError as error:
            return Outcome(1, "", f"{error}\n")
        return Outcome(0, " ".join(map(str, left)) + "\n", "")
