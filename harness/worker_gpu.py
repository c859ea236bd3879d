"""A GPU of its own for each worker of pytest-xdist, chosen before anything in the process asks for one."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import MutableMapping

from samebits.harness.records import UnusableInput

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_WORKER, _WORKERS = "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"
# How many workers share the GPU of this process.
WORKERS_ON_GPU = "SAMEBITS_WORKERS_ON_GPU"


def own_device(visible: str, worker: int) -> str:
    """The device of a worker, among those that its caller may use: one each, in turns where workers are more.

    Args:
        visible: the caller's `CUDA_VISIBLE_DEVICES`: numbers, or UUIDs of GPUs or MIG instances, with commas between.
            As for CUDA, the list ends before the first negative number.
        worker: number of the worker, from 0.

    Returns:
        One entry, as it is written; `visible` itself where it shows no device.
    """
    devices = _devices(visible)
    return devices[worker % len(devices)] if devices else visible


def workers_beside(visible: str, worker: int, workers: int) -> int:
    """How many of some workers have the device of one of them, itself among them.

    Args:
        visible: the caller's `CUDA_VISIBLE_DEVICES`.
        worker: number of that one, from 0.
        workers: how many there are.
    """
    turns = max(1, len(_devices(visible)))
    return len(range(worker % turns, workers, turns))


def _devices(visible: str) -> list[str]:
    devices: list[str] = []
    for entry in visible.split(","):
        device = entry.strip()
        if not device or device.startswith("-"):
            break
        devices.append(device)
    return devices


def pin_worker(environment: MutableMapping[str, str]) -> None:
    """Leaves this process one GPU, where it is a worker and there are several.

    Args:
        environment: of this process, which is changed.

    Raises:
        UnusableInput: CUDA has been initialised already, and would go on with the GPUs that it found.
    """
    number = re.fullmatch(r"gw(\d+)", environment.get(_WORKER, ""))
    if number is None:
        return
    visible = environment.get(_VISIBLE)
    if visible is None:
        visible = _all_devices()
    if visible is None:
        return
    environment[WORKERS_ON_GPU] = str(workers_beside(visible, int(number[1]), int(environment.get(_WORKERS, "1"))))
    chosen = own_device(visible, int(number[1]))
    if chosen == environment.get(_VISIBLE):
        return
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise UnusableInput(
            f"CUDA was initialised before worker {environment[_WORKER]} was given GPU {chosen}; load no plugin or "
            "conftest that uses a GPU, or run without -n"
        )
    environment[_VISIBLE] = chosen


def _all_devices() -> str | None:
    """UUIDs of all GPUs as `CUDA_VISIBLE_DEVICES` takes them; None where there is none of NVIDIA's."""
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return ",".join(done.stdout.split()) or None
