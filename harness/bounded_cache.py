"""What was made last, kept up to a number of entries and of bytes: at full size a few results fill a GPU's memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)
ValueT = TypeVar("ValueT")


# All that there are: whoever runs out of memory needs whatever any of them keeps.
_caches: weakref.WeakSet[BoundedCache[Any, Any]] = weakref.WeakSet()


def forget_everything() -> None:
    """Gives up the values of every cache, so that their memory is free where nobody else holds them."""
    for cache in _caches:
        cache.forget()


class BoundedCache(Generic[KeyT, ValueT]):
    """Keeps what was asked for last. A value larger than all of its bytes is made anew each time."""

    def __init__(self, max_entries: int, max_bytes: int, nbytes: Callable[[ValueT], int]) -> None:
        """Sets the bounds.

        Args:
            max_entries: kept at most, since small values cost more than their bytes.
            max_bytes: of the values together.
            nbytes: of one value.
        """
        self._max_entries, self._max_bytes, self._nbytes = max_entries, max_bytes, nbytes
        self._kept: dict[KeyT, ValueT] = {}
        self._bytes = 0
        _caches.add(self)

    def forget(self) -> None:
        """Gives up all values."""
        self._kept.clear()
        self._bytes = 0

    @property
    def kept_bytes(self) -> int:
        """Bytes of all values that are kept."""
        return self._bytes

    def get(self, key: KeyT, make: Callable[[], ValueT]) -> ValueT:
        """The value of a key, made now or earlier.

        Args:
            key: names the value.
            make: makes it.
        """
        if key in self._kept:
            # Behind all others, which are given up first.
            self._kept[key] = self._kept.pop(key)
            return self._kept[key]
        value = make()
        self.put(key, value)
        return value

    def put(self, key: KeyT, value: ValueT) -> None:
        """Keeps a value, in the place of another one of that key.

        Args:
            key: names the value.
            value: forgotten at once if it is larger than all bytes.
        """
        if key in self._kept:
            self._bytes -= self._nbytes(self._kept.pop(key))
        size = self._nbytes(value)
        if size <= self._max_bytes:
            self._kept[key] = value
            self._bytes += size
            while len(self._kept) > self._max_entries or self._bytes > self._max_bytes:
                self._bytes -= self._nbytes(self._kept.pop(next(iter(self._kept))))

    def peek(self, key: KeyT) -> ValueT | None:
        """The value of a key if it is kept.

        Args:
            key: names the value.
        """
        return self._kept.get(key)
