"""A comparison as one line of text that holds all of it, and back.

    text    = operation {setting} side ["against" side]
    side    = step {"then" step}
    step    = ("[" {request} "]" | "same") ["{" {setting} "}"]
    setting = name "=" value

    attention name=phi-2 num_heads=2 num_kv_heads=2 head_dim=80 mask=causal dtype=bf16 [r1:q9c0] against [r1:q1c8]

A setting before the first step holds for every step, one in braces for its own alone, and what is nowhere set has its
default. A request is written as everywhere else in samebits: `r1:q4c128` is request 1 with 4 query tokens behind 128
cached ones, `e7` after it are encoder tokens, and `:full` marks one that is not causal. `same` are the requests of the
step before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from samebits.backends.problem import Request
from samebits.harness.decoding import shown
from samebits.harness.records import UnusableInput
from samebits.harness.relations import AnyProblem, Comparison
from samebits.harness.repro.kinds import Flag, Kind, Whole
from samebits.harness.repro.settings import FORMS, Form, operation_of

_WORD = re.compile(r"[\[\]{}]|[^\s\[\]{}]+")
_REQUEST = re.compile(r"r(-?[0-9]{1,18}):q([0-9]{1,10})c(-?[0-9]{1,10})(?:e([0-9]{1,10}))?(:full)?")
_AGAINST, _THEN, _SAME = "against", "then", "same"
_LENGTH = Whole()
# Of a comparison itself, beside those of its problems.
_OF_COMPARISON: Mapping[str, Kind] = {"last_rows": Whole(), "but_nan": Flag()}


def told(comparison: Comparison) -> str:
    """A comparison as text, which `parsed` reads back as an equal one.

    Args:
        comparison: of one operation, with a problem on its left at least.
    """
    problems = (*comparison.left, *comparison.right)
    operation = operation_of(problems[0])
    form = FORMS[operation]
    settings = [form.settings_of(problem) for problem in problems]
    shared = {name: value for name, value in settings[0].items() if all(_has(each, name, value) for each in settings)}
    words = [operation, *_told_settings(form.kinds, shared, form.defaults)]
    if comparison.last_rows:
        words.append(f"last_rows={comparison.last_rows}")
    if comparison.but_nan:
        words.append("but_nan=true")
    before: tuple[Request, ...] | None = None
    for place, (problem, values) in enumerate(zip(problems, settings, strict=True)):
        if place:
            words.append(_AGAINST if place == len(comparison.left) else _THEN)
        requests = f"[{' '.join(map(str, problem.requests))}]"
        step = _SAME if problem.requests == before else requests
        own = {name: value for name, value in values.items() if name not in shared}
        changed = _told_settings(form.kinds, own, form.defaults)
        words.append(step + (f"{{{' '.join(changed)}}}" if changed else ""))
        before = problem.requests
    return " ".join(words)


def _has(settings: Mapping[str, object], name: str, value: object) -> bool:
    return name in settings and settings[name] == value


def _told_settings(
    kinds: Mapping[str, Kind], settings: Mapping[str, object], defaults: Mapping[str, object]
) -> list[str]:
    """Each setting that differs from its default, as a word."""
    return [
        f"{name}={kinds[name].written(value)}"
        for name, value in settings.items()
        if name not in defaults or value != defaults[name]
    ]


def parsed(text: str) -> Comparison:
    """The comparison of a text.

    Raises:
        UnusableInput: it is none; the message names the piece that does not fit, and what would.
    """
    return _Parser(text).comparison()


class _Parser:
    """Reads one text from its beginning to its end."""

    def __init__(self, text: str) -> None:
        self._words: list[str] = _WORD.findall(text)
        self._place = 0
        operation = self._next()
        if operation not in FORMS:
            raise _unusable(operation, f"the name of an operation: {', '.join(FORMS)}")
        self._form: Form = FORMS[operation]
        self._kinds = self._form.kinds

    def comparison(self) -> Comparison:
        """All of it."""
        shared = self._settings({**self._kinds, **_OF_COMPARISON})
        own = {name: shared.pop(name) for name in _OF_COMPARISON if name in shared}
        left = self._side(shared, None)
        right = self._side(shared, left[-1].requests) if self._takes(_AGAINST) else ()
        if self._place < len(self._words):
            raise _unusable(self._next(), f"the end, {_THEN!r} and a step, or once {_AGAINST!r} and a side")
        return Comparison(left, right, **own)  # type: ignore[arg-type]

    def _side(self, shared: dict[str, object], before: tuple[Request, ...] | None) -> tuple[AnyProblem, ...]:
        steps = [self._step(shared, before)]
        while self._takes(_THEN):
            steps.append(self._step(shared, steps[-1].requests))
        return tuple(steps)

    def _step(self, shared: dict[str, object], before: tuple[Request, ...] | None) -> AnyProblem:
        requests = self._requests(before)
        own: dict[str, object] = {}
        if self._takes("{"):
            own = self._settings(self._kinds)
            if not self._takes("}"):
                raise _unusable(self._next(), "a setting such as page_seed=1, or '}'")
        for name in own:
            if name in shared:
                raise UnusableInput(
                    f"{shown(name)} is set for every step and for one again; it may be set in one place"
                )
        settings = {**shared, **own}
        for name in self._form.required:
            if name not in settings:
                raise UnusableInput(f"the setting {name!r} is absent; it must be {self._kinds[name].accepted}")
        try:
            return self._form.problem(settings, requests)
        except ValueError as error:
            raise UnusableInput(f"its settings do not fit together: {error}") from error

    def _requests(self, before: tuple[Request, ...] | None) -> tuple[Request, ...]:
        if before is not None and self._takes(_SAME):
            return before
        if not self._takes("["):
            same = "" if before is None else f", or {_SAME!r}"
            raise _unusable(self._next(), f"'[' and the requests of a step, such as [r1:q4c128]{same}")
        requests = []
        while not self._takes("]"):
            requests.append(_request(self._next()))
        return tuple(requests)

    def _settings(self, kinds: Mapping[str, Kind]) -> dict[str, object]:
        """Settings up to the next word that is none."""
        found: dict[str, object] = {}
        while self._place < len(self._words) and "=" in self._words[self._place]:
            name, _, word = self._next().partition("=")
            if name not in kinds:
                raise _unusable(name, f"the name of a setting: {', '.join(kinds)}")
            if name in found:
                raise UnusableInput(f"{shown(name)} is set twice; each setting may be set once")
            try:
                found[name] = kinds[name].read(word)
            except (ValueError, LookupError):
                raise UnusableInput(f"{name} is {shown(word)}; it must be {kinds[name].accepted}") from None
        return found

    def _takes(self, word: str) -> bool:
        """Whether the next word is this one, which is then read."""
        taken = self._place < len(self._words) and self._words[self._place] == word
        self._place += taken
        return taken

    def _next(self) -> str:
        """The next word; empty at the end, of which nothing is read."""
        if self._place == len(self._words):
            return ""
        self._place += 1
        return self._words[self._place - 1]


def _request(word: str) -> Request:
    parts = _REQUEST.fullmatch(word)
    if parts is None:
        raise _unusable(word, "a request such as r1:q4c128, r1:q4c0e7 or r1:q4c128:full, or ']'")
    key, query_len, context_len, encoder_len, full = parts.groups()
    try:
        lengths = [_LENGTH.read(length) for length in (query_len, context_len.removeprefix("-"), encoder_len or "0")]
        return Request(int(key), lengths[0], int(context_len), lengths[2], causal=not full)  # type: ignore[arg-type]
    except ValueError:
        accepted = f"lengths must be from 0 to {_LENGTH.most}, and a context no less than -1 times its queries"
        raise UnusableInput(f"{shown(word)} is no request; {accepted}") from None


def _unusable(word: str, accepted: str) -> UnusableInput:
    found = f"{shown(word)} stands" if word else "the text ends"
    return UnusableInput(f"where {found}, there must be {accepted}")
