// A linear layer in bfloat16 on the matrix unit: each sum from zero, thirty-two elements of the row after thirty-two.
//
// The weight's rows are read as they lie, so results are computed transposed, a row for each feature and a column for
// each row of the input. Elements behind the last of a row are zeros of ours, never what lies there. Blocks of rows, of
// features and of elements only decide what the caches hold together.
#pragma once

#include "amx.h"

#if defined(SAMEBITS_AMX)

#include <algorithm>
#include <cstdint>

#include "elements.h"
#include "linear_call.h"
#include "rows.h"
#include "threads.h"

namespace samebits {

class AmxLinear {
   public:
    // Rows that are packed at once, and features of one task.
    static constexpr int64_t kRowPanel = 256, kFeaturePanel = 256;
    // Rows and features of one product.
    static constexpr int64_t kBlock = 32;

    // `packed` has room for `packed_floats` of them.
    AmxLinear(const LinearCall& call, int64_t first_row, float* packed)
        : call_(call),
          first_row_(first_row),
          num_rows_(std::min(kRowPanel, call.rows.num_rows() - first_row)),
          packed_(packed) {}

    static int64_t packed_floats(const LinearCall& call) {
        const int64_t rows = std::min(kRowPanel, call.rows.num_rows());
        return blocks_of(rows) * steps_of(call) * 2 * kTileFloats;
    }
    int64_t row_blocks() const { return blocks_of(num_rows_); }

    // Packs one block of rows: two tiles for each step, whose columns are rows of the input.
    void pack(int64_t block) const {
        const auto* input = static_cast<const uint16_t*>(call_.input);
        for (int64_t step = 0; step < steps_of(call_); ++step) {
            const __mmask32 present = first_of_32(call_.in_features - step * kTileDepth);
            for (int64_t group = 0; group < 2; ++group) {
                __m512i rows[kTileRows];
#pragma GCC unroll 16
                for (int64_t i = 0; i < kTileRows; ++i) {
                    const int64_t row = block * kBlock + group * kTileRows + i;
                    const bool exists = row < num_rows_;
                    const int64_t first = exists ? call_.rows.first_of(first_row_ + row) + step * kTileDepth : 0;
                    rows[i] = _mm512_maskz_loadu_epi16(exists ? present : 0, input + first);
                }
                transpose(rows);
                float* tile = input_tile(block, step) + group * kTileFloats;
                for (int64_t i = 0; i < kTileRows; ++i) _mm512_store_si512(tile + i * kLanes, rows[i]);
            }
        }
    }

    // The results of some features for all rows of the panel, all of whose blocks have been packed.
    void multiply(int64_t first_feature) {
        const int64_t features = std::min(kFeaturePanel, call_.out_features - first_feature);
        // As many elements of all rows as the second-level cache holds, for each block of features in turn.
        const int64_t most_steps = std::min(steps_of(call_), kCachedTiles / (2 * row_blocks()));
        weight_.fit(2 * most_steps, kTileFloats);
        sums_.fit(kFeaturePanel, row_blocks() * kBlock);
        for (int64_t step = 0; step < steps_of(call_); step += most_steps)
            for (int64_t block = 0; block < features; block += kBlock) {
                const int64_t steps = std::min(most_steps, steps_of(call_) - step);
                const TileOperand<2> weight = find_weight(first_feature + block, step, steps);
                for (int64_t rows = 0; rows < row_blocks(); ++rows) add_block(weight, rows, block, step, steps);
            }
        for (int64_t row = 0; row < num_rows_; row += kTileRows)
            for (int64_t feature = 0; feature < features; feature += kTileRows)
                finish(row, first_feature, feature, std::min<int64_t>(kTileRows, features - feature));
    }

   private:
    static constexpr int64_t kTileFloats = kTileRows * kLanes;
    static constexpr int64_t kCachedTiles = 1024;
    static constexpr int64_t kAhead = 8;  // steps
    static int64_t blocks_of(int64_t rows) { return (rows + kBlock - 1) / kBlock; }
    // At least one: a sum of nothing is 0.
    static int64_t steps_of(const LinearCall& call) {
        return std::max<int64_t>(1, (call.in_features + kTileDepth - 1) / kTileDepth);
    }

    float* input_tile(int64_t block, int64_t step) const {
        return packed_ + (block * steps_of(call_) + step) * 2 * kTileFloats;
    }

