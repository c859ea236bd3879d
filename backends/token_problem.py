"""Operations that treat each token by itself, as plain data: rotary embedding, cache write, merge, linear, RMSNorm.

As with attention, a `TokenProblem` determines every tensor of a run, and nothing here needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from samebits.backends.problem import POISON_NAMES, Circumstances, OfRequests, Request, Strides


@dataclass(frozen=True)
class RotaryEmbedding:
    """Rotates pairs of elements of each query and key head by angles that grow with the token's position.

    Attributes:
        name: short name used in case ids.
        num_heads, num_kv_heads, head_dim: of queries and keys.
        rotary_dim: how many of a head's first elements are rotated, an even number; the others stay as they are.
        interleaved: which elements form a pair: `2i` and `2i + 1` (GPT-J), or `i` and `i + rotary_dim / 2` (NeoX).
        inverse: rotate back.
        cache_dtype: of the cosines and sines; None for that of the queries.
        max_position: positions that the cache holds.
    """

    operation: ClassVar[str] = "rope"

    name: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int
    interleaved: bool = False
    inverse: bool = False
    cache_dtype: str | None = None
    max_position: int = 4096

    def __post_init__(self) -> None:
        if not 0 < self.rotary_dim <= self.head_dim or self.rotary_dim % 2:
            raise ValueError(
                f"rotary embedding {self.name!r} has rotary_dim={self.rotary_dim}; it must be an even number from 2 to "
                f"head_dim={self.head_dim}"
            )


@dataclass(frozen=True)
class CacheWrite:
    """Stores keys and values of new tokens in the slots of a page cache, bit by bit.

    Attributes:
        name: short name used in case ids.
        num_kv_heads, head_dim, page_size: of the cache.
    """

    operation: ClassVar[str] = "cache_write"

    name: str
    num_kv_heads: int
    head_dim: int
    page_size: int = 16


@dataclass(frozen=True)
class MergeStates:
    """Merges the attention of one query over two sets of keys, by their log-sum-exps.

    Attributes:
        name: short name used in case ids.
        num_heads, head_dim: of the outputs.
    """

    operation: ClassVar[str] = "merge"

    name: str
    num_heads: int
    head_dim: int


@dataclass(frozen=True)
class Linear:
    """`y = x W^T + b`, as a projection before or after attention.

    Attributes:
        name: short name used in case ids.
        in_features, out_features: rows of `W` have `in_features` elements.
        bias: whether there is `b`.
    """

    operation: ClassVar[str] = "linear"

    name: str
    in_features: int
    out_features: int
    bias: bool = False


@dataclass(frozen=True)
class RmsNorm:
    """`y = x / sqrt(mean(x^2) + epsilon) * w` (Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019).

    Attributes:
        name: short name used in case ids.
        size: elements of a row.
        epsilon: added to the mean square.
    """

    operation: ClassVar[str] = "rms_norm"

    name: str
    size: int
    epsilon: float = 1e-6


TokenOperation = RotaryEmbedding | CacheWrite | MergeStates | Linear | RmsNorm
TOKEN_OPERATIONS: tuple[type[TokenOperation], ...] = (RotaryEmbedding, CacheWrite, MergeStates, Linear, RmsNorm)


@dataclass(frozen=True)
class TokenLayout:
    """Where the tokens lie in memory. No field of it may change a token's result.

    Attributes:
        padding_tokens: rows after the last request's; what is computed for them is nobody's.
        strides: how far apart elements lie. Of each pair of tensors the second is as outputs and values are there:
            values, value caches, keys beside queries, suffixes beside prefixes. Inputs of a linear or a norm have no
            heads, so that only their rows are set apart.
        leading_dimensions: dimensions before the last of a linear's or a norm's input.
        page_seed: seed of the permutation that scatters slots over a cache.
        poison: what unreadable memory holds: `nan`, or `large` for large finite values.
        watched: whether allocations are watched while the operation runs.
    """

    padding_tokens: int = 0
    strides: Strides = Strides.CONTIGUOUS
    leading_dimensions: int = 1
    page_seed: int = 0
    poison: str = "nan"
    watched: bool = False

    def __post_init__(self) -> None:
        if self.poison not in POISON_NAMES:
            raise ValueError(f"layout has poison={self.poison!r}; it must be one of {', '.join(POISON_NAMES)}")
        if not 1 <= self.leading_dimensions <= 3:
            raise ValueError(f"layout has leading_dimensions={self.leading_dimensions}; it must be 1, 2 or 3")


@dataclass(frozen=True)
class TokenProblem(OfRequests):
    """Tokens to compute: all tensors follow from it.

    Attributes:
        operation: what is computed, and its sizes.
        dtype: `fp32`, `bf16` or `fp16`: of inputs and outputs alike.
        requests: whose tokens they are, in order. A request's tokens are at positions `context_len` to `seq_len`.
        layout: where they lie in memory.
        seed: seed of all data.
        data: kind of data, one of `DATA_NAMES`.
        circumstances: what surrounds the computation.
    """

    operation: TokenOperation
    dtype: str
    requests: tuple[Request, ...]
    layout: TokenLayout = field(default_factory=TokenLayout)
    seed: int = 0
    data: str = "normal"
    circumstances: Circumstances = field(default_factory=Circumstances)

    @property
    def must_be_refused(self) -> bool:
        """Whether the operation breaks a rule: a rotary cache is of the queries' dtype or float32."""
        cache_dtype = getattr(self.operation, "cache_dtype", None)
        return cache_dtype not in (None, "fp32", self.dtype)

    @property
    def work(self) -> int:
        """About how much there is to compute: tokens."""
        return self.num_tokens

    def __str__(self) -> str:
        tokens = " ".join(str(request) for request in self.requests)
        return f"{self.operation.operation} {self.operation.name} {self.dtype} {self.data} [{tokens}] {self.layout}"
