"""The suites: every cell that a selection holds, named and in order, before anything runs.

Controls come first, then every implementation. A cell without comparisons is no cell: its relation says nothing about
such a case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from samebits.backends.problem import Mask
from samebits.backends.subject import Subject
from samebits.backends.token_problem import (
    TOKEN_OPERATIONS,
    CacheWrite,
    Linear,
    MergeStates,
    RmsNorm,
    RotaryEmbedding,
)
from samebits.harness.cases import Case, cases
from samebits.harness.compilation.cells import compile_cells
from samebits.harness.controls.arithmetic import DEGRADATIONS, TiledKernel
from samebits.harness.controls.disturbances import DISTURBANCES, DisturbedKernel
from samebits.harness.controls.kernels import control_cell
from samebits.harness.controls.memory import KeepsSinks, repeated_controls
from samebits.harness.controls.operations import token_controls
from samebits.harness.controls.readings import LEAKS, MISREADINGS, PlainKernel
from samebits.harness.controls.schedules import FLAWS, ScheduledKernel
from samebits.harness.controls.trespasses import TRESPASSES, TrespassingKernel
from samebits.harness.full_sizes import full_size_cells
from samebits.harness.geometries import GEOMETRIES
from samebits.harness.graphs.cells import cuda_graph_cells
from samebits.harness.inputs import INPUTS, INPUTS_OF_DECODES, TOKEN_INPUTS
from samebits.harness.matrix import AnyCase, Cell, Selection
from samebits.harness.not_offered import NotOffered
from samebits.harness.records import TIERS
from samebits.harness.registry import is_absent
from samebits.harness.relations import RELATIONS, Relation
from samebits.harness.repeats import ATTEMPTS, SECOND_PROCESS, THREADS, repeated
from samebits.harness.semantics import MEANINGS, semantic_cases
from samebits.harness.tokens.cases import TokenCase, token_cases
from samebits.harness.tokens.relations import ROTARY_RULES, TOKEN_RELATIONS

_CONTROL_CASE = Case(GEOMETRIES["llama3-8b"], Mask.CAUSAL, "mixed", "smoke", ("fp32",))
_LONG_CONTROL_CASE = Case(GEOMETRIES["llama3-8b"], Mask.CAUSAL, "long", "smoke", ("fp32", "bf16"))
_SPLITS_CASE = Case(GEOMETRIES["llama3-8b"], Mask.CAUSAL, "splits", "smoke", ("fp32", "bf16"))
_DECODES_CASE = Case(GEOMETRIES["llama3-8b"], Mask.CAUSAL, "decode", "smoke", ("bf16",))
_WINDOW_CASE = Case(GEOMETRIES["mistral-7b"], Mask.SLIDING_WINDOW, "mixed", "smoke", ("fp32",))
# Thirty calls of each: a few requests that cross splits, in one dtype, with and without a causal mask.
_REPEATED_CASES = (
    Case(GEOMETRIES["llama3-8b"], Mask.CAUSAL, "splits", "smoke", ("bf16",)),
    Case(GEOMETRIES["llama3.2-11b-vision"], Mask.CROSS, "draft", "smoke", ("fp32",)),
)
# Rotary embedding has a suite of its own.
_OTHER_OPERATIONS = (CacheWrite.operation, MergeStates.operation, Linear.operation, RmsNorm.operation)
_SUMMING_OPERATIONS = (MergeStates.operation, Linear.operation, RmsNorm.operation)


def batch_invariance_cells(selection: Selection) -> Iterator[Cell]:
    """A request keeps its bits whatever its batch, neighbours, pages and schedule."""
    suite = "batch_invariant"
    for flaw in FLAWS:
        yield control_cell(suite, ScheduledKernel(flaw), RELATIONS[flaw.check], _CONTROL_CASE, "fp32", selection.seed)
    for trespass in TRESPASSES:
        control, check = TrespassingKernel(trespass), RELATIONS[trespass.check]
        yield control_cell(suite, control, check, _CONTROL_CASE, "fp32", selection.seed)
    yield from token_controls(suite, _OTHER_OPERATIONS, TOKEN_RELATIONS.values(), selection.seed)
    for implementation in selection.attention:
        for case in selection.cases_of(implementation):
            for dtype in selection.spared_dtypes_of(implementation, case):
                left_out = implementation.costly and (case.tier == "default" or dtype != "bf16")
                tier = "nightly" if left_out or dtype not in case.dtypes else case.tier
                for relation in RELATIONS.values():
                    cell = Cell(suite, implementation, relation, case, dtype, tier, selection.seed)
                    if cell.compares_anything:
                        yield cell
    yield from full_size_cells(suite, selection)
    yield from _token_cells(suite, selection, _OTHER_OPERATIONS, TOKEN_RELATIONS.values())


def dtype_cells(selection: Selection) -> Iterator[Cell]:
    """Every kind of data on each mask's case, in every dtype that is supported."""
    suite = "dtype"
    for degradation in DEGRADATIONS:
        control, check = TiledKernel(degradation), INPUTS[degradation.check]
        yield control_cell(suite, control, check, _LONG_CONTROL_CASE, degradation.dtype, selection.seed)
    for leak in LEAKS:
        yield control_cell(suite, PlainKernel(leak), INPUTS[leak.check], _WINDOW_CASE, "fp32", selection.seed)
    yield from token_controls(suite, _SUMMING_OPERATIONS, TOKEN_INPUTS.values(), selection.seed)
    for implementation in selection.attention:
        for case in _cases_of_data(selection.tier):
            # fp32 and bf16 leave rows even where they are not supported; fp16 is a dtype of those that have it.
            for dtype in selection.dtypes or dict.fromkeys(("fp32", "bf16", *implementation.support.dtypes)):
                for check in INPUTS.values():
                    # What becomes of a NaN seldom depends on the dtype.
                    spared = implementation.costly and check.name in INPUTS_OF_DECODES and dtype != "bf16"
                    tier = "nightly" if spared else _dtype_tier(case)
                    cell = Cell(suite, implementation, check, case, dtype, tier, selection.seed)
                    left_out = spared and selection.tier == "default" and not selection.dtypes
                    if not left_out and cell.compares_anything:
                        yield cell
        if selection.tier != "nightly" and not implementation.costly:
            for dtype in selection.dtypes_of(_DECODES_CASE):
                for name in INPUTS_OF_DECODES:
                    yield Cell(suite, implementation, INPUTS[name], _DECODES_CASE, dtype, "smoke", selection.seed)
    yield from full_size_cells(suite, selection)
    yield from _token_cells(suite, selection, _SUMMING_OPERATIONS, TOKEN_INPUTS.values())


