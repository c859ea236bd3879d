"""Orders of addition, recovered from outside: of sums whose order is known, of kernels, of what differs in a cell."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from samebits.backends.contract import Implementation
from samebits.backends.problem import Mask, Problem, Request
from samebits.harness.cli import main
from samebits.harness.comparison import ulp_counts
from samebits.harness.controls.kernels import Call
from samebits.harness.controls.schedules import FLAWS, ChunkedKernel, ScheduledKernel
from samebits.harness.explain.attention import QueryRow, RowCalls
from samebits.harness.explain.compact import addends_of, compact
from samebits.harness.explain.denominator import denominator_order
from samebits.harness.explain.order import Node, accumulation_order
from samebits.harness.explain.schemes import Tiles, schemes
from samebits.harness.explain.values import values_tree
from samebits.harness.explanation import Explanation, Order, Side
from samebits.harness.geometries import GEOMETRIES
from samebits.harness.record_files import parse_record
from samebits.harness.records import UnusableInput, to_json
from samebits.harness.registry import load_registry
from samebits.harness.session import MatrixSession, Options
from samebits.kernels.cpu.amx import has_amx
from samebits.reports.accumulation import drawn_orders
from samebits.reports.accumulation_words import (
    distances,
    order_sentences,
    short_lines,
    told_distribution,
    told_explanation,
    tree_lines,
)

from .suite_runs import PLANTED

CPU = torch.device("cpu")


def shown(tree: Node) -> str:
    return "\n".join(tree_lines(compact(tree, 0)))


def in_order(terms: torch.Tensor) -> torch.Tensor:
    total = terms[0].float()
    for term in terms[1:].float():
        total = total + term
    return total.double()


def by_halves(terms: torch.Tensor) -> torch.Tensor:
    if len(terms) == 1:
        return terms[0].float().double()
    middle = len(terms) // 2
    return (by_halves(terms[:middle]).float() + by_halves(terms[middle:]).float()).double()


def in_lanes(terms: torch.Tensor) -> torch.Tensor:
    """Four lanes, each in order, then added up in order."""
    return in_order(torch.stack([in_order(terms[lane::4]) for lane in range(min(4, len(terms)))]))


def in_splits(terms: torch.Tensor) -> torch.Tensor:
    """Tiles of 8 in order, splits of 3 tiles, merged in order."""
    tiles = [in_order(tile) for tile in torch.split(terms, 8)]
    return in_order(torch.stack([in_order(torch.stack(tiles[first : first + 3])) for first in range(0, len(tiles), 3)]))


def made(*parts: Node | int) -> Node:
    """A node of some parts, where a number is a single term."""
    nodes = [Node((part,)) if isinstance(part, int) else part for part in parts]
    return Node(tuple(sorted(term for node in nodes for term in node.terms)), tuple(nodes))


def chain(*parts: Node | int) -> Node:
    """Parts that are added one after another."""
    node = made(*parts[:2])
    for part in parts[2:]:
        node = made(node, part)
    return node


@pytest.mark.parametrize(
    ("summation", "num_terms", "expected"),
    [
        (in_order, 1, Node((0,))),
        (in_order, 5, chain(0, 1, 2, 3, 4)),
        (by_halves, 6, made(made(0, made(1, 2)), made(3, made(4, 5)))),
        (in_lanes, 10, chain(chain(0, 4, 8), chain(1, 5, 9), made(2, 6), made(3, 7))),
        (
            in_splits,
            30,
            made(chain(chain(*range(8)), chain(*range(8, 16)), chain(*range(16, 24))), chain(*range(24, 30))),
        ),
    ],
)
def test_the_order_of_a_sum_is_recovered(
    summation: Callable[[torch.Tensor], torch.Tensor], num_terms: int, expected: Node
) -> None:
    for sums_at_once in (1, 7, 64):
        found = accumulation_order(summation, num_terms, sums_at_once, 128)
        assert found == expected, f"{sums_at_once} at once:\n{shown(found)}"


def test_more_terms_than_eight_bits_count_are_told_apart() -> None:
    def rounded(terms: torch.Tensor) -> torch.Tensor:
        return in_order(terms).to(torch.bfloat16).double()

    found = accumulation_order(rounded, 300, 64, 224)
    assert found == chain(*range(300)), shown(found)


def test_terms_that_are_added_at_once_are_parts_of_one_node() -> None:
    def at_once(terms: torch.Tensor) -> torch.Tensor:
        # As a matrix unit that aligns all terms to the largest one, in runs of four.
        total = torch.zeros(terms.shape[1], dtype=torch.float64)
        for start in range(0, len(terms), 4):
            addends = torch.cat([total.unsqueeze(0), terms[start : start + 4]])
            largest = addends.abs().amax(dim=0)
            total = addends.masked_fill(addends.abs() < largest * 2.0**-24, 0.0).sum(dim=0)
        return total

    found = accumulation_order(at_once, 8, 64, 128)
    first = made(0, 1, 2, 3)
    assert found == made(first, 4, 5, 6, 7), shown(found)
    assert "4 keys, at once" in shown(found)


def bundled(backend: str) -> Implementation[object]:
    """The bundled attention of a backend."""
    for subject in load_registry().implementations:
        if subject.label == f"{backend}/bundled" and isinstance(subject, Implementation):
            return subject
    raise LookupError(backend)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "requests", [(Request(1, 1, 299),), (Request(2, 7), Request(1, 3, 297), Request(3, 1, 40))], ids=["alone", "beside"]
)
def test_the_bundled_cpu_kernel_adds_chunks_of_128_keys_whatever_its_batch(
    dtype: str, requests: tuple[Request, ...]
) -> None:
    problem = Problem(GEOMETRIES["llama3-8b"], Mask.CAUSAL, dtype, requests)
    row = next(request.query_len for request in requests if request.key == 1) - 1
    tree = values_tree(RowCalls(bundled("CPU"), problem, QueryRow(1, row, 2), CPU))
    add = chain_of_matrix_unit if dtype == "bf16" and has_amx() else chain
    chunks = [add(*range(start, min(start + 128, 300))) for start in (0, 128, 256)]
    assert tree == chain(*chunks), shown(tree)


def chain_of_matrix_unit(*terms: int) -> Node:
    """Thirty-two terms after another, of which those at even and at odd places are added apart."""
    instructions = [terms[start : start + 32] for start in range(0, len(terms), 32)]
    return chain(*(made(chain(*each[::2]), chain(*each[1::2])) for each in instructions))


LLAMA = GEOMETRIES["llama3-8b"]


def calls_of(implementation: Implementation[Any], problem: Problem, row: int, head: int = 0) -> RowCalls:
    return RowCalls(implementation, problem, QueryRow(1, row, head), CPU)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_bundled_cpu_kernel_adds_weights_in_chunks_of_128_by_lanes(dtype: str) -> None:
    problem = Problem(LLAMA, Mask.CAUSAL, dtype, (Request(2, 5), Request(1, 2, 198)))
    found = denominator_order(calls_of(bundled("CPU"), problem, 1, head=2), [])
    lanes_of_sum = 4 if dtype == "bf16" and has_amx() else 16
    assert found.scheme == Tiles(keys=128, lanes=lanes_of_sum, reduction="by_halves")
    (lanes, last) = addends_of(found.tree)[0]
    assert (lanes.terms, last.terms) == (tuple(range(128)), tuple(range(128, 200)))
    assert denominator_order(calls_of(bundled("CPU"), problem, 1, head=2), []) == found, "asked again, it is another"


def test_the_keys_of_an_encoder_are_told_apart_under_the_second_key_value_head() -> None:
    problem = Problem(GEOMETRIES["llama3.2-11b-vision"], Mask.CROSS, "fp32", (Request(1, 2, 3, encoder_len=150),))
    calls = calls_of(bundled("CPU"), problem, 1, head=5)
    chunks = [chain(*range(128)), chain(*range(128, 150))]
    assert values_tree(calls) == made(*chunks)
    assert denominator_order(calls_of(bundled("CPU"), problem, 1, head=5), []).scheme.keys == 128


def test_the_interpreted_triton_kernel_adds_its_tiles_into_its_chunks() -> None:
    kernel = bundled("TRITON_ATTN")
    problem = Problem(LLAMA, Mask.CAUSAL, "fp32", (Request(1, 1, 2 * kernel.tiling.kv_split + 11),))
    scheme = denominator_order(calls_of(kernel, problem, 0), []).scheme
    assert (scheme.keys, scheme.split * scheme.keys) == (kernel.tiling.kv_tile, kernel.tiling.kv_split)


def test_a_schedule_chosen_by_the_batch_shows_in_both_orders() -> None:
    flaw = next(flaw for flaw in FLAWS if flaw.name == "split_by_batch_size")
    for others, chunk in (((), 8), ((Request(2, 1, 4), Request(3, 1)), 24)):
        problem = Problem(LLAMA, Mask.CAUSAL, "fp32", (Request(1, 1, 59), *others))
        tiles = [chain(*range(start, min(start + chunk, 60))) for start in range(0, 60, chunk)]
        assert values_tree(calls_of(ScheduledKernel(flaw), problem, 0)) == chain(*tiles), f"beside {others}"
        found = denominator_order(calls_of(ScheduledKernel(flaw), problem, 0), [chunk])
        assert found.scheme == Tiles(chunk, 1, "in_order"), f"beside {others}"


def test_pages_in_the_order_of_memory_are_no_known_order_of_a_denominator() -> None:
    flaw = next(flaw for flaw in FLAWS if flaw.name == "physical_page_order")
    problem = Problem(LLAMA, Mask.CAUSAL, "fp32", (Request(1, 1, 299),))
    assert "not in the order of the keys" in shown(values_tree(calls_of(ScheduledKernel(flaw), problem, 0)))
    with pytest.raises(UnusableInput, match="none of the orders that are known"):
        denominator_order(calls_of(ScheduledKernel(flaw), problem, 0), [32])


class Inexact(ChunkedKernel):
    """Its weight of 1 is a little off."""

    name = "inexact"

    def compute(self, call: Call) -> None:
        super().compute(call)
        call.output.mul_(1.0 + 2.0**-18)


def test_a_denominator_whose_weights_are_off_is_not_told() -> None:
    problem = Problem(LLAMA, Mask.CAUSAL, "fp32", (Request(1, 1, 59),))
    with pytest.raises(UnusableInput, match="too inexact"):
        denominator_order(calls_of(Inexact(), problem, 0), [])


def test_every_scheme_adds_each_key_once() -> None:
    def add(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
        return (*left, *right)

    leaves: list[tuple[int, ...]] = [(key,) for key in range(70)]
    for scheme in schemes(70, [24]):
        total = scheme.sum(leaves, 5, add)
        assert total is not None
        assert sorted(total) == list(range(70)), f"{scheme}"


def test_a_row_that_differs_keeps_why_within_bounds() -> None:
    cell_id = "CPU/pages-in-order:pages:llama3-8b-causal-mixed:fp32"
    session = MatrixSession(Options(load=(PLANTED / "thresholds.py",), cells=(cell_id,)))
    (cell,) = session.cells("batch_invariant")
    record = session.run(cell)
    assert parse_record(record.to_line()) == record
    assert record.explanation is not None
    left, right = record.explanation.sides
    assert (left.denominator.scheme[:18], right.denominator.scheme[:18]) == ("tiles of 128 keys,", "tiles of 64 keys, ")
    assert len(to_json(vars(record.explanation))) < 10_000
    (ulps, values, denominator) = short_lines(record.explanation)
    assert ulps.startswith("units in the last place apart: 0 in ")
    assert values.startswith("values: both sides add in one order: ")
    assert denominator.startswith("denominator: left tiles of 128 keys")


def test_under_a_window_keys_are_told_by_their_positions() -> None:
    problem = Problem(GEOMETRIES["mistral-7b"], Mask.SLIDING_WINDOW, "fp32", (Request(1, 1, 60),))
    calls = RowCalls(bundled("CPU"), problem, QueryRow(1, 0, 0), CPU)
    whole = compact(values_tree(calls), calls.first_position)
    assert (whole.first, whole.last, whole.keys) == (28, 60, 33), "the window of 33 ends at the query"


def test_an_order_that_does_not_show_is_refused_in_a_sentence() -> None:
    geometry = GEOMETRIES["llama3-8b"]
    short = Problem(geometry, Mask.CAUSAL, "fp16", (Request(1, 1, 9),))
    with pytest.raises(UnusableInput, match="fp16, whose range is too small"):
        values_tree(RowCalls(bundled("CPU"), short, QueryRow(1, 0, 0), CPU))
    early = Problem(geometry, Mask.CAUSAL, "fp32", (Request(1, 2, -2),))
    with pytest.raises(UnusableInput, match="sees no key"):
        RowCalls(bundled("CPU"), early, QueryRow(1, 0, 0), CPU)
    with pytest.raises(UnusableInput, match="follows no order"):
        accumulation_order(lambda terms: in_order(terms).abs() * 1.5, 9, 64, 128)


@pytest.mark.parametrize(
    ("tree", "lines"),
    [
        pytest.param(
            chain(*[chain(*range(start, start + 4)) for start in range(0, 16, 4)], made(16, 17)),
            [
                "keys 28 to 45: 5 parts of 4 x 4, 2 keys, one after another, from keys 28, 32, 36, 40, 44",
                "├─ keys 28 to 31: 4 keys, one after another (and 3 more alike, to 43)",
                "└─ keys 44 to 45: 2 keys, in one addition",
            ],
            id="tiles-and-a-tail",
        ),
        pytest.param(
            chain(*[chain(*range(start, start + 4)) for start in (8, 4, 0)]),
            [
                "keys 28 to 39: 3 parts of 3 x 4 keys, one after another, the last first, from keys 36, 32, 28",
                "└─ keys 36 to 39: 4 keys, one after another (and 2 more alike, to 31)",
            ],
            id="backwards",
        ),
        pytest.param(
            chain(made(9, 10), *[chain(*range(start, start + 3)) for start in (6, 3, 0)]),
            [
                "keys 28 to 38: 4 parts of 2, 3 x 3 keys, one after another, the last first, from keys 37, 34, 31, 28",
                "├─ keys 37 to 38: 2 keys, in one addition",
                "└─ keys 34 to 36: 3 keys, one after another (and 2 more alike, to 30)",
            ],
            id="backwards-from-a-tail",
        ),
        pytest.param(
            made(made(chain(0, 2, 4), chain(1, 3, 5)), 6),
            [
                "keys 28 to 34: 2 parts of 6, 1 keys, in one addition, from keys 28, 34",
                "└─ keys 28 to 33: 2 parts of 2 x 3 keys, in one addition",
                "   └─ keys 28 to 32 in steps of 2: 3 keys, one after another (and 1 more alike, to 33)",
            ],
            id="lanes-and-a-tail",
        ),
        pytest.param(
            made(made(0, 2), made(1, 3)),
            [
                "keys 28 to 31: 2 parts of 2 x 2 keys, in one addition",
                "└─ keys 28 to 30 in steps of 2: 2 keys, in one addition (and 1 more alike, to 31)",
            ],
            id="even-and-odd",
        ),
        pytest.param(
            chain(*[chain(*range(start, start + 2)) for start in (4, 0, 2)]),
            [
                "keys 28 to 33: 3 parts of 3 x 2 keys, one after another, not in the order of the keys, from keys "
                "28, 32, 30",
                "├─ keys 28 to 29: 2 keys, in one addition (and 1 more alike, to 33)",
                "└─ keys 30 to 31: 2 keys, in one addition",
            ],
            id="in-no-order",
        ),
    ],
)
def test_a_tree_is_told_by_what_is_alike_at_the_positions_of_its_keys(tree: Node, lines: list[str]) -> None:
    assert tree_lines(compact(tree, 28)) == lines


def test_an_order_without_a_pattern_is_cut_off() -> None:
    generator = random.Random(0)
    parts: list[Node | int] = list(range(400))
    while len(parts) > 1:
        joined = [parts.pop(generator.randrange(len(parts))) for _ in range(2)]
        parts.append(made(*joined))
    (tree,) = parts
    assert isinstance(tree, Node)
    kept = compact(tree, 0)
    assert len(to_json(vars(kept))) < 20_000
    assert kept.keys == 400


def order(tree: Node, note: str = "") -> Order:
    return Order(compact(tree, 0), note)


def explanation(left: Order, right: Order, *denominators: Order) -> Explanation:
    """What is told of two sides, in batches whose names need escaping."""
    first, second = denominators or (Order(note="it is not asked"),) * 2
    sides = (Side("[r1:q1c39] & <alone>", left, first), Side("[r1:q1c39 r2:q1c0]", right, second))
    return Explanation("r1:q1c39", 39, "output of position 39, head 0, element 1", "1.0 and 2.0", {"1": 3}, sides)


def test_orders_are_drawn_on_one_scale_with_labels_that_need_no_colour() -> None:
    halves = made(chain(*range(20)), chain(*range(20, 40)))
    drawn = drawn_orders(explanation(order(chain(*range(40))), order(halves)))
    root = ElementTree.fromstring(drawn)
    name = "{http://www.w3.org/2000/svg}"
    texts = [text.text or "" for text in root.iter(f"{name}text")]
    assert "Left: [r1:q1c39] & <alone>" in texts, f"the labels are {texts}"
    assert "keys 0 to 39: 2 parts of 2 x 20 keys, in one addition, from keys 0, 20" in texts
    widths = [float(bar.attrib["width"]) for bar in root.iter(f"{name}rect")]
    assert widths == pytest.approx([999, 999, 499, 499])
    assert root.find(f"{name}desc") is not None
    assert root.find(f"{name}title") is not None
    assert "#" not in re.sub(r">[^<]*<", "><", drawn), "a colour is written, which a dark page may not show"
    assert not drawn_orders(explanation(Order(note="no"), Order(note="no")))


def test_both_sides_stand_next_to_each_other_where_they_fit() -> None:
    told = explanation(order(chain(*range(40))), order(made(chain(*range(20)), chain(*range(20, 40)))))
    wide, narrow = (told_explanation(told, width).splitlines() for width in (200, 80))
    assert any(line.startswith("Left: ") and "Right: " in line for line in wide)
    assert any(line.startswith("Right: ") for line in narrow)
    assert max(map(len, narrow)) <= 120
    assert (
        "values: left 40 keys, one after another; right 2 parts of 2 x 20 keys, in one addition, from keys 0, 20, each "
        "of 20 keys, one after another." in wide
    )


def test_distances_are_counted_by_powers_of_two() -> None:
    left = torch.tensor([1.0, 1.0, 1.0, 0.0, float("nan")])
    right = torch.tensor([1.0, 1.0 + 2.0**-23, 1.0 + 5 * 2.0**-23, -0.0, 1.0])
    counts = ulp_counts(left, right)
    assert counts == {"0": 1, "1": 2, "2 to 3": 0, "4 to 7": 1, "not a number": 1}
    # A file has its keys in the order of the alphabet.
    kept = Explanation("r1", 0, "", "", dict(sorted(counts.items())))
    assert told_distribution(kept) == "0 in 1, 1 in 2, 4 to 7 in 1, not a number in 1"
    assert [distance for distance, _ in distances(kept)] == list(counts)


def test_a_cell_is_explained_with_both_orders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell, svg = "CPU/pages-in-order:pages:llama3-8b-causal-mixed:fp32", tmp_path / "orders.svg"
    assert main(["explain", cell, "--load", str(PLANTED / "thresholds.py"), "--svg", str(svg)]) == 0
    told = capsys.readouterr().out
    assert re.search(r"^First difference: .* ULP apart in the .* of request r1:.*$", told, re.MULTILINE), told
    for side in ("Left", "Right"):
        assert f"{side}: [r1:" in told, f"{side} is not told"
    assert re.search(r"^denominator: left tiles of 128 keys", told, re.MULTILINE), told
    ElementTree.fromstring(svg.read_text())


def test_an_explanation_says_that_both_orders_are_the_same() -> None:
    same = order(chain(0, 1, 2, 3))
    assert order_sentences(explanation(same, same, same, same)) == [
        "values: both sides add in one order: 4 keys, one after another.",
        "denominator: both sides add in one order: 4 keys, one after another.",
        "Look for what is rounded or scaled otherwise.",
    ]


def test_a_cell_whose_bits_agree_needs_no_explanation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "CPU/bundled:pages:llama3-8b-causal-mixed:fp32"]) == 0
    assert "both sides have the same bits" in capsys.readouterr().out
