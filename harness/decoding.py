"""JSON made into dataclasses, strictly: what does not fit is told by field, value and what would be accepted."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import reprlib
import sys
import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any, NoReturn, TypeVar

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

DataclassT = TypeVar("DataclassT", bound="DataclassInstance")

# What no counter, seed or distance of ours exceeds, and every reader's number can hold.
WHOLE_NUMBERS = range(1 - 2**64, 2**64)
# Of one line, in bytes. Merged runs have the longest, with a header of each of their shards.
_LONGEST = 1 << 24
_NON_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_WORDS: Mapping[object, str] = {
    str: "a string",
    int: "a whole number of at most 64 bits",
    float: "a number, or one of the strings inf, -inf and nan",
    bool: "true or false",
}
_SHORTENED = reprlib.Repr()
_SHORTENED.maxstring = _SHORTENED.maxother = 80


class Malformed(ValueError):
    """A value that does not fit; its text is a clause that names the value and what would be accepted."""


def shown(value: object) -> str:
    """A value as it is shown in a message: on one line and never long."""
    return _SHORTENED.repr(value)


def parse_object(line: bytes) -> dict[str, Any]:
    """Parses one line as a JSON object.

    Raises:
        Malformed: the line is not strict JSON in UTF-8, or not an object.
    """
    if len(line) > _LONGEST:
        raise Malformed(f"it has {len(line):,} bytes; it must be one JSON object of at most {_LONGEST:,}")
    try:
        value = json.loads(line.decode(), parse_constant=_refuse_constant, object_pairs_hook=_without_duplicates)
    except Malformed:
        raise
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{shown(line.decode(errors='replace'))} is not JSON; it must be one JSON object") from error
    if not isinstance(value, dict):
        raise Malformed(f"{shown(value)} is not an object; it must be one JSON object")
    return value


def decode(kind: type[DataclassT], values: Mapping[str, object]) -> DataclassT:
    """Makes a dataclass from a parsed JSON object; fields with a default may be absent.

    Args:
        kind: a dataclass whose fields are of JSON's types, enumerations of strings, dataclasses, and tuples, mappings
            and optional values of these.
        values: field values by name.

    Raises:
        Malformed: a field is absent, unknown or of another type.
    """
    try:
        return _decoded(kind, values)
    except RecursionError:  # a header with those of its shards, with those of theirs
        raise Malformed("it holds objects within objects without end; it must be as samebits writes it") from None


def _decoded(kind: type[DataclassT], values: Mapping[str, object]) -> DataclassT:
    known, required = _fields(kind)
    for name in values:
        if name not in known:
            raise Malformed(f"field {shown(name)} is unknown; known are {', '.join(known)}")
    for name in required:
        if name not in values:
            raise Malformed(f"field {name!r} is absent; it must be {_accepted(known[name])}")
    converted = {name: _converted(known[name], value, name) for name, value in values.items()}
    try:
        return kind(**converted)
    except ValueError as error:  # of a dataclass that looks at its own values
        raise Malformed(str(error)) from error


@functools.cache
def _fields(kind: type[DataclassInstance]) -> tuple[dict[str, Any], list[str]]:
    """Types of a dataclass's fields by name, and the names of those without a default."""
    types_by_name = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    required = [
        field.name
        for field in fields
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    return {field.name: types_by_name[field.name] for field in fields}, required


def _refuse_constant(name: str) -> NoReturn:
    raise Malformed(f"{name} is not JSON; a number that is not finite must be one of the strings inf, -inf and nan")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Malformed(f"field {shown(twice)} occurs twice; each may occur once")
    return values


def _converted(kind: object, value: object, name: str) -> object:
    """`value` as an instance of the type `kind`; `name` is its field's."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        if dataclasses.is_dataclass(arguments[0]) and isinstance(value, dict):
            return _converted(arguments[0], value, name)
        try:
            return None if value is None else _converted(arguments[0], value, name)
        except Malformed:
            raise Malformed(f"field {shown(name)} is {shown(value)}; it must be {_accepted(kind)}") from None
    if origin is tuple and isinstance(value, list):
        return tuple(_converted(arguments[0], entry, f"{name}[{i}]") for i, entry in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {key: _converted(arguments[1], entry, f"{name}.{key}") for key, entry in value.items()}
    if isinstance(kind, type):
        if dataclasses.is_dataclass(kind) and isinstance(value, dict):
            return _nested(kind, value, name)
        if issubclass(kind, Enum) and isinstance(value, str) and value in {member.value for member in kind}:
            return kind(value)
        if kind is float:
            return _number(value, name)
        # Not isinstance: True is an int to Python and not to JSON.
        if type(value) is kind and (kind is not int or value in WHOLE_NUMBERS):
            return value
    raise Malformed(f"field {shown(name)} is {shown(value)}; it must be {_accepted(kind)}")


def _nested(kind: type[DataclassT], value: Mapping[str, object], name: str) -> DataclassT:
    try:
        return _decoded(kind, value)
    except Malformed as error:
        told = str(error)
        raise Malformed(told if told.startswith("in ") else f"in {shown(name)}, {told}") from error


def _number(value: object, name: str) -> float:
    if isinstance(value, str) and value in _NON_FINITE:
        return _NON_FINITE[value]
    # A whole number may be beyond every float, and a literal such as 1e999 is read as infinite.
    if isinstance(value, (int, float)) and type(value) is not bool and abs(value) <= sys.float_info.max:
        return float(value)
    raise Malformed(f"field {shown(name)} is {shown(value)}; it must be {_accepted(float)}")


def _accepted(kind: object) -> str:
    """What a field of the type `kind` accepts, in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return f"{_accepted(arguments[0])}, or null"
    if origin is tuple:
        return f"a list, each entry {_accepted(arguments[0])}"
    if origin is Mapping:
        return f"an object, each value {_accepted(arguments[1])}"
    if kind in _WORDS:
        return _WORDS[kind]
    assert isinstance(kind, type), f"{kind} is no type that a field may have"
    if issubclass(kind, Enum):
        return f"one of {', '.join(str(member.value) for member in kind)}"
    assert dataclasses.is_dataclass(kind), f"{kind} is no type that a field may have"
    return f"an object with {', '.join(_fields(kind)[0])}"
