r"""Final answers in texts that models write: where they stand, and the numbers they mean, without ``eval``."""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from datamodules.expressions import last_boxed

Place = Literal["boxed", "hash", "number"]
ANYWHERE: tuple[Place, ...] = ("boxed", "hash", "number")

_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?"
_VALUE = rf"(?:(?P<whole>\d+)\s+(?P<part>\d+\s*/\s*\d+)|(?P<top>{_PLAIN})(?:\s*/\s*(?P<bottom>[-+]?{_PLAIN}))?)"
_ALONE = re.compile(rf"(?P<sign>[-+]?)\s*{_VALUE}(?P<unit>.*)", re.DOTALL)
# A sign behind a number, a word or a bracket is an operator; digits in words, in other numbers and powers are none.
_IN_TEXT = re.compile(rf"(?P<sign>(?<![\w)}}\]])[-+])?(?<![\w.^])(?<!\^\{{){_VALUE}")
_WORD = r"[^\W\d_]+(?:\s*\^\s*\{?[23]\}?|[23²³])?\.?"
_UNIT = re.compile(rf"{_WORD}(?:[\s/·*-]+{_WORD})*")
_LETTER_UNITS, _NO_UNITS = set("mgslhLKCF"), {"pi", "or", "and", "to"}

_SIMPLE = rf"\s*(?:\{{\s*([-+]?\s*{_PLAIN})\s*\}}|(\d))"
_REPLACED: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), by)
    for pattern, by in (
        (r"[−–﹣－]", "-"),
        (r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\!|\\?[$€£¥%]|\^\s*(?:\\circ|\{\s*\\circ\s*\})|°|\\[()\[\]]", ""),
        (r"\{,\}", ","),
        (r"(?<=\d)\\,(?=\d{3})", ""),
        (r"\\[,;: ]|\\q?quad(?![A-Za-z])|~|\s", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", r" \1 "),
        (r"(?<=\w)\\frac", r" \\frac"),
        (rf"\\frac{_SIMPLE}{_SIMPLE}", r"\1\2/\3\4"),
        (
            r"(?<=[\d.])\s*(?:\\times|\\cdot|[x×*·])\s*10\s*\^\s*(?:\{\s*([-+]?\d{1,3})\s*\}|([-+]?\d{1,3}))(?!\d)",
            r"e\1\2",
        ),
        (r"(?<![\w.,])10\s*\^\s*(?:\{\s*([-+]?\d{1,3})\s*\}|([-+]?\d{1,3}))(?!\d)", r"1e\1\2"),
    )
)


def extract(text: str, places: Sequence[Place] = ANYWHERE) -> str | None:
    r"""The final answer of a text from the first of ``places`` that it has; None if it has none of them.

    ``boxed`` is what the last ``\boxed{}`` holds, ``hash`` the line behind the last ``####``, ``number`` the last
    number.
    """
    for place in places:
        if place == "boxed":
            found = last_boxed(text)
        elif place == "hash":
            _, mark, rest = text.rpartition("####")
            found = rest.strip().split("\n")[0].strip() if mark else None
        else:
            numbers = [match[0] for match in _IN_TEXT.finditer(_plain(text))]
            found = numbers[-1] if numbers else None
        if found is not None:
            return found
    return None


def to_number(text: str) -> Fraction | None:
    r"""The number that a final answer means, exactly; None if it means none, or more than one.

    Read are integers, decimals, ``a/b``, ``\frac{a}{b}``, mixed numbers, ``1.5e3`` and ``1.5 \times 10^3``, with
    thousands separators, a currency, a unit, a name in front of ``=``, or LaTeX's spacing around them. A percent sign
    is dropped, as MATH's own grader does: 50% is 50.
    """
    *names, found = re.split(r"=|\\approx|≈", _plain(text))
    if any(re.search(r"[,;]|\band\b|\bor\b", name) for name in names):
        return None
    found = _bare(found)
    while len(found) > 1 and found[0] + found[-1] in ("()", "{}") and "," not in found:
        found = found[1:-1].strip()
    match = _ALONE.fullmatch(found)
    if match is None or not _is_unit(match["unit"]):
        return None
    return _value(match)


def numbers_in(text: str) -> list[Fraction]:
    """All numbers in a text, in their order."""
    values = (_value(match) for match in _IN_TEXT.finditer(_plain(text)))
    return [value for value in values if value is not None]


def normalised(text: str) -> str:
    """An answer without what makes no difference: spacing, text commands and the like. For answers in symbols."""
    return _bare(re.sub(r"\s+", "", _plain(text)))


def canonical(text: str) -> str:
    """The number as ``a`` or ``a/b``, or the normalised answer: equal for answers that mean the same."""
    value = to_number(text)
    return normalised(text) if value is None else str(value)


def _plain(text: str) -> str:
    for pattern, by in _REPLACED:
        text = pattern.sub(by, text)
    return text


def _bare(text: str) -> str:
    """Without the marks of a sentence and of Markdown around it; a dot in front is a number's."""
    return text.strip(" \n*_`\"'").rstrip(".:;*_`\"' ")


def _is_unit(rest: str) -> bool:
    """Whether what follows a number may be its unit: cm, km/h, square miles; not x, pi or a second number."""
    unit = rest.strip()
    if not unit:
        return True
    if not _UNIT.fullmatch(unit):
        return False
    words = re.findall(r"[^\W\d_]+", unit)
    return not any(word in _NO_UNITS or (len(word) == 1 and word not in _LETTER_UNITS) for word in words)


def _value(match: re.Match[str]) -> Fraction | None:
    try:
        if match["whole"] is not None:
            value = int(match["whole"]) + Fraction(match["part"].replace(" ", ""))
        else:
            value = _fraction(match["top"]) / _fraction(match["bottom"] or "1")
    except (ValueError, ZeroDivisionError):  # ValueError: more digits than Python converts
        return None
    return -value if match["sign"] == "-" else value


def _fraction(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))
