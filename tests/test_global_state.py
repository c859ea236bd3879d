"""A call that leaves a setting of the process changed is told by the setting's name, and spoils no call after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from samebits.backends.contract import AttentionConfig, AttentionMetadata
from samebits.backends.cpu import BundledAttention
from samebits.backends.cpu_operations import BundledLinear
from samebits.backends.operations import LinearTensors
from samebits.backends.subject import Subject
from samebits.backends.token_problem import Linear
from samebits.harness.global_state import restoring_global_state
from samebits.harness.records import Record, Verdict
from samebits.harness.registry import load_registry
from samebits.kernels.cpu.attention import Schedule

from .judged_cells import cells_of, record_of

CPU = torch.device("cpu")
Act = Callable[[], object]


class LinearThat(BundledLinear):
    """Does something else as well."""

    def __init__(self, act: Act) -> None:
        super().__init__()
        self._act = act

    def compute(self, operation: Linear, tensors: LinearTensors) -> None:
        super().compute(operation, tensors)
        self._act()


class PlansThat(BundledAttention):
    """Does something else when it plans."""

    def __init__(self, act: Act) -> None:
        super().__init__()
        self._act = act

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Schedule:
        self._act()
        return super().plan(config, metadata)


def set_backends(path: str, value: object) -> Act:
    *owners, name = path.split(".")

    def act() -> None:
        module = torch.backends
        for owner in owners:
            module = getattr(module, owner)
        setattr(module, name, value)

    return act


# What public code does, and the name under which it must be told.
ACTS: dict[str, tuple[Act, str]] = {
    "threads": (lambda: torch.set_num_threads(torch.get_num_threads() + 1), "torch.get_num_threads() from"),
    "dtype": (
        lambda: torch.set_default_dtype(torch.float64),
        "torch.get_default_dtype() from torch.float32 to torch.float64",
    ),
    "device": (lambda: torch.set_default_device("meta"), "torch.get_default_device() from cpu to meta"),
    "seed": (lambda: torch.manual_seed(7), "torch.get_rng_state()"),
    "random numbers": (lambda: torch.rand(1, device="cpu"), "torch.get_rng_state()"),
    "gradients": (lambda: torch.set_grad_enabled(True), "torch.is_grad_enabled() from False to True"),
    "autocast": (
        lambda: torch.set_autocast_enabled("cpu", True),
        "torch.is_autocast_enabled('cpu') from False to True",
    ),
    "denormals": (lambda: torch.set_flush_denormal(True), "torch.set_flush_denormal() from False to True"),
    "determinism": (
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
        "torch.get_deterministic_debug_mode() from 0 to 1",
    ),
    "matmul precision": (
        lambda: torch.set_float32_matmul_precision("medium"),
        "torch.get_float32_matmul_precision() from highest to medium",
    ),
    "allow_tf32": (
        set_backends("cuda.matmul.allow_tf32", True),
        "torch.get_float32_matmul_precision() from highest to high",
    ),
    "fp32_precision": (
        set_backends("cuda.matmul.fp32_precision", "tf32"),
        "torch.backends.cuda.matmul.fp32_precision from none to tf32",
    ),
    "fp32_precision of all": (
        set_backends("fp32_precision", "tf32"),
        "torch.backends.fp32_precision from none to tf32",
    ),
    "cudnn": (set_backends("cudnn.allow_tf32", False), "torch.backends.cudnn.allow_tf32 from True to False"),
    "reduced precision": (
        set_backends("cuda.matmul.allow_bf16_reduced_precision_reduction", False),
        "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction from True to False",
    ),
    "flash": (
        lambda: torch.backends.cuda.enable_flash_sdp(False),
        "torch.backends.cuda.flash_sdp_enabled() from True to False",
    ),
}


def changes() -> list[str]:
    """What a step that does nothing is told to have changed."""
    told: list[str] = []
    with restoring_global_state("nothing", CPU, told):
        pass
    return told


def record_at(subject: Subject, relation: str, case: str) -> Record:
    """What one cell of the batch invariance suite comes to."""
    cells = cells_of("batch_invariant", subject, dtypes=("fp32",))
    return record_of(next(cell for cell in cells if (cell.relation.name, cell.case.case_id) == (relation, case)))


@pytest.mark.parametrize("name", ACTS)
def test_what_a_run_leaves_changed_fails_by_name_and_is_set_back(name: str) -> None:
    act, told = ACTS[name]
    before: list[str] = []
    with restoring_global_state("the cell", CPU, before):
        record = record_at(LinearThat(act), "position", "linear-llama3-8b-qkv")
    assert record.verdict is Verdict.FAIL, f"{name} came to {record.verdict}: {record.reasons}"
    assert record.reasons[0].startswith("run changed torch."), record.reasons
    assert told in record.reasons[0], f"{told!r} is not among {record.reasons}"
    assert before == [], f"{name} was not set back: {before}"


def test_what_a_plan_leaves_changed_fails_by_name() -> None:
    record = record_at(PlansThat(lambda: torch.set_default_dtype(torch.float64)), "pages", "llama3-8b-causal-mixed")
    assert record.verdict is Verdict.FAIL
    assert record.reasons[0] == "plan changed torch.get_default_dtype() from torch.float32 to torch.float64"
    assert torch.get_default_dtype() is torch.float32, "the next cell has another default dtype"


@pytest.mark.parametrize("subject", [LinearThat(lambda: None), PlansThat(lambda: None)], ids=["run", "plan"])
def test_who_changes_nothing_passes(subject: Subject) -> None:
    relation, case = (
        ("position", "linear-llama3-8b-qkv") if isinstance(subject, LinearThat) else ("pages", "llama3-8b-causal-mixed")
    )
    record = record_at(subject, relation, case)
    assert record.verdict is Verdict.PASS, record.reasons


def test_what_a_call_changed_before_it_raised_is_set_back() -> None:
    def act() -> None:
        torch.set_default_dtype(torch.float64)
        raise RuntimeError("no such kernel")

    record = record_at(LinearThat(act), "position", "linear-llama3-8b-qkv")
    assert (record.verdict, record.reasons) == (Verdict.ERROR, ("RuntimeError: no such kernel",))
    assert torch.get_default_dtype() is torch.float32, "the next cell has another default dtype"


@pytest.mark.parametrize("error", [SystemExit(3), pytest.skip.Exception("not today"), GeneratorExit("gone")], ids=repr)
def test_what_would_end_the_test_costs_its_own_cell_alone(error: BaseException) -> None:
    def act() -> None:
        raise error

    record = record_at(LinearThat(act), "position", "linear-llama3-8b-qkv")
    assert record.verdict is Verdict.ERROR
    assert record.reasons == (f"{type(error).__name__}: {error}",)


def test_settings_that_differ_from_the_start_are_set_back_to_what_they_were() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        told: list[str] = []
        with restoring_global_state("run", CPU, told):
            torch.set_float32_matmul_precision("medium")
            torch.backends.cuda.matmul.fp32_precision = "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert told == [
            "run changed torch.backends.cuda.matmul.fp32_precision from tf32 to ieee, "
            "torch.backends.mkldnn.matmul.fp32_precision from none to bf16"
        ]
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.matmul.fp32_precision = "none"
        set_backends("mkldnn.matmul.fp32_precision", "none")()
    assert changes() == []


LOADED = """
import torch
from samebits.backends.contract import *
from samebits.backends.problem import *
from samebits.backends.support import *

{at_import}

class Mine(Implementation):
    backend, name, support = "MY_ATTN", "mine", Support()
    def probe(self):
        {at_probe}
        return Availability()
    def plan(self, config, metadata): return None
    def run(self, plan, query, key_cache, value_cache, output, lse): output.zero_()

def implementations(): return [Mine()]
"""


def test_an_import_that_changes_a_setting_is_told_and_set_back(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(LOADED.format(at_import="torch.set_default_dtype(torch.float64)", at_probe="pass"))
    with pytest.warns(UserWarning, match=r"loading .*mine\.py changed torch\.get_default_dtype\(\) .*set back"):
        load_registry([path])
    assert torch.get_default_dtype() is torch.float32


def test_a_probe_that_changes_a_setting_is_told_and_set_back(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(LOADED.format(at_import="", at_probe="torch.set_float32_matmul_precision('high')"))
    registry = load_registry([path])
    (mine,) = registry.select(backends=["MY_ATTN"])
    with pytest.warns(UserWarning, match=r"the probe of MY_ATTN/mine changed torch\.get_float32_matmul_precision\(\)"):
        assert registry.availability(mine).available
    assert torch.get_float32_matmul_precision() == "highest"
