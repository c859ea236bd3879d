// Products of matrices of bfloat16 by AMX, the matrix unit of Intel's processors from 2023 on.
//
// A tile register holds sixteen rows of 64 bytes. One instruction adds to each element of a tile of sixteen times
// sixteen floats the dot product of thirty-two pairs of bfloat16: the products of those at even places are summed, and
// of those at odd ones, each with fused multiply-adds from 0; then the two sums are added, and the result to the
// element. Rounding is to nearest even, and numbers below the smallest normal one are taken for 0 (Intel 64 and IA-32
// Architectures Software Developer's Manual, TDPBF16PS). No other row or column enters an element.
#pragma once

// amx.py repeats these conditions.
#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512BW__)
#define SAMEBITS_AMX 1

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "lanes.h"

namespace samebits {

constexpr int kTileRows = 16;
constexpr int kTileBytes = 64;
// Pairs of bfloat16 that one instruction multiplies for an element, and the elements of a row that it reads for that.
constexpr int kTileDepth = 32;

// The shape of all tiles, for as long as it lives. What the thread had configured is put back: oneDNN remembers what it
// has configured last, and does not look.
class TileConfiguration {
   public:
    TileConfiguration() {
        asm volatile("sttilecfg %0" : "=m"(caller_));
        Palette palette = {};
        palette.id = 1;
        for (int tile = 0; tile < 8; ++tile) {
            palette.row_bytes[tile] = kTileBytes;
            palette.rows[tile] = kTileRows;
        }
        asm volatile("ldtilecfg %0" ::"m"(palette));
    }
    ~TileConfiguration() {
        if (caller_.id == 0)
            asm volatile("tilerelease");
        else
            asm volatile("ldtilecfg %0" ::"m"(caller_));
    }
    TileConfiguration(const TileConfiguration&) = delete;
    TileConfiguration& operator=(const TileConfiguration&) = delete;

   private:
    struct alignas(64) Palette {
        uint8_t id, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    };
    Palette caller_;
};

// The compilers' own functions take no template parameter for a register, and GCC's before 14 do not say that they read
// and write memory.
template <int kTile>
SAMEBITS_INLINE void load_tile(const void* first_row, int64_t row_stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(first_row), "r"(row_stride), "i"(kTile) : "memory");
}
template <int kTile>
SAMEBITS_INLINE void store_tile(void* first_row, int64_t row_stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(first_row), "r"(row_stride), "i"(kTile) : "memory");
}
template <int kTile>
SAMEBITS_INLINE void zero_tile() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
template <int kSum, int kLeft, int kRight>
SAMEBITS_INLINE void multiply_tiles() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kLeft), "i"(kRight));
}

// Tiles of one operand. Strides count bytes.
template <int kTiles>
struct TileOperand {
    const char* first[kTiles];
    int64_t row_stride[kTiles];
    int64_t step[kTiles];  // to the tile that the next instruction of the same sum takes
};

// Where tiles of sums go. Strides count floats.
struct TileSums {
    float* first;
    int64_t row_stride, tile_row_stride, tile_column_stride;
};

// Calls `body` with 0 to `kCount - 1` as compile-time constants.
template <typename Body, int... kIndex>
SAMEBITS_INLINE void for_each_constant(Body body, std::integer_sequence<int, kIndex...>) {
    (body(std::integral_constant<int, kIndex>{}), ...);
}
template <int kCount, typename Body>
SAMEBITS_INLINE void for_constants(Body body) {
    for_each_constant(body, std::make_integer_sequence<int, kCount>{});
}

// A product of tiles in parts, so that a caller may compute other things while the matrix unit does. Sums stand in
// registers 0 to 3 from the first part to the last.
template <int kRowTiles, int kColumnTiles>
struct TileProduct {
    static_assert(kRowTiles * kColumnTiles <= 4);

    static void begin() {
        for_constants<kRowTiles * kColumnTiles>([](auto sum) { zero_tile<sum>(); });
    }

    // Goes on from sums that were stored.
    static void resume(const TileSums& sums) {
        for_constants<kRowTiles>([&](auto row) {
            for_constants<kColumnTiles>([&](auto column) {
                load_tile<row * kColumnTiles + column>(place(sums, row, column), 4 * sums.row_stride);
            });
        });
    }

    // A row of `left` holds elements of the depth one after another, a row of `right` pairs of them, of one column
    // after another. The operand of fewer tiles stays in registers 4 and 5, the other one passes through 6 and 7.
    SAMEBITS_INLINE static void add(const TileOperand<kRowTiles>& left, const TileOperand<kColumnTiles>& right,
                                    int64_t step) {
        const auto load_left = [&](auto tile, auto to) {
            load_tile<to>(left.first[tile] + step * left.step[tile], left.row_stride[tile]);
        };
        const auto load_right = [&](auto tile, auto to) {
            load_tile<to>(right.first[tile] + step * right.step[tile], right.row_stride[tile]);
        };
        if constexpr (kRowTiles < kColumnTiles) {
            for_constants<kRowTiles>([&](auto row) { load_left(row, std::integral_constant<int, 4 + row>{}); });
            for_constants<kColumnTiles>([&](auto column) {
                constexpr int kRight = 6 + column % 2;
                load_right(column, std::integral_constant<int, kRight>{});
                for_constants<kRowTiles>(
                    [&](auto row) { multiply_tiles<row * kColumnTiles + column, 4 + row, kRight>(); });
            });
        } else {
            for_constants<kColumnTiles>(
                [&](auto column) { load_right(column, std::integral_constant<int, 4 + column>{}); });
            for_constants<kRowTiles>([&](auto row) {
                constexpr int kLeft = 6 + row % 2;
                load_left(row, std::integral_constant<int, kLeft>{});
                for_constants<kColumnTiles>(
                    [&](auto column) { multiply_tiles<row * kColumnTiles + column, kLeft, 4 + column>(); });
            });
        }
    }

    static void end(const TileSums& sums) {
        for_constants<kRowTiles>([&](auto row) {
            for_constants<kColumnTiles>([&](auto column) {
                store_tile<row * kColumnTiles + column>(place(sums, row, column), 4 * sums.row_stride);
            });
        });
    }

   private:
    static float* place(const TileSums& sums, int row, int column) {
        return sums.first + row * sums.tile_row_stride + column * sums.tile_column_stride;
    }
};

// A mask of the first `count` of thirty-two elements.
SAMEBITS_INLINE __mmask32 first_of_32(int64_t count) {
    return count >= 32 ? 0xffffffffu : count <= 0 ? 0u : (1u << count) - 1u;
}

// Transposes sixteen times sixteen pairs of bfloat16, or anything of that size.
SAMEBITS_INLINE void transpose(__m512i (&rows)[16]) {
    __m512i pairs[16], fours[16], eights[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        eights[i] = _mm512_shuffle_i32x4(fours[i], fours[i + 4], 0x88);
        eights[i + 4] = _mm512_shuffle_i32x4(fours[i], fours[i + 4], 0xdd);
        eights[i + 8] = _mm512_shuffle_i32x4(fours[i + 8], fours[i + 12], 0x88);
        eights[i + 12] = _mm512_shuffle_i32x4(fours[i + 8], fours[i + 12], 0xdd);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        rows[i] = _mm512_shuffle_i32x4(eights[i], eights[i + 8], 0x88);
        rows[i + 8] = _mm512_shuffle_i32x4(eights[i], eights[i + 8], 0xdd);
    }
}

}  // namespace samebits

#endif
