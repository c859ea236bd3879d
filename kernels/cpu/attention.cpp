// Paged attention whose bits depend on a row's query and visible keys alone.
//
// Keys are divided into chunks at multiples of `chunk_size`, counted from the request's first attended key. A chunk is
// computed from zero: its own largest score, its own sum, its own weighted sum of values. Chunks are merged in
// ascending order. Inside a chunk, lane `j % 16` of the sum belongs to key `j`, values are added in the order of keys,
// and a dot product is sixteen sums over the head's elements, folded in halves. None of this knows the batch, the tile
// that a row shares, the page that a key lies on, or the thread that computes; tiles, blocks of rows and tasks only
// decide what is computed together. A key that a row cannot see is never multiplied into it, so it may be NaN. A sink is
// a chunk of its own, behind all others: one key whose score is given and whose value is 0.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "elements.h"
#include "lanes.h"
#include "threads.h"
#include "tile.h"

namespace samebits {
namespace {

// Rows of queries that share the keys they load. A row is one query head of one token, tokens outermost.
constexpr int kRowTile = 32;
// How many keys ahead of their use memory is asked for them.
constexpr int kPrefetchDistance = 16;

// Rows of a request and chunks of its keys, for one thread to compute for one key/value head.
struct Task {
    int64_t request, first_row, num_rows;
    int64_t first_chunk, end_chunk;
    int64_t partials;  // offset in the scratch of the first chunk's sums for head 0; -1 to merge at once
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
    double scale, softcap;  // softcap 0 for none

    int64_t padded_dim() const { return padded_to_lanes(head_dim); }
};

// What one thread needs for one tile; kept between calls, so that a call allocates nothing.
struct Workspace {
    ThreadRows queries, block, scores, chunk, total;
    std::vector<int64_t> key_offsets, value_offsets;

    void fit(const AttentionCall& call) {
        const int64_t dim = call.padded_dim();
        queries.fit(kRowTile, dim);
        block.fit(kKeyBlock, dim);
        scores.fit(kRowTile, call.chunk_size);
        chunk.fit(kRowTile, dim + 2);
        total.fit(kRowTile, dim + 2);
        key_offsets.resize(call.chunk_size);
        value_offsets.resize(call.chunk_size);
    }
};

// The sums of `num_rows` rows in `num_rows * (padded_dim + 2)` floats.
SoftmaxSums sums_in(float* memory, int64_t num_rows, int64_t padded_dim) {
    float* largest = memory + num_rows * padded_dim;
    return {largest, largest + num_rows, memory};
}

template <Element element>
class TileTask {
   public:
    TileTask(const AttentionCall& call, const Task& task, int64_t kv_head, Workspace& workspace)
        : call_(call), task_(task), kv_head_(kv_head), workspace_(workspace), padded_dim_(call.padded_dim()) {
        rule_.scale = static_cast<float>(call.scale);
        rule_.softcap = static_cast<float>(call.softcap);
        rule_.inverse_softcap = call.softcap == 0 ? 0.0f : static_cast<float>(1.0 / call.softcap);
        for (int64_t row = 0; row < task.num_rows; ++row) visible_[row] = visible_keys(token_of(row));
    }

    // Computes the task's chunks, and finishes its rows unless their sums go to the scratch. False when the block table
    // holds a page that does not exist.
    bool compute() {
        load_queries();
        const SoftmaxSums total = sums_in(workspace_.total.row(0), task_.num_rows, padded_dim_);
        const bool to_scratch = task_.partials >= 0;
        for (int64_t chunk = task_.first_chunk; chunk < task_.end_chunk; ++chunk) {
            const SoftmaxSums sums =
                to_scratch ? partials_of(chunk) : sums_in(workspace_.chunk.row(0), task_.num_rows, padded_dim_);
            if (!compute_chunk(chunk, sums)) return false;
            if (!to_scratch) merge_chunk(chunk, sums, total);
        }
        if (!to_scratch) finish(total);
        return true;
    }

    // Merges what other tasks left in the scratch, and finishes the rows.
    void merge() {
        const SoftmaxSums total = sums_in(workspace_.total.row(0), task_.num_rows, padded_dim_);
        for (int64_t chunk = task_.first_chunk; chunk < task_.end_chunk; ++chunk)
            merge_chunk(chunk, partials_of(chunk), total);
        finish(total);
    }

   private:
    int64_t token_of(int64_t row) const { return (task_.first_row + row) / call_.group_size; }
    int64_t head_of(int64_t row) const {
        return kv_head_ * call_.group_size + (task_.first_row + row) % call_.group_size;
    }

    // Queries are aligned to the end of the keys: the last one sees them all.
    KeyRange visible_keys(int64_t token) const {
        const int64_t kv_len = call_.kv_lens[task_.request];
        if (!call_.causal[task_.request]) return {0, kv_len};
        const int64_t position = kv_len - call_.query_lens[task_.request] + token;
        const int64_t begin = call_.window ? std::max<int64_t>(0, position - call_.window + 1) : 0;
        return {begin, position + 1};
    }

