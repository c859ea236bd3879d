"""Text and numbers made fit for a terminal, a Markdown page and a CSV cell.

Records carry whatever a foreign library says, so no character of theirs may end a table, a line or a cell.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable

# Markdown's own characters: anywhere, outside of a word, and where a line begins.
_MARKDOWN = re.compile(r"([\\`*\[\]|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|^[>#+=-])")
# Without its first character there is neither a tag nor an entity.
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;"})
_WIDTH = 120
# A spreadsheet takes a cell that begins so for a formula.
_FORMULA = ("=", "+", "-", "@")


def plain(text: str) -> str:
    """One line without control characters, so that nothing moves a cursor or breaks a table."""
    joined = " ".join(text.split())
    # Nearly always nothing is to be done, and a table has hundreds of thousands of cells.
    if joined.isprintable():
        return joined
    return "".join(character if character.isprintable() else _escaped(character) for character in joined)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def wrapped(sentence: str, indent: str = "", most: int | None = None) -> list[str]:
    """Lines of a sentence for a terminal of 120 columns, those after the first set in by two more.

    Args:
        sentence: to wrap.
        indent: before each line.
        most: lines at most, the last of which then ends in dots; None for all.
    """
    return textwrap.wrap(
        plain(sentence),
        width=_WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
        max_lines=most,
        placeholder=" ...",
    )


def shortened(line: str, most: int) -> str:
    """A line of so many characters at most, the last of them dots where it had more."""
    return line if len(line) <= most else line[: most - 1] + "…"


def markdown(text: str) -> str:
    """Text that Markdown shows as it is, in a table too."""
    return _MARKDOWN.sub(r"\\\1", plain(text)).translate(_HTML)


def markdown_code(text: str) -> str:
    """Text as a code span outside of tables, where a pipe needs no escape."""
    line = plain(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    padding = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{padding}{line}{padding}{fence}"


def csv_cell(text: str) -> str:
    """One line that no spreadsheet takes for a formula."""
    line = plain(text)
    return f"'{line}" if line.startswith(_FORMULA) else line


def budget(value: float | None) -> str:
    """Share of the error budget used; `-` where nothing was computed, `inf` for an output that is no number."""
    if value is None:
        return "-"
    return f"{value:.2g}" if math.isfinite(value) else "inf"


def whole(value: int | None) -> str:
    """A whole number, with its thousands set apart; `-` for none."""
    return "-" if value is None else f"{value:,}"


def moment(started: str) -> str:
    """A time in ISO 8601 to the minute, as it is read; anything else as it is."""
    return f"{started[:10]} {started[11:16]}" if re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d", started) else started


def count(value: int) -> str:
    """How many; `-` for none, so that the others are seen."""
    return f"{value:,}" if value else "-"


def counted(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as far as there are any: 3:07, 1:00:07."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def joined(words: Iterable[str]) -> str:
    """Words in order of first mention, with commas."""
    return ", ".join(dict.fromkeys(words))
