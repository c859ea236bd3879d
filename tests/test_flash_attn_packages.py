"""The FlashAttention packages: told where they are not installed, called as documented where they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from samebits.backends import flash_attn_packages, platform
from samebits.backends.flash_attn_packages import FlashAttention4, FlashAttnPackage, PackagedFunction
from samebits.backends.platform import Platform
from samebits.backends.problem import Mask
from samebits.harness.cases import BATCHES

from .plain_attention import GEOMETRY, WITH_SINKS, assert_right, plain_attention, problem_of


@pytest.fixture
def nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "accelerator", lambda: Platform("cuda", "cuda", "test"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


@pytest.mark.parametrize("implementation", [FlashAttnPackage(), FlashAttention4()])
def test_a_flash_attention_package_that_is_not_installed_is_told(nvidia: None, implementation: FlashAttention4) -> None:
    name = {"flash-attn": "flash-attn", "fa4": "flash-attn-4"}[implementation.name]
    assert implementation.absence() == f"{name} is not installed; pip install {name}"
    assert implementation.probe().reason == implementation.absence()


def test_flash_attn_is_called_with_gathered_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    def flash_attn_varlen_func(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        **given: Any,  # noqa: ANN401 -- as the package has it
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        assert set(given) == set(flash_attn_packages._FLASH_ATTN.parameters)
        lengths = given["cu_seqlens_k"].diff()
        # A page for each request's keys.
        pages = torch.zeros(2, len(lengths), int(lengths.max()), *k.shape[1:])
        for tokens, of_requests in zip((k, v), pages, strict=True):
            for page, own in zip(of_requests, torch.split(tokens, lengths.tolist()), strict=True):
                page[: len(own)] = own.float()
        output, lse = plain_attention(
            q,
            pages[0],
            pages[1],
            given["cu_seqlens_q"],
            lengths,
            torch.arange(len(lengths))[:, None],
            given["softmax_scale"],
            [given["causal"]] * len(lengths),
            given["window_size"],
            given["softcap"],
            None,
        )
        return output, lse, None

    monkeypatch.setattr(PackagedFunction, "imported", staticmethod(flash_attn_varlen_func))
    for mask in Mask:
        for batch in BATCHES:
            assert_right(FlashAttnPackage(), problem_of(GEOMETRY, mask, batch))


def test_fa4_is_called_with_the_paged_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def flash_attn_varlen_func(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        **given: Any,  # noqa: ANN401 -- as the package has it
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert set(given) == set(flash_attn_packages._FA4.parameters)
        lengths = given["seqused_k"]
        left, right = given["window_size"]
        window = (-1, -1) if left is None else (left, right)
        return plain_attention(
            q,
            k,
            v,
            given["cu_seqlens_q"],
            lengths,
            given["page_table"],
            given["softmax_scale"],
            [given["causal"]] * len(lengths),
            window,
            given["softcap"],
            given["learnable_sink"],
        )

    monkeypatch.setattr(PackagedFunction, "imported", staticmethod(flash_attn_varlen_func))
    for mask in (Mask.CAUSAL, Mask.NON_CAUSAL, Mask.SLIDING_WINDOW, Mask.CROSS):
        for geometry in (GEOMETRY, WITH_SINKS):
            assert_right(FlashAttention4(), problem_of(geometry, mask, "mixed"))
