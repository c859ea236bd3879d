"""Metadata that contradict themselves, refused for planners that read lengths on the host."""

from __future__ import annotations

from samebits.backends.contract import AttentionConfig, AttentionMetadata


def refuse_contradictions(config: AttentionConfig, metadata: AttentionMetadata) -> None:
    """Refuses a batch whose lengths do not fit one another or its block table. Reads lengths on the host.

    Args:
        config: gives mask and page size.
        metadata: of the batch.

    Raises:
        ValueError: they do not, by which a kernel would read pages that are not the request's.
    """
    sizes = {
        "query_start_loc": len(metadata.query_start_loc) - 1,
        "seq_lens": len(metadata.seq_lens),
        "block_table": len(metadata.block_table),
    }
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} for {size}" for name, size in sizes.items())
        raise ValueError(f"the metadata are for several numbers of requests, {told}; they must agree")
    if (metadata.query_start_loc.diff() < 0).any():
        raise ValueError(f"query_start_loc is {metadata.query_start_loc.tolist()}; it must not descend")
    kv_lens = metadata.kv_lens(config.mask)
    slots = (metadata.kv_starts(config.mask) + kv_lens).masked_fill(kv_lens == 0, 0)
    held = metadata.block_table.shape[1] * config.page_size
    if (slots > held).any():
        raise ValueError(
            f"a request has {int(slots.max())} slots, but block_table has {metadata.block_table.shape[1]} pages of "
            f"{config.page_size} for each; it must hold all of them"
        )
