"""Cases: the batches that suites run, by tier, with lengths at and around an implementation's own edges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from samebits.backends.contract import Tiling
from samebits.backends.problem import DTYPE_NAMES, Geometry, Mask, Problem, Request
from samebits.backends.token_problem import TokenOperation
from samebits.harness.geometries import GEOMETRIES
from samebits.harness.records import TIERS
from samebits.harness.relations import AnyProblem

# Makes the requests of a batch from a page size and a tiling.
_BatchMaker = Callable[[int, Tiling], list[Request]]


@dataclass(frozen=True)
class Case:
    """A base problem, apart from dtype and tiling.

    Attributes:
        geometry: shape of the layer.
        mask: which keys a query sees.
        batch: name of the batch.
        tier: smallest tier that holds the case.
        dtypes: those it has in that tier; in the nightly tier it has all.
    """

    geometry: Geometry
    mask: Mask
    batch: str
    tier: str
    dtypes: tuple[str, ...]

    @property
    def case_id(self) -> str:
        """Names the case across runs."""
        return f"{self.geometry.name}-{self.mask}-{self.batch}"

    def problem(self, dtype: str, tiling: Tiling, seed: int) -> Problem:
        """The base problem for an implementation's tiling."""
        requests = requests_under(self.mask, BATCHES[self.batch](self.geometry.page_size, tiling))
        return Problem(self.geometry, self.mask, dtype, tuple(requests), seed=seed)


