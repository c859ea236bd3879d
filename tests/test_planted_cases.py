"""Bugs that show on one combination of options alone: the default tier holds it, and its suite turns red there."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from samebits.backends.contract import AttentionConfig, AttentionMetadata
from samebits.backends.cpu import BundledAttention
from samebits.backends.cpu_operations import BundledCacheWrite, BundledLinear, BundledMerge, BundledRmsNorm
from samebits.backends.operations import (
    CacheWriteTensors,
    LinearTensors,
    MergeTensors,
    RmsNormTensors,
    TokenImplementation,
)
from samebits.backends.problem import Mask
from samebits.backends.subject import Subject
from samebits.backends.token_problem import CacheWrite, Linear, MergeStates, RmsNorm, RotaryEmbedding
from samebits.harness.controls.readings import Misreading, PlainKernel, Reading
from samebits.harness.records import Verdict
from samebits.harness.tokens.cases import token_cases
from samebits.kernels.cpu.attention import Schedule

from .judged_cells import records_of_check, red

pytestmark = pytest.mark.usefixtures("no_smallest_batch")


class SplitsByBatch(BundledAttention):
    """The C++ kernel, with splits half as long in small batches where a layer has some option."""

    backend, name = "PLANTED", "splits-by-batch"

    def __init__(self, option: Callable[[AttentionConfig], bool]) -> None:
        super().__init__()
        self._option = option
        self._shorter = BundledAttention(64)

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Schedule:
        """Plans by the batch where the option is on."""
        if self._option(config) and metadata.num_requests < 3:
            return self._shorter.plan(config, metadata)
        return super().plan(config, metadata)


@dataclass(frozen=True)
class Option:
    """An option of a layer.

    Attributes:
        is_on: whether a layer has it.
        cases: those of the default tier that have it: in their names this occurs.
    """

    is_on: Callable[[AttentionConfig], bool]
    cases: str


OPTIONS: Mapping[str, Option] = {
    "sinks in prefills": Option(lambda config: config.sinks is not None, "gpt-oss-20b-causal-prefill"),
    "sinks in decodes": Option(lambda config: config.sinks is not None, "gpt-oss-20b-causal-decode"),
    "causality by request": Option(lambda config: config.mask is Mask.PER_REQUEST, "per_request"),
    "head_dim 96": Option(lambda config: config.head_dim == 96, "phi-3-mini"),
    "head_dim 192": Option(lambda config: config.head_dim == 192, "deepseek-v3"),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_a_split_that_follows_the_batch_under_one_option_is_seen(option: str) -> None:
    mutant = SplitsByBatch(OPTIONS[option].is_on)
    records = records_of_check("batch_invariant", mutant, "batch_size", OPTIONS[option].cases)
    assert red(records) == set(records), f"the split followed the batch under {option}, and only {red(records)} is red"


@pytest.mark.parametrize("option", OPTIONS)
def test_the_parent_does_not_vary(option: str) -> None:
    records = records_of_check("batch_invariant", BundledAttention(), "batch_size", OPTIONS[option].cases)
    assert not red(records), f"a correct kernel failed {red(records)}"


class WrongWithoutLse(BundledAttention):
    """The C++ kernel, whose path without a log-sum-exp is off by 1."""

    backend, name = "PLANTED", "wrong-without-lse"

    def run(
        self,
        plan: Schedule,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        """Computes both paths, and spoils one."""
        super().run(plan, query, key_cache, value_cache, output, lse)
        if lse is None:
            self._spoil(plan, output)

    def _spoil(self, plan: Schedule, output: torch.Tensor) -> None:
        output.add_(1)


@pytest.mark.parametrize("check", ["edges", "crossed"])
def test_a_path_without_log_sum_exp_is_judged_too(check: str) -> None:
    records = records_of_check("semantics", WrongWithoutLse(), check, "")
    ran = {cell_id for cell_id, record in records.items() if record.verdict is not Verdict.UNSUPPORTED}
    assert red(records) == ran, f"the output is wrong without a log-sum-exp, and only {red(records)} is red"


# Whether a call without a log-sum-exp comes to other bits: by its plan, and by how often the plan was run before.
Unlucky = Callable[[Schedule, int], bool]


class UnsteadyWithoutLse(WrongWithoutLse):
    """The C++ kernel, whose path without a log-sum-exp has other last bits now and then."""

    name = "unsteady-without-lse"

    def __init__(self, unlucky: Unlucky) -> None:
        super().__init__()
        self._unlucky = unlucky
        self._runs: dict[int, int] = {}

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Schedule:
        """Begins to count."""
        plan = super().plan(config, metadata)
        self._runs[id(plan)] = 0
        return plan

    def _spoil(self, plan: Schedule, output: torch.Tensor) -> None:
        self._runs[id(plan)] += 1
        if self._unlucky(plan, self._runs[id(plan)]):
            # A row that sees no key is exactly 0, and stays right.
            output.copy_(torch.where(output == 0, output, torch.nextafter(output, torch.full_like(output, 9.0))))


@pytest.mark.parametrize(
    ("suite", "check", "unlucky"),
    [
        ("batch_invariant", "batch_size", lambda plan, runs: len(plan.kv_lens) >= 8),
        ("batch_invariant", "decode", lambda plan, runs: int(plan.query_lens.max()) > 1),
        ("run_to_run", "repeated", lambda plan, runs: runs == 2),
    ],
    ids=["batch", "schedule", "second-call"],
)
def test_bits_without_a_log_sum_exp_are_compared_too(suite: str, check: str, unlucky: Unlucky) -> None:
    records = records_of_check(suite, UnsteadyWithoutLse(unlucky), check, "llama3-8b-causal")
    assert records, "nothing was checked"
    assert red(records) == set(records), f"without a log-sum-exp bits change, and only {red(records)} is red"
    right = records_of_check(suite, UnsteadyWithoutLse(lambda plan, runs: False), check, "llama3-8b-causal")
    assert not red(right), f"a correct kernel failed {red(right)}"


Change = Callable[[AttentionConfig], AttentionConfig]


def _capped_sinks(config: AttentionConfig) -> AttentionConfig:
    if config.sinks is None or config.softcap is None:
        return config
    return replace(config, sinks=torch.tanh(config.sinks / config.softcap) * config.softcap)


def _sinks_by_place_in_group(config: AttentionConfig) -> AttentionConfig:
    if config.sinks is None:
        return config
    return replace(config, sinks=config.sinks[: config.group_size].repeat(config.num_kv_heads))


def _uncapped_across(config: AttentionConfig) -> AttentionConfig:
    return replace(config, softcap=None) if config.mask is Mask.CROSS else config


def _unscaled_across(config: AttentionConfig) -> AttentionConfig:
    return replace(config, scale=config.head_dim**-0.5) if config.mask is Mask.CROSS else config


class MistakenLayer(BundledAttention):
    """The C++ kernel, planned for another layer."""

    backend, name = "PLANTED", "mistaken-layer"

    def __init__(self, change: Change) -> None:
        super().__init__()
        self._change = change

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Schedule:
        """Plans for what the layer is taken for."""
        return super().plan(self._change(config), metadata)


class RoundsWideHeads(BundledAttention):
    """The C++ kernel, which rounds float32 queries of the widest heads to bfloat16, so that they fit."""

    backend, name = "PLANTED", "rounds-wide-heads"

    def run(self, plan: Schedule, query: torch.Tensor, *tensors: Any) -> None:  # noqa: ANN401 -- as they come
        """Computes with what is left of the queries."""
        wide = query.shape[2] == 256 and query.dtype is torch.float32
        super().run(plan, query.bfloat16().float() if wide else query, *tensors)


class MisreadsInAnyDtype(PlainKernel):
    """A plain kernel of the dtypes that the suite has in the default tier."""

    support = replace(PlainKernel.support, dtypes=("fp32", "bf16"))


def misread(meaning: str, changed: Callable[[Reading, AttentionMetadata], Reading]) -> PlainKernel:
    return MisreadsInAnyDtype(Misreading("misread", meaning, "a planted bug", changed))


def _window_from_first_slot(reading: Reading, metadata: AttentionMetadata) -> Reading:
    return replace(reading, window=None if reading.window is None else reading.window + reading.kv_start)


def _page_by_shift(reading: Reading, metadata: AttentionMetadata) -> Reading:
    return replace(reading, page_size=1 << (reading.page_size.bit_length() - 1))


@dataclass(frozen=True)
class Crossed:
    """A bug of two options that meet.

    Attributes:
        mutant: has the bug.
        meaning: check of the semantics suite that sees it.
        cases: which of the check's cases show it, and none else: those in whose name this occurs.
    """

    mutant: Subject
    meaning: str
    cases: str


CROSSED: Mapping[str, Crossed] = {
    "a softcap on the sink too": Crossed(MistakenLayer(_capped_sinks), "softcap", "capped-sinks"),
    "sinks by the place in the group": Crossed(MistakenLayer(_sinks_by_place_in_group), "sinks", "sinks"),
    "no softcap in cross-attention": Crossed(MistakenLayer(_uncapped_across), "softcap", "cross"),
    "no scale in cross-attention": Crossed(MistakenLayer(_unscaled_across), "scale", "cross"),
    "a window from the encoder's first slot": Crossed(
        misread("behind_encoder", _window_from_first_slot), "behind_encoder", "sliding_window"
    ),
    "a page size by its highest bit": Crossed(misread("page_size", _page_by_shift), "page_size", "page_size_48"),
    "rounding where heads are widest": Crossed(RoundsWideHeads(), "head_dim", "head_dim_256-causal-draft:fp32"),
}


@pytest.mark.parametrize("bug", CROSSED)
def test_a_bug_of_two_options_that_meet_is_seen_where_they_do(bug: str) -> None:
    crossed = CROSSED[bug]
    records = records_of_check("semantics", crossed.mutant, crossed.meaning)
    ran = {case for case, record in records.items() if record.verdict is not Verdict.UNSUPPORTED}
    expected = {case for case in ran if crossed.cases in case}
    assert expected, f"{crossed.meaning} has no case of {crossed.cases}"
    assert red(records) == expected, f"{bug} is red on {sorted(red(records))}"


class Crossing(PlainKernel):
    """A plain kernel in the dtypes of the suite, whose misreading may follow from options that its reading has not."""

    support = replace(PlainKernel.support, dtypes=("fp32", "bf16"))

    def __init__(self, changed: Callable[[Reading, AttentionConfig, AttentionMetadata], Reading]) -> None:
        super().__init__()
        self._changed = changed

    def _reading(self, index: int, query_len: int, config: AttentionConfig, metadata: AttentionMetadata) -> Reading:
        return self._changed(super()._reading(index, query_len, config, metadata), config, metadata)


def _padded_groups(reading: Reading) -> Reading:
    bits = (reading.head_map.count(0) - 1).bit_length()
    return replace(reading, head_map=tuple(head >> bits for head in range(len(reading.head_map))))


# Each is right unless several options meet.
MEETINGS: Mapping[str, Callable[[Reading, AttentionConfig, AttentionMetadata], Reading]] = {
    "padded groups in decodes": lambda reading, config, _: (
        _padded_groups(reading) if reading.query_len == 1 else reading
    ),
    "padded groups beside sinks": lambda reading, config, _: _padded_groups(reading) if reading.sinks else reading,
    "the usual scale beside a softcap": lambda reading, config, _: (
        reading if reading.softcap is None else replace(reading, scale=config.head_dim**-0.5)
    ),
    "no softcap under causality by request": lambda reading, config, _: (
        replace(reading, softcap=None) if config.mask is Mask.PER_REQUEST else reading
    ),
    "no sinks behind an encoder": lambda reading, config, metadata: replace(
        reading, sinks=reading.sinks and (config.mask is Mask.CROSS or metadata.encoder_seq_lens is None)
    ),
    "two key/value heads at most": lambda reading, config, _: replace(
        reading, head_map=tuple(min(head, 1) for head in reading.head_map)
    ),
    "strides of the keys under a window": lambda reading, config, _: (
        reading if reading.window is None else replace(reading, strides=lambda cache, keys: keys.stride())
    ),
    "no sinks behind an encoder under a window": lambda reading, config, metadata: replace(
        reading, sinks=reading.sinks and (config.window is None or metadata.encoder_seq_lens is None)
    ),
    "no softcap beside sinks in a batch of decodes": lambda reading, config, metadata: replace(
        reading, softcap=None if reading.sinks and metadata.max_query_len == 1 else reading.softcap
    ),
    "no softcap behind an encoder where not causal": lambda reading, config, metadata: replace(
        reading,
        softcap=None if config.mask is Mask.NON_CAUSAL and metadata.encoder_seq_lens is not None else reading.softcap,
    ),
    "page sizes by their highest bit in decodes": lambda reading, config, _: (
        _page_by_shift(reading, _) if reading.query_len == 1 else reading
    ),
}


@pytest.mark.parametrize("meeting", MEETINGS)
def test_a_bug_of_options_that_meet_is_seen_where_all_are_crossed(meeting: str) -> None:
    records = records_of_check("semantics", Crossing(MEETINGS[meeting]), "crossed")
    assert red(records), f"{meeting}: no case of crossed is red"


def test_a_kernel_without_bugs_passes_where_all_are_crossed() -> None:
    records = records_of_check("semantics", Crossing(lambda reading, config, metadata: reading), "crossed")
    assert not red(records), f"red are {red(records)}"
    verdicts = {name: record.verdict for name, record in records.items() if not name.endswith(":fp16")}
    assert set(verdicts.values()) == {Verdict.PASS}, f"not all pass: {verdicts}"


class ScoresFromMinus10000(BundledAttention):
    """The C++ kernel, whose running maximum starts at -1e4."""

    backend, name = "PLANTED", "scores-from-minus-10000"

    def run(self, plan: Schedule, query: torch.Tensor, *tensors: Any) -> None:  # noqa: ANN401 -- as they come
        """Loses rows whose scores all lie so far below that their exponentials are 0."""
        super().run(plan, query, *tensors)
        output, lse = tensors[2:]
        output.masked_fill_((lse.t() < -1e4 - 104.0).unsqueeze(2), 0.0)


def test_a_maximum_that_starts_at_minus_10000_is_seen() -> None:
    records = records_of_check("semantics", ScoresFromMinus10000(), "window")
    assert red(records) == set(records), f"only {sorted(red(records))} are red"


class QuietingCacheWrite(BundledCacheWrite):
    """The C++ kernel, given what came through a multiplication: signalling NaN are quiet behind it."""

    backend, name = "PLANTED", "quieting"

    def compute(self, operation: CacheWrite, tensors: CacheWriteTensors) -> None:
        """Stores what is left."""
        super().compute(operation, replace(tensors, key=tensors.key * 1.0, value=tensors.value * 1.0))


class SaturatingCacheWrite(BundledCacheWrite):
    """The C++ kernel, given what was clamped to the largest number, as before a conversion to 8 bits."""

    backend, name = "PLANTED", "saturating"

    def compute(self, operation: CacheWrite, tensors: CacheWriteTensors) -> None:
        """Stores what is left."""
        largest = torch.finfo(tensors.key.dtype).max
        super().compute(operation, replace(tensors, key=tensors.key.clamp(-largest, largest)))


@pytest.mark.parametrize("mutant", [QuietingCacheWrite(), SaturatingCacheWrite()], ids=lambda mutant: mutant.name)
def test_a_cache_write_by_way_of_arithmetic_is_seen(mutant: BundledCacheWrite) -> None:
    records = records_of_check("batch_invariant", mutant, "position")
    assert red(records) == set(records), f"only {sorted(red(records))} are red"


class CleaningRmsNorm(BundledRmsNorm):
    """The C++ kernel, whose results are all finite."""

    backend, name = "PLANTED", "cleaning"

    def compute(self, operation: RmsNorm, tensors: RmsNormTensors) -> None:
        """Takes what is no finite number out of the result."""
        super().compute(operation, tensors)
        tensors.output.nan_to_num_()


class LeakingLinear(BundledLinear):
    """The C++ kernel, with NaN of any row in all rows, as where one of a tile is multiplied by 0."""

    backend, name = "PLANTED", "leaking"

    def compute(self, operation: Linear, tensors: LinearTensors) -> None:
        """Adds 0 times the sum of all that is computed together."""
        super().compute(operation, tensors)
        tensors.output.add_(tensors.output.sum() * 0.0)


class InfinityIsDead(BundledMerge):
    """The C++ kernel, which takes a log-sum-exp of +inf for that of a query that saw no key."""

    backend, name = "PLANTED", "infinity-is-dead"

    def compute(self, operation: MergeStates, tensors: MergeTensors) -> None:
        """Merges without the sides whose log-sum-exp is +inf."""
        dead = (lse.masked_fill(lse == math.inf, -math.inf) for lse in (tensors.prefix_lse, tensors.suffix_lse))
        prefix_lse, suffix_lse = dead
        super().compute(operation, replace(tensors, prefix_lse=prefix_lse, suffix_lse=suffix_lse))


@pytest.mark.parametrize(
    ("mutant", "check"),
    [
        (CleaningRmsNorm(), "seen_nan"),
        (CleaningRmsNorm(), "seen_inf"),
        (LeakingLinear(), "seen_nan"),
        (LeakingLinear(), "seen_inf"),
        (InfinityIsDead(), "seen_inf"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_what_is_no_number_must_reach_its_token_and_no_other(mutant: TokenImplementation[Any, Any], check: str) -> None:
    records = records_of_check("dtype", mutant, check)
    assert red(records) == set(records), f"only {sorted(red(records))} are red"


def features(operation: RotaryEmbedding, dtype: str, far: bool) -> dict[str, object]:
    """What a rotary embedding's kernel may take another way for."""
    return {
        # In fp32, a cache of the queries' dtype and one of float32 are the same.
        "dtypes": (dtype, operation.cache_dtype or dtype),
        "interleaved": operation.interleaved,
        "partial": operation.rotary_dim < operation.head_dim,
        "inverse": operation.inverse,
        "far": far,
    }


def test_any_two_features_of_a_rotary_embedding_meet_in_the_default_tier() -> None:
    found = set()
    for case in token_cases(RotaryEmbedding.operation, "default"):
        assert isinstance(case.geometry, RotaryEmbedding)
        for dtype in case.dtypes:
            found |= set(itertools.combinations(sorted(features(case.geometry, dtype, case.far).items()), 2))
    levels: dict[str, set[Any]] = {}
    for pair in found:
        for name, value in pair:
            levels.setdefault(name, set()).add(value)
    assert len(levels["dtypes"]) == 5, f"queries and caches are of {sorted(levels['dtypes'])}"
    wanted = {
        ((one, left), (other, right))
        for one, other in itertools.combinations(sorted(levels), 2)
        for left in levels[one]
        for right in levels[other]
    }
    assert not wanted - found, f"never together: {sorted(map(str, wanted - found))}"
