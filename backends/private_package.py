"""A private copy of another library's package, which no other code of the process can see."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def private_package(name: str, stand_ins: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Lets a package be imported anew, from stand-ins on, and puts back whatever had its names before.

    Args:
        name: of the package.
        stand_ins: modules that are there from the start: their attributes by full name. One without `__path__` leads to
            no other module.
    """

    def named() -> list[str]:
        return [module for module in sys.modules if module == name or module.startswith(f"{name}.")]

    displaced = {module: sys.modules.pop(module) for module in named()}
    try:
        for stand_in, attributes in stand_ins.items():
            sys.modules[stand_in] = ModuleType(stand_in)
            # What has no path is no package, and what is imported beyond the stand-ins must fail.
            vars(sys.modules[stand_in]).update({"__path__": []} | dict(attributes))
        yield
    finally:
        for module in named():
            del sys.modules[module]
        sys.modules.update(displaced)