@dataclass(frozen=True)
class GivenCase:
    """A problem that is given as it is, whatever the tiling.

    Attributes:
        given: the problem.
    """

    given: AnyProblem

    @property
    def mask(self) -> Mask | None:
        """Which keys a query sees; None where nothing is attended to."""
        return self.given.mask if isinstance(self.given, Problem) else None

    @property
    def geometry(self) -> Geometry | TokenOperation:
        """The sizes of what is computed."""
        return self.given.geometry if isinstance(self.given, Problem) else self.given.operation

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Its own dtype."""
        return (self.given.dtype,)

    @property
    def case_id(self) -> str:
        """Names the case, and not its requests."""
        return f"{self.geometry.name}-given"

    def problem(self, dtype: str, tiling: Tiling, seed: int) -> AnyProblem:
        """The problem."""
        return self.given


def requests_under(mask: Mask, requests: list[Request]) -> list[Request]:
    """A batch of self-attention as another mask has it: as many keys for each query, every other request causal."""
    if mask is Mask.CROSS:
        return [_crossed(request) for request in requests]
    if mask is Mask.PER_REQUEST:
        return [replace(request, causal=index % 2 == 0) for index, request in enumerate(requests)]
    return requests


def _crossed(request: Request) -> Request:
    """Turns decoder lengths into encoder lengths, so that the keys attended to are as many as without."""
    # A few decoder tokens stay, of which cross-attention must read none.
    return Request(request.key, request.query_len, context_len=2, encoder_len=request.seq_len)


def numbered(*lengths: tuple[int, int]) -> list[Request]:
    """Requests of (query_len, seq_len), keyed by their place."""
    return [Request(key, query_len, seq_len - query_len) for key, (query_len, seq_len) in enumerate(lengths, start=1)]


def _decode(page: int, tiling: Tiling) -> list[Request]:
    split = tiling.kv_split
    return numbered(*((1, length) for length in (2 * split + 3, split, split + 1, tiling.kv_tile - 1, page, 1)))


def _prefill(page: int, tiling: Tiling) -> list[Request]:
    length = tiling.kv_split + tiling.kv_tile + 1
    return numbered((length, length), (page, page), (page + 1, page + 1), (1, 1))


def _draft(page: int, tiling: Tiling) -> list[Request]:
    split = tiling.kv_split
    return numbered((4, 2 * split + 1), (2, tiling.kv_tile + 1), (16, split + 5), (5, 5))


def _mixed(page: int, tiling: Tiling) -> list[Request]:
    split = tiling.kv_split
    return numbered(
        (1, 2 * split + 3),
        (tiling.query_tile + 1, split + tiling.query_tile),
        (page + 1, page + 1),
        (3, split - 1),
        (1, page),
    )


def _pair(page: int, tiling: Tiling) -> list[Request]:
    """One of each kind, a decode and an extension of a cached prefix: relations put their dearest neighbours beside."""
    split = tiling.kv_split
    return numbered((1, 2 * split + 3), (tiling.query_tile + 1, split + tiling.query_tile))


def _edges(page: int, tiling: Tiling) -> list[Request]:
    """No keys, one key, more queries than keys, beside a request of two splits."""
    return numbered((1, 2 * tiling.kv_split + 1), (1, 0), (1, 1), (7, 3), (page, 0))


def _behind_encoder(page: int, tiling: Tiling) -> list[Request]:
    """Self-attention of requests whose slots begin with encoder tokens, of none, few and whole pages."""
    lengths = numbered((1, tiling.kv_split + 3), (page + 1, page + 1), (3, tiling.kv_tile + 2))
    return [
        Request(request.key, request.query_len, request.context_len, encoder_len)
        for request, encoder_len in zip(lengths, (7, 0, 2 * page), strict=True)
    ]


def _splits(page: int, tiling: Tiling) -> list[Request]:
    """Few queries over many splits: what a kernel shares among workers, and merges from scratch."""
    return numbered((6, 5 * tiling.kv_split + 3), (1, 2), (1, 1))


def _long(page: int, tiling: Tiling) -> list[Request]:
    """Enough keys for what accumulates badly to show, whatever the tiling."""
    return numbered((4, 1500), (1, 1027))


BATCHES: Mapping[str, _BatchMaker] = {
    "mixed": _mixed,
    "decode": _decode,
    "prefill": _prefill,
    "draft": _draft,
    "pair": _pair,
    "edges": _edges,
    "behind_encoder": _behind_encoder,
    "splits": _splits,
    "long": _long,
}

_BOTH, _FP32, _BF16 = ("fp32", "bf16"), ("fp32",), ("bf16",)
# What the smoke and the default tier hold; the nightly tier holds every geometry with every mask, batch and dtype.
# The smoke cases cover each mask in both dtypes, and the default ones divide the batches and geometries between them.
_SMOKE = (
    ("llama3-8b", Mask.CAUSAL, "mixed", _BOTH),
    ("gemma2-9b", Mask.SLIDING_WINDOW, "mixed", _BOTH),
    ("llama3.2-11b-vision", Mask.CROSS, "mixed", _BOTH),
    ("llama3-8b", Mask.NON_CAUSAL, "draft", _BOTH),
)
_DEFAULT = (
    ("gpt-oss-20b", Mask.CAUSAL, "decode", _BF16),
    ("gpt-oss-20b", Mask.CAUSAL, "prefill", _FP32),
    ("qwen2.5-7b", Mask.CAUSAL, "draft", _FP32),
    ("deepseek-v3-prefill", Mask.CAUSAL, "edges", _BF16),
    ("llama3.2-11b-vision", Mask.CAUSAL, "behind_encoder", _FP32),
    ("gemma2-9b", Mask.CAUSAL, "decode", _FP32),
    ("phi-2", Mask.NON_CAUSAL, "edges", _BF16),
    ("mistral-7b", Mask.SLIDING_WINDOW, "pair", _BF16),
    ("llama3.2-11b-vision", Mask.CROSS, "edges", _FP32),
    ("granite-3-2b", Mask.CAUSAL, "pair", _FP32),
    ("granite-3-2b", Mask.NON_CAUSAL, "pair", _FP32),
    ("granite-3-2b", Mask.CROSS, "pair", _BF16),
    ("phi-3-mini", Mask.PER_REQUEST, "pair", _FP32),
)


def cases(tier: str) -> Iterator[Case]:
    """The cases of a tier, those of the smaller tiers first.

    Args:
        tier: one of `TIERS`.
    """
    chosen = set()
    for name, entries in (("smoke", _SMOKE), ("default", _DEFAULT)):
        if TIERS.index(name) > TIERS.index(tier):
            return
        for geometry, mask, batch, dtypes in entries:
            chosen.add((geometry, mask, batch))
            yield Case(GEOMETRIES[geometry], mask, batch, name, dtypes)
    if tier != "nightly":
        return
    for shape in GEOMETRIES.values():
        for mask in Mask:
            for batch in BATCHES:
                impossible = mask is Mask.SLIDING_WINDOW and shape.window is None
                pointless = mask is Mask.CROSS and batch == "behind_encoder"
                if not (impossible or pointless or (shape.name, mask, batch) in chosen):
                    yield Case(shape, mask, batch, "nightly", DTYPE_NAMES)
