"""Hypothesis strategies for everything that is read: valid values of each field, and what a hostile file holds."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

from hypothesis import strategies as st

from samebits.harness.decoding import WHOLE_NUMBERS
from samebits.harness.explanation import Addends, Explanation, Side, Sum
from samebits.harness.records import SCHEMA_VERSION, TIERS

# Any character, lone surrogates too: a foreign library's message may hold what it likes.
TEXTS = st.text(st.characters(codec=None), max_size=20)
HOSTILE_TEXTS = st.sampled_from(
    [
        *("", "\x00", "\ud800", "=1+1", "|", "`", "\n", "%s", "{{ 7*7 }}", "<script>alert(1)</script>", "x" * 300, "'"),
        *("[r1:q1c1] against [r1:q1c0]", "[r1:q999999999c999999999e9]", "[r1:q4c-9:full] then [r1:q1c1 9 more]"),
        *(f"r1:q{'9' * 400}c1", "[r1:q1c1", "batch_invariant", "CONTROL", "../../etc", "\u202e", "https://a.example/"),
    ]
)
WHOLE = st.integers(WHOLE_NUMBERS[0], WHOLE_NUMBERS[-1])
_NAMED: Mapping[str, st.SearchStrategy[Any]] = {
    "tier": st.sampled_from(TIERS),
    "schema_version": st.just(SCHEMA_VERSION),
}


def of_dataclass(kind: type[Any], texts: st.SearchStrategy[str] = TEXTS, depth: int = 2) -> st.SearchStrategy[Any]:
    """Instances of a dataclass that a reader accepts, of every field's type.

    Args:
        kind: of a line, or of what lies in one.
        texts: what its strings are.
        depth: how many dataclasses may lie in one another.
    """
    hints = typing.get_type_hints(kind)
    return st.builds(
        kind,
        **{
            field.name: _NAMED[field.name] if field.name in _NAMED else of_type(hints[field.name], texts, depth)
            for field in dataclasses.fields(kind)
        }
        | _fitting(kind, texts, max(0, depth - 1)),
    )


def _fitting(kind: type[Any], texts: st.SearchStrategy[str], depth: int) -> dict[str, st.SearchStrategy[Any]]:
    """Fields that take less than their types do."""
    if kind is Sum:
        return {"keys": st.integers(1, WHOLE_NUMBERS[-1]), "left_out": st.integers(0, WHOLE_NUMBERS[-1])}
    if kind is Addends:
        rounds = st.lists(of_dataclass(Sum, texts, depth), min_size=1, max_size=3).map(tuple)
        return {"times": st.integers(1, 1000), "round": rounds}
    if kind is Explanation:
        side = of_dataclass(Side, texts, depth)
        ulps = st.dictionaries(texts, st.integers(1, WHOLE_NUMBERS[-1]), max_size=3)
        return {"sides": st.just(()) | st.tuples(side, side), "ulps": ulps}
    return {}


def of_type(kind: Any, texts: st.SearchStrategy[str], depth: int) -> st.SearchStrategy[Any]:  # noqa: ANN401 -- a type
    """Values of a field's type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    inner = [argument for argument in arguments if argument is not type(None) and argument is not Ellipsis]
    too_deep = depth == 0 and dataclasses.is_dataclass(inner[-1] if inner else kind)
    if origin is types.UnionType:
        return st.none() if too_deep else st.none() | of_type(inner[0], texts, depth)
    if origin is tuple:
        return st.just(()) if too_deep else st.lists(of_type(inner[0], texts, depth), max_size=3).map(tuple)
    if origin is Mapping:
        return st.dictionaries(texts, of_type(inner[1], texts, depth), max_size=3)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return of_dataclass(kind, texts, max(0, depth - 1))
    if issubclass(kind, Enum):
        return st.sampled_from(kind)
    return {str: texts, int: WHOLE, float: st.floats(), bool: st.booleans()}[kind]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
