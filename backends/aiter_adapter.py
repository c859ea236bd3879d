"""Reaches AITER's Triton kernels: as installed on ROCm, through substitutions anywhere else.

`import aiter` needs ROCm: the package's `__init__` looks for a ROCm installation and for AMD's compiled kernels. Its
Triton kernels need neither. Off ROCm this module imports the modules that hold them, as they are installed and without
running that `__init__`, into a private copy that no other code of the process can see, and substitutes in that copy
what only an AMD device could answer. docs/aiter.md lists each substitution and its reason.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from samebits.backends.libraries import TESTED_VERSIONS, LibraryFile, LibraryMissing, find, installed, installed_version
from samebits.backends.platform import accelerator, summary_of
from samebits.backends.private_package import private_package
from samebits.backends.subject import Availability
from samebits.backends.target import Target, supposed_target

if TYPE_CHECKING:
    from triton.runtime.jit import KernelInterface

PACKAGE = "aiter"
DISTRIBUTION = "amd-aiter"
TESTED_VERSION = TESTED_VERSIONS[DISTRIBUTION]
_INSTALL = "pip install 'samebits[aiter]'"
# What AITER asks its device for: multiprocessors, of which it wants four programs each. A device has hundreds, and the
# interpreter's problems are as much smaller: with 8, a few requests are split over their keys and a crowd is not.
INTERPRETED_MULTIPROCESSORS = 8
# Modules of the package read this at import. Neither kernel depends on it: it selects fp8 types and other kernels'
# launch settings. Of the targets that AITER knows, this is the one for which it does not go on to ask torch.cuda.
_IMPORT_TARGET = ("hip", "gfx950", 64)
_AMD_LAUNCH_OPTIONS = frozenset({"waves_per_eu"})


class Unreachable(Exception):
    """AITER cannot be used here; the message is one sentence that says why."""


@dataclass(frozen=True)
class EntryPoint:
    """A function of AITER, as it will be called.

    Attributes:
        module: full dotted name of the module that defines it.
        function: its name.
        parameters: those that are passed.
    """

    module: str
    function: str
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Reached:
    """An entry point of AITER, imported, or the reason why it could not be.

    Attributes:
        function: what to call.
        version: of the installed distribution; empty when unknown.
        reason: one sentence; empty when `function` can be called.
        launching: makes the context in which to call it.
    """

    function: Callable[..., Any]
    version: str = ""
    reason: str = ""
    launching: Callable[[], AbstractContextManager[None]] = nullcontext


def reach(entry_point: EntryPoint) -> Reached:
    """Imports exactly what will be called, on this machine or on the device that is supposed.

    Never raises for what a missing, broken or foreign package does at import, `SystemExit` included.

    Args:
        entry_point: what will be called.
    """
    return _reach(entry_point, supposed_target())


@functools.cache
def _reach(entry_point: EntryPoint, target: Target | None) -> Reached:
    version = installed_version(DISTRIBUTION)
    bundled = None if version else _bundled_package(entry_point)
    if bundled is not None:
        version = bundled.version
    try:
        function = _checked_function(_import(entry_point, version, bundled), entry_point)
    except Unreachable as error:
        return Reached(function=_unreachable, version=version, reason=str(error))
    return Reached(function=function, version=version, launching=_LAUNCHING[accelerator().kind])


def availability(*entry_points: EntryPoint) -> Availability:
    """Whether all of some entry points can be called here, found out by importing them.

    Args:
        entry_points: what will be called.
    """
    reached = [reach(entry_point) for entry_point in entry_points]
    reason = next((found.reason for found in reached if found.reason), "")
    return Availability(reason=reason, version=reached[0].version, device=accelerator().device)


def substitutions() -> Mapping[str, str]:
    """What is substituted on this platform, for the records of results."""
    kind = accelerator().kind
    if kind == "rocm":
        return {"adapter": "ahead of time" if supposed_target() else "none"}
    target = ":".join(map(str, _IMPORT_TARGET[:2]))
    if kind == "cuda":
        return {"adapter": "cuda", "import_target": target, "waves_per_eu": "dropped", "fp32_products": "ieee"}
    return {
        "adapter": "triton interpreter",
        "import_target": target,
        "waves_per_eu": "dropped",
        "multiprocessors": str(INTERPRETED_MULTIPROCESSORS),
    }


def _unreachable(*args: object, **kwargs: object) -> None:
    raise Unreachable("AITER was called though its probe said that it is unavailable")


def _bundled_package(entry_point: EntryPoint) -> LibraryFile | None:
    """The package in a bundle that has an entry point's module; None where there is none."""
    relative = entry_point.module.replace(".", "/") + ".py"
    try:
        module = find(DISTRIBUTION, relative)
    except LibraryMissing:
        return None
    return LibraryFile(module.path.parents[relative.count("/") - 1], module.version)


