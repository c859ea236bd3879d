"""Encoder tokens before the keys of self-attention, refused for kernels that read a request's slots from its first."""

from __future__ import annotations

from samebits.backends.contract import AttentionConfig, AttentionMetadata
from samebits.backends.problem import Mask


def refuse_encoder_tokens(label: str, config: AttentionConfig, metadata: AttentionMetadata) -> None:
    """Refuses a batch of self-attention behind encoder tokens. Reads lengths on the host.

    Args:
        label: who refuses it.
        config: gives the mask.
        metadata: of the batch.

    Raises:
        ValueError: a request has encoder tokens before the keys that it attends to.
    """
    if config.mask is Mask.CROSS or metadata.encoder_seq_lens is None:
        return
    encoder_lens = metadata.encoder_seq_lens.tolist()
    if any(encoder_lens):
        raise ValueError(
            f"{label} reads a request's slots from its first, and cannot compute mask {config.mask} behind "
            f"encoder_seq_lens {encoder_lens}; they must be 0"
        )


def refuse_encoder_lengths(label: str, config: AttentionConfig, metadata: AttentionMetadata) -> None:
    """Refuses persistent tensors of self-attention that may come to hold encoder tokens, whatever they hold now.

    Args:
        label: who refuses them.
        config: gives the mask.
        metadata: of persistent tensors.

    Raises:
        ValueError: there are encoder lengths, and the mask is no cross-attention.
    """
    if config.mask is not Mask.CROSS and metadata.encoder_seq_lens is not None:
        raise ValueError(
            f"{label} reads a request's slots from its first, and a graph of mask {config.mask} is given "
            "encoder_seq_lens, which may hold other lengths at a replay; they must be None"
        )
