// Elements of query, cache and output: read exactly into float, rounded once on the way out.
#pragma once

#include <cstdint>
#include <cstring>

#include "lanes.h"

namespace samebits {

enum class Element : int64_t { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };

constexpr int64_t size_of(Element element) { return element == Element::kFloat32 ? 4 : 2; }

typedef uint16_t HalfRegister __attribute__((vector_size(kRegisterLanes * 2)));

SAMEBITS_INLINE UintRegister zero_extend(HalfRegister bits) {
#if defined(__AVX512F__)
    return (UintRegister)_mm512_cvtepu16_epi32((__m256i)bits);  // GCC makes two halves of the conversion below
#else
    return __builtin_convertvector(bits, UintRegister);
#endif
}

SAMEBITS_INLINE FloatRegister widen_bfloat16(HalfRegister bits) { return (FloatRegister)(zero_extend(bits) << 16); }

// The exponent field moves by 13 bits and its bias by 112; the product by 2^112 also makes subnormal numbers normal.
SAMEBITS_INLINE FloatRegister widen_float16(HalfRegister bits) {
#if defined(__AVX512F__)
    return (FloatRegister)_mm512_cvtph_ps((__m256i)bits);
#else
    const UintRegister wide = zero_extend(bits);
    const UintRegister magnitude = wide & 0x7fffu;
    const FloatRegister scaled = (FloatRegister)(magnitude << 13) * 0x1p112f;
    const UintRegister not_finite = (UintRegister)(magnitude >= 0x7c00u) & 0x7f800000u;
    return (FloatRegister)((UintRegister)scaled | not_finite | ((wide & 0x8000u) << 16));
#endif
}

SAMEBITS_INLINE Lanes load_widened(const void* source, int64_t index, Element element) {
    if (element == Element::kFloat32) return load(static_cast<const float*>(source) + index);
    HalfRegister bits[kRegisters];
    std::memcpy(bits, static_cast<const uint16_t*>(source) + index, sizeof(bits));
    if (element == Element::kBfloat16) return for_each_register([&](int i) { return widen_bfloat16(bits[i]); });
    return for_each_register([&](int i) { return widen_float16(bits[i]); });
}

// Copies `count` elements to floats and fills up to a multiple of kLanes with zeros. Reads those elements only.
template <Element element>
SAMEBITS_INLINE void widen_row(const void* source, int64_t first, int64_t count, float* target) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(target + i, load_widened(source, first + i, element));
    if (i == count) return;
    alignas(64) char rest[kLanes * 4] = {};
    const int64_t size = size_of(element);
    std::memcpy(rest, static_cast<const char*>(source) + (first + i) * size, (count - i) * size);
    store(target + i, load_widened(rest, 0, element));
}

// Asks for a row that will be read some time later. Rows of one head lie too far apart for a processor to foresee them.
template <Element element>
SAMEBITS_INLINE void prefetch_row(const void* source, int64_t first, int64_t count) {
    const char* begin = static_cast<const char*>(source) + first * size_of(element);
    for (int64_t byte = 0; byte < count * size_of(element); byte += 64) __builtin_prefetch(begin + byte, 0, 2);
}

SAMEBITS_INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
}

// To nearest, ties to even. Every NaN becomes the same one: which payload arithmetic yields depends on operand order.
SAMEBITS_INLINE float canonical(float value) { return value == value ? value : __builtin_nanf(""); }

SAMEBITS_INLINE uint16_t round_to_bfloat16(float value) {
    const uint32_t bits = bits_of(value);
    return value == value ? uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16) : uint16_t(0x7fc0);
}

SAMEBITS_INLINE uint16_t round_to_float16(float value) {
    const uint32_t magnitude = bits_of(value) & 0x7fffffffu;
    const uint16_t sign = uint16_t((bits_of(value) >> 16) & 0x8000u);
    if (value != value) return 0x7e00;
    if (magnitude >= 0x477ff000u) return sign | 0x7c00;  // 65520 and above round to infinity
    if (magnitude < 0x38800000u) {  // below 2^-14: one unit is 2^-24, as it is of floats in [0.5, 1)
        float absolute;
        std::memcpy(&absolute, &magnitude, sizeof(absolute));
        return sign | uint16_t(bits_of(absolute + 0.5f) - bits_of(0.5f));
    }
    return sign | uint16_t((magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13);
}

SAMEBITS_INLINE void store_rounded(void* target, int64_t index, float value, Element element) {
    if (element == Element::kFloat32) static_cast<float*>(target)[index] = canonical(value);
    if (element == Element::kBfloat16) static_cast<uint16_t*>(target)[index] = round_to_bfloat16(value);
    if (element == Element::kFloat16) static_cast<uint16_t*>(target)[index] = round_to_float16(value);
}

// The same of sixteen floats.
template <Element element>
SAMEBITS_INLINE void store_rounded(void* target, int64_t index, Lanes value) {
    if constexpr (element == Element::kBfloat16) {
        HalfRegister rounded[kRegisters];
        for (int i = 0; i < kRegisters; ++i) {
            const UintRegister bits = (UintRegister)value.part[i];
            const UintRegister up = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
            const UintRegister is_number = (UintRegister)(value.part[i] == value.part[i]);
            rounded[i] = __builtin_convertvector((up & is_number) | (0x7fc0u & ~is_number), HalfRegister);
        }
        std::memcpy(static_cast<uint16_t*>(target) + index, rounded, sizeof(rounded));
        return;
    }
#if defined(__AVX512F__)
    if constexpr (element == Element::kFloat16) {
        const __m512 floats = (__m512)value.part[0];
        const __m512i rounded = _mm512_cvtepu16_epi32(_mm512_cvtps_ph(floats, _MM_FROUND_TO_NEAREST_INT));
        const __mmask16 is_nan = _mm512_cmp_ps_mask(floats, floats, _CMP_UNORD_Q);
        const __m256i result = _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, is_nan, _mm512_set1_epi32(0x7e00)));
        std::memcpy(static_cast<uint16_t*>(target) + index, &result, sizeof(result));
        return;
    }
#endif
    float lane[kLanes];
    store(lane, value);
    for (int i = 0; i < kLanes; ++i) store_rounded(target, index + i, lane[i], element);
}

}  // namespace samebits
