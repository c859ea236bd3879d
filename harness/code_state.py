"""Which code a run was made by, told by one digest: what two processes must share for their cells to be of one run."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from samebits.backends.libraries import MANIFEST
from samebits.harness.records import LoadedCode

# Reports read records, so they decide none.
_PACKAGES = ("backends", "harness", "kernels", "suites")
_SOURCES = frozenset({".py", ".cpp", ".h"})


def code_digest(loaded: Sequence[Path] = (), bundles: Sequence[Path] = ()) -> str:
    """Digest of samebits' sources, as they lie on disk, and of what the user has it run besides.

    Installed libraries are not among it: records hold their versions.

    Args:
        loaded: Python files of further backends.
        bundles: folders of vendors' libraries, whose manifests hold the checksums of their files.
    """
    files = [*_sources(), *loaded, *(folder / MANIFEST for folder in bundles)]
    return digest_of(path.read_bytes() for path in files)


def loaded_code(loaded: Sequence[Path] = (), bundles: Sequence[Path] = ()) -> tuple[LoadedCode, ...]:
    """What the user has samebits run besides its own sources.

    Args:
        loaded: Python files of further backends.
        bundles: folders of vendors' libraries.
    """
    files = [("--load", path, path) for path in loaded]
    files += [("--libs", folder, folder / MANIFEST) for folder in bundles]
    return tuple(LoadedCode(option, str(path), _digest_of_file(file)) for option, path, file in files)


def _digest_of_file(file: Path) -> str:
    try:
        return digest_of([file.read_bytes()])
    except (OSError, ValueError):
        return ""  # Who loads it says why it cannot be.


def digest_of(parts: Iterable[bytes]) -> str:
    """Digest of some bytes in their order, and of where each part ends: 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _sources() -> Iterator[Path]:
    for package in _PACKAGES:
        spec = importlib.util.find_spec(f"samebits.{package}")
        folders = (spec and spec.submodule_search_locations) or ()
        # An editable installation names places there that are no folders.
        for folder in dict.fromkeys(Path(folder) for folder in folders):
            yield from sorted(path for path in folder.rglob("*") if path.suffix in _SOURCES and path.is_file())
