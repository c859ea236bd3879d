"""AITER/triton: operations on tokens by the Triton kernels of AMD's `amd-aiter`.

* `rope` is `aiter.ops.triton.rope.rope_cached_thd_positions_2c_fwd_inplace`, and its backward pass for the inverse.
* `rms_norm` is `aiter.ops.triton.rmsnorm.rms_norm`.

See docs/aiter.md for what it has of the other operations, and how the kernels are reached where there is no ROCm.
"""

from __future__ import annotations

from collections.abc import Mapping

from samebits.backends.aiter_adapter import EntryPoint, availability, reach, substitutions
from samebits.backends.contract import DTYPES, dtype_name
from samebits.backends.operations import RmsNormImplementation, RmsNormTensors, RotaryImplementation, RotaryTensors
from samebits.backends.platform import accelerator
from samebits.backends.subject import Availability, Claims, GraphSupport, Subject, Tiling
from samebits.backends.token_problem import RmsNorm, RotaryEmbedding, TokenProblem

_ROTARY_PARAMETERS = (
    "x",
    "y",
    "cos",
    "sin",
    "positions",
    "rotate_style",
    "reuse_freqs_front_part",
    "nope_first",
)
_ROTATE = EntryPoint("aiter.ops.triton.rope", "rope_cached_thd_positions_2c_fwd_inplace", _ROTARY_PARAMETERS)
_ROTATE_BACK = EntryPoint("aiter.ops.triton.rope", "rope_cached_thd_positions_2c_bwd", _ROTARY_PARAMETERS)
_NORMALIZE = EntryPoint("aiter.ops.triton.rmsnorm", "rms_norm", ("input", "weight", "epsilon"))
# `aiter.ops.triton.rope.RotateStyle`.
_NEOX, _GPTJ = 0, 1
# `_rms_norm_kernel` tells the compiler that every row begins at a multiple of this many bytes.
_ROW_ALIGNMENT = 16
# Launches only: sizes come from shapes, and positions are read on the device.
_NO_CLAIMS = Claims(cuda_graph=GraphSupport.ALWAYS, source="amd-aiter declares no batch invariance")


class Rotary(RotaryImplementation):
    """AITER's rotary embedding of queries and keys in one launch.

    A part of a head is rotated by handing over a view of that part, as AITER's users do: its own layouts for that know
    halves only. On a GPU its kernels read wherever a position points, also outside of the cache.
    """

    backend = "AITER"
    name = "triton"
    claims = _NO_CLAIMS
    # Tokens per program.
    tiling = Tiling(query_tile=32)
    triton_kernels: Mapping[str, tuple[str, ...]] = {"tokens": ("_rope_kernel_cached_thd_2c_gqa_onehead_fwd",)}

    def __init__(self) -> None:
        """Records what the adapter substitutes."""
        self.configuration = substitutions()
        self.interpreted = accelerator().kind == "cpu"

    def probe(self) -> Availability:
        """Imports the kernels of both directions."""
        return availability(_ROTATE, _ROTATE_BACK)

    def reasons(self, problem: TokenProblem) -> list[str]:
        """Why this problem cannot be computed, one sentence each; empty when it can."""
        assert isinstance(problem.operation, RotaryEmbedding), "it computes no other operation"
        return [*super().reasons(problem), *self.refusals(problem.operation, problem.dtype)]

    def refusals(self, operation: RotaryEmbedding, dtype: str) -> list[str]:
        """What AITER's kernels compute wrongly, or write outside of the tensors for, one sentence each."""
        found: list[str] = []
        cache_dtype = operation.cache_dtype or dtype
        # The kernels multiply and add in the wider of the two dtypes.
        if cache_dtype == dtype != "fp32":
            found.append(
                f"a cos_sin_cache of {dtype} beside queries of {dtype} is not supported, only one of fp32: "
                f"both products and their sum would each be rounded to {dtype}"
            )
        if not _is_power_of_two(operation.rotary_dim):
            found.append(f"rotary_dim {operation.rotary_dim} is not supported, only powers of two")
        heads, kv_heads = operation.num_heads, operation.num_kv_heads
        if heads % kv_heads:
            found.append(f"num_heads {heads} is not supported with num_kv_heads {kv_heads}, only multiples of it")
        # The kernel for equal numbers of heads runs as many programs as the next power of two, and masks none.
        if heads == kv_heads and not _is_power_of_two(heads):
            found.append(
                f"num_heads = num_kv_heads = {heads} is not supported, only powers of two: "
                "heads behind the last, which are other tokens', would be rotated too"
            )
        return found

    def compute(self, operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
        """Rotates the first `rotary_dim` elements of each head in place; the inverse through a copy of them.

        Raises:
            ValueError: AITER's kernels compute this wrongly, or write outside of the tensors.
        """
        refusals = self.refusals(operation, dtype_name(tensors.query.dtype))
        if refusals:
            raise ValueError(f"{self.label} cannot compute {operation}: {'; '.join(refusals)}")
        query, key = (tensor[..., : operation.rotary_dim] for tensor in (tensors.query, tensors.key))
        cos, sin = tensors.cos_sin_cache.chunk(2, dim=1)
        kernel = reach(_ROTATE_BACK if operation.inverse else _ROTATE)
        with kernel.launching():
            rotated_query, rotated_key = kernel.function(
                x=query,
                y=key,
                cos=cos,
                sin=sin,
                positions=tensors.positions,
                rotate_style=_GPTJ if operation.interleaved else _NEOX,
                reuse_freqs_front_part=True,
                nope_first=False,
            )
        if operation.inverse:
            query.copy_(rotated_query)
            key.copy_(rotated_key)


class RootMeanSquareNorm(RmsNormImplementation):
    """AITER's RMSNorm, a row per step of a program."""

    backend = "AITER"
    name = "triton"
    claims = _NO_CLAIMS
    tiling = Tiling(query_tile=1)
    triton_kernels: Mapping[str, tuple[str, ...]] = {"tokens": ("_rms_norm_kernel",)}

    def __init__(self) -> None:
        """Records what the adapter substitutes."""
        self.configuration = substitutions()
        self.interpreted = accelerator().kind == "cpu"

    def probe(self) -> Availability:
        """Imports `rms_norm`."""
        return availability(_NORMALIZE)

    def reasons(self, problem: TokenProblem) -> list[str]:
        """Why this problem cannot be computed, one sentence each; empty when it can."""
        assert isinstance(problem.operation, RmsNorm), "it computes no other operation"
        found = super().reasons(problem)
        size = problem.operation.size
        row_bytes = size * DTYPES[problem.dtype].itemsize
        if row_bytes % _ROW_ALIGNMENT:
            found.append(
                f"size {size} in {problem.dtype} is not supported: a row has {row_bytes} bytes, "
                f"which must be a multiple of {_ROW_ALIGNMENT}"
            )
        return found

    def compute(self, operation: RmsNorm, tensors: RmsNormTensors) -> None:
        """Normalises each row; AITER allocates its output, which is then copied."""
        kernel = reach(_NORMALIZE)
        with kernel.launching():
            normalized = kernel.function(
                input=tensors.input.flatten(end_dim=-2), weight=tensors.weight, epsilon=operation.epsilon
            )
        tensors.output.view(normalized.shape).copy_(normalized)


def operations() -> list[Subject]:
    """The operations on tokens that AITER's Triton kernels have."""
    return [Rotary(), RootMeanSquareNorm()]


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0
