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
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, NoReturn, TypeVar

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

DataclassT = TypeVar("DataclassT", bound="DataclassInstance")
# Makes a parsed value what a field of some name holds.
_Converter = Callable[[object, str], object]

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


def _refuse_constant(name: str) -> NoReturn:
    raise Malformed(f"{name} is not JSON; a number that is not finite must be one of the strings inf, -inf and nan")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Malformed(f"field {shown(twice)} occurs twice; each may occur once")
    return values


_JSON = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_without_duplicates)


def parse_object(line: bytes) -> dict[str, Any]:
    """Parses one line as a JSON object.

    Raises:
        Malformed: the line is not strict JSON in UTF-8, or not an object.
    """
    if len(line) > _LONGEST:
        raise Malformed(f"it has {len(line):,} bytes; it must be one JSON object of at most {_LONGEST:,}")
    try:
        value = _JSON.decode(line.decode())
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
    fields = _fields(kind)
    for name in values:
        if name not in fields.converters:
            raise Malformed(f"field {shown(name)} is unknown; known are {', '.join(fields.types)}")
    for name in fields.required:
        if name not in values:
            raise Malformed(f"field {name!r} is absent; it must be {_accepted(fields.types[name])}")
    converted = {name: fields.converters[name](value, name) for name, value in values.items()}
    try:
        return kind(**converted)
    except ValueError as error:  # of a dataclass that looks at its own values
        raise Malformed(str(error)) from error


@dataclasses.dataclass(frozen=True)
class _Fields:
    """The fields of a dataclass.

    Attributes:
        types: by name.
        required: names of those without a default.
        converters: what makes a value of each, by name.
    """

    types: Mapping[str, Any]
    required: tuple[str, ...]
    converters: Mapping[str, _Converter]


@functools.cache
def _fields(kind: type[DataclassInstance]) -> _Fields:
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    required = [
        field.name
        for field in fields
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    known = {field.name: hints[field.name] for field in fields}
    return _Fields(known, tuple(required), {name: _converter(of_field) for name, of_field in known.items()})


@functools.cache
def _converter(kind: Any) -> _Converter:  # noqa: ANN401 -- a type, or a generic one
    """What makes a value an instance of a type. A file has thousands of rows, so each type is looked at once."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return functools.partial(_optional, kind, _converter(arguments[0]))
    if origin is tuple:
        return functools.partial(_listed, kind, _converter(arguments[0]))
    if origin is Mapping:
        return functools.partial(_mapped, kind, _converter(arguments[1]))
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return functools.partial(_nested, kind)
    if kind is float:
        return _number
    if issubclass(kind, Enum):
        return functools.partial(_member, kind, {member.value: member for member in kind})
    return functools.partial(_plain, kind)


def _refuse(kind: object, value: object, name: str) -> NoReturn:
    raise Malformed(f"field {shown(name)} is {shown(value)}; it must be {_accepted(kind)}")


def _optional(kind: object, convert: _Converter, value: object, name: str) -> object:
    if value is None:
        return None
    if isinstance(value, dict) and dataclasses.is_dataclass(typing.get_args(kind)[0]):
        return convert(value, name)
    try:
        return convert(value, name)
    except Malformed:
        raise Malformed(f"field {shown(name)} is {shown(value)}; it must be {_accepted(kind)}") from None


def _listed(kind: object, convert: _Converter, value: object, name: str) -> object:
    if not isinstance(value, list):
        _refuse(kind, value, name)
    return tuple([convert(entry, f"{name}[{i}]") for i, entry in enumerate(value)])


def _mapped(kind: object, convert: _Converter, value: object, name: str) -> object:
    if not isinstance(value, dict):
        _refuse(kind, value, name)
    return {key: convert(entry, f"{name}.{key}") for key, entry in value.items()}


def _member(kind: type[Enum], members: Mapping[str, Enum], value: object, name: str) -> object:
    if not isinstance(value, str) or value not in members:
        _refuse(kind, value, name)
    return members[value]


def _plain(kind: type, value: object, name: str) -> object:
    # Not isinstance: True is an int to Python and not to JSON.
    if type(value) is not kind or (kind is int and value not in WHOLE_NUMBERS):
        _refuse(kind, value, name)
    return value


def _nested(kind: type[DataclassT], value: object, name: str) -> DataclassT:
    if not isinstance(value, dict):
        _refuse(kind, value, name)
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
    _refuse(float, value, name)


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
    return f"an object with {', '.join(_fields(kind).types)}"
