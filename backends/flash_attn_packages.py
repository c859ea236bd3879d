"""FLASH_ATTN/flash-attn and FLASH_ATTN/fa4: the FlashAttention packages themselves, where they are installed.

Both are written from their documented functions and were never run here: `flash-attn` is distributed as source that
takes an hour to compile, `flash-attn-4` as a pre-release whose kernels are compiled at their first call. Neither comes
from a bundle, as both are packages of many modules.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from samebits.backends.contract import Availability, Claims, Tiling
from samebits.backends.libraries import TESTED_VERSIONS, installed_version
from samebits.backends.paged_flash import PagedFlashWithSinks, PagedPlan
from samebits.backends.platform import import_or_reason, nvidia_reason
from samebits.backends.subject import Subject
from samebits.backends.variable_length import VariableLengthCall, VariableLengthFlash, VariableLengthPlan


@dataclass(frozen=True)
class PackagedFunction:
    """A function of an installed package, as it will be called.

    Attributes:
        distribution: that holds it.
        module: full dotted name of its module.
        function: its name.
        parameters: those that are passed by name.
    """

    distribution: str
    module: str
    function: str
    parameters: tuple[str, ...]

    @property
    def version(self) -> str:
        """Of the installed distribution; empty where there is none."""
        return installed_version(self.distribution)

    def missing(self) -> str:
        """Why it cannot be here, told without importing anything; empty where it may be."""
        return "" if self.version else f"{self.distribution} is not installed; pip install {self.distribution}"

    def availability(self, absence: str) -> Availability:
        """Imports the function where nothing speaks against it, and looks at its parameters.

        Args:
            absence: why it need not be tried; empty where it must be.
        """
        if absence:
            return Availability(reason=absence)
        module, reason = import_or_reason(self.module)
        if module is None:
            return Availability(reason=reason)
        function = getattr(module, self.function, None)
        if function is None:
            return Availability(reason=f"{self.module} of {self.distribution} has no {self.function}")
        missing = [name for name in self.parameters if name not in inspect.signature(function).parameters]
        if missing:
            told = f"{self.module}.{self.function} of {self.distribution} {self.version}"
            return Availability(reason=f"{told} takes no {', '.join(missing)}")
        return Availability(version=self.version, device="cuda")

    @functools.cached_property
    def imported(self) -> Callable[..., Any]:
        """The function itself."""
        return getattr(importlib.import_module(self.module), self.function)  # type: ignore[no-any-return]


_FLASH_ATTN = PackagedFunction(
    distribution="flash-attn",
    module="flash_attn",
    function="flash_attn_varlen_func",
    parameters=(
        "cu_seqlens_q",
        "cu_seqlens_k",
        "max_seqlen_q",
        "max_seqlen_k",
        "softmax_scale",
        "causal",
        "window_size",
        "softcap",
        "return_attn_probs",
    ),
)
_FA4 = PackagedFunction(
    distribution="flash-attn-4",
    module="flash_attn.cute",
    function="flash_attn_varlen_func",
    parameters=(
        "cu_seqlens_q",
        "max_seqlen_q",
        "max_seqlen_k",
        "seqused_k",
        "page_table",
        "softmax_scale",
        "causal",
        "window_size",
        "learnable_sink",
        "softcap",
        "num_splits",
        "return_lse",
    ),
)


class FlashAttnPackage(VariableLengthFlash):
    """`flash_attn.flash_attn_varlen_func` over gathered pages: its own pages must hold a multiple of 256 tokens."""

    name = "flash-attn"
    support = replace(VariableLengthFlash.support, softcap=True)
    known_gaps = ()

    def __init__(self) -> None:
        super().__init__()
        self.claims = Claims(source="README of Dao-AILab/flash-attention declares no batch invariance")

    def absence(self) -> str:
        """Asks the platform, then for the distribution."""
        return nvidia_reason("flash-attn", (8, 0)) or _FLASH_ATTN.missing()

    def probe(self) -> Availability:
        """Imports the function."""
        return _FLASH_ATTN.availability(self.absence())

    def _attend(
        self,
        plan: VariableLengthPlan,
        call: VariableLengthCall,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        config = plan.config
        output, lse, *_ = _FLASH_ATTN.imported(
            queries,
            keys,
            values,
            cu_seqlens_q=call.query_start_loc,
            cu_seqlens_k=call.key_start_loc,
            max_seqlen_q=plan.max_query_len,
            max_seqlen_k=plan.max_kv_len,
            softmax_scale=config.scale,
            causal=call.causal,
            window_size=config.window_sides or (-1, -1),
            softcap=config.softcap or 0.0,
            # What it calls so are the output, the log-sum-exp and, without dropout, nothing.
            return_attn_probs=True,
        )
        return output, lse


class FlashAttention4(PagedFlashWithSinks):
    """`flash_attn.cute.flash_attn_varlen_func` over the paged cache."""

    name = "fa4"
    tiling = Tiling(query_tile=128, kv_tile=128, kv_split=512)

    def __init__(self) -> None:
        # On Hopper it has no other.
        super().__init__(num_splits=1)
        self.claims = Claims(
            source=(
                f"flash-attn-4 declares no batch invariance; vllm {TESTED_VERSIONS['vllm']}, "
                "vllm/v1/attention/backends/fa_utils.py, "
                "get_flash_attn_version, refuses it under VLLM_BATCH_INVARIANT"
            )
        )

    def absence(self) -> str:
        """Asks the platform, then for the distribution."""
        return nvidia_reason("FlashAttention 4", (9, 0)) or _FA4.missing()

    def probe(self) -> Availability:
        """Imports the function; its first call compiles."""
        return _FA4.availability(self.absence())

    def _attend(
        self,
        plan: PagedPlan,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
    ) -> torch.Tensor:
        result, lse = _FA4.imported(
            query,
            key_cache,
            value_cache,
            cu_seqlens_q=plan.query_start_loc,
            max_seqlen_q=plan.max_query_len,
            max_seqlen_k=plan.max_kv_len,
            seqused_k=plan.kv_lens,
            page_table=plan.block_table,
            softmax_scale=plan.config.scale,
            causal=plan.causal,
            window_size=plan.config.window_sides or (None, None),
            learnable_sink=plan.sinks,
            softcap=plan.config.softcap or 0.0,
            num_splits=self.num_splits,
            return_lse=True,
        )
        output.copy_(result)
        return lse  # type: ignore[no-any-return]


def packaged_flash_attention() -> list[Subject]:
    """Both packages, FlashAttention 2 first."""
    return [FlashAttnPackage(), FlashAttention4()]
