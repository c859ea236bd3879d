// The arithmetic of one chunk of bfloat16 keys on the matrix unit.
//
// Scores are computed transposed, a row for each key and a column for each row of queries: keys are then read as they
// lie in the cache, and a softmax takes sixteen rows at once, one in each lane. Four sums of weights take a key each in
// turn, and are folded in halves. Weights are rounded to bfloat16, and values are added in groups of thirty-two keys at
// multiples of thirty-two. An element of a product knows nothing of the other rows and columns, so a row has the same
// bits whatever rows it shares the tiles with.
//
// A weight of 0 meets the values of keys that a row does not see but another does. That adds 0, unless a value is no
// finite number; then the rows are taken apart by what they see.
#pragma once

#include "amx_softmax.h"

#if defined(SAMEBITS_AMX)

#include <algorithm>
#include <cstdint>
#include <vector>

#include "chunk.h"
#include "elements.h"
#include "threads.h"

namespace samebits {

class AmxChunk {
   public:
    static constexpr Element kElement = Element::kBfloat16;
    // What a thread sets up around its chunks.
    using Environment = TileConfiguration;

    void fit(const ChunkLayer& layer) {
        const int64_t keys = padded_chunk(layer);
        keys_.fit(keys, dot_dim(layer) / 2);
        key_tiles_.resize(keys / kTileRows);
        scores_.fit(2 * keys, kRowBlock);
        weights_.fit(kRowBlock, keys / 2);
        values_.fit(keys / 2, layer.padded_dim());
    }

    // Rows of queries as columns of pairs. `first` is the index of each row's first element.
    static void load_queries(const ChunkLayer& layer, const void* query, const int64_t* first, int64_t num_rows,
                             ThreadRows& queries) {
        queries.fit(kRowTile, dot_dim(layer) / 2);
        const auto* elements = static_cast<const uint16_t*>(query);
        for (int64_t group = 0; group * kTileRows < num_rows; ++group) {
            // Rows of one head lie too far apart for a processor to foresee them.
            for (int64_t row = (group + 1) * kTileRows; row < std::min(num_rows, (group + 2) * kTileRows); ++row)
                prefetch_row<kElement>(query, first[row], layer.head_dim);
            for (int64_t d = 0; d < dot_dim(layer); d += kTileDepth) {
                const __mmask32 present = first_of_32(layer.head_dim - d);
                __m512i rows[kTileRows];
#pragma GCC unroll 16
                for (int64_t i = 0; i < kTileRows; ++i) {
                    const int64_t row = group * kTileRows + i;
                    rows[i] = row < num_rows ? _mm512_maskz_loadu_epi16(present, elements + first[row] + d)
                                             : _mm512_setzero_si512();
                }
                transpose(rows);
                for (int64_t pair = 0; pair < kTileRows; ++pair)
                    _mm512_store_si512(query_tile(layer, queries, group, d) + pair * kTileRows, rows[pair]);
            }
        }
    }

