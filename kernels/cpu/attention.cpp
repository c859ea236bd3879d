// Paged attention whose bits depend on a row's query and visible keys alone.
//
// Keys are divided into chunks at multiples of `chunk_size`, counted from the request's first attended key. A chunk is
// computed from zero: its own largest score, its own sum, its own weighted sum of values. Chunks are merged in
// ascending order. The arithmetic inside a chunk is that of fma_chunk.h, or for bfloat16 of amx_chunk.h where the
// processor has AMX. None of this knows the batch, the tile that a row shares, the page that a key lies on, or the
// thread that computes; tiles, blocks of rows and tasks only decide what is computed together. A sink is a chunk of its
// own, behind all others: one key whose score is given and whose value is 0.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "amx_chunk.h"
#include "attention_call.h"
#include "chunk.h"
#include "fma_chunk.h"
#include "rows.h"
#include "threads.h"
#include "tile.h"

namespace samebits {
namespace {

// Where the keys `in` of a chunk lie, for the first head.
struct ChunkLocation {
    KeyRange in = {0, 0};
    std::vector<int64_t> keys, values;
};

// What one thread needs for one tile; kept between calls, so that a call allocates nothing.
template <typename Chunk>
struct Workspace {
    struct Head {
        ThreadRows queries, total;
    };
    Chunk chunk;
    ThreadRows sums, quotients;
    ChunkLocation here, next;
    std::vector<Head> heads;

    void fit(const ChunkLayer& layer, int64_t num_heads) {
        chunk.fit(layer);
        sums.fit(kRowBlock, layer.padded_dim() + 2);
        quotients.fit(1, layer.padded_dim());
        for (ChunkLocation* location : {&here, &next}) {
            location->keys.resize(layer.chunk_size);
            location->values.resize(layer.chunk_size);
        }
        if (static_cast<int64_t>(heads.size()) < num_heads) heads.resize(num_heads);
    }
};

// The sums of `num_rows` rows in `num_rows * (padded_dim + 2)` floats.
SoftmaxSums sums_in(float* memory, int64_t num_rows, int64_t padded_dim) {
    float* largest = memory + num_rows * padded_dim;
    return {largest, largest + num_rows, memory};
}

template <typename Chunk>
class TileTask {
   public:
    // For `num_heads` key/value heads from `first_head` on.
    TileTask(const AttentionCall& call, const Task& task, int64_t first_head, int64_t num_heads,
             Workspace<Chunk>& workspace)
        : call_(call),
          task_(task),
          first_head_(first_head),
          end_head_(first_head + num_heads),
          workspace_(workspace),
          layer_(call.layer()),
          padded_dim_(layer_.padded_dim()),
          kv_head_(first_head) {
        workspace.fit(layer_, num_heads);
        for (int64_t row = 0; row < task.num_rows; ++row) {
            visible_[row] = visible_keys(token_of(row));
            seen_by_all_.begin = std::max(seen_by_all_.begin, visible_[row].begin);
            seen_by_all_.end = std::min(seen_by_all_.end, visible_[row].end);
        }
    }

    // Computes the task's chunks, and finishes its rows unless their sums go to the scratch. False when the block table
    // holds a page that does not exist.
    bool compute() {
        for_each_head([&] { load_queries(); });
        for (int64_t chunk = task_.first_chunk; chunk < task_.end_chunk; ++chunk)
            if (!compute_chunk(chunk)) return false;
        if (task_.partials < 0) for_each_head([&] { finish(total()); });
        return true;
    }

    // Merges what other tasks left in the scratch, and finishes the rows.
    void merge() {
        const SoftmaxSums total = this->total();
        for (int64_t chunk = task_.first_chunk; chunk < task_.end_chunk; ++chunk) {
            merge_chunk(chunk, partials_of(chunk), total);
            begin_rows(chunk);
        }
        finish(total);
    }

   private:
    // Calls `body` for each head, which `kv_head_` then is.
    template <typename Body>
    void for_each_head(Body body) {
        for (kv_head_ = first_head_; kv_head_ < end_head_; ++kv_head_) body();
        kv_head_ = first_head_;
    }

    typename Workspace<Chunk>::Head& memory() { return workspace_.heads[kv_head_ - first_head_]; }

    SoftmaxSums total() {
        memory().total.fit(kRowTile, padded_dim_ + 2);
        return sums_in(memory().total.row(0), kRowTile, padded_dim_);
    }

    // Key of the request, from its first attended one on, that a chunk begins with.
    int64_t first_key(int64_t chunk) const { return chunk * call_.chunk_size; }

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
        const int64_t first = first_key(chunk);
        return {std::max<int64_t>(0, visible_[row].begin - first),
                std::min<int64_t>(call_.chunk_size, visible_[row].end - first)};
    }

    SoftmaxSums partials_of(int64_t chunk) const {
        const int64_t index = (chunk - task_.first_chunk) * call_.num_kv_heads + kv_head_;
        return sums_in(call_.partials + task_.partials + index * task_.num_rows * (padded_dim_ + 2), task_.num_rows,
                       padded_dim_);
    }

