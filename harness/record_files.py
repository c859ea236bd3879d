"""Files of records: written by one process as cells finish, read back with every value checked."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, TextIO

from samebits.harness.decoding import DataclassT, Malformed, decode, parse_object, shown
from samebits.harness.records import (
    RECORDS_FILE,
    SCHEMA_VERSION,
    TIERS,
    Record,
    Run,
    RunEnd,
    RunHeader,
    UnusableInput,
)

# What files of gzip, xz, zstd and zip begin with, and no JSON does.
_COMPRESSED = (b"\x1f\x8b", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")


class Written(Protocol):
    """What a file of records holds: something that makes a line of itself."""

    def to_line(self) -> str:
        """One line of JSON, without its line break."""


class RecordWriter:
    """Writes a run's records, one line as each cell finishes, so that a run that dies leaves what it did.

    As a context manager it closes the file, which ends as a finished run does where nothing was raised.

    Attributes:
        path: of the file.
    """

    def __init__(self, directory: Path, header: Written, name: str = RECORDS_FILE) -> None:
        """Creates the directory where it is absent, and the file with its header.

        Args:
            directory: of the file.
            header: its first line.
            name: of the file.

        Raises:
            UnusableInput: the directory cannot be written, or already holds the records of a run.
        """
        self.path = directory / name
        self._cells = 0
        self._stream = _create(self.path)
        self._write(header.to_line())

    @classmethod
    def in_place_of(cls, path: Path, header: RunHeader, records: Iterable[Record]) -> RecordWriter:
        """Goes on with records that this process holds, under another header; the file is replaced whole or not at all.

        Args:
            path: of the file.
            header: its new one.
            records: that the file holds.

        Raises:
            UnusableInput: they cannot be written; what was there is left as it was.
        """
        # Of a name that only who holds the records writes, so that a process that is killed here leaves one of them.
        draft = path.with_name(f".{path.name}.resumed")
        writer = cls.__new__(cls)
        writer.path, writer._cells = path, 0
        try:
            writer._stream = draft.open("w", encoding="ascii", newline="\n")
            _hold(writer._stream)
            try:
                writer._write(header.to_line())
                for record in records:
                    writer.write(record)
                draft.replace(path)
            except BaseException:
                with contextlib.suppress(OSError):  # it closes what could not be written
                    writer._stream.close()
                draft.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise unwritable(path, error) from error
        return writer

    def write(self, record: Written) -> None:
        """Adds a finished cell, or whatever else the file holds.

        Raises:
            UnusableInput: the file cannot be written any more, for example because the disk is full.
        """
        self._write(record.to_line())
        self._cells += 1

    def close(self, finished: bool = True) -> None:
        """Closes the file; nothing can be added afterwards.

        Args:
            finished: whether the run did all that it set out to do; its records are told as cut off otherwise.

        Raises:
            UnusableInput: the file cannot be written any more.
        """
        if self._stream.closed:
            return
        try:
            if finished:
                self._write(RunEnd(self._cells).to_line())
        finally:
            self._close()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(finished=kind is None)

    def _close(self) -> None:
        try:
            self._stream.close()
        except OSError as error:  # closing writes what could not be written before
            raise unwritable(self.path, error) from error

    def _write(self, line: str) -> None:
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except OSError as error:
            raise unwritable(self.path, error) from error


def check_results(directory: Path, name: str = RECORDS_FILE) -> None:
    """Finds out before a run whether its records can go into a directory, which is created where it is absent.

    Args:
        directory: for the records.
        name: of their file.

    Raises:
        UnusableInput: the directory cannot be written, or already holds the records of a run.
    """
    path = directory / name
    _create(path).close()
    path.unlink()


def _create(path: Path) -> TextIO:
    """Creates a file of records and its directory, and never opens one that exists."""
    directory = path.parent
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UnusableInput(f"{str(directory)!r} is a file; give a directory for the results") from error
    except OSError as error:
        raise unwritable(directory, error) from error
    try:
        stream = path.open("x", encoding="ascii", newline="\n")
        _hold(stream)
        return stream
    except FileExistsError as error:
        raise UnusableInput(
            f"{str(path)!r} holds the records of another run; give a new directory, or remove that file"
        ) from error
    except OSError as error:
        raise unwritable(directory, error) from error


def hold_records(path: Path) -> IO[bytes]:
    """Takes a file of records for this process: no other can take it until the stream is closed, or the process ends.

    Raises:
        UnusableInput: there is no such file, it cannot be written, or another process has it.
    """
    try:
        stream = path.open("r+b")
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise UnusableInput(
            f"there are no records at {str(path)!r}; give the directory of a run that has some"
        ) from error
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Who had it may have put another file in its place meanwhile.
        if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
            return stream
        told = "another process writes it"
    except BlockingIOError:
        told = "another process writes it"
    except OSError as error:
        told = f"whether another process writes it cannot be known ({error.strerror})"
    stream.close()
    raise UnusableInput(f"{str(path)!r} cannot be resumed: {told}; wait for it, or give another directory")


def _hold(stream: TextIO) -> None:
    """Keeps other processes from resuming a run that this one still writes, where the file system can."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise


