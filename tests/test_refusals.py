"""What is outside the rules is refused by every implementation alike, before anything is computed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from samebits.backends.contract import Implementation
from samebits.backends.operations import RotaryImplementation, RotaryTensors
from samebits.backends.problem import Geometry, Mask, Problem, Request
from samebits.backends.token_problem import RotaryEmbedding
from samebits.harness.batch import make_batch
from samebits.harness.registry import load_registry

CPU = torch.device("cpu")
REGISTRY = load_registry()
HERE = [subject for subject in REGISTRY.implementations if REGISTRY.availability(subject).device == "cpu"]
ATTENTION = [subject for subject in HERE if isinstance(subject, Implementation)]
ROTARY = [subject for subject in HERE if isinstance(subject, RotaryImplementation)]
GEOMETRY = Geometry("test", num_heads=2, num_kv_heads=1, head_dim=64, window=8)
CONFIG = make_batch(Problem(GEOMETRY, Mask.CAUSAL, "bf16", (Request(1, 4, 3),)), CPU).config


def test_all_five_backends_are_asked() -> None:
    assert {subject.backend for subject in ATTENTION} == {"FLASH_ATTN", "TRITON_ATTN", "FLEX_ATTENTION", "AITER", "CPU"}
    assert {subject.backend for subject in ROTARY} == {subject.backend for subject in ATTENTION}


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


@pytest.mark.parametrize(
    ("queries", "cache"),
    [
        (torch.bfloat16, torch.float16),
        (torch.float16, torch.bfloat16),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float64),
    ],
    ids=str,
)
@pytest.mark.parametrize("subject", ROTARY, ids=lambda subject: subject.label)
def test_a_rotary_cache_of_a_third_dtype_is_refused_in_the_same_words(
    subject: RotaryImplementation, queries: torch.dtype, cache: torch.dtype
) -> None:
    tensors = RotaryTensors(
        query=torch.ones(3, 2, 64, dtype=queries),
        key=torch.ones(3, 1, 64, dtype=queries),
        positions=torch.arange(3),
        cos_sin_cache=torch.ones(16, 64, dtype=cache),
    )
    names = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "float64"}
    with pytest.raises(ValueError) as refused:  # noqa: PT011 -- the whole sentence is compared below
        subject.run(RotaryEmbedding("test", 2, 1, 64, 64), tensors)
    wanted = (
        f"cos_sin_cache is {names[cache]} beside queries of {names[queries]}; it must be of the queries' dtype or fp32"
    )
    assert str(refused.value) == wanted
    assert bool((tensors.query == 1).all()), "a refused call has rotated something"


def test_a_layer_in_a_dtype_that_has_no_name_is_refused_by_its_own() -> None:
    config = replace(CONFIG, dtype=torch.float64)
    with pytest.raises(ValueError, match="dtype float64 is not supported, only"):
        ATTENTION[0].require(config)
