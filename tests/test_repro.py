"""A comparison is one line of text that is read back exactly, and that `samebits repro` runs again by itself."""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from samebits.backends.cpu import implementations
from samebits.backends.graph_use import GraphHistory, GraphMode, GraphUse
from samebits.backends.problem import (
    DATA_NAMES,
    DTYPE_NAMES,
    POISON_NAMES,
    Circumstances,
    Contradiction,
    Geometry,
    Layout,
    Mask,
    OtherLayer,
    Problem,
    Request,
    Strides,
)
from samebits.backends.token_problem import (
    CacheWrite,
    Linear,
    MergeStates,
    RmsNorm,
    RotaryEmbedding,
    TokenLayout,
    TokenProblem,
)
from samebits.harness.cli import main
from samebits.harness.controls.kernels import Call
from samebits.harness.controls.schedules import ChunkedKernel
from samebits.harness.matrix import Cell, Selection
from samebits.harness.record_files import parse_record
from samebits.harness.records import Record, UnusableInput, Verdict
from samebits.harness.relations import AnyProblem, Comparison
from samebits.harness.repro.command import Replay, replay
from samebits.harness.repro.grammar import parsed, told
from samebits.harness.repro.settings import FORMS
from samebits.harness.suite_cells import SUITES

from .judged_cells import record_of
from .samples import cell as cell_record

TINY = "attention name=tiny num_heads=1 num_kv_heads=1 head_dim=64 mask=causal dtype=fp32"
SUITES_OF_PROBLEMS = [suite for suite in SUITES if suite != "compile"]


def test_every_comparison_of_the_suites_is_read_back_as_it_was_told() -> None:
    own = [subject for subject in implementations() if subject.label == "CPU/bundled"]
    count = 0
    for suite in SUITES_OF_PROBLEMS:
        for cell in SUITES[suite](Selection(tuple(own), (), "smoke")):
            for comparison in cell.comparisons:
                text = told(comparison)
                assert parsed(text) == comparison, f"{cell.cell_id} is read back as another comparison: {text}"
                count += 1
    assert count > 3000, f"only {count} comparisons were told"


def test_every_field_of_a_problem_is_a_setting() -> None:
    for operation, form in FORMS.items():
        known = dict(form.kinds)
        for kind in (form.sizes, form.layout, Circumstances):
            for field in dataclasses.fields(kind):
                assert field.name in known or field.name == "graph", f"{operation} has no setting {field.name}"
        for field in dataclasses.fields(GraphUse):
            assert f"graph_{field.name}" in known, f"{operation} has no setting of a graph's {field.name}"