    // A row's visible keys inside a chunk, counted from the chunk's first key.
    KeyRange visible_in_chunk(int64_t row, int64_t chunk) const {
        const int64_t first = chunk * call_.chunk_size;
        return {std::max<int64_t>(0, visible_[row].begin - first),
                std::min<int64_t>(call_.chunk_size, visible_[row].end - first)};
    }

    SoftmaxSums partials_of(int64_t chunk) const {
        const int64_t index = (chunk - task_.first_chunk) * call_.num_kv_heads + kv_head_;
        return sums_in(call_.partials + task_.partials + index * task_.num_rows * (padded_dim_ + 2), task_.num_rows,
                       padded_dim_);
    }

    void load_queries() {
        for (int64_t row = 0; row < task_.num_rows; ++row) {
            const int64_t token = call_.query_starts[task_.request] + token_of(row);
            const int64_t first = token * call_.query_token_stride + head_of(row) * call_.query_head_stride;
            widen_row<element>(call_.query, first, call_.head_dim, workspace_.queries.row(row));
        }
    }

    // Where the chunk's keys in `keys` lie in the caches.
    bool locate(int64_t chunk, KeyRange keys) {
        const int32_t* pages = call_.block_table + task_.request * call_.block_table_stride;
        const int64_t slot = call_.kv_starts[task_.request] + chunk * call_.chunk_size + keys.begin;
        int64_t page_index = slot / call_.page_size;
        int64_t offset = slot % call_.page_size;
        for (int64_t key = keys.begin; key < keys.end; ++page_index, offset = 0) {
            const int64_t page = pages[page_index];
            if (page < 0 || page >= call_.num_pages) return false;
            for (; offset < call_.page_size && key < keys.end; ++offset, ++key) {
                workspace_.key_offsets[key] = page * call_.key_page_stride + offset * call_.key_slot_stride +
                                              kv_head_ * call_.key_head_stride;
                workspace_.value_offsets[key] = page * call_.value_page_stride + offset * call_.value_slot_stride +
                                                kv_head_ * call_.value_head_stride;
            }
        }
        return true;
    }

    // Asks for a key, or for the value that is read as many steps after the last key. Must be inlined: GCC drops the
    // call of a function that does nothing but prefetch.
    SAMEBITS_INLINE void prefetch(const void* cache, const std::vector<int64_t>& offsets, int64_t key, KeyRange keys) {
        if (key < keys.end) {
            prefetch_row<element>(cache, offsets[key], call_.head_dim);
        } else if (cache == call_.key_cache && key - (keys.end - keys.begin) < keys.end) {
            const int64_t value = workspace_.value_offsets[key - (keys.end - keys.begin)];
            prefetch_row<element>(call_.value_cache, value, call_.head_dim);
        }
    }

    // One block of keys or values as floats, those in `keys` only.
    const float* load_block(const void* cache, const std::vector<int64_t>& offsets, int64_t block, KeyRange keys) {
        for (int64_t key = std::max(block, keys.begin); key < std::min<int64_t>(block + kKeyBlock, keys.end); ++key) {
            prefetch(cache, offsets, key + kPrefetchDistance, keys);
            widen_row<element>(cache, offsets[key], call_.head_dim, workspace_.block.row(key - block));
        }
        return workspace_.block.row(0);
    }

    bool compute_chunk(int64_t chunk, SoftmaxSums sums) {
        KeyRange seen = {call_.chunk_size, 0};
        for (int64_t row = 0; row < task_.num_rows; ++row) {
            const KeyRange visible = visible_in_chunk(row, chunk);
            if (visible.empty()) continue;
            seen = {std::min(seen.begin, visible.begin), std::max(seen.end, visible.end)};
        }
        if (seen.empty()) return true;
        if (!locate(chunk, seen)) return false;

        const int64_t first_block = seen.begin / kKeyBlock * kKeyBlock;
        for (int64_t block = first_block; block < seen.end; block += kKeyBlock) {
            const float* keys = load_block(call_.key_cache, workspace_.key_offsets, block, seen);
            in_steps_of_four(task_.num_rows, [&](auto rows, int64_t row) {
                score_block<decltype(rows)::value>(workspace_.queries.row(row), keys, padded_dim_, rule_.scale,
                                                   workspace_.scores.row(row) + block, call_.chunk_size);
            });
        }
        for (int64_t row = 0; row < task_.num_rows; ++row) {
            const KeyRange visible = visible_in_chunk(row, chunk);
            if (!visible.empty())
                softmax_row(workspace_.scores.row(row), visible, rule_, sums.largest + row, sums.sum + row);
        }
        std::fill_n(sums.weighted, task_.num_rows * padded_dim_, 0.0f);
        for (int64_t block = first_block; block < seen.end; block += kKeyBlock) {
            const float* values = load_block(call_.value_cache, workspace_.value_offsets, block, seen);
            in_steps_of_four(task_.num_rows, [&](auto rows, int64_t row) {
                accumulate_rows<decltype(rows)::value>(chunk, block, row, values, sums);
            });
        }
        return true;
    }

