"""A problem made into tensors: scattered pages, stale table entries, poison wherever nobody may read.

Every tensor follows from the problem alone. What a correct kernel cannot see (page tails, unused pages, the null page,
padding rows, the output before the run) holds poison, and the buffers that a kernel writes stand between canaries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from samebits.backends.contract import DTYPES, AttentionConfig, AttentionMetadata
from samebits.backends.problem import Mask, Problem, Request, Strides
from samebits.harness.bounded_cache import BoundedCache
from samebits.harness.comparison import same_bits
from samebits.harness.dataset import Role, shaped, token_values
from samebits.harness.drawing import drawn_values, is_drawn_here
from samebits.harness.far_memory import far_cache
from samebits.harness.placement import place_batch
from samebits.harness.strides import span, strides_of, whole_memory

# Around a tensor that a kernel writes: how much, and a value that no kernel writes by chance.
_CANARY_ELEMENTS, _CANARY = 256, 1.625
# In place of a request's key in the name of data that belong to the layer.
LAYER_KEY = -1
# Finite, and exactly representable in every dtype here: large enough to show in any sum it enters.
_LARGE = 32768.0
_HOST = torch.device("cpu")
# Data of requests that are kept on their devices: a crowd's, or keys and values of 131,072 tokens in float32.
_KEPT_REQUESTS, _KEPT_BYTES = 2048, 3 << 29


@dataclass(frozen=True)
class Batch:
    """The tensors of one problem.

    Attributes:
        problem: what they were made from.
        config, metadata: what a backend's `plan` is given.
        query: `[num_tokens, num_heads, head_dim]`.
        key_cache, value_cache: `[num_pages, page_size, num_kv_heads, head_dim]`, strided as the layout says.
        query_rows: for each request of the problem, the slice of query rows that it owns.
    """

    problem: Problem
    config: AttentionConfig
    metadata: AttentionMetadata
    query: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    query_rows: tuple[slice, ...]

    def memory(self) -> tuple[torch.Tensor, ...]:
        """All that queries, keys and values are views of, gaps among them, each piece of it once.

        Of caches whose pages are far apart the pages alone: what is between them is more than can be looked at.
        """
        tensors = (self.query, self.key_cache, self.value_cache)
        if self.problem.layout.far_pages:
            return (whole_memory(self.query), self.key_cache, self.value_cache)
        return tuple({tensor.untyped_storage().data_ptr(): whole_memory(tensor) for tensor in tensors}.values())


@dataclass(frozen=True)
class GuardedTensor:
    """A poisoned tensor for a kernel to write, and memory full of canaries before, behind and between its elements."""

    tensor: torch.Tensor

    def intact(self) -> bool:
        """Whether nothing wrote outside the tensor."""
        memory = whole_memory(self.tensor)
        expected = torch.full_like(memory, _CANARY)
        _view_of(expected, self.tensor).copy_(self.tensor)
        return same_bits(memory, expected)


def guarded(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    poison: str,
    strides: Strides = Strides.CONTIGUOUS,
) -> GuardedTensor:
    """Allocates a tensor full of poison among canaries.

    Args:
        shape: of the tensor.
        dtype: of the tensor.
        device: where it is allocated.
        poison: `nan` or `large`.
        strides: as an output has them.
    """
    memory = torch.full((span(shape, strides) + 2 * _CANARY_ELEMENTS,), _CANARY, dtype=dtype, device=device)
    tensor = memory.as_strided(shape, strides_of(shape, strides, second=True), _CANARY_ELEMENTS)
    return GuardedTensor(tensor.fill_(poison_value(poison)))


def poison_value(poison: str) -> float:
    """The value that unreadable memory holds under a poison's name."""
    return float("nan") if poison == "nan" else _LARGE


def make_batch(problem: Problem, device: torch.device) -> Batch:
    """Makes all tensors of a problem.

    Args:
        problem: what to make.
        device: where the tensors go.
    """
    geometry = problem.geometry
    placement = place_batch(problem, device)
    cache_shape = (placement.num_pages, geometry.page_size, geometry.num_kv_heads, geometry.head_dim)
    query = _empty_query(problem, (placement.metadata.num_tokens, geometry.num_heads, geometry.head_dim), device)
    data = [request_data(problem, request, device) for request in problem.requests]
    query[: problem.num_tokens] = torch.cat([of_request.queries for of_request in data])
    key_cache, value_cache = _filled_caches(problem, cache_shape, data, torch.cat(placement.slots).to(device))
    return Batch(
        problem=problem,
        config=attention_config(problem, device),
        metadata=placement.metadata,
        query=query,
        key_cache=key_cache,
        value_cache=value_cache,
        query_rows=placement.query_rows,
    )


