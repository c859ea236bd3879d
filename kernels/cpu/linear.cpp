// A linear layer whose bits depend on the row and the weight alone.
//
// The elements of a row are divided into chunks of `kChunk`, at fixed positions. A chunk's dot product is sixteen sums
// folded in halves (`score_block` in tile.h, which any number of rows may share); chunks are added in ascending order,
// then the bias, and the sum is rounded once. Rows, features and threads only decide what is computed together. For
// bfloat16 on AMX see amx_linear.h.

#include <algorithm>
#include <cstdint>

#include "amx_linear.h"
#include "elements.h"
#include "linear_call.h"
#include "rows.h"
#include "threads.h"
#include "tile.h"

namespace samebits {
namespace {

// Elements that are summed from zero before they join the sum of the chunks before. It decides bits.
constexpr int kChunk = 256;
// Rows and output features of one task; each block of features is one of keys to `score_block`.
constexpr int kRowTile = 32;
constexpr int kFeatureTile = 4 * kKeyBlock;

struct Workspace {
    ThreadRows input, weight, products, sums;

    void fit() {
        input.fit(kRowTile, kChunk);
        weight.fit(kKeyBlock, kChunk);
        products.fit(kRowTile, kKeyBlock);
        sums.fit(kRowTile, kFeatureTile);
    }
};

template <Element element>
class TileTask {
   public:
    TileTask(const LinearCall& call, int64_t first_row, int64_t first_feature, Workspace& workspace)
        : call_(call),
          workspace_(workspace),
          first_row_(first_row),
          first_feature_(first_feature),
          num_rows_(std::min<int64_t>(kRowTile, call.rows.num_rows() - first_row)),
          num_features_(std::min<int64_t>(kFeatureTile, call.out_features - first_feature)) {}

    void compute() {
        for (int64_t row = 0; row < num_rows_; ++row) std::fill_n(workspace_.sums.row(row), kFeatureTile, 0.0f);
        for (int64_t chunk = 0; chunk < call_.in_features; chunk += kChunk) add_chunk(chunk);
        for (int64_t row = 0; row < num_rows_; ++row) finish(row);
    }

   private:
    // Rows of a chunk lie `padded` floats apart, as `score_block` takes them: a short last chunk closer than others.
    void add_chunk(int64_t chunk) {
        const int64_t count = std::min<int64_t>(kChunk, call_.in_features - chunk);
        const int64_t padded = padded_to_lanes(count);
        float* input = workspace_.input.row(0);
        for (int64_t row = 0; row < num_rows_; ++row)
            widen_row<element>(call_.input, call_.rows.first_of(first_row_ + row) + chunk, count, input + row * padded);
        for (int64_t block = 0; block < num_features_; block += kKeyBlock) add_block(chunk, count, padded, block);
    }

    void add_block(int64_t chunk, int64_t count, int64_t padded, int64_t block) {
        float* weight = workspace_.weight.row(0);
        for (int64_t feature = 0; feature < kKeyBlock; ++feature) {
            // Past the last feature its row is taken again: those products are computed and not used.
            const int64_t row = first_feature_ + std::min(block + feature, num_features_ - 1);
            widen_row<element>(call_.weight, row * call_.in_features + chunk, count, weight + feature * padded);
        }
        float* products = workspace_.products.row(0);
        in_steps_of_four(num_rows_, [&](auto rows, int64_t row) {
            score_block<decltype(rows)::value>(workspace_.input.row(0) + row * padded, weight, padded, 1.0f,
                                               products + row * kKeyBlock, kKeyBlock);
        });
        for (int64_t row = 0; row < num_rows_; ++row) {
            float* sums = workspace_.sums.row(row) + block;
            store(sums, add(load(sums), load(products + row * kKeyBlock)));
        }
    }

    void finish(int64_t row) {
        float* sums = workspace_.sums.row(row);
        if (call_.bias != nullptr) {
            float* bias = workspace_.weight.row(0);
            widen_row<element>(call_.bias, first_feature_, num_features_, bias);
            for (int64_t feature = 0; feature < num_features_; ++feature) sums[feature] += bias[feature];
        }
        round_row<element>(sums, num_features_, call_.output, (first_row_ + row) * call_.out_features + first_feature_);
    }

    const LinearCall& call_;
    Workspace& workspace_;
    const int64_t first_row_, first_feature_, num_rows_, num_features_;
};

template <Element element>
void run(const LinearCall& call) {
    const int64_t row_tiles = (call.rows.num_rows() + kRowTile - 1) / kRowTile;
    const int64_t feature_tiles = (call.out_features + kFeatureTile - 1) / kFeatureTile;
#pragma omp parallel num_threads(call.num_threads)
    {
        const ThreadEnvironment environment;
        static thread_local Workspace workspace;
        workspace.fit();
        // Features outermost: neighbouring tasks read the same weights.
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < row_tiles * feature_tiles; ++i)
            TileTask<element>(call, i % row_tiles * kRowTile, i / row_tiles * kFeatureTile, workspace).compute();
    }
}

#if defined(SAMEBITS_AMX)
void run_amx(const LinearCall& call) {
    static thread_local ThreadRows memory;  // of the calling thread, for all
    memory.fit(1, AmxLinear::packed_floats(call));
    float* packed = memory.row(0);
#pragma omp parallel num_threads(call.num_threads)
    {
        const ThreadEnvironment environment;
        const TileConfiguration tiles;
        for (int64_t row = 0; row < call.rows.num_rows(); row += AmxLinear::kRowPanel) {
            AmxLinear panel(call, row, packed);
#pragma omp for schedule(static)
            for (int64_t block = 0; block < panel.row_blocks(); ++block) panel.pack(block);
            // The loop above ends in a barrier, and so does this one: what was packed is read before the next panel.
#pragma omp for schedule(dynamic, 1)
            for (int64_t feature = 0; feature < call.out_features; feature += AmxLinear::kFeaturePanel)
                panel.multiply(feature);
        }
    }
}
#endif

}  // namespace
}  // namespace samebits

extern "C" __attribute__((visibility("default"))) void samebits_linear(const samebits::LinearCall* call) {
#if defined(SAMEBITS_AMX)
    if (call->amx && static_cast<samebits::Element>(call->element) == samebits::Element::kBfloat16)
        return samebits::run_amx(*call);
#endif
    samebits::with_element(call->element, [&](auto element) { samebits::run<element.value>(*call); });
}

// What linear.py repeats: the size of a call, the elements of a chunk, the rows of a tile.
extern "C" __attribute__((visibility("default"))) void samebits_linear_interface(int64_t interface[3]) {
    interface[0] = sizeof(samebits::LinearCall);
    interface[1] = samebits::kChunk;
    interface[2] = samebits::kRowTile;
}
