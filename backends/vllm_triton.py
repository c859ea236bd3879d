"""TRITON_ATTN/vllm: vLLM's `unified_attention`, its Triton kernel for paged caches, without vLLM.

Two files of the `vllm` distribution are run as they are, in a private copy, with stand-ins for the few names that they
import from the rest of vLLM; that is never imported. On a machine without a GPU the kernel is interpreted.

vLLM reads `VLLM_BATCH_INVARIANT` once, when it imports the module. A private copy is cheap, so there is one for each
value, and both run in one process:

* `[3d]` is the flag's default: a batch of at most `128 // num_kv_heads` requests of one query token each goes to a
  kernel that shares a request's keys among 16 programs, every other batch to the one that walks them.
* `[2d]` is the flag set: the walking kernel for every batch.

Both are given what vLLM's backend gives (`vllm/v1/attention/backends/triton_attn.py`): the scratch of 16 segments, and
`128 // num_kv_heads` for the threshold, as without CUDA graphs.
"""

from __future__ import annotations

import enum
import functools
import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from samebits.backends.contract import (
    AttentionConfig,
    AttentionMetadata,
    Availability,
    Claims,
    Implementation,
    KnownGap,
    Tiling,
)
from samebits.backends.encoder_tokens import refuse_encoder_lengths, refuse_encoder_tokens
from samebits.backends.flash_limits import page_size_supported
from samebits.backends.libraries import TESTED_VERSIONS, LibraryFile, LibraryMissing, find
from samebits.backends.platform import accelerator, summary_of
from samebits.backends.private_package import private_package
from samebits.backends.problem import Mask
from samebits.backends.subject import GraphSupport
from samebits.backends.support import Support
from samebits.backends.triton_kernels import next_power_of_two

DISTRIBUTION = "vllm"
_FOLDER = "vllm/v1/attention/ops"
_HELPERS, _KERNELS = "triton_attention_helpers", "triton_unified_attention"
# MIN_LAUNCH_GRID_SIZE_2D and NUM_PAR_SOFTMAX_SEGMENTS of vLLM's backend.
_LEAST_PROGRAMS = 128
_SEGMENTS = 16


class KVQuantMode(enum.IntEnum):
    """Stands for `vllm.v1.kv_cache_interface.KVQuantMode`, of which the kernel knows these."""

    NONE = 0
    FP8_PER_TENSOR = 1
    INT8_PER_TOKEN_HEAD = 2
    FP8_PER_TOKEN_HEAD = 3


