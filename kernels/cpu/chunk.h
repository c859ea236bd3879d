// What the arithmetic of one chunk is told: of the layer, of the rows that share the chunk, and of its keys.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "elements.h"
#include "threads.h"
#include "tile.h"

namespace samebits {

// Rows of queries of one task, for which keys are located once. A row is one query head of one token, tokens outermost.
constexpr int kRowTile = 256;
// Rows that are computed together.
constexpr int kRowBlock = 32;

// The same for all chunks of a call.
struct ChunkLayer {
    int64_t head_dim, chunk_size;
    ScoreRule rule;

    int64_t padded_dim() const { return padded_to_lanes(head_dim); }
};

// Where the keys `in` of a chunk and their values lie: index of each one's first element, counted from the first of the
// head in its cache. Keys are counted from the chunk's first.
struct ChunkPlaces {
    KeyRange in;
    const int64_t *keys, *values;
    const void *key_cache, *value_cache;
};

// Asks memory for keys and values that will be read next, a few at a time: a processor waits for memory that it has
// asked too much of. They go to the second-level cache, as the first has no room for what is read so much later.
template <Element element>
class Foresight {
   public:
    Foresight(const ChunkPlaces& places, int64_t head_dim)
        : places_(places), head_dim_(head_dim), key_(places.in.begin) {}

    // Must be inlined: GCC drops the call of a function that does nothing but prefetch.
    SAMEBITS_INLINE void ask_for(int64_t count) {
        for (const int64_t end = std::min(key_ + count, places_.in.end); key_ < end; ++key_) {
            prefetch_row<element>(places_.key_cache, places_.keys[key_], head_dim_);
            prefetch_row<element>(places_.value_cache, places_.values[key_], head_dim_);
        }
    }

   private:
    const ChunkPlaces places_;
    const int64_t head_dim_;
    int64_t key_;
};

// The keys of a chunk that any of some rows sees, which may see none.
inline KeyRange seen_by_any(const KeyRange* visible, int64_t num_rows) {
    KeyRange seen = {std::numeric_limits<int64_t>::max(), 0};
    for (int64_t row = 0; row < num_rows; ++row) {
        if (visible[row].empty()) continue;
        seen = {std::min(seen.begin, visible[row].begin), std::max(seen.end, visible[row].end)};
    }
    return seen;
}

// Rows that are computed together, and the keys that any of them sees.
struct RowBlock {
    int64_t first, num_rows;
    KeyRange seen;
};

// The first block from row `first` on that sees anything; of no rows when there is none.
inline RowBlock row_block(int64_t first, int64_t num_rows, const KeyRange* visible) {
    for (; first < num_rows; first += kRowBlock) {
        const int64_t rows = std::min<int64_t>(kRowBlock, num_rows - first);
        const KeyRange seen = seen_by_any(visible + first, rows);
        if (!seen.empty()) return {first, rows, seen};
    }
    return {num_rows, 0, {0, 0}};
}

inline bool all_same(const KeyRange* visible, int64_t num_rows) {
    return std::all_of(visible, visible + num_rows, [&](const KeyRange& other) {
        return other.begin == visible->begin && other.end == visible->end;
    });
}

}  // namespace samebits