def unwritable(path: Path, error: OSError) -> UnusableInput:
    """The sentence for a place that cannot be written."""
    reason = error.strerror or type(error).__name__
    return UnusableInput(f"cannot write {str(path)!r} ({reason}); give a place that can be written")


def read_run(path: Path) -> Run:
    """Reads a run's records.

    Args:
        path: the file, or the directory that holds it as `records.jsonl`.

    Raises:
        UnusableInput: there is no such file, or a line of it is not what a run writes. A file that was cut off is no
            such case: the cells that it holds whole are read, and `Run.truncated` tells.
    """
    file = records_file(path)
    lines = JsonLines.read(file, "the records of a run", f"a directory with {RECORDS_FILE}, or that file")
    header = lines.header("run", RunHeader)
    records: dict[str, Record] = {}
    cells = list(lines.body())
    end = cells.pop() if cells and cells[-1].values.get("kind") == "end" else None
    for line in cells:
        record = line.decode("cell", Record)
        if record.cell_id in records:
            raise line.unusable(f"cell_id {shown(record.cell_id)} occurs twice; each may occur once")
        records[record.cell_id] = record
    if end is not None:
        told = end.decode("end", RunEnd).cells
        if told != len(records):
            raise end.unusable(f"field 'cells' is {told}; it must be the number of cells before it, {len(records)}")
    return Run(header, tuple(records.values()), truncated=end is None or lines.truncated)


def records_file(path: Path) -> Path:
    """The file of a run's records, given that file or its directory."""
    # Unlike pathlib, os.path answers for every name, too long ones and such with a NUL among them.
    return path / RECORDS_FILE if os.path.isdir(path) else path


def parse_record(line: str) -> Record:
    """Reads what `Record.to_line` wrote.

    Raises:
        UnusableInput: it is not a record.
    """
    try:
        return _decode(parse_object(line.encode(errors="replace")), "cell", Record)
    except Malformed as error:
        raise UnusableInput(f"a line of records is unusable: {error}") from error


@dataclass(frozen=True)
class Line:
    """One line of a file: a JSON object and its place.

    Attributes:
        file: the file's path.
        number: of the line, from 1.
        values: its fields, `kind` among them.
    """

    file: Path
    number: int
    values: Mapping[str, Any]

    def decode(self, kind: str, dataclass_type: type[DataclassT]) -> DataclassT:
        """The line as a dataclass.

        Raises:
            UnusableInput: the line is of another kind, or a field of it does not fit.
        """
        try:
            return _decode(self.values, kind, dataclass_type)
        except Malformed as error:
            raise self.unusable(str(error)) from error

    def unusable(self, complaint: str) -> UnusableInput:
        """The sentence for a complaint about this line."""
        return UnusableInput(f"{str(self.file)!r}, line {self.number}: {complaint}")