    void load_queries() {
        int64_t first[kRowTile];
        for (int64_t row = 0; row < task_.num_rows; ++row) {
            const int64_t token = call_.query_starts[task_.request] + token_of(row);
            first[row] = token * call_.query_token_stride + head_of(row) * call_.query_head_stride;
        }
        Chunk::load_queries(layer_, call_.query, first, task_.num_rows, memory().queries);
    }

    // Finds where the chunk's keys in `keys` lie. False when the block table holds a page that does not exist.
    bool locate(int64_t chunk, KeyRange keys, ChunkLocation& location) const {
        const int32_t* pages = call_.block_table + task_.request * call_.block_table_stride;
        const int64_t slot = call_.kv_starts[task_.request] + first_key(chunk) + keys.begin;
        int64_t page_index = slot / call_.page_size;
        int64_t offset = slot % call_.page_size;
        location.in = {0, 0};
        for (int64_t key = keys.begin; key < keys.end; ++page_index, offset = 0) {
            const int64_t page = pages[page_index];
            if (page < 0 || page >= call_.num_pages) return false;
            for (; offset < call_.page_size && key < keys.end; ++offset, ++key) {
                location.keys[key] = page * call_.key_page_stride + offset * call_.key_slot_stride;
                location.values[key] = page * call_.value_page_stride + offset * call_.value_slot_stride;
            }
        }
        location.in = keys;
        return true;
    }

    ChunkPlaces places_of(const ChunkLocation& location, int64_t kv_head) const {
        const int64_t size = size_of(Chunk::kElement);
        return {location.in, location.keys.data(), location.values.data(),
                address(call_.key_cache, kv_head * call_.key_head_stride, size),
                address(call_.value_cache, kv_head * call_.value_head_stride, size)};
    }

    // What each row sees of a chunk, and what any of them does.
    KeyRange look_at(int64_t chunk, KeyRange* visible) const {
        const KeyRange whole = {0, call_.chunk_size};
        if (seen_whole(chunk)) {
            std::fill_n(visible, task_.num_rows, whole);
            return whole;
        }
        for (int64_t row = 0; row < task_.num_rows; ++row) visible[row] = visible_in_chunk(row, chunk);
        return seen_by_any(visible, task_.num_rows);
    }

    bool seen_whole(int64_t chunk) const {
        return seen_by_all_.begin <= first_key(chunk) && first_key(chunk) + call_.chunk_size <= seen_by_all_.end;
    }

    bool compute_chunk(int64_t chunk) {
        KeyRange visible[kRowTile], visible_next[kRowTile];
        const KeyRange seen = look_at(chunk, visible);
        if (seen.empty()) return true;
        if (!locate(chunk, seen, workspace_.here)) return false;
        // What the block table does not tell yet is told when its turn comes.
        const bool last = chunk + 1 == task_.end_chunk;
        locate(chunk + 1, last ? KeyRange{0, 0} : look_at(chunk + 1, visible_next), workspace_.next);
        for_each_head([&] {
            const ChunkPlaces next = kv_head_ + 1 < end_head_ ? places_of(workspace_.here, kv_head_ + 1)
                                                              : places_of(workspace_.next, first_head_);
            workspace_.chunk.compute(layer_, memory().queries, places_of(workspace_.here, kv_head_), next,
                                     task_.num_rows, visible, sums_in(workspace_.sums.row(0), kRowBlock, padded_dim_),
                                     [&](int64_t first_row, int64_t num_rows, SoftmaxSums sums) {
                                         take_rows(chunk, first_row, num_rows, sums);
                                     });
        });
        begin_rows(chunk);
        return true;
    }

    void take_rows(int64_t chunk, int64_t first_row, int64_t num_rows, SoftmaxSums sums) {
        if (task_.partials < 0) {
            merge_rows(chunk, first_row, num_rows, sums, total().from(first_row, padded_dim_));
        } else {
            copy_rows(chunk, first_row, num_rows, sums, partials_of(chunk).from(first_row, padded_dim_));
        }
    }

    // From now on, the rows that see anything of a chunk have sums.
    void begin_rows(int64_t chunk) {
        for (int64_t row = 0; row < task_.num_rows; ++row)
            row_begun_[row] = row_begun_[row] || !visible_in_chunk(row, chunk).empty();
    }

    // A chunk in which a row sees nothing leaves that row as it is. `sums` and `total` begin with the first row.
    void merge_rows(int64_t chunk, int64_t first_row, int64_t num_rows, SoftmaxSums sums, SoftmaxSums total) {
        float largest[kLanes], of_total[kLanes], of_chunk[kLanes];
        for (int64_t row = 0; row < num_rows; ++row) {
            const int64_t lane = row % kLanes;
            if (lane == 0) {
                float of_totals[kLanes] = {}, of_sums[kLanes] = {};
                std::copy_n(total.largest + row, std::min<int64_t>(kLanes, num_rows - row), of_totals);
                std::copy_n(sums.largest + row, std::min<int64_t>(kLanes, num_rows - row), of_sums);
                const MergeFactors factors = merge_factors(load(of_totals), load(of_sums));
                store(largest, factors.largest);
                store(of_total, factors.total);
                store(of_chunk, factors.chunk);
            }
            if (visible_in_chunk(first_row + row, chunk).empty()) continue;
            merge_row(total, !row_begun_[first_row + row], sums, row, padded_dim_, largest[lane], of_total[lane],
                      of_chunk[lane]);
        }
    }

