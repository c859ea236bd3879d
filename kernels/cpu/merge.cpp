// Two partial attention results merged by their log-sum-exps, row by row: a row is one head of one token.
//
// The side with the larger log-sum-exp has weight 1 and the other exp(difference). Sums and the division are in float,
// rounded once. A side that saw no key (its log-sum-exp is -inf) has no weight: the other side's bits are copied, and
// what it holds is never multiplied, so it may be NaN.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "elements.h"
#include "exponential.h"
#include "rows.h"
#include "threads.h"

namespace samebits {
namespace {

// The result of attention to some keys. Mirrored by the ctypes structure in merge.py. Strides count elements.
struct Result {
    Heads output;
    float* lse;
    int64_t lse_head_stride;

    float& lse_of(int64_t token, int64_t head) const { return lse[head * lse_head_stride + token]; }
};

// Mirrored by the ctypes structure in merge.py.
struct MergeCall {
    Result prefix, suffix, merged;
    int64_t num_tokens, num_heads, head_dim;
    int64_t element, num_threads;
};

template <Element element>
class RowMerge {
   public:
    RowMerge(const MergeCall& call, ThreadRows& memory) : call_(call) {
        memory.fit(2, call.head_dim);
        prefix_ = memory.row(0);
        suffix_ = memory.row(1);
    }

    void merge(int64_t token, int64_t head) {
        constexpr float kNothingSeen = -std::numeric_limits<float>::infinity();
        const float prefix_lse = call_.prefix.lse_of(token, head);
        const float suffix_lse = call_.suffix.lse_of(token, head);
        float& lse = call_.merged.lse_of(token, head);
        char* output = row_of(call_.merged, token, head);
        if (prefix_lse == kNothingSeen && suffix_lse == kNothingSeen) {
            std::memset(output, 0, call_.head_dim * size());
            lse = kNothingSeen;
        } else if (suffix_lse == kNothingSeen) {
            copy(call_.prefix, token, head, output);
            lse = prefix_lse;
        } else if (prefix_lse == kNothingSeen) {
            copy(call_.suffix, token, head, output);
            lse = suffix_lse;
        } else {
            lse = add_weighted(token, head, prefix_lse, suffix_lse, output);
        }
    }

   private:
    static int64_t size() { return size_of(element); }

    static char* row_of(const Result& result, int64_t token, int64_t head) {
        return address(result.output.elements, result.output.first_of(token, head), size());
    }

    // The target may be the source: results are merged into one of the sides.
    void copy(const Result& side, int64_t token, int64_t head, char* output) const {
        std::memmove(output, row_of(side, token, head), call_.head_dim * size());
    }

    float add_weighted(int64_t token, int64_t head, float prefix_lse, float suffix_lse, char* output) {
        // A NaN on either side stays one: the difference from it is NaN.
        const float largest = suffix_lse > prefix_lse ? suffix_lse : prefix_lse;
        float weights[kLanes] = {prefix_lse - largest, suffix_lse - largest};
        store(weights, exp_of_nonpositive(load(weights)));
        const float sum = weights[0] + weights[1];
        widen_row<element>(row_of(call_.prefix, token, head), 0, call_.head_dim, prefix_);
        widen_row<element>(row_of(call_.suffix, token, head), 0, call_.head_dim, suffix_);
        for (int64_t d = 0; d < call_.head_dim; d += kLanes) {
            const Lanes prefix = multiply(splat(weights[0]), load(prefix_ + d));
            store(prefix_ + d, divide(fma(splat(weights[1]), load(suffix_ + d), prefix), splat(sum)));
        }
        round_row<element>(prefix_, call_.head_dim, output, 0);
        return canonical(static_cast<float>(largest + std::log(static_cast<double>(sum))));
    }

    const MergeCall& call_;
    float *prefix_, *suffix_;
};

template <Element element>
void run(const MergeCall& call) {
#pragma omp parallel num_threads(call.num_threads)
    {
        const ThreadEnvironment environment;
        static thread_local ThreadRows memory;
        RowMerge<element> row(call, memory);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < call.num_tokens * call.num_heads; ++i) row.merge(i / call.num_heads, i % call.num_heads);
    }
}

}  // namespace
}  // namespace samebits

extern "C" __attribute__((visibility("default"))) void samebits_merge(const samebits::MergeCall* call) {
    samebits::with_element(call->element, [&](auto element) { samebits::run<element.value>(*call); });
}

extern "C" __attribute__((visibility("default"))) int64_t samebits_merge_call_size() {
    return sizeof(samebits::MergeCall);
}
