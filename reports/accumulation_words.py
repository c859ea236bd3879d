"""Why two sides differ, in words: where first, by how much, and both orders of additions next to each other."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby, zip_longest

from samebits.harness.explanation import Addends, Explanation, Manner, Order, Side, Sum
from samebits.reports import text

# Sizes, places and parts that are told one by one.
_TOLD = 6
_NAMES = ("left", "right")
_GAP = "   "


def told_explanation(explanation: Explanation, width: int) -> str:
    """The whole explanation for a terminal.

    Args:
        explanation: of a row.
        width: columns of the terminal. Where it has not enough for both sides, one follows the other.
    """
    lines = [
        f"First difference: {explanation.difference} in the {explanation.place} of request {explanation.request}",
        "Units in the last place apart, and elements of that request:",
        *_distribution(explanation),
    ]
    if explanation.sides:
        lines += [
            "",
            *_side_by_side([_side_lines(*named) for named in zip(_NAMES, explanation.sides, strict=True)], width),
        ]
        lines += [line for sentence in order_sentences(explanation) for line in textwrap.wrap(sentence, width)]
    return "\n".join(lines)


def short_lines(explanation: Explanation) -> list[str]:
    """What a failing test and a page say: by how much, and how the orders differ, one sentence each."""
    return [f"units in the last place apart: {told_distribution(explanation)}", *order_sentences(explanation)]


def told_distribution(explanation: Explanation) -> str:
    """How many elements are how far apart, in a line."""
    return ", ".join(f"{distance} in {number:,}" for distance, number in distances(explanation) if number)


def distances(explanation: Explanation) -> list[tuple[str, int]]:
    """Distances and how many elements are so far apart, the smallest first: a file may have them in any order."""

    def smallest(entry: tuple[str, int]) -> float:
        low = entry[0].partition(" ")[0]
        return int(low) if low.isdecimal() else math.inf

    return sorted(explanation.ulps.items(), key=smallest)


def order_sentences(explanation: Explanation) -> list[str]:
    """How the orders of both sides differ, of the values and of the denominator; none where nothing is added up."""
    if not explanation.sides:
        return []
    left, right = explanation.sides
    sentences = [
        *_order_sentences("values", left.values, right.values),
        *_order_sentences("denominator", left.denominator, right.denominator),
    ]
    same = all(
        ours.sum is not None and ours.sum == theirs.sum
        for ours, theirs in ((left.values, right.values), (left.denominator, right.denominator))
    )
    return [*sentences, "Look for what is rounded or scaled otherwise."] if same else sentences


def told_sum(whole: Sum) -> str:
    """What a sum is made of and how, in a line."""
    number = whole.num_addends
    if not number:
        return "one key"
    manner = _told_manner(whole)
    sizes = [([each.keys for each in addends.round], addends.times) for addends in whole.addends]
    if not sizes:
        return f"{number} addends, {manner}"
    if all(size == 1 for round_sizes, _ in sizes for size in round_sizes):
        return f"{number} keys, {manner}"
    return f"{number} parts of {_told_sizes(sizes)} keys, {manner}{_told_places(whole)}"


def adds_runs(whole: Sum) -> bool:
    """Whether the keys of each addend lie next to one another."""
    return all(each.is_run for addends in whole.addends for each in addends.round)


def told_keys(whole: Sum) -> str:
    """Which keys a sum is over."""
    if whole.keys == 1:
        return f"key {whole.first}"
    if whole.is_run:
        return f"keys {whole.first} to {whole.last}"
    if whole.step:
        return f"keys {whole.first} to {whole.last} in steps of {whole.step}"
    return f"{whole.keys} of keys {whole.first} to {whole.last}"


def tree_lines(whole: Sum, *, runs_alone: bool = False) -> list[str]:
    """A tree, a line for each sum; of sums that are alike and follow one another, the first is told.

    Args:
        whole: the sum of all.
        runs_alone: whether to leave out sums of keys that lie between those of others, as lanes do.
    """
    return list(_lines(whole, runs_alone))


def _distribution(explanation: Explanation) -> Iterator[str]:
    width = max(map(len, explanation.ulps), default=0)
    yield from (f"  {distance:>{width}}  {number:,}" for distance, number in distances(explanation))


def _side_lines(name: str, side: Side) -> list[str]:
    lines = [f"{name.capitalize()}: {side.batch}"]
    for what, order in (("values", side.values), ("denominator", side.denominator)):
        lines.append(f"{what}:")
        lines += [f"  {text.plain(told)}" for told in (order.note, order.scheme) if told]
        if order.sum is not None:
            # What the lanes of a tile do, the name of the scheme says.
            lines += [f"  {line}" for line in tree_lines(order.sum, runs_alone=bool(order.scheme))]
    return lines


def _side_by_side(columns: Sequence[Sequence[str]], width: int) -> list[str]:
    """Columns next to each other where they fit, else one below the other, wrapped."""
    widest = max(len(line) for column in columns for line in column)
    if len(columns) * widest + (len(columns) - 1) * len(_GAP) <= width:
        rows = zip_longest(*columns, fillvalue="")
        return [*(_GAP.join(f"{cell:<{widest}}" for cell in row).rstrip() for row in rows), ""]
    return [line for column in columns for line in _wrapped_column(column, width)]


def _wrapped_column(column: Sequence[str], width: int) -> Iterator[str]:
    for line in column:
        # What a line of a tree begins with stands for its place.
        indent = " " * (len(line) - len(line.lstrip(" │├└─")) + 2)
        yield from textwrap.wrap(line, width, subsequent_indent=indent, drop_whitespace=True) or [""]
    yield ""


def _order_sentences(what: str, left: Order, right: Order) -> Iterator[str]:
    told = [_told_order(order) for order in (left, right)]
    if not any(told):
        return
    if told[0] == told[1] and left.sum == right.sum:
        yield f"{what}: both sides {'add in one order: ' if left.sum is not None else ''}{told[0]}."
    else:
        yield f"{what}: left {told[0]}; right {told[1]}."


def _told_order(order: Order) -> str:
    if order.sum is None:
        return f"not told ({order.note})" if order.note else ""
    return order.scheme or _path(order.sum)


def _path(whole: Sum) -> str:
    """A sum, and what the first of its larger addends are made of."""
    told = [told_sum(whole)]
    inner = _largest(whole)
    while inner is not None and len(told) < 3:
        told.append(told_sum(inner))
        inner = _largest(inner)
    return ", each of ".join(told)


def _largest(whole: Sum) -> Sum | None:
    """The first of the addends of most keys, where that is more than one."""
    every = (each for addends in whole.addends for each in addends.round)
    largest = max(every, key=lambda each: each.keys, default=None)
    return largest if largest is not None and largest.keys > 1 else None


def _lines(whole: Sum, runs_alone: bool) -> Iterator[str]:
    inner = [(each, addends) for addends in whole.addends for each in addends.round if each.keys > 1]
    if runs_alone and not adds_runs(whole):
        yield told_keys(whole)
        return
    yield f"{told_keys(whole)}: {told_sum(whole)}"
    blocks = [_block(each, addends, runs_alone) for each, addends in inner]
    if len(blocks) > _TOLD:
        blocks[_TOLD:] = [[f"and {len(blocks) - _TOLD} other kinds of parts"]]
    if whole.left_out:
        blocks.append([f"and {whole.left_out} more addends"])
    for block in blocks:
        first, rest = ("└─ ", "   ") if block is blocks[-1] else ("├─ ", "│  ")
        yield from (f"{rest if number else first}{line}" for number, line in enumerate(block))


def _block(each: Sum, addends: Addends, runs_alone: bool) -> list[str]:
    """The lines of an addend, and how many there are like it."""
    first, *lines = _lines(each, runs_alone)
    if addends.times > 1:
        last = each.last + (addends.times - 1) * addends.spacing
        first += f" (and {addends.times - 1} more alike, to {last})"
    return [first, *lines]


def _told_sizes(sizes: Sequence[tuple[Sequence[int], int]]) -> str:
    """Sizes of addends, those that follow one another and are of one size together, and rounds in brackets."""
    told: list[str] = []
    for alike, same in groupby(sizes, key=lambda entry: entry[0]):
        times = sum(number for _, number in same)
        size = str(alike[0]) if len(alike) == 1 else f"({', '.join(map(str, alike))})"
        told.append(size if times == 1 and len(alike) == 1 else f"{times} x {size}")
    return ", ".join(told if len(told) <= _TOLD else [*told[:_TOLD], "..."])


def _told_manner(whole: Sum) -> str:
    if whole.manner is Manner.AT_ONCE:
        return "in one addition" if whole.num_addends == 2 else "at once"
    firsts = [first for addends in whole.addends for _, first in addends.placed()]
    if firsts == sorted(firsts):
        return "one after another"
    backwards = firsts == sorted(firsts, reverse=True)
    return "one after another, " + ("the last first" if backwards else "not in the order of the keys")


def _told_places(whole: Sum) -> str:
    """Where the parts begin, where they lie next to one another and are few."""
    placed = [placed for addends in whole.addends for placed in addends.placed()]
    if whole.left_out or len(placed) > _TOLD or not all(each.is_run for each, _ in placed):
        return ""
    return ", from keys " + ", ".join(str(first) for _, first in placed)
