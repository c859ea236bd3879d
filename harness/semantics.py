"""The semantics suite: what each mask and each option of attention means, judged against the fp64 reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from samebits.backends.contract import Tiling
from samebits.backends.problem import (
    DTYPE_NAMES,
    Circumstances,
    Contradiction,
    Geometry,
    Mask,
    OtherLayer,
    Problem,
    Request,
    Strides,
)
from samebits.harness.cases import Case
from samebits.harness.crossed import crossed_cases
from samebits.harness.geometries import GEOMETRIES
from samebits.harness.other_layer import other_layer
from samebits.harness.records import TIERS
from samebits.harness.relations import Comparison, Relation

_LLAMA = GEOMETRIES["llama3-8b"]
# A request is shared among workers from a few splits on, and where few requests and queries keep too few of them busy.
_MANY_SPLITS = 5
# Above 2^15, and no multiple of a page.
_MANY_KEYS = 33001
# Keys of requests that are added to a case's own.
_IDLE_KEY = 1000
_Variants = Callable[[Problem, Tiling], Iterable[Problem]]


@dataclass(frozen=True)
class Meaning:
    """One thing that attention must get right.

    Attributes:
        check: judges outputs and log-sum-exps.
        cases: on which base problems.
        nightly_cases: makes those that the nightly tier adds.
    """

    check: Relation
    cases: tuple[Case, ...]
    nightly_cases: Callable[[], tuple[Case, ...]] = tuple


def _itself(problem: Problem, tiling: Tiling) -> Iterable[Problem]:
    yield problem


def _without_lse_too(problem: Problem, tiling: Tiling) -> Iterable[Problem]:
    yield problem
    # Another path, and the one that is mostly taken.
    yield replace(problem, circumstances=Circumstances(output_only=True))


def _layers(problem: Problem, tiling: Tiling) -> Iterable[Problem]:
    """One layer, at scores far from its sinks too, and another behind it in the same memory, whose sinks are others."""
    yield problem
    yield replace(problem, data="far_scores")
    if problem.mask is Mask.CAUSAL:
        yield replace(other_layer(problem), circumstances=Circumstances(other_layer=OtherLayer.IN_PLACE))


def _windows(problem: Problem, tiling: Tiling) -> Iterable[Problem]:
    page = problem.geometry.page_size
    longest = max(request.seq_len for request in problem.requests)
    # What the first call leaves behind is kept by each path for itself.
    yield replace(problem, circumstances=Circumstances(calls=2))
    for window in sorted({1, 2, page, page + 1, tiling.kv_tile - 1, tiling.kv_tile + 1, longest, longest + 1} - {0}):
        windowed = replace(problem, geometry=replace(problem.geometry, window=window))
        yield windowed
        # What a row makes of a tile that its window hides shows where every score lies far below 0.
        yield replace(windowed, data="far_scores")


def _softcaps(problem: Problem, tiling: Tiling) -> Iterable[Problem]:
    # The first squashes every score, the last none, and one is no whole number.
    for softcap in (1.0, 7.3, 30.0, 1000.0):
        yield replace(problem, geometry=replace(problem.geometry, softcap=softcap))
    # A tanh made of exponentials of its argument overflows.
    yield replace(problem, geometry=replace(problem.geometry, softcap=1.0), data="huge_scores")


def _scales(problem: Problem, tiling: Tiling) -> Iterable[Problem]:
    for scale in (1 / 64, 0.25, 144**-0.5):
        yield replace(problem, geometry=replace(problem.geometry, scale=scale))


def _blocks(problem: Problem, tiling: Tiling) -> Iterable[Problem]:
    """Blocks of 2 to 16 queries, as drafters of speculative decoding have them, all of one length and mixed."""
    split = tiling.kv_split
    for lengths in ((2, 2, 2), (7, 3, 16), (16, 16), (5, 1, 8, 2)):
        contexts = (split - 3, 0, split + 1, 1)
        yield problem.with_requests(
            *(Request(key, query, context) for key, (query, context) in enumerate(zip(lengths, contexts, strict=False)))
        )


def _mixed_causality(problem: Problem, tiling: Tiling) -> Iterable[Problem]:
    for parity in (0, 1):
        requests = (replace(request, causal=request.key % 2 == parity) for request in problem.requests)
        yield problem.with_requests(*requests)


def _encoders(problem: Problem, tiling: Tiling) -> Iterable[Problem]:
    """Encoder lengths of which none, the first, another, all but one and all are 0."""
    page = problem.geometry.page_size
    for lengths in ((3, page + 1, 2 * page), (0, 5, page), (page - 1, 0, 1), (0, 0, tiling.kv_tile + 1), (0, 0, 0)):
        requests = zip(problem.requests, lengths, strict=False)
        yield problem.with_requests(*(replace(request, encoder_len=length) for request, length in requests))


def _behind_encoders(problem: Problem, tiling: Tiling) -> Iterable[Problem]:
    """Encoder lengths as for cross-attention, and one before keys of many splits."""
    yield from _encoders(problem, tiling)
    end = _MANY_SPLITS * tiling.kv_split
    yield problem.with_requests(Request(1, 6, end - 3, problem.geometry.page_size + 3), Request(2, 1, 4, 5))


def _idle(problem: Problem, tiling: Tiling) -> Iterable[Problem]:
    """Requests that have keys and no query in this step, before, between and behind those that have one."""
    first, *others = problem.requests
    lengths = (5, 1, tiling.kv_tile + 1, 2)
    idle = [_ranging_over(problem, _IDLE_KEY + i, 0, length) for i, length in enumerate(lengths)]
    yield from _without_lse_too(problem.with_requests(idle[0], first, idle[1], idle[2], *others, idle[3]), tiling)
    # Nobody has a query: a step of padding alone, as where ranks step together and one has nothing to do.
    yield problem.with_requests(*idle).with_layout(padding_tokens=2)


def _splits(problem: Problem, tiling: Tiling) -> Iterable[Problem]:
    """One request, where the first of its queries see nothing of the last split; one beside a short neighbour; several.

    The several have queries of different numbers, so that what splits leave lies elsewhere than by any one of them, and
    one ends where a split does. A window spans some splits, and ends inside of one.
    """
    split, end = tiling.kv_split, _MANY_SPLITS * tiling.kv_split
    if problem.window is not None:
        problem = replace(problem, geometry=replace(problem.geometry, window=(_MANY_SPLITS - 1) * split + 1))
    for lengths in (((6, end + 3),), ((1, end + 1), (1, 1)), ((6, end + 3), (2, 2 * split), (9, end + 1))):
        yield problem.with_requests(*(_ranging_over(problem, key, *length) for key, length in enumerate(lengths)))


def _many_keys(problem: Problem, tiling: Tiling) -> Iterable[Problem]:
    """One decode on more keys than 16 bits with a sign count, in a last page that is not full."""
    yield problem.with_requests(_ranging_over(problem, 1, 1, _MANY_KEYS))


def _ranging_over(problem: Problem, key: int, query_len: int, kv_len: int) -> Request:
    """A request whose queries range over `kv_len` keys under the problem's mask."""
    if problem.mask is Mask.CROSS:
        return Request(key, query_len, encoder_len=kv_len)
    return Request(key, query_len, kv_len - query_len)