    // Calls `take` with the first row and the number of rows of each block that sees anything, and with `sums`, which
    // then hold theirs and have room for whole tiles of them. Weighted values stand as `divide_row` reads them. Asks
    // memory for `next`.
    template <typename Take>
    void compute(const ChunkLayer& layer, ThreadRows& queries, const ChunkPlaces& places, const ChunkPlaces& next,
                 int64_t num_rows, const KeyRange* visible, const SoftmaxSums& sums, Take take) {
        const bool several_blocks = num_rows > kRowBlock;
        const bool checked = !all_same(visible, num_rows);
        Foresight<kElement> foresight(next, layer.head_dim);
        prepare_keys(layer, places, several_blocks);
        // Values wait in the cache until they are multiplied. For several blocks they are packed once, and memory is
        // asked while rows are computed; one block has nothing else to wait for.
        bool harmless = several_blocks && pack_values(layer, places, places.in, checked, foresight, 0);
        const int64_t asked_at_once = several_blocks ? 1 + kAskedPerTile * kTileRows / num_rows : 0;
        RowBlock block = row_block(0, num_rows, visible);
        ScoreProduct scores(layer, *this, queries, block, 0);
        for (int buffer = 0; block.num_rows > 0; buffer = 1 - buffer) {
            scores.finish();
            const RowBlock following = row_block(block.first + kRowBlock, num_rows, visible);
            scores = ScoreProduct(layer, *this, queries, following, 1 - buffer);
            for (int64_t row = 0; row < block.num_rows; row += kTileRows) {
                const KeyRange computed = {first_of_group(block.seen), round_up(block.seen.end)};
                LaneSoftmax softmax(layer.rule, computed, visible + block.first + row,
                                    std::min<int64_t>(kTileRows, block.num_rows - row),
                                    scores_.row(buffer * padded_chunk(layer)) + row);
                softmax.weigh(weights_.row(row), padded_chunk(layer) / 2, [&] {
                    foresight.ask_for(asked_at_once);
                    scores.advance();
                    scores.advance();
                });
                softmax.store_sums(sums.largest + row, sums.sum + row);
            }
            scores.finish();
            if (!several_blocks) harmless = pack_values(layer, places, places.in, checked, foresight, 2);
            if (harmless) {
                multiply_values(layer, groups_of(block), block.seen, sums.weighted);
            } else {
                multiply_values_apart(layer, places, block, visible + block.first, sums.weighted);
            }
            take(block.first, block.num_rows, sums);
            block = following;
        }
    }

    // One row of weighted values, divided by its sum of weights and put into the order of the head. Those of every
    // thirty-two elements stand with the even ones first, as the values of two keys are paired without moving any
    // element to another lane; sixteen that are left over stand in order.
    static void divide_row(const float* weighted, float sum, int64_t padded_dim, float* quotients) {
        const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
        const __m512 factor = _mm512_set1_ps(1.0f / sum);
        // What underflows may leave a 0 of either sign, by which keys of no weight stood beside it.
        const auto quotient = [&](int64_t d) {
            return _mm512_add_ps(_mm512_mul_ps(_mm512_loadu_ps(weighted + d), factor), _mm512_setzero_ps());
        };
        int64_t d = 0;
        for (; d + kTileDepth <= padded_dim; d += kTileDepth) {
            const __m512 even = quotient(d), odd = quotient(d + kLanes);
            _mm512_storeu_ps(quotients + d, _mm512_permutex2var_ps(even, low, odd));
            _mm512_storeu_ps(quotients + d + kLanes, _mm512_permutex2var_ps(even, high, odd));
        }
        if (d < padded_dim) _mm512_storeu_ps(quotients + d, quotient(d));
    }

   private:
    // Keys that memory is asked for with every thirty-two that sixteen rows weigh, over the tiles of rows of a task.
    static constexpr int64_t kAskedPerTile = 32;

    static int64_t round_up(int64_t count) { return (count + kTileDepth - 1) / kTileDepth * kTileDepth; }
    static int64_t first_of_group(KeyRange keys) { return keys.begin / kTileDepth * kTileDepth; }
    static int64_t padded_chunk(const ChunkLayer& layer) { return round_up(layer.chunk_size); }
    static int64_t dot_dim(const ChunkLayer& layer) { return round_up(layer.head_dim); }

    static float* query_tile(const ChunkLayer& layer, ThreadRows& queries, int64_t group, int64_t d) {
        return queries.row(0) + (group * dot_dim(layer) + d) / 2 * kTileRows;
    }

    float* value_tile(const ChunkLayer& layer, int64_t key, int64_t d) {
        return values_.row(0) + d / kLanes * (padded_chunk(layer) / 2 * kLanes) + key / kTileDepth * kTileRows * kLanes;
    }

    static int64_t groups_of(const RowBlock& block) { return (block.num_rows + kTileRows - 1) / kTileRows; }

