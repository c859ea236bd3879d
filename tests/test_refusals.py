"""What is outside the rules is refused by every implementation alike, before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from samebits.backends.contract import AttentionConfig, AttentionMetadata, Implementation
from samebits.backends.cpu import BundledAttention
from samebits.backends.operations import CheckedImplementation
from samebits.backends.problem import Circumstances, Contradiction, Geometry, Mask, Problem, Request
from samebits.harness.batch import make_batch
from samebits.harness.contradictions import contradictory_metadata
from samebits.harness.executor import reasons_against, run_problem
from samebits.harness.registry import load_registry

from .token_operations import CPU, OPERATIONS, assert_same_bits, tensors_of

REGISTRY = load_registry()
AVAILABLE = [subject for subject in REGISTRY.implementations if REGISTRY.availability(subject).available]
ATTENTION = [
    subject
    for subject in AVAILABLE
    if isinstance(subject, Implementation) and REGISTRY.availability(subject).device == "cpu"
]
# Wherever they compute: what is refused does not arrive there.
ON_TOKENS = [subject for subject in AVAILABLE if isinstance(subject, CheckedImplementation)]
GEOMETRY = Geometry("test", num_heads=2, num_kv_heads=1, head_dim=64, window=8)
REQUESTS = (Request(1, 4, 30), Request(2, 1, 3))
CONTRADICTED = {
    Contradiction.NARROW_TABLE: "a request has 34 slots, but block_table has 2 pages of 16 for each; it must hold all",
    Contradiction.DESCENDING_ROWS: r"query_start_loc is \[5, 4, 0\]; it must not (be negative or )?descend",
    Contradiction.MISSING_LENGTH: r"query_start_loc (is )?for 2( requests)?, seq_lens for 1",
}
CONFIG = make_batch(Problem(GEOMETRY, Mask.CAUSAL, "bf16", (Request(1, 4, 3),)), CPU).config


def test_all_five_backends_are_asked() -> None:
    assert {subject.backend for subject in ATTENTION} == {"FLASH_ATTN", "TRITON_ATTN", "FLEX_ATTENTION", "AITER", "CPU"}
    rotary = {subject.backend for subject in ON_TOKENS if subject.operation == "rope"}
    assert rotary == {subject.backend for subject in ATTENTION}, f"only {rotary} refuse rotary embeddings"
    assert {subject.operation for subject in ON_TOKENS} == set(OPERATIONS)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"mask": "causal"},
            "mask is 'causal'; it must be one of causal, non_causal, sliding_window, cross, per_request",
        ),
        ({"mask": Mask.SLIDING_WINDOW}, "window is None under mask sliding_window; it must be at least 1"),
        ({"mask": Mask.SLIDING_WINDOW, "window": 0}, "window is 0 under mask sliding_window; it must be at least 1"),
        ({"window": 8}, "window is 8 under mask causal; only sliding_window has one"),
        ({"mask": Mask.CROSS, "window": 8}, "window is 8 under mask cross; only sliding_window has one"),
        ({"softcap": 0.0}, "softcap is 0.0; it must be greater than 0, or None"),
        ({"sinks": torch.zeros(3)}, "sinks are fp32 [3]; they must be fp32 [2], one for each head"),
        ({"sinks": torch.zeros(2).half()}, "sinks are fp16 [2]; they must be fp32 [2], one for each head"),
    ],
)
def test_a_layer_outside_the_rules_cannot_be_made(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 -- the whole sentence is compared below
        replace(CONFIG, **change)
    assert str(refused.value) == sentence


@pytest.mark.parametrize("mask", list(Mask), ids=str)
@pytest.mark.parametrize("subject", ATTENTION, ids=lambda subject: subject.label)
def test_a_mask_is_planned_or_refused_in_the_same_words(subject: Implementation[Any], mask: Mask) -> None:
    problem = Problem(GEOMETRY, mask, "bf16", (Request(1, 4, 3, encoder_len=5 if mask is Mask.CROSS else 0),))
    batch = make_batch(problem, CPU)
    if mask in subject.support.masks:
        subject.plan(batch.config, batch.metadata)
        return
    with pytest.raises(ValueError) as refused:  # noqa: PT011 -- the whole sentence is compared below
        subject.plan(batch.config, batch.metadata)
    supported = ", ".join(map(str, subject.support.masks))
    wanted = f"{subject.label} cannot compute this layer: mask {mask} is not supported, only {supported}"
    assert str(refused.value) == wanted
    assert wanted.split(": ", 1)[1] in subject.reasons(problem), "its reasons have other words"


@pytest.mark.parametrize("contradiction", Contradiction, ids=lambda contradiction: contradiction.name)
@pytest.mark.parametrize("subject", ATTENTION, ids=lambda subject: subject.label)
def test_who_claims_to_refuse_contradictions_says_what_is_wrong(
    subject: Implementation[Any], contradiction: Contradiction
) -> None:
    circumstances = Circumstances(contradiction=contradiction)
    problem = Problem(GEOMETRY, Mask.CAUSAL, "bf16", REQUESTS, circumstances=circumstances)
    reasons = reasons_against(subject, problem)
    if reasons:
        assert reasons == ["refuses_contradictions is not claimed"]
        return
    batch = make_batch(problem, CPU)
    with pytest.raises(ValueError, match=CONTRADICTED[contradiction]):
        subject.plan(batch.config, contradictory_metadata(batch, contradiction))
    assert run_problem(subject, problem, CPU).faults == ()


class Careless(BundledAttention):
    """Plans the metadata that it had before, whatever it is given, or gives up in other ways."""

    name = "careless"

    def __init__(self, told: Exception | None) -> None:
        super().__init__()
        self.told = told

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Any:  # noqa: ANN401 -- of none
        if self.told:
            raise self.told


@pytest.mark.parametrize(
    ("told", "fault"),
    [
        (None, "plan took a block table narrower than its longest request"),
        (
            IndexError("out of range"),
            "plan met a block table narrower than its longest request with IndexError, and not",
        ),
        (ValueError(), "plan refused a block table narrower than its longest request without a sentence"),
    ],
)
def test_a_claim_to_refuse_is_broken_by_any_other_answer(told: Exception | None, fault: str) -> None:
    circumstances = Circumstances(contradiction=Contradiction.NARROW_TABLE)
    problem = Problem(GEOMETRY, Mask.CAUSAL, "bf16", REQUESTS, circumstances=circumstances)
    (found,) = run_problem(Careless(told), problem, CPU).faults
    assert found.startswith(fault)


Change = Callable[[torch.Tensor], torch.Tensor]


def as_dtype(dtype: torch.dtype) -> Change:
    return lambda tensor: tensor.to(dtype)


def spread(tensor: torch.Tensor) -> torch.Tensor:
    """The same elements, two apart."""
    return tensor.repeat_interleave(2, dim=-1)[..., ::2]


def with_gaps(tensor: torch.Tensor) -> torch.Tensor:
    """The same rows, twice as far apart."""
    return torch.cat([tensor, tensor], dim=-1)[..., : tensor.shape[-1]]


def placed(*numbers: int) -> Change:
    return lambda tensor: torch.tensor(numbers)


THREE_DIMENSIONS = "it must have one to three dimensions before the last"
REFUSED: dict[str, list[tuple[dict[str, Change], str]]] = {
    "rope": [
        ({"query": as_dtype(torch.float64)}, "query is float64; it must be one of fp32, bf16, fp16"),
        ({"query": lambda t: t[:, :1]}, "query is fp32 [3, 1, 32] on cpu; it must be fp32 [3, 2, 32] on cpu"),
        ({"query": spread}, "query has strides [128, 64, 2]; the last one must be 1"),
        ({"key": lambda t: t[:-1]}, "key is fp32 [2, 1, 32] on cpu; it must be fp32 [3, 1, 32] on cpu"),
        (
            {"query": as_dtype(torch.bfloat16)},
            "key is fp32 [3, 1, 32] on cpu; it must be bf16 [3, 1, 32] on cpu",
        ),
        ({"key": lambda t: t.to("meta")}, "key is fp32 [3, 1, 32] on meta; it must be fp32 [3, 1, 32] on cpu"),
        ({"positions": as_dtype(torch.int32)}, "positions is int32 [3] on cpu; it must be int64 [3] on cpu"),
        ({"positions": placed(0, 1, -1)}, "token 2 has position -1; the cache holds 0 to 15"),
        ({"positions": placed(0, 16, 99)}, "token 1 has position 16; the cache holds 0 to 15"),
        (
            {"cos_sin_cache": lambda t: t[:, :-1]},
            "cos_sin_cache is fp32 [16, 31] on cpu; it must be fp32 [16, 32] on cpu",
        ),
        (
            {"cos_sin_cache": lambda t: t.repeat(1, 2)},
            "cos_sin_cache is fp32 [16, 64] on cpu; it must be fp32 [16, 32] on cpu",
        ),
        ({"cos_sin_cache": spread}, "cos_sin_cache has strides [64, 2]; the last one must be 1"),
        *(
            (
                {"query": as_dtype(queries), "key": as_dtype(queries), "cos_sin_cache": as_dtype(cache)},
                f"cos_sin_cache is {names[1]} beside queries of {names[0]}; it must be of the queries' dtype or fp32",
            )
            for queries, cache, names in (
                (torch.bfloat16, torch.float16, ("bf16", "fp16")),
                (torch.float16, torch.bfloat16, ("fp16", "bf16")),
                (torch.float32, torch.bfloat16, ("fp32", "bf16")),
                (torch.bfloat16, torch.float64, ("bf16", "float64")),
            )
        ),
    ],
    "cache_write": [
        ({"key": spread}, "key has strides [64, 64, 2]; the last one must be 1"),
        ({"value": lambda t: t[:2]}, "value is fp32 [2, 1, 32] on cpu; it must be fp32 [3, 1, 32] on cpu"),
        (
            {"key_cache": as_dtype(torch.float16)},
            "key_cache is fp16 [1, 4, 1, 32] on cpu; it must be fp32 [1, 4, 1, 32] on cpu",
        ),
        (
            {"value_cache": lambda t: t[1:]},
            "value_cache is fp32 [0, 4, 1, 32] on cpu; it must be fp32 [1, 4, 1, 32] on cpu",
        ),
        ({"slot_mapping": as_dtype(torch.int32)}, "slot_mapping is int32 [3] on cpu; it must be int64 [3] on cpu"),
        ({"slot_mapping": placed(1, 4, -1)}, "token 1 has slot 4; the cache has 0 to 3, and -1 is padding"),
        ({"slot_mapping": placed(1, 0, -2)}, "token 2 has slot -2; the cache has 0 to 3, and -1 is padding"),
    ],
    "merge": [
        ({"prefix_output": as_dtype(torch.int32)}, "prefix_output is int32; it must be one of fp32, bf16, fp16"),
        ({"suffix_lse": lambda t: t.T.contiguous().T}, "suffix_lse has strides [1, 2]; the last one must be 1"),
        ({"lse": as_dtype(torch.float64)}, "lse is float64 [2, 3] on cpu; it must be fp32 [2, 3] on cpu"),
        ({"output": lambda t: t[:, :1]}, "output is fp32 [3, 1, 32] on cpu; it must be fp32 [3, 2, 32] on cpu"),
    ],
    "linear": [
        ({"input": lambda t: t[0]}, f"input has shape [32]; {THREE_DIMENSIONS}"),
        ({"input": lambda t: t.view(3, 1, 1, 1, 32)}, f"input has shape [3, 1, 1, 1, 32]; {THREE_DIMENSIONS}"),
        ({"input": lambda t: t[:, :-1]}, "input is fp32 [3, 31] on cpu; it must be fp32 [3, 32] on cpu"),
        ({"weight": with_gaps}, "weight has strides [64, 1]; it must be contiguous"),
        ({"bias": lambda t: t[:-1]}, "bias is fp32 [7] on cpu; it must be fp32 [8] on cpu"),
        ({"output": lambda t: t[:-1]}, "output is fp32 [2, 8] on cpu; it must be fp32 [3, 8] on cpu"),
        ({"output": with_gaps}, "output has strides [16, 1]; it must be contiguous"),
    ],
    "rms_norm": [
        ({"input": lambda t: t.view(3, 1, 1, 1, 32)}, f"input has shape [3, 1, 1, 1, 32]; {THREE_DIMENSIONS}"),
        ({"weight": as_dtype(torch.float16)}, "weight is fp16 [32] on cpu; it must be fp32 [32] on cpu"),
        ({"output": lambda t: t.T.contiguous().T}, "output has strides [1, 3]; the last one must be 1"),
        ({"output": with_gaps}, "output has strides [64, 1]; it must be contiguous"),
    ],
}


@pytest.mark.parametrize(
    ("subject", "changes", "sentence"),
    [
        pytest.param(subject, changes, sentence, id=f"{subject.label}-{subject.operation}-{sentence}")
        for subject in ON_TOKENS
        for changes, sentence in REFUSED[subject.operation]
    ],
)
def test_tensors_that_break_a_rule_are_refused_in_the_same_words_and_nothing_is_written(
    subject: CheckedImplementation[Any, Any], changes: dict[str, Change], sentence: str
) -> None:
    tensors = tensors_of(subject.operation, 3)
    changed: dict[str, Any] = {name: change(getattr(tensors, name)) for name, change in changes.items()}
    given = replace(tensors, **changed)
    before = {name: tensor.clone() for name, tensor in vars(given).items()}
    with pytest.raises(ValueError) as refused:  # noqa: PT011 -- the whole sentence is compared below
        subject.run(OPERATIONS[subject.operation], given)
    assert str(refused.value) == sentence
    for name, tensor in vars(given).items():
        if tensor.device == CPU and tensor.is_floating_point() and tensor.element_size() < 8:
            assert_same_bits(tensor, before[name], f"{name} after a refusal")


def test_a_layer_in_a_dtype_that_has_no_name_is_refused_by_its_own() -> None:
    config = replace(CONFIG, dtype=torch.float64)
    with pytest.raises(ValueError, match="dtype float64 is not supported, only"):
        ATTENTION[0].require(config)
