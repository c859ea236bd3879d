// What a call of the linear layer is told.
#pragma once

#include <cstdint>

#include "rows.h"

namespace samebits {

// Mirrored by the ctypes structure in linear.py. The weight and the output are contiguous.
struct LinearCall {
    const void *input, *weight, *bias;  // bias null for none
    void* output;
    LeadingDimensions rows;
    int64_t in_features, out_features;
    int64_t element, num_threads;
    int64_t amx;  // whether bfloat16 is multiplied by AMX
};

}  // namespace samebits
