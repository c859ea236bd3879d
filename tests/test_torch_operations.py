"""Operations in plain torch, and what holds of the rotary embedding of every backend."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from samebits.backends.cpu_operations import TorchLinear, TorchRmsNorm
from samebits.backends.operations import MergeTensors, RotaryImplementation, RotaryTensors, TokenImplementation
from samebits.backends.token_problem import MergeStates, RotaryEmbedding
from samebits.backends.torch_operations import OnTorch, TorchCacheWrite, TorchMerge, TorchRotary

from .token_operations import OPERATIONS, drawn, tensors_of

ROTARY = RotaryEmbedding("test", 4, 2, 64, 64)
BACKENDS = importlib.metadata.entry_points(group="samebits.backends")
EVERY_ROTARY = [
    implementation
    for backend in BACKENDS
    for implementation in backend.load()()
    if isinstance(implementation, RotaryImplementation) and implementation.probe().available
]

ROTATE_EVERYWHERE = """
import importlib.metadata, importlib.util, sys
import torch
from samebits.backends.operations import RotaryImplementation, RotaryTensors
from samebits.backends.token_problem import RotaryEmbedding

assert importlib.util.find_spec("flash_attn") and importlib.metadata.version("flash_attn") == "2.8.3"
for backend in importlib.metadata.entry_points(group="samebits.backends"):
    for implementation in backend.load()():
        if isinstance(implementation, RotaryImplementation) and implementation.probe().available:
            given = torch.ones(1, 4, 64), torch.ones(1, 2, 64), torch.ones(1).long(), torch.zeros(2, 64)
            tensors = RotaryTensors(*(tensor.to(implementation.probe().device) for tensor in given))
            implementation.run(RotaryEmbedding("test", 4, 2, 64, 64), tensors)
            if not tensors.query.any():
                print(implementation.label)
assert not [name for name in sys.modules if name.split(".")[0] == "flash_attn"], "flash_attn was imported"
"""


def rotary_tensors(tokens: int) -> RotaryTensors:
    return RotaryTensors(drawn(tokens, 4, 64), drawn(tokens, 2, 64, seed=1), torch.arange(tokens), drawn(tokens, 64))


def merge_tensors(tokens: int) -> MergeTensors:
    output, lse = torch.empty(tokens, 3, 16), torch.empty(3, tokens)
    lses = drawn(tokens, 3, seed=1).T.contiguous() * 5, drawn(tokens, 3, seed=2).T.contiguous() * 5
    return MergeTensors(drawn(tokens, 3, 16), lses[0], drawn(tokens, 3, 16, seed=3), lses[1], output, lse)


@pytest.mark.parametrize("backend", ["FLASH_ATTN", "FLEX_ATTENTION", "CPU"])
def test_backends_without_a_library_for_them_show_the_operations_of_torch(backend: str) -> None:
    (loaded,) = (entry.load()() for entry in BACKENDS if entry.name == backend)
    shown = {each.operation for each in loaded if each.label == f"{backend}/torch"}
    assert {"rope", "cache_write", "merge"} <= shown, f"{backend}/torch shows {sorted(shown)} only"


def test_every_backend_rotates() -> None:
    rotating = {implementation.backend for implementation in EVERY_ROTARY}
    missing = {entry.name for entry in BACKENDS} - rotating
    assert not missing, f"no rotary embedding can run for {', '.join(sorted(missing))}"


def test_no_rotary_touches_an_installed_flash_attn(tmp_path: Path) -> None:
    """Metadata and a spec are there, and the module raises when it is imported: as on a machine without its GPU."""
    package, metadata = tmp_path / "flash_attn", tmp_path / "flash_attn-2.8.3.dist-info"
    (package / "ops" / "triton").mkdir(parents=True)
    tried = tmp_path / "tried"
    for folder in (package, package / "ops", package / "ops" / "triton"):
        (folder / "__init__.py").write_text(f"open({str(tried)!r}, 'w').close()\nraise ImportError('libcuda.so.1')\n")
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: flash_attn\nVersion: 2.8.3\n")
    done = subprocess.run(
        [sys.executable, "-c", ROTATE_EVERYWHERE],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not tried.exists(), "an import of flash_attn was tried and its error swallowed"
    rotated = set(done.stdout.split())
    assert rotated == {implementation.label for implementation in EVERY_ROTARY}, f"only {sorted(rotated)} rotated"


@pytest.mark.parametrize(
    "kind", [TorchRotary, TorchCacheWrite, TorchMerge, TorchLinear, TorchRmsNorm], ids=lambda kind: kind.operation
)
def test_running_needs_no_value_on_the_host(kind: type[OnTorch]) -> None:
    """Tensors on the device `meta` have no values: whatever would wait for a device to give one raises."""
    implementation = kind("TEST", "meta")
    assert isinstance(implementation, TokenImplementation)
    tensors = tensors_of(implementation.operation, 5, device=torch.device("meta"))
    implementation.run(OPERATIONS[implementation.operation], tensors)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_tokens_bits_are_those_of_any_number_of_tokens(threads: int) -> None:
    rotary, merge = rotary_tensors(600), merge_tensors(600)

    def rotated(tokens: int) -> tuple[torch.Tensor, ...]:
        query, key = rotary.query[:tokens].clone(), rotary.key[:tokens].clone()
        tensors = RotaryTensors(query, key, rotary.positions[:tokens], rotary.cos_sin_cache)
        TorchRotary("TEST", "cpu").run(ROTARY, tensors)
        return query, key

    def merged(tokens: int) -> tuple[torch.Tensor, ...]:
        outputs = (tensor[:tokens].clone() for tensor in (merge.prefix_output, merge.suffix_output, merge.output))
        lses = (tensor[:, :tokens].contiguous() for tensor in (merge.prefix_lse, merge.suffix_lse, merge.lse))
        (prefix, suffix, output), (prefix_lse, suffix_lse, lse) = outputs, lses
        tensors = MergeTensors(prefix, prefix_lse, suffix, suffix_lse, output, lse)
        TorchMerge("TEST", "cpu").run(MergeStates("test", 3, 16), tensors)
        return output, lse.T

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for compute in (rotated, merged):
            whole = compute(600)
            torch.set_num_threads(threads)
            for tokens in (*range(1, 36), 63, 64, 65, 257, 600):
                for part, rows in zip(compute(tokens), whole, strict=True):
                    alike = part.contiguous().view(torch.int32) == rows[:tokens].contiguous().view(torch.int32)
                    assert alike.all(), f"{compute.__name__}: the first {tokens} of 600 tokens have other bits alone"
    finally:
        torch.set_num_threads(before)
