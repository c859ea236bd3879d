// What each thread of a kernel needs around its loop.
#pragma once

#include <cfenv>
#include <cstdint>
#include <vector>

#include "lanes.h"

namespace samebits {

// The default floating-point environment: to nearest, subnormal numbers kept. A caller may have set another for its own
// thread, and the result must not depend on which thread computes.
class ThreadEnvironment {
   public:
    ThreadEnvironment() {
        std::fegetenv(&caller_);
        std::fesetenv(FE_DFL_ENV);
    }
    ~ThreadEnvironment() { std::fesetenv(&caller_); }
    ThreadEnvironment(const ThreadEnvironment&) = delete;
    ThreadEnvironment& operator=(const ThreadEnvironment&) = delete;

   private:
    std::fenv_t caller_;
};

SAMEBITS_INLINE int64_t padded_to_lanes(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// Rows of floats, each padded to whole lanes and starting at a cache line. Kept between calls by a thread, they are
// allocated once.
class ThreadRows {
   public:
    // Room for `rows` rows of `count` floats. What they held is not kept.
    void fit(int64_t rows, int64_t count) {
        stride_ = padded_to_lanes(count);
        lines_.resize(rows * stride_ / kLanes);
    }
    float* row(int64_t index) { return lines_.data()->values + index * stride_; }

   private:
    struct alignas(64) Line {
        float values[kLanes];
    };
    std::vector<Line> lines_;
    int64_t stride_ = 0;
};

}  // namespace samebits
