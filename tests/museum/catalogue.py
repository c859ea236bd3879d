"""All bugs of the museum: those that are planted, each with the suites that would see it, and why others are not."""

from __future__ import annotations

from samebits.harness.museum.catalogue import Entry, Exhibit, NotPlanted, Search

_CPU, _TORCH, _TRITON = "CPU/bundled", "CPU/torch", "TRITON_ATTN/bundled"
_FP32, _BF16 = ("fp32",), ("bf16",)

# Plain batches of the main suite, causal ones and others.
_INVARIANT = Search("batch_invariant", "llama3-8b-causal-mixed", _FP32)
_PAIR = Search("batch_invariant", "granite-3-2b-causal-pair", _FP32)
_EVERY_MEANING = Search("semantics")
_EDGES = Search("semantics", "llama3-8b-*-edges", _FP32)
_BLOCKS = Search("semantics", "llama3-8b-non_causal-draft", _FP32)
_SPLITS = Search("semantics", "llama3-8b-causal-draft", _FP32)
_BEHIND_ENCODER = Search("semantics", "llama3.2-11b-vision-*-draft", _FP32)
_REPEATED = Search("run_to_run", "llama3-8b-causal-splits")
_REPLAYED = Search("cuda_graph", "llama3-8b-causal-decode")
_GROUPS = Search("semantics", "group_*")
_BF16_ROTARY = Search("rope", "rope-llama3-8b", _BF16)
_BF16_BY_FP32 = Search("rope", "rope-llama3-8b-cache32", _BF16)
_PARTLY_ROTARY = Search("rope", "rope-gpt-neox-20b")
_INTERLEAVED = Search("rope", "rope-gpt-j-6b", _FP32)
_MERGED = Search("dtype", "merge-llama3-8b", _FP32)
_SMALL_ROTARY = Search("rope", "rope-llama3-8b", _FP32)


def _exhibit(
    file: str,
    name: str,
    title: str,
    trigger: str,
    *searches: Search,
    parent: str = _CPU,
    raises: str = "",
    smoke: bool = False,
) -> Exhibit:
    """A mutant of one backend's: its number is the first part of its name, in lower case."""
    label = f"{parent.split('/')[0]}/{name}"
    return Exhibit(name.split("-")[0].upper(), title, trigger, file, label, parent, searches, raises, smoke)


