"""The scores of one request in float64, some queries and some keys at a time, so that memory is bounded.

Query heads that share a key/value head stand behind one another as rows of one matrix: no key is copied for each of
them, and one product serves all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from samebits.backends.problem import Mask, Problem, Request
from samebits.harness.batch import request_data, sinks_of

# Elements of the largest tensors of a block: 64 MiB each in float64, of which about a dozen live at the same time.
BLOCK_ELEMENTS = 1 << 23
# Queries that share the conversion of a block of keys, where there are as many.
_ROWS = 128


@dataclass(frozen=True)
class KeyBlock:
    """Queries of one request against some of its keys. A row is a query and one of the heads of its group.

    Attributes:
        query: float64 `[num_kv_heads, rows, head_dim]`.
        key, value: float64 `[num_kv_heads, keys, head_dim]`.
        visible: bool `[rows, keys]`, which keys each row sees.
        raw: float64 `[num_kv_heads, rows, keys]`, products of queries and keys.
        scores: the same after scale and softcap; `-inf` where the key is not visible.
        slope: derivative of those by the scaled product; of one element where it is 1 everywhere.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    visible: torch.Tensor
    raw: torch.Tensor
    scores: torch.Tensor
    slope: torch.Tensor


def row_ranges(problem: Problem, request: Request) -> list[range]:
    """The request's queries, divided so that a block of some keys fits its bound; one empty range where it has none."""
    geometry, count = problem.geometry, request.query_len
    keys = min(problem.kv_len(request), _keys_of_block(problem, min(count, _ROWS)))
    return _divided(range(count), BLOCK_ELEMENTS // (geometry.num_heads * max(keys, geometry.head_dim)))


def key_ranges(problem: Problem, request: Request, rows: range) -> list[range]:
    """Keys that some of the rows see, divided so that each block fits its bound; one empty range where they see none.

    Args:
        problem: gives mask and geometry.
        request: whose keys, counted from its first attended one.
        rows: queries of the request.
    """
    first, last = 0, problem.kv_len(request)
    if problem.is_causal(request):
        last = max(0, min(last, request.context_len + rows.stop))
        if problem.window is not None:
            first = max(0, min(last, request.context_len + rows.start - problem.window + 1))
    return _divided(range(first, last), _keys_of_block(problem, len(rows)))


def key_block(problem: Problem, request: Request, rows: range, keys: range, device: torch.device) -> KeyBlock:
    """Computes one block. The one of a request's last visible keys has the layer's sinks behind them.

    Args:
        problem: gives geometry, mask, dtype and data.
        request: whose queries and keys.
        rows: some of its queries.
        keys: some of its keys, counted from its first attended one.
        device: where to compute.
    """
    geometry, data = problem.geometry, request_data(problem, request, device)
    first = 0 if problem.mask is Mask.CROSS else request.encoder_len
    attended = slice(first + keys.start, first + keys.stop)
    key, value = (
        tensor[attended].transpose(0, 1).to(torch.float64, memory_format=torch.contiguous_format)
        for tensor in (data.keys, data.values)
    )
    query = data.queries[rows.start : rows.stop].transpose(0, 1).to(torch.float64)
    query = query.reshape(geometry.num_kv_heads, geometry.group_size * len(rows), geometry.head_dim)
    visible = visible_among(problem, request, rows, keys, device).repeat(geometry.group_size, 1)
    has_sinks = geometry.sinks and keys.stop == key_ranges(problem, request, rows)[-1].stop
    if has_sinks:
        # A sink is a key whose score is given, whatever the query, and whose value is 0.
        key, value = (torch.nn.functional.pad(tensor, (0, 0, 0, 1)) for tensor in (key, value))
        visible = torch.nn.functional.pad(visible, (0, 1), value=True)
    raw = query @ key.transpose(1, 2)
    scores, slope = _scaled(raw, problem)
    if has_sinks:
        of_rows = sinks_of(problem).to(scores).view(geometry.num_kv_heads, geometry.group_size)
        scores[:, :, -1] = of_rows.repeat_interleave(len(rows), dim=1)
    return KeyBlock(query, key, value, visible, raw, scores.masked_fill(~visible, -math.inf), slope)


def by_heads(of_rows: torch.Tensor, problem: Problem, rows: range) -> torch.Tensor:
    """A tensor of rows as blocks have them, taken apart into heads: `[num_heads, len(rows), ...]`."""
    return of_rows.reshape(problem.geometry.num_heads, len(rows), *of_rows.shape[2:])


def visible_among(problem: Problem, request: Request, rows: range, keys: range, device: torch.device) -> torch.Tensor:
    """Which of some keys each of some queries sees: bool `[len(rows), len(keys)]`. See `Mask`."""
    if not problem.is_causal(request):
        return torch.ones((len(rows), len(keys)), dtype=torch.bool, device=device)
    position = torch.arange(rows.start, rows.stop, device=device).unsqueeze(1) + request.context_len
    key = torch.arange(keys.start, keys.stop, device=device).unsqueeze(0)
    visible = key <= position
    if problem.window is not None:
        visible &= key > position - problem.window
    return visible


def _keys_of_block(problem: Problem, rows: int) -> int:
    geometry = problem.geometry
    return BLOCK_ELEMENTS // max(geometry.num_heads * rows, geometry.num_kv_heads * geometry.head_dim)


def _divided(whole: range, size: int) -> list[range]:
    size = max(1, size)
    return [whole[first : first + size] for first in range(0, len(whole), size)] or [whole]


def _scaled(raw: torch.Tensor, problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores after scale and softcap, and their derivative by the scaled score."""
    scaled = raw * problem.geometry.softmax_scale
    softcap = problem.geometry.softcap
    if softcap is None:
        return scaled, scaled.new_ones(())
    capped = torch.tanh(scaled / softcap)
    return capped * softcap, 1.0 - capped**2
