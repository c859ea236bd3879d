"""What stands in the matrix for an operation that a backend does not offer."""

from __future__ import annotations

from typing import Any

from samebits.backends.operations import TokenImplementation
from samebits.backends.subject import Availability


class NotOffered(TokenImplementation[Any, Any]):
    """An operation that no implementation of a backend computes: a row with that reason."""

    def __init__(self, operation: str, backend: str, name: str) -> None:
        """Names the backend by its implementation of attention."""
        self.operation, self.backend, self.name = operation, backend, name

    def reasons(self, problem: object) -> list[str]:
        """The one reason there is."""
        return [f"{self.backend} offers no {self.operation}"]

    def probe(self) -> Availability:
        """There is nothing to look for."""
        return Availability()

    def run(self, operation: object, tensors: object) -> None:
        """Never called: there is a reason against every problem."""
        raise NotImplementedError(self.reasons(operation)[0])
