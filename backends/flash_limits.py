"""Sizes that all builds of FlashAttention take."""

from __future__ import annotations


def head_dim_supported(head_dim: int) -> bool:
    """As `FlashAttentionBackend.supports_head_size` of vLLM has it, and torch's and the packages' own checks."""
    return head_dim % 8 == 0 and head_dim <= 256


def page_size_supported(page_size: int) -> bool:
    """As `FlashAttentionBackend.get_supported_kernel_block_sizes` of vLLM has it."""
    return page_size % 16 == 0
