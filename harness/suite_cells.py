"""The suites: every cell that a selection holds, named and in order, before anything runs.

Controls come first, then every implementation. A cell without comparisons is no cell: its relation says nothing about
such a case.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from samebits.backends.contract import Implementation
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
from samebits.harness.controls.refusals import PLANS_ANYTHING, PlannedKernel
from samebits.harness.controls.schedules import FLAWS, ScheduledKernel
from samebits.harness.controls.trespasses import TRESPASSES, TrespassingKernel
from samebits.harness.full_sizes import full_size_cells
from samebits.harness.geometries import GEOMETRIES
from samebits.harness.graphs.cells import cuda_graph_cells
from samebits.harness.inputs import INPUTS, INPUTS_OF_DECODES, TOKEN_INPUTS
from samebits.harness.matrix import AnyCase, Cell, Selection, TieredCase
from samebits.harness.not_offered import NotOffered
from samebits.harness.properties.cells import properties_cells
from samebits.harness.records import TIERS
from samebits.harness.registry import is_absent
from samebits.harness.relations import RELATIONS, Relation
from samebits.harness.repeats import ATTEMPTS, SECOND_PROCESS, THREADS, repeated
from samebits.harness.semantics import MEANINGS, Meaning, semantic_cases
from samebits.harness.tokens.cases import TokenCase, token_cases
from samebits.harness.tokens.relations import ROTARY_RULES, TOKEN_RELATIONS

_CONTROL_CASE = Case(GEOMETRIES["llama3-8b"], Mask.CAUSAL, "mixed", "smoke", ("fp32",))
_LONG_CONTROL_CASE = Case(GEOMETRIES["llama3-8b"], Mask.CAUSAL, "long", "smoke", ("fp32", "bf16"))
_SPLITS_CASE = Case(GEOMETRIES["llama3-8b"], Mask.CAUSAL, "splits", "smoke", ("fp32", "bf16"))
# Masks that each request has its own of, which no smoke case has.
_PER_REQUEST_CASE = Case(GEOMETRIES["phi-3-mini"], Mask.PER_REQUEST, "draft", "smoke", ("fp32", "bf16"))
_DECODES_CASE = Case(GEOMETRIES["llama3-8b"], Mask.CAUSAL, "decode", "smoke", ("bf16",))
_WINDOW_CASE = Case(GEOMETRIES["mistral-7b"], Mask.SLIDING_WINDOW, "mixed", "smoke", ("fp32",))
# One of each kind of mask, of few heads, for what takes seconds: `groups` and `crossed` are about heads.
_TWO_HEADS = replace(GEOMETRIES["llama3-8b"], name="llama3-8b-two-heads", num_heads=2)
_COSTLY_CASES = (
    Case(_TWO_HEADS, Mask.CAUSAL, "decode", "smoke", ("bf16",)),
    Case(_TWO_HEADS, Mask.CROSS, "draft", "smoke", ("bf16",)),
    Case(_TWO_HEADS, Mask.NON_CAUSAL, "draft", "smoke", ("bf16",)),
)
_COSTLY_SPLITS_CASE = replace(_SPLITS_CASE, geometry=_TWO_HEADS)
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
        for tiered in selection.tiered(functools.partial(_cases, implementation)):
            checked = ((relation, _spared(implementation, relation, tiered)) for relation in RELATIONS.values())
            yield from _comparing(selection.cells(suite, implementation, checked))
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
        for tiered in selection.tiered(functools.partial(_cases_of_data, implementation)):
            checked = ((check, _with_data(implementation, check, tiered)) for check in INPUTS.values())
            yield from _comparing(selection.cells(suite, implementation, checked))
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
    meaning = MEANINGS["contradictions"]
    control = PlannedKernel(PLANS_ANYTHING)
    yield control_cell(suite, control, meaning.check, meaning.cases[0], "fp32", selection.seed)
    for implementation in selection.attention:
        for meaning in MEANINGS.values():
            for tiered in selection.tiered(functools.partial(_meant, implementation, meaning)):
                spared = _spared(implementation, meaning.check, tiered)
                yield from selection.cells(suite, implementation, [(meaning.check, spared)])


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
    for subject, cases_of in _repeated(selection):
        for place, tiered in enumerate(selection.tiered(cases_of)):
            of_check = dict.fromkeys(checks.values(), tiered)
            # What a process decides for its life shows in one case of each, and below the nightly tier in one dtype.
            if place == 0:
                of_check[SECOND_PROCESS] = replace(tiered, dtypes=tiered.dtypes[:1])
            else:
                del of_check[SECOND_PROCESS]
            yield from selection.cells(suite, subject, of_check.items())
    yield from full_size_cells(suite, selection)


def _repeated(selection: Selection) -> Iterator[tuple[Subject, Callable[[str], Iterable[AnyCase]]]]:
    """What is repeated, and on which cases of a tier."""
    for implementation in selection.attention:
        yield implementation, functools.partial(_repeated_cases, implementation)
    for operation in TOKEN_OPERATIONS:
        for tokens in selection.of_tokens(operation.operation):
            yield tokens, functools.partial(_repeated_token_cases, operation.operation)


def _repeated_cases(implementation: Subject, tier: str) -> Iterable[Case]:
    """A few cases, and in the nightly tier all."""
    if tier == "nightly":
        return cases(tier)
    return _COSTLY_CASES[:1] if implementation.costly else _REPEATED_CASES


def _repeated_token_cases(operation: str, tier: str) -> Iterable[TokenCase]:
    """One case of an operation, and in the nightly tier all."""
    return token_cases(operation, tier) if tier == "nightly" else [_repeated_tokens(operation)]


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
    "properties": properties_cells,
}


def _comparing(cells: Iterable[Cell]) -> Iterator[Cell]:
    """The cells whose relation says something about their case."""
    return (cell for cell in cells if cell.compares_anything)


def _cases(implementation: Subject, tier: str) -> Iterator[Case]:
    """The cases of a tier, of which a costly implementation has a few below the nightly one."""
    return iter(_COSTLY_CASES) if implementation.costly and tier != "nightly" else cases(tier)


def _cases_of_data(implementation: Subject, tier: str) -> Iterator[Case]:
    """A case for each mask, one of many splits, and decodes; in the nightly tier all."""
    if tier == "nightly":
        yield from cases(tier)
    elif implementation.costly:
        # Of causal masks the splits, which are decodes too.
        yield from (case for case in _COSTLY_CASES if case.mask is not Mask.CAUSAL)
        yield _COSTLY_SPLITS_CASE
    else:
        yield from cases("smoke")
        yield _SPLITS_CASE
        yield _PER_REQUEST_CASE
        yield _DECODES_CASE


def _with_data(implementation: Implementation[Any], check: Relation, tiered: TieredCase) -> TieredCase:
    """A case of the dtype suite as the tiers have it for one kind of data."""
    may_get_lost = check.name in INPUTS_OF_DECODES
    if tiered.case == _DECODES_CASE:
        return tiered if may_get_lost else tiered.nightly()
    if tiered.case == _PER_REQUEST_CASE:
        return tiered
    # fp32 and bf16 leave rows even where they are not supported; fp16, below the nightly tier, where it is.
    supported = replace(tiered, dtypes=("fp32", "bf16", *implementation.support.dtypes))
    # Every dtype merges splits. What becomes of a NaN, seen or hidden, seldom depends on it.
    of_nan = may_get_lost or check.claim is not None
    every_dtype = not implementation.costly or (tiered.case == _COSTLY_SPLITS_CASE and not of_nan)
    return supported if every_dtype else supported.in_bf16()


def _spared(implementation: Subject, check: Relation, tiered: TieredCase) -> TieredCase:
    """A case as the tiers of a check have it for an implementation: fewer where each cell takes seconds."""
    if check.large and implementation.interpreted:
        return tiered.nightly()
    return tiered.in_bf16() if implementation.costly else tiered


def _meant(implementation: Subject, meaning: Meaning, tier: str) -> Iterator[Case]:
    """The cases of a meaning in a tier; where shapes take seconds each, the default tier's are in the nightly one."""
    # A table of options that meet has a shape of its own in every row.
    a_tier_later = implementation.costly or implementation.compiles_each_shape
    return semantic_cases(meaning, TIERS[max(0, TIERS.index(tier) - 1)] if a_tier_later else tier)


def _token_cells(
    suite: str, selection: Selection, operations: Iterable[str], checks: Iterable[Relation]
) -> Iterator[Cell]:
    """The cells of some operations on tokens, and one row for each backend that does not offer one of them.

    Such a row is in the first dtype of its case, or in those that are asked for; the nightly tier has it in all.
    """
    for operation in operations:
        tiered_cases = selection.tiered(functools.partial(token_cases, operation))
        for implementation in selection.of_tokens(operation):
            for tiered in tiered_cases:
                checked = ((check, _spared(implementation, check, tiered)) for check in checks)
                yield from _comparing(selection.cells(suite, implementation, checked))
        offered = {implementation.backend for implementation in selection.of_tokens(operation)}
        missing = [subject for subject in selection.attention if subject.backend not in offered]
        names: dict[str, str] = {}
        for subject in sorted(missing, key=is_absent):
            names.setdefault(subject.backend, subject.name)
        for backend, name in names.items():
            first = replace(tiered_cases[0], dtypes=tiered_cases[0].dtypes[:1])
            yield from selection.cells(suite, NotOffered(operation, backend, name), [(next(iter(checks)), first)])