CATALOGUE: tuple[Entry, ...] = (
    _exhibit(
        "batch_variance",
        "b01-exponential-by-masked-tile",
        "another exponential where a tile is masked",
        "a row in a decode and in a prefill",
        _INVARIANT,
    ),
    _exhibit(
        "batch_variance",
        "b03-splits-by-occupancy",
        "number of splits from the occupancy of the batch",
        "a batch of other size",
        _INVARIANT,
        smoke=True,
    ),
    _exhibit(
        "batch_variance",
        "b05-tile-by-average-query",
        "tile from the average query length",
        "short queries beside a long one",
        _INVARIANT,
        smoke=True,
    ),
    _exhibit(
        "batch_variance",
        "b06-num-splits-thrown-away",
        "num_splits accepted and thrown away",
        "keys of two splits, alone and not",
        _INVARIANT,
        smoke=True,
    ),
    _exhibit(
        "batch_variance",
        "b09-chunks-from-context",
        "a cached prefix moves the grid of chunks",
        "a prefix that is cached",
        _INVARIANT,
    ),
    _exhibit(
        "batch_variance",
        "b10-merges-in-any-order",
        "partial results added as they arrive",
        "the same call again",
        _REPEATED,
    ),
    NotPlanted("B12", "deterministic=True ignored by a backward pass", "The harness checks no backward pass."),
    _exhibit(
        "boundary",
        "b17-rows-by-padded-tiles",
        "second stage counts rows in whole tiles",
        "several split requests, queries that fill no tile",
        _REPEATED,
        _PAIR,
    ),
    _exhibit("boundary", "b18-unchecked-bounds", "bounds check specialised away", "keys that fill no block", _BLOCKS),
    _exhibit(
        "boundary",
        "b21-end-from-first-slot",
        "relative offset compared with an absolute end",
        "keys that begin behind others",
        _BEHIND_ENCODER,
    ),
    _exhibit(
        "boundary",
        "b22-hidden-keys-score-0",
        "keys out of range score 0, not -inf",
        "keys that fill no block",
        _BLOCKS,
        smoke=True,
    ),
    _exhibit(
        "boundary",
        "b23-page-tail-unmasked",
        "tail of the last page not masked",
        "keys that fill no page",
        _BLOCKS,
        Search("semantics", "page_size_*"),
    ),
    _exhibit(
        "masking",
        "b25-always-causal",
        "causal=True hard-coded, non-causal advertised",
        "a block that is not causal",
        _BLOCKS,
        smoke=True,
    ),
    _exhibit(
        "masking",
        "b26-window-and-itself",
        "a window of W keys shows W + 1",
        "more keys than the window",
        Search("semantics", "windowed-sliding_window-mixed", _FP32),
        smoke=True,
    ),
    _exhibit(
        "masking",
        "b28-no-window-is-a-window",
        "the sentinel for no window taken for one",
        "no window",
        _SPLITS,
        smoke=True,
    ),
    _exhibit(
        "masking", "b30-aligned-to-the-first-key", "causal mask aligned top-left", "more keys than queries", _SPLITS
    ),
    _exhibit(
        "masking",
        "b31-causal-beside-another-mask",
        "causal mask only beside another mask",
        "a causal batch without window or sinks",
        _SPLITS,
        parent=_TORCH,
        smoke=True,
    ),
    _exhibit(
        "masking",
        "b33-blocks-as-decodes",
        "a block decoded as one row, not causal",
        "two to sixteen queries of each request",
        _SPLITS,
        smoke=True,
    ),
    _exhibit(
        "paging",
        "b34-no-encoder-offset",
        "self-attention reads the encoder's slots",
        "encoders of some requests",
        _BEHIND_ENCODER,
        smoke=True,
    ),
    _exhibit(
        "paging",
        "b36-pages-for-requests",
        "one length repeated for each page",
        "requests of one length",
        _INVARIANT,
        raises="ValueError",
        smoke=True,
    ),
    _exhibit(
        "boundary",
        "b37-rows-by-longest-query",
        "combine of splits takes packed rows for padded ones",
        "several split requests of several lengths",
        _REPEATED,
        _PAIR,
    ),
    _exhibit(
        "paging",
        "b39-last-of-a-page",
        "a table inverted as if pages were named once",
        "stale entries that name a page again",
        _SPLITS,
        parent=_TORCH,
        smoke=True,
    ),
    _exhibit(
        "paging",
        "b42-pages-of-one-slot",
        "pages of one slot assumed",
        "larger pages",
        Search("semantics", "page_size_*"),
        parent=_TORCH,
        smoke=True,
    ),
    _exhibit(
        "uninitialised",
        "b44-empty-splits-merged",
        "empty split leaves its slot of the scratch as it was",
        "rows that see nothing of a split",
        _SPLITS,
    ),
    _exhibit(
        "uninitialised",
        "b47-blind-rows-unwritten",
        "rows before the first key not written",
        "more queries than keys",
        _EDGES,
    ),
    _exhibit(
        "uninitialised",
        "b48-empty-requests-unplanned",
        "requests without keys not scheduled",
        "a request without keys",
        _EDGES,
        smoke=True,
    ),
    _exhibit(
        "uninitialised",
        "b50-counter-of-the-plan",
        "counter not set to 0 where a plan is used again",
        "a plan that has served",
        _REPEATED,
    ),
    _exhibit(
        "rope",
        "b51-cache-forced-to-float32",
        "rotary cache forced to float32",
        "a cache of 16 bits",
        _BF16_ROTARY,
        smoke=True,
    ),
    _exhibit(
        "rope",
        "b53-cache-rounded-in-place",
        "shared rotary cache rounded in place",
        "queries of 16 bits beside a float32 cache",
        _BF16_BY_FP32,
        smoke=True,
    ),
    _exhibit("dtype", "b58-keys-in-int16", "number of keys in int16", "32768 keys and more", _EVERY_MEANING, _PAIR),
    _exhibit(
        "dtype",
        "b60-scale-without-log2e",
        "scale without log2(e) in one of two kernels",
        "a batch of decodes",
        Search("dtype", "llama3-8b-causal-decode", _BF16),
        Search("semantics", "llama3-8b-causal-*", _FP32),
        smoke=True,
    ),
    _exhibit(
        "dtype",
        "b61-output-by-fp16",
        "output converted to fp16 whatever is stored",
        "fp32, and large values",
        Search("dtype", "llama3-8b-causal-mixed", _FP32),
        smoke=True,
    ),
    _exhibit(
        "dtype",
        "b62-partials-in-bf16",
        "partial outputs in bf16 before the merge",
        "queries of 16 bits, several splits",
        Search("dtype", "llama3-8b-causal-splits", ("bf16", "fp16")),
    ),
    _exhibit(
        "graph",
        "b63-sliced-table",
        "persistent buffer refilled by compact strides",
        "a table narrower than its buffer",
        _REPLAYED,
        smoke=True,
    ),
    _exhibit(
        "graph",
        "b64-fresh-tensors",
        "metadata allocated anew at each step",
        "a replay of another batch",
        _REPLAYED,
        smoke=True,
    ),
    _exhibit(
        "graph",
        "b66-table-of-the-capture",
        "page table never filled at a replay",
        "a replay of another batch",
        _REPLAYED,
    ),
    _exhibit(
        "graph",
        "b68-checked-not-copied",
        "a tensor checked at a refill, and not copied",
        "a replay of another batch",
        _REPLAYED,
    ),
    _exhibit(
        "graph",
        "b70-lengths-beyond-the-table",
        "lengths that exceed the block table",
        "metadata that contradict themselves",
        _REPLAYED,
        _EVERY_MEANING,
    ),
    _exhibit(
        "not_a_number",
        "b72-nothing-minus-nothing",
        "merge of two sides that saw nothing",
        "log-sum-exps of -inf on both sides",
        _MERGED,
        parent=_TORCH,
        smoke=True,
    ),
    _exhibit(
        "not_a_number",
        "b76-tail-times-0",
        "NaN behind the last key reaches the output",
        "NaN in the tail of a page",
        Search("semantics", "llama3-8b-non_causal-draft", _BF16),
        parent=_TRITON,
    ),
    _exhibit(
        "not_a_number",
        "b78-average-of-nothing",
        "a row that sees nothing averages all values",
        "more queries than keys",
        _EDGES,
        parent=_TORCH,
        smoke=True,
    ),
    _exhibit(
        "probing",
        "b80-trusts-the-package",
        "a package found is taken for its module",
        "a flash_attn without kernels",
        _SMALL_ROTARY,
        raises="ModuleNotFoundError",
        smoke=True,
    ),
    _exhibit(
        "probing",
        "b81-looks-inside-of-nothing",
        "find_spec of a module in a package that is absent",
        "no flash_attn",
        _SMALL_ROTARY,
        raises="ModuleNotFoundError",
        smoke=True,
    ),
    _exhibit(
        "probing",
        "b82-guards-against-absence",
        "an extension that does not load is not expected",
        "a flash_attn that raises ImportError",
        _SMALL_ROTARY,
        raises="ImportError",
    ),
    _exhibit(
        "probing",
        "b83-falls-back",
        "another library computes in silence",
        "cross-attention",
        Search("batch_invariant", "llama3.2-11b-vision-cross-mixed", _FP32),
        Search("dtype", "llama3.2-11b-vision-cross-mixed", _FP32),
    ),
    _exhibit(
        "masking",
        "b84-window-ignored",
        "a window accepted and ignored",
        "more keys than the window",
        Search("semantics", "windowed-sliding_window-mixed", _FP32),
        smoke=True,
    ),
    _exhibit(
        "paging",
        "b86-narrow-offsets",
        "offset of a page in 32 bits",
        "a page further than 2^31 elements",
        _EVERY_MEANING,
        _PAIR,
    ),
    NotPlanted(
        "B92", "stride of a mask in 32 bits", "No operation here takes a mask or a bias as a tensor, so there is none."
    ),
    _exhibit(
        "heads",
        "b94-output-by-query-strides",
        "output written by the strides of the queries",
        "queries and outputs of other strides",
        Search("semantics", "llama3.2-11b-vision-causal-draft", _FP32),
        smoke=True,
    ),
    _exhibit(
        "heads",
        "b96-lse-as-if-contiguous",
        "log-sum-exps read as if contiguous",
        "a log-sum-exp that is a view",
        Search("batch_invariant", "merge-llama3-8b", _FP32),
        smoke=True,
    ),
    _exhibit(
        "heads",
        "b100-head-by-row-of-tile",
        "merge of splits takes heads by the row in a tile",
        "split requests, groups that fill no tile",
        _EVERY_MEANING,
        _REPEATED,
    ),
    _exhibit(
        "heads",
        "b102-swizzled-by-one-number",
        "heads swizzled by the group alone",
        "fewer or more key/value heads than a group has heads",
        _GROUPS,
        smoke=True,
    ),
    _exhibit(
        "heads",
        "b104-tile-of-eight-heads",
        "tile smaller than a group of heads",
        "groups of more than eight",
        _EVERY_MEANING,
        _INVARIANT,
    ),
    _exhibit(
        "rope", "b105-always-halves", "pairs of GPT-NeoX hard-coded", "interleaved pairs", _INTERLEAVED, smoke=True
    ),
    _exhibit(
        "rope",
        "b106-halves-of-the-head",
        "kernel for many tokens pairs by the whole head",
        "part of a head rotated, 10240 heads and more",
        _PARTLY_ROTARY,
    ),
    _exhibit(
        "rope",
        "b109-positions-ignored",
        "positions ignored",
        "positions that do not count from 0",
        _SMALL_ROTARY,
        smoke=True,
    ),
    _exhibit("rope", "b110-keys-rotated-twice", "keys rotated twice", "any position but 0", _SMALL_ROTARY, smoke=True),
    _exhibit(
        "rope",
        "b112-frequencies-rounded",
        "frequencies in bf16",
        "queries of bf16, large positions",
        _BF16_BY_FP32,
        smoke=True,
    ),
    _exhibit(
        "uninitialised",
        "b116-lengths-in-freed-memory",
        "memory freed before the kernel runs",
        "another plan between a plan and its run",
        _REPEATED,
    ),
    _exhibit(
        "dtype",
        "b121-sink-added",
        "sink added, not exponentiated",
        "sinks that are not small",
        Search("semantics", "sinks-causal-draft", _FP32),
    ),
    NotPlanted(
        "B122",
        "a hook sees lanes outside of its split",
        "No implementation here takes a user's function of the scores.",
    ),
)
