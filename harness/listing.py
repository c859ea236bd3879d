"""What `samebits list` tells: every implementation with its version, device, availability and claims."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

from samebits.backends.contract import Claims, Implementation
from samebits.backends.operations import TokenImplementation
from samebits.backends.platform import accelerator
from samebits.backends.subject import GraphSupport, Subject
from samebits.harness.registry import Registry
from samebits.reports import text
from samebits.reports.columns import columns

# Each claim by its column; all of them are in the JSON.
_CLAIMS = {
    "batch_invariant": ("claims", "batch"),
    "schedule_invariant": ("", "schedule"),
    "thread_invariant": ("", "thread"),
    "deterministic": ("determi-", "nistic"),
    "ignores_unread_memory": ("unread", "memory"),
    "ignores_hidden_keys": ("hidden", "keys"),
    "cuda_graph": ("", "replay"),
}


def as_json(registry: Registry) -> str:
    """The platform and all implementations, for machines."""
    implementations = [_described(implementation, registry) for implementation in registry.implementations]
    return json.dumps({"platform": dataclasses.asdict(accelerator()), "implementations": implementations}, indent=2)


def as_text(registry: Registry) -> str:
    """The platform and all implementations, for a terminal."""
    platform = accelerator()
    sections = (
        [f"Platform: {platform.kind}, {platform.name}."],
        _table(registry),
        _section("Unavailable:", registry, lambda subject: registry.availability(subject).reason),
        _section("Where claims are made:", registry, lambda subject: subject.claims.source),
    )
    return "\n\n".join("\n".join(section) for section in sections if section)


def _described(implementation: Subject, registry: Registry) -> dict[str, object]:
    availability = registry.availability(implementation)
    return {
        "backend": implementation.backend,
        "implementation": implementation.name,
        "variant": implementation.variant,
        "label": implementation.label,
        "available": availability.available,
        "reason": availability.reason,
        "version": availability.version,
        "device": availability.device if availability.available else None,
        "claims": dataclasses.asdict(implementation.claims) | {"cuda_graph": str(implementation.claims.cuda_graph)},
        "operation": implementation.operation,
        **_supported(implementation),
        "configuration": dict(implementation.configuration),
    }


def _supported(implementation: Subject) -> dict[str, list[str]]:
    if isinstance(implementation, Implementation):
        support = implementation.support
        return {"dtypes": list(support.dtypes), "masks": [mask.value for mask in support.masks]}
    return {"dtypes": list(implementation.dtypes)} if isinstance(implementation, TokenImplementation) else {}


def _table(registry: Registry) -> list[str]:
    headings = [("", "implementation"), ("", "operation"), ("", "runs on"), ("", "version"), *_CLAIMS.values()]
    rows = []
    for implementation in registry.implementations:
        availability = registry.availability(implementation)
        row = [
            implementation.label,
            implementation.operation,
            availability.device if availability.available else "unavailable",
        ]
        rows.append([*row, text.plain(availability.version) or "-", *_claimed(implementation.claims)])
    return columns(headings, rows, left=len(headings))


def _claimed(claims: Claims) -> list[str]:
    return [_told(getattr(claims, claim)) for claim in _CLAIMS]


def _told(claim: bool | GraphSupport) -> str:
    if not claim:
        return "-"
    return str(claim) if isinstance(claim, GraphSupport) else "yes"


def _section(title: str, registry: Registry, told_of: Callable[[Subject], str]) -> list[str]:
    """A sentence of each implementation that there is one of, under a title; nothing where there is none."""
    lines = [title]
    for implementation in registry.implementations:
        told = told_of(implementation)
        if told:
            lines += text.wrapped(f"{implementation.label} {implementation.operation}: {told}", "  ")
    return lines if lines != [title] else []
