"""Relations: two ways to compute the same request that must agree, bit by bit.

A relation turns a base problem into comparisons. A comparison has two sides of one or more problems each; every request
key that occurs on both sides names the same data on both, so its query rows at common positions must hold one value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from samebits.backends.contract import Tiling
from samebits.backends.problem import Circumstances, Mask, Problem, Request
from samebits.backends.token_problem import TokenProblem

AnyProblem = Problem | TokenProblem

# Keys of requests that a relation adds; a case's own are below.
NEIGHBOUR_KEY = 1000
# What launch heuristics of public kernels use: classes between powers of two, thresholds, of which the last are below,
# and how evenly programs fill a machine, where 5, 10 and 20 requests may stand out and no power of two does. An
# interpreter takes seconds for all, so most cases have the shorter list.
_BATCH_SIZES, _ALL_BATCH_SIZES = (2, 10, 64), (2, 3, 5, 10, 20, 40, 64, 130)
_LONG_CONTEXT, _LONGEST_CONTEXT = 512, 4096
_LONG_PROMPT, _MANY_TOKENS = 513, 2049
# A batch of no more requests than this is put beside what is dear.
_FEW_REQUESTS = 2


@dataclass(frozen=True)
class Comparison:
    """Two sides that must agree on every request they share.

    Attributes:
        left, right: problems computed one after another on each side; a request may be divided over several.
        last_rows: rows at the end of each request that may differ.
        but_nan: whether what is NaN on the right may differ. Whether it must be NaN there, the reference says.
    """

    left: tuple[AnyProblem, ...]
    right: tuple[AnyProblem, ...]
    last_rows: int = 0
    but_nan: bool = False


@dataclass(frozen=True)
class Relation:
    """A kind of comparison.

    Attributes:
        name: used in cell ids.
        claim: the attribute of `Claims` that promises it; None where only correctness is judged.
        description: one line for tables and help.
        compare: makes the comparisons of a base problem for an implementation's tiling; none where the relation says
            nothing about such a problem.
        judged: names of the tensors whose error budget the cell reports; empty for all. Bits are compared in all.
        large: whether it is of thousands of rows or keys, for which an interpreter takes seconds.
    """

    name: str
    claim: str | None
    description: str
    compare: Callable[[Any, Tiling], Iterable[Comparison]]
    judged: tuple[str, ...] = ()
    large: bool = False


def alone(problem: Problem, request: Request) -> Problem:
    """The problem with one request only."""
    return problem.with_requests(request)


def _without_lse(problem: Problem) -> Problem:
    """The problem with no log-sum-exp asked for."""
    return replace(problem, circumstances=Circumstances(output_only=True))


def _neighbour(problem: Problem, key: int, query_len: int, kv_len: int) -> Request:
    """A request of another key, whose queries range over `kv_len` keys under the problem's mask."""
    causal = problem.mask is not Mask.PER_REQUEST or key % 2 == 0
    if problem.mask is Mask.CROSS:
        return Request(key, query_len, encoder_len=kv_len, causal=causal)
    return Request(key, query_len, kv_len - query_len, causal=causal)


def _stands_beside_load(problem: Problem) -> bool:
    """Whether the problem is the one of its mask that the dearest neighbours are for."""
    return len(problem.requests) <= _FEW_REQUESTS


def _queries_need_keys(problem: Problem) -> bool:
    """Whether a query sees no key where its request has fewer keys than queries."""
    return problem.mask not in (Mask.NON_CAUSAL, Mask.CROSS)


