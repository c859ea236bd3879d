"""Libraries that are taken for what they are not, and kernels that others silently stand in for."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from samebits.backends.contract import AttentionConfig, AttentionMetadata
from samebits.backends.cpu import BundledAttention, SdpaAttention
from samebits.backends.cpu_operations import BundledRotary
from samebits.backends.operations import RotaryTensors
from samebits.backends.problem import Mask
from samebits.backends.subject import Availability, Subject
from samebits.backends.token_problem import RotaryEmbedding

_PACKAGE, _KERNEL = "flash_attn", "flash_attn.ops.triton.rotary"


@contextmanager
def world(*source: str) -> Iterator[None]:
    """A world whose flash_attn is a package of a few lines, or one in which there is none where no line is given."""
    installed = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == _PACKAGE}
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / _PACKAGE
        package.mkdir()
        (package / "__init__.py").write_text("\n".join(source))
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
        if not source:
            # What Python takes for a package that is absent.
            sys.modules[_PACKAGE] = None  # type: ignore[assignment]
        try:
            yield
        finally:
            sys.path.remove(folder)
            for name in [name for name in sys.modules if name.split(".")[0] == _PACKAGE]:
                del sys.modules[name]
            sys.modules.update(installed)


class TrustsThePackage(BundledRotary):
    """A package that can be found is taken for one that has the module."""

    name = "b80-trusts-the-package"

    def compute(self, operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
        """Imports the library's kernel where its package is found."""
        with world("__version__ = '2.8.3'"):
            if importlib.util.find_spec(_PACKAGE) is not None:
                importlib.import_module(_KERNEL)
        super().compute(operation, tensors)


class LooksInsideOfNothing(BundledRotary):
    """A module is looked for in a package that is absent."""

    name = "b81-looks-inside-of-nothing"

    def compute(self, operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
        """Imports the library's kernel where it is found."""
        with world():
            if importlib.util.find_spec(_KERNEL) is not None:
                importlib.import_module(_KERNEL)
        super().compute(operation, tensors)


class GuardsAgainstAbsence(BundledRotary):
    """An optional library is expected to be absent, and not to be there and fail to load."""

    name = "b82-guards-against-absence"

    def probe(self) -> Availability:
        """Imports the library where there is one."""
        unloadable = "raise ImportError('undefined symbol: _ZN3c104cuda9SetDeviceEi')"
        with world(unloadable), suppress(ModuleNotFoundError):
            importlib.import_module(_PACKAGE)
        return super().probe()


class FallsBack(BundledAttention):
    """Cross-attention is computed by another library, and nobody is told."""

    name = "b83-falls-back"

    def __init__(self) -> None:
        super().__init__()
        self._other = SdpaAttention()

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Any:  # noqa: ANN401 -- of one of two
        """Plans for whichever computes."""
        if config.mask is Mask.CROSS:
            return self._other.plan(config, metadata)
        return super().plan(config, metadata)

    def run(self, plan: Any, query: torch.Tensor, *tensors: Any) -> None:  # noqa: ANN401 -- as they come
        """Computes by whichever planned."""
        if hasattr(plan, "masks"):
            self._other.run(plan, query, *tensors)
        else:
            super().run(plan, query, *tensors)


def implementations() -> list[Subject]:
    """The mutants, beside which `CPU/bundled` is the correct parent."""
    return [TrustsThePackage(), LooksInsideOfNothing(), GuardsAgainstAbsence(), FallsBack()]
