"""The tensors that a plan holds, found by looking: whatever it is made of, but for what is behind a function."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from types import FunctionType, MethodType, ModuleType

import numpy as np
import torch


def plan_tensors(plan: object) -> dict[str, torch.Tensor]:
    """All tensors of a plan by name, in dataclasses, mappings, sequences, objects with attributes, and numpy's arrays.

    Args:
        plan: any. Nothing is found in a function, or in what has neither parts nor attributes.

    Returns:
        Tensors by their path, for example `metadata.seq_lens` or `calls.0.slots`. An array of numpy's is a tensor on
        its memory.
    """
    return dict(_tensors(plan, "", frozenset()))


def attributes_of(part: object) -> Mapping[str, object]:
    """The attributes that an object was given: none of a class, a module, a function or a member of an enumeration.

    Args:
        part: any.
    """
    if isinstance(part, (type, ModuleType, FunctionType, MethodType, Enum, torch.Tensor)):
        return {}
    if dataclasses.is_dataclass(part):
        return {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    return getattr(part, "__dict__", {})


def _tensors(part: object, path: str, above: frozenset[int]) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(part, torch.Tensor):
        yield path, part
    elif isinstance(part, np.ndarray):
        yield path, torch.from_numpy(part)
    elif id(part) not in above:
        for name, inner in _parts(part):
            yield from _tensors(inner, f"{path}.{name}" if path else str(name), above | {id(part)})


def _parts(part: object) -> Iterable[tuple[object, object]]:
    if isinstance(part, Mapping):
        return part.items()
    if isinstance(part, (list, tuple)):
        return enumerate(part)
    return attributes_of(part).items()
