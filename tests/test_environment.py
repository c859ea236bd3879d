"""What besides a kernel may decide bits is told as it is when a cell runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from samebits.backends import platform
from samebits.harness.environment import environment


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores torch's number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_is_that_of_now() -> None:
    for number in (1, 2, 1):
        torch.set_num_threads(number)
        assert environment("cpu").threads == number, "the environment is of an earlier number of threads"


@pytest.fixture
def fresh_processor() -> Iterator[None]:
    """Asks for the processor anew, before and after."""
    platform.processor.cache_clear()
    yield
    platform.processor.cache_clear()


@pytest.mark.usefixtures("fresh_processor")
@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("vendor_id\t: GenuineIntel\nflags\t\t: fpu avx512_bf16 amx_bf16\n", "GenuineIntel {}+amx_bf16+avx512_bf16"),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx512_bf16\n", "AuthenticAMD {}+avx512_bf16"),
        ("processor\t: 0\nFeatures\t: fp asimd bf16 sve\nCPU implementer\t: 0x41\n", "0x41 {}+bf16+sve"),
        ("flags\t: a\n\nprocessor\t: 1\nflags\t: bf16\n", "unknown {}"),
    ],
)
def test_processors_of_two_vendors_have_two_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: str, name: str
) -> None:
    """MKL and oneDNN dispatch on the vendor, too, so what one computed is no baseline for the other."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(told)
    monkeypatch.setattr(platform, "_CPUINFO", cpuinfo)
    monkeypatch.setattr("platform.machine", lambda: "machine")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert platform.processor().name == name.format("machine+avx512")


@pytest.mark.usefixtures("fresh_processor")
def test_a_system_that_says_nothing_of_its_processor_has_a_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(platform, "_CPUINFO", tmp_path / "absent")
    assert platform.processor().name.startswith("unknown ")
