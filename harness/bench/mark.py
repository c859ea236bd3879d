"""The mark of the benchmark, and when it is meant."""

from __future__ import annotations

from collections.abc import Callable

from _pytest.mark.expression import Expression

MARK = "bench"
DESCRIPTION = "how fast implementations are; runs where its mark is named alone"


def is_asked_for(markexpr: str) -> bool:
    """Whether an expression of marks lets the benchmark through because it names it, and not by leaving others out."""
    if not markexpr:
        return False
    try:
        expression = Expression.compile(markexpr)
        return expression.evaluate(_marked(MARK)) and not expression.evaluate(_marked())
    except Exception:  # of a kind that differs between versions of pytest, and pytest's to tell
        return False


def _marked(*marks: str) -> Callable[..., bool]:
    """Answers a mark expression for a test that has some marks."""
    return lambda name, /, **_: name in marks
