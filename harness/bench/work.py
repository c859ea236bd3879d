"""What a problem costs at the least: bytes that must be moved and operations that must be done, whoever does them."""

from __future__ import annotations

from dataclasses import dataclass

from samebits.backends.problem import Problem
from samebits.backends.token_problem import Linear, RmsNorm, TokenProblem

_ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Work:
    """What must be done at least.

    Attributes:
        nbytes: read and written, each tensor once.
        flops: multiplications and additions of matrix products.
    """

    nbytes: int
    flops: int


def work_of(problem: Problem | TokenProblem) -> Work:
    """What a problem costs at the least.

    Of attention each query, key, value and output moves once, and each visible pair of a query and a key costs
    `4 * head_dim` operations in each query head: a product of queries with keys, and one of weights with values. The
    softmax between them is counted as nothing, and so are block tables and lengths.
    """
    item = _ITEM_BYTES[problem.dtype]
    if isinstance(problem, TokenProblem):
        return _work_of_tokens(problem, item)
    geometry, num_tokens, num_keys, pairs = problem.geometry, 0, 0, 0
    for request in problem.requests:
        num_tokens += request.query_len
        num_keys += problem.kv_len(request)
        pairs += _visible_pairs(request.query_len, problem.kv_len(request), causal=problem.is_causal(request))
    elements = 2 * num_tokens * geometry.num_heads + 2 * num_keys * geometry.num_kv_heads
    return Work(elements * geometry.head_dim * item, 4 * geometry.head_dim * geometry.num_heads * pairs)


def _visible_pairs(query_len: int, kv_len: int, *, causal: bool) -> int:
    """Pairs of a query and a key that it sees; a causal request has no more queries than keys."""
    hidden = query_len * (query_len - 1) // 2 if causal else 0
    return query_len * kv_len - hidden


def _work_of_tokens(problem: TokenProblem, item: int) -> Work:
    operation, num_tokens = problem.operation, problem.num_tokens
    if isinstance(operation, Linear):
        rows, columns = operation.in_features, operation.out_features
        moved = num_tokens * (rows + columns) + rows * columns
        return Work(moved * item, 2 * num_tokens * rows * columns)
    assert isinstance(operation, RmsNorm), f"{operation} is not timed"
    return Work((2 * num_tokens + 1) * operation.size * item, 0)
