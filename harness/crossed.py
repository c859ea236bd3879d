"""Cases on which the options of attention meet: any two of their values in one of them, and of most options any three.

The other cases of the semantics suite vary one option at a time around a plain layer. A kernel has a path of its own
for decodes, for a window, for sinks or for pages of some size, and what one path forgets shows in none of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from samebits.backends.contract import Tiling
from samebits.backends.problem import Geometry, Layout, Mask, Problem, Request, Strides
from samebits.harness.cases import Case, numbered, requests_under
from samebits.harness.covering import Choice, Row, covering_rows, meetings_of, rows_with_every_value

# Shorter than a page of any size but 1, so that pages and tiles to its left are skipped.
_WINDOW = 11
# Padding rows too, so that there is a gap behind the last request's.
_PADDING_TOKENS = 2

# Three options meet in the default tier that have no more combinations than this: a mask and two that are on or off.
# With the next larger threes there would be half as many rows again.
_COMBINATIONS_OF_THREE = 20

# What many implementations are without is listed less often than what all have. Query heads to a key/value head, and
# key/value heads, are one option: a wrong map of heads shows only where there are several of the latter, and these meet
# every mask and batch.
OPTIONS: Mapping[str, Sequence[Hashable]] = {
    "mask": tuple(Mask),
    "heads": ((4, 2), (3, 2), (7, 2), (1, 8), (8, 1), (3, 4), (8, 2)),
    "batch": ("decode", "draft", "mixed", "edges", "splits"),
    "strides": tuple(Strides),
    "page_size": (16, 48, 1, 64, 256),
    "head_dim": (64, 96, 128, 32),
    "scale": (None, 144**-0.5, 0.25),
    "softcap": (None, None, 7.3),
    "sinks": (False, False, True),
    "encoder": (False, False, True),
    "data": ("normal", "normal", "far_scores"),
    "dtype": ("fp32", "bf16"),
}


def excluded(one: Choice, other: Choice) -> bool:
    """Whether two choices may not meet: cross-attention needs an encoder."""
    return {one, other} == {("mask", Mask.CROSS), ("encoder", False)}


@dataclass(frozen=True)
class CrossedCase(Case):
    """A case of `crossed`, small, on a batch of its own.

    Attributes:
        encoder: whether slots of some requests begin with encoder tokens that self-attention must pass over.
        strides: as the layout has them.
        data: kind of data.
    """

    encoder: bool
    strides: Strides
    data: str

    def problem(self, dtype: str, tiling: Tiling, seed: int) -> Problem:
        """The base problem for an implementation's tiling."""
        page = self.geometry.page_size
        requests = requests_under(self.mask, _BATCHES[self.batch](page, tiling))
        if self.encoder and self.mask is not Mask.CROSS:
            lengths = (7, 0, page + 1, 2, 0, 1)
            offset = zip(requests, lengths, strict=False)
            requests = [replace(request, encoder_len=length) for request, length in offset]
        layout = Layout(strides=self.strides, padding_tokens=_PADDING_TOKENS)
        return Problem(self.geometry, self.mask, dtype, tuple(requests), layout, seed, self.data)


def _decode(page: int, tiling: Tiling) -> list[Request]:
    return numbered((1, tiling.kv_split + 3), (1, page + 1), (1, page), (1, 1))


def _draft(page: int, tiling: Tiling) -> list[Request]:
    return numbered((4, tiling.kv_split + 1), (2, page + 2), (16, 21), (5, 5))


def _mixed(page: int, tiling: Tiling) -> list[Request]:
    """Decodes beside a prefill and the extension of a cached prefix by more than a tile of queries."""
    return numbered((1, tiling.kv_split + 3), (tiling.query_tile + 1, tiling.query_tile + 6), (17, 17), (1, page))


def _edges(page: int, tiling: Tiling) -> list[Request]:
    """No keys, one key, no query, and more queries than keys, which under causality by request are causal or not."""
    return numbered((1, tiling.kv_split + 1), (7, 3), (6, 2), (0, 5), (1, 0), (1, 1))


def _splits(page: int, tiling: Tiling) -> list[Request]:
    """Two requests that are shared among workers, of different numbers of queries, and one that ends with a split."""
    split = tiling.kv_split
    return numbered((6, 5 * split + 3), (1, 2 * split), (9, 4 * split + 1))


_BATCHES: Mapping[str, Callable[[int, Tiling], list[Request]]] = {
    "decode": _decode,
    "draft": _draft,
    "mixed": _mixed,
    "edges": _edges,
    "splits": _splits,
}


@functools.cache
def crossed_cases(tier: str) -> tuple[CrossedCase, ...]:
    """A case for each row of a covering table of `OPTIONS` that a tier adds to those below it.

    Args:
        tier: `default` for the table in which all twos meet and the small threes, each row in one dtype, and some of
            them in fp16 too, in which every value occurs; `nightly` for those of the table of all threes, but of the
            dtypes, of which that tier has every one, that are not there.
    """
    rows = default_rows()
    if tier == "default":
        in_fp16 = rows_with_every_value(rows)
        return tuple(_case(tier, row, *(["fp16"] if row in in_fp16 else [])) for row in rows)
    in_any_dtype = {name: values for name, values in OPTIONS.items() if name != "dtype"}
    there = [{name: row[name] for name in in_any_dtype} for row in rows]
    more = covering_rows(in_any_dtype, excluded, meetings_of(in_any_dtype, 3))
    return tuple(_case(tier, {**row, "dtype": "fp32"}) for row in more if row not in there)


def default_rows() -> tuple[Row, ...]:
    """The covering table of the default tier."""
    meetings = (*meetings_of(OPTIONS, 3, _COMBINATIONS_OF_THREE), *meetings_of(OPTIONS, 2))
    return covering_rows(OPTIONS, excluded, meetings)


def _case(tier: str, chosen: Mapping[str, Any], *more_dtypes: str) -> CrossedCase:
    group_size, num_kv_heads = chosen["heads"]
    mask, head_dim, page_size = chosen["mask"], chosen["head_dim"], chosen["page_size"]
    scale, softcap, sinks = chosen["scale"], chosen["softcap"], chosen["sinks"]
    encoder, strides, data = chosen["encoder"], chosen["strides"], chosen["data"]
    dtypes = (chosen["dtype"], *more_dtypes)
    words = (
        f"crossed-{group_size}x{num_kv_heads}-d{head_dim}-p{page_size}",
        "" if scale is None else f"scale{scale:.3g}",
        "" if softcap is None else f"cap{softcap:g}",
        "sinks" if sinks else "",
        "encoder" if encoder and mask is not Mask.CROSS else "",
        "" if strides is Strides.CONTIGUOUS else str(strides),
        "" if data == "normal" else data,
    )
    geometry = Geometry(
        "-".join(filter(None, words)),
        num_heads=group_size * num_kv_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        page_size=page_size,
        window=_WINDOW if mask is Mask.SLIDING_WINDOW else None,
        softcap=softcap,
        scale=scale,
        sinks=sinks,
    )
    return CrossedCase(geometry, mask, chosen["batch"], tier, dtypes, encoder, strides, data)