@dataclass(frozen=True)
class UnifiedPlan:
    """A batch as `unified_attention` takes it.

    Attributes:
        config: of the layer.
        metadata: of the batch.
        num_rows: query rows that belong to a request: vLLM hands over no others.
        segments: scratch of the shared keys, float32: outputs `[threshold, num_heads, 16, head_dim]`, the head_dim
            padded to a power of two, maxima and sums `[threshold, num_heads, 16]`.
    """

    config: AttentionConfig
    metadata: AttentionMetadata
    num_rows: int
    segments: tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class VllmTritonAttention(Implementation[UnifiedPlan]):
    """vLLM's `unified_attention`.

    Args:
        batch_invariant: value of `VLLM_BATCH_INVARIANT`.
    """

    backend = "TRITON_ATTN"
    name = "vllm"
    # A row that sees no key divides 0 by 0 in the walking kernel. vLLM has no such batch.
    support = Support(
        dtypes=("fp32", "bf16", "fp16"),
        masks=(Mask.CAUSAL, Mask.SLIDING_WINDOW),
        head_dims=lambda head_dim: head_dim >= 32,
        page_sizes=page_size_supported,
        query_longer_than_kv=False,
        empty_kv=False,
        sinks=True,
    )
    # 16 rows of a group; tiles of 32 keys, of 16 where keys are shared, in 16 parts of whole tiles.
    tiling = Tiling(query_tile=16, kv_tile=32, kv_split=64)
    known_gaps = (
        KnownGap("docs/vendors.md, vLLM's Triton kernel loses rows whose first tile is hidden", relation="window"),
        KnownGap("docs/vendors.md, a softcap of exponentials", relation="softcap"),
        # The one case whose layer has a softcap.
        KnownGap("docs/vendors.md, a softcap of exponentials", relation="seen_inf", mask=Mask.SLIDING_WINDOW),
        # Both at once, where scores lie far below 0.
        KnownGap(
            "docs/vendors.md, a softcap of exponentials", relation="crossed", mask=Mask.SLIDING_WINDOW, always=False
        ),
        # vLLM leaves Triton's default for products of fp32, which NVIDIA's units compute in TF32.
        KnownGap("docs/vendors.md, TF32 where fp32 was asked for", dtype="fp32", device="cuda"),
    )

    def __init__(self, batch_invariant: bool) -> None:
        self.batch_invariant = batch_invariant
        self.variant = "2d" if batch_invariant else "3d"
        self.interpreted = accelerator().device == "cpu"
        self.claims = Claims(
            batch_invariant=batch_invariant,
            cuda_graph=GraphSupport.ALWAYS,
            source=(
                f"vllm {TESTED_VERSIONS[DISTRIBUTION]}, vllm/v1/attention/backends/triton_attn.py: "
                "TritonAttentionBackend.supports_batch_invariance, _cudagraph_support of "
                "TritonAttentionMetadataBuilder; vllm/v1/attention/ops/triton_unified_attention.py: use_3d in "
                "unified_attention"
            ),
        )
        self.configuration = {
            "VLLM_BATCH_INVARIANT": str(int(batch_invariant)),
            "num_par_softmax_segments": str(_SEGMENTS),
        }

    def absence(self) -> str:
        """Looks for the two files."""
        try:
            _find_files()
        except LibraryMissing as error:
            return str(error)
        return ""

    def probe(self) -> Availability:
        """Imports the two files as they will be run."""
        platform = accelerator()
        try:
            _, version = _load(self.batch_invariant, interpreted=platform.device == "cpu")
        except LibraryMissing as error:
            return Availability(reason=str(error), device=platform.device)
        triton_version = importlib.import_module("triton").__version__
        return Availability(version=f"{version}+triton{triton_version}", device=platform.device)

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> UnifiedPlan:
        """Allocates scratch, of the same size for every batch.

        Raises:
            ValueError: the layer or the batch is outside of `support`.
        """
        self.require(config)
        refuse_encoder_tokens(self.label, config, metadata)
        return self._planned(config, metadata, num_rows=int(metadata.query_start_loc[-1]))

    def plan_for_graph(self, config: AttentionConfig, metadata: AttentionMetadata, num_pages: int) -> UnifiedPlan:
        """As `plan`, for as many rows as any batch of these sizes may have: no more than each request's queries.

        Raises:
            ValueError: the layer is outside of `support`, or there may be encoder tokens before a request's keys.
        """
        self.require(config)
        refuse_encoder_lengths(self.label, config, metadata)
        most = min(metadata.num_tokens, metadata.num_requests * metadata.max_query_len)
        return self._planned(config, metadata, num_rows=most)

    def _planned(self, config: AttentionConfig, metadata: AttentionMetadata, num_rows: int) -> UnifiedPlan:
        shape = (self._threshold(config), config.num_heads, _SEGMENTS)

        def scratch(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=torch.float32, device=config.device)

        return UnifiedPlan(
            config=config,
            metadata=metadata,
            num_rows=num_rows,
            segments=(scratch(*shape, next_power_of_two(config.head_dim)), scratch(*shape), scratch(*shape)),
        )

    def run(
        self,
        plan: UnifiedPlan,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        """Computes the batch in one call; vLLM chooses the kernel."""
        config, metadata = plan.config, plan.metadata
        unified_attention, _ = _load(self.batch_invariant, interpreted=accelerator().device == "cpu")
        segment_outputs, segment_maxima, segment_sums = plan.segments
        # Rows of a tile that belong to nobody divide 0 by 0, of which the interpreter's numpy would warn.
        with np.errstate(all="ignore"):
            unified_attention(
                q=query[: plan.num_rows],
                k=key_cache,
                v=value_cache,
                out=output[: plan.num_rows],
                cu_seqlens_q=metadata.query_start_loc,
                max_seqlen_q=metadata.max_query_len,
                seqused_k=metadata.seq_lens,
                max_seqlen_k=metadata.max_seq_len,
                softmax_scale=config.scale,
                causal=metadata.causal,
                window_size=config.window_sides or (-1, -1),
                block_table=metadata.block_table,
                softcap=config.softcap or 0.0,
                q_descale=None,
                k_descale=None,
                v_descale=None,
                seq_threshold_3D=self._threshold(config),
                num_par_softmax_segments=_SEGMENTS,
                softmax_segm_output=segment_outputs,
                softmax_segm_max=segment_maxima,
                softmax_segm_expsum=segment_sums,
                sinks=config.sinks,
            )

    @staticmethod
    def _threshold(config: AttentionConfig) -> int:
        """Requests up to which keys are shared: enough programs for a GPU without sharing."""
        return _LEAST_PROGRAMS // config.num_kv_heads


def vllm_triton_attention() -> list[VllmTritonAttention]:
    """The kernel under both values of vLLM's flag."""
    return [VllmTritonAttention(batch_invariant=True), VllmTritonAttention(batch_invariant=False)]


def _find_files() -> dict[str, LibraryFile]:
    return {name: find(DISTRIBUTION, f"{_FOLDER}/{name}.py") for name in (_HELPERS, _KERNELS)}


@functools.cache
def _load(batch_invariant: bool, interpreted: bool) -> tuple[Callable[..., None], str]:
    """Imports a private copy of the two files: `unified_attention`, and the version of vLLM.

    Raises:
        LibraryMissing: a file is missing or does not import.
    """
    files = _find_files()
    version = files[_KERNELS].version
    try:
        with ExitStack() as scope:
            if interpreted:
                from samebits.backends.triton_interpreter import interpreting

                scope.enter_context(interpreting())
            scope.enter_context(private_package(DISTRIBUTION, _stand_ins(batch_invariant)))
            modules = {name: _run_file(name, file.path) for name, file in files.items()}
        return modules[_KERNELS].unified_attention, version
    except (Exception, SystemExit) as error:
        told = f"importing {_FOLDER}/{_KERNELS}.py of {DISTRIBUTION} {version} raised {summary_of(error)}"
        raise LibraryMissing(told) from error


def _run_file(name: str, path: Path) -> ModuleType:
    """Runs a file under the name that it has in vLLM, where the next file finds it."""
    full_name = f"{_FOLDER.replace('/', '.')}.{name}"
    spec = importlib.util.spec_from_file_location(full_name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[full_name] = module
    spec.loader.exec_module(module)
    return module


def _stand_ins(batch_invariant: bool) -> Mapping[str, Mapping[str, Any]]:
    """What the files import from vLLM, by module."""
    triton = importlib.import_module("triton")

    class CurrentPlatform:
        """Stands for vLLM's platform, which is asked for the type of caches that are not tested here."""

        @staticmethod
        def fp8_dtype() -> torch.dtype:
            return torch.float8_e4m3fn

    packages = ("vllm", "vllm.v1", "vllm.v1.attention", "vllm.v1.attention.ops")
    return {
        **{name: {} for name in packages},
        "vllm.envs": {"VLLM_BATCH_INVARIANT": batch_invariant},
        "vllm.logger": {"init_logger": logging.getLogger},
        "vllm.platforms": {"current_platform": CurrentPlatform},
        "vllm.triton_utils": {"triton": triton, "tl": importlib.import_module("triton.language")},
        "vllm.v1.kv_cache_interface": {"KVQuantMode": KVQuantMode},
    }
