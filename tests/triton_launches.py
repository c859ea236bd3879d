"""What bundled Triton operations give their kernels, recorded in place of being launched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

from triton.runtime.jit import JITFunction


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Attributes:
        kernel: what was launched.
        arguments: by the name of the kernel's parameter.
        constants: what else was given by name: constants of the kernel, and options of the compiler.
    """

    kernel: JITFunction[Any]
    arguments: Mapping[str, Any]
    constants: Mapping[str, Any]


@contextmanager
def recording(backend: str, kernels: ModuleType) -> Iterator[list[Launch]]:
    """Records the launches of a module of kernels, none of which runs.

    Args:
        backend: name of the module that loads them.
        kernels: the module.
    """
    found: list[Launch] = []

    def recorder(kernel: JITFunction[Any]) -> Mapping[Any, Callable[..., None]]:
        def record(*arguments: Any, **constants: Any) -> None:  # noqa: ANN401 -- whatever a kernel takes
            names = [parameter.name for parameter in kernel.params]
            found.append(Launch(kernel, dict(zip(names, arguments, strict=False)), constants))

        return mock.MagicMock(__getitem__=lambda self, grid: record)

    names = [name for name in vars(kernels) if name.endswith("_kernel")]
    recorders = SimpleNamespace(**{name: recorder(getattr(kernels, name)) for name in names})
    with mock.patch(f"samebits.backends.{backend}.load_kernels", return_value=recorders):
        yield found


def assert_same_compiled(one: Launch, other: Launch) -> None:
    """Fails where Triton would compile a kernel anew for the second launch.

    It does for other constants, for other integers where they are 1 or divisible by 16, and for tensors that begin at a
    multiple of 16 bytes or do not. Of tensors that are read in pieces of several elements it has to.
    """
    name = one.kernel.__name__
    assert other.constants == one.constants, f"{name} has other constants"
    for parameter in one.kernel.params:
        first, second = one.arguments.get(parameter.name), other.arguments.get(parameter.name)
        if isinstance(first, int) and first != second:
            assert parameter.do_not_specialize, (
                f"{name} is compiled for the value of {parameter.name}, which is {first} and {second}"
            )