def _import(entry_point: EntryPoint, version: str, bundled: LibraryFile | None) -> ModuleType:
    """Imports an entry point's module: as AITER's users do on ROCm, else a private copy with the substitutions."""
    kind, supposed = accelerator().kind, supposed_target()
    as_installed = kind == "rocm" and supposed is None
    if bundled is not None and not as_installed:
        locations: Sequence[str] = [str(bundled.path)]
    else:
        locations = _find_package(entry_point, "" if bundled else version)
    if not as_installed and version != TESTED_VERSION:
        raise Unreachable(
            f"{DISTRIBUTION} {version or 'of unknown version'} was never tested with the adapter that runs it without "
            f"ROCm, which needs {TESTED_VERSION}; {_INSTALL}"
        )
    try:
        with ExitStack() as scope:
            if not as_installed:
                # Triton deprecates how AITER asks for tuning, of kernels that are not called here.
                scope.enter_context(warnings.catch_warnings(action="ignore", category=DeprecationWarning))
                scope.enter_context(_private_package(locations))
                scope.enter_context(_import_target())
            if kind == "cpu":
                from samebits.backends.triton_interpreter import interpreting

                scope.enter_context(interpreting())
            module = importlib.import_module(entry_point.module)
    except (Exception, SystemExit) as error:
        raise Unreachable(f"importing {entry_point.module} raised {summary_of(error)}") from error
    if not as_installed:
        _substitute(module, kind)
    return module


def _substitute(module: ModuleType, kind: str) -> None:
    """Replaces, in a private copy, what only an AMD device can answer or take, or only one that is here."""
    from triton.runtime.jit import KernelInterface

    for name, value in list(vars(module).items()):
        if isinstance(value, KernelInterface) and kind != "rocm":
            setattr(module, name, _LaunchedElsewhere(value))
    target = supposed_target()
    programs = target.multiprocessors if target else INTERPRETED_MULTIPROCESSORS if kind == "cpu" else None
    if programs is not None and hasattr(module, "get_num_sms"):
        module.get_num_sms = lambda: programs  # type: ignore[attr-defined]


def _find_package(entry_point: EntryPoint, version: str) -> Sequence[str]:
    """Folders of the package that Python would import, without running any of it."""
    try:
        spec = importlib.util.find_spec(PACKAGE)
    except Exception as error:
        raise Unreachable(f"looking for {PACKAGE} raised {summary_of(error)}") from error
    if spec is None:
        if not version:
            raise Unreachable(f"{DISTRIBUTION} is not installed; {_INSTALL}")
        raise Unreachable(_told_missing(PACKAGE, version))
    locations = list(spec.submodule_search_locations or ())
    relative = Path(*entry_point.module.split(".")[1:]).with_suffix(".py")
    if any((Path(folder) / relative).is_file() for folder in locations):
        return locations
    found = spec.origin or next(iter(locations), PACKAGE)
    if version and _is_installed_here(locations):
        raise Unreachable(_told_missing(entry_point.module, version))
    raise Unreachable(_told_foreign(found, entry_point) if version else _told_unrelated(found))


def _is_installed_here(locations: Sequence[str]) -> bool:
    """Whether a package lies where the distribution put its own."""
    distribution = installed(DISTRIBUTION)
    if distribution is None:
        return False
    own = Path(str(distribution.locate_file(PACKAGE))).resolve()
    return own in (Path(folder).resolve() for folder in locations)


