"""Skips tests where AITER's tested version is not installed."""

from __future__ import annotations

import importlib.metadata

import pytest

from samebits.backends.aiter_adapter import DISTRIBUTION, TESTED_VERSION


def _installed() -> bool:
    try:
        return importlib.metadata.version(DISTRIBUTION) == TESTED_VERSION
    except importlib.metadata.PackageNotFoundError:
        return False


needs_aiter = pytest.mark.skipif(
    not _installed(), reason=f"needs {DISTRIBUTION} {TESTED_VERSION}: pip install 'samebits[aiter]'"
)
