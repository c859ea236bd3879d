"""Who is timed: implementations of the registry at each of their settings, and what users would call instead."""

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from samebits.backends.contract import Implementation
from samebits.backends.operations import LinearTensors, TokenImplementation
from samebits.backends.problem import Problem
from samebits.backends.subject import GraphSupport, Subject
from samebits.backends.token_problem import Linear, RmsNorm, TokenProblem
from samebits.harness.bench.inputs import AttentionInputs, Inputs, TokenInputs
from samebits.harness.bench.problems import BenchProblem
from samebits.harness.bench.records import Role, Timing
from samebits.harness.bench.stopwatch import Action

# Plans are timed by themselves, a few times where they are quick.
_MOST_PLANS, _MOST_PLAN_SECONDS = 5, 0.2


@dataclass(frozen=True)
class Prepared:
    """A contender that can be run on its inputs.

    Attributes:
        action: computes the problem once.
        collect: brings what it computed last to `inputs.output`, where the action does not write it there.
        planning: times of `plan`; None for what has no plan.
        for_graph: makes what a CUDA graph may capture; None where `not_replayed` says why there is none.
        not_replayed: one sentence.
    """

    action: Action
    collect: Action | None = None
    planning: Timing | None = None
    for_graph: Callable[[], Action] | None = None
    not_replayed: str = ""


class Contender(abc.ABC):
    """Somebody who is timed.

    Attributes:
        role: what it stands for.
        backend, implementation, variant, version, configuration: its name, as records have it.
        batch_invariant: whether it claims to be.
        computes: whether its result is that of the problem.
    """

    role: Role
    backend: str
    implementation: str
    variant: str
    version: str
    configuration: Mapping[str, str]
    batch_invariant: bool
    computes: bool = True

    @property
    def label(self) -> str:
        """`BACKEND/implementation`, with `[variant]` where there is one."""
        return f"{self.backend}/{self.implementation}" + (f"[{self.variant}]" if self.variant else "")

    @abc.abstractmethod
    def prepare(self, inputs: Inputs) -> Prepared:
        """Plans what there is to plan."""


class RegisteredContender(Contender):
    """An implementation of the registry.

    Args:
        subject: of attention, or of an operation on tokens; available here.
        version: of its library.
    """

    role = Role.IMPLEMENTATION

    def __init__(self, subject: Subject, version: str) -> None:
        self._subject, self.version = subject, version
        self.backend, self.implementation, self.variant = subject.backend, subject.name, subject.variant
        self.configuration = dict(subject.configuration)
        self.batch_invariant = subject.claims.batch_invariant

    def prepare(self, inputs: Inputs) -> Prepared:
        """Plans a batch of attention; an operation on tokens has no plan."""
        if isinstance(inputs, AttentionInputs):
            assert isinstance(self._subject, Implementation), "of attention, as the problem is"
            return _prepared_attention(self._subject, inputs)
        subject, operation, tensors = self._subject, inputs.problem.operation, inputs.tensors
        assert isinstance(subject, TokenImplementation), "of an operation on tokens, as the problem is"
        action: Action = lambda: subject.run(operation, tensors)  # noqa: E731 -- what is captured is what is timed
        refused = _not_captured(subject, GraphSupport.ALWAYS)
        return Prepared(action, for_graph=None if refused else lambda: action, not_replayed=refused)


class Yardstick(Contender):
    """A plain call of torch.

    Args:
        name: of it.
        make: makes the call from the inputs, and what brings its result to their output, or None where it writes there.
        computes: whether its result is that of the problem.
    """

    role = Role.YARDSTICK
    backend, variant, batch_invariant = "torch", "", False

    def __init__(
        self, name: str, make: Callable[[Any], tuple[Action, Action | None]], *, computes: bool = True
    ) -> None:
        self.implementation, self._make, self.computes = name, make, computes
        self.version, self.configuration = torch.__version__, {}

    def prepare(self, inputs: Inputs) -> Prepared:
        """Makes the call, which has no plan."""
        action, collect = self._make(inputs)
        return Prepared(action, collect, for_graph=lambda: action)


def yardsticks(problem: BenchProblem) -> Iterator[Yardstick]:
    """What a problem is held against besides other implementations."""
    if problem.beside_flex:
        yield Yardstick("flex_attention", _plain_flex)
    if isinstance(problem.problem, TokenProblem):
        if isinstance(problem.problem.operation, Linear):
            yield Yardstick("linear", _plain_linear)
        if isinstance(problem.problem.operation, RmsNorm):
            yield Yardstick("copy", _plain_copy, computes=False)


def _plain_flex(inputs: AttentionInputs) -> tuple[Action, Action]:
    # Not earlier: it imports torch's compiler, which the process that others are forked from must be without.
    from samebits.harness.bench.plain_flex import plain_flex

    return plain_flex(inputs)


def _plain_linear(inputs: TokenInputs) -> tuple[Action, None]:
    tensors = inputs.tensors
    assert isinstance(tensors, LinearTensors), "the yardstick of a linear layer"
    weight = tensors.weight.T
    return lambda: torch.mm(tensors.input, weight, out=tensors.output), None


def _plain_copy(inputs: TokenInputs) -> tuple[Action, None]:
    """A copy of as many bytes as a norm reads and writes."""
    return lambda: inputs.tensors.output.copy_(inputs.tensors.input), None


def _prepared_attention(subject: Implementation[Any], inputs: AttentionInputs) -> Prepared:
    batch = inputs.batch
    tensors = (batch.query, batch.key_cache, batch.value_cache, inputs.output)
    seconds: list[float] = []
    while not seconds or (len(seconds) < _MOST_PLANS and sum(seconds) < _MOST_PLAN_SECONDS):
        began = time.perf_counter()
        plan = subject.plan(batch.config, batch.metadata)
        seconds.append(time.perf_counter() - began)

    def for_graph() -> Action:
        lasting = subject.plan_for_graph(batch.config, batch.metadata, batch.key_cache.shape[0])
        return subject.launch(lasting, *tensors)

    refused = _not_captured(subject, _needed_support(batch.problem))
    # The first plan may have imported or compiled something.
    planning = Timing.of(seconds[1:] or seconds)
    return Prepared(subject.launch(plan, *tensors), None, planning, None if refused else for_graph, refused)


def _needed_support(problem: Problem) -> GraphSupport:
    """What must be claimed for a graph of a batch."""
    query_lens = {request.query_len for request in problem.requests}
    if query_lens == {1}:
        return GraphSupport.SINGLE_TOKEN_DECODE
    return GraphSupport.UNIFORM_BATCH if len(query_lens) == 1 else GraphSupport.ALWAYS


def _not_captured(subject: Subject, needed: GraphSupport) -> str:
    """Why a CUDA graph need not capture a batch, as one sentence; empty where it may."""
    claimed = subject.claims.cuda_graph
    return "" if claimed >= needed else f"it claims replay for {claimed}, and this batch needs {needed}"
