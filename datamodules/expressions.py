"""Reads LaTeX: the value of an arithmetic expression, exactly and without ``eval``, and what a text puts in a box."""

import re
from fractions import Fraction

_TOKEN = re.compile(r"\s*(\\frac|\d+(?:\.\d+)?|[-+*/^(){}])")
_DEPTH, _POWER, _BITS = 80, 100, 100_000  # what a hostile text may ask for at most


def evaluate(text: str) -> Fraction:
    r"""The value of an expression of numbers, ``\frac{}{}``, ``^``, ``+ - * /`` and parentheses.

    A power binds tightest, then ``*`` and ``/``, then ``+`` and ``-``; all of them from the left. An exponent is one
    digit, or a whole number in braces.

    Raises:
        ValueError: for anything else, with its place; for nesting, exponents and values beyond reason.
        ZeroDivisionError: for a division by zero.
    """
    reader = _Reader(text)
    value = reader.sum(0)
    if reader.token:
        raise reader.error("an operator")
    return value


class _Reader:
    """Recursive descent: one method a level of precedence."""

    def __init__(self, text: str) -> None:
        self.text, self.end = text, 0
        self.token = ""
        self.advance()

    def advance(self) -> str:
        """Goes to the next token; gives the one before. The end is an empty one."""
        token, self.start = self.token, self.end
        if found := _TOKEN.match(self.text, self.end):
            self.token, self.start, self.end = found[1], found.start(1), found.end()
        elif self.text[self.end :].strip():
            raise ValueError(f"{_short(self.text)}: cannot read {self.text[self.end :].strip()[:20]!r}")
        else:
            self.token = ""
        return token

    def error(self, expected: str) -> ValueError:
        found = repr(self.token) if self.token else "the end"
        return ValueError(f"{_short(self.text)}: expected {expected} at character {self.start + 1}, found {found}")

    def take(self, token: str) -> None:
        if self.token != token:
            raise self.error(repr(token))
        self.advance()

    def sum(self, depth: int) -> Fraction:
        if depth > _DEPTH:
            raise ValueError(f"{_short(self.text)}: more than {_DEPTH} levels of brackets")
        value = self.product(depth)
        while self.token and self.token in "+-":
            value = value + self.product(depth) if self.advance() == "+" else value - self.product(depth)
        return value

    def product(self, depth: int) -> Fraction:
        value = self.signed(depth)
        while self.token and self.token in "*/":
            value = value * self.signed(depth) if self.advance() == "*" else value / self.signed(depth)
        return value

    def signed(self, depth: int) -> Fraction:
        negative = False
        while self.token and self.token in "+-":
            negative ^= self.advance() == "-"
        value = self.power(depth)
        return -value if negative else value

    def power(self, depth: int) -> Fraction:
        base = self.atom(depth)
        if self.token != "^":
            return base
        self.advance()
        braces = self.token == "{"
        if braces:
            self.advance()
        if not self.token.isdigit() or (len(self.token) > 1 and not braces):
            raise self.error("an exponent of one digit, or a whole number in braces")
        exponent = int(self.advance())
        if braces:
            self.take("}")
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if exponent > _POWER or size * exponent > _BITS:
            raise ValueError(f"{_short(self.text)}: a power of {exponent} is too large")
        return base**exponent

    def atom(self, depth: int) -> Fraction:
        token = self.token
        if token == "(":
            return self.enclosed("(", ")", depth)
        if token == r"\frac":
            self.advance()
            return self.enclosed("{", "}", depth) / self.enclosed("{", "}", depth)
        if not token[:1].isdigit():
            raise self.error("a number")
        self.advance()
        return Fraction(token)

    def enclosed(self, opening: str, closing: str, depth: int) -> Fraction:
        self.take(opening)
        value = self.sum(depth + 1)
        self.take(closing)
        return value


def last_boxed(text: str) -> str | None:
    r"""What the last ``\boxed{}`` with balanced braces holds; None if there is none."""
    found, open_ = None, list[int | None]()  # where what is open began: None for braces that are no box's
    for token in re.finditer(r"(\\boxed\s*\{)|\\.|[{}]", text):  # \{ is a character, no brace
        if token[1]:
            open_.append(token.end())
        elif token[0] == "{":
            open_.append(None)
        elif token[0] == "}" and open_:
            start = open_.pop()
            if start is not None and (found is None or start > found[0]):
                found = (start, token.start())
    return None if found is None else text[found[0] : found[1]].strip()


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")
