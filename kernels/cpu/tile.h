// The arithmetic of one chunk of keys for a few rows of queries, on floats that lie densely in memory.
//
// A function here may be given any number of rows: each row's operations and their order are the same, so rows can be
// taken together for speed in whatever way suits the caller.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "exponential.h"
#include "lanes.h"

namespace samebits {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Keys that are scored together. A block starts at a multiple of it inside its chunk.
constexpr int kKeyBlock = kLanes;

// Keys `begin` to `end` (exclusive), counted from a chunk's first.
struct KeyRange {
    int64_t begin, end;
    bool empty() const { return begin >= end; }
};

// The softmax of some rows over some keys, before the division: per row the largest score, the sum of
// `exp(score - largest)`, and the sum of values under those weights, `[rows, padded_dim]`.
struct SoftmaxSums {
    float *largest, *sum, *weighted;

    SoftmaxSums from(int64_t row, int64_t padded_dim) const {
        return {largest + row, sum + row, weighted + row * padded_dim};
    }
};

// How scores follow from dot products.
struct ScoreRule {
    float scale;
    float softcap, inverse_softcap;  // softcap 0 for none
};

// Calls `body` with the number of items as a compile-time constant, in steps of 4, 2 and 1.
template <typename Body>
SAMEBITS_INLINE void in_steps_of_four(int64_t count, Body body) {
    int64_t first = 0;
    for (; first + 4 <= count; first += 4) body(std::integral_constant<int, 4>{}, first);
    if (first + 2 <= count) {
        body(std::integral_constant<int, 2>{}, first);
        first += 2;
    }
    if (first < count) body(std::integral_constant<int, 1>{}, first);
}

// Scores of `kRows` queries and one block of keys: scores[row * scores_stride + key].
template <int kRows>
inline void score_block(const float* queries, const float* keys, int64_t padded_dim, float scale, float* scores,
                        int64_t scores_stride) {
    constexpr int kKeys = kLanes / kRows;
    for (int first_key = 0; first_key < kKeyBlock; first_key += kKeys) {
        Lanes products[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) products[i] = splat(0.0f);
        for (int64_t d = 0; d < padded_dim; d += kLanes) {
            Lanes query[kRows];
#pragma GCC unroll 16
            for (int row = 0; row < kRows; ++row) query[row] = load(queries + row * padded_dim + d);
#pragma GCC unroll 16
            for (int key = 0; key < kKeys; ++key) {
                const Lanes loaded = load(keys + (first_key + key) * padded_dim + d);
#pragma GCC unroll 16
                for (int row = 0; row < kRows; ++row)
                    products[row * kKeys + key] = fma(query[row], loaded, products[row * kKeys + key]);
            }
        }
        float dots[kLanes];
        store(dots, multiply(sums_of_lanes(products), splat(scale)));
        for (int row = 0; row < kRows; ++row)
            std::memcpy(scores + row * scores_stride + first_key, dots + row * kKeys, kKeys * sizeof(float));
    }
}

// Replaces one row's scores by weights, 0 where a key is not visible. `visible` is not empty.
inline void softmax_row(float* scores, KeyRange visible, const ScoreRule& rule, float* largest, float* sum) {
    const int64_t first_block = visible.begin / kKeyBlock * kKeyBlock;
    Lanes largest_lanes = splat(-kInfinity);
    for (int64_t block = first_block; block < visible.end; block += kKeyBlock) {
        Lanes score = load(scores + block);
        if (rule.softcap != 0.0f)
            score = multiply(splat(rule.softcap), tanh(multiply(score, splat(rule.inverse_softcap))));
        score = select_lanes(visible.begin - block, visible.end - block, score, splat(-kInfinity));
        store(scores + block, score);
        largest_lanes = maximum(largest_lanes, score);
    }
    *largest = largest_lane(largest_lanes);
    // -inf - -inf would make NaN of a weight that is 0.
    const Lanes shift = splat(*largest == -kInfinity ? 0.0f : *largest);
    Lanes sums = splat(0.0f);
    for (int64_t block = first_block; block < visible.end; block += kKeyBlock) {
        const Lanes weight = exp_of_nonpositive(subtract(load(scores + block), shift));
        store(scores + block, weight);
        sums = add(sums, weight);
    }
    *sum = sum_of_lanes(sums);
}

// Adds the values of keys `keys.begin` to `keys.end`, in this order, to `kRows` rows of weighted sums.
// `weights` and `values` are those of key 0.
template <int kRows>
inline void accumulate_values(const float* weights, int64_t weights_stride, const float* values, int64_t padded_dim,
                              KeyRange keys, float* weighted) {
    in_steps_of_four(padded_dim / kLanes, [&](auto vectors, int64_t first_vector) {
        constexpr int kVectors = decltype(vectors)::value;
        const int64_t d = first_vector * kLanes;
        Lanes sums[kRows][kVectors];
#pragma GCC unroll 16
        for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 16
            for (int i = 0; i < kVectors; ++i) sums[row][i] = load(weighted + row * padded_dim + d + i * kLanes);
        for (int64_t key = keys.begin; key < keys.end; ++key) {
            Lanes value[kVectors];
#pragma GCC unroll 16
            for (int i = 0; i < kVectors; ++i) value[i] = load(values + key * padded_dim + d + i * kLanes);
#pragma GCC unroll 16
            for (int row = 0; row < kRows; ++row) {
                const Lanes weight = splat(weights[row * weights_stride + key]);
#pragma GCC unroll 16
                for (int i = 0; i < kVectors; ++i) sums[row][i] = fma(weight, value[i], sums[row][i]);
            }
        }
#pragma GCC unroll 16
        for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 16
            for (int i = 0; i < kVectors; ++i) store(weighted + row * padded_dim + d + i * kLanes, sums[row][i]);
    });
}

// What the sums of two sets of keys are multiplied by before they are added, one row in each lane.
struct MergeFactors {
    Lanes largest, total, chunk;
};

inline MergeFactors merge_factors(Lanes total_largest, Lanes chunk_largest) {
    const Lanes largest = maximum(total_largest, chunk_largest);
    const Lanes shift = for_each_register([&](int i) {
        return largest.part[i] == splat_register(-kInfinity) ? splat_register(0.0f) : largest.part[i];
    });
    return {largest, exp_of_nonpositive(subtract(total_largest, shift)),
            exp_of_nonpositive(subtract(chunk_largest, shift))};
}

// Merges one row of a later chunk, which is not empty, into the row of the chunks before it.
inline void merge_row(SoftmaxSums total, bool total_empty, SoftmaxSums chunk, int64_t row, int64_t padded_dim,
                      float largest, float total_factor, float chunk_factor) {
    float* total_weighted = total.weighted + row * padded_dim;
    const float* chunk_weighted = chunk.weighted + row * padded_dim;
    if (total_empty) {
        total.largest[row] = chunk.largest[row];
        total.sum[row] = chunk.sum[row];
        std::memcpy(total_weighted, chunk_weighted, padded_dim * sizeof(float));
        return;
    }
    total.largest[row] = largest;
    const Lanes of_total = splat(total_factor), of_chunk = splat(chunk_factor);
    float sum[kLanes];
    store(sum, fma(splat(chunk.sum[row]), of_chunk, multiply(splat(total.sum[row]), of_total)));
    total.sum[row] = sum[0];
    for (int64_t d = 0; d < padded_dim; d += kLanes)
        store(total_weighted + d,
              fma(load(chunk_weighted + d), of_chunk, multiply(load(total_weighted + d), of_total)));
}

// The same of a row by itself.
inline void merge_row(SoftmaxSums total, bool total_empty, SoftmaxSums chunk, int64_t row, int64_t padded_dim) {
    const MergeFactors factors = merge_factors(splat(total.largest[row]), splat(chunk.largest[row]));
    float largest[kLanes], of_total[kLanes], of_chunk[kLanes];
    store(largest, factors.largest);
    store(of_total, factors.total);
    store(of_chunk, factors.chunk);
    merge_row(total, total_empty, chunk, row, padded_dim, largest[0], of_total[0], of_chunk[0]);
}

}  // namespace samebits
