"""One plain correct kernel, and how attention is misread: controls of the semantics suite, and of what masks hide."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from samebits.backends.contract import AttentionConfig, AttentionMetadata, Claims, Tiling
from samebits.backends.problem import Mask, Strides
from samebits.backends.support import Support
from samebits.harness.controls.kernels import AttentionControl, Call, finite
from samebits.harness.crossed import crossed_cases
from samebits.harness.matrix import Flaw, Symptom
from samebits.harness.strides import strides_of, whole_memory


@dataclass(frozen=True)
class Reading:
    """How one request of a batch is understood.

    Attributes:
        index: place of the request in the batch.
        query_len: of the request.
        kv_start, kv_len: its attended slots, counted from its first slot.
        causal: whether a query sees no later key.
        window, softcap, scale: of the layer.
        sinks: whether the layer's sinks take part.
        page_size: tokens per page.
        head_map: the key/value head of each query head.
        strides: what the strides of a cache are taken for, from the cache and that of the keys.
        offset: what the offsets of pages come to, from what they are: int64, in elements.
        writes_blind_rows: whether rows that see nothing are written.
        skips_hidden: whether a value that a query does not see is left out of its sum, whatever it holds.
    """

    index: int
    query_len: int
    kv_start: int
    kv_len: int
    causal: bool
    window: int | None
    softcap: float | None
    scale: float
    sinks: bool
    page_size: int
    head_map: tuple[int, ...]
    strides: Callable[[torch.Tensor, torch.Tensor], tuple[int, ...]] = lambda cache, keys: cache.stride()
    offset: Callable[[torch.Tensor], torch.Tensor] = lambda offset: offset
    writes_blind_rows: bool = True
    skips_hidden: bool = True


@dataclass(frozen=True)
class Misreading(Flaw):
    """A way to misunderstand attention.

    Attributes:
        changed: the reading that the misunderstanding makes of the right one.
        case: which of the check's cases shows it.
    """

    changed: Callable[[Reading, AttentionMetadata], Reading]
    case: int = 0


def _times_0(reading: Reading, metadata: AttentionMetadata) -> Reading:
    return replace(reading, skips_hidden=False)


# Controls of the dtype suite: what the mask hides may be NaN.
LEAKS: tuple[Misreading, ...] = (
    Misreading(
        "unseen_times_0",
        "unseen_nan",
        "values that no query sees are multiplied by weights of 0",
        _times_0,
        symptom=Symptom.BITS,
    ),
    Misreading(
        "hidden_times_0",
        "hidden_nan",
        "values that a query does not see are multiplied by weights of 0",
        _times_0,
        symptom=Symptom.BITS,
    ),
)


def _encoder_start(reading: Reading, metadata: AttentionMetadata) -> int:
    encoder = metadata.encoder_seq_lens
    return 0 if encoder is None else int(encoder[reading.index])


def _first_encoder(metadata: AttentionMetadata) -> int:
    return 0 if metadata.encoder_seq_lens is None else int(metadata.encoder_seq_lens[0])


def _length_without_idle(reading: Reading, metadata: AttentionMetadata) -> int:
    """The self-attended length of the request whose place in the batch is the number of live requests before it."""
    live = metadata.query_start_loc.diff()[: reading.index] > 0
    return int(metadata.seq_lens[int(live.sum())])


def _as_if_contiguous(reading: Reading, metadata: AttentionMetadata) -> Reading:
    return replace(reading, strides=lambda cache, keys: strides_of(tuple(cache.shape), Strides.CONTIGUOUS))


def _swapped(head_map: tuple[int, ...]) -> tuple[int, ...]:
    """Query heads dealt out to the key/value heads in turn, rather than in blocks."""
    heads = max(head_map) + 1
    return tuple(head % heads for head in range(len(head_map)))


def _in_padded_groups(head_map: tuple[int, ...]) -> tuple[int, ...]:
    bits = (head_map.count(0) - 1).bit_length()
    return tuple(head >> bits for head in range(len(head_map)))


MISREADINGS: tuple[Misreading, ...] = (
    Misreading(
        "window_without_itself",
        "window",
        "the window counts the keys before the query's own",
        lambda reading, _: replace(reading, window=None if reading.window is None else reading.window + 1),
    ),
    Misreading(
        "softcap_ignored", "softcap", "scores are not capped", lambda reading, _: replace(reading, softcap=None)
    ),
    Misreading(
        "scale_from_head_dim",
        "scale",
        "the scale is head_dim ** -0.5 whatever was asked for",
        lambda reading, _: replace(reading, scale=64**-0.5),
    ),
    Misreading("sinks_ignored", "sinks", "sinks take no weight", lambda reading, _: replace(reading, sinks=False)),
    Misreading(
        "heads_dealt_out",
        "groups",
        "query head h takes key/value head h modulo their number",
        lambda reading, _: replace(reading, head_map=_swapped(reading.head_map)),
        case=2,
    ),
    Misreading(
        "scale_from_padded_head_dim",
        "head_dim",
        "the scale is that of head_dim padded to a power of two",
        lambda reading, _: replace(reading, scale=128**-0.5),
        case=1,
    ),
    Misreading(
        "pages_of_16",
        "page_size",
        "pages are taken to hold 16 tokens",
        lambda reading, _: replace(reading, page_size=16),
    ),
    Misreading(
        "offset_in_cross",
        "cross",
        "cross-attention starts behind the encoder slots",
        lambda reading, metadata: replace(reading, kv_start=_encoder_start(reading, metadata)),
    ),
    Misreading(
        "first_encoder_for_all",
        "cross",
        "the first request's encoder length is used for all",
        lambda reading, metadata: replace(reading, kv_len=_first_encoder(metadata)),
    ),
    Misreading(
        "no_encoder_offset",
        "behind_encoder",
        "self-attention starts at the request's first slot",
        lambda reading, _: replace(reading, kv_start=0),
    ),
    Misreading(
        "always_causal",
        "block",
        "queries of a block see no later key of it",
        lambda reading, _: replace(reading, causal=True),
    ),
    Misreading(
        "causal_as_the_first",
        "per_request",
        "the first request decides for all whether they are causal",
        lambda reading, metadata: replace(
            reading, causal=metadata.causal_requests is None or bool(metadata.causal_requests[0])
        ),
    ),
    Misreading(
        "blind_rows_unwritten",
        "edges",
        "rows that see no key are left as they are",
        lambda reading, _: replace(reading, writes_blind_rows=False),
    ),
    Misreading(
        "idle_requests_skipped",
        "idle",
        "requests without a query are left out of the count by which lengths are looked up",
        lambda reading, metadata: replace(reading, kv_len=_length_without_idle(reading, metadata)),
    ),
    Misreading(
        "later_splits_dropped",
        "splits",
        "no more than 128 keys are read, four of the splits below",
        lambda reading, _: replace(reading, kv_len=min(reading.kv_len, 128)),
    ),
    Misreading(
        "contiguous_assumed",
        "strided_interleaved",
        "the caches are read as if they were contiguous",
        _as_if_contiguous,
    ),
    Misreading(
        "slots_outside_heads",
        "strided_heads_first",
        "a page is taken to hold one slot after another",
        _as_if_contiguous,
    ),
    Misreading(
        "heads_beside_one_another",
        "strided_padded_heads",
        "a head is taken to end where the next begins",
        lambda reading, _: replace(reading, strides=lambda cache, keys: (*cache.stride()[:2], cache.shape[3], 1)),
    ),
    Misreading(
        "strides_of_the_keys",
        "strided_mixed_order",
        "values are read by the strides of the keys",
        lambda reading, _: replace(reading, strides=lambda cache, keys: keys.stride()),
    ),
    Misreading(
        "offsets_in_32_bits",
        "far_pages",
        "offsets of pages are computed in 32 bits",
        lambda reading, _: replace(reading, offset=lambda offset: offset.to(torch.int32).to(torch.int64)),
    ),
    Misreading(
        "length_in_16_bits",
        "many_keys",
        "the number of keys is kept in 16 bits with a sign",
        lambda reading, _: replace(reading, kv_len=max(0, (reading.kv_len + (1 << 15)) % (1 << 16) - (1 << 15))),
    ),
    Misreading(
        "heads_in_padded_groups",
        "crossed",
        "groups of query heads are taken to be as large as the next power of two",
        lambda reading, _: replace(reading, head_map=_in_padded_groups(reading.head_map)),
        # The first of a table of options whose heads it mistakes.
        case=next(place for place, case in enumerate(crossed_cases("default")) if case.geometry.group_size == 7),
    ),
)


class PlainKernel(AttentionControl):
    """Attention in float64, one request after another, with its understanding open to damage."""

    claims = Claims(ignores_unread_memory=False, source="a softmax in float64 over all keys of a request")
    support = Support(dtypes=("fp32",), masks=tuple(Mask), encoder_offset=True, lse=True, sinks=True)
    tiling = Tiling(query_tile=16, kv_tile=16, kv_split=32)
    flaw: Misreading | None

    def __init__(self, flaw: Misreading | None = None) -> None:
        """Makes the correct kernel, or one that misreads something."""
        self.flaw = flaw
        self.name = flaw.name if flaw else "correct_reading"

    @property
    def parent(self) -> PlainKernel:
        """The correct kernel."""
        return PlainKernel()

    def compute(self, call: Call) -> None:
        """Computes one request after another."""
        config, metadata = call.plan.config, call.plan.metadata
        for index, rows in enumerate(call.plan.query_rows):
            reading = self._reading(index, rows.stop - rows.start, config, metadata)
            key, value = (
                _gather(cache, reading.strides(cache, call.key_cache), metadata.block_table[index], reading)
                for cache in (call.key_cache, call.value_cache)
            )
            result, result_lse = _attend(call.query[rows].transpose(0, 1).double(), key, value, config.sinks, reading)
            written = torch.ones(result.shape[1], dtype=torch.bool)
            if not reading.writes_blind_rows:
                written = (result_lse > -math.inf).any(dim=0)
            call.output[rows][written] = result.transpose(0, 1)[written].to(call.output.dtype)
            call.lse[:, rows] = result_lse.to(call.lse.dtype)

    def _reading(self, index: int, query_len: int, config: AttentionConfig, metadata: AttentionMetadata) -> Reading:
        causal = metadata.causal if metadata.causal_requests is None else bool(metadata.causal_requests[index])
        reading = Reading(
            index=index,
            query_len=query_len,
            kv_start=int(metadata.kv_starts(config.mask)[index]),
            kv_len=int(metadata.kv_lens(config.mask)[index]),
            causal=causal,
            window=config.window,
            softcap=config.softcap,
            scale=config.scale,
            sinks=config.sinks is not None,
            page_size=config.page_size,
            head_map=tuple(head // config.group_size for head in range(config.num_heads)),
        )
        return self.flaw.changed(reading, metadata) if self.flaw else reading


def _gather(cache: torch.Tensor, strides: tuple[int, ...], pages: torch.Tensor, reading: Reading) -> torch.Tensor:
    """Attended keys or values of a request for each query head: float64 `[num_heads, kv_len, head_dim]`."""
    token = torch.arange(reading.kv_start, reading.kv_start + reading.kv_len)
    # A misreading may ask for pages that the table does not have.
    page = pages[(token // reading.page_size).clamp(max=len(pages) - 1)].long()
    slot = (token % reading.page_size).clamp(max=cache.shape[1] - 1)
    head = torch.tensor(reading.head_map)
    offset = reading.offset(page * strides[0]) + slot * strides[1]
    element = (head * strides[2]).view(-1, 1, 1) + offset.view(-1, 1) + torch.arange(cache.shape[3])
    return whole_memory(cache)[cache.storage_offset() + element].double()


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sinks: torch.Tensor | None, reading: Reading
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output `[num_heads, query_len, head_dim]` and log-sum-exp `[num_heads, query_len]`."""
    scores = query @ key.transpose(1, 2) * reading.scale
    if reading.softcap is not None:
        scores = torch.tanh(scores / reading.softcap) * reading.softcap
    visible = torch.ones(reading.query_len, reading.kv_len, dtype=torch.bool)
    if reading.causal:
        position = torch.arange(reading.query_len).unsqueeze(1) + reading.kv_len - reading.query_len
        token = torch.arange(reading.kv_len)
        visible = token <= position
        if reading.window is not None:
            visible &= token > position - reading.window
    scores = scores.masked_fill(~visible, -math.inf)
    if reading.sinks and sinks is not None:
        scores = torch.cat([scores, sinks.double().view(-1, 1, 1).expand(-1, reading.query_len, 1)], dim=2)
    lse = torch.logsumexp(scores, dim=2)
    # A sink takes weight, and has no value.
    weights = torch.exp(scores - finite(lse).unsqueeze(2))[:, :, : reading.kv_len]
    if not reading.skips_hidden:
        return weights @ value, lse
    seen = torch.where(visible.unsqueeze(2), value.unsqueeze(1), 0.0)
    return torch.einsum("hqk,hqkd->hqd", weights, seen), lse