COUNTS, SIZES, FLAGS = st.integers(0, 2**31 - 1), st.integers(1, 2**31 - 1), st.booleans()
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
NAMES = st.text(max_size=12)
REQUESTS = st.lists(
    st.builds(
        lambda key, query, context, encoder, causal: Request(key, query, max(context, -query), encoder, causal),
        st.integers(-(10**18) + 1, 10**18 - 1),
        COUNTS,
        st.integers(-9, 2**31 - 1),
        COUNTS,
        FLAGS,
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda request: request.key,
).map(tuple)
GRAPHS = st.builds(GraphUse, st.sampled_from(GraphMode), SIZES, SIZES, COUNTS, COUNTS, st.sampled_from(GraphHistory))
CIRCUMSTANCES = st.builds(
    Circumstances,
    COUNTS,
    st.sampled_from((None, *POISON_NAMES)),
    COUNTS,
    FLAGS,
    st.none() | st.integers(1, 1024),
    SIZES,
    st.sampled_from((None, *OtherLayer)),
    FLAGS,
    FLAGS,
    st.none() | GRAPHS,
    st.sampled_from((None, *Contradiction)),
)
SHARED = {
    "dtype": st.sampled_from(DTYPE_NAMES),
    "requests": REQUESTS,
    "seed": st.integers(-(10**30), 10**30),
    "data": st.sampled_from(DATA_NAMES),
    "circumstances": CIRCUMSTANCES,
}
SEEDS, STRIDES, POISONS = st.integers(0, 2**63 - 1), st.sampled_from(Strides), st.sampled_from(POISON_NAMES)
ATTENTION = st.builds(
    Problem,
    geometry=st.builds(
        lambda name, group, heads, *rest: Geometry(name, group * heads, heads, *rest),
        NAMES,
        st.integers(1, 9),
        st.integers(1, 9),
        SIZES,
        SIZES,
        SIZES,
        st.none() | st.floats(min_value=1e-300, allow_infinity=False),
        st.none() | NUMBERS,
        FLAGS,
    ),
    mask=st.sampled_from(Mask),
    layout=st.builds(Layout, SEEDS, FLAGS, COUNTS, COUNTS, COUNTS, COUNTS, STRIDES, FLAGS, POISONS),
    **SHARED,
)
OPERATIONS = st.one_of(
    st.builds(
        lambda half, more, **sizes: RotaryEmbedding(head_dim=2 * half + more, rotary_dim=2 * half, **sizes),
        half=st.integers(1, 500),
        more=COUNTS,
        name=NAMES,
        num_heads=SIZES,
        num_kv_heads=SIZES,
        interleaved=FLAGS,
        inverse=FLAGS,
        cache_dtype=st.sampled_from((None, *DTYPE_NAMES)),
        max_position=SIZES,
    ),
    st.builds(CacheWrite, NAMES, SIZES, SIZES, SIZES),
    st.builds(MergeStates, NAMES, SIZES, SIZES),
    st.builds(Linear, NAMES, SIZES, SIZES, FLAGS),
    st.builds(RmsNorm, NAMES, SIZES, NUMBERS),
)
TOKENS = st.builds(
    TokenProblem,
    operation=OPERATIONS,
    layout=st.builds(TokenLayout, COUNTS, STRIDES, st.integers(1, 3), SEEDS, POISONS, FLAGS),
    **SHARED,
)


def _varied(problem: AnyProblem, other: AnyProblem, changes: tuple[bool, ...]) -> AnyProblem:
    """A problem that has some fields of another of its operation: a comparison's problems are mostly alike."""
    fields = [field.name for field in dataclasses.fields(problem)]
    return replace(
        problem, **{name: getattr(other, name) for name, change in zip(fields, changes, strict=False) if change}
    )


def comparisons(problems: st.SearchStrategy[AnyProblem]) -> st.SearchStrategy[Comparison]:
    """Comparisons of one operation, of one to three steps to a side."""

    def of(first: AnyProblem) -> st.SearchStrategy[Comparison]:
        alike = problems.filter(lambda other: type(_sizes(other)) is type(_sizes(first)))
        changes = st.tuples(*[FLAGS] * 8)
        steps = st.builds(_varied, st.just(first), alike, changes)
        return st.builds(
            lambda more, right, rows, nan: Comparison((first, *more), tuple(right), rows, nan),
            st.lists(steps, max_size=2),
            st.lists(steps, max_size=2),
            COUNTS,
            FLAGS,
        )

    return problems.flatmap(of)


def _sizes(problem: AnyProblem) -> object:
    return problem.geometry if isinstance(problem, Problem) else problem.operation


@settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(comparisons(ATTENTION) | comparisons(TOKENS))
def test_drawn_comparisons_are_read_back_as_they_were_told(comparison: Comparison) -> None:
    text = told(comparison)
    assert parsed(text) == comparison, f"read back as another comparison: {text}"
    assert shlex.split(shlex.join([text])) == [text], "a shell reads another text"
    assert text.isascii(), f"no terminal shows all of {text!r}"
    assert "'" not in text, f"a quotation mark takes an escape in a shell: {text}"


def test_what_both_sides_share_is_written_once_and_defaults_not_at_all() -> None:
    problem = Problem(Geometry("tiny", 1, 1, 64), Mask.CAUSAL, "fp32", (Request(1, 1, 130),))
    moved = Comparison((problem,), (problem.with_layout(page_seed=1),))
    assert told(moved) == f"{TINY} [r1:q1c130] against same{{page_seed=1}}"
    beside = Comparison((problem,), (problem.with_requests(*problem.requests, Request(2, 3)),))
    assert told(beside) == f"{TINY} [r1:q1c130] against [r1:q1c130 r2:q3c0]"


UNUSABLE = {
    "": "where the text ends, there must be the name of an operation: attention, rope,",
    "atention [r1:q1c0]": "where 'atention' stands, there must be the name of an operation: attention,",
    TINY: "where the text ends, there must be '[' and the requests of a step, such as [r1:q4c128]",
    f"{TINY} [r1:q1c0": "where the text ends, there must be a request such as r1:q4c128,",
    f"{TINY} [r1q1c0]": "where 'r1q1c0' stands, there must be a request such as r1:q4c128,",
    f"{TINY} [r1:q99999999999c0]": "where 'r1:q99999999999c0' stands, there must be a request",
    f"{TINY} [r1:q1c-2]": "'r1:q1c-2' is no request; lengths must be from 0 to 2147483647, and a context no less than",
    f"{TINY} []": "its settings do not fit together: problem has request keys []; there must be one at least",
    f"{TINY} [r1:q1c0] against": "where the text ends, there must be '[' and the requests of a step, such as [r1:q4c12",
    f"{TINY} [r1:q1c0] agianst same": "where 'agianst' stands, there must be the end, 'then' and a step,",
    f"{TINY} same": "where 'same' stands, there must be '[' and the requests of a step",
    f"{TINY} [r1:q1c0]{{page_seed=1": "where the text ends, there must be a setting such as page_seed=1, or '}'",
    f"{TINY} window [r1:q1c0]": "where 'window' stands, there must be '[' and the requests of a step",
    f"{TINY} widow=3 [r1:q1c0]": "where 'widow' stands, there must be the name of a setting: name, num_heads,",
    f"{TINY} window=0 [r1:q1c0]": "window is '0'; it must be a whole number from 1 to 2147483647, or none",
    f"{TINY} softcap=nan [r1:q1c0]": "softcap is 'nan'; it must be a finite number above 0, or none",
    f"{TINY} scale=1e999 [r1:q1c0]": "scale is '1e999'; it must be a finite number, or none",
    f"{TINY} sinks=yes [r1:q1c0]": "sinks is 'yes'; it must be true or false",
    f"{TINY} data=odd [r1:q1c0]": "data is 'odd'; it must be one of normal, large_scores,",
    f"{TINY} seed=\u0661 [r1:q1c0]": "seed is '\u0661'; it must be a whole number",
    f"{TINY} name=%ff [r1:q1c0]": "'name' is set twice; each setting may be set once",
    f"{TINY} window=3 [r1:q1c0]{{window=4}}": "'window' is set for every step and for one again",
    "attention name=%ff [r1:q1c0]": "name is '%ff'; it must be a name, in which %20",
    "linear name=x in_features=8 dtype=fp32 [r1:q1c0]": "the setting 'out_features' is absent; it must be",
    f"{TINY} graph_mode=eager [r1:q1c0]": "its settings do not fit together: graph_mode is given and",
    f"{TINY} head_dim=1{'0' * 5000} [r1:q1c0]": "'head_dim' is set twice",
}


@pytest.mark.parametrize("text", UNUSABLE)
def test_unusable_text_is_told_by_the_piece_and_what_would_do(text: str) -> None:
    with pytest.raises(UnusableInput) as caught:
        parsed(text)
    message = str(caught.value)
    assert message.startswith(UNUSABLE[text]), f"told {message!r}"
    assert "\n" not in message, f"more than a line: {message!r}"


WORDS = st.sampled_from(
    [
        "attention",
        "rope",
        *TINY.split()[1:],
        "[",
        "]",
        "{",
        "}",
        "r1:q1c0",
        "r1:q",
        "against",
        "then",
        "same",
        "=",
        "seed=",
    ]
)


@settings(max_examples=150, derandomize=True, deadline=None, database=None)
@given(st.text(max_size=40) | st.lists(WORDS | st.text(max_size=3), max_size=14).map(" ".join))
@example("attention " * 3)
def test_no_text_is_answered_with_a_traceback(text: str) -> None:
    try:
        comparison = parsed(text)
    except UnusableInput:
        return
    assert parsed(told(comparison)) == comparison


def control_cell(suite: str, name: str) -> Cell:
    """The cell of a control, as if it were no control: its failure is a finding."""
    cells = SUITES[suite](Selection((), (), "default"))
    return replace(next(cell for cell in cells if cell.implementation.name == name), flaw=None, parent=None)


def replayed(record: Record) -> Replay:
    """What a record's line comes to."""
    program, command, label, relation, text = shlex.split(record.repro)
    assert (program, command) == ("samebits", "repro"), record.repro
    return replay(label, relation, text, load=(), libs=())


def test_a_difference_is_run_again_by_its_line() -> None:
    record = record_of(control_cell("batch_invariant", "split_by_batch_size"))
    again = replayed(record)
    assert again.findings is not None
    assert again.findings.mismatches, f"what differs in its cell agrees by itself: {again.to_text()}"
    assert again.fails
    assert record.smallest_batch in again.to_text().splitlines()[0], again.to_text()
    assert "elements differ, at most" in again.to_text()


def test_what_is_wrong_with_the_same_bits_is_shrunk_and_run_again() -> None:
    cell = control_cell("semantics", "window_without_itself")
    record = record_of(cell)
    assert record.verdict is Verdict.FAIL
    assert record.mismatches == 0, "its failure is of values alone"
    again = replayed(record)
    assert again.findings is not None
    assert again.findings.wrong, f"what is wrong in its cell is right by itself: {again.to_text()}"
    assert "too much, at request" in again.to_text()
    (problem,) = again.comparison.left
    largest = max(len(comparison.left[0].requests) for comparison in cell.comparisons)
    assert len(problem.requests) < largest, f"not shrunk: {record.smallest_batch}"


class Raising(ChunkedKernel):
    """Cannot compute a batch of more than a few requests, and does not say so."""

    name = "raising"

    def compute(self, call: Call) -> None:
        """Raises where there are more."""
        if call.plan.metadata.num_requests > 4:
            raise IndexError("a fifth request")
        super().compute(call)


def test_an_error_names_the_batch_that_raised() -> None:
    cell = replace(control_cell("batch_invariant", "split_by_batch_size"), implementation=Raising())
    record = record_of(cell)
    assert record.verdict is Verdict.ERROR
    assert record.reasons == ("IndexError: a fifth request",)
    (problem,) = parsed(shlex.split(record.repro)[-1]).left
    assert len(problem.requests) > 4, f"this batch does not raise: {record.repro}"


@pytest.mark.parametrize(
    ("label", "relation", "text", "code", "told_of_it"),
    [
        ("CPU/bundled", "batch_size", f"{TINY} [r1:q1c9] against [r1:q1c9 r2:q1c0]", 0, "it passes"),
        ("CONTROL/split_by_batch_size", "batch_size", f"{TINY} [r1:q1c40] against [r1:q1c40 r2:q1c0]", 1, "it fails"),
        (
            "CPU/bundled",
            "batch_sizes",
            f"{TINY} [r1:q1c9]",
            2,
            "unknown relation 'batch_sizes' of attention; known are",
        ),
        ("CPU/bundle", "batch_size", f"{TINY} [r1:q1c9]", 2, "unknown implementation 'CPU/bundle' of attention; known"),
        (
            "CPU/torch",
            "batch_size",
            f"{TINY} softcap=3.0 [r1:q1c9]",
            2,
            "cannot compute this here: softcap 3 is not su",
        ),
        ("CPU/torch", "batch_size", "attention", 2, "where the text ends, there must be '['"),
    ],
)
def test_the_exit_code_tells_whether_it_still_fails(
    label: str, relation: str, text: str, code: int, told_of_it: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["repro", label, relation, text]) == code, "".join(capsys.readouterr())
    captured = capsys.readouterr()
    assert told_of_it in (captured.err if code == 2 else captured.out)


def test_a_line_explains_why_its_sides_differ_and_draws_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "attention name=phi-3-mini num_heads=1 num_kv_heads=1 head_dim=64 mask=causal dtype=fp32 [r1:q200c0] against"
    drawing = tmp_path / "orders.svg"
    code = main(["repro", "CPU/torch", "decode", f"{text} [r1:q1c199]", "--svg", str(drawing)])
    told = capsys.readouterr().out
    assert code == 1, told
    assert "First difference: " in told, told
    assert drawing.read_text().startswith("<svg"), "both orders are not drawn"


def test_sides_that_share_nothing_cannot_be_compared(capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        "attention name=one num_heads=1 num_kv_heads=1 head_dim=64 mask=causal dtype=fp32 [r1:q3c0] against [r2:q3c0]"
    )
    assert main(["repro", "CPU/torch", "decode", text]) == 2
    assert "have no position of one request in common" in capsys.readouterr().err


def test_a_record_without_a_line_is_read() -> None:
    record = cell_record()
    fields = json.loads(record.to_line())
    del fields["repro"]
    assert parse_record(json.dumps(fields)) == record, "records of an older run cannot be read"
