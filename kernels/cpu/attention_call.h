// What a call of paged attention is told.
#pragma once

#include <cstdint>

#include "chunk.h"

namespace samebits {

// Rows of a request and chunks of its keys, for one thread to compute for some key/value heads.
struct Task {
    int64_t request, first_row, num_rows;
    int64_t first_chunk, end_chunk;
    int64_t partials;  // offset in the scratch of the first chunk's sums for head 0; -1 to merge at once
    // Key/value heads that one thread computes in turn, chunk by chunk: rows of few queries wait for memory, where the
    // heads of a token lie side by side. What is merged, is merged for each head by itself.
    int64_t first_head, num_heads;
};

// Mirrored by the ctypes structure in attention.py. Strides count elements.
struct AttentionCall {
    const void *query, *key_cache, *value_cache;
    void* output;
    float* lse;          // null when it is not asked for
    const float* sinks;  // null for none
    int64_t query_token_stride, query_head_stride;
    int64_t key_page_stride, key_slot_stride, key_head_stride;
    int64_t value_page_stride, value_slot_stride, value_head_stride;
    int64_t output_token_stride, output_head_stride, lse_head_stride;
    const int32_t* block_table;
    int64_t block_table_stride, num_pages;
    const int64_t *query_starts, *query_lens, *kv_starts, *kv_lens, *causal;
    const Task *tasks, *merges;
    int64_t num_tasks, num_merges;
    float* partials;
    int64_t element, page_size, num_kv_heads, group_size, head_dim, chunk_size;
    int64_t window;  // 0 for none
    int64_t num_threads;
    int64_t streamed;  // whether the output is more than caches hold, and is written past them
    int64_t amx;  // whether bfloat16 is multiplied by AMX
    double scale, softcap;  // softcap 0 for none

    ChunkLayer layer() const {
        ScoreRule rule;
        rule.scale = static_cast<float>(scale);
        rule.softcap = static_cast<float>(softcap);
        rule.inverse_softcap = softcap == 0 ? 0.0f : static_cast<float>(1.0 / softcap);
        return {head_dim, chunk_size, rule};
    }
};

}  // namespace samebits