    struct KeyTile {
        const char* first;
        int64_t row_stride, step;  // in bytes
    };

    // The scores of a block of rows, a step at a time: scores_[key][row] of all blocks of keys that it sees.
    class ScoreProduct {
       public:
        ScoreProduct(const ChunkLayer& layer, AmxChunk& chunk, ThreadRows& queries, const RowBlock& rows, int buffer)
            : chunk_(&chunk),
              queries_(reinterpret_cast<const char*>(query_tile(layer, queries, rows.first / kTileRows, 0))),
              scores_(chunk.scores_.row(buffer * padded_chunk(layer))),
              depth_(dot_dim(layer)),
              groups_(groups_of(rows)),
              key_(rows.seen.begin / kTileRows * kTileRows),
              end_(rows.seen.end) {}

        void finish() {
            while (advance()) continue;
        }

        // One step, if there is one left.
        bool advance() {
            const int64_t tiles = (end_ - key_ + kTileRows - 1) / kTileRows;
            if (tiles <= 0) return false;
            if (groups_ == 1) {
                tiles >= 4 ? advance_by<4, 1>() : advance_by<1, 1>();
            } else {
                tiles >= 2 ? advance_by<2, 2>() : advance_by<1, 2>();
            }
            return true;
        }

       private:
        template <int kKeyTiles, int kGroups>
        void advance_by() {
            using Product = TileProduct<kKeyTiles, kGroups>;
            TileOperand<kKeyTiles> keys;
            for (int i = 0; i < kKeyTiles; ++i) {
                const KeyTile& tile = chunk_->key_tiles_[key_ / kTileRows + i];
                keys.first[i] = tile.first;
                keys.row_stride[i] = tile.row_stride;
                keys.step[i] = tile.step;
            }
            TileOperand<kGroups> queries;
            for (int i = 0; i < kGroups; ++i) {
                queries.first[i] = queries_ + i * depth_ * kTileRows * 2;
                queries.row_stride[i] = kTileBytes;
                queries.step[i] = kTileRows * kTileBytes;
            }
            if (step_ == 0) Product::begin();
            Product::add(keys, queries, step_++);
            if (step_ < depth_ / kTileDepth) return;
            Product::end({scores_ + key_ * kRowBlock, kRowBlock, kTileRows * kRowBlock, kTileRows});
            step_ = 0;
            key_ += kKeyTiles * kTileRows;
        }

        AmxChunk* chunk_;
        const char* queries_;
        float* scores_;
        int64_t depth_, groups_, key_, end_, step_ = 0;
    };

    // Finds the tiles of keys. Those that are read several times are copied, so that they lie close together.
    void prepare_keys(const ChunkLayer& layer, const ChunkPlaces& places, bool copy) {
        for (int64_t key = places.in.begin / kTileRows * kTileRows; key < places.in.end; key += kTileRows) {
            if (!copy && lie_as_tile(layer, places, key)) {
                key_tiles_[key / kTileRows] = {static_cast<const char*>(places.key_cache) + places.keys[key] * 2,
                                               (places.keys[key + 1] - places.keys[key]) * 2, kTileBytes};
            } else {
                copy_keys(layer, places, key);
                key_tiles_[key / kTileRows] = {reinterpret_cast<const char*>(keys_.row(key)), kTileBytes,
                                               kTileRows * kTileBytes};
            }
        }
    }

    // Whether the keys of a block lie in the cache as a tile takes them.
    static bool lie_as_tile(const ChunkLayer& layer, const ChunkPlaces& places, int64_t first) {
        if (layer.head_dim % kTileDepth != 0 || first < places.in.begin || first + kKeyBlock > places.in.end)
            return false;
        const int64_t* offsets = places.keys + first;
        for (int64_t key = 2; key < kKeyBlock; ++key)
            if (offsets[key] - offsets[key - 1] != offsets[1] - offsets[0]) return false;
        return true;
    }