def semantics_cells(selection: Selection) -> Iterator[Cell]:
    """What each mask and each option of attention means, on cases made for it."""
    suite = "semantics"
    for misreading in MISREADINGS:
        meaning = MEANINGS[misreading.check]
        case = meaning.cases[misreading.case]
        yield control_cell(suite, PlainKernel(misreading), meaning.check, case, "fp32", selection.seed)
    meaning = MEANINGS["sinks"]
    yield control_cell(suite, KeepsSinks(), meaning.check, meaning.cases[0], "fp32", selection.seed)
    for implementation in selection.attention:
        # A table of options that meet has a shape of its own in every row.
        spared = implementation.costly or implementation.compiles_each_shape
        tier = TIERS[max(0, TIERS.index(selection.tier) - 1)] if spared else selection.tier
        for meaning in MEANINGS.values():
            for case in semantic_cases(meaning, tier):
                for dtype in selection.spared_dtypes_of(implementation, case):
                    left_out = (spared and case.tier == "default") or (implementation.costly and dtype != "bf16")
                    smallest = "nightly" if left_out or dtype not in case.dtypes else case.tier
                    yield Cell(suite, implementation, meaning.check, case, dtype, smallest, selection.seed)


def rope_cells(selection: Selection) -> Iterator[Cell]:
    """Rotary embedding: right, invariant, and by the rules of its cache."""
    checks = (*TOKEN_INPUTS.values(), *ROTARY_RULES.values(), *TOKEN_RELATIONS.values())
    operations = (RotaryEmbedding.operation,)
    yield from token_controls("rope", operations, checks, selection.seed)
    yield from _token_cells("rope", selection, operations, checks)


