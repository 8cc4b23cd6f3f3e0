"""A parser for what a policy writes when asked for arithmetic: hostile input costs microseconds, and runs nothing.

sum     = product (("+" | "-") product)*
product = atom (("*" | "/") atom)*
atom    = digits | "(" sum ")"
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Final

MAX_CHARACTERS: Final = 256
"""Longer text is refused unread. It bounds the time, and the size of the numbers, which multiply."""

MAX_DEPTH: Final = 32
"""Deeper nesting is refused, far below where the interpreter's own stack would end."""

_DIGITS: Final = frozenset("0123456789")  # str.isdigit also accepts what int() does not, such as a superscript two


class ExpressionError(ValueError):
    """A text is not an arithmetic expression, or it has no value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The exact value of an expression, and the numbers written in it, in order."""

    value: Fraction
    numbers: tuple[int, ...]


def evaluate(text: str) -> Evaluation:
    """Return the value of an expression of whole numbers, + - * / and parentheses; spaces are ignored.

    Raises:
        ExpressionError: it does not parse, is too long or too deep, or divides by zero.
    """
    if len(text) > MAX_CHARACTERS:
        raise ExpressionError(f"the expression has {len(text)} characters; at most {MAX_CHARACTERS} are read")
    parser = _Parser(text)
    try:
        value = parser.parse_all()
    except ZeroDivisionError:
        raise ExpressionError(f"{text!r} divides by zero") from None
    return Evaluation(value=value, numbers=tuple(parser.numbers))


class _Parser:
    """Recursive descent over one text, one method per rule of the grammar; values are computed on the way."""

    def __init__(self, text: str) -> None:
        self.numbers: list[int] = []
        self._text = text
        self._at = 0
        self._depth = 0

    def parse_all(self) -> Fraction:
        value = self._sum()
        if self._peek():
            raise self._unexpected()
        return value

    def _sum(self) -> Fraction:
        value = self._product()
        while (operator := self._peek()) in ("+", "-"):
            self._at += 1
            value = value + self._product() if operator == "+" else value - self._product()
        return value

    def _product(self) -> Fraction:
        value = self._atom()
        while (operator := self._peek()) in ("*", "/"):
            self._at += 1
            value = value * self._atom() if operator == "*" else value / self._atom()
        return value

    def _atom(self) -> Fraction:
        if self._peek() == "(":
            return self._parenthesised()
        if self._peek() not in _DIGITS:
            raise self._unexpected()
        start = self._at
        while self._text[self._at : self._at + 1] in _DIGITS:
            self._at += 1
        self.numbers.append(int(self._text[start : self._at]))
        return Fraction(self.numbers[-1])

    def _parenthesised(self) -> Fraction:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ExpressionError(f"parentheses nest deeper than {MAX_DEPTH}")
        self._at += 1
        value = self._sum()
        if self._peek() != ")":
            raise self._unexpected()
        self._at += 1
        self._depth -= 1
        return value

    def _peek(self) -> str:
        """Return the next character that is not a space, or "" at the end."""
        while self._text[self._at : self._at + 1] == " ":
            self._at += 1
        return self._text[self._at : self._at + 1]

    def _unexpected(self) -> ExpressionError:
        found = repr(self._peek()) if self._peek() else "the end"
        return ExpressionError(f"unexpected {found} at character {self._at} of {self._text!r}")
