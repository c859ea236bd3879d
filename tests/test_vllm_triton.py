"""vLLM's Triton kernel: its two files loaded without vLLM, and called as vLLM calls them. Plain files stand in."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from samebits.backends import vllm_triton
from samebits.backends.libraries import use_bundles
from samebits.backends.problem import Mask
from samebits.backends.vllm_triton import VllmTritonAttention, vllm_triton_attention

from .plain_attention import GEOMETRY, WITH_SINKS, assert_right, problem_of

# What the two files of vLLM do with what they import, and how they are called; computed by `plain_attention`.
HELPERS = "from vllm.triton_utils import tl, triton\nmarker = triton.__name__\n"
KERNELS = """
import vllm.envs as envs
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.triton_utils import tl, triton
from vllm.v1.attention.ops.triton_attention_helpers import marker
from vllm.v1.kv_cache_interface import KVQuantMode
from tests.plain_attention import plain_attention

logger = init_logger(__name__)
logger.debug("loaded")
assert KVQuantMode.NONE == 0 and marker == "triton" and current_platform.fp8_dtype().is_floating_point
is_batch_invariant = envs.VLLM_BATCH_INVARIANT
calls = []


def unified_attention(
    q, k, v, out, cu_seqlens_q, max_seqlen_q, seqused_k, max_seqlen_k, softmax_scale, causal, window_size, block_table,
    softcap, q_descale, k_descale, v_descale, seq_threshold_3D=None, num_par_softmax_segments=None,
    softmax_segm_output=None, softmax_segm_max=None, softmax_segm_expsum=None, sinks=None,
):
    assert causal
    calls.append((is_batch_invariant, seq_threshold_3D, num_par_softmax_segments, tuple(softmax_segm_output.shape)))
    assert q.shape[0] == int(cu_seqlens_q[-1]), "rows of nobody are handed over"
    result, _ = plain_attention(
        q, k, v, cu_seqlens_q, seqused_k, block_table, softmax_scale, [True] * len(seqused_k), window_size, softcap,
        sinks,
    )
    out.copy_(result)
"""


@pytest.fixture
def triton_bundle(tmp_path: Path) -> Iterator[Path]:
    """A bundle of vLLM's two files, plain ones."""
    yield make_vllm(tmp_path / "libs", HELPERS, KERNELS)
    use_bundles(())
    vllm_triton._load.cache_clear()


def make_vllm(folder: Path, helpers: str, kernels: str) -> Path:
    files = {}
    for name, text in (("triton_attention_helpers", helpers), ("triton_unified_attention", kernels)):
        path = f"vllm/v1/attention/ops/{name}.py"
        (folder / "vllm" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "vllm" / path).write_text(text)
        files[path] = hashlib.sha256(text.encode()).hexdigest()
    library = {"name": "vllm", "version": "0.20.2", "torch": "2.11.0", "files": files}
    (folder / "bundle.json").write_text(json.dumps({"schema": 1, "libraries": [library]}))
    vllm_triton._load.cache_clear()
    use_bundles([folder])
    return folder


def test_vllms_triton_kernel_is_loaded_once_for_each_value_of_its_flag(triton_bundle: Path) -> None:
    invariant, shared = vllm_triton_attention()
    assert [implementation.variant for implementation in (invariant, shared)] == ["2d", "3d"]
    for implementation, flag in ((invariant, True), (shared, False)):
        assert implementation.probe().version.startswith("0.20.2+triton")
        assert_right(implementation, problem_of(WITH_SINKS, Mask.CAUSAL, "decode"))
        calls = vllm_triton._load(flag, interpreted=True)[0].__globals__["calls"]
        # 128 programs over two key/value heads.
        assert set(calls) == {(flag, 64, 16, (64, 4, 16, 64))}, f"it was called with {set(calls)}"


@pytest.mark.parametrize("mask", [Mask.CAUSAL, Mask.SLIDING_WINDOW], ids=str)
def test_vllms_triton_kernel_is_given_the_batch(triton_bundle: Path, mask: Mask) -> None:
    for batch in ("mixed", "decode", "prefill", "draft"):
        assert_right(VllmTritonAttention(False), problem_of(GEOMETRY, mask, batch, "fp32"))


def test_vllm_itself_is_never_imported(triton_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = type(sys)("vllm")
    monkeypatch.setitem(sys.modules, "vllm", theirs)
    assert not VllmTritonAttention(True).probe().reason
    left = [name for name in sys.modules if name == "vllm" or name.startswith("vllm.")]
    assert left == ["vllm"], f"stand-ins were left behind: {left}"
    assert sys.modules["vllm"] is theirs, "what had the name before was not put back"


@pytest.mark.parametrize(
    ("kernels", "sentence"),
    [
        ("import vllm.config\n", "ModuleNotFoundError: No module named 'vllm.config'"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
        ("other = 1\n", "has no attribute 'unified_attention'"),
        ("def broken(:\n", "SyntaxError"),
    ],
)
def test_a_broken_file_of_vllm_is_one_sentence(triton_bundle: Path, kernels: str, sentence: str) -> None:
    make_vllm(triton_bundle, HELPERS, kernels)
    implementation = VllmTritonAttention(True)
    assert implementation.absence() == "", "the file is there, and whether it works is for the probe to find out"
    reason = implementation.probe().reason
    assert reason.startswith("importing vllm/v1/attention/ops/triton_unified_attention.py of vllm 0.20.2 raised")
    assert sentence in reason
