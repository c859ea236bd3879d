"""Strategies of whole batches of attention: sizes, mask, options, requests, their place in memory, and their data.

Everything is sampled from short lists, in which the simplest comes first, as that is what a failing batch shrinks to.
Hypothesis mixes numbers that it finds in loaded modules into numbers from wide ranges, so that those would depend on
what a process has imported. The numbers of less than 100 that stand for an entry of a list are spared that.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

from samebits.backends.contract import Implementation, Tiling
from samebits.backends.problem import Circumstances, Geometry, Layout, Mask, Problem, Request, Strides
from samebits.harness.properties.cases import Bounds

# Query heads to a key/value head, and key/value heads.
_HEADS = ((1, 1), (4, 1), (2, 2), (3, 1), (1, 3), (7, 1), (4, 2), (8, 1), (3, 2))
_HEAD_DIMS, _PAGE_SIZES = (64, 128, 96, 80, 192, 256), (16, 32, 64, 1, 48, 8)
_SOFTCAPS, _SCALES = (None, None, 7.3, 50.0), (None, None, 0.25, 1 / 64)
_ENCODERS = (0, 0, 0, 1, 7, 17)
# Sizes of a layer that every suite has, where each other one is compiled anew.
_COMPILED = Geometry("drawn", num_heads=4, num_kv_heads=1, head_dim=128, page_size=16)
# What each query is of its request's keys: so many, or all.
_ALL = -1

# Data on which two runs are compared, data on which one is judged besides, and what is no number.
_COMPARED_DATA = ("normal", "normal", "normal", "large_scores", "negative_scores", "far_scores", "large_values", "ties")
_JUDGED_DATA = ("huge_scores", "huge_values", "offset_values", "denormal_values")
_NOT_FINITE_DATA = ("seen_nan", "seen_inf")
_SEEDS, _OUTPUT_ONLY = st.sampled_from(range(4)), st.sampled_from((False, False, True))
_CAUSAL = (True, True, False)
# Requests that are drawn for a batch; relations add theirs.
_MOST_DRAWN = 8


@dataclass(frozen=True)
class Range:
    """What is drawn from.

    Attributes:
        implementation: whose support and tiling count.
        dtype: of all.
        seed: of all data.
        bounds: of the batches.
        data: kinds of data.
    """

    implementation: Implementation[Any]
    dtype: str
    seed: int
    bounds: Bounds
    data: tuple[str, ...]

    @property
    def poison(self) -> str:
        """What unreadable memory holds: what the implementation claims to withstand."""
        return "nan" if self.implementation.claims.ignores_unread_memory else "large"


def data_of(compared: bool, finite: bool) -> tuple[str, ...]:
    """The kinds of data of drawn batches.

    Args:
        compared: whether bits are compared: NaN has many.
        finite: whether all must be numbers.
    """
    if compared:
        return _COMPARED_DATA
    return _COMPARED_DATA + _JUDGED_DATA + (() if finite else _NOT_FINITE_DATA)


@st.composite
def batches(draw: st.DrawFn, drawn_from: Range) -> Problem:
    """Batches that an implementation supports, but for what only its `reasons` know.

    Args:
        draw: of Hypothesis.
        drawn_from: the implementation, and the bounds.
    """
    support, tiling, bounds = drawn_from.implementation.support, drawn_from.implementation.tiling, drawn_from.bounds
    mask = draw(st.sampled_from([mask for mask in Mask if mask in support.masks]))
    geometry = draw(_geometries(drawn_from.implementation, mask))
    drawn = draw(
        _lists_of_lengths(
            (1, 1, 1, _ALL, 2, 3, 5, 0, *_around(tiling.query_tile), geometry.page_size + 1),
            _lengths(geometry, tiling, with_none=support.empty_kv and support.query_longer_than_kv),
            _ENCODERS if support.encoder_offset else (0,),
            min(_MOST_DRAWN, bounds.requests),
        )
    )
    problem = Problem(
        geometry,
        mask,
        drawn_from.dtype,
        tuple(_request(drawn_from, mask, place, *lengths) for place, lengths in enumerate(drawn)),
        draw(_layouts(drawn_from.poison)),
        drawn_from.seed + draw(_SEEDS),
        draw(st.sampled_from(drawn_from.data)),
        Circumstances(output_only=draw(_OUTPUT_ONLY)),
    )
    return _within(problem, bounds)


# To make a strategy takes longer than to draw from it.
@functools.cache
def _geometries(implementation: Implementation[Any], mask: Mask) -> st.SearchStrategy[Geometry]:
    """Layers that are supported."""
    support = implementation.support
    windows = (33, 1, 2, 16, 65) if mask is Mask.SLIDING_WINDOW else (None,)
    if implementation.compiles_each_shape:
        return st.just(replace(_COMPILED, window=windows[0]))

    def of(heads: tuple[int, int], *sizes: Any) -> Geometry:  # noqa: ANN401 -- the fields behind the heads
        return Geometry("drawn", heads[0] * heads[1], heads[1], *sizes)

    def supported(sizes: Sequence[int], name: str) -> st.SearchStrategy[int]:
        allowed = getattr(support, name)
        return st.sampled_from([size for size in sizes if (allowed(size) if callable(allowed) else size in allowed)])

    return st.builds(
        of,
        st.sampled_from(_HEADS),
        supported(_HEAD_DIMS, "head_dims"),
        supported(_PAGE_SIZES, "page_sizes"),
        st.sampled_from(windows),
        st.sampled_from(_SOFTCAPS if support.softcap else (None,)),
        st.sampled_from(_SCALES),
        st.sampled_from((False, False, True) if support.sinks else (False,)),
    )


@functools.cache
def _lists_of_lengths(
    queries: tuple[int, ...], keys: tuple[int, ...], encoders: tuple[int, ...], most: int
) -> st.SearchStrategy[list[tuple[int, int, int, bool]]]:
    """For each request of a batch its queries, its keys, its encoder tokens, and whether it is causal."""
    one = st.tuples(
        st.sampled_from(queries), st.sampled_from(keys), st.sampled_from(encoders), st.sampled_from(_CAUSAL)
    )
    return st.lists(one, min_size=1, max_size=most)


@functools.cache
def _layouts(poison: str) -> st.SearchStrategy[Layout]:
    """Places in memory."""
    return st.builds(
        Layout,
        # Others than those that relations change them to.
        page_seed=st.sampled_from((0, 2, 3)),
        pages_in_order=st.sampled_from((False, False, False, True)),
        extra_table_columns=st.sampled_from((0, 0, 2, 9)),
        max_seq_len_slack=st.sampled_from((0, 0, 2, 40)),
        padding_requests=st.sampled_from((0, 0, 2, 4)),
        padding_tokens=st.sampled_from((0, 0, 3, 7)),
        strides=st.sampled_from((Strides.CONTIGUOUS, *Strides)),
        poison=st.just(poison),
    )


def _around(length: int) -> tuple[int, ...]:
    return tuple(near for near in (length - 1, length, length + 1) if near > 0)


def _lengths(geometry: Geometry, tiling: Tiling, *, with_none: bool) -> tuple[int, ...]:
    """Numbers of keys: few, and at and around pages, tiles, splits and the window."""
    window = () if geometry.window is None else _around(geometry.window)
    edges = (*_around(geometry.page_size), *_around(tiling.kv_tile), *_around(tiling.kv_split), *window)
    some = sorted({1, 2, 5, *edges, 2 * tiling.kv_split + 3, 3 * tiling.kv_tile})
    return (*some, 0) if with_none else tuple(some)


def _request(
    drawn_from: Range, mask: Mask, place: int, query_len: int, kv_len: int, encoder_len: int, causal: bool
) -> Request:
    """A request whose queries range over `kv_len` keys under a mask, the first of a batch with one query at least."""
    query_len = min(kv_len, drawn_from.bounds.tokens) if query_len == _ALL else query_len
    query_len = max(1, query_len) if place == 0 else query_len
    if mask is Mask.CROSS:
        # A few decoder tokens, of which cross-attention must read none.
        return Request(place + 1, query_len, 2, encoder_len=kv_len)
    if not drawn_from.implementation.support.query_longer_than_kv:
        query_len = min(query_len, kv_len)
    return Request(place + 1, query_len, kv_len - query_len, encoder_len, causal or mask is not Mask.PER_REQUEST)


def _within(problem: Problem, bounds: Bounds) -> Problem:
    """A batch without the last of its requests where all are more than the bounds hold."""
    while len(problem.requests) > 1 and not bounds.hold(problem):
        problem = problem.with_requests(*problem.requests[:-1])
    return problem
