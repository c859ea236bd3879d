"""One compiled Triton kernel serves all batches, and those that are compiled for other alignments sum in one order."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from samebits.backends.problem import Geometry, Layout, Mask, Problem, Request
from samebits.backends.target import TARGETS, supposing
from samebits.backends.triton_attn import TritonAttention
from samebits.backends.triton_operations import TritonLinear, TritonRmsNorm
from samebits.harness.batch import make_batch
from samebits.kernels.triton import linear, paged_attention, rms_norm

from .token_operations import CPU, linear_of, norm_of
from .triton_launches import Launch, assert_same_compiled, recording

GEOMETRY = Geometry("test", num_heads=8, num_kv_heads=2, head_dim=128)
HOPPER = GPUTarget("cuda", 90, 32)
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.bool: "*i1"}
# Read element by element, and often slices of an engine's own buffers.
METADATA = ("lse", "query_start_loc", "kv_lens", "kv_starts", "causal_requests", "block_table")


def attention_launches(problem: Problem, num_segments: int) -> list[Launch]:
    """What attention gives its kernels on a GPU."""
    batch = make_batch(problem, CPU)
    with supposing(TARGETS["sm_90"]), recording("triton_attn", paged_attention) as launched:
        implementation = TritonAttention(num_segments=num_segments, on_hopper=False)
        plan = implementation.plan(batch.config, batch.metadata)
        lse = torch.empty(GEOMETRY.num_heads, batch.query.shape[0])
        output = torch.empty_like(batch.query)
        implementation.run(plan, batch.query, batch.key_cache, batch.value_cache, output, lse)
    return launched


@pytest.mark.parametrize("num_segments", [1, 3])
@pytest.mark.parametrize("mask", [Mask.CAUSAL, Mask.CROSS, Mask.PER_REQUEST], ids=str)
def test_one_compiled_kernel_of_attention_serves_every_batch(mask: Mask, num_segments: int) -> None:
    def launched(layout: Layout, *requests: Request) -> list[Launch]:
        return attention_launches(Problem(GEOMETRY, mask, "bf16", requests, layout), num_segments)

    usual = launched(Layout(), Request(1, 7, 20, encoder_len=5), Request(2, 3, encoder_len=9))
    assert len(usual) == (1 if num_segments == 1 else 2), "a launch is missing"
    others = (
        # One token, one page.
        launched(Layout(), Request(1, 1, encoder_len=1)),
        # 16 requests and tokens.
        launched(Layout(extra_table_columns=16), *(Request(key, 1, 15 * 16, encoder_len=16) for key in range(16))),
        launched(
            Layout(padding_requests=3, padding_tokens=16, extra_table_columns=5), Request(1, 16, 33, encoder_len=4)
        ),
    )
    for other in others:
        for one, another in zip(usual, other, strict=True):
            assert_same_compiled(one, another)
    for launch in usual:
        for parameter in launch.kernel.params:
            assert parameter.name not in METADATA or parameter.do_not_specialize_on_alignment, (
                f"{launch.kernel.__name__} is compiled for the alignment of {parameter.name}"
            )


def compiled(launch: Launch, aligned: bool) -> CompiledKernel:
    """The kernel of a launch for a Hopper GPU, for tensors and integers that 16 divides or for others."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for parameter in launch.kernel.params:
        name, place = parameter.name, (parameter.num,)
        value = launch.constants.get(name, launch.arguments.get(name))
        if name in launch.constants or value is None:
            signature[name], constants[place] = "constexpr", value
            continue
        is_tensor = isinstance(value, torch.Tensor)
        signature[name] = POINTERS[value.dtype] if is_tensor else "fp32" if isinstance(value, float) else "i32"
        fixed = parameter.do_not_specialize or parameter.do_not_specialize_on_alignment
        if aligned and not fixed and not isinstance(value, float):
            attributes[place] = [["tt.divisibility", 16]]
    options = {name: value for name, value in launch.constants.items() if name not in signature}
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(source, target=HOPPER, options=options)


def sums_of(kernel: CompiledKernel) -> set[str]:
    """The layouts in which floats are summed: of the operands of reductions, and of the results of `tl.dot`.

    Left out are sums of two, which have one order.
    """
    code = kernel.asm["ttgir"]
    layouts = dict(re.findall(r"^(#\w+) = (.*)$", code, re.MULTILINE))
    reduced = re.findall(r'"tt\.reduce"\(.*?axis = (\d).*?\}\) : \((tensor<[^)]*)\) ->', code, re.DOTALL)
    of_floats = [(int(axis), tensor) for axis, tensor in reduced if "xf32" in tensor]
    found = [f"sum over axis {axis} of {tensor}" for axis, tensor in of_floats if _sizes(tensor)[axis] > 2]
    found += [f"dot {tensor}" for tensor in re.findall(r"(?:tt\.dot|warp_group_dot) .*-> (tensor<[^>]*>)", code)]
    return {re.sub(r"#\w+", lambda name: layouts.get(name[0], name[0]), each) for each in found}


def _sizes(tensor: str) -> list[int]:
    return [int(size) for size in re.findall(r"(\d+)x", tensor.split(",")[0])]


def loads_of(kernel: CompiledKernel) -> Counter[str]:
    return Counter(re.findall(r"(?:ld\.global|cp\.async)\S*", kernel.asm["ptx"]))


def linear_launch(dtype: torch.dtype) -> Launch:
    with supposing(TARGETS["sm_90"]), recording("triton_operations", linear) as launched:
        linear_of(TritonLinear(on_hopper=False), torch.ones(100, 2048, dtype=dtype), torch.ones(512, 2048, dtype=dtype))
    return launched[0]


def norm_launch(dtype: torch.dtype) -> Launch:
    with supposing(TARGETS["sm_90"]), recording("triton_operations", rms_norm) as launched:
        norm_of(TritonRmsNorm(), torch.ones(9, 4096, dtype=dtype), torch.ones(4096, dtype=dtype))
    return launched[0]


def attention_launch(dtype: torch.dtype) -> Launch:
    name = {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
    return attention_launches(Problem(GEOMETRY, Mask.CAUSAL, name, (Request(1, 7, 20),)), num_segments=1)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("launch_in", "sums"), [(attention_launch, 2), (linear_launch, 1), (norm_launch, 0)])
def test_alignment_does_not_change_the_order_of_a_sum(
    launch_in: Callable[[torch.dtype], Launch], sums: int, dtype: torch.dtype
) -> None:
    """Triton compiles variants for it, which load differently; `tl.sum` follows the layout that it is given."""
    launch = launch_in(dtype)
    aligned, unaligned = compiled(launch, aligned=True), compiled(launch, aligned=False)
    assert loads_of(aligned) != loads_of(unaligned), "the variants load alike, so that nothing is shown"
    found = sums_of(aligned)
    assert found == sums_of(unaligned), "tensors of another alignment are summed in another layout"
    assert len(found) >= sums if sums else not found, f"the sums are {found}"


@triton.jit  # type: ignore[untyped-decorator]
def sum_as_loaded(rows, sums, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    column = tl.arange(0, SIZE)
    tl.store(sums, tl.sum(tl.load(rows + column), 0))


def test_a_sum_in_the_layout_of_its_load_would_be_seen() -> None:
    launch = Launch(sum_as_loaded, {"rows": torch.ones(1024), "sums": torch.ones(1)}, {"SIZE": 1024})
    aligned, unaligned = (sums_of(compiled(launch, aligned)) for aligned in (True, False))
    assert aligned != unaligned, f"both are summed as {aligned}"
