"""The order in which the weights of one query row are added up in the denominator of its softmax.

All terms are positive, so nothing cancels; but a sum that holds a weight of 1 loses less than half a unit in its last
place. Let one key weigh 1, and others 0.4 units each, and all further ones nothing. A sum of `c` of the latter that is
added to the one with the weight of 1 leaves `round(0.4 c)` units there: none of one, one of two, two of four. So what a
denominator comes to tells how the keys come together on their way to the one that weighs 1.

One call has one denominator for each head, far less than a tree needs. So the sums of some choices of keys are held
against what each of many ways of adding would come to (`samebits.harness.explain.schemes`): an order is told where one
tree alone gives all of them.

A denominator is seen through the output: with a value of `v` behind the key that weighs 1 and 0 behind all others, that
is `v` over the denominator. Where outputs have few bits, one further key weighs so much that this lies where outputs
are rounded up or down, and its values, which differ from element to element, decide where each is.
"""

from __future__ import annotations

import itertools
import math
import operator
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from samebits.harness.explain.attention import RowCalls
from samebits.harness.explain.order import Node
from samebits.harness.explain.schemes import Tiles, schemes
from samebits.harness.records import UnusableInput

# A unit in the last place of float32 numbers from 1 to 2, and a weight of which one is lost beside 1 and two are not.
_UNIT = 2.0**-23
_LIGHT = 0.4 * _UNIT
# The logarithm of a weight that is 0 in float32.
_NOTHING = -200.0
# Elements of a head that see a denominator: so many units can be told.
_SEEN_BY = 32
# Of them, those that would tell fewer units than there must be.
_BELOW = 4
# Choices of keys that every way of adding is held against. Many light ones add up to no more units than are seen.
_CHOICES, _FEW_LIGHT, _MANY_LIGHT = 16, 12, 60
_FEWEST_KEYS = 4


@dataclass(frozen=True)
class _Choice:
    """Weights of the keys.

    Attributes:
        heavy: the key that weighs 1.
        tuning: the key by which outputs of few bits are tuned.
        light: keys that weigh 0.4 units.
    """

    heavy: int
    tuning: int
    light: tuple[int, ...]


@dataclass(frozen=True)
class Denominator:
    """How a denominator is added up.

    Attributes:
        tree: over the keys that the row sees, numbered from 0.
        scheme: the simplest way that is known to come to it.
    """

    tree: Node
    scheme: Tiles