def _strided(strides: Strides) -> _Variants:
    """Padding rows too, so that there is a gap behind the last request's."""

    def variants(problem: Problem, tiling: Tiling) -> Iterable[Problem]:
        yield problem.with_layout(strides=strides, padding_tokens=2)

    return variants


def _far_pages(problem: Problem, tiling: Tiling) -> Iterable[Problem]:
    yield problem.with_layout(far_pages=True)


def _contradictions(problem: Problem, tiling: Tiling) -> Iterable[Problem]:
    for contradiction in Contradiction:
        yield replace(problem, circumstances=Circumstances(contradiction=contradiction))


def _judging(name: str, description: str, variants: _Variants, *, large: bool = False) -> Relation:
    def compare(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
        for variant in variants(problem, tiling):
            yield Comparison((variant,), ())

    return Relation(name, None, description, compare, large=large)


def _case(geometry: Geometry, mask: Mask, batch: str, dtypes: tuple[str, ...] = ("fp32", "bf16")) -> Case:
    return Case(geometry, mask, batch, "smoke", dtypes)


def _later(case: Case) -> Case:
    """The case in the default tier, where the smoke tier and what is spared do without it."""
    return replace(case, tier="default")


def _head_dim(head_dim: int) -> Geometry:
    return Geometry(f"head_dim_{head_dim}", num_heads=2, num_kv_heads=1, head_dim=head_dim)


def _group(size: int) -> Geometry:
    # Two key/value heads, so that a query head that takes the wrong one shows.
    return Geometry(f"group_{size}", num_heads=2 * size, num_kv_heads=2, head_dim=64)


def _page_size(page_size: int) -> Geometry:
    return replace(_LLAMA, name=f"page_size_{page_size}", page_size=page_size)


_VISION, _GRANITE = GEOMETRIES["llama3.2-11b-vision"], GEOMETRIES["granite-3-2b"]
# All of its query heads, on the one key/value head that they share.
_FALCON = Geometry("group_71", num_heads=71, num_kv_heads=1, head_dim=64)
# On two key/value heads, where the place of a query head in its group is not its place among all.
_SINKS = replace(GEOMETRIES["gpt-oss-20b"], name="sinks", num_kv_heads=2)
_WINDOWED, _CAPPED = replace(_LLAMA, name="windowed", window=33), replace(_LLAMA, name="capped", softcap=50.0)
_SELF_MASKS = (Mask.CAUSAL, Mask.NON_CAUSAL)
_FP32, _BF16 = ("fp32",), ("bf16",)

_MEANINGS = (
    Meaning(
        _judging("window", "a window counts the query's own key, at and around pages and tiles", _windows),
        (_case(_WINDOWED, Mask.SLIDING_WINDOW, "mixed"),),
    ),
    Meaning(
        _judging("softcap", "scores are scaled, then capped, then masked", _softcaps),
        (
            *(_case(_CAPPED, mask, "draft") for mask in _SELF_MASKS),
            _case(_CAPPED, Mask.CROSS, "draft", _BF16),
            # A sink's score is neither scaled nor capped.
            _case(replace(_SINKS, name="capped-sinks", softcap=50.0), Mask.CAUSAL, "draft", _FP32),
        ),
    ),
    Meaning(
        _judging("scale", "another scale than head_dim ** -0.5", _scales),
        (_case(_GRANITE, Mask.CAUSAL, "mixed"), _case(_GRANITE, Mask.CROSS, "draft", _FP32)),
    ),
    Meaning(
        _judging("sinks", "a sink takes weight in every mask, and gives no value", _layers),
        tuple(_case(_SINKS, mask, "draft") for mask in (*_SELF_MASKS, Mask.SLIDING_WINDOW, Mask.CROSS)),
    ),
    Meaning(
        _judging("groups", "1 to 16 query heads on one key/value head, and 71", _itself),
        (
            *(_case(_group(size), Mask.CAUSAL, "draft", _BF16) for size in (1, 3, 4, 7)),
            *(_later(_case(_group(size), Mask.CAUSAL, "draft", _BF16)) for size in (2, 5, 6, 8)),
            # Of more rows than a tile may have.
            *(_later(_case(geometry, Mask.CAUSAL, "draft", _BF16)) for geometry in (_group(16), _FALCON)),
        ),
    ),
    Meaning(
        _judging("head_dim", "head_dim 64 to 256, powers of two or not", _itself),
        (
            *(_case(_head_dim(size), Mask.CAUSAL, "draft", _BF16) for size in (64, 80, 96, 128, 192)),
            # The widest rows of the widest elements are what fits nowhere.
            _case(_head_dim(256), Mask.CAUSAL, "draft"),
        ),
    ),
    Meaning(
        _judging("page_size", "pages of 1 to 128 tokens", _itself),
        (
            *(_case(_page_size(size), Mask.CAUSAL, "draft", _BF16) for size in (1, 48, 64)),
            *(_later(_case(_page_size(size), Mask.CAUSAL, "draft", _BF16)) for size in (8, 32, 128)),
        ),
    ),
    Meaning(
        _judging("cross", "cross-attention reads the request's encoder slots, and only them", _encoders),
        (_case(_VISION, Mask.CROSS, "draft"),),
    ),
    Meaning(
        _judging("behind_encoder", "self-attention reads past the request's encoder slots", _behind_encoders),
        (
            *(_case(_VISION, mask, "draft") for mask in _SELF_MASKS),
            _case(replace(_VISION, name="windowed-vision", window=7), Mask.SLIDING_WINDOW, "draft"),
        ),
    ),
    Meaning(
        _judging("block", "blocks of 2 to 16 queries attend to all of their request, or to no later key", _blocks),
        (
            _case(_LLAMA, Mask.NON_CAUSAL, "draft"),
            _case(GEOMETRIES["qwen2.5-7b"], Mask.NON_CAUSAL, "draft", _BF16),
            # Drafts of one length are a path of their own.
            _case(_LLAMA, Mask.CAUSAL, "draft", _FP32),
        ),
    ),
    Meaning(
        _judging("per_request", "causal and non-causal requests in one batch", _mixed_causality),
        (_case(_LLAMA, Mask.PER_REQUEST, "draft"), _case(_VISION, Mask.PER_REQUEST, "behind_encoder", _BF16)),
    ),
    Meaning(
        _judging("edges", "no keys, one key, more queries than keys", _without_lse_too),
        (
            _case(_LLAMA, Mask.CAUSAL, "edges", DTYPE_NAMES),
            *(_case(_LLAMA, mask, "edges") for mask in (Mask.NON_CAUSAL, Mask.CROSS)),
            # The log-sum-exp of a row without keys is its sink.
            _case(_SINKS, Mask.CAUSAL, "edges", _FP32),
            _case(_WINDOWED, Mask.SLIDING_WINDOW, "edges"),
        ),
    ),
    Meaning(
        _judging("idle", "requests without a query stand between those that have one", _idle),
        (
            _case(_LLAMA, Mask.CAUSAL, "mixed", _BF16),
            *(_case(_LLAMA, mask, "draft", _FP32) for mask in (Mask.NON_CAUSAL, Mask.CROSS, Mask.PER_REQUEST)),
            _case(_WINDOWED, Mask.SLIDING_WINDOW, "draft", _BF16),
        ),
    ),
    Meaning(
        _judging("splits", "few queries over many splits, some of which are empty for some of them", _splits),
        (
            *(_case(_LLAMA, mask, "draft") for mask in (*_SELF_MASKS, Mask.CROSS)),
            _case(_WINDOWED, Mask.SLIDING_WINDOW, "draft", _FP32),
            # Tiles that begin inside of a group.
            _later(_case(GEOMETRIES["qwen2.5-0.5b"], Mask.CAUSAL, "draft", _FP32)),
        ),
    ),
    Meaning(
        _judging(
            "strided_interleaved",
            "queries sliced out of a projection, keys and values interleaved",
            _strided(Strides.INTERLEAVED),
        ),
        (_case(_VISION, Mask.CAUSAL, "draft"),),
    ),
    Meaning(
        _judging("strided_heads_first", "pages that hold one head after another", _strided(Strides.HEADS_FIRST)),
        (_case(_VISION, Mask.CAUSAL, "draft", _BF16),),
    ),
    Meaning(
        _judging("strided_padded_heads", "padded heads of queries and keys", _strided(Strides.PADDED_HEADS)),
        (_case(_VISION, Mask.CAUSAL, "draft", _FP32),),
    ),
    Meaning(
        _judging("strided_mixed_order", "keys slot by slot, values head by head", _strided(Strides.MIXED_ORDER)),
        tuple(_case(_VISION, mask, "draft", _FP32) for mask in (Mask.CAUSAL, Mask.NON_CAUSAL, Mask.CROSS)),
    ),
    Meaning(
        _judging("far_pages", "pages further apart than 32 bits count elements", _far_pages),
        (_case(GEOMETRIES["granite-3-2b"], Mask.CAUSAL, "draft", _FP32),),
    ),
    Meaning(
        _judging("many_keys", "a decode on more keys than 16 bits count", _many_keys, large=True),
        (_later(_case(Geometry("one_head", 1, 1, 64), Mask.CAUSAL, "decode", _FP32)),),
    ),
    Meaning(
        _judging("crossed", "any two values of masks, batches, sizes and options, and many threes", _without_lse_too),
        crossed_cases("default"),
        lambda: crossed_cases("nightly"),
    ),
    Meaning(
        _judging("contradictions", "metadata that contradict themselves are refused", _contradictions),
        (_case(_LLAMA, Mask.CAUSAL, "draft", _FP32),),
    ),
)

MEANINGS: Mapping[str, Meaning] = {meaning.check.name: meaning for meaning in _MEANINGS}


def semantic_cases(meaning: Meaning, tier: str) -> Iterator[Case]:
    """The cases of a meaning in a tier, each with the dtypes that it has outside of the nightly one.

    Args:
        meaning: one of `MEANINGS`.
        tier: one of `samebits.harness.records.TIERS`.
    """
    for case in meaning.cases:
        if TIERS.index(case.tier) <= TIERS.index(tier):
            yield case
    if tier == "nightly":
        yield from meaning.nightly_cases()
