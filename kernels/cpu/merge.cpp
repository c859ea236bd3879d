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

// Mirrored by the ctypes structure in merge.py.
struct Side {
    const void* output;
    const float* lse;
    int64_t token_stride, head_stride, lse_head_stride;
};

// Mirrored by the ctypes structure in merge.py. Strides count elements.
struct MergeCall {
    Side prefix, suffix;
    void* output;
    float* lse;
    int64_t output_token_stride, output_head_stride, lse_head_stride;
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
        const float prefix_lse = call_.prefix.lse[head * call_.prefix.lse_head_stride + token];
        const float suffix_lse = call_.suffix.lse[head * call_.suffix.lse_head_stride + token];
        float* lse = call_.lse + head * call_.lse_head_stride + token;
        char* output = address(call_.output, token * call_.output_token_stride + head * call_.output_head_stride, size());
        if (prefix_lse == kNothingSeen && suffix_lse == kNothingSeen) {
            std::memset(output, 0, call_.head_dim * size());
            *lse = kNothingSeen;
        } else if (suffix_lse == kNothingSeen) {
            copy(call_.prefix, token, head, output);
            *lse = prefix_lse;
        } else if (prefix_lse == kNothingSeen) {
            copy(call_.suffix, token, head, output);
            *lse = suffix_lse;
        } else {
            *lse = add_weighted(token, head, prefix_lse, suffix_lse, output);
        }
    }

   private:
    static int64_t size() { return size_of(element); }

    static int64_t first_of(const Side& side, int64_t token, int64_t head) {
        return token * side.token_stride + head * side.head_stride;
    }

    // The target may be the source: results are merged into one of the sides.
    void copy(const Side& side, int64_t token, int64_t head, char* output) const {
        std::memmove(output, address(side.output, first_of(side, token, head), size()), call_.head_dim * size());
    }

    float add_weighted(int64_t token, int64_t head, float prefix_lse, float suffix_lse, char* output) {
        // A NaN on either side stays one: the difference from it is NaN.
        const float largest = suffix_lse > prefix_lse ? suffix_lse : prefix_lse;
        float weights[kLanes] = {prefix_lse - largest, suffix_lse - largest};
        store(weights, exp_of_nonpositive(load(weights)));
        const float sum = weights[0] + weights[1];
        widen_row<element>(call_.prefix.output, first_of(call_.prefix, token, head), call_.head_dim, prefix_);
        widen_row<element>(call_.suffix.output, first_of(call_.suffix, token, head), call_.head_dim, suffix_);
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
