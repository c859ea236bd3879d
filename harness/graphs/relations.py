"""Relations of the CUDA-graph suite: what a graph replays is what a run that was planned for it alone computes.

Each is there twice. `persistent_*` keeps a graph's contract without a graph, on any device: the plan and the arguments
are remembered, the buffers refilled, and `run` is called. `graph_*` captures and replays real CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from samebits.backends.contract import Tiling
from samebits.backends.graph_use import GraphHistory, GraphMode, GraphUse
from samebits.backends.platform import accelerator
from samebits.backends.problem import Circumstances, Mask, Problem
from samebits.backends.token_problem import TokenProblem
from samebits.harness.graphs.states import FIRST_ADDED_KEY
from samebits.harness.relations import Comparison, Relation


@dataclass(frozen=True)
class _Sizes:
    """Padded sizes, in requests. A GPU captures in milliseconds; an interpreter takes seconds for large batches."""

    on_gpu: tuple[int, ...]
    on_processor: tuple[int, ...]

    def here(self) -> tuple[int, ...]:
        """Those of this machine."""
        return self.on_gpu if accelerator().device == "cuda" else self.on_processor


_EVERY_SIZE, _USUAL_SIZES = _Sizes((1, 2, 4, 8, 16, 32), (1, 4)), _Sizes((4, 16), (4,))
# Of every four requests one is padding.
_PADDED_SHARE = 4
# Padding of a batch of mixed lengths.
_PADDING_REQUESTS, _PADDING_TOKENS = 2, 5
# How far the bound on keys lies above the longest request: an engine's is the longest that it admits, and public
# kernels split keys by it. Where an interpreter computes, a page must do.
_SLACK = 512
# How the names of relations end that are run on every case; the others differ little from case to case.
ON_EVERY_CASE = ("_replay", "_buffers", "_unpadded")
PREFIXES: Mapping[GraphMode, str] = {GraphMode.PERSISTENT: "persistent", GraphMode.CAPTURED: "graph"}

_Compare = Callable[[Problem, GraphMode], Iterable[Comparison]]


def is_uniform(problem: Problem) -> bool:
    """Whether all requests have as many query tokens."""
    return len({request.query_len for request in problem.requests}) == 1


def _sized(problem: Problem, num_requests: int) -> Problem:
    """The problem with as many requests: its own, then others of their kind."""
    requests = list(problem.requests[:num_requests])
    while len(requests) < num_requests:
        index = len(requests)
        model = problem.requests[index % len(problem.requests)]
        shorter = replace(model, key=FIRST_ADDED_KEY + index)
        if problem.mask is Mask.CROSS:
            shorter = replace(shorter, encoder_len=max(1, model.encoder_len * index // (index + 3)))
        else:
            shorter = replace(shorter, context_len=max(0, model.context_len * index // (index + 3)))
        requests.append(shorter)
    return problem.with_requests(*requests)


def _states(problem: Problem, mode: GraphMode, history: GraphHistory, sizes: _Sizes) -> Iterable[Problem]:
    """The problem at padded sizes: at each size where its requests are alike, else at those that hold all of them."""
    longest = max(request.query_len for request in problem.requests)
    slack = _SLACK if accelerator().device == "cuda" else problem.geometry.page_size
    max_seq_len = max(problem.kv_len(request) for request in problem.requests) + slack
    if is_uniform(problem):
        for size in sizes.here():
            state = _sized(problem, size - size // _PADDED_SHARE)
            yield _used(state, GraphUse(mode, size, size * longest, longest, max_seq_len, history))
    else:
        num_requests = len(problem.requests) + _PADDING_REQUESTS
        num_tokens = problem.num_tokens + _PADDING_TOKENS
        yield _used(problem, GraphUse(mode, num_requests, num_tokens, num_tokens, max_seq_len, history))


def _used(problem: Problem, use: GraphUse) -> Problem:
    return replace(problem, circumstances=Circumstances(graph=use))


def _eager(state: Problem) -> Problem:
    """The same padded batch, planned and run by itself."""
    use = state.circumstances.graph
    assert use is not None, "states are those of a graph"
    return _used(state, replace(use, mode=GraphMode.EAGER, history=GraphHistory.REPLAYED))


def _against_eager(history: GraphHistory, sizes: _Sizes) -> _Compare:
    def compare(problem: Problem, mode: GraphMode) -> Iterable[Comparison]:
        for state in _states(problem, mode, history, sizes):
            yield Comparison((_eager(state),), (state,))

    return compare


def _against_unpadded(sizes: _Sizes) -> _Compare:
    def compare(problem: Problem, mode: GraphMode) -> Iterable[Comparison]:
        for state in _states(problem, mode, GraphHistory.REPLAYED, sizes):
            yield Comparison((replace(state, circumstances=Circumstances()),), (state,))

    return compare


def _in_mode(compare: _Compare, mode: GraphMode) -> Callable[[Problem, Tiling], Iterable[Comparison]]:
    return lambda problem, tiling: compare(problem, mode)


def _replayed_tokens(mode: GraphMode) -> Callable[[TokenProblem, Tiling], Iterable[Comparison]]:
    def compare(problem: TokenProblem, tiling: Tiling) -> Iterable[Comparison]:
        for requests in (problem.requests[:1], problem.requests):
            state = problem.with_requests(*requests).with_layout(padding_tokens=_PADDING_TOKENS)
            num_tokens = state.num_tokens + _PADDING_TOKENS
            longest = max(request.seq_len for request in requests)
            use = GraphUse(mode, len(requests) + _PADDING_REQUESTS, num_tokens, num_tokens, longest)
            yield Comparison((state,), (replace(state, circumstances=Circumstances(graph=use)),))

    return compare


def relations_of(mode: GraphMode) -> tuple[Relation, ...]:
    """The relations of attention in one mode."""
    found = (
        ("replay", "other requests, lengths, pages and contents", _against_eager(GraphHistory.REPLAYED, _EVERY_SIZE)),
        ("again", "three times, once on another stream", _against_eager(GraphHistory.REPEATED, _USUAL_SIZES)),
        ("outgrown", "after a larger batch was run by itself", _against_eager(GraphHistory.OUTGROWN, _USUAL_SIZES)),
        ("interleaved", "in turn with a larger one", _against_eager(GraphHistory.INTERLEAVED, _USUAL_SIZES)),
        ("memory", "while memory that was given back is another's", _against_eager(GraphHistory.EVICTED, _USUAL_SIZES)),
        ("buffers", "every buffer is that of a plan made anew", _against_eager(GraphHistory.AUDITED, _USUAL_SIZES)),
        (
            "launches",
            "it allocates as much whatever the lengths, and on a GPU does not wait for the host",
            _against_eager(GraphHistory.WATCHED, _USUAL_SIZES),
        ),
    )
    prefix = PREFIXES[mode]
    replayed = "replayed" if mode is GraphMode.CAPTURED else "planned once and refilled"
    return (
        *(
            Relation(f"{prefix}_{name}", "cuda_graph", f"{replayed}: {what}", _in_mode(compare, mode))
            for name, what, compare in found
        ),
        Relation(
            f"{prefix}_unpadded",
            "batch_invariant",
            f"{replayed} at padded sizes, and computed by itself without padding",
            _in_mode(_against_unpadded(_EVERY_SIZE), mode),
        ),
    )


def token_relation_of(mode: GraphMode) -> Relation:
    """The relation of operations on tokens in one mode."""
    description = "with other tokens, positions and slots in the same tensors"
    return Relation(f"{PREFIXES[mode]}_replay", "cuda_graph", description, _replayed_tokens(mode))


GRAPH_RELATIONS: Mapping[str, Relation] = {
    relation.name: relation for mode in PREFIXES for relation in relations_of(mode)
}
TOKEN_GRAPH_RELATIONS: Mapping[str, Relation] = {
    relation.name: relation for relation in map(token_relation_of, PREFIXES)
}
