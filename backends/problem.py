"""What is asked of a backend, as plain data: geometry, mask, requests and their place in memory.

A `Problem` determines every tensor of a run. It is frozen, comparable and hashable, so that runs can be cached,
drawn, shrunk and printed. Nothing here needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Self

from samebits.backends.graph_use import GraphUse

DTYPE_NAMES = ("fp32", "bf16", "fp16")
POISON_NAMES = ("nan", "large")
# Kinds of data; see `harness.dataset.shaped` for what each does to the values, and `harness.batch` for the last six.
DATA_NAMES = (
    "normal",
    "large_scores",
    "huge_scores",
    "negative_scores",
    "far_scores",
    "large_values",
    "huge_values",
    "offset_values",
    "ties",
    "denormal_values",
    "seen_nan",
    "seen_inf",
    "all_nan",
    "nan_query",
    "unseen_nan",
    "hidden_nan",
)


class Mask(StrEnum):
    """Which keys a query may see.

    With `p` the position of a query in its request's decoder sequence and `j` that of a key:

    * `CAUSAL`: `j <= p`.
    * `NON_CAUSAL`: every key of the decoder sequence, later ones too.
    * `SLIDING_WINDOW`: `p - window < j <= p`. `window` counts the keys a query sees, its own among them. This is the
      one place that states the convention; each adapter converts to its kernel's own.
    * `CROSS`: every key of the request's encoder sequence and no other.
    * `PER_REQUEST`: as `CAUSAL` for the requests that are causal, and as `NON_CAUSAL` for the others of the same batch.
    """

    CAUSAL = "causal"
    NON_CAUSAL = "non_causal"
    SLIDING_WINDOW = "sliding_window"
    CROSS = "cross"
    PER_REQUEST = "per_request"


class Strides(StrEnum):
    """How far apart the elements of queries, outputs and caches lie; those of a head follow one another in all of them.

    * `CONTIGUOUS`: every stride follows from the sizes behind it.
    * `INTERLEAVED`: rows, and pages, are twice as far apart: queries as a slice of a packed projection, keys and values
      page by page in one allocation.
    * `HEADS_FIRST`: rows, or the slots of a page, lie head by head ("HND" where `CONTIGUOUS` is "NHD").
    * `PADDED_HEADS`: heads of queries and keys are padded, those of outputs and values are not.
    * `MIXED_ORDER`: queries and keys as in `CONTIGUOUS`, outputs and values as in `HEADS_FIRST`.
    """

    CONTIGUOUS = "contiguous"
    INTERLEAVED = "interleaved"
    HEADS_FIRST = "heads_first"
    PADDED_HEADS = "padded_heads"
    MIXED_ORDER = "mixed_order"


@dataclass(frozen=True)
class Geometry:
    """The shape of one attention layer and of its page cache.

    Attributes:
        name: short name used in case ids, for example `llama3-8b`.
        num_heads: query heads.
        num_kv_heads: key/value heads; divides `num_heads`.
        head_dim: elements per head.
        page_size: tokens per page of the cache.
        window: keys a query sees under `Mask.SLIDING_WINDOW`, its own among them; None where the model has none.
        softcap: `s -> softcap * tanh(s / softcap)` on the scaled scores; None for none.
        scale: factor on `q . k`; None for `head_dim ** -0.5`.
        sinks: whether each head has a learned logit that enters its softmax beside those of the keys, and whose weight
            falls on no value.
    """

    name: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int = 16
    window: int | None = None
    softcap: float | None = None
    scale: float | None = None
    sinks: bool = False

    def __post_init__(self) -> None:
        for field_name in ("num_heads", "num_kv_heads", "head_dim", "page_size"):
            value = getattr(self, field_name)
            if value < 1:
                raise ValueError(f"geometry {self.name!r} has {field_name}={value}; it must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"geometry {self.name!r} has num_heads={self.num_heads}, which is not a multiple of "
                f"num_kv_heads={self.num_kv_heads}"
            )
        if self.window is not None and self.window < 1:
            raise ValueError(f"geometry {self.name!r} has window={self.window}; it must be at least 1, or None")

    @property
    def softmax_scale(self) -> float:
        """Factor applied to `q . k` before the softmax."""
        return self.head_dim**-0.5 if self.scale is None else self.scale

    @property
    def group_size(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads


@dataclass(frozen=True)
class Request:
    """One sequence in a batch.

    Attributes:
        key: names the request's data. Two requests with the same key hold the same bits at the same positions, in
            whatever batch, place or page they are.
        query_len: query tokens of this step.
        context_len: decoder tokens cached before the first query token. It may be negative, down to `-query_len`: the
            first `-context_len` queries then come before the first key and see nothing under a causal mask, which is
            how `query_len > seq_len` arises.
        encoder_len: encoder tokens, which hold the request's first slots.
        causal: whether a query sees no later key; looked at under `Mask.PER_REQUEST` only.
    """

    key: int
    query_len: int
    context_len: int = 0
    encoder_len: int = 0
    causal: bool = True

    def __post_init__(self) -> None:
        if self.query_len < 0 or self.encoder_len < 0:
            raise ValueError(f"request {self} has a negative query_len or encoder_len; both must be at least 0")
        if self.seq_len < 0:
            raise ValueError(
                f"request {self} has context_len={self.context_len}; it must be at least -query_len={-self.query_len}"
            )

    @property
    def seq_len(self) -> int:
        """Decoder tokens in the cache, those of this step included."""
        return self.context_len + self.query_len

    @property
    def num_slots(self) -> int:
        """Slots of the cache that belong to the request: encoder tokens first, then decoder tokens."""
        return self.encoder_len + self.seq_len

    def __str__(self) -> str:
        encoder = f"e{self.encoder_len}" if self.encoder_len else ""
        causal = "" if self.causal else ":full"
        return f"r{self.key}:q{self.query_len}c{self.context_len}{encoder}{causal}"


@dataclass(frozen=True)
class Layout:
    """Where a batch lies in memory. No field of it may change a request's result.

    Attributes:
        page_seed: seed of the permutation that scatters the requests' pages over the cache.
        pages_in_order: pages follow one another in memory, request by request, in place of any permutation.
        extra_table_columns: further columns of the block table; they hold stale page numbers.
        max_seq_len_slack: how far `max_seq_len` lies above the true maximum.
        padding_requests: requests of length 0 appended to the batch.
        padding_tokens: query rows after the last request's.
        strides: how far apart the elements of queries, outputs and caches lie.
        far_pages: pages of the caches begin further apart than 32 bits count elements, whatever the strides.
        poison: what unreadable memory holds: `nan`, or `large` for large finite values.
    """

    page_seed: int = 0
    pages_in_order: bool = False
    extra_table_columns: int = 0
    max_seq_len_slack: int = 0
    padding_requests: int = 0
    padding_tokens: int = 0
    strides: Strides = Strides.CONTIGUOUS
    far_pages: bool = False
    poison: str = "nan"

    def __post_init__(self) -> None:
        if self.poison not in POISON_NAMES:
            raise ValueError(f"layout has poison={self.poison!r}; it must be one of {', '.join(POISON_NAMES)}")


class OtherLayer(StrEnum):
    """How another layer of the same sizes is computed before the one that counts, by the same implementation.

    * `INTERLEAVED`: in memory of its own; where there are plans, it is planned after the one that counts.
    * `IN_PLACE`: in the memory of the one that counts, which is then filled with what counts, as engines refill theirs.
    """

    INTERLEAVED = "interleaved"
    IN_PLACE = "in_place"


class Contradiction(StrEnum):
    """How the metadata of a batch contradict themselves. Nothing can be computed from them.

    * `NARROW_TABLE`: the longest request has more pages than the block table has columns.
    * `DESCENDING_ROWS`: `query_start_loc` descends.
    * `MISSING_LENGTH`: there are fewer lengths than requests.
    """

    NARROW_TABLE = "narrow_table"
    DESCENDING_ROWS = "descending_rows"
    MISSING_LENGTH = "missing_length"


@dataclass(frozen=True)
class Circumstances:
    """What surrounds a computation. No field of it may change a request's result.

    Attributes:
        attempt: tells one repetition of the same call from another.
        scratch: what uninitialised memory holds, `nan` or `large`; None for what unreadable memory holds.
        shift: bytes by which tensors lie behind the start of their allocation, a multiple of 16.
        beside_work: whether other work runs at the same time.
        threads: threads within one operation on a processor; None for those of the session.
        calls: how often the batch is computed with one plan; the last time counts.
        other_layer: how another layer is computed before; None for not at all.
        second_process: whether it is computed in a process of its own, behind another first call.
        output_only: whether attention is asked for no log-sum-exp, as engines ask for none unless they merge.
        graph: how it is computed at padded sizes, as by a CUDA graph; None for a batch of its own sizes.
        contradiction: how its metadata contradict themselves, so that it must be refused; None where they do not.
    """

    attempt: int = 0
    scratch: str | None = None
    shift: int = 0
    beside_work: bool = False
    threads: int | None = None
    calls: int = 1
    other_layer: OtherLayer | None = None
    second_process: bool = False
    output_only: bool = False
    graph: GraphUse | None = None
    contradiction: Contradiction | None = None


class OfRequests:
    """What the problems of all operations share: requests in one dtype, somewhere in memory.

    It is no dataclass, so that each problem keeps its own order of fields.
    """

    dtype: str
    requests: tuple[Request, ...]
    data: str

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_NAMES:
            raise ValueError(f"problem has dtype={self.dtype!r}; it must be one of {', '.join(DTYPE_NAMES)}")
        if self.data not in DATA_NAMES:
            raise ValueError(f"problem has data={self.data!r}; it must be one of {', '.join(DATA_NAMES)}")
        keys = [request.key for request in self.requests]
        if not keys or len(set(keys)) != len(keys):
            raise ValueError(f"problem has request keys {keys}; there must be one at least, and each may occur once")

    @property
    def num_tokens(self) -> int:
        """Query tokens of all requests, without padding."""
        return sum(request.query_len for request in self.requests)

    def with_requests(self, *requests: Request) -> Self:
        """The same problem over another batch."""
        return replace(self, requests=requests)  # type: ignore[type-var]

    def with_layout(self, **changes: int | bool | str) -> Self:
        """The same problem at another place in memory."""
        return replace(self, layout=replace(self.layout, **changes))  # type: ignore[attr-defined,type-var]

    def without_surroundings(self) -> Self:
        """The same problem in the plainest place and circumstances: what decides its data and its results."""
        plainest = {"layout": type(self.layout)(), "circumstances": Circumstances()}  # type: ignore[attr-defined]
        return replace(self, **plainest)  # type: ignore[type-var]


@dataclass(frozen=True)
class Problem(OfRequests):
    """One batch to compute: all tensors follow from it.

    Attributes:
        geometry: shape of the layer and of the cache.
        mask: which keys a query sees.
        dtype: `fp32`, `bf16` or `fp16`: of queries, cache and output alike.
        requests: the batch, in order.
        layout: where the batch lies in memory.
        seed: seed of all data; the same request key under another seed is other data.
        data: kind of data, one of `DATA_NAMES`.
        circumstances: what surrounds the computation.
    """

    geometry: Geometry
    mask: Mask
    dtype: str
    requests: tuple[Request, ...]
    layout: Layout = field(default_factory=Layout)
    seed: int = 0
    data: str = "normal"
    circumstances: Circumstances = field(default_factory=Circumstances)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask is Mask.SLIDING_WINDOW and self.geometry.window is None:
            raise ValueError(f"problem has mask sliding_window, but geometry {self.geometry.name!r} has no window")

    @property
    def window(self) -> int | None:
        """Window in force: that of the geometry under `Mask.SLIDING_WINDOW`, else None."""
        return self.geometry.window if self.mask is Mask.SLIDING_WINDOW else None

    def is_causal(self, request: Request) -> bool:
        """Whether the request's queries see no later key."""
        if self.mask is Mask.PER_REQUEST:
            return request.causal
        return self.mask in (Mask.CAUSAL, Mask.SLIDING_WINDOW)

    def kv_len(self, request: Request) -> int:
        """Keys that the mask ranges over for this request."""
        return request.encoder_len if self.mask is Mask.CROSS else request.seq_len

    @property
    def work(self) -> int:
        """About how much there is to compute for each head: pairs of a query and a key, masked ones too."""
        return sum(request.query_len * self.kv_len(request) for request in self.requests)

    def seen_by_all(self, request: Request) -> range:
        """Keys that every query of the request sees, counted from its first attended one."""
        kv_len = self.kv_len(request)
        if not request.query_len:
            return range(0)
        if not self.is_causal(request):
            return range(kv_len)
        first = 0 if self.window is None else max(0, request.seq_len - self.window)
        return range(first, min(kv_len, request.context_len + 1))

    def hides_last_key(self, request: Request) -> bool:
        """Whether the last key is hidden from some of the request's queries, and not from the last."""
        return self.is_causal(request) and min(request.query_len, request.seq_len) > 1

    def hidden_slots(self, request: Request) -> tuple[range, ...]:
        """Slots of the request that none of its queries sees: of the other sequence, or left of all windows."""
        if self.mask is Mask.CROSS:
            return (range(request.encoder_len, request.num_slots),)
        left = 0 if self.window is None else max(0, request.context_len + 1 - self.window)
        return range(request.encoder_len), range(request.encoder_len, request.encoder_len + left)

    def __str__(self) -> str:
        batch = " ".join(str(request) for request in self.requests)
        return f"{self.geometry.name} {self.mask} {self.dtype} {self.data} [{batch}] {self.layout}"