def attention_config(problem: Problem, device: torch.device) -> AttentionConfig:
    """What a backend's `plan` is given of the layer."""
    geometry = problem.geometry
    return AttentionConfig(
        num_heads=geometry.num_heads,
        num_kv_heads=geometry.num_kv_heads,
        head_dim=geometry.head_dim,
        page_size=geometry.page_size,
        dtype=DTYPES[problem.dtype],
        mask=problem.mask,
        window=problem.window,
        softcap=geometry.softcap,
        scale=geometry.softmax_scale,
        device=device,
        sinks=sinks_of(problem).to(device) if geometry.sinks else None,
    )


def _empty_query(problem: Problem, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Queries full of poison."""
    strides = problem.layout.strides
    return _view(_poisoned_memory(problem, span(shape, strides), device), problem, shape)


def _filled_caches(
    problem: Problem, shape: tuple[int, ...], data: Sequence[RequestData], slots: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of all requests in their slots, and poison in all others: `slots` is int64 `[total_slots]`."""
    key_cache, value_cache = _empty_caches(problem, shape, slots.device)
    places = (slots // problem.geometry.page_size, slots % problem.geometry.page_size)
    key_cache[places] = torch.cat([of_request.keys for of_request in data])
    value_cache[places] = torch.cat([of_request.values for of_request in data])
    return key_cache, value_cache


def _empty_caches(problem: Problem, shape: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Caches full of poison: each in memory of its own, or page by page in one."""
    if problem.layout.far_pages:
        keys, values = (
            far_cache(shape, DTYPES[problem.dtype]).fill_(poison_value(problem.layout.poison)) for _ in range(2)
        )
        return keys, values
    elements, page = span(shape, problem.layout.strides), int(np.prod(shape[1:]))
    if problem.layout.strides is Strides.INTERLEAVED:
        memory = _poisoned_memory(problem, elements, device)
        return _view(memory, problem, shape), _view(memory, problem, shape, behind=page)
    keys, values = (_poisoned_memory(problem, elements, device) for _ in range(2))
    return _view(keys, problem, shape), _view(values, problem, shape, second=True)


def _poisoned_memory(problem: Problem, elements: int, device: torch.device) -> torch.Tensor:
    """Poison for `elements` behind the shift that the circumstances ask for."""
    size = _shift(problem) + elements
    return torch.full((size,), poison_value(problem.layout.poison), dtype=DTYPES[problem.dtype], device=device)


def _view(
    memory: torch.Tensor, problem: Problem, shape: tuple[int, ...], *, second: bool = False, behind: int = 0
) -> torch.Tensor:
    """A tensor in poisoned memory, strided as the layout says."""
    strides = strides_of(shape, problem.layout.strides, second=second)
    return memory.as_strided(shape, strides, _shift(problem) + behind)


def _shift(problem: Problem) -> int:
    """Elements by which tensors lie behind the start of their allocation."""
    return problem.circumstances.shift // DTYPES[problem.dtype].itemsize


def _view_of(memory: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
    """What a view of one piece of memory is of another."""
    return memory.as_strided(view.shape, view.stride(), view.storage_offset())


def sinks_of(problem: Problem) -> torch.Tensor:
    """The layer's sinks: float32 `[num_heads]`, rounded to the problem's dtype, on the host."""
    values = token_values(problem.seed, LAYER_KEY, Role.SINK, problem.geometry, 0, 1)[0, :, 0]
    return torch.tensor(values).to(DTYPES[problem.dtype]).float()


@dataclass(frozen=True)
class RequestData:
    """The tokens of one request, shared by all who ask for them: nobody may write them.

    Attributes:
        queries, keys, values: see `request_queries` and `request_keys_values`.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.queries.nbytes + self.keys.nbytes + self.values.nbytes


_KEPT: BoundedCache[tuple[Problem, torch.device], RequestData] = BoundedCache(
    _KEPT_REQUESTS, _KEPT_BYTES, lambda data: data.nbytes
)


def request_data(problem: Problem, request: Request, device: torch.device) -> RequestData:
    """The tokens of one request on a device, made once for all batches that hold it."""
    alone = computed_alone(problem, request)

    def make() -> RequestData:
        return RequestData(request_queries(alone, request, device), *request_keys_values(alone, request, device))

    return _KEPT.get((alone, device), make)


def computed_alone(problem: Problem, request: Request) -> Problem:
    """What decides the data and the results of one request: the problem without its batch, layout and circumstances."""
    return problem.with_requests(request).without_surroundings()


def request_queries(problem: Problem, request: Request, device: torch.device = _HOST) -> torch.Tensor:
    """Query tokens of one request: `[query_len, num_heads, head_dim]` in the problem's dtype."""
    start = request.context_len
    queries = _values(problem, request, Role.QUERY, start, start + request.query_len, device)
    if problem.data == "nan_query" and request.query_len:
        queries[request.query_len // 2, request.key % problem.geometry.num_heads, 1] = torch.nan
    return queries


def request_keys_values(
    problem: Problem, request: Request, device: torch.device = _HOST
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values in all of a request's slots, encoder tokens first: `[num_slots, num_kv_heads, head_dim]` each."""

    def slots(encoder: Role, decoder: Role) -> torch.Tensor:
        own = _values(problem, request, decoder, 0, request.seq_len, device)
        if not request.encoder_len:
            return own
        return torch.cat([_values(problem, request, encoder, 0, request.encoder_len, device), own])

    keys, values = slots(Role.ENCODER_KEY, Role.KEY), slots(Role.ENCODER_VALUE, Role.VALUE)
    _plant(problem, request, keys, values)
    return keys, values


def _plant(problem: Problem, request: Request, keys: torch.Tensor, values: torch.Tensor) -> None:
    """Puts what is no finite number where the kind of data says; `request_queries` does so for `nan_query`.

    * `seen_nan`: one NaN in a key, or in requests of odd keys in a value, that every query sees.
    * `seen_inf`: one infinity in a key, or in every third request in a value, that every query sees. By the signs of
      the queries, such a key has a score of -inf and so no weight, or one of +inf. Where a query sees no other key, and
      would be left with no weight at all, it is in the value.
    * `all_nan`: all keys, of requests of odd keys.
    * `nan_query`: one NaN in one head of the middle query of each request.
    * `unseen_nan`: all keys and values that no query sees, NaN and infinities by turns.
    * `hidden_nan`: the last key and value, NaN or infinite, where the mask hides them from all queries but the last.
    """
    first = 0 if problem.mask is Mask.CROSS else request.encoder_len
    seen = problem.seen_by_all(request)
    if problem.data == "seen_nan" and seen:
        (values if request.key % 2 else keys)[first + seen[len(seen) // 2], 0, 1] = torch.nan
    if problem.data == "seen_inf" and seen:
        in_value = request.key % 3 == 2 or len(seen) == 1
        (values if in_value else keys)[first + seen[len(seen) // 2], 0, 1] = torch.inf
    if problem.data == "all_nan" and request.key % 2:
        keys.fill_(torch.nan)
    if problem.data == "unseen_nan":
        for hidden in problem.hidden_slots(request):
            for turn in range(2):
                slots = slice(hidden.start + turn, hidden.stop, 2)
                _spoil(keys[slots], values[slots], infinite_keys=turn == 0)
    if problem.data == "hidden_nan" and problem.hides_last_key(request):
        _spoil(keys[-1:], values[-1:], infinite_keys=request.key % 2 == 0)


def _spoil(keys: torch.Tensor, values: torch.Tensor, *, infinite_keys: bool) -> None:
    """Makes keys NaN and their values infinite, or the other way round: who takes out but one of both fails at one.

    A query that sees them gets NaN in either case.
    """
    if infinite_keys:
        # In one element: infinite scores, where those of infinite vectors would be NaN.
        keys[..., 1] = torch.inf
        values.fill_(torch.nan)
    else:
        keys.fill_(torch.nan)
        values.fill_(torch.inf)


def _values(
    problem: Problem, request: Request, role: Role, start: int, stop: int, device: torch.device
) -> torch.Tensor:
    """One request's tokens at positions `start` to `stop`, in the problem's dtype."""
    geometry = problem.geometry
    shape = (geometry.num_heads if role is Role.QUERY else geometry.num_kv_heads, geometry.head_dim)
    if is_drawn_here(problem.data, (stop - start) * shape[0] * shape[1], device):
        return drawn_values(problem.seed, request.key, role, shape, start, stop, problem.data, problem.dtype, device)

    def between(start: int, stop: int) -> np.ndarray:
        return token_values(problem.seed, request.key, role, geometry, start, stop)

    values = shaped(between(start, stop), lambda: between(0, 1), role, problem.data, problem.dtype)
    return torch.tensor(values, dtype=torch.float32).to(DTYPES[problem.dtype]).to(device)