    // Two rows of tiles of the weight: where it lies, if all of it exists.
    TileOperand<2> find_weight(int64_t first_feature, int64_t first_step, int64_t steps) {
        const bool whole = first_feature + kBlock <= call_.out_features &&
                           (first_step + steps) * kTileDepth <= call_.in_features;
        TileOperand<2> weight;
        if (whole) {
            for (int i = 0; i < 2; ++i) {
                const int64_t first = (first_feature + i * kTileRows) * call_.in_features + first_step * kTileDepth;
                weight.first[i] = static_cast<const char*>(call_.weight) + 2 * first;
                weight.row_stride[i] = 2 * call_.in_features;
                weight.step[i] = kTileBytes;
            }
            return weight;
        }
        copy_weight(first_feature, first_step, steps);
        for (int i = 0; i < 2; ++i) {
            weight.first[i] = reinterpret_cast<const char*>(weight_.row(i * steps));
            weight.row_stride[i] = kTileBytes;
            weight.step[i] = kTileRows * kTileBytes;
        }
        return weight;
    }

    // Copies them, a tile for each step; zeros for features and elements that do not exist.
    void copy_weight(int64_t first_feature, int64_t first_step, int64_t steps) {
        const auto* weight = static_cast<const uint16_t*>(call_.weight);
        for (int64_t i = 0; i < kBlock; ++i) {
            const bool exists = first_feature + i < call_.out_features;
            const uint16_t* row = weight + (exists ? first_feature + i : 0) * call_.in_features;
            for (int64_t step = 0; step < steps; ++step) {
                const int64_t element = (first_step + step) * kTileDepth;
                const __mmask32 present = exists ? first_of_32(call_.in_features - element) : 0;
                float* tile = weight_.row(i / kTileRows * steps + step);
                _mm512_store_si512(tile + i % kTileRows * kLanes, _mm512_maskz_loadu_epi16(present, row + element));
            }
        }
    }

    void add_block(const TileOperand<2>& weight, int64_t rows, int64_t feature, int64_t first_step, int64_t steps) {
        TileOperand<2> input;
        for (int i = 0; i < 2; ++i) {
            input.first[i] = reinterpret_cast<const char*>(input_tile(rows, first_step) + i * kTileFloats);
            input.row_stride[i] = kTileBytes;
            input.step[i] = 2 * kTileRows * kTileBytes;
        }
        const int64_t columns = row_blocks() * kBlock;
        const TileSums sums = {sums_.row(feature) + rows * kBlock, columns, kTileRows * columns, kTileRows};
        using Product = TileProduct<2, 2>;
        if (first_step == 0) {
            Product::begin();
        } else {
            Product::resume(sums);
        }
        // The first block of rows brings the weight to the caches.
        const bool asks = rows == 0 && weight.step[0] == kTileBytes;
        for (int64_t step = 0; step < steps; ++step) {
            if (asks) ask_for(weight, step + kAhead);
            Product::add(weight, input, step);
        }
        Product::end(sums);
    }

    // Asks memory for two tiles of the weight where it lies: rows are too far apart for the processor to foresee them.
    static void ask_for(const TileOperand<2>& weight, int64_t step) {
        for (int i = 0; i < 2; ++i)
            for (int64_t row = 0; row < kTileRows; ++row)
                __builtin_prefetch(weight.first[i] + row * weight.row_stride[i] + step * kTileBytes);
    }

    // Sixteen rows and as many features, with the bias, rounded.
    void finish(int64_t first_row, int64_t panel, int64_t feature, int64_t features) {
        __m512i results[kTileRows];
#pragma GCC unroll 16
        for (int64_t i = 0; i < kTileRows; ++i) results[i] = _mm512_load_si512(sums_.row(feature + i) + first_row);
        transpose(results);
        alignas(64) float bias[kLanes] = {}, row[kLanes];
        if (call_.bias != nullptr) widen_row<Element::kBfloat16>(call_.bias, panel + feature, features, bias);
        for (int64_t i = 0; i < std::min<int64_t>(kTileRows, num_rows_ - first_row); ++i) {
            const __m512 sum = _mm512_castsi512_ps(results[i]);
            _mm512_store_ps(row, call_.bias == nullptr ? sum : _mm512_add_ps(sum, _mm512_load_ps(bias)));
            const int64_t first = (first_row_ + first_row + i) * call_.out_features + panel + feature;
            round_row<Element::kBfloat16>(row, features, call_.output, first);
        }
    }

    const LinearCall& call_;
    const int64_t first_row_, num_rows_;
    float* const packed_;
    static inline thread_local ThreadRows weight_, sums_;
};

}  // namespace samebits

#endif
