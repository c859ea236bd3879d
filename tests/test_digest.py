"""One digest for the same bits, another for any others, on every device."""

from __future__ import annotations

import hashlib

import pytest
import torch

from samebits.backends.platform import accelerator
from samebits.harness.digest import digest_of_bits, folded

# Of more bytes than are hashed as they are, which fill no run of words.
MANY = (torch.arange(600_001, dtype=torch.int64) * 40503 % 65521).to(torch.int16)
# What they come to. It may change only with the baselines, which hold such digests.
DIGEST_OF_MANY = "c21696ed41c84015ce6914c04095d57d"


def test_few_bytes_are_hashed_as_they_are() -> None:
    tensors = [torch.arange(6, dtype=torch.float32).view(2, 3), torch.tensor([-0.0], dtype=torch.bfloat16)]
    content = tensors[0].numpy().tobytes() + b"\x00\x80"
    assert digest_of_bits(tensors) == hashlib.blake2b(content, digest_size=16).hexdigest()


@pytest.mark.parametrize("device", sorted({"cpu", accelerator().device}))
def test_many_bytes_have_one_digest_on_every_device(device: str) -> None:
    assert digest_of_bits([MANY.to(device)]) == DIGEST_OF_MANY


@pytest.mark.parametrize("size", [7, 1 << 20], ids=["few", "many"])
def test_strides_and_divisions_do_not_matter(size: int) -> None:
    tensor = torch.arange(4 * size, dtype=torch.int16).view(4, size)
    strided = tensor.t().contiguous().t()
    assert strided.stride() != tensor.stride()
    assert digest_of_bits([strided]) == digest_of_bits([tensor]), "a tensor of other strides has another digest"
    assert digest_of_bits(list(tensor)) == digest_of_bits([tensor]), "a divided tensor has another digest"
    one = torch.ones(5, 5)[2:3, 3:4].t()
    assert digest_of_bits([one]) == digest_of_bits([torch.ones(1)]), "one element out of many has another digest"


def test_nothing_has_a_digest() -> None:
    assert digest_of_bits([]) == digest_of_bits([torch.empty(0, 4)]) == hashlib.blake2b(digest_size=16).hexdigest()


def changed(place: int, by: int) -> torch.Tensor:
    other = MANY.clone()
    other[place] ^= by
    return other


def swapped(one: int, other: int) -> torch.Tensor:
    found = MANY.clone()
    found[one], found[other] = MANY[other], MANY[one]
    return found


OTHERS = {
    "the first bit": changed(0, 1),
    "the last sign": changed(-1, -(2**15)),
    "two neighbours": swapped(1000, 1001),
    "two words of one run": swapped(4, 400),
    "two runs": swapped(0, 500_000),
    "one zero more": torch.cat([MANY, torch.zeros(1, dtype=torch.int16)]),
    "one element less": MANY[:-1],
}


@pytest.mark.parametrize("what", OTHERS)
def test_many_bytes_that_differ_have_other_digests(what: str) -> None:
    assert not torch.equal(OTHERS[what], MANY), f"{what} is no change"
    assert digest_of_bits([OTHERS[what]]) != digest_of_bits([MANY]), f"{what} does not show"


def test_every_changed_word_changes_both_sums_of_its_run() -> None:
    words = torch.zeros(4096, dtype=torch.int64)
    before = folded(words.view(torch.uint8))
    assert before.shape == (2, 2), "4096 words are two runs, each of which has two sums"
    for bit in range(64):
        words.zero_()
        words[77] = 1 << bit if bit < 63 else -(2**63)
        differs = folded(words.view(torch.uint8)) != before
        assert differs.tolist() == [[True, True], [False, False]], f"bit {bit} of a word of the first run"


def test_equal_words_at_other_places_do_not_cancel() -> None:
    """A sum without the place in it, or an exclusive or, would not see two equal words move."""
    words = torch.zeros(2048, dtype=torch.int64)
    seen = set()
    for place in range(0, 2048, 64):
        words.zero_()
        words[place] = words[2047 - place] = 12345
        seen.add(tuple(folded(words.view(torch.uint8)).flatten().tolist()))
    assert len(seen) == 32, f"32 tensors have {len(seen)} different sums"
