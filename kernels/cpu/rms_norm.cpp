// Normalisation by the root mean square, row by row.
//
// The squares of a row are added like the products of a linear layer: chunks of `kChunk` elements at fixed positions,
// each sixteen sums folded in halves, one chunk after another. Only the row enters its result.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "elements.h"
#include "rows.h"
#include "threads.h"

namespace samebits {
namespace {

// Elements that are summed from zero before they join the sum of the chunks before. It decides bits.
constexpr int kChunk = 256;

// Mirrored by the ctypes structure in rms_norm.py. The output is contiguous.
struct RmsNormCall {
    const void *input, *weight;
    void* output;
    LeadingDimensions rows;
    int64_t size;
    int64_t element, num_threads;
    int64_t streamed;  // whether the output is more than caches hold, and is written past them
    double epsilon;
};

// Of `padded_size` elements, zeros behind the row's last.
float sum_of_squares(const float* row, int64_t padded_size) {
    float total = 0.0f;
    for (int64_t chunk = 0; chunk < padded_size; chunk += kChunk) {
        Lanes sums = splat(0.0f);
        for (int64_t i = chunk; i < std::min(chunk + kChunk, padded_size); i += kLanes)
            sums = fma(load(row + i), load(row + i), sums);
        total += sum_of_lanes(sums);
    }
    return total;
}

template <Element element>
void run(const RmsNormCall& call) {
    const int64_t padded_size = padded_to_lanes(call.size);
#pragma omp parallel num_threads(call.num_threads)
    {
        const ThreadEnvironment environment;
        static thread_local ThreadRows memory;
        memory.fit(2, call.size);
        float *weight = memory.row(0), *row = memory.row(1);
        widen_row<element>(call.weight, 0, call.size, weight);
#pragma omp for schedule(static)
        for (int64_t index = 0; index < call.rows.num_rows(); ++index) {
            widen_row<element>(call.input, call.rows.first_of(index), call.size, row);
            const float mean_square = sum_of_squares(row, padded_size) / static_cast<float>(call.size);
            // One division for the row: those of its elements would take longer than to read and write them.
            const float factor = 1.0f / std::sqrt(mean_square + static_cast<float>(call.epsilon));
            const int64_t next = call.rows.first_of(std::min(index + 1, call.rows.num_rows() - 1));
            for (int64_t first = 0; first < call.size; first += kChunk) {
                const int64_t count = std::min<int64_t>(kChunk, call.size - first);
                // The next row is read while this one is written.
                prefetch_row<element>(call.input, next + first, count);
                for (int64_t i = first; i < first + count; i += kLanes)
                    store(row + i, multiply(multiply(load(row + i), splat(factor)), load(weight + i)));
                if (!call.streamed)
                    round_row<element>(row + first, count, call.output, index * call.size + first);
                else
                    stream_row<element>(row + first, count, call.output, index * call.size + first);
            }
        }
        finish_streams();
    }
}

}  // namespace
}  // namespace samebits

extern "C" __attribute__((visibility("default"))) void samebits_rms_norm(const samebits::RmsNormCall* call) {
    samebits::with_element(call->element, [&](auto element) { samebits::run<element.value>(*call); });
}

// What rms_norm.py repeats: the size of a call, the elements of a chunk.
extern "C" __attribute__((visibility("default"))) void samebits_rms_norm_interface(int64_t interface[2]) {
    interface[0] = sizeof(samebits::RmsNormCall);
    interface[1] = samebits::kChunk;
}