    // Copies a tile of keys to dense rows, zeros for those that are not seen and behind the head's last element.
    void copy_keys(const ChunkLayer& layer, const ChunkPlaces& places, int64_t first) {
        const auto* cache = static_cast<const uint16_t*>(places.key_cache);
        for (int64_t key = first; key < first + kTileRows; ++key) {
            const bool seen = places.in.begin <= key && key < places.in.end;
            const uint16_t* elements = cache + (seen ? places.keys[key] : 0);
            for (int64_t d = 0; d < dot_dim(layer); d += kTileDepth) {
                const __mmask32 present = seen ? first_of_32(layer.head_dim - d) : 0;
                float* row = keys_.row(first) + (d / kTileDepth * kTileRows + key - first) * kLanes;
                _mm512_store_si512(row, _mm512_maskz_loadu_epi16(present, elements + d));
            }
        }
    }

    // values_[pair of keys][element] of the keys in `present`, as `divide_row` reads them, and zeros for others. When
    // asked to check, false when one of them is no finite number.
    bool pack_values(const ChunkLayer& layer, const ChunkPlaces& places, KeyRange present, bool checked,
                     Foresight<kElement>& foresight, int64_t asked_at_once) {
        return checked ? pack<true>(layer, places, present, foresight, asked_at_once)
                       : pack<false>(layer, places, present, foresight, asked_at_once);
    }