    // Takes `kRows` rows together where they see the same keys of the block, else one after another.
    template <int kRows>
    void accumulate_rows(int64_t chunk, int64_t block, int64_t row, const float* values, SoftmaxSums sums) {
        const KeyRange first = visible_in_block(row, chunk, block);
        bool same = true;
        for (int i = 1; i < kRows; ++i) {
            const KeyRange other = visible_in_block(row + i, chunk, block);
            same = same && other.begin == first.begin && other.end == first.end;
        }
        const float* weights = workspace_.scores.row(row) + block;
        float* weighted = sums.weighted + row * padded_dim_;
        if (same) {
            accumulate_values<kRows>(weights, call_.chunk_size, values, padded_dim_, first, weighted);
            return;
        }
        for (int i = 0; i < kRows; ++i)
            accumulate_values<1>(weights + i * call_.chunk_size, call_.chunk_size, values, padded_dim_,
                                 visible_in_block(row + i, chunk, block), weighted + i * padded_dim_);
    }

    KeyRange visible_in_block(int64_t row, int64_t chunk, int64_t block) const {
        const KeyRange visible = visible_in_chunk(row, chunk);
        return {std::max<int64_t>(0, visible.begin - block), std::min<int64_t>(kKeyBlock, visible.end - block)};
    }

    // A chunk in which a row sees nothing leaves that row as it is.
    void merge_chunk(int64_t chunk, SoftmaxSums sums, SoftmaxSums total) {
        for (int64_t row = 0; row < task_.num_rows; ++row) {
            if (visible_in_chunk(row, chunk).empty()) continue;
            merge_row(total, !row_begun_[row], sums, row, padded_dim_);
            row_begun_[row] = true;
        }
    }

    void merge_sinks(SoftmaxSums total) {
        const SoftmaxSums sink = sums_in(workspace_.chunk.row(0), task_.num_rows, padded_dim_);
        std::fill_n(sink.weighted, task_.num_rows * padded_dim_, 0.0f);
        for (int64_t row = 0; row < task_.num_rows; ++row) {
            sink.largest[row] = call_.sinks[head_of(row)];
            sink.sum[row] = 1.0f;
            merge_row(total, !row_begun_[row], sink, row, padded_dim_);
            row_begun_[row] = true;
        }
    }

    void finish(SoftmaxSums total) {
        if (call_.sinks != nullptr) merge_sinks(total);
        for (int64_t row = 0; row < task_.num_rows; ++row) {
            const int64_t token = call_.query_starts[task_.request] + token_of(row);
            const int64_t first = token * call_.output_token_stride + head_of(row) * call_.output_head_stride;
            const float* weighted = total.weighted + row * padded_dim_;
            for (int64_t d = 0; d < call_.head_dim; ++d) {
                const float value = row_begun_[row] ? weighted[d] / total.sum[row] : 0.0f;
                store_rounded(call_.output, first + d, value, element);
            }
            if (call_.lse == nullptr) continue;
            const double lse = row_begun_[row] ? total.largest[row] + std::log(static_cast<double>(total.sum[row]))
                                               : -static_cast<double>(kInfinity);
            call_.lse[head_of(row) * call_.lse_head_stride + token] = canonical(static_cast<float>(lse));
        }
    }

    const AttentionCall& call_;
    const Task& task_;
    const int64_t kv_head_;
    Workspace& workspace_;
    const int64_t padded_dim_;
    ScoreRule rule_;
    KeyRange visible_[kRowTile];
    bool row_begun_[kRowTile] = {};
};

template <Element element>
int64_t run(const AttentionCall& call) {
    std::atomic<int64_t> faulty_request{-1};
#pragma omp parallel num_threads(call.num_threads)
    {
        const ThreadEnvironment environment;
        static thread_local Workspace workspace;
        workspace.fit(call);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < call.num_tasks * call.num_kv_heads; ++i) {
            const Task& task = call.tasks[i / call.num_kv_heads];
            if (!TileTask<element>(call, task, i % call.num_kv_heads, workspace).compute())
                faulty_request = task.request;
        }
        // The loop above ends in a barrier: every sum that is merged here has been written.
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < call.num_merges * call.num_kv_heads; ++i)
            TileTask<element>(call, call.merges[i / call.num_kv_heads], i % call.num_kv_heads, workspace).merge();
    }
    return faulty_request;
}

}  // namespace
}  // namespace samebits

// Returns -1, or a request whose block table holds a page that does not exist; its output is then undefined.
extern "C" __attribute__((visibility("default"))) int64_t samebits_attention(const samebits::AttentionCall* call) {
    using samebits::Element;
    switch (static_cast<Element>(call->element)) {
        case Element::kFloat32:
            return samebits::run<Element::kFloat32>(*call);
        case Element::kBfloat16:
            return samebits::run<Element::kBfloat16>(*call);
        case Element::kFloat16:
            return samebits::run<Element::kFloat16>(*call);
    }
    return -1;
}

// What attention.py repeats: the size of a call, the rows of a tile, the lanes.
extern "C" __attribute__((visibility("default"))) void samebits_interface(int64_t interface[3]) {
    interface[0] = sizeof(samebits::AttentionCall);
    interface[1] = samebits::kRowTile;
    interface[2] = samebits::kLanes;
}
