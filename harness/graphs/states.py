"""Batches that a plan or a graph computes before the one that counts: of the same kind, and like it in nothing else."""

from __future__ import annotations

from dataclasses import replace

from samebits.backends.graph_use import GraphUse
from samebits.backends.problem import Circumstances, Mask, Problem, Request
from samebits.harness.graphs.buffers import DECODER_TOKENS_OF_CROSS, max_encoder_len

# Keys of requests that a relation adds to those of a case begin here.
FIRST_ADDED_KEY = 2_000
# Keys of the other batches' requests begin here, far above those of cases and relations, and their pages lie elsewhere.
FIRST_OTHER_KEY, FIRST_OTHER_PAGE_SEED = 100_000, 100
# Keys that one of the other batches may use.
_KEYS = 1_000
# Lengths are spread by multiples of this prime.
_SPREAD = 37


def other_state(problem: Problem, use: GraphUse, salt: int, num_requests: int, num_tokens: int) -> Problem:
    """A batch of the kind of a problem, with other requests, lengths, pages and contents.

    Args:
        problem: what is computed at last.
        use: its bounds hold for this batch too.
        salt: another batch for each.
        num_requests: requests of the batch.
        num_tokens: query tokens of the batch, divided evenly where the use is not uniform.
    """
    if use.uniform:
        query_lens = [use.max_query_len] * num_requests
    else:
        share, rest = divmod(num_tokens, num_requests)
        query_lens = [share + (index < rest) for index in range(num_requests)]
    requests = (_request(problem, use, salt, index, query_len) for index, query_len in enumerate(query_lens))
    return replace(
        problem,
        requests=tuple(requests),
        layout=replace(problem.layout, page_seed=FIRST_OTHER_PAGE_SEED + salt),
        circumstances=Circumstances(),
    )


def _request(problem: Problem, use: GraphUse, salt: int, index: int, query_len: int) -> Request:
    key = FIRST_OTHER_KEY + _KEYS * salt + index
    # The first is as long as any may be, so that what is too small for it shows; the others are no longer than the
    # problem's.
    longest = max(problem.kv_len(other) for other in problem.requests)
    spare = max(0, longest - query_len)
    kv_len = use.max_seq_len if index == 0 else query_len + _SPREAD * (index + 3 * salt + 1) % (spare + 1)
    causal = problem.mask is not Mask.PER_REQUEST or (index + salt) % 2 == 1
    if problem.mask is Mask.CROSS:
        return Request(key, query_len, DECODER_TOKENS_OF_CROSS, encoder_len=kv_len, causal=causal)
    encoder_len = _SPREAD * (index + salt + 1) % (max_encoder_len(problem) + 1)
    return Request(key, query_len, kv_len - query_len, encoder_len, causal)