    template <bool kCheck>
    bool pack(const ChunkLayer& layer, const ChunkPlaces& places, KeyRange present, Foresight<kElement>& foresight,
              int64_t asked_at_once) {
        const auto* cache = static_cast<const uint16_t*>(places.value_cache);
        const int64_t whole = layer.head_dim / kTileDepth * kTileDepth;
        __m512i largest = _mm512_setzero_si512();
        const auto check = [&](__m512i elements) {
            if constexpr (kCheck) largest = _mm512_max_epu16(largest, _mm512_add_epi16(elements, elements));
        };
        for (int64_t key = first_of_group(present); key < round_up(present.end); key += 2) {
            foresight.ask_for(asked_at_once);
            const __mmask32 even_present = present.begin <= key && key < present.end ? ~__mmask32(0) : 0;
            const __mmask32 odd_present = present.begin <= key + 1 && key + 1 < present.end ? ~__mmask32(0) : 0;
            const uint16_t* even_row = cache + (even_present ? places.values[key] : 0);
            const uint16_t* odd_row = cache + (odd_present ? places.values[key + 1] : 0);
            float* pairs = value_tile(layer, key, 0) + key / 2 % kTileRows * kLanes;
            const int64_t next_tile = padded_chunk(layer) / 2 * kLanes;
            const auto pack = [&](int64_t d, __mmask32 even_elements, __mmask32 odd_elements) {
                const __m512i even = _mm512_maskz_loadu_epi16(even_elements, even_row + d);
                const __m512i odd = _mm512_maskz_loadu_epi16(odd_elements, odd_row + d);
                check(even);
                check(odd);
                const __m512i shifted_odd = _mm512_slli_epi32(odd, 16), shifted_even = _mm512_srli_epi32(even, 16);
                float* tile = pairs + d / kLanes * next_tile;
                _mm512_store_si512(tile, _mm512_mask_mov_epi16(shifted_odd, 0x55555555, even));
                _mm512_store_si512(tile + next_tile, _mm512_mask_mov_epi16(shifted_even, 0xaaaaaaaa, odd));
            };
            for (int64_t d = 0; d < whole; d += kTileDepth) pack(d, even_present, odd_present);
            if (whole == layer.head_dim) continue;
            const __mmask32 rest = first_of_32(layer.head_dim - whole);
            if (whole + kTileDepth == layer.padded_dim()) {
                pack(whole, even_present & rest, odd_present & rest);
                continue;
            }
            const __m512i even = _mm512_maskz_loadu_epi16(even_present & rest, even_row + whole);
            const __m512i odd = _mm512_maskz_loadu_epi16(odd_present & rest, odd_row + whole);
            check(even);
            check(odd);
            const __m512i wide_even = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(even));
            const __m512i wide_odd = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(odd));
            const __m512i wide = _mm512_or_si512(wide_even, _mm512_slli_epi32(wide_odd, 16));
            _mm512_store_si512(pairs + whole / kLanes * next_tile, wide);
        }
        // Doubled, the bits of an infinity or a NaN are at least 0xff00.
        return _mm512_cmpge_epu16_mask(largest, _mm512_set1_epi16(static_cast<int16_t>(0xff00))) == 0;
    }

    // products[row][element] over the keys in `present`.
    void multiply_values(const ChunkLayer& layer, int64_t groups, KeyRange present, float* products) {
        if (groups == 1) {
            multiply_groups<1>(layer, present, products);
        } else {
            multiply_groups<2>(layer, present, products);
        }
    }

    // The same where a value is no finite number: rows that see the same keys at a time, with the values of those only.
    void multiply_values_apart(const ChunkLayer& layer, const ChunkPlaces& places, const RowBlock& block,
                               const KeyRange* visible, float* products) {
        const int64_t dim = layer.padded_dim();
        std::vector<float> of_some(kRowBlock * dim);
        Foresight<kElement> nothing({}, 0);
        for (int64_t first = 0, end; first < block.num_rows; first = end) {
            for (end = first + 1; end < block.num_rows && all_same(visible + first, end + 1 - first);) ++end;
            if (visible[first].empty()) continue;
            pack_values(layer, places, visible[first], false, nothing, 0);
            multiply_groups<2>(layer, visible[first], of_some.data());
            std::copy(of_some.data() + first * dim, of_some.data() + end * dim, products + first * dim);
        }
        pack_values(layer, places, places.in, false, nothing, 0);
    }

    template <int kGroups>
    void multiply_groups(const ChunkLayer& layer, KeyRange present, float* products) {
        const int64_t begin = first_of_group(present);
        TileOperand<kGroups> weights;
        for (int group = 0; group < kGroups; ++group) {
            weights.first[group] = reinterpret_cast<const char*>(weights_.row(group * kTileRows) + begin / 2);
            weights.row_stride[group] = padded_chunk(layer) * 2;
            weights.step[group] = kTileBytes;
        }
        const int64_t steps = (round_up(present.end) - begin) / kTileDepth;
        constexpr int kColumns = 4 / kGroups;
        int64_t d = 0;
        for (; d + kColumns * kLanes <= layer.padded_dim(); d += kColumns * kLanes)
            multiply_columns<kColumns>(layer, weights, begin, d, steps, products);
        for (; d < layer.padded_dim(); d += kLanes) multiply_columns<1>(layer, weights, begin, d, steps, products);
    }

    template <int kColumns, int kGroups>
    void multiply_columns(const ChunkLayer& layer, const TileOperand<kGroups>& weights, int64_t first_key, int64_t d,
                          int64_t steps, float* products) {
        const int64_t dim = layer.padded_dim();
        TileOperand<kColumns> values;
        for (int column = 0; column < kColumns; ++column) {
            values.first[column] = reinterpret_cast<const char*>(value_tile(layer, first_key, d + column * kLanes));
            values.row_stride[column] = kTileBytes;
            values.step[column] = kTileRows * kTileBytes;
        }
        using Product = TileProduct<kGroups, kColumns>;
        Product::begin();
        for (int64_t step = 0; step < steps; ++step) Product::add(weights, values, step);
        Product::end({products + d, dim, kTileRows * dim, kLanes});
    }

    ThreadRows keys_, scores_, weights_, values_;
    std::vector<KeyTile> key_tiles_;
};

}  // namespace samebits

#endif