    void merge_chunk(int64_t chunk, SoftmaxSums sums, SoftmaxSums total) {
        merge_rows(chunk, 0, task_.num_rows, sums, total);
    }

    void copy_rows(int64_t chunk, int64_t first_row, int64_t num_rows, SoftmaxSums sums, SoftmaxSums target) const {
        for (int64_t row = 0; row < num_rows; ++row) {
            if (visible_in_chunk(first_row + row, chunk).empty()) continue;
            target.largest[row] = sums.largest[row];
            target.sum[row] = sums.sum[row];
            std::copy_n(sums.weighted + row * padded_dim_, padded_dim_, target.weighted + row * padded_dim_);
        }
    }

    void merge_sinks(SoftmaxSums total) {
        float largest, sum = 1.0f, *weighted = workspace_.sums.row(0);
        std::fill_n(weighted, padded_dim_, 0.0f);
        for (int64_t row = 0; row < task_.num_rows; ++row) {
            largest = call_.sinks[head_of(row)];
            const SoftmaxSums sink = {&largest, &sum, weighted};
            merge_row(total.from(row, padded_dim_), !row_begun_[row], sink, 0, padded_dim_);
        }
    }

    void finish(SoftmaxSums total) {
        if (call_.sinks != nullptr) merge_sinks(total);
        for (int64_t row = 0; row < task_.num_rows; ++row) {
            const int64_t token = call_.query_starts[task_.request] + token_of(row);
            const int64_t first = token * call_.output_token_stride + head_of(row) * call_.output_head_stride;
            const float* weighted = total.weighted + row * padded_dim_;
            float* quotients = workspace_.quotients.row(0);
            const bool has_sums = row_begun_[row] || call_.sinks != nullptr;
            if (has_sums) {
                Chunk::divide_row(weighted, total.sum[row], padded_dim_, quotients);
            } else {
                std::fill_n(quotients, padded_dim_, 0.0f);
            }
            if (call_.streamed)
                stream_row<Chunk::kElement>(quotients, call_.head_dim, call_.output, first);
            else
                round_row<Chunk::kElement>(quotients, call_.head_dim, call_.output, first);
            if (call_.lse == nullptr) continue;
            const double lse = has_sums ? total.largest[row] + std::log(static_cast<double>(total.sum[row]))
                                        : -static_cast<double>(kInfinity);
            call_.lse[head_of(row) * call_.lse_head_stride + token] = canonical(static_cast<float>(lse));
        }
    }

    const AttentionCall& call_;
    const Task& task_;
    const int64_t first_head_, end_head_;
    Workspace<Chunk>& workspace_;
    ChunkLayer layer_;
    const int64_t padded_dim_;
    int64_t kv_head_;
    KeyRange visible_[kRowTile];
    KeyRange seen_by_all_ = {0, std::numeric_limits<int64_t>::max()};
    bool row_begun_[kRowTile] = {};
};

template <typename Chunk>
int64_t run(const AttentionCall& call) {
    std::atomic<int64_t> faulty_request{-1};
#pragma omp parallel num_threads(call.num_threads)
    {
        const ThreadEnvironment environment;
        [[maybe_unused]] const typename Chunk::Environment chunk_environment;
        static thread_local Workspace<Chunk> workspace;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < call.num_tasks; ++i) {
            const Task& task = call.tasks[i];
            if (!TileTask<Chunk>(call, task, task.first_head, task.num_heads, workspace).compute())
                faulty_request = task.request;
        }
        // The loop above ends in a barrier: every sum that is merged here has been written.
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < call.num_merges * call.num_kv_heads; ++i)
            TileTask<Chunk>(call, call.merges[i / call.num_kv_heads], i % call.num_kv_heads, 1, workspace).merge();
        finish_streams();
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
            return samebits::run<samebits::FmaChunk<Element::kFloat32>>(*call);
        case Element::kBfloat16:
#if defined(SAMEBITS_AMX)
            if (call->amx) return samebits::run<samebits::AmxChunk>(*call);
#endif
            return samebits::run<samebits::FmaChunk<Element::kBfloat16>>(*call);
        case Element::kFloat16:
            return samebits::run<samebits::FmaChunk<Element::kFloat16>>(*call);
    }
    return -1;
}

// What attention.py repeats: the size of a call, the rows of a tile and of a block, the lanes.
extern "C" __attribute__((visibility("default"))) void samebits_interface(int64_t interface[4]) {
    interface[0] = sizeof(samebits::AttentionCall);
    interface[1] = samebits::kRowTile;
    interface[2] = samebits::kRowBlock;
    interface[3] = samebits::kLanes;
}
