"""Relations: two ways to compute the same request that must agree, bit by bit.

A relation turns a base problem into comparisons. A comparison has two sides of one or more problems each; every request
key that occurs on both sides names the same data on both, so its query rows at common positions must hold one value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from samebits.backends.contract import Tiling
from samebits.backends.problem import Mask, Problem, Request

# Keys of requests that a relation adds; a case's own are below.
_NEIGHBOUR_KEY = 1000
_LARGEST_BATCH = 64


@dataclass(frozen=True)
class Comparison:
    """Two sides that must agree on every request they share.

    Attributes:
        left, right: problems computed one after another on each side; a request may be divided over several.
    """

    left: tuple[Problem, ...]
    right: tuple[Problem, ...]


@dataclass(frozen=True)
class Relation:
    """A kind of comparison.

    Attributes:
        name: used in cell ids.
        claim: the attribute of `Claims` that promises it; None where only correctness is judged.
        description: one line for tables and help.
        compare: makes the comparisons of a base problem for an implementation's tiling; none where the relation says
            nothing about such a problem.
    """

    name: str
    claim: str | None
    description: str
    compare: Callable[[Problem, Tiling], Iterable[Comparison]]


def alone(problem: Problem, request: Request) -> Problem:
    """The problem with one request only."""
    return problem.with_requests(request)


def _batch_size(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
    for request in problem.requests:
        yield Comparison((alone(problem, request),), (problem,))
    victim = problem.requests[0]
    encoder_len = 3 if problem.mask is Mask.CROSS else 0
    crowd = [Request(_NEIGHBOUR_KEY + i, 1, i % 5, encoder_len) for i in range(_LARGEST_BATCH)]
    for size in (2, 8, _LARGEST_BATCH):
        neighbours = (*problem.requests[1:], *crowd)[: size - 1]
        # Not in the first place, so that a kernel which is right for request 0 only is seen.
        yield Comparison((alone(problem, victim),), (problem.with_requests(*neighbours, victim),))


def _position(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
    requests = problem.requests
    if len(requests) > 1:
        yield Comparison((problem,), (problem.with_requests(*requests[::-1]),))
        yield Comparison((problem,), (problem.with_requests(*requests[1:], requests[0]),))


def _neighbour_lengths(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
    victim = problem.requests[0]
    tile = tiling.query_tile
    lengths = [(1, 0), (2, 1), (tile - 1, 0), (tile, 0), (tile + 1, 0), (1, 3 * tiling.kv_split)]

    def beside(key: int, query_len: int, context_len: int) -> Problem:
        encoder_len = query_len + context_len if problem.mask is Mask.CROSS else 0
        # A neighbour of its own key each time, so that the victim is all that the two sides share.
        return problem.with_requests(victim, Request(key, query_len, context_len, encoder_len))

    first, *others = [beside(_NEIGHBOUR_KEY + i, *length) for i, length in enumerate(lengths)]
    for other in others:
        yield Comparison((first,), (other,))


def _neighbour_contents(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
    if len(problem.requests) == 1:
        return
    for kept in (0, 1):
        requests = [
            request if index % 2 == kept else replace(request, key=request.key + _NEIGHBOUR_KEY)
            for index, request in enumerate(problem.requests)
        ]
        yield Comparison((problem,), (problem.with_requests(*requests),))


def _pages(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
    for page_seed in (1, 2):
        yield Comparison((problem,), (problem.with_layout(page_seed=page_seed),))


def _table_width(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
    for columns in (1, 64):
        yield Comparison((problem,), (problem.with_layout(extra_table_columns=columns),))


def _max_seq_len(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
    for slack in (1, 4096):
        yield Comparison((problem,), (problem.with_layout(max_seq_len_slack=slack),))


def _padding(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
    for requests, tokens in ((1, 1), (5, 0), (3, tiling.query_tile + 1)):
        yield Comparison((problem,), (problem.with_layout(padding_requests=requests, padding_tokens=tokens),))


def _unread_memory(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
    yield Comparison((problem.with_layout(poison="large"),), (problem.with_layout(poison="nan"),))


def _whole(problem: Problem, tiling: Tiling) -> Request:
    """The first request's sequence in one step, cut to what crosses a split, since the work grows with its square."""
    request = problem.requests[0]
    length = min(request.seq_len, tiling.kv_split + tiling.query_tile + 1)
    return replace(request, query_len=length, context_len=0)


