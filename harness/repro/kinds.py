"""Kinds of values that stand in the text of a problem: how each is written, and what is read.

What is written holds neither blanks nor brackets, so that it is one word of the text, and no quotation mark, so that
the text is one word of a shell.
"""

from __future__ import annotations

import math
import re
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

# Sizes and lengths are int32 in a batch's metadata.
LARGEST = 2**31 - 1
# Of a number that is read: more than any seed has, and few enough that reading them costs nothing.
_DIGITS = re.compile(r"-?[0-9]{1,60}")
_FLOAT = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?(e[-+]?[0-9]{1,4})?")
_NONE = "none"


class Kind(Protocol):
    """Values of one kind."""

    @property
    def accepted(self) -> str:
        """What is read, in words."""

    def written(self, value: object) -> str:
        """A value as one word."""

    def read(self, word: str) -> object:
        """The value of a word.

        Raises:
            ValueError: it is none of this kind.
        """


@dataclass(frozen=True)
class Whole:
    """Whole numbers.

    Attributes:
        least, most: the range; None for any that has no more than 60 digits.
    """

    least: int | None = 0
    most: int | None = LARGEST

    @property
    def accepted(self) -> str:
        """What is read, in words."""
        if self.least is None or self.most is None:
            return "a whole number"
        return f"a whole number from {self.least} to {self.most}"

    def written(self, value: object) -> str:
        """A value as one word."""
        return str(value)

    def read(self, word: str) -> object:
        """The value of a word."""
        if not _DIGITS.fullmatch(word):
            raise ValueError(word)
        value = int(word)
        if (self.least is not None and value < self.least) or (self.most is not None and value > self.most):
            raise ValueError(word)
        return value


@dataclass(frozen=True)
class Number:
    """Finite numbers of double precision.

    Attributes:
        positive: whether they must be above 0.
    """

    positive: bool = False

    @property
    def accepted(self) -> str:
        """What is read, in words."""
        return f"a finite number{' above 0' if self.positive else ''}"

    def written(self, value: object) -> str:
        """A value as one word: the shortest that is read as the same bits."""
        return repr(value)

    def read(self, word: str) -> object:
        """The value of a word."""
        value = float(word) if _FLOAT.fullmatch(word) else math.nan
        if not math.isfinite(value) or (self.positive and value <= 0):
            raise ValueError(word)
        return value


class Flag:
    """True or false."""

    accepted = "true or false"

    def written(self, value: object) -> str:
        """A value as one word."""
        return str(value).lower()

    def read(self, word: str) -> object:
        """The value of a word."""
        return {"true": True, "false": False}[word]


class Name:
    """Any text, percent-encoded but for letters, digits and `-._~+`, as in an address."""

    accepted = "a name, in which %20 stands for a blank"

    def written(self, value: object) -> str:
        """A value as one word."""
        return urllib.parse.quote(str(value), safe="+", errors="surrogatepass")

    def read(self, word: str) -> object:
        """The value of a word."""
        name = urllib.parse.unquote(word, errors="surrogatepass")
        if self.written(name) != word:
            raise ValueError(word)
        return name


@dataclass(frozen=True)
class Choice:
    """One of some words.

    Attributes:
        words: strings, or members of an enumeration of strings.
    """

    words: Sequence[str]

    @property
    def accepted(self) -> str:
        """What is read, in words."""
        return f"one of {', '.join(map(str, self.words))}"

    def written(self, value: object) -> str:
        """A value as one word."""
        return str(value)

    def read(self, word: str) -> object:
        """The value of a word."""
        return self.words[[str(known) for known in self.words].index(word)]


@dataclass(frozen=True)
class Optional:
    """Values of another kind, or None.

    Attributes:
        kind: the other kind.
    """

    kind: Kind

    @property
    def accepted(self) -> str:
        """What is read, in words."""
        return f"{self.kind.accepted}, or {_NONE}"

    def written(self, value: object) -> str:
        """A value as one word."""
        return _NONE if value is None else self.kind.written(value)

    def read(self, word: str) -> object:
        """The value of a word."""
        return None if word == _NONE else self.kind.read(word)


def members(enumeration: type[StrEnum]) -> Choice:
    """The members of an enumeration."""
    return Choice(tuple(enumeration))
