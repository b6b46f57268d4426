"""Has a model seen a benchmark? It is given the beginning of each question (RandomCalculation, arXiv 2507.10532)."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from zoo.llm_rl.rewards.answers import canonical, extract, normalised, numbers_in, to_number

SHORTEST = 5  # characters of a question that can be cut


class Probe(NamedTuple):
    """One question: how much of the rest of it the model wrote, and whether it wrote the answer.

    ``rouge_l`` in [0, 1], ``exact`` whether the rest came word by word; None for a question that was given whole.
    ``answer`` whether the final answer is right, ``contained`` whether it comes anywhere; None without a reference.
    """

    rouge_l: float | None
    exact: bool | None
    answer: bool | None
    contained: bool | None


def split_question(question: str, ratio: float) -> tuple[str, str]:
    """The first ``ratio`` of a question's characters, less a word that this would cut, and the rest.

    Both together are the question.

    Raises:
        ValueError: for a ratio outside (0, 1), and a question too short to be cut.
    """
    if not 0 < ratio < 1:
        raise ValueError(f"ratio={ratio}: must be above 0 and below 1")
    if len(question.strip()) < SHORTEST:
        raise ValueError(f"question {question!r}: must have at least {SHORTEST} characters")
    first, last = len(question) - len(question.lstrip()), len(question.rstrip()) - 1
    at = min(max(round(ratio * len(question)), first + 1), last)
    cut = next((i for i in range(at, 0, -1) if question[i].isspace() and question[:i].strip()), at)
    return question[:cut], question[cut:]


def compare_rest(rest: str, continuation: str, unit: Literal["word", "character"] = "word") -> tuple[float, bool]:
    """ROUGE-L of what was written in the place of the rest, which is cut to its length, and whether it is the same.

    Spacing makes no difference.
    """
    wanted = " ".join(rest.split())
    written = " ".join(continuation.split())[: len(wanted)].rstrip()
    pair = (wanted.split(), written.split()) if unit == "word" else (wanted, written)
    return rouge_l(*pair), written == wanted


def rouge_l(reference: Sequence[str], candidate: Sequence[str]) -> float:
    """F1 of the longest common subsequence (Lin 2004): 2 LCS / (both lengths); 0 if either is empty."""
    if not reference or not candidate:
        return 0.0
    return 2 * _common(reference, candidate) / (len(reference) + len(candidate))


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table at once as bits (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for at, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << at
    every = (1 << len(a)) - 1
    row = every
    for token in b:
        kept = row & places.get(token, 0)
        row = ((row + kept) | (row - kept)) & every
    return len(a) - row.bit_count()


def answers_right(answer: str, continuation: str) -> tuple[bool, bool]:
    r"""Whether a text's final answer is ``answer``, and whether ``answer`` comes anywhere in it.

    The final answer is in the last ``\boxed{}``, behind the last ``####``, or the last number. An answer that is no
    number is looked for as text, without spacing.
    """
    found = extract(continuation)
    final = found is not None and canonical(found) == canonical(answer)
    number = to_number(answer)
    if number is None:
        return final, final or normalised(answer) in normalised(continuation)
    return final, final or number in numbers_in(continuation)


def probe(rest: str, answer: str | None, continuation: str, unit: Literal["word", "character"] = "word") -> Probe:
    """All measures of one question; ``rest`` is empty for one that was given whole."""
    rouge, exact = compare_rest(rest, continuation, unit) if rest.strip() else (None, None)
    final, contained = (None, None) if answer is None else answers_right(answer, continuation)
    return Probe(rouge, exact, final, contained)


def summarise(probes: Sequence[Probe]) -> dict[str, float | int | None]:
    """``questions`` and the mean of each measure over those that have it; None where none has."""
    means: dict[str, float | int | None] = {"questions": len(probes)}
    for name in Probe._fields:
        values = [float(value) for found in probes if (value := getattr(found, name)) is not None]
        means[name] = sum(values) / len(values) if values else None
    return means