def _part(request: Request, start: int, stop: int) -> Request:
    """The step of `request` that computes its positions `start` to `stop`."""
    return replace(request, query_len=stop - start, context_len=start)


def _edges(problem: Problem, tiling: Tiling, length: int) -> list[int]:
    """Positions inside a sequence at which a step may begin: on and beside tiles, splits and pages, and at its ends."""
    candidates = {
        1,
        problem.geometry.page_size + 1,
        tiling.query_tile,
        tiling.kv_tile - 1,
        tiling.kv_split,
        tiling.kv_split + 1,
        length - 1,
    }
    return sorted(position for position in candidates if 0 < position < length)


def _chunked_prefill(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
    if problem.mask is Mask.NON_CAUSAL:
        return  # A query sees keys that a chunk does not have yet.
    whole = _whole(problem, tiling)
    one_shot = (alone(problem, whole),)
    for size in sorted({problem.geometry.page_size + 1, tiling.kv_tile, tiling.kv_split - 1}):
        starts = range(0, whole.query_len, size)
        chunks = [_part(whole, start, min(start + size, whole.query_len)) for start in starts]
        if len(chunks) > 1:
            yield Comparison(one_shot, tuple(alone(problem, chunk) for chunk in chunks))


def _extend(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
    if problem.mask is Mask.NON_CAUSAL:
        return
    whole = _whole(problem, tiling)
    for position in _edges(problem, tiling, whole.query_len):
        yield Comparison((alone(problem, whole),), (alone(problem, _part(whole, position, whole.query_len)),))


def _decode(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
    whole = _whole(problem, tiling)
    if problem.mask is Mask.NON_CAUSAL:
        # All queries of the block see all of its keys, so only the last can be computed as a step of its own.
        positions = [whole.query_len - 1] if whole.query_len > 1 else []
    else:
        positions = _edges(problem, tiling, whole.query_len)
    for position in positions:
        yield Comparison((alone(problem, whole),), (alone(problem, _part(whole, position, position + 1)),))


_BATCH, _SCHEDULE = "batch_invariant", "schedule_invariant"

_RELATIONS = (
    Relation("batch_size", _BATCH, "alone and in batches of 2 to 64", _batch_size),
    Relation("position", _BATCH, "at another place in the batch", _position),
    Relation("neighbour_lengths", _BATCH, "beside queries and keys of other lengths", _neighbour_lengths),
    Relation("neighbour_contents", _BATCH, "beside requests of the same lengths and other data", _neighbour_contents),
    Relation("pages", _BATCH, "on other physical pages", _pages),
    Relation("table_width", _BATCH, "with a wider block table", _table_width),
    Relation("max_seq_len", _BATCH, "with a larger bound on the lengths", _max_seq_len),
    Relation("padding", _BATCH, "with padding requests and padding rows", _padding),
    Relation(
        "unread_memory", "ignores_unread_memory", "with NaN or large values in memory it owns not", _unread_memory
    ),
    Relation("chunked_prefill", _SCHEDULE, "prefilled in chunks and at once", _chunked_prefill),
    Relation("extend", _SCHEDULE, "extending a cached prefix and prefilled at once", _extend),
    Relation("decode", _SCHEDULE, "decoded alone and as a row of a prefill", _decode),
)

RELATIONS: Mapping[str, Relation] = {relation.name: relation for relation in _RELATIONS}
