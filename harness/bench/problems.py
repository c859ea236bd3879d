"""What is timed, as data: attention layers of whole models on batches of all kinds, linear layers and norms."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from samebits.backends.problem import Geometry, Layout, Mask, Problem, Request
from samebits.backends.token_problem import Linear, RmsNorm, TokenOperation, TokenProblem
from samebits.harness.bench.records import Group
from samebits.harness.records import UnusableInput

# Query length and keys of each request of a batch, those of its queries among the keys.
Lengths = tuple[tuple[int, int], ...]

_LLAMA3_8B = Geometry("llama3-8b", num_heads=32, num_kv_heads=8, head_dim=128, page_size=16)
# Besides the geometry above, one thing of which each changes.
_OTHER_GEOMETRIES = {
    "gqa1": replace(_LLAMA3_8B, name="gqa1", num_kv_heads=32),
    "gqa7": replace(_LLAMA3_8B, name="gqa7", num_heads=28, num_kv_heads=4),
    "hd64": replace(_LLAMA3_8B, name="hd64", head_dim=64),
    "hd96": replace(_LLAMA3_8B, name="hd96", head_dim=96),
    "hd256": replace(_LLAMA3_8B, name="hd256", num_heads=16, head_dim=256),
    "page128": replace(_LLAMA3_8B, name="page128", page_size=128),
}
_FEATURES = 4096
# The harness itself, which is named as a problem is.
HARNESS = "harness"
# In the order of tables: what serving uses first.
_DTYPES = ("bf16", "fp16", "fp32")
# An engine's block table is as wide as its longest context allows: its rows begin at multiples of this many entries.
# What `harness.placement` adds to each row is taken off.
_TABLE_MULTIPLE, _ADDED_COLUMNS = 16, 4


@dataclass(frozen=True)
class BenchProblem:
    """One thing to time.

    Attributes:
        name: what users call it. With `problem.dtype` it names one row of a table.
        group: which table it belongs to.
        problem: what is computed, whoever computes it.
        beside_flex: whether plain FlexAttention over contiguous keys and values is timed beside it.
    """

    name: str
    group: Group
    problem: Problem | TokenProblem
    beside_flex: bool = False

    @property
    def dtype(self) -> str:
        """Of queries, cache and output; of inputs and outputs."""
        return self.problem.dtype


def uniform(batch: int, query_len: int, kv_len: int) -> Lengths:
    """Requests that are alike: `batch` of `query_len` queries on `kv_len` keys, those of the queries among them."""
    return ((query_len, kv_len),) * batch


@dataclass(frozen=True)
class _Attention:
    """A batch of attention, before it has a dtype."""

    name: str
    lengths: Lengths
    geometry: Geometry = _LLAMA3_8B
    group: Group = Group.TABLE
    beside_flex: bool = False

    def in_dtype(self, dtype: str) -> BenchProblem:
        pages = max(-(-kv_len // self.geometry.page_size) for _, kv_len in self.lengths)
        problem = Problem(
            geometry=self.geometry,
            mask=Mask.CAUSAL,
            dtype=dtype,
            requests=tuple(
                Request(key=place, query_len=query_len, context_len=kv_len - query_len)
                for place, (query_len, kv_len) in enumerate(self.lengths)
            ),
            layout=Layout(extra_table_columns=-(pages + _ADDED_COLUMNS) % _TABLE_MULTIPLE),
        )
        return BenchProblem(self.name, self.group, problem, self.beside_flex)


@dataclass(frozen=True)
class _Tokens:
    """An operation on tokens, before it has a dtype."""

    name: str
    operation: TokenOperation
    num_tokens: int
    group: Group

    def in_dtype(self, dtype: str) -> BenchProblem:
        requests = (Request(key=0, query_len=self.num_tokens),)
        return BenchProblem(self.name, self.group, TokenProblem(self.operation, dtype, requests))


_Specified = _Attention | _Tokens


@dataclass(frozen=True)
class ProblemSet:
    """All that is timed on one kind of machine.

    Attributes:
        every_dtype: in float32, bfloat16 and float16.
        bf16_only: in bfloat16, which serving uses, alone.
        quick: names of those that `--quick` leaves, in bfloat16.
    """

    every_dtype: tuple[_Specified, ...]
    bf16_only: tuple[_Specified, ...]
    quick: tuple[str, ...]

    @property
    def by_name(self) -> dict[str, _Specified]:
        """All of them."""
        return {specified.name: specified for specified in self.every_dtype + self.bf16_only}

    def dtypes(self, name: str) -> tuple[str, ...]:
        """In which one of them is timed."""
        return _DTYPES if name in {specified.name for specified in self.every_dtype} else _DTYPES[:1]


def _decode(name: str, batch: int, kv_len: int, **more: object) -> _Attention:
    return _Attention(name, uniform(batch, 1, kv_len), **more)  # type: ignore[arg-type]


def _price(batch: int, kv_len: int) -> _Attention:
    """A decode that only the price of invariance is told of."""
    return _decode(f"decode-{batch}x{kv_len}", batch, kv_len, group=Group.PRICE)


def _off_table(name: str, lengths: Lengths, geometry: str = "") -> _Attention:
    return _Attention(name, lengths, _OTHER_GEOMETRIES[geometry] if geometry else _LLAMA3_8B, Group.OFF_TABLE)


def _linear(num_tokens: int) -> _Tokens:
    operation = Linear("square", in_features=_FEATURES, out_features=_FEATURES)
    return _Tokens(f"linear-{num_tokens}", operation, num_tokens, Group.LINEAR)


def _norm(num_tokens: int) -> _Tokens:
    return _Tokens(f"norm-{num_tokens}", RmsNorm("model", _FEATURES), num_tokens, Group.NORM)


# Lengths and batches whose times on an H100 are known of other libraries; D1 to S32 are their names.
_GPU = ProblemSet(
    every_dtype=(
        _decode("D1", 1, 131072),
        _decode("D8", 8, 16384),
        _decode("D64", 64, 4096, beside_flex=True),
        _decode("D256", 256, 1024),
        _Attention("P1", uniform(1, 8192, 8192), beside_flex=True),
        _Attention("P16", uniform(16, 1024, 1024)),
        _Attention("E4", uniform(4, 512, 16384)),
        _Attention("MIX", uniform(63, 1, 4096) + uniform(1, 2048, 4096)),
        _Attention("S32", uniform(32, 8, 4096)),
        *(_linear(num_tokens) for num_tokens in (1, 64, 512, 4096)),
        *(_norm(num_tokens) for num_tokens in (64, 4096, 32768)),
    ),
    bf16_only=(
        _off_table("gqa1-decode", uniform(16, 1, 4096), "gqa1"),
        _off_table("gqa1-prefill", uniform(2, 4096, 4096), "gqa1"),
        _off_table("gqa7-decode", uniform(64, 1, 4096), "gqa7"),
        _off_table("gqa7-prefill", uniform(2, 4096, 4096), "gqa7"),
        _off_table("hd64-decode", uniform(64, 1, 4096), "hd64"),
        _off_table("hd64-prefill", uniform(2, 4096, 4096), "hd64"),
        _off_table("hd96-decode", uniform(64, 1, 4096), "hd96"),
        _off_table("hd96-prefill", uniform(2, 4096, 4096), "hd96"),
        _off_table("hd256-decode", uniform(64, 1, 2048), "hd256"),
        _off_table("hd256-prefill", uniform(2, 4096, 4096), "hd256"),
        _off_table("kv1000-decode", uniform(64, 1, 1000)),
        _off_table("kv1000-prefill", uniform(16, 1000, 1000)),
        _off_table("kv33333-decode", uniform(4, 1, 33333)),
        _off_table("kv33333-extend", uniform(1, 512, 33333)),
        _off_table("batch3-decode", uniform(3, 1, 16384)),
        _off_table("batch17-decode", uniform(17, 1, 4096)),
        _off_table("batch17-prefill", uniform(17, 512, 512)),
        _off_table("page128-decode", uniform(64, 1, 4096), "page128"),
        _off_table("page128-prefill", uniform(1, 8192, 8192), "page128"),
        *(_price(1, kv_len) for kv_len in (1024, 4096, 16384, 65536)),
        *(_price(8, kv_len) for kv_len in (1024, 4096, 65536)),
        *(_price(64, kv_len) for kv_len in (1024, 16384)),
    ),
    quick=("D1", "D64", "P16", "MIX", "linear-64", "norm-4096"),
)

# Smaller, for two cores; far beyond their caches nevertheless, as each is timed with cold ones.
_PROCESSOR = ProblemSet(
    every_dtype=(
        _decode("D1-8k", 1, 8192),
        _decode("D8-4k", 8, 4096),
        _decode("D64-1k", 64, 1024, beside_flex=True),
        _Attention("P1-512", uniform(1, 512, 512)),
        _Attention("P1-2k", uniform(1, 2048, 2048), beside_flex=True),
        _Attention("P16-256", uniform(16, 256, 256)),
        _Attention("E4-2k", uniform(4, 128, 2048)),
        _Attention("MIX-16", uniform(15, 1, 2048) + uniform(1, 256, 1024)),
        _Attention("S8-1k", uniform(8, 8, 1024)),
    ),
    bf16_only=(
        *(_linear(num_tokens) for num_tokens in (1, 64, 512, 4096)),
        *(_norm(num_tokens) for num_tokens in (64, 4096)),
        _off_table("gqa1-decode-2k", uniform(4, 1, 2048), "gqa1"),
        _off_table("gqa7-decode-2k", uniform(8, 1, 2048), "gqa7"),
        _off_table("gqa7-prefill-512", uniform(2, 512, 512), "gqa7"),
        _off_table("hd64-decode-2k", uniform(8, 1, 2048), "hd64"),
        _off_table("hd64-prefill-512", uniform(2, 512, 512), "hd64"),
        _off_table("hd96-decode-2k", uniform(8, 1, 2048), "hd96"),
        _off_table("hd256-decode-1k", uniform(8, 1, 1024), "hd256"),
        _off_table("hd256-prefill-512", uniform(2, 512, 512), "hd256"),
        _off_table("batch17-decode-1000", uniform(17, 1, 1000)),
        _off_table("batch3-prefill-500", uniform(3, 500, 500)),
        _off_table("kv33333-decode-1", uniform(1, 1, 33333)),
        _off_table("page128-decode-4k", uniform(8, 1, 4096), "page128"),
        _off_table("page128-prefill-1k", uniform(1, 1024, 1024), "page128"),
        *(_price(1, kv_len) for kv_len in (1024, 32768)),
        _price(8, 1024),
    ),
    quick=("D1-8k", "D8-4k", "P1-512", "MIX-16", "linear-64", "norm-64"),
)

SETS = {"cpu": _PROCESSOR, "cuda": _GPU, "rocm": _GPU}


def chosen_problems(
    kind: str, names: Sequence[str] = (), dtypes: Sequence[str] = (), *, quick: bool = False
) -> tuple[BenchProblem, ...]:
    """The problems of a machine, or those that are named.

    Args:
        kind: of the machine, as `Platform.kind` has it.
        names: of problems, of this machine's or another's; empty for all of this machine's.
        dtypes: their names; empty for each problem's own. A problem that is named is timed in each of them.
        quick: whether a few are enough, in bfloat16 alone unless dtypes are named.

    Raises:
        UnusableInput: a name or a dtype is unknown.
    """
    for dtype in dtypes:
        if dtype not in _DTYPES:
            raise UnusableInput(f"unknown dtype {dtype!r}; known are {', '.join(_DTYPES)}")
    own = SETS[kind]
    known = dict(itertools.chain(*(each.by_name.items() for each in SETS.values()))) | own.by_name
    for name in names:
        if name not in known:
            raise UnusableInput(f"unknown problem {name!r}; known are {', '.join((*known, HARNESS))}")
    chosen: list[BenchProblem] = []
    for dtype in _DTYPES:
        for name in names or (own.quick if quick else own.by_name):
            of_problem = own.dtypes(name)[:1] if quick else own.dtypes(name)
            if dtype in (dtypes or of_problem) and (names or quick or dtype in of_problem):
                chosen.append(known[name].in_dtype(dtype))
    return tuple(chosen)


def told_problem(problem: Problem | TokenProblem) -> str:
    """A problem in the words of a table, for example `8 x 1 query on 4096 keys`.

    Requests that are alike are told once.
    """
    if isinstance(problem, TokenProblem):
        return _told_operation(problem.operation, problem.num_tokens)
    counts: dict[tuple[int, int], int] = {}
    for request in problem.requests:
        lengths = (request.query_len, request.seq_len)
        counts[lengths] = counts.get(lengths, 0) + 1
    parts = [
        f"{count} x {query_len} {'query' if query_len == 1 else 'queries'} on {kv_len} keys"
        for (query_len, kv_len), count in counts.items()
    ]
    geometry = problem.geometry
    heads = f"{geometry.num_heads} heads over {geometry.num_kv_heads} of {geometry.head_dim}"
    return f"{' and '.join(parts)}, {heads}, pages of {geometry.page_size}"


def _told_operation(operation: TokenOperation, num_tokens: int) -> str:
    rows = f"{num_tokens} row{'' if num_tokens == 1 else 's'}"
    if isinstance(operation, Linear):
        return f"{rows} of {operation.in_features} by {operation.out_features} x {operation.in_features} weights"
    assert isinstance(operation, RmsNorm), f"{operation} is not timed"
    return f"{rows} of {operation.size}"
