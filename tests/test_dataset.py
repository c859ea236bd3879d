"""A request's tensors depend on the request alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samebits.backends.problem import Geometry, Mask, Problem, Request
from samebits.harness.batch import make_batch, request_queries
from samebits.harness.dataset import Role, token_values

GEOMETRY = Geometry("test", num_heads=4, num_kv_heads=2, head_dim=80)


def test_values_of_a_position_do_not_depend_on_where_the_range_begins() -> None:
    whole = token_values(0, 7, Role.KEY, GEOMETRY, 0, 100)
    for start, stop in ((0, 1), (37, 64), (99, 100)):
        part = token_values(0, 7, Role.KEY, GEOMETRY, start, stop)
        assert np.array_equal(part, whole[start:stop]), (
            f"positions {start} to {stop} hold other values than in 0 to 100"
        )


@pytest.mark.parametrize("key", [(1, 7, Role.KEY), (0, 8, Role.KEY), (0, 7, Role.VALUE)])
def test_values_change_with_seed_request_and_role(key: tuple[int, int, Role]) -> None:
    left = token_values(0, 7, Role.KEY, GEOMETRY, 0, 10)
    right = token_values(*key, GEOMETRY, 0, 10)
    assert (left != right).mean() > 0.99, f"{key} left more than 1% of the values as they were"


def test_values_are_the_same_bits_on_every_machine() -> None:
    values = token_values(0, 1, Role.QUERY, GEOMETRY, -1, 1)[:, 0, :2]
    expected = [[0.09184076637029648, -0.7624765634536743], [0.6578177809715271, -1.3325237035751343]]
    assert values.tolist() == expected, f"the generator gives {values.tolist()}; committed baselines rest on {expected}"


def test_values_have_mean_0_and_variance_1() -> None:
    values = token_values(0, 1, Role.KEY, GEOMETRY, 0, 2000).astype(np.float64)
    assert abs(values.mean()) < 0.01, f"mean is {values.mean()}"
    assert abs(values.var() - 1) < 0.01, f"variance is {values.var()}"


def test_a_request_holds_the_same_bits_in_any_batch_and_place() -> None:
    victim = Request(key=3, query_len=5, context_len=30, encoder_len=4)
    alone = Problem(GEOMETRY, Mask.CAUSAL, "bf16", (victim,))
    crowded = alone.with_requests(Request(1, 17), victim, Request(2, 1, 90)).with_layout(
        page_seed=9, extra_table_columns=3, padding_requests=2, padding_tokens=5
    )
    seen = []
    for problem in (alone, crowded):
        batch = make_batch(problem, torch.device("cpu"))
        place = problem.requests.index(victim)
        pages = batch.metadata.block_table[place].to(torch.int64)
        token = torch.arange(victim.num_slots)
        slots = pages[token // GEOMETRY.page_size] * GEOMETRY.page_size + token % GEOMETRY.page_size
        cache = torch.stack([batch.key_cache, batch.value_cache]).flatten(1, 2)
        seen.append((batch.query[batch.query_rows[place]], cache[:, slots]))
    for left, right in zip(*seen, strict=True):
        assert torch.equal(left, right), "the request's tensors changed with its batch"


def test_the_slots_of_a_step_are_those_of_its_last_tokens() -> None:
    request = Request(key=1, query_len=5, context_len=-2, encoder_len=3)
    problem = Problem(GEOMETRY, Mask.CAUSAL, "fp32", (request,)).with_layout(padding_tokens=1)
    metadata = make_batch(problem, torch.device("cpu")).metadata
    first_page = int(metadata.block_table[0, 0]) * GEOMETRY.page_size
    expected = [-1, -1, first_page + 3, first_page + 4, first_page + 5, -1]
    assert metadata.slot_mapping.tolist() == expected


@pytest.mark.parametrize("poison", ["nan", "large"])
def test_everything_no_request_owns_is_poisoned(poison: str) -> None:
    problem = Problem(GEOMETRY, Mask.CAUSAL, "fp32", (Request(1, 5), Request(2, 1, 20)))
    batch = make_batch(problem.with_layout(poison=poison, padding_tokens=3), torch.device("cpu"))
    owned = sum(request.num_slots for request in problem.requests)
    for cache in (batch.key_cache, batch.value_cache):
        rows = cache.flatten(0, 1).flatten(1)
        poisoned = rows.isnan().all(dim=1) if poison == "nan" else (rows == 32768.0).all(dim=1)
        assert int((~poisoned).sum()) == owned, "more or fewer slots hold data than the requests own"
        assert bool(poisoned[: GEOMETRY.page_size].all()), "the null page holds data"
    padding = batch.query[6:]
    assert bool(padding.isnan().all() if poison == "nan" else (padding == 32768.0).all()), "a padding row holds data"


def test_a_chunk_holds_the_queries_of_its_positions() -> None:
    problem = Problem(GEOMETRY, Mask.CAUSAL, "fp32", (Request(1, 40),))
    whole = request_queries(problem, Request(1, 40))
    chunk = request_queries(problem, Request(1, 7, 20))
    assert torch.equal(chunk, whole[20:27]), "positions 20 to 27 differ between the prefill and its chunk"


def test_whoever_writes_a_batch_damages_no_later_one() -> None:
    """Requests keep their data for the batches after: a kernel that writes its inputs must not reach them."""
    problem = Problem(GEOMETRY, Mask.CAUSAL, "fp32", (Request(1, 3, 20), Request(2, 1, 40)))
    batch = make_batch(problem, torch.device("cpu"))
    before = [tensor.clone() for tensor in (batch.query, batch.key_cache, batch.value_cache)]
    for tensor in (batch.query, batch.key_cache, batch.value_cache):
        tensor.fill_(7.0)
    again = make_batch(problem, torch.device("cpu"))
    for name, tensor, expected in zip(
        ("query", "key_cache", "value_cache"), (again.query, again.key_cache, again.value_cache), before, strict=True
    ):
        assert torch.equal(tensor.view(torch.int32), expected.view(torch.int32)), f"{name} kept what was written"
