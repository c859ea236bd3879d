"""Relations of operations on tokens: two ways to compute the same tokens that must agree, bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from samebits.backends.contract import Tiling
from samebits.backends.problem import Circumstances, OtherLayer, Request, Strides
from samebits.backends.token_problem import (
    CacheWrite,
    Linear,
    MergeStates,
    RmsNorm,
    RotaryEmbedding,
    TokenOperation,
    TokenProblem,
)
from samebits.harness.other_layer import other_layer
from samebits.harness.relations import NEIGHBOUR_KEY, Comparison, Relation, beside_other_data
from samebits.harness.tokens.execution import outlawed

# A cache of 16-bit numbers that is large beside what two tokens need, and beside what is looked up with them.
_WATCHED_BYTES = 1 << 20
_BATCH_SIZES = (2, 3, 8, 16, 17, 64)
# Rows beside the victim: at and around the tiles of matrix units, and where libraries change kernels.
_NEIGHBOUR_ROWS = (1, 15, 16, 31, 63, 64, 127, 128, 255, 512)
# As a chunk of a prompt has them, and some ten thousand heads: where libraries launch other kernels.
_MANY_ROWS = 2049
_STRIDES: Mapping[type[TokenOperation], tuple[Strides, ...]] = {
    # Caches come in every order; queries, keys and outputs are packed one way.
    CacheWrite: (Strides.INTERLEAVED, Strides.HEADS_FIRST, Strides.PADDED_HEADS, Strides.MIXED_ORDER),
    RotaryEmbedding: (Strides.INTERLEAVED, Strides.PADDED_HEADS),
    MergeStates: (Strides.INTERLEAVED, Strides.PADDED_HEADS),
    # Rows without heads.
    Linear: (Strides.INTERLEAVED,),
    RmsNorm: (Strides.INTERLEAVED,),
}


def _batch_size(problem: TokenProblem, tiling: Tiling) -> Iterable[Comparison]:
    for request in problem.requests:
        yield Comparison((problem.with_requests(request),), (problem,))
    victim = problem.requests[0]
    crowd = [Request(NEIGHBOUR_KEY + i, 1, i % 5) for i in range(max(_BATCH_SIZES))]
    for size in _BATCH_SIZES:
        yield Comparison((problem.with_requests(victim),), (problem.with_requests(*crowd[: size - 1], victim),))


def _position(problem: TokenProblem, tiling: Tiling) -> Iterable[Comparison]:
    requests = problem.requests
    yield Comparison((problem,), (problem.with_requests(*requests[::-1]),))
    yield Comparison((problem,), (problem.with_requests(*requests[1:], requests[0]),))


def _neighbour_lengths(problem: TokenProblem, tiling: Tiling) -> Iterable[Comparison]:
    victim = problem.requests[0]
    first, *others = [
        problem.with_requests(victim, Request(NEIGHBOUR_KEY + i, rows)) for i, rows in enumerate(_NEIGHBOUR_ROWS)
    ]
    for other in others:
        yield Comparison((first,), (other,))


def _neighbour_contents(problem: TokenProblem, tiling: Tiling) -> Iterable[Comparison]:
    return beside_other_data(problem)


def _pages(problem: TokenProblem, tiling: Tiling) -> Iterable[Comparison]:
    if isinstance(problem.operation, CacheWrite):
        for page_seed in (1, 2):
            yield Comparison((problem,), (problem.with_layout(page_seed=page_seed),))


def _padding(problem: TokenProblem, tiling: Tiling) -> Iterable[Comparison]:
    for rows in (1, 17, 300):
        yield Comparison((problem,), (problem.with_layout(padding_tokens=rows),))


def _many_rows(problem: TokenProblem, tiling: Tiling) -> Iterable[Comparison]:
    yield Comparison((problem,), (problem.with_layout(padding_tokens=_MANY_ROWS),))


def _unread_memory(problem: TokenProblem, tiling: Tiling) -> Iterable[Comparison]:
    padded = problem.with_layout(padding_tokens=3, strides=Strides.INTERLEAVED)
    yield Comparison((padded.with_layout(poison="large"),), (padded.with_layout(poison="nan"),))


def _strided(problem: TokenProblem, tiling: Tiling) -> Iterable[Comparison]:
    for strides in _STRIDES[type(problem.operation)]:
        yield Comparison((problem,), (problem.with_layout(strides=strides),))


def _leading_dimensions(problem: TokenProblem, tiling: Tiling) -> Iterable[Comparison]:
    if isinstance(problem.operation, (Linear, RmsNorm)):
        for dimensions in (2, 3):
            for strides in (Strides.CONTIGUOUS, Strides.INTERLEAVED):
                other = problem.with_layout(leading_dimensions=dimensions, strides=strides)
                yield Comparison((problem,), (other,))


def _decode(problem: TokenProblem, tiling: Tiling) -> Iterable[Comparison]:
    victim = max(problem.requests, key=lambda request: request.query_len)
    whole = problem.with_requests(victim)
    for row in sorted({0, victim.query_len // 2, victim.query_len - 1}):
        step = replace(victim, query_len=1, context_len=victim.context_len + row)
        yield Comparison((whole,), (problem.with_requests(step),))


def _cache_dtype(problem: TokenProblem, tiling: Tiling) -> Iterable[Comparison]:
    if isinstance(problem.operation, RotaryEmbedding):
        yield Comparison((outlawed(problem),), ())


def _cache_in_place(problem: TokenProblem, tiling: Tiling) -> Iterable[Comparison]:
    if isinstance(problem.operation, RotaryEmbedding):
        positions = _WATCHED_BYTES // (2 * problem.operation.rotary_dim)
        operation = replace(problem.operation, max_position=positions)
        # Few tokens, for which little is allocated, and those at both ends, so that who converts a cache as far as it
        # is used converts it whole.
        ends = [
            Request(request.key, 1, place) for request, place in zip(problem.requests, (0, positions - 1), strict=False)
        ]
        watched = replace(problem, operation=operation).with_requests(*ends).with_layout(watched=True)
        # Behind the cache of all other checks, at another address and at the same: what is kept of it is wrong here.
        for turn, before in enumerate(OtherLayer):
            # Another pair of caches each time: memory that was given back comes again, and with it what is kept of it.
            other = other_layer(replace(watched, seed=watched.seed ^ 2 * turn))
            yield Comparison((replace(other, circumstances=Circumstances(other_layer=before)),), ())


def _invariant(
    name: str, description: str, compare: Callable[[TokenProblem, Tiling], Iterable[Comparison]]
) -> Relation:
    return Relation(name, "batch_invariant", description, compare)


_RELATIONS = (
    _invariant("batch_size", "alone and in batches of 2 to 64", _batch_size),
    _invariant("position", "at another place in the batch", _position),
    _invariant("neighbour_lengths", "beside 1 to 512 other rows", _neighbour_lengths),
    _invariant("neighbour_contents", "beside requests of the same lengths and other data", _neighbour_contents),
    _invariant("pages", "on other physical pages", _pages),
    _invariant("padding", "with padding rows", _padding),
    # Of nobody, which cost no reference.
    replace(_invariant("many_rows", "among thousands of rows", _many_rows), large=True),
    Relation(
        "unread_memory", "ignores_unread_memory", "with NaN or large values in memory it owns not", _unread_memory
    ),
    _invariant("strided", "from views of wider tensors", _strided),
    _invariant("leading_dimensions", "seen through two and three leading dimensions", _leading_dimensions),
    Relation("decode", "schedule_invariant", "alone and as a row of many", _decode),
)
_ROTARY_RULES = (
    Relation("cache_dtype", None, "a rotary cache of a third dtype is refused", _cache_dtype),
    Relation("cache_in_place", None, "the rotary cache is neither converted nor copied", _cache_in_place),
)

TOKEN_RELATIONS: Mapping[str, Relation] = {relation.name: relation for relation in _RELATIONS}
ROTARY_RULES: Mapping[str, Relation] = {relation.name: relation for relation in _ROTARY_RULES}
