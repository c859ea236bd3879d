"""Operators of torch that a compiled library registers when it is loaded, checked before anything calls them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from samebits.backends.libraries import LibraryMissing, find
from samebits.backends.platform import summary_of
from samebits.backends.subject import Availability

Operator = Callable[..., Any]


@dataclass(frozen=True)
class NamedOperator:
    """An operator of torch that is called by the names of its arguments.

    Attributes:
        operator: as torch has it.
        required: names of the arguments without a default. Those that a call does not name are None.
    """

    operator: Operator
    required: tuple[str, ...]

    def __call__(self, **arguments: object) -> Any:  # noqa: ANN401 -- whatever the operator returns
        """Calls the operator."""
        return self.operator(**(dict.fromkeys(self.required) | arguments))


@dataclass(frozen=True)
class LoadedLibrary:
    """Operators that can be called.

    Attributes:
        version: of the distribution.
        operators: by name; each is called by the names of its arguments.
    """

    version: str
    operators: Mapping[str, Operator]


@dataclass(frozen=True)
class CompiledLibrary:
    """A file of a distribution that registers operators.

    Attributes:
        distribution: its name.
        relative: path of the file below `site-packages`.
        namespace: of the operators, as in `torch.ops.<namespace>.<name>`.
        operators: names of all arguments of each that is called, in order. A version that takes others may mean
            something else by those that are passed.
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

    def availability(self, absence: str, device: str) -> Availability:
        """Loads the file where nothing speaks against it, and looks at its operators.

        Args:
            absence: why it need not be tried; empty where it must be.
            device: torch device type that the operators compute on.
        """
        if absence:
            return Availability(reason=absence)
        try:
            return Availability(version=self.loaded.version, device=device)
        except LibraryMissing as error:
            return Availability(reason=str(error))

    @functools.cached_property
    def loaded(self) -> LoadedLibrary:
        """The operators; the file is loaded into this process when they are first asked for.

        Raises:
            LibraryMissing: there is no such file, it does not load, or its operators take other arguments.
        """
        file = find(self.distribution, self.relative)
        told = f"{self.distribution} {file.version}'s {self.relative}"
        try:
            torch.ops.load_library(file.path)  # type: ignore[no-untyped-call]
        except (OSError, RuntimeError) as error:
            raise LibraryMissing(f"loading {told} raised {summary_of(error)}") from error
        operators = {}
        for name, arguments in self.operators.items():
            operator = getattr(getattr(torch.ops, self.namespace), name, None)
            if operator is None:
                raise LibraryMissing(f"{told} registers no {self.namespace}::{name}")
            schema = operator.default._schema.arguments
            found = [argument.name for argument in schema]
            if found != list(arguments):
                raise LibraryMissing(
                    f"{self.namespace}::{name} of {told} takes {', '.join(found)}; "
                    f"this adapter passes {', '.join(arguments)}"
                )
            required = tuple(argument.name for argument in schema if not argument.has_default_value())
            operators[name] = NamedOperator(operator, required)
        return LoadedLibrary(file.version, operators)
