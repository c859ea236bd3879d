"""Many tokens are drawn on a device with the bits that numpy draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samebits.backends.contract import DTYPES
from samebits.backends.platform import accelerator
from samebits.backends.problem import DATA_NAMES, Geometry, Mask, Problem, Request
from samebits.harness import batch, drawing
from samebits.harness.batch import request_keys_values, request_queries
from samebits.harness.dataset import Role, shaped, values_at
from samebits.harness.drawing import drawn_values, is_drawn_here
from samebits.harness.philox import philox_words

CPU = torch.device("cpu")
DEVICES = sorted({"cpu", accelerator().device})
KINDS = [data for data in DATA_NAMES if is_drawn_here(data, 1 << 40, CPU)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("key", [0, 1, 2**64 - 1, 0xFEDCBA9876543210F123456789ABCDEF])
@pytest.mark.parametrize("first_count", [0, 2**32 - 3, (2**32 + 131072) * 4096])
def test_words_are_those_of_numpys_generator(device: str, key: int, first_count: int) -> None:
    wanted = np.random.Philox(key=key, counter=first_count).random_raw(400)
    found = philox_words(key, first_count, 100, torch.device(device))
    np.testing.assert_array_equal(found.cpu().numpy().view(np.uint64), wanted)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("role", [Role.QUERY, Role.KEY, Role.VALUE])
@pytest.mark.parametrize("data", KINDS)
def test_values_are_those_that_numpy_draws(
    data: str, role: Role, dtype: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several times over, the last of them not in full.
    monkeypatch.setattr(drawing, "_COUNTS_ON_HOST", 64)
    monkeypatch.setattr(drawing, "_COUNTS_ON_DEVICE", 64)
    for shape, start in (((3, 7), -2), ((2, 64), 100)):
        drawn = drawn_values(5, 9, role, shape, start, start + 30, data, dtype, torch.device(device))
        first = values_at(5, 9, role, shape, 0, 1)
        wanted = shaped(values_at(5, 9, role, shape, start, start + 30), lambda first=first: first, role, data, dtype)  # type: ignore[misc]
        expected = torch.tensor(wanted).to(DTYPES[dtype])
        assert drawn.dtype is expected.dtype
        bits = torch.int32 if dtype == "fp32" else torch.int16
        assert torch.equal(drawn.cpu().view(bits), expected.view(bits)), f"{shape} from {start}"


@pytest.mark.parametrize("data", DATA_NAMES)
def test_a_request_has_the_same_bits_however_it_is_drawn(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request(3, 5, 20, encoder_len=4)
    problem = Problem(
        Geometry("test", num_heads=4, num_kv_heads=2, head_dim=32), Mask.CAUSAL, "bf16", (request,), data=data
    )

    def made() -> list[torch.Tensor]:
        tensors = (request_queries(problem, request), *request_keys_values(problem, request))
        return [tensor.view(torch.int16) for tensor in tensors]

    usual = made()
    drawn: list[str] = []

    def watched(*arguments: object) -> torch.Tensor:
        drawn.append("here")
        return drawn_values(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(drawing, "_FEW_ON_HOST", 1)
    monkeypatch.setattr(batch, "drawn_values", watched)
    assert all(map(torch.equal, usual, made())), f"{data} has other bits where it is drawn on its device"
    assert bool(drawn) == (data in KINDS), f"{data} was drawn {len(drawn)} times"
