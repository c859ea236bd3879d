"""Cases of full size, for GPUs alone: layers as models have them, 131,072 keys, batches of 256, a head_dim of 256.

What is asked is what is asked at small sizes, and every check has its controls there. Kernels choose their launch by
sizes that an interpreter or a processor would take hours for: how many splits 131,072 keys are divided into, and by how
many requests; what a chunk of a prompt does behind a long context; how many programs fill a machine.

The cells of one case follow one another, whatever their implementation, so that its data are drawn and its reference is
computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from samebits.backends.contract import Tiling
from samebits.backends.problem import Geometry, Mask, Problem, Request
from samebits.harness.cases import numbered
from samebits.harness.geometries import FULL_GEOMETRIES
from samebits.harness.inputs import INPUTS
from samebits.harness.matrix import AnyCase, Cell, Selection, TieredCase
from samebits.harness.relations import NEIGHBOUR_KEY, RELATIONS, Comparison, Relation, alone, part
from samebits.harness.repeats import ATTEMPTS, repeated

# Keys of a batch times heads times head_dim: beyond it, a processor takes seconds for one call.
_LARGEST_ON_HOST = 1 << 24
# Of a request that a relation adds.
_PROMPT_LEN = 2049


@dataclass(frozen=True)
class Sizes:
    """How large the batches are.

    Attributes:
        longest: keys of the longest request.
        crowd: requests of the largest batch.
        chunk: query tokens of a prompt's chunk.
        prompt: keys at the end of that chunk.
    """

    longest: int = 131072
    crowd: int = 256
    chunk: int = 2048
    prompt: int = 32768


def _decode(sizes: Sizes) -> list[Request]:
    """Decodes of very different lengths: the first is divided into most splits, and the last has one key."""
    return numbered((1, sizes.longest), (1, sizes.longest // 8 + 1), (1, 1000), (1, 1))


def _crowd(sizes: Sizes) -> list[Request]:
    """Decodes of short requests, with the longest one and two of medium length among them."""
    lengths = [1 + 37 * place % 256 for place in range(sizes.crowd)]
    lengths[sizes.crowd // 3] = sizes.longest
    lengths[sizes.crowd // 2] = lengths[-1] = sizes.longest // 16 + 1
    return numbered(*((1, length) for length in lengths))


def _chunk(sizes: Sizes) -> list[Request]:
    """A chunk of a long prompt beside a decode."""
    return numbered((sizes.chunk, sizes.prompt), (1, sizes.prompt // 4 + 1))


_BATCHES: Mapping[str, Callable[[Sizes], list[Request]]] = {"decode": _decode, "crowd": _crowd, "chunk": _chunk}


@dataclass(frozen=True)
class FullCase:
    """A base problem of full size, apart from dtype. Lengths follow no tiling: they are far above all of them.

    Attributes:
        geometry: shape of the layer.
        mask: which keys a query sees.
        batch: name of the batch.
        dtypes: those it has in the default tier; in the nightly tier it has all.
        sizes: of the batch.
        tier: smallest tier that holds the case.
    """

    geometry: Geometry
    mask: Mask
    batch: str
    dtypes: tuple[str, ...]
    sizes: Sizes = Sizes()
    tier: str = "default"

    @property
    def case_id(self) -> str:
        """Names the case across runs."""
        return f"{self.geometry.name}-{self.mask}-{self.batch}"

    def problem(self, dtype: str, tiling: Tiling, seed: int) -> Problem:
        """The base problem."""
        return Problem(self.geometry, self.mask, dtype, tuple(_BATCHES[self.batch](self.sizes)), seed=seed)


def _batch_size(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
    """Some requests alone, at places of every size, and all in parts of the batch."""
    requests, count = problem.requests, len(problem.requests)
    places = [0, *(step - 1 for step in (2, 4, 8, 16, 32, 64, 128) if step < count), count // 3, count - 1]
    for place in sorted(set(places)):
        yield Comparison((alone(problem, requests[place]),), (problem,))
    for size in (16, 64, 128):
        if size < count:
            yield Comparison((problem.with_requests(*requests[:size]),), (problem,))


def _neighbour_lengths(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
    """A request of medium length beside the longest one, and both beside a prompt of thousands of tokens."""
    longest, victim, *_ = problem.requests
    short, prompt = Request(NEIGHBOUR_KEY, 1), Request(NEIGHBOUR_KEY + 1, _PROMPT_LEN)
    yield Comparison((problem.with_requests(victim, short),), (problem.with_requests(victim, longest),))
    for request in (victim, longest):
        yield Comparison((problem.with_requests(request, short),), (problem.with_requests(request, prompt),))


def _chunked_prefill(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
    """The first request's chunk in two halves, and in two unequal parts that end inside of pages and tiles."""
    chunk = problem.requests[0]
    for size in (chunk.query_len // 2, 3 * chunk.query_len // 4 + 1):
        parts = [part(chunk, first, min(first + size, chunk.query_len)) for first in range(0, chunk.query_len, size)]
        yield Comparison((alone(problem, chunk),), tuple(alone(problem, part) for part in parts))


def _decode_rows(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
    """The first, one inner and the last query of the first request's chunk as decodes."""
    chunk = problem.requests[0]
    for row in (0, chunk.query_len // 2 + 1, chunk.query_len - 1):
        yield Comparison((alone(problem, chunk),), (alone(problem, part(chunk, row, row + 1)),))


# As at small sizes, but for which parts and which neighbours.
_COMPARED: Mapping[str, Callable[[Problem, Tiling], Iterable[Comparison]]] = {
    "batch_size": _batch_size,
    "neighbour_lengths": _neighbour_lengths,
    "chunked_prefill": _chunked_prefill,
    "decode": _decode_rows,
}
_BATCH_RELATIONS: Mapping[str, Relation] = {
    **RELATIONS,
    **{name: replace(RELATIONS[name], compare=compare) for name, compare in _COMPARED.items()},
}


@dataclass(frozen=True)
class FullRows:
    """Checks of one suite on one case.

    Attributes:
        suite: mark of the suite.
        case: the case.
        checks: names of the suite's checks.
    """

    suite: str
    case: FullCase
    checks: tuple[str, ...]


def full_rows(geometries: Mapping[str, Geometry] = FULL_GEOMETRIES, sizes: Sizes = Sizes()) -> list[FullRows]:
    """What is checked at full size.

    Args:
        geometries: by the names of whole layers.
        sizes: of the batches.
    """

    def rows(suite: str, geometry: str, batch: str, dtypes: str, checks: str, mask: Mask = Mask.CAUSAL) -> FullRows:
        case = FullCase(geometries[geometry], mask, batch, tuple(dtypes.split()), sizes)
        return FullRows(suite, case, tuple(checks.split()))

    llama, gemma = "llama3-8b-full", "gemma3-12b-full"
    return [
        rows("batch_invariant", llama, "decode", "fp32 bf16", "batch_size neighbour_lengths pages"),
        rows("batch_invariant", llama, "crowd", "bf16", "batch_size position neighbour_contents padding"),
        rows("batch_invariant", llama, "chunk", "bf16", "batch_size chunked_prefill decode"),
        rows("batch_invariant", gemma, "chunk", "fp32 bf16", "batch_size chunked_prefill decode"),
        rows("batch_invariant", gemma, "decode", "bf16", "batch_size", Mask.SLIDING_WINDOW),
        rows("dtype", llama, "decode", "fp32 bf16", "normal large_scores offset_values lse_normal"),
        rows("run_to_run", llama, "decode", "bf16", "repeated"),
    ]


def full_size_cells(suite: str, selection: Selection) -> Iterator[Cell]:
    """The cells of full size of a suite, where a GPU is run on, for each implementation that is made for it.

    Args:
        suite: mark of the suite.
        selection: what the run covers; the smoke tier has none.
    """
    if selection.platform == "cpu":
        return
    checks = {**_BATCH_RELATIONS, **INPUTS, "repeated": repeated(ATTEMPTS[selection.tier])}
    for rows in full_rows():
        if rows.suite != suite:
            continue
        tiered = TieredCase(rows.case, rows.case.tier, rows.case.dtypes)
        for dtype in selection.dtypes_of(tiered):
            for implementation in selection.attention:
                if selection.platform in implementation.platforms:
                    for name in rows.checks:
                        yield selection.cell(suite, implementation, checks[name], tiered, dtype)


def size_reasons(case: AnyCase, device: str) -> list[str]:
    """Why a device is not asked to compute a case, as one sentence; none where it is.

    Args:
        case: of any suite.
        device: torch's device type.
    """
    if device != "cpu" or not isinstance(case, FullCase):
        return []
    keys, geometry = sum(request.num_slots for request in _BATCHES[case.batch](case.sizes)), case.geometry
    if keys * geometry.num_kv_heads * geometry.head_dim <= _LARGEST_ON_HOST:
        return []
    heads = f"{geometry.num_kv_heads} heads of {geometry.head_dim}"
    return [f"a batch of {keys} keys in {heads} is for GPUs, and it computes on cpu"]