def run_to_run_cells(selection: Selection) -> Iterator[Cell]:
    """The same call gives the same bits, again and again."""
    suite = "run_to_run"
    checks = {check.name: check for check in (repeated(ATTEMPTS[selection.tier]), THREADS, SECOND_PROCESS)}
    for flaw in DISTURBANCES:
        check = checks[flaw.check]
        yield control_cell(suite, DisturbedKernel(flaw), check, _CONTROL_CASE, "fp32", selection.seed)
    for control in repeated_controls():
        yield control_cell(suite, control, checks["repeated"], _CONTROL_CASE, "fp32", selection.seed)
    operations = [operation.operation for operation in TOKEN_OPERATIONS]
    yield from token_controls(suite, operations, checks.values(), selection.seed)
    elsewhere: set[Subject] = set()
    for subject, case in _repeated(selection):
        for dtype in selection.dtypes_of(case):
            for check in checks.values():
                # What a process decides for its life shows in one case of each.
                if check is not SECOND_PROCESS or subject not in elsewhere:
                    yield _cell(suite, subject, check, case, dtype, selection)
            elsewhere.add(subject)
    yield from full_size_cells(suite, selection)


def _repeated(selection: Selection) -> Iterator[tuple[Subject, AnyCase]]:
    """What is repeated: a few cases of every operation, and all of them in the nightly tier."""
    nightly = selection.tier == "nightly"
    for implementation in selection.attention:
        usual = _REPEATED_CASES[:1] if implementation.costly else _REPEATED_CASES
        for case in cases("nightly") if nightly else usual:
            yield implementation, case
    for operation in TOKEN_OPERATIONS:
        name = operation.operation
        for tokens in selection.of_tokens(name):
            for token_case in token_cases(name, "nightly") if nightly else [_repeated_tokens(name)]:
                yield tokens, token_case


def _repeated_tokens(operation: str) -> TokenCase:
    """The first case of an operation, and of a linear layer the one with a bias: more of it could be remembered."""
    found = list(token_cases(operation, "smoke"))
    return next((case for case in found if isinstance(case.geometry, Linear) and case.geometry.bias), found[0])


# Each suite by its mark: the cells of a selection.
SUITES: Mapping[str, Callable[[Selection], Iterator[Cell]]] = {
    "batch_invariant": batch_invariance_cells,
    "dtype": dtype_cells,
    "semantics": semantics_cells,
    "rope": rope_cells,
    "run_to_run": run_to_run_cells,
    "compile": compile_cells,
    "cuda_graph": cuda_graph_cells,
}


def _cases_of_data(tier: str) -> Iterator[Case]:
    """A case for each mask, and one of many splits; in the nightly tier all."""
    if tier == "nightly":
        yield from cases("nightly")
    else:
        yield from cases("smoke")
        yield _SPLITS_CASE


def _dtype_tier(case: Case) -> str:
    """The dtype suite has the smoke tier's cases in every tier, and the others in the nightly one."""
    return "smoke" if case.tier == "smoke" else "nightly"


def _token_cells(
    suite: str, selection: Selection, operations: Iterable[str], checks: Iterable[Relation]
) -> Iterator[Cell]:
    """The cells of some operations on tokens, and one row for each backend that does not offer one of them."""
    for operation in operations:
        for implementation in selection.of_tokens(operation):
            for case in token_cases(operation, selection.tier):
                for dtype in selection.dtypes_of(case):
                    for check in checks:
                        cell = _cell(suite, implementation, check, case, dtype, selection)
                        if cell.compares_anything:
                            yield cell
        offered = {implementation.backend for implementation in selection.of_tokens(operation)}
        missing = [subject for subject in selection.attention if subject.backend not in offered]
        names: dict[str, str] = {}
        for subject in sorted(missing, key=is_absent):
            names.setdefault(subject.backend, subject.name)
        for backend, name in names.items():
            first = next(token_cases(operation, "smoke"))
            check = next(iter(checks))
            yield _cell(suite, NotOffered(operation, backend, name), check, first, first.dtypes[0], selection)


def _cell(
    suite: str,
    implementation: Subject,
    check: Relation,
    case: AnyCase,
    dtype: str,
    selection: Selection,
) -> Cell:
    tier = case.tier if dtype in case.dtypes else "nightly"
    return Cell(suite, implementation, check, case, dtype, tier, selection.seed)
