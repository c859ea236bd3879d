// The arithmetic of one chunk of keys in float32, on every processor and for every element.
//
// Lane `j % 16` of the sum belongs to key `j`, values are added in the order of keys, and a dot product is sixteen sums
// over the head's elements, folded in halves. A key that a row cannot see is never multiplied into it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "chunk.h"
#include "elements.h"
#include "threads.h"
#include "tile.h"

namespace samebits {

template <Element element>
class FmaChunk {
   public:
    static constexpr Element kElement = element;
    // What a thread sets up around its chunks.
    struct Environment {};

    void fit(const ChunkLayer& layer) {
        block_.fit(kKeyBlock, layer.padded_dim());
        scores_.fit(kRowBlock, layer.chunk_size);
    }

    // `first` is the index of each row's first element.
    static void load_queries(const ChunkLayer& layer, const void* query, const int64_t* first, int64_t num_rows,
                             ThreadRows& queries) {
        queries.fit(kRowTile, layer.padded_dim());
        for (int64_t row = 0; row < num_rows; ++row)
            widen_row<element>(query, first[row], layer.head_dim, queries.row(row));
    }

    // Calls `take` with the first row and the number of rows of each block that sees anything, and with `sums`, which
    // then hold theirs. Weighted values stand as `divide_row` reads them. Asks memory for `next`.
    template <typename Take>
    void compute(const ChunkLayer& layer, ThreadRows& queries, const ChunkPlaces& places, const ChunkPlaces& next,
                 int64_t num_rows, const KeyRange* visible, const SoftmaxSums& sums, Take take) {
        Foresight<element> foresight(next, layer.head_dim);
        for (RowBlock block = row_block(0, num_rows, visible); block.num_rows > 0;
             block = row_block(block.first + kRowBlock, num_rows, visible)) {
            compute_block(layer, queries, places, block, visible + block.first, sums, foresight);
            take(block.first, block.num_rows, sums);
        }
    }

    // One row of weighted values, divided by its sum of weights.
    static void divide_row(const float* weighted, float sum, int64_t padded_dim, float* quotients) {
        for (int64_t d = 0; d < padded_dim; d += kLanes)
            store(quotients + d, divide(load(weighted + d), splat(sum)));
    }

   private:
    void compute_block(const ChunkLayer& layer, ThreadRows& queries, const ChunkPlaces& places,
                       const RowBlock& block_of_rows, const KeyRange* visible, const SoftmaxSums& sums,
                       Foresight<element>& foresight) {
        const int64_t padded_dim = layer.padded_dim(), num_rows = block_of_rows.num_rows;
        const KeyRange seen = block_of_rows.seen;
        const int64_t first_block = seen.begin / kKeyBlock * kKeyBlock;
        for (int64_t block = first_block; block < seen.end; block += kKeyBlock) {
            foresight.ask_for(kKeyBlock / 2);
            const float* keys = load_block(layer, places.key_cache, places.keys, block, seen);
            in_steps_of_four(num_rows, [&](auto rows, int64_t row) {
                score_block<decltype(rows)::value>(queries.row(block_of_rows.first + row), keys, padded_dim,
                                                   layer.rule.scale, scores_.row(row) + block, layer.chunk_size);
            });
        }
        for (int64_t row = 0; row < num_rows; ++row)
            if (!visible[row].empty())
                softmax_row(scores_.row(row), visible[row], layer.rule, sums.largest + row, sums.sum + row);
        std::fill_n(sums.weighted, num_rows * padded_dim, 0.0f);
        for (int64_t block = first_block; block < seen.end; block += kKeyBlock) {
            foresight.ask_for(kKeyBlock / 2);
            const float* values = load_block(layer, places.value_cache, places.values, block, seen);
            in_steps_of_four(num_rows, [&](auto rows, int64_t row) {
                accumulate_rows<decltype(rows)::value>(layer, visible + row, block, row, values, sums);
            });
        }
    }

    // One block of keys or values as floats, those that are seen only.
    const float* load_block(const ChunkLayer& layer, const void* cache, const int64_t* offsets, int64_t block,
                            KeyRange seen) {
        const int64_t end = std::min<int64_t>(block + kKeyBlock, seen.end);
        for (int64_t key = std::max(block, seen.begin); key < end; ++key)
            widen_row<element>(cache, offsets[key], layer.head_dim, block_.row(key - block));
        return block_.row(0);
    }

    // Takes `kRows` rows together where they see the same keys of the block, else one after another.
    template <int kRows>
    void accumulate_rows(const ChunkLayer& layer, const KeyRange* visible, int64_t block, int64_t row,
                         const float* values, const SoftmaxSums& sums) {
        const KeyRange first = in_block(visible[0], block);
        bool same = true;
        for (int i = 1; i < kRows; ++i) {
            const KeyRange other = in_block(visible[i], block);
            same = same && other.begin == first.begin && other.end == first.end;
        }
        const int64_t padded_dim = layer.padded_dim();
        const float* weights = scores_.row(row) + block;
        float* weighted = sums.weighted + row * padded_dim;
        if (same) {
            accumulate_values<kRows>(weights, layer.chunk_size, values, padded_dim, first, weighted);
            return;
        }
        for (int i = 0; i < kRows; ++i)
            accumulate_values<1>(weights + i * layer.chunk_size, layer.chunk_size, values, padded_dim,
                                 in_block(visible[i], block), weighted + i * padded_dim);
    }

    static KeyRange in_block(KeyRange visible, int64_t block) {
        return {std::max<int64_t>(0, visible.begin - block), std::min<int64_t>(kKeyBlock, visible.end - block)};
    }

    ThreadRows block_, scores_;
};

}  // namespace samebits