@dataclass(frozen=True)
class JsonLines:
    """A file of JSON objects, one to a line, the first of which says what the file is.

    Attributes:
        file: its path.
        lines: all lines that are whole.
        truncated: whether the last line was cut off, as by a process that was killed while it wrote.
    """

    file: Path
    lines: tuple[Line, ...]
    truncated: bool

    @classmethod
    def read(cls, file: Path, content: str, accepted: str = "") -> JsonLines:
        """Reads a file.

        Args:
            file: its path.
            content: what it should hold, in words.
            accepted: what the user may give for it, in words; empty for the file alone.

        Raises:
            UnusableInput: the file is absent, cannot be read, or holds a line that is no JSON object.
        """
        wanted = accepted or f"a file that holds {content}"
        try:
            # A pipe may have no end, and nobody who writes into it.
            if not (os.path.isdir(file) or stat.S_ISREG(file.stat().st_mode)):
                raise UnusableInput(f"{str(file)!r} is a pipe or a device; give {wanted}")
            data = file.read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
            if isinstance(error, UnusableInput):
                raise
            reason = getattr(error, "strerror", None) or str(error)
            raise UnusableInput(f"cannot read {str(file)!r} ({reason}); give {wanted}") from error
        if data.startswith(_COMPRESSED):
            raise UnusableInput(f"{str(file)!r} is compressed; unpack it first, and give {wanted}")
        *whole, rest = data.split(b"\n")
        lines = [_parsed(file, number, line) for number, line in enumerate(whole, start=1)]
        truncated = False
        if rest:
            try:
                lines.append(_parsed(file, len(whole) + 1, rest))
            except UnusableInput:
                # A proper prefix of a JSON object is never JSON itself, so this is a line that was cut off.
                truncated = rest.startswith(b"{")
                if not truncated:
                    raise
        if not lines:
            state = "is cut off inside its first line" if truncated else "is empty"
            raise UnusableInput(f"{str(file)!r} {state}; it must hold {content}")
        return cls(file, tuple(lines), truncated)

    @property
    def kind(self) -> object:
        """What the first line says the file is."""
        return self.lines[0].values.get("kind")

    def header(self, kind: str, dataclass_type: type[DataclassT]) -> DataclassT:
        """The first line as a dataclass.

        Raises:
            UnusableInput: it is of another kind, or a field of it does not fit.
        """
        return self.lines[0].decode(kind, dataclass_type)

    def body(self) -> Iterator[Line]:
        """All lines after the first."""
        return iter(self.lines[1:])


def _parsed(file: Path, number: int, line: bytes) -> Line:
    try:
        return Line(file, number, parse_object(line))
    except Malformed as error:
        raise UnusableInput(f"{str(file)!r}, line {number}: {error}") from error


def _decode(values: Mapping[str, Any], kind: str, dataclass_type: type[DataclassT]) -> DataclassT:
    """A line's object as a dataclass, after what tells one line from another."""
    fields = dict(values)
    found = fields.pop("kind", None)
    if found != kind:
        raise Malformed(f"field 'kind' is {shown(found)}; it must be {kind!r}")
    if "schema_version" in dataclass_type.__dataclass_fields__:
        version = fields.get("schema_version")
        if type(version) is not int or version != SCHEMA_VERSION:
            older = type(version) is int and 0 < version < SCHEMA_VERSION
            how = f", so make the file again: version {version} is an older samebits'" if older else ""
            raise Malformed(f"field 'schema_version' is {shown(version)}; it must be {SCHEMA_VERSION}{how}")
    if "tier" in fields and fields["tier"] not in TIERS:
        raise Malformed(f"field 'tier' is {shown(fields['tier'])}; it must be one of {', '.join(TIERS)}")
    return decode(dataclass_type, fields)
