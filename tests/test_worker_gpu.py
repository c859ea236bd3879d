"""Each worker has one of the GPUs that its caller may use, chosen before CUDA is asked for any."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from samebits.harness import worker_gpu
from samebits.harness.records import UnusableInput
from samebits.harness.worker_gpu import own_device, pin_worker, workers_beside


@pytest.mark.parametrize(
    ("visible", "of_workers"),
    [
        ("0,1,2,3", ["0", "1", "2", "3", "0"]),
        ("6,2", ["6", "2", "6"]),
        (" 3 , 5", ["3", "5", "3"]),
        ("GPU-8932f937-d72c,GPU-1b5f", ["GPU-8932f937-d72c", "GPU-1b5f", "GPU-8932f937-d72c"]),
        ("MIG-9a1c,MIG-GPU-8932/1/0", ["MIG-9a1c", "MIG-GPU-8932/1/0", "MIG-9a1c"]),
        ("4", ["4", "4"]),
        ("0,1,-1,2", ["0", "1", "0"]),
        ("-1", ["-1", "-1"]),
        ("", ["", ""]),
    ],
)
def test_workers_take_turns_among_the_devices_of_their_caller(visible: str, of_workers: list[str]) -> None:
    assert [own_device(visible, worker) for worker in range(len(of_workers))] == of_workers


@pytest.mark.parametrize(
    ("visible", "of_workers"),
    [("0,1,2,3", [2, 2, 1, 1, 2, 2]), ("0", [6] * 6), ("", [6] * 6), ("4,6,-1", [3] * 6)],
)
def test_workers_know_how_many_share_their_device(visible: str, of_workers: list[int]) -> None:
    assert [workers_beside(visible, worker, 6) for worker in range(6)] == of_workers


def test_a_worker_is_pinned_and_a_process_of_its_own_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_gpu, "_all_devices", lambda: "GPU-a,GPU-b")
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: False)))
    for environment, pinned in (
        ({"PYTEST_XDIST_WORKER": "gw1", "CUDA_VISIBLE_DEVICES": "4,6"}, "6"),
        ({"PYTEST_XDIST_WORKER": "gw3"}, "GPU-b"),
        ({"CUDA_VISIBLE_DEVICES": "4,6"}, "4,6"),
        ({"PYTEST_XDIST_WORKER": "master", "CUDA_VISIBLE_DEVICES": "4,6"}, "4,6"),
        ({"PYTEST_XDIST_WORKER": "gw0", "CUDA_VISIBLE_DEVICES": ""}, ""),
    ):
        pin_worker(environment)
        assert environment["CUDA_VISIBLE_DEVICES"] == pinned, f"{environment} has another GPU"


def test_without_a_gpu_nothing_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_gpu, "_all_devices", lambda: None)
    environment = {"PYTEST_XDIST_WORKER": "gw0"}
    pin_worker(environment)
    assert "CUDA_VISIBLE_DEVICES" not in environment


def test_a_worker_that_has_a_gpu_already_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: True)))
    with pytest.raises(UnusableInput, match="CUDA was initialised before worker gw1 was given GPU 6"):
        pin_worker({"PYTEST_XDIST_WORKER": "gw1", "CUDA_VISIBLE_DEVICES": "4,6"})
    pin_worker({"PYTEST_XDIST_WORKER": "gw1", "CUDA_VISIBLE_DEVICES": "6"})


def test_collecting_the_suites_asks_cuda_for_nothing() -> None:
    script = """
import torch

def refuse():
    raise AssertionError("CUDA was initialised")

torch.cuda.is_available, torch.cuda.device_count, torch.cuda._lazy_init = lambda: True, lambda: 1, refuse
import samebits.harness.plugin
import samebits.harness.session
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"a worker would have a GPU before it is given one: {done.stderr[-2000:]}"
