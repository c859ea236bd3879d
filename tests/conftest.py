"""What several test modules need: an installation with something deleted from it, and one thread to compute on."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from .suite_runs import NO_BASELINES, ROOT, WITHOUT_PLUGINS


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch computes on one thread, and on as many as before when the test is over."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Callable[..., int]:
    """Runs pytest in this process, where torch is imported already, and returns its exit code."""
    monkeypatch.chdir(ROOT)
    # Which GPU this process has is not for the session inside of it to choose.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    options = (*WITHOUT_PLUGINS, "-q", "--no-isolation", "--baseline", NO_BASELINES)
    return lambda *words: int(pytest.main([str(word) for word in (*options, *words)]))


@pytest.fixture
def no_smallest_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking for the smallest batch takes several times as long as finding a difference, and is tested elsewhere."""
    monkeypatch.setattr("samebits.harness.judgement.smallest_failure", lambda *_, **_expected: None)


@pytest.fixture(scope="session")
def site_without(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a folder that holds all that is installed here but for what begins with some names.

    A process started with `-S` that adds the folder by `site.addsitedir` is in a world where those were deleted.
    """

    def make(*prefixes: str) -> Path:
        folder = tmp_path_factory.mktemp("site")
        for installed in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            for entry in Path(installed).iterdir():
                if not entry.name.startswith(prefixes):
                    (folder / entry.name).symlink_to(entry)
        return folder

    return make
