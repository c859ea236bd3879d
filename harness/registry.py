"""Every implementation that can be named: the bundled ones and those of third parties, through one mechanism."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from samebits.backends import BUNDLED_ORDER
from samebits.backends.contract import AttentionConfig, AttentionMetadata, Availability, Implementation
from samebits.backends.libraries import UnusableBundle, use_bundles
from samebits.backends.platform import summary_of
from samebits.backends.subject import Subject
from samebits.backends.support import Support
from samebits.harness.declarations import complaint
from samebits.harness.global_state import telling_global_state
from samebits.harness.records import UnusableInput

ENTRY_POINT_GROUP = "samebits.backends"


class Unloadable(Implementation[None]):
    """Stands for an installed backend whose module does not import, so that it leaves rows with the reason."""

    support = Support()

    def __init__(self, backend: str, name: str, reason: str) -> None:
        """Names the backend and says why it cannot be loaded."""
        self.backend, self.name, self._reason = backend, name, reason

    def probe(self) -> Availability:
        """Never available."""
        return Availability(reason=self._reason)

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> None:
        """Never called: the probe says unavailable."""
        raise RuntimeError(self._reason)

    def run(
        self,
        plan: None,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        """Never called: the probe says unavailable."""
        raise RuntimeError(self._reason)


class Registry:
    """The known implementations, each probed at most once.

    Attributes:
        implementations: in the order of tables.
    """

    def __init__(self, implementations: Iterable[Subject]) -> None:
        """Orders the implementations and refuses two of one label and one operation.

        Raises:
            UnusableInput: two implementations have the same label and compute the same.
        """
        unique: dict[tuple[str, str], Subject] = {}
        for implementation in implementations:
            name = (implementation.operation, implementation.label)
            if name in unique:
                raise UnusableInput(
                    f"implementation {implementation.label!r} is registered twice for {implementation.operation}; each "
                    "label may occur once in an operation"
                )
            unique[name] = implementation
        self.implementations = tuple(sorted(unique.values(), key=_table_order))
        self._availability: dict[tuple[str, str], Availability] = {}

    @property
    def backends(self) -> tuple[str, ...]:
        """Names of the backends, in the order of tables."""
        return tuple(dict.fromkeys(implementation.backend for implementation in self.implementations))

    def availability(self, implementation: Subject) -> Availability:
        """Whether an implementation can run here, and why not."""
        name = (implementation.operation, implementation.label)
        if name not in self._availability:
            self._availability[name] = _probe(implementation)
        return self._availability[name]

    def select(self, backends: Sequence[str] = (), names: Sequence[str] = ()) -> tuple[Subject, ...]:
        """The implementations of some backends, or of some names; all where neither is given.

        Args:
            backends: names of backends.
            names: labels such as `FLASH_ATTN/torch`, which stands for all of its variants, or `AITER/triton[unified]`.

        Raises:
            UnusableInput: a name is unknown.
        """
        for backend in backends:
            if backend not in self.backends:
                raise UnusableInput(f"unknown backend {backend!r}; known are {', '.join(self.backends)}")
        known = dict.fromkeys(implementation.label for implementation in self.implementations)
        for name in names:
            if not any(_is_named(implementation, name) for implementation in self.implementations):
                raise UnusableInput(f"unknown implementation {name!r}; known are {', '.join(known)}")
        return tuple(
            implementation
            for implementation in self.implementations
            if (not backends or implementation.backend in backends)
            and (not names or any(_is_named(implementation, name) for name in names))
        )


def load_registry(extra_files: Sequence[Path] = (), libraries: Sequence[Path] = ()) -> Registry:
    """Loads all installed backends and those of some files.

    Args:
        extra_files: Python files that define `implementations()`. They are run.
        libraries: folders of vendors' libraries, for those that are not installed. Implementations run what they hold.

    Raises:
        UnusableInput: a file does not import, what it defines is no implementation, or a folder is damaged.
    """
    try:
        use_bundles(libraries)
    except UnusableBundle as error:
        raise UnusableInput(str(error)) from error
    found: list[Subject] = []
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        distribution = entry_point.dist.name if entry_point.dist else "unknown"
        try:
            with telling_global_state(f"loading {entry_point.value} of {distribution}"):
                made = _validated(entry_point.load(), f"entry point {entry_point.name} of {distribution}")
        except (Exception, SystemExit) as error:
            reason = f"loading {entry_point.value} of {distribution} raised {summary_of(error)}"
            made = [Unloadable(entry_point.name, distribution.lower(), reason)]
        found.extend(made)
    for path in extra_files:
        with telling_global_state(f"loading {path}"):
            found.extend(_load_file(path))
    return Registry(found)


def is_absent(subject: Subject) -> bool:
    """Whether an implementation says that its library cannot be here. Where it cannot even say, its probe will tell."""
    try:
        return bool(subject.absence())
    except Exception:
        return False


def _load_file(path: Path) -> list[Subject]:
    if not path.is_file():
        raise UnusableInput(f"cannot load {str(path)!r}: there is no such file; give a Python file")
    # Files of one name may lie in several folders.
    place = hashlib.blake2b(str(path.resolve()).encode(), digest_size=4).hexdigest()
    spec = importlib.util.spec_from_file_location(f"samebits_loaded_{path.stem}_{place}", path)
    if spec is None or spec.loader is None:
        raise UnusableInput(f"cannot load {str(path)!r}: it is not a Python file, whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    # As an import does: a dataclass looks its module up, where annotations are strings.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise UnusableInput(f"cannot load {str(path)!r}: importing it raised {summary_of(error)}") from error
    made = _validated(getattr(module, "implementations", None), str(path))
    if not made:
        raise UnusableInput(f"implementations() of {path} returned none; it must return at least one Implementation")
    return made


def _validated(factory: object, origin: str) -> list[Subject]:
    """Calls `implementations()` and checks what it returns, so that nonsense is told at once and by name."""
    if not callable(factory):
        raise UnusableInput(f"{origin} defines no function implementations() that returns a list of Implementation")
    try:
        made = list(factory())
    except (Exception, SystemExit) as error:
        raise UnusableInput(f"implementations() of {origin} raised {summary_of(error)}") from error
    for implementation in made:
        told = complaint(implementation)
        if told:
            raise UnusableInput(f"{origin}: {told}")
    return made


def _probe(implementation: Subject) -> Availability:
    try:
        with telling_global_state(f"the probe of {implementation.label}"):
            availability = implementation.probe()
    except (Exception, SystemExit) as error:
        return _failed(f"raised {summary_of(error)}")
    if not isinstance(availability, Availability):
        return _failed(f"returned {availability!r} and not an Availability")
    for fact, value in (("reason", availability.reason), ("version", availability.version)):
        if not isinstance(value, str):
            return _failed(f"gives the {fact} {value!r}, which must be a string")
    try:
        torch.empty(0, device=availability.device)
    except (AssertionError, RuntimeError, TypeError) as error:
        return _failed(f"names the device {availability.device!r}: {summary_of(error)}")
    return availability


def _failed(what_it_did: str) -> Availability:
    """What is known where a probe went wrong: that it did, and not whether the implementation could run."""
    return Availability(reason=f"its probe {what_it_did}", probe_failed=True)


def _is_named(implementation: Subject, name: str) -> bool:
    return name in (implementation.label, f"{implementation.backend}/{implementation.name}")


def _table_order(implementation: Subject) -> tuple[int, str, str]:
    backend = implementation.backend
    return (
        BUNDLED_ORDER.index(backend) if backend in BUNDLED_ORDER else len(BUNDLED_ORDER),
        backend,
        implementation.label,
    )
