"""The plugin does the work: pytest finds it by the entry point of the installed distribution, and not from here."""

from __future__ import annotations

import importlib.util

import pytest


def pytest_configure() -> None:
    """Says in one sentence why nothing can run in a checkout that was never installed."""
    if importlib.util.find_spec("samebits") is None:
        raise pytest.UsageError("samebits is not installed, so pytest lacks its options; run `pip install -e .`")
