"""Operators of torch that a compiled library registers when it is loaded, checked before anything calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from samebits.backends.libraries import LibraryMissing, find

Operator = Callable[..., Any]


@dataclass(frozen=True)
class CompiledLibrary:
    """A file of a distribution that registers operators.

    Attributes:
        distribution: its name.
        relative: path of the file below `site-packages`.
        namespace: of the operators, as in `torch.ops.<namespace>.<name>`.
        operators: names of the arguments of each that is called, in order. Arguments are passed by place, so a version
            that takes others would compute something else.
    """

    distribution: str
    relative: str
    namespace: str
    operators: Mapping[str, Sequence[str]]

    def missing(self) -> str:
        """Why the file cannot be loaded, told without loading it; empty where it can be tried."""
        try:
            find(self.distribution, self.relative)
        except LibraryMissing as error:
            return str(error)
        return ""

    def load(self) -> LoadedLibrary:
        """Loads the file into this process.

        Raises:
            LibraryMissing: there is no such file, it does not load, or its operators take other arguments.
        """
        file = find(self.distribution, self.relative)
        told = f"{self.distribution} {file.version}'s {self.relative}"
        try:
            torch.ops.load_library(file.path)  # type: ignore[no-untyped-call]
        except (OSError, RuntimeError) as error:
            raise LibraryMissing(f"loading {told} raised {_summary(error)}") from error
        operators = {}
        for name, arguments in self.operators.items():
            operator = getattr(getattr(torch.ops, self.namespace), name, None)
            if operator is None:
                raise LibraryMissing(f"{told} registers no {self.namespace}::{name}")
            found = [argument.name for argument in operator.default._schema.arguments]
            if found != list(arguments):
                raise LibraryMissing(
                    f"{self.namespace}::{name} of {told} takes {', '.join(found)}; "
                    f"this adapter passes {', '.join(arguments)}"
                )
            operators[name] = operator
        return LoadedLibrary(file.version, operators)


@dataclass(frozen=True)
class LoadedLibrary:
    """Operators that can be called.

    Attributes:
        version: of the distribution.
        operators: by name.
    """

    version: str
    operators: Mapping[str, Operator]


def _summary(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300] or 'no message'}"
