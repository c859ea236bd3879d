// The softmax of sixteen rows over one chunk, one row in each lane, with weights for the matrix unit.
#pragma once

#include "amx.h"

#if defined(SAMEBITS_AMX)

#include <algorithm>
#include <cstdint>

#include "chunk.h"
#include "exponential.h"
#include "threads.h"

namespace samebits {

// 2^x for x of at most about 0, as 2^floor(x) 2^f: a least-maximum fit of degree 4 to 2^f on [0, 1] with p(0) = 1, of
// an error of 3e-6, 2^-18, of the result. Weights are then rounded to 2^-9 of theirs.
SAMEBITS_INLINE __m512 power_of_two_of_weight(__m512 x) {
    constexpr int kPartAboveFloor = 0x9;  // 0 for an infinity
    const __m512 fraction = _mm512_reduce_ps(x, kPartAboveFloor);
    __m512 p = _mm512_set1_ps(0x1.b7f734p-7f);
    p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0x1.abf868p-5f));
    p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0x1.ee2452p-3f));
    p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0x1.62d6c6p-1f));
    p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, x);  // takes the floor itself
}

// Sixteen pairs of bfloat16, one of each lane, rounded to nearest. The lower bits of a NaN are 0, as it came out of a
// bfloat16 or an instruction, so that the addition leaves it one.
SAMEBITS_INLINE __m512i pair_of(__m512 even, __m512 odd) {
    const __m512i half = _mm512_set1_epi32(0x8000);
    const __m512i rounded_even = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(even), half), 16);
    const __m512i rounded_odd = _mm512_add_epi32(_mm512_castps_si512(odd), half);
    return _mm512_mask_mov_epi16(rounded_even, 0xaaaaaaaa, rounded_odd);
}

class LaneSoftmax {
   public:
    // Of rows of which the first sees `visible[0]`, over `keys`, which are whole groups of thirty-two. Row `i` has its
    // scores in `scores[key * kRowBlock + i]`, as dot products.
    LaneSoftmax(const ScoreRule& rule, KeyRange keys, const KeyRange* visible, int64_t num_rows, float* scores)
        : keys_(keys), scores_(scores), num_rows_(num_rows), scale_(1.0f) {
        if (rule.softcap == 0.0f && rule.scale > 0.0f) {
            scale_ = rule.scale;
        } else {
            finish_scores(rule);
        }
        find_largest(visible);
    }

    // Replaces weights[row][key] by bfloat16 of `exp(score - largest)`; `weights` begins with the first row of sixteen,
    // `row_stride` floats apart. Four sums take a key each in turn, and are folded in halves. Calls
    // `meanwhile` every thirty-two keys, for the matrix unit to be given work.
    template <typename Meanwhile>
    void weigh(float* weights, int64_t row_stride, Meanwhile meanwhile) {
        // -inf - -inf would make NaN of a weight that is 0.
        const __mmask16 above = _mm512_cmp_ps_mask(largest_, _mm512_set1_ps(-kInfinity), _CMP_NEQ_OQ);
        const __m512 log2_e = _mm512_set1_ps(0x1.715476p0f), scale = _mm512_mul_ps(_mm512_set1_ps(scale_), log2_e);
        // Rounded as every score is below, before it is subtracted: the largest one's weight is 1, however large it is.
        const __m512 shift = _mm512_maskz_mul_ps(above, largest_score_, scale);
        __m512 sums[4] = {};
        for (int64_t key = keys_.begin; key < keys_.end; key += kTileDepth) {
            meanwhile();
            __m512i pairs[kTileRows];
#pragma GCC unroll 16
            for (int64_t pair = 0; pair < kTileRows; ++pair) {
                const float* even_score = scores_ + (key + 2 * pair) * kRowBlock;
                const __m512 even_score_in_log2 = _mm512_mul_ps(_mm512_load_ps(even_score), scale);
                const __m512 odd_score_in_log2 = _mm512_mul_ps(_mm512_load_ps(even_score + kRowBlock), scale);
                const __m512 even = power_of_two_of_weight(_mm512_sub_ps(even_score_in_log2, shift));
                const __m512 odd = power_of_two_of_weight(_mm512_sub_ps(odd_score_in_log2, shift));
                sums[2 * pair % 4] = _mm512_add_ps(sums[2 * pair % 4], even);
                sums[2 * pair % 4 + 1] = _mm512_add_ps(sums[2 * pair % 4 + 1], odd);
                pairs[pair] = pair_of(even, odd);
            }
            transpose(pairs);
            for (int64_t row = 0; row < kTileRows; ++row)
                _mm512_store_si512(weights + row * row_stride + key / 2, pairs[row]);
        }
        sum_ = _mm512_add_ps(_mm512_add_ps(sums[0], sums[2]), _mm512_add_ps(sums[1], sums[3]));
    }

