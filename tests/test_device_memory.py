"""Each worker's share of a GPU's memory."""

from __future__ import annotations

import pytest

from samebits.harness.device_memory import MOST_BYTES, share_of, workers_on_gpu
from samebits.harness.records import UnusableInput

H100 = 80 << 30


def test_shares_fit_beside_one_another_and_are_no_larger_than_the_most() -> None:
    for workers in (1, 2, 8, 9, 12, 16, 20):
        share = share_of(H100, workers)
        assert 2 << 30 <= share < MOST_BYTES, f"{workers} workers have {share} bytes each"
        assert share * workers < 0.9 * H100, f"{workers} workers hold more than the GPU has to share"


def test_too_many_workers_are_told_how_many_there_may_be() -> None:
    with pytest.raises(UnusableInput, match=r"48 workers share a GPU of 80 GiB, .* give at most 20 with -n 20$"):
        share_of(H100, 48)


def test_a_small_gpu_has_room_for_one() -> None:
    assert share_of(4 << 30, 1) > 0


def test_workers_of_other_gpus_do_not_count() -> None:
    assert workers_on_gpu({"PYTEST_XDIST_WORKER_COUNT": "12"}) == 12
    assert workers_on_gpu({"PYTEST_XDIST_WORKER_COUNT": "12", "SAMEBITS_WORKERS_ON_GPU": "3"}) == 3
    assert workers_on_gpu({}) == 1
