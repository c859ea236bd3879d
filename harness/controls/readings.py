"""Controls of the semantics suite: one plain correct kernel, and the ways in which attention is misread."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from samebits.backends.contract import AttentionConfig, AttentionMetadata, Availability, Claims, Implementation, Tiling
from samebits.backends.problem import Mask
from samebits.backends.support import Support


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
        contiguous: whether the strides of the caches are taken for those of a contiguous tensor.
        writes_blind_rows: whether rows that see nothing are written.
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
    contiguous: bool = False
    writes_blind_rows: bool = True


@dataclass(frozen=True)
class Misreading:
    """A way to misunderstand attention, and where it must show.

    Attributes:
        name: of the control.
        meaning: the check that must see it.
        description: what it does wrong, in a line.
        changed: the reading that the misunderstanding makes of the right one.
        case: which of the meaning's cases shows it.
        wrong_values: always True: the error budget is what must see it.
    """

    name: str
    meaning: str
    description: str
    changed: Callable[[Reading, AttentionMetadata], Reading]
    case: int = 0
    wrong_values: bool = True


@dataclass(frozen=True)
class Leak:
    """A correct kernel that multiplies hidden values by weights of 0, where NaN may lie.

    Attributes:
        name: of the control.
        check: the check that must see it.
        description: what it does wrong, in a line.
        wrong_values: False: bits differ.
    """

    name: str
    check: str
    description: str
    wrong_values: bool = False


LEAKS = (
    Leak("unseen_times_0", "unseen_nan", "values that no query sees are multiplied by weights of 0"),
    Leak("hidden_times_0", "hidden_nan", "values that a query does not see are multiplied by weights of 0"),
)


def _encoder_start(reading: Reading, metadata: AttentionMetadata) -> int:
    encoder = metadata.encoder_seq_lens
    return 0 if encoder is None else int(encoder[reading.index])


def _first_encoder(metadata: AttentionMetadata) -> int:
    return 0 if metadata.encoder_seq_lens is None else int(metadata.encoder_seq_lens[0])


def _swapped(head_map: tuple[int, ...]) -> tuple[int, ...]:
    """Query heads dealt out to the key/value heads in turn, rather than in blocks."""
    heads = max(head_map) + 1
    return tuple(head % heads for head in range(len(head_map)))


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
        case=3,
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
        "later_splits_dropped",
        "splits",
        "no more than 128 keys are read, four of the splits below",
        lambda reading, _: replace(reading, kv_len=min(reading.kv_len, 128)),
    ),
    Misreading(
        "contiguous_assumed",
        "strided",
        "the caches are read as if they were contiguous",
        lambda reading, _: replace(reading, contiguous=True),
    ),
)


class PlainKernel(Implementation[tuple[AttentionConfig, AttentionMetadata]]):
    """Attention in float64, one request after another, with its understanding open to damage."""

    backend = "CONTROL"
    claims = Claims(ignores_unread_memory=False, source="a softmax in float64 over all keys of a request")
    support = Support(dtypes=("fp32",), masks=tuple(Mask), encoder_offset=True, lse=True, sinks=True)
    tiling = Tiling(query_tile=16, kv_tile=16, kv_split=32)

    def __init__(self, flaw: Misreading | Leak | None = None) -> None:
        """Makes the correct kernel, under another name where it is a leak's, or one that misreads something."""
        self.flaw = flaw
        self.name = flaw.name if flaw else "correct_reading"

    def probe(self) -> Availability:
        """Runs wherever torch does."""
        return Availability(version=torch.__version__)

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> tuple[AttentionConfig, AttentionMetadata]:
        """Keeps what `run` needs."""
        self.require(config)
        return config, metadata

    def run(
        self,
        plan: tuple[AttentionConfig, AttentionMetadata],
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        """Computes one request after another."""
        assert lse is not None, "the harness asks for what Support declares"
        config, metadata = plan
        starts = metadata.query_start_loc.tolist()
        for index in range(metadata.num_requests):
            rows = slice(starts[index], starts[index + 1])
            reading = self._reading(index, rows.stop - rows.start, config, metadata)
            key, value = (_gather(cache, metadata.block_table[index], reading) for cache in (key_cache, value_cache))
            result, result_lse = _attend(query[rows].transpose(0, 1).double(), key, value, config.sinks, reading)
            written = torch.ones(result.shape[1], dtype=torch.bool)
            if not reading.writes_blind_rows:
                written = (result_lse > -math.inf).any(dim=0)
            output[rows][written] = result.transpose(0, 1)[written].to(output.dtype)
            lse[:, rows] = result_lse.to(lse.dtype)

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
        return self.flaw.changed(reading, metadata) if isinstance(self.flaw, Misreading) else reading


def _gather(cache: torch.Tensor, pages: torch.Tensor, reading: Reading) -> torch.Tensor:
    """Attended keys or values of a request for each query head: float64 `[num_heads, kv_len, head_dim]`."""
    if reading.contiguous:
        cache = cache.as_strided(cache.shape, torch.empty(cache.shape, device="meta").stride())
    token = torch.arange(reading.kv_start, reading.kv_start + reading.kv_len)
    # A misreading may ask for pages that the table does not have.
    page = pages[(token // reading.page_size).clamp(max=len(pages) - 1)].long()
    found = cache[page, (token % reading.page_size).clamp(max=cache.shape[1] - 1)]
    return found[:, list(reading.head_map)].transpose(0, 1).double()


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sinks: torch.Tensor | None, reading: Reading
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output `[num_heads, query_len, head_dim]` and log-sum-exp `[num_heads, query_len]`."""
    scores = query @ key.transpose(1, 2) * reading.scale
    if reading.softcap is not None:
        scores = torch.tanh(scores / reading.softcap) * reading.softcap
    if reading.causal:
        position = torch.arange(reading.query_len).unsqueeze(1) + reading.kv_len - reading.query_len
        token = torch.arange(reading.kv_len)
        visible = token <= position
        if reading.window is not None:
            visible &= token > position - reading.window
        scores = scores.masked_fill(~visible, -math.inf)
    if reading.sinks and sinks is not None:
        column = sinks.double().view(-1, 1, 1).expand(-1, reading.query_len, 1)
        scores = torch.cat([scores, column], dim=2)
        value = torch.nn.functional.pad(value, (0, 0, 0, 1))
    lse = torch.logsumexp(scores, dim=2)
    weights = torch.exp(scores - lse.masked_fill(lse == -math.inf, 0.0).unsqueeze(2))
    return weights @ value, lse
