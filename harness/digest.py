"""One digest for the bits of many tensors: the same for the same bits on every device.

Few bytes are hashed as they are, by BLAKE2b on the host. Many are folded first, where they are, and the host reads
1/1024 of them. Folding takes wrapping int64 arithmetic alone, which gives the same bits everywhere, in whatever order a
device adds up: of each run of words, the sum of what a bijection of 64 bits makes of each word, keyed by the place of
the word. So one changed word always changes a sum, and two tensors that differ in more have the same sums by chance
alone; there are two sums under two keys, so that chance is 2^-128. Nobody is expected to look for such a pair, as one
might who wanted to deceive: the sums are no cryptographic hash (Bellare and Micciancio, "A new paradigm for
collision-free hashing: incrementality at reduced cost", EUROCRYPT '97, say how large they would have to be).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch

# What is no dearer to copy and to hash than to fold.
_FEW_BYTES = 1 << 20
_WORD_BYTES = 8
# Words that come to one sum under each key.
_RUN = 2048
# Of the finaliser of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA '14).
_STEP = 0x9E3779B97F4A7C15 - 2**64
_FACTORS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
_KEYS = (0x243F6A8885A308D3, 0x13198A2E03707344)


def digest_of_bits(tensors: Iterable[torch.Tensor]) -> str:
    """Digest of all bits of some tensors, in their order: 32 hexadecimal digits.

    Args:
        tensors: of any dtypes and strides, all on one device. Their shapes do not enter.
    """
    parts = [_bytes_of(tensor) for tensor in tensors]
    digest = hashlib.blake2b(digest_size=16)
    if parts:
        content = torch.cat(parts)
        if content.numel() > _FEW_BYTES:
            digest.update(content.numel().to_bytes(_WORD_BYTES, "little"))
            content = folded(content).view(torch.uint8).flatten()
        digest.update(content.cpu().numpy().data)
    return digest.hexdigest()


def folded(content: torch.Tensor) -> torch.Tensor:
    """Sums of runs of words of 8 bytes, the last of them filled up with zeros.

    Args:
        content: uint8 `[n]`, contiguous.

    Returns:
        int64 `[runs, 2]`, on the same device.
    """
    words = torch.nn.functional.pad(content, (0, -content.numel() % (_RUN * _WORD_BYTES))).view(torch.int64)
    place = torch.arange(1, words.numel() + 1, dtype=torch.int64, device=content.device) * _STEP
    sums = [_mixed(_mixed(place ^ key).bitwise_xor_(words)).view(-1, _RUN).sum(dim=1) for key in _KEYS]
    return torch.stack(sums, dim=1)


def _mixed(words: torch.Tensor) -> torch.Tensor:
    """The finaliser of SplitMix64: a bijection of 64 bits, in which each bit depends on all."""
    words = (words ^ _shifted(words, 30)).mul_(_FACTORS[0])
    words = words.bitwise_xor_(_shifted(words, 27)).mul_(_FACTORS[1])
    return words.bitwise_xor_(_shifted(words, 31))


def _shifted(words: torch.Tensor, count: int) -> torch.Tensor:
    """Unsigned words shifted to the right."""
    return (words >> count).bitwise_and_(2 ** (64 - count) - 1)


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """All bytes of a tensor in the order of its elements: a view where that is theirs in memory."""
    # A tensor of one element counts as contiguous whatever its strides, which a view as bytes would trip over.
    return tensor.contiguous().as_strided((tensor.numel(),), (1,)).view(torch.uint8)
