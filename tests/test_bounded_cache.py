"""What was made last is kept, and no more of it than may be."""

from __future__ import annotations

from samebits.harness.bounded_cache import BoundedCache


class Maker:
    """Makes bytes and remembers for which keys."""

    def __init__(self, max_entries: int = 100, max_bytes: int = 100) -> None:
        self.cache: BoundedCache[str, bytes] = BoundedCache(max_entries, max_bytes, len)
        self.made: list[str] = []

    def get(self, key: str, size: int = 10) -> bytes:
        def make() -> bytes:
            self.made.append(key)
            return bytes(size)

        return self.cache.get(key, make)


def test_a_value_is_made_once() -> None:
    maker = Maker()
    assert maker.get("a") is maker.get("a"), "the second time another value came"
    assert maker.made == ["a"]


def test_what_was_asked_for_longest_ago_goes_first() -> None:
    maker = Maker(max_entries=2)
    for key in ("a", "b", "a", "c", "a", "b"):
        maker.get(key)
    assert maker.made == ["a", "b", "c", "b"], "b was asked for before a, and must have gone when c came"


def test_bytes_are_bounded() -> None:
    maker = Maker(max_bytes=25)
    for key in ("a", "b", "c"):
        maker.get(key)
        assert maker.cache.kept_bytes <= 25, f"{maker.cache.kept_bytes} bytes are kept behind {key}"
    maker.get("b")
    assert maker.made == ["a", "b", "c"], "more was given up than had to be"


def test_what_is_larger_than_the_bound_drives_nothing_out() -> None:
    maker = Maker(max_bytes=25)
    for key, size in (("a", 10), ("large", 26), ("a", 10), ("large", 26)):
        assert len(maker.get(key, size)) == size
    assert maker.made == ["a", "large", "large"]
