"""Orders of addition, recovered from outside: of sums whose order is known, of kernels, of what differs in a cell."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from samebits.backends.contract import Implementation
from samebits.backends.problem import Mask, Problem, Request
from samebits.harness.cli import main
from samebits.harness.comparison import ulp_counts
from samebits.harness.explain.attention import QueryRow, attention_order
from samebits.harness.explain.cell import Explanation, Side
from samebits.harness.explain.drawing import drawn_trees
from samebits.harness.explain.order import Node, accumulation_order
from samebits.harness.explain.telling import level_of, told_tree
from samebits.harness.geometries import GEOMETRIES
from samebits.harness.records import UnusableInput
from samebits.harness.registry import load_registry

from .suite_runs import PLANTED

CPU = torch.device("cpu")


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
        found = accumulation_order(summation, num_terms, sums_at_once)
        assert found == expected, f"{sums_at_once} at once:\n{told_tree(found)}"


def test_more_terms_than_eight_bits_count_are_told_apart() -> None:
    def rounded(terms: torch.Tensor) -> torch.Tensor:
        return in_order(terms).to(torch.bfloat16).double()

    found = accumulation_order(rounded, 300, 64)
    assert found == chain(*range(300)), told_tree(found)


def test_terms_that_are_added_at_once_are_parts_of_one_node() -> None:
    def at_once(terms: torch.Tensor) -> torch.Tensor:
        # As a matrix unit that aligns all terms to the largest one, in runs of four.
        total = torch.zeros(terms.shape[1], dtype=torch.float64)
        for start in range(0, len(terms), 4):
            addends = torch.cat([total.unsqueeze(0), terms[start : start + 4]])
            largest = addends.abs().amax(dim=0)
            total = addends.masked_fill(addends.abs() < largest * 2.0**-24, 0.0).sum(dim=0)
        return total

    found = accumulation_order(at_once, 8, 64)
    first = made(0, 1, 2, 3)
    assert found == made(first, 4, 5, 6, 7), told_tree(found)
    assert "4 keys, at once" in told_tree(found)


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
    tree, positions = attention_order(bundled("CPU"), problem, QueryRow(1, row, 2), CPU)
    assert positions == tuple(range(300))
    chunks = [chain(*range(start, min(start + 128, 300))) for start in (0, 128, 256)]
    assert tree == chain(*chunks), told_tree(tree)
    assert level_of(tree.parts[0]).addends[0].terms == tuple(range(128))


def test_a_window_numbers_the_keys_that_the_row_sees() -> None:
    problem = Problem(GEOMETRIES["mistral-7b"], Mask.SLIDING_WINDOW, "fp32", (Request(1, 1, 60),))
    tree, positions = attention_order(bundled("CPU"), problem, QueryRow(1, 0, 0), CPU)
    assert positions == tuple(range(28, 61)), "the window of 33 ends at the query"
    assert tree.terms == tuple(range(33))


def test_an_order_that_does_not_show_is_refused_in_a_sentence() -> None:
    geometry = GEOMETRIES["llama3-8b"]
    with pytest.raises(UnusableInput, match="fp16, whose range is too small"):
        attention_order(
            bundled("CPU"), Problem(geometry, Mask.CAUSAL, "fp16", (Request(1, 1, 9),)), QueryRow(1, 0, 0), CPU
        )
    with pytest.raises(UnusableInput, match="sees no key"):
        attention_order(
            bundled("CPU"), Problem(geometry, Mask.CAUSAL, "fp32", (Request(1, 2, -2),)), QueryRow(1, 0, 0), CPU
        )


def test_a_tree_is_told_by_what_is_alike() -> None:
    tiles = [chain(*range(start, start + 4)) for start in range(0, 16, 4)]
    tree = chain(*tiles, made(16, 17))
    assert told_tree(tree).splitlines() == [
        "keys 0 to 17: 5 parts of 4 x 4, 2 keys, one after another",
        "├─ keys 0 to 3: 4 keys, one after another (and 3 more alike, to 15)",
        "└─ keys 16 to 17: 2 keys, in one addition",
    ]
    assert [addend.first for addend in level_of(tree).addends] == [0, 4, 8, 12, 16]
    halves = made(made(0, 2), made(1, 3))
    assert (
        told_tree(halves).splitlines()[1]
        == "└─ keys 0 to 2 in steps of 2: 2 keys, in one addition (and 1 more alike, to 3)"
    )


def test_trees_are_drawn_as_valid_svg() -> None:
    drawn = drawn_trees(
        [("<left> & alone", chain(*range(40))), ("right", made(chain(*range(20)), chain(*range(20, 40))))]
    )
    root = ElementTree.fromstring(drawn)
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "<left> & alone" in texts, f"the titles are {texts}"
    assert len(list(root.iter("{http://www.w3.org/2000/svg}rect"))) == 4


def test_distances_are_counted_by_powers_of_two() -> None:
    left = torch.tensor([1.0, 1.0, 1.0, 0.0, float("nan")])
    right = torch.tensor([1.0, 1.0 + 2.0**-23, 1.0 + 5 * 2.0**-23, -0.0, 1.0])
    assert ulp_counts(left, right) == {"0": 1, "1": 2, "2 to 3": 0, "4 to 7": 1, "not a number": 1}


def test_a_cell_is_explained_with_both_orders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell, svg = "CPU/pages-in-order:pages:llama3-8b-causal-mixed:fp32", tmp_path / "orders.svg"
    assert main(["explain", cell, "--load", str(PLANTED / "thresholds.py"), "--svg", str(svg)]) == 0
    told = capsys.readouterr().out
    assert re.search(r"^First difference: .* ULP apart, in the .* of request r\d+$", told, re.MULTILINE), told
    for side in ("Left", "Right"):
        assert re.search(rf"^{side}, \[r1:.*\n.*keys, one after another", told, re.MULTILINE), f"{side} is not told"
    ElementTree.fromstring(svg.read_text())


@pytest.mark.parametrize(
    ("right", "sentence"),
    [(made(made(0, 1), made(2, 3)), "They add in different orders."), (chain(0, 1, 2, 3), "Both add in one order")],
    ids=["different", "same"],
)
def test_an_explanation_says_whether_the_orders_differ(right: Node, sentence: str) -> None:
    sides = (Side("Left", chain(0, 1, 2, 3)), Side("Right", right))
    assert sentence in Explanation("cell", "smallest", "first", {"0": 1}, sides).to_text()


def test_a_cell_whose_bits_agree_needs_no_explanation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "CPU/bundled:pages:llama3-8b-causal-mixed:fp32"]) == 0
    assert "both sides have the same bits" in capsys.readouterr().out
