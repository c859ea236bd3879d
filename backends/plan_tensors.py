"""The tensors that a plan holds, found by looking."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import torch


def plan_tensors(plan: object) -> dict[str, torch.Tensor]:
    """All tensors of a plan by name, where it is made of dataclasses, mappings, sequences, tensors and numpy's arrays.

    Args:
        plan: any; of what it is made of otherwise, nothing is found.

    Returns:
        Tensors by their path, for example `metadata.seq_lens` or `calls.0.slots`. An array of numpy's is a tensor on
        its memory.
    """
    return dict(_tensors(plan, ""))


def _tensors(part: object, path: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(part, torch.Tensor):
        yield path, part
    elif isinstance(part, np.ndarray):
        yield path, torch.from_numpy(part)
    else:
        for name, inner in _parts(part):
            yield from _tensors(inner, f"{path}.{name}" if path else str(name))


def _parts(part: object) -> Iterator[tuple[object, object]]:
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        yield from ((field.name, getattr(part, field.name)) for field in dataclasses.fields(part))
    elif isinstance(part, Mapping):
        yield from part.items()
    elif isinstance(part, (list, tuple)):
        yield from enumerate(part)
