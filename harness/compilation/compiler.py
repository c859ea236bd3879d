"""Kernels compiled for devices that are not here: exactly those that an implementation launches there.

The implementation is made once more, inside `supposing`, and runs a batch. Each launch of the kernel that is asked for
is compiled with its own arguments, as Triton specialises them, and none is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from samebits.backends.target import Target, supposing
from samebits.harness.compilation.machine_code import MachineCode, read_machine_code

if TYPE_CHECKING:
    from triton.backends.compiler import GPUTarget


@dataclass(frozen=True)
class Compilation:
    """What came of a kernel for a target.

    Attributes:
        code: the kernel; None where it does not compile.
        error: why it does not, as one sentence; empty where it does.
    """

    code: MachineCode | None
    error: str = ""


def compile_launched(launch: Callable[[], None], kernel: str, target: Target) -> Compilation:
    """Compiles the first launch of a kernel.

    Args:
        launch: launches kernels; called inside `supposing(target)`, and none of its launches runs.
        kernel: name of the kernel.
        target: what to compile for.

    Raises:
        RuntimeError: no kernel of that name was launched.
        Exception: whatever `launch` raises.
    """
    found: list[Compilation] = []
    names: list[str] = []

    def compiled(function: Any, arguments: tuple[Any, ...], options: dict[str, Any], compile_now: Any) -> None:  # noqa: ANN401
        names.append(function.__name__)
        if function.__name__ != kernel or found:
            return
        try:
            built = compile_now(*arguments, **options)
        except Exception as error:
            # The last line says what is wrong; those before it show the place.
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
            found.append(Compilation(None, f"{type(error).__name__}: {lines[-1][:300]}"))
        else:
            found.append(Compilation(read_machine_code(built, target)))

    with supposing(target), _launches_given_to(compiled, target):
        launch()
    if not found:
        raise RuntimeError(f"{kernel} was not launched, only {', '.join(dict.fromkeys(names)) or 'nothing'}")
    return found[0]


@contextmanager
def _launches_given_to(receiver: Callable[..., None], target: Target) -> Iterator[None]:
    """Hands every launch of a Triton kernel to `receiver`, together with what compiles it for a target."""
    import triton
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    compiling = JITFunction.run

    def run(function: Any, *arguments: Any, grid: object, warmup: bool, **options: Any) -> None:  # noqa: ANN401
        def compile_now(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            return compiling(function, *arguments, grid=(1,), warmup=True, **options)

        receiver(function, arguments, options, compile_now)

    # Only the private field can be set back to "none yet": `reset_active` would start a driver, and there may be none.
    before = driver._active
    driver.set_active(_NamedTarget(target))
    JITFunction.run = run
    try:
        # The place of the source would be part of the code, and of its digest.
        with triton.knobs.compilation.scope():
            triton.knobs.compilation.disable_line_info = True
            yield
    finally:
        JITFunction.run = compiling
        driver._active = before


class _NamedTarget:
    """A driver that names its target, which is all that compiling asks of it."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        from triton.backends.compiler import GPUTarget

        if self._target.kind == "cuda":
            return GPUTarget("cuda", int(self._target.name.removeprefix("sm_")), self._target.warp_size)
        return GPUTarget("hip", self._target.name, self._target.warp_size)

    def get_current_device(self) -> str:
        """Under this name Triton keeps what is compiled: never under the number of a device that is here."""
        return f"ahead of time for {self._target.name}"

    def get_current_stream(self, device: str) -> None:
        """There is none."""
