"""Messages between two processes: bytes behind a header, told from whatever else is written into a pipe."""

from __future__ import annotations

import os
import struct

_HEADER = struct.Struct("!8sQ")
_MAGIC = b"samebits"
_PIECE = 1 << 16


class Garbled(ValueError):
    """What came is no message: somebody else wrote into the pipe."""


class FrameReader:
    """Puts messages together from the pieces in which they come."""

    def __init__(self) -> None:
        """Has read nothing yet."""
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Takes the next piece."""
        self._buffer += data

    def next(self) -> bytes | None:
        """The next whole message; None until more comes.

        Raises:
            Garbled: what came is no message.
        """
        begun = bytes(self._buffer[: len(_MAGIC)])
        if not _MAGIC.startswith(begun):
            raise Garbled(f"{begun!r} is no message")
        if len(self._buffer) < _HEADER.size:
            return None
        _, size = _HEADER.unpack_from(self._buffer)
        end = _HEADER.size + size
        if len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[_HEADER.size : end])
        del self._buffer[:end]
        return payload


def write_frame(pipe: int, payload: bytes) -> None:
    """Writes one message, all of it.

    Args:
        pipe: a file descriptor that blocks.
        payload: of the message.
    """
    rest = memoryview(_HEADER.pack(_MAGIC, len(payload)) + payload)
    while rest:
        rest = rest[os.write(pipe, rest) :]


def read_frame(pipe: int, reader: FrameReader) -> bytes | None:
    """Waits for one message; None when no more can come.

    Args:
        pipe: a file descriptor that blocks.
        reader: of this pipe, which keeps what came too early.

    Raises:
        Garbled: what came is no message.
    """
    while (payload := reader.next()) is None:
        data = os.read(pipe, _PIECE)
        if not data:
            return None
        reader.feed(data)
    return payload