def _checked_function(module: ModuleType, entry_point: EntryPoint) -> Callable[..., Any]:
    """The entry point's function, if it takes what will be passed."""
    function = getattr(module, entry_point.function, None)
    if not callable(function):
        raise Unreachable(f"{entry_point.module} of {DISTRIBUTION} has no function {entry_point.function}")
    try:
        accepted = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise Unreachable(
            f"{entry_point.module}.{entry_point.function} has no signature: {summary_of(error)}"
        ) from error
    missing = [name for name in entry_point.parameters if name not in accepted]
    if missing:
        raise Unreachable(
            f"{entry_point.module}.{entry_point.function} of {DISTRIBUTION} takes no {', '.join(missing)}; "
            f"tested is {TESTED_VERSION}"
        )
    return function  # type: ignore[no-any-return]


def _private_package(locations: Sequence[str]) -> AbstractContextManager[None]:
    """Lets `aiter` be a bare namespace over some folders."""
    return private_package(PACKAGE, {PACKAGE: {"__path__": list(locations)}})


@contextmanager
def _import_target() -> Iterator[None]:
    """Lets Triton name an AMD target while modules that ask for it are imported."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class NamedTarget:
        """A driver that can name its target, and nothing else."""

        def get_current_target(self) -> GPUTarget:
            return GPUTarget(*_IMPORT_TARGET)

    # Only the private field can be set back to "none yet": `reset_active` would start a driver, and there may be none.
    before = driver._active
    driver.set_active(NamedTarget())
    try:
        yield
    finally:
        driver._active = before


@contextmanager
def _ieee_products() -> Iterator[None]:
    """Makes fp32 `tl.dot` multiply fp32, as on the import target; NVIDIA's default rounds the operands to TF32."""
    import triton

    with triton.knobs.language.scope():
        triton.knobs.language.fp32_default = "ieee"
        yield


@contextmanager
def _interpreted() -> Iterator[None]:
    """Keeps numpy from warning of what a device computes in silence, and lets it flip whole tensors.

    Lanes that nobody stores divide by zero. `tl.flip`, of which AITER's rotary embedding is made, is an exclusive or of
    halves, which the interpreter computes one element after another: without this, one head of 32 tokens takes half a
    second.
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import ReduceOps

    by_element = ReduceOps.generic_reduce

    def reduced(reduction: ReduceOps, tensors: tuple[tl.tensor, ...]) -> Sequence[tl.tensor]:
        if reduction.combine_fn != tl.standard._xor_combine or reduction.axis is None:
            return by_element(reduction, tensors)  # type: ignore[no-any-return]
        (tensor,) = tensors
        data = np.bitwise_xor.reduce(tensor.handle.data, axis=reduction.axis, keepdims=reduction.keep_dims)
        return [reduction.to_tensor(data, tensor.dtype)]

    ReduceOps.generic_reduce = reduced
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        ReduceOps.generic_reduce = by_element


_LAUNCHING: Mapping[str, Callable[[], AbstractContextManager[None]]] = {
    "rocm": nullcontext,
    "cuda": _ieee_products,
    "cpu": _interpreted,
}


class _LaunchedElsewhere:
    """A kernel that takes launch options of AMD's compiler from its caller, and drops them."""

    def __init__(self, kernel: KernelInterface[Any]) -> None:
        self._kernel = kernel

    def __getitem__(self, grid: object) -> Callable[..., Any]:
        launch = self._kernel[grid]

        def launched(*args: object, **options: object) -> object:
            kept = {name: value for name, value in options.items() if name not in _AMD_LAUNCH_OPTIONS}
            return launch(*args, **kept)

        return launched


def _told_missing(module: str, version: str) -> str:
    return (
        f"{DISTRIBUTION} {version} is listed as installed, but its module {module} is missing; "
        "pip install --force-reinstall --no-deps amd-aiter"
    )


def _told_unrelated(found: str) -> str:
    return (
        f"{DISTRIBUTION} is not installed: the module {PACKAGE} at {found} is another library's "
        f"(pip install {PACKAGE} is one); {_INSTALL}"
    )


def _told_foreign(found: str, entry_point: EntryPoint) -> str:
    return (
        f"the module {PACKAGE} that Python finds first, at {found}, is not that of {DISTRIBUTION}: "
        f"it has no {entry_point.module}; take it off sys.path"
    )