_HOSTILE_VALUES: tuple[object, ...] = (
    *(None, True, 0, -1, 1.5, 1e308, 2**63, 2**64, 10**30, 10**4000, "", "inf", "nan", "\ud800", "\x00", "a" * 100_000),
    *(
        [],
        {},
        [[]],
        [None],
        ["a"],
        {"a": 1},
        {"a": {}},
        {"\ud800": "\x00"},
        {"device": "a", "versions": {}, "threads": 1},
    ),
)
_HOSTILE_BYTES = (
    *(
        b"\xef\xbb\xbf",
        b"\x00",
        b"\xff",
        b"\xed\xa0\x80",
        b"\\ud800",
        b"\\u0000",
        b"\xe2\x80\xa8",
        b"\xc2\xb2",
        b"\xd9\xa3",
    ),
    *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1", b"-0", b"9" * 4000, b"9" * 5000, b"null", b"true", b"e3"),
    *(b"[" * 500, b"[" * 100_000, b'{"a":' * 400, b"]" * 400, b"{}", b"[]", b"{", b"}", b",", b":", b'"', b" " * 9999),
    *(b"\n", b"\r\n", b"\r", b'{"kind":"end","cells":0}\n', b'"kind":"run",', b'"shards":[{}],'),
    *(
        b"against",
        b"then",
        b"same",
        b"r1:q",
        b"=",
        b"mask=",
        b"1_0",
        b":full",
        b"then same{page_seed=1}",
        b"last_rows=1",
    ),
)


def _flipped(data: bytes, at: int, number: int) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << number % 8)]) + data[at + 1 :] if at < len(data) else data


def _spoilt_value(line: bytes, number: int, value: object) -> bytes:
    """A line of JSON with one value changed, left out or added, however deep it lies; others as they are."""
    try:
        whole = json.loads(line)
    except (ValueError, RecursionError):
        return line
    place = whole
    while isinstance(place, (dict, list)) and place:
        key = sorted(place)[number % len(place)] if isinstance(place, dict) else number % len(place)
        number //= max(1, len(place))
        if isinstance(place[key], (dict, list)) and place[key] and number % 2:
            place, number = place[key], number // 2
            continue
        if number % 5 == 0:
            del place[key]
        elif number % 5 == 1 and isinstance(place, dict):
            place["more"] = value
        else:
            place[key] = value
        break
    return json.dumps(whole).encode()


def _of_lines(change: Callable[[list[bytes], int, int, object], None]) -> Callable[[bytes, int, int, object], bytes]:
    def changed(data: bytes, at: int, number: int, value: object) -> bytes:
        lines = data.split(b"\n")
        change(lines, at % len(lines), number, value)
        return b"\n".join(lines)

    return changed


def _with_value(lines: list[bytes], at: int, number: int, value: object) -> None:
    lines[at] = _spoilt_value(lines[at], number, value)


# Each makes other bytes of some: of where, of a number, and of a value of JSON.
_MUTATIONS: tuple[Callable[[bytes, int, int, object], bytes], ...] = (
    lambda data, at, number, value: _flipped(data, at, number),
    lambda data, at, number, value: data[:at],
    lambda data, at, number, value: data[:at] + data[at + 1 + number % 1000 :],
    lambda data, at, number, value: data[:at] + _HOSTILE_BYTES[number % len(_HOSTILE_BYTES)] + data[at:],
    lambda data, at, number, value: data[:at] + _HOSTILE_BYTES[number % len(_HOSTILE_BYTES)] + data[at + number % 9 :],
    _of_lines(lambda lines, at, number, value: lines.insert(number % (len(lines) + 1), lines[at])),
    _of_lines(lambda lines, at, number, value: lines.__delitem__(at)),
    _of_lines(_with_value),
    _of_lines(_with_value),
)
_STEPS = st.tuples(
    st.sampled_from(_MUTATIONS),
    st.integers(0, 2**31),
    st.integers(0, 2**31),
    st.sampled_from(_HOSTILE_VALUES) | JSON_VALUES,
)


def mutated(valid: bytes) -> st.SearchStrategy[bytes]:
    """What a file may have become: flipped, cut, repeated, of other types, too deep, too large, not JSON, not UTF-8."""

    def spoilt(steps: list[tuple[Callable[[bytes, int, int, object], bytes], int, int, object]]) -> bytes:
        data = valid
        for change, place, number, value in steps:
            data = change(data, place % (len(data) + 1), number, value)
        return data

    return st.lists(_STEPS, min_size=1, max_size=4).map(spoilt)
