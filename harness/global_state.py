"""Settings of torch that belong to the whole process: a call that leaves one changed spoils the calls after it.

A kernel library may not decide for its users how many threads there are, what a float is by default or how float32 is
multiplied. What a step changes is told by name and set back, so that no other cell pays for it.
"""

from __future__ import annotations

import operator
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

_SMALLEST_NORMAL = sys.float_info.min


@dataclass(frozen=True)
class _Setting:
    """One setting of the process.

    Attributes:
        name: as users write it.
        read: says what it is.
        write: sets it.
    """

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]


def _attribute(path: str) -> _Setting:
    """An attribute of one of torch's modules."""
    owner, name = path.rsplit(".", 1)
    module = operator.attrgetter(owner)(torch)
    return _Setting(f"torch.{path}", lambda: getattr(module, name), lambda value: setattr(module, name, value))


def _set_default_device(device: torch.device) -> None:
    # Set to the processor, torch would still look at every call that makes a tensor.
    torch.set_default_device(None if device == torch.device("cpu") else device)


_SETTINGS: tuple[_Setting, ...] = (
    _Setting("torch.get_num_threads()", torch.get_num_threads, torch.set_num_threads),
    _Setting("torch.get_default_dtype()", torch.get_default_dtype, torch.set_default_dtype),
    _Setting("torch.get_default_device()", torch.get_default_device, _set_default_device),
    _Setting("torch.get_rng_state()", torch.get_rng_state, torch.set_rng_state),
    _Setting("torch.is_grad_enabled()", torch.is_grad_enabled, torch.set_grad_enabled),
    _Setting(
        "torch.is_autocast_enabled('cpu')",
        lambda: torch.is_autocast_enabled("cpu"),
        lambda enabled: torch.set_autocast_enabled("cpu", enabled),
    ),
    _Setting(
        "torch.is_autocast_enabled('cuda')",
        lambda: torch.is_autocast_enabled("cuda"),
        lambda enabled: torch.set_autocast_enabled("cuda", enabled),
    ),
    # torch tells nobody; a library built with -ffast-math sets it for every thread that loads it.
    _Setting("torch.set_flush_denormal()", lambda: _SMALLEST_NORMAL / 2 == 0.0, torch.set_flush_denormal),
    _Setting(
        "torch.get_deterministic_debug_mode()",
        torch.get_deterministic_debug_mode,
        torch.set_deterministic_debug_mode,
    ),
    _attribute("utils.deterministic.fill_uninitialized_memory"),
    # Those that write others too come before them.
    _Setting(
        "torch.get_float32_matmul_precision()",
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    _attribute("backends.cudnn.allow_tf32"),
    _attribute("backends.fp32_precision"),
    _attribute("backends.cuda.matmul.fp32_precision"),
    _attribute("backends.cudnn.fp32_precision"),
    _attribute("backends.cudnn.conv.fp32_precision"),
    _attribute("backends.cudnn.rnn.fp32_precision"),
    _attribute("backends.mkldnn.fp32_precision"),
    _attribute("backends.mkldnn.matmul.fp32_precision"),
    _attribute("backends.cuda.matmul.allow_fp16_reduced_precision_reduction"),
    _attribute("backends.cuda.matmul.allow_bf16_reduced_precision_reduction"),
    _attribute("backends.cuda.matmul.allow_fp16_accumulation"),
    _attribute("backends.cudnn.enabled"),
    _attribute("backends.cudnn.benchmark"),
    _attribute("backends.cudnn.deterministic"),
    _attribute("backends.mkldnn.enabled"),
    _attribute("backends.mkldnn.deterministic"),
    _Setting(
        "torch.backends.cuda.preferred_blas_library()",
        torch.backends.cuda.preferred_blas_library,
        torch.backends.cuda.preferred_blas_library,
    ),
    *(
        _Setting(
            f"torch.backends.cuda.{kernel}_sdp_enabled()",
            getattr(torch.backends.cuda, f"{kernel}_sdp_enabled"),
            getattr(torch.backends.cuda, f"enable_{kernel}_sdp"),
        )
        for kernel in ("flash", "mem_efficient", "math", "cudnn")
    ),
)
_ON_GPU: tuple[_Setting, ...] = (
    _Setting("torch.cuda.current_device()", torch.cuda.current_device, torch.cuda.set_device),
    _Setting("torch.cuda.current_stream()", torch.cuda.current_stream, torch.cuda.set_stream),
    _Setting("torch.cuda.get_rng_state()", torch.cuda.get_rng_state, torch.cuda.set_rng_state),
)


@contextmanager
def restoring_global_state(step: str, device: torch.device, told: list[str]) -> Iterator[None]:
    """Sets back what a step leaves changed, whether it returns or raises.

    Args:
        step: who is told to have done it.
        device: where it computes; the settings of a GPU count only for what computes there.
        told: one sentence is added where anything was changed.
    """
    settings = (*_SETTINGS, *_ON_GPU) if device.type == "cuda" else _SETTINGS
    before = [_known(setting) for setting in settings]
    try:
        yield
    finally:
        after = [_known(setting) for setting in settings]
        changes = [
            _told(setting.name, old, new)
            for setting, old, new in zip(settings, before, after, strict=True)
            if old is not None and new is not None and not _same(old, new)
        ]
        if changes:
            for setting, value in zip(settings, before, strict=True):
                # Read again: to write one may have changed another.
                if value is not None and not _same(_known(setting), value):
                    setting.write(value)
            told.append(f"{step} changed {', '.join(changes)}")


@contextmanager
def telling_global_state(step: str) -> Iterator[None]:
    """Sets back what a step leaves changed, and warns: for what is no part of a cell, as an import or a probe.

    Args:
        step: who is told to have done it.
    """
    told: list[str] = []
    try:
        with restoring_global_state(step, torch.device("cpu"), told):
            yield
    finally:
        for sentence in told:
            warnings.warn(f"{sentence}; it has been set back", stacklevel=1)


def _known(setting: _Setting) -> object:
    """What a setting is; None where torch does not say, as of older settings that do not fit the newer ones."""
    try:
        return setting.read()
    except RuntimeError:
        return None


def _same(old: object, new: object) -> bool:
    if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
        return torch.equal(old, new)
    return old == new


def _told(name: str, old: object, new: object) -> str:
    """A change in words, but for the thousands of bytes of a generator."""
    return name if isinstance(old, torch.Tensor) else f"{name} from {old} to {new}"