    // Stores the largest score and the sum of weights of each row.
    void store_sums(float* largest, float* sum) const {
        const __mmask16 rows = static_cast<__mmask16>((1u << num_rows_) - 1u);
        _mm512_mask_storeu_ps(largest, rows, largest_);
        _mm512_mask_storeu_ps(sum, rows, sum_);
    }

   private:
    // Scores that are more than a product with a positive number.
    void finish_scores(const ScoreRule& rule) {
        for (int64_t key = keys_.begin; key < keys_.end; ++key) {
            Lanes score = multiply(load(scores_ + key * kRowBlock), splat(rule.scale));
            if (rule.softcap != 0.0f)
                score = multiply(splat(rule.softcap), tanh(multiply(score, splat(rule.inverse_softcap))));
            store(scores_ + key * kRowBlock, score);
        }
    }

    // Where not all rows see a key, makes its score -inf for those that do not.
    void find_largest(const KeyRange* visible) {
        alignas(64) int32_t begins[kTileRows] = {}, ends[kTileRows] = {};
        KeyRange seen_by_all = keys_;
        for (int64_t row = 0; row < num_rows_; ++row) {
            seen_by_all.begin = std::max(seen_by_all.begin, visible[row].begin);
            seen_by_all.end = std::min(seen_by_all.end, visible[row].end);
            begins[row] = static_cast<int32_t>(visible[row].begin);
            ends[row] = static_cast<int32_t>(std::max(visible[row].begin, visible[row].end));
        }
        const __m512i begin = _mm512_load_si512(begins), count = _mm512_sub_epi32(_mm512_load_si512(ends), begin);
        const int64_t first_whole = std::min(seen_by_all.begin, keys_.end);
        const int64_t end_whole = std::max(seen_by_all.end, first_whole);

        // Several, since each instruction waits for the one before on the same.
        __m512 largest[4];
        for (__m512& some : largest) some = _mm512_set1_ps(-kInfinity);
        const auto look_at = [&](int64_t key, int64_t which) {
            // Of a NaN and another number the instruction takes the second.
            largest[which] = _mm512_max_ps(_mm512_load_ps(scores_ + key * kRowBlock), largest[which]);
        };
        const auto mask = [&](int64_t key) {
            float* score = scores_ + key * kRowBlock;
            const __m512i place = _mm512_sub_epi32(_mm512_set1_epi32(static_cast<int32_t>(key)), begin);
            const __mmask16 sees = _mm512_cmplt_epu32_mask(place, count);
            _mm512_store_ps(score, _mm512_mask_loadu_ps(_mm512_set1_ps(-kInfinity), sees, score));
            look_at(key, 0);
        };
        for (int64_t key = keys_.begin; key < first_whole; ++key) mask(key);
        int64_t key = first_whole;
        for (; key + 4 <= end_whole; key += 4)
            for (int64_t i = 0; i < 4; ++i) look_at(key + i, i);
        for (; key < end_whole; ++key) look_at(key, 0);
        for (key = end_whole; key < keys_.end; ++key) mask(key);
        const __m512 all = _mm512_max_ps(_mm512_max_ps(largest[0], largest[1]), _mm512_max_ps(largest[2], largest[3]));
        largest_score_ = all;
        largest_ = _mm512_mul_ps(all, _mm512_set1_ps(scale_));
    }

    const KeyRange keys_;
    float* const scores_;
    const int64_t num_rows_;
    float scale_;
    __m512 largest_score_, largest_, sum_;
};

}  // namespace samebits

#endif
