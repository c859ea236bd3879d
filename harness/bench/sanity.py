"""Whether what was timed computes the problem at all: a fast implementation of something else is no news.

Right is what the suites say. Here some rows are held against plain torch, and all against whoever came first.
"""

from __future__ import annotations

import torch

from samebits.backends.operations import LinearTensors
from samebits.backends.token_problem import RmsNorm
from samebits.harness.bench.inputs import AttentionInputs, Inputs, TokenInputs

# Distance of a row from what it should be, as a share of its length. Rounding of any dtype stays far below.
_LOOSE = 0.1
# Requests, or rows of other operations, that are computed again.
_SAMPLED = 3
# Rows that are compared at a time, in float32.
_CHECKED_ROWS = 4096


def complaint(inputs: Inputs, accepted: torch.Tensor | None) -> str:
    """Why an output is not what was asked for, as one sentence; empty where it may be.

    Args:
        inputs: with the output.
        accepted: an output of the same inputs that another was found right in; None for none.
    """
    output = inputs.output
    if not torch.isfinite(output).all():
        return f"its output holds {int((~torch.isfinite(output)).sum()):,} numbers that are not finite"
    rows, expected = _sampled(inputs)
    found = _worst_distance(output[rows], expected)
    if found > _LOOSE:
        return f"a row of its output is {found:.0%} of its length away from what plain torch computes"
    if accepted is not None:
        found = max(map(_worst_distance, torch.split(output, _CHECKED_ROWS), torch.split(accepted, _CHECKED_ROWS)))
        if found > _LOOSE:
            return f"a row of its output is {found:.0%} of its length away from that of another implementation"
    return ""


def _worst_distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Of the rows that are furthest apart, as a share of the length of the second one."""
    found, expected = found.flatten(1).float(), expected.flatten(1).float()
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1).clamp_min(1e-30)).max())


def _sampled(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Some rows of the output, int64 on its device, and what they should hold in float32."""
    return _sampled_queries(inputs) if isinstance(inputs, AttentionInputs) else _sampled_tokens(inputs)


def _places(count: int) -> list[int]:
    """Evenly spread places among some, the first and the last among them."""
    return sorted({round(i * (count - 1) / (_SAMPLED - 1)) for i in range(_SAMPLED)})


def _sampled_queries(inputs: AttentionInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """The last query of some requests, which sees all of its keys under a causal mask too."""
    batch = inputs.batch
    config = batch.config
    rows, expected = [], []
    for request in _places(len(batch.query_rows)):
        row, slots = batch.query_rows[request].stop - 1, inputs.slots[request].to(batch.query.device)
        pages, offsets = slots // config.page_size, slots % config.page_size
        keys, values = (cache[pages, offsets].float() for cache in (batch.key_cache, batch.value_cache))
        query = batch.query[row].float().view(config.num_kv_heads, config.group_size, config.head_dim)
        weights = torch.einsum("hgd,khd->hgk", query, keys).mul(config.scale).softmax(dim=2)
        rows.append(row)
        expected.append(torch.einsum("hgk,khd->hgd", weights, values).reshape(config.num_heads, config.head_dim))
    return torch.tensor(rows, device=batch.query.device), torch.stack(expected)


def _sampled_tokens(inputs: TokenInputs) -> tuple[torch.Tensor, torch.Tensor]:
    tensors, operation = inputs.tensors, inputs.problem.operation
    rows = torch.tensor(_places(inputs.problem.num_tokens), device=tensors.output.device)
    values = tensors.input[rows].float()
    if isinstance(tensors, LinearTensors):
        return rows, values @ tensors.weight.float().T
    assert isinstance(operation, RmsNorm), "the other operation that is timed"
    scale = (values.square().mean(dim=1, keepdim=True) + operation.epsilon).rsqrt()
    return rows, values * scale * tensors.weight.float()
