"""What was made last is kept, and no more of it than may be."""

from __future__ import annotations

import contextlib

import pytest
import torch

from samebits.backends.problem import Mask, Problem, Request
from samebits.backends.subject import Subject
from samebits.harness import executor
from samebits.harness.bounded_cache import BoundedCache, forget_everything
from samebits.harness.execution import Execution
from samebits.harness.geometries import GEOMETRIES
from samebits.harness.registry import load_registry
from samebits.harness.relations import AnyProblem


class Maker:
    """Makes bytes and remembers for which keys."""

    def __init__(self, max_entries: int = 100, max_bytes: int = 100) -> None:
        self.cache: BoundedCache[str, bytes] = BoundedCache(max_entries, max_bytes, len)
        self.made: list[str] = []

    def get(self, key: str, size: int = 10) -> bytes:
        def make() -> bytes:
            self.made.append(key)
            return bytes(size)

        return self.cache.get(key, make)


def test_a_value_is_made_once() -> None:
    maker = Maker()
    assert maker.get("a") is maker.get("a"), "the second time another value came"
    assert maker.made == ["a"]


def test_what_was_asked_for_longest_ago_goes_first() -> None:
    maker = Maker(max_entries=2)
    for key in ("a", "b", "a", "c", "a", "b"):
        maker.get(key)
    assert maker.made == ["a", "b", "c", "b"], "b was asked for before a, and must have gone when c came"


def test_bytes_are_bounded() -> None:
    maker = Maker(max_bytes=25)
    for key in ("a", "b", "c"):
        maker.get(key)
        assert maker.cache.kept_bytes <= 25, f"{maker.cache.kept_bytes} bytes are kept behind {key}"
    maker.get("b")
    assert maker.made == ["a", "b", "c"], "more was given up than had to be"


def test_what_is_larger_than_the_bound_drives_nothing_out() -> None:
    maker = Maker(max_bytes=25)
    for key, size in (("a", 10), ("large", 26), ("a", 10), ("large", 26)):
        assert len(maker.get(key, size)) == size
    assert maker.made == ["a", "large", "large"]


def test_a_value_put_in_place_of_another_is_counted_once() -> None:
    maker = Maker()
    maker.get("a")
    kept = maker.cache.kept_bytes
    assert maker.cache.peek("b") is None, "a value is there that nobody made"
    value = maker.cache.peek("a")
    assert value is not None, "the value that was made is not kept"
    maker.cache.put("a", value)
    assert maker.cache.kept_bytes == kept, "the value that was replaced is still counted"


def test_all_caches_forget_together() -> None:
    first, second = Maker(), Maker()
    for maker in (first, second):
        maker.get("a")
    forget_everything()
    for maker in (first, second):
        assert maker.cache.kept_bytes == 0, "something is still kept"
        maker.get("a")
        assert maker.made == ["a", "a"], "a value was not given up"


def attempts(monkeypatch: pytest.MonkeyPatch, error: RuntimeError) -> list[int]:
    """The bytes that are kept at each attempt at a problem, which raises while anything is."""
    kept = Maker()
    kept.get("a")
    asked: list[int] = []

    def run(subject: Subject, problem: AnyProblem, device: torch.device) -> Execution:
        asked.append(kept.cache.kept_bytes)
        if kept.cache.kept_bytes:
            raise error
        return Execution(problem, {}, {}, "digest")

    monkeypatch.setattr(executor, "run_problem", run)
    subject = next(iter(load_registry().implementations))
    problem = Problem(GEOMETRIES["llama3-8b"], Mask.CAUSAL, "fp32", (Request(1, 1, 2),))
    with contextlib.suppress(type(error)):
        assert executor.Executor(subject, torch.device("cpu"))(problem).digest == "digest"
    return asked


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB."),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ],
    ids=["torch", "triton"],
)
def test_what_is_kept_gives_way_to_a_problem_that_finds_no_memory(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    asked = attempts(monkeypatch, error)
    assert asked[1:] == [0], f"what was kept in each attempt: {asked} bytes"


def test_what_raises_another_error_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = attempts(monkeypatch, RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"))
    assert len(asked) == 1, f"{len(asked)} attempts were made"


def test_workspaces_of_streams_give_way_on_a_gpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def run(subject: Subject, problem: AnyProblem, device: torch.device) -> Execution:
        steps.append("run")
        if len(steps) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return Execution(problem, {}, {}, "digest")

    monkeypatch.setattr(executor, "run_problem", run)
    monkeypatch.setattr(executor, "limit_memory", lambda device: None)
    # Torch has it where it is built for GPUs.
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: steps.append("clear"), raising=False)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: steps.append("empty"))
    subject = next(iter(load_registry().implementations))
    problem = Problem(GEOMETRIES["llama3-8b"], Mask.CAUSAL, "fp32", (Request(1, 1, 2),))
    executor.Executor(subject, torch.device("cuda"))(problem)
    assert steps == ["run", "clear", "empty", "run"]
