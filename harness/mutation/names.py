"""Names for names, in whatever language a source is written: the other extremum, the narrower type, the next stride."""

from __future__ import annotations

import re
from collections.abc import Mapping

EXTREMA: Mapping[str, str] = {
    name: other
    for pair in (("min", "max"), ("minimum", "maximum"), ("amin", "amax"))
    for name, other in (pair, pair[::-1])
}
NARROWER: Mapping[str, str] = {
    "float32": "float16",
    "float64": "float32",
    "int64": "int32",
    "double": "float",
    "uint32_t": "uint16_t",
}
_STRIDE = re.compile(r"\b\w*stride\w*\b")
_WORDS = re.compile(r"[A-Za-z0-9]+")


def neighbouring_strides(source: str) -> Mapping[str, str]:
    """For each name of a stride in a source, the next one that differs from it in one word: its axis or its tensor.

    Args:
        source: of any language with words in names kept apart by underscores.
    """
    names = list(dict.fromkeys(name for name in _STRIDE.findall(source) if len(_WORDS.findall(name)) > 1))
    neighbours = {}
    for place, name in enumerate(names):
        others = [other for other in names[place + 1 :] + names[:place] if _differ_in_one_word(name, other)]
        if others:
            neighbours[name] = others[0]
    return neighbours


def _differ_in_one_word(name: str, other: str) -> bool:
    ours, theirs = _WORDS.findall(name.lower().replace("_", " ")), _WORDS.findall(other.lower().replace("_", " "))
    return len(ours) == len(theirs) and sum(one != two for one, two in zip(ours, theirs, strict=True)) == 1