def denominator_order(calls: RowCalls, likely_tiles: Sequence[int]) -> Denominator:
    """Recovers how the weights of the keys that a query row sees are added up.

    Args:
        calls: of the row.
        likely_tiles: numbers of keys that may be those of a tile.

    Raises:
        UnusableInput: it is none of the orders that are known, or it cannot be told from another.
    """
    if calls.num_keys < _FEWEST_KEYS:
        raise UnusableInput(f"of fewer than {_FEWEST_KEYS} keys no order shows in the denominator")
    reader = _Reader(calls)
    generator = random.Random(calls.num_keys)
    # The first, at which most schemes fail, are of few keys, which is quickly computed.
    choices = [
        _choice(calls.num_keys, generator, _FEW_LIGHT if number < _CHOICES // 2 else _MANY_LIGHT)
        for number in range(_CHOICES)
    ]
    alone = [replace(choice, light=()) for choice in choices[: reader.at_once]]
    if any(reader.units(alone)):
        raise UnusableInput("the kernel's exponentials are too inexact to tell the order of its denominator")
    found = reader.units(choices)
    fitting: dict[str, Denominator] = {}
    for scheme in schemes(calls.num_keys, likely_tiles):
        # One choice after another: nearly all schemes fail at the first.
        if all(reader.units_under(scheme, choice) == units for choice, units in zip(choices, found, strict=True)):
            tree = _tree(scheme, calls)
            fitting.setdefault(tree.shape, Denominator(tree, scheme))
    left = _told_apart(reader, list(fitting.values()))
    if len(left) == 1:
        left = _agreeing(reader, left, [_choice(calls.num_keys, generator, _MANY_LIGHT) for _ in range(_CHOICES)])
    if not left:
        raise UnusableInput("the denominator follows none of the orders that are known here")
    if len(left) > 1:
        alike = " or ".join(str(each.scheme) for each in left[:2])
        raise UnusableInput(f"the order of the denominator cannot be told from another: {alike}")
    return left[0]


def _told_apart(reader: _Reader, fitting: list[Denominator]) -> list[Denominator]:
    """Those that still fit when choices of keys have been asked for in which they differ."""
    while len(fitting) > 1:
        telling = list(itertools.islice(_telling(reader.num_keys, fitting[0].tree, fitting[1].tree), reader.at_once))
        left = _agreeing(reader, fitting, telling)
        if len(left) == len(fitting):
            break
        fitting = left
    return fitting


def _agreeing(reader: _Reader, fitting: list[Denominator], choices: Sequence[_Choice]) -> list[Denominator]:
    """Those that come to what some choices of keys do."""
    found = reader.units(choices)
    return [each for each in fitting if [reader.units_under(each.scheme, choice) for choice in choices] == found]


def _telling(num_keys: int, left: Node, right: Node) -> Iterator[_Choice]:
    """Choices of two light keys that come together before they meet the heavy one in one of two trees alone."""
    for heavy in random.Random(num_keys).sample(range(num_keys), num_keys):
        ours, theirs = (_joining(tree, heavy) for tree in (left, right))
        for one, other in ((ours, theirs), (theirs, ours)):
            first_of: dict[int, int] = {}
            for key, place in one.items():
                first = first_of.setdefault(place, key)
                if other[first] != other[key]:
                    tuning = next(each for each in range(num_keys) if each not in (heavy, first, key))
                    yield _Choice(heavy, tuning, (first, key))
                    break


def _joining(tree: Node, heavy: int) -> dict[int, int]:
    """Every other key by the sum, numbered from the whole inwards, in which it joins one."""
    found: dict[int, int] = {}
    sums = 0
    while tree.parts:
        for part in tree.parts:
            if heavy not in part.members:
                found |= dict.fromkeys(part.terms, sums)
                sums += 1
        tree = next(part for part in tree.parts if heavy in part.members)
    return found


def _choice(num_keys: int, generator: random.Random, most: int) -> _Choice:
    """Random keys: the light ones far from one another, or neighbours."""
    heavy, tuning = generator.sample(range(num_keys), 2)
    others = [key for key in range(num_keys) if key not in (heavy, tuning)]
    most = min(most, len(others))
    if generator.random() < 0.5:
        light = generator.sample(others, generator.randint(1, most))
    else:
        first = generator.randrange(len(others) - most + 1)
        light = [key for key in others[first : first + most] if generator.random() < 0.7]
    return _Choice(heavy, tuning, tuple(sorted(light)))


def _tree(scheme: Tiles, calls: RowCalls) -> Node:
    def add(left: Node, right: Node) -> Node:
        parts = sorted((left, right), key=lambda part: part.first)
        return Node(tuple(sorted((*left.terms, *right.terms))), tuple(parts))

    tree = scheme.sum([Node((key,)) for key in range(calls.num_keys)], calls.first_position, add)
    assert tree is not None, "there are keys"
    return tree


class _Reader:
    """Sees denominators of a row.

    Attributes:
        least: what the heavy and the tuning key come to.
        num_keys: that the row sees.
        at_once: denominators that one call tells, each of a head of its own.
    """

    def __init__(self, calls: RowCalls) -> None:
        self._calls = calls
        self.num_keys = calls.num_keys
        self.at_once = min(calls.group_size, calls.width // _SEEN_BY)
        if calls.softcap is not None and calls.dtype is not torch.float32:
            raise UnusableInput("under a softcap the weights are not exact enough to tell the denominator's order")
        bits = -math.frexp(torch.finfo(calls.dtype).eps)[1] + 1
        # The largest number below 2, and the middle between it and the one before.
        self._value = 2.0 - 2.0**-bits
        self._middle = self._value - 2.0 ** -(bits + 1)
        self._tuning = 0.0
        if calls.dtype is not torch.float32:
            self._tuning = round((self._value / self._middle - 1.0) / _UNIT) * _UNIT
        self.least = 1.0 + self._tuning

    def weights(self, choice: _Choice) -> list[np.float32 | None]:
        """Weights of all keys; None for those that weigh nothing."""
        weights: list[np.float32 | None] = [None] * self._calls.num_keys
        for key in choice.light:
            weights[key] = np.float32(_LIGHT)
        weights[choice.heavy] = np.float32(1.0)
        if self._tuning:
            weights[choice.tuning] = np.float32(self._tuning)
        return weights

    def units_under(self, scheme: Tiles, choice: _Choice) -> int:
        """How many units the denominator would be above the least if it were added up in some way."""
        total = scheme.sum(self.weights(choice), self._calls.first_position, operator.add)
        assert total is not None, "one key weighs 1"
        return round((float(total) - self.least) / _UNIT)

    def units(self, choices: Sequence[_Choice]) -> list[int]:
        """How many units the denominator of each choice is above the least."""
        found: list[int] = []
        for first in range(0, len(choices), self.at_once):
            found += self._units_at_once(choices[first : first + self.at_once])
        return found

    def _units_at_once(self, choices: Sequence[_Choice]) -> list[int]:
        calls = self._calls
        scores = torch.zeros(calls.num_keys, len(choices), dtype=torch.float64)
        values = torch.zeros(calls.num_keys, calls.width, dtype=torch.float64)
        for head, choice in enumerate(choices):
            weights = [float(weight or 0.0) for weight in self.weights(choice)]
            scores[:, head] = torch.tensor(weights, dtype=torch.float64).log().clamp(min=_NOTHING)
            seen = slice(head * _SEEN_BY, (head + 1) * _SEEN_BY)
            values[choice.heavy, seen] = self._value
            if self._tuning:
                values[choice.tuning, seen] = self._steps() / self._tuning
        output = calls.outputs(values, scores)
        return [self._seen(output[head, head * _SEEN_BY : (head + 1) * _SEEN_BY]) for head in range(len(choices))]

    def _steps(self) -> torch.Tensor:
        """By how much each element's numerator lies above the value, so that element `e` tells `e` units from more."""
        # Of the value's own units, which is how finely a sum can hold it.
        units = torch.arange(_SEEN_BY, dtype=torch.float64) - _BELOW + 0.5
        wanted = self._middle * (self.least + units * _UNIT) - self._value
        return (wanted / _UNIT).round() * _UNIT

    def _seen(self, output: torch.Tensor) -> int:
        if not self._tuning:
            return int(((self._value / output - 1.0) / _UNIT).median().round())
        # Elements whose output was rounded down have a denominator above theirs.
        return int((output < self._value).sum()) - _BELOW
