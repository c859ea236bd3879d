"""What surrounds a call, brought about: scratch, other work, threads."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

from samebits.backends.problem import Circumstances
from samebits.harness.scratch import give_back_poison, poisoned_scratch

_WORK_SIZE = 256
# Some tens of milliseconds, so that work is left when the call comes.
_PRODUCTS_ON_DEVICE = 128


@contextmanager
def in_circumstances(circumstances: Circumstances, poison: str, device: torch.device) -> Iterator[None]:
    """Brings circumstances about while it is open.

    Args:
        circumstances: what to bring about.
        poison: what scratch holds unless they say.
        device: where the call computes.
    """
    scratch = circumstances.scratch or poison
    with ExitStack() as stack:
        stack.enter_context(on_threads(circumstances.threads))
        if circumstances.beside_work:
            stack.enter_context(_work_on_device(device) if device.type == "cuda" else _work_on_host())
        if circumstances.attempt:
            give_back_poison(scratch, device)
        stack.enter_context(poisoned_scratch(scratch))
        yield


@contextmanager
def on_threads(count: int | None) -> Iterator[None]:
    """Computes on so many threads within an operation while it is open; None for those that there are."""
    if count is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _work_on_host() -> Iterator[None]:
    """Products on another thread, which numpy computes without the interpreter's lock."""
    done = threading.Event()

    def work() -> None:
        matrix = np.ones((_WORK_SIZE, _WORK_SIZE), dtype=np.float32)
        while not done.is_set():
            matrix @ matrix

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        yield
    finally:
        done.set()
        worker.join()


@contextmanager
def _work_on_device(device: torch.device) -> Iterator[None]:
    """Products on a stream of their own."""
    stream = _other_stream(device)
    matrix = torch.ones((8 * _WORK_SIZE, 8 * _WORK_SIZE), device=device)
    torch.cuda.synchronize(device)
    with torch.cuda.stream(stream):
        for _ in range(_PRODUCTS_ON_DEVICE):
            matrix @ matrix
    try:
        yield
    finally:
        stream.synchronize()


@functools.cache
def _other_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of a device for other work.

    Always the same one: torch keeps a workspace of cuBLAS, 32 MiB on Hopper, for each stream that was computed on, and
    hands out 32 streams by turns. All of their workspaces would be a quarter of a worker's share.
    """
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