def _batch_size(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
    for request in problem.requests:
        yield Comparison((alone(problem, request),), (problem,))
    victim = problem.requests[0]
    sizes = _ALL_BATCH_SIZES if _stands_beside_load(problem) else _BATCH_SIZES
    # One query each, as in a batch of decodes, which many kernels tell from all others.
    crowd = [_neighbour(problem, NEIGHBOUR_KEY + i, 1, 1 + i % 5) for i in range(max(sizes) - 1)]
    for size in sizes:
        # Not in the first place, so that a kernel which is right for request 0 only is seen.
        yield Comparison((alone(problem, victim),), (problem.with_requests(*crowd[: size - 1], victim),))
    # Another path, and the one that engines take.
    beside = problem.with_requests(*crowd[: sizes[1] - 1], victim)
    yield Comparison((_without_lse(alone(problem, victim)),), (_without_lse(beside),))
    if _stands_beside_load(problem) and _queries_need_keys(problem):
        # Many short prompts: one of as many tokens would have as many keys, and the work is their product.
        query_len = 16
        prompts = [
            _neighbour(problem, NEIGHBOUR_KEY + i, query_len, query_len) for i in range(_MANY_TOKENS // query_len + 1)
        ]
        yield Comparison((problem,), (problem.with_requests(*prompts, *problem.requests),))


def _position(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
    requests = problem.requests
    if len(requests) > 1:
        yield Comparison((problem,), (problem.with_requests(*requests[::-1]),))
        yield Comparison((problem,), (problem.with_requests(*requests[1:], requests[0]),))


def _neighbour_lengths(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
    victim = problem.requests[0]
    tile = tiling.query_tile
    lengths = [(1, 1), (2, 3), (tile - 1, tile - 1), (tile, tile), (tile + 1, tile + 1)]
    lengths.append((1, 1 + max(3 * tiling.kv_split, _LONG_CONTEXT)))
    if _stands_beside_load(problem):
        lengths.append((1, 1 + _LONGEST_CONTEXT))
    # A neighbour of its own key each time, so that the victim is all that the two sides share.
    neighbours = [_neighbour(problem, NEIGHBOUR_KEY + i, *length) for i, length in enumerate(lengths)]
    first, *others = [problem.with_requests(victim, neighbour) for neighbour in neighbours]
    for other in others:
        yield Comparison((first,), (other,))
    if _stands_beside_load(problem):
        prompt_len, kv_len = (_LONG_PROMPT, _LONG_PROMPT) if _queries_need_keys(problem) else (_MANY_TOKENS, 1)
        prompt = _neighbour(problem, NEIGHBOUR_KEY, prompt_len, kv_len)
        yield Comparison((problem,), (problem.with_requests(*problem.requests, prompt),))


def _neighbour_contents(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
    return beside_other_data(problem) if len(problem.requests) > 1 else ()


def beside_other_data(problem: AnyProblem) -> Iterable[Comparison]:
    """The problem, and each half of its requests beside others of the lengths of the other half."""
    for kept in (0, 1):
        requests = [
            request if index % 2 == kept else replace(request, key=request.key + NEIGHBOUR_KEY)
            for index, request in enumerate(problem.requests)
        ]
        yield Comparison((problem,), (problem.with_requests(*requests),))


def _pages(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
    yield Comparison((problem,), (problem.with_layout(page_seed=1),))
    # A kernel may take a shorter way where pages follow one another.
    yield Comparison((problem,), (problem.with_layout(pages_in_order=True),))


def _table_width(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
    for columns in (1, 64):
        yield Comparison((problem,), (problem.with_layout(extra_table_columns=columns),))


def _max_seq_len(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
    for slack in (1, 4096):
        yield Comparison((problem,), (problem.with_layout(max_seq_len_slack=slack),))


def _padding(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
    for requests, tokens in ((1, 1), (5, 0), (3, _MANY_TOKENS)):
        yield Comparison((problem,), (problem.with_layout(padding_requests=requests, padding_tokens=tokens),))


def _unread_memory(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
    yield Comparison((problem.with_layout(poison="large"),), (problem.with_layout(poison="nan"),))


def _whole(problem: Problem, tiling: Tiling) -> Request:
    """The first request computed in one step, as long as its division into steps needs and no longer."""
    request = problem.requests[0]
    if problem.mask is Mask.CROSS:
        # How many decoder tokens there are is no matter to their keys, so only tiles of queries can be crossed.
        length = tiling.query_tile + 1
    else:
        # The work grows with the square of a length that crosses a split.
        length = min(request.seq_len, tiling.kv_split + tiling.query_tile + 1)
    return replace(request, query_len=length, context_len=0)


def part(request: Request, start: int, stop: int) -> Request:
    """The step that computes queries `start` to `stop` of a request's step."""
    return replace(request, query_len=stop - start, context_len=request.context_len + start)


def _earlier_steps_see_all(problem: Problem, request: Request) -> bool:
    """Whether a step sees all the keys that its queries see when the steps after it are computed with it."""
    return problem.mask is Mask.CROSS or problem.is_causal(request)


def _edges(problem: Problem, tiling: Tiling, whole: Request) -> list[int]:
    """Positions inside a sequence at which a step may begin: on and beside tiles, splits and pages, and at its ends."""
    length, tile = whole.query_len, tiling.query_tile
    if problem.mask is Mask.CROSS:
        candidates = {1, tile // 2 + 1, tile - 1, tile}
    elif problem.is_causal(whole):
        page = problem.geometry.page_size
        candidates = {1, page + 1, tile, tiling.kv_tile - 1, tiling.kv_split, tiling.kv_split + 1, length - 1}
    else:
        # Work that is not halved by a mask, for what is only a shorter block.
        candidates = {1, tile}
    return sorted(position for position in candidates if 0 < position < length)


def _chunked_prefill(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
    whole = _whole(problem, tiling)
    if not _earlier_steps_see_all(problem, whole):
        return  # A query of the first chunk sees keys that are not there before the last.
    one_shot = (alone(problem, whole),)
    if problem.mask is Mask.CROSS:
        sizes = {tiling.query_tile // 2 + 1, tiling.query_tile}
    else:
        sizes = {problem.geometry.page_size + 1, tiling.kv_tile, max(1, tiling.kv_split - 1)}
    for size in sorted(sizes):
        starts = range(0, whole.query_len, size)
        chunks = [part(whole, start, min(start + size, whole.query_len)) for start in starts]
        if len(chunks) > 1:
            yield Comparison(one_shot, tuple(alone(problem, chunk) for chunk in chunks))


def _extend(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
    whole = _whole(problem, tiling)
    for position in _edges(problem, tiling, whole):
        yield Comparison((alone(problem, whole),), (alone(problem, part(whole, position, whole.query_len)),))


def _decode(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
    whole = _whole(problem, tiling)
    if _earlier_steps_see_all(problem, whole):
        positions = _edges(problem, tiling, whole)
    else:
        # All queries of the block see all of its keys, so only the last can be computed as a step of its own.
        positions = [whole.query_len - 1] if whole.query_len > 1 else []
    for position in positions:
        yield Comparison((alone(problem, whole),), (alone(problem, part(whole, position, position + 1)),))
    for position in positions[-1:]:
        step = alone(problem, part(whole, position, position + 1))
        yield Comparison((_without_lse(alone(problem, whole)),), (_without_lse(step),))


_BATCH, _SCHEDULE = "batch_invariant", "schedule_invariant"

_RELATIONS = (
    Relation("batch_size", _BATCH, "alone and in batches of up to 130", _batch_size),
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
