// Sixteen floats that are computed on together, in as many registers as the processor needs for them.
//
// The number sixteen is arithmetic: it decides the order in which a dot product and a softmax sum are added. The number
// of registers is not. Every operation here is one IEEE 754 operation per lane (a fused multiply-add where it says so),
// and the compiler may not contract others (-ffp-contract=off), so the bits are the same on every instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define SAMEBITS_INLINE inline __attribute__((always_inline))

namespace samebits {

constexpr int kLanes = 16;

#if defined(__AVX512F__)
constexpr int kRegisterLanes = 16;
#elif defined(__AVX__)
constexpr int kRegisterLanes = 8;
#else
constexpr int kRegisterLanes = 4;
#endif
constexpr int kRegisters = kLanes / kRegisterLanes;

typedef float FloatRegister __attribute__((vector_size(kRegisterLanes * 4)));
typedef int32_t IntRegister __attribute__((vector_size(kRegisterLanes * 4)));
typedef uint32_t UintRegister __attribute__((vector_size(kRegisterLanes * 4)));

struct Lanes {
    FloatRegister part[kRegisters];
};

// Makes each register of the result from its index.
template <typename MakePart>
SAMEBITS_INLINE Lanes for_each_register(MakePart make_part) {
    Lanes result;
    for (int i = 0; i < kRegisters; ++i) result.part[i] = make_part(i);
    return result;
}

// Subtracting 0 changes no value, -0 among them, so only the broadcast is left of it.
SAMEBITS_INLINE FloatRegister splat_register(float value) { return value - FloatRegister{}; }

SAMEBITS_INLINE FloatRegister fused_multiply_add(FloatRegister a, FloatRegister b, FloatRegister c) {
#if defined(__AVX512F__)
    return (FloatRegister)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (FloatRegister)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON) && defined(__aarch64__)
    return (FloatRegister)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    FloatRegister result;
    for (int lane = 0; lane < kRegisterLanes; ++lane) result[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
    return result;
#endif
}

SAMEBITS_INLINE Lanes splat(float value) {
    return for_each_register([=](int) { return splat_register(value); });
}

SAMEBITS_INLINE Lanes load(const float* source) {
    Lanes result;
    std::memcpy(&result, source, sizeof(result));
    return result;
}

SAMEBITS_INLINE void store(float* target, Lanes value) { std::memcpy(target, &value, sizeof(value)); }

SAMEBITS_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) {
    return for_each_register([=](int i) { return fused_multiply_add(a.part[i], b.part[i], c.part[i]); });
}

SAMEBITS_INLINE Lanes add(Lanes a, Lanes b) {
    return for_each_register([=](int i) { return a.part[i] + b.part[i]; });
}

SAMEBITS_INLINE Lanes subtract(Lanes a, Lanes b) {
    return for_each_register([=](int i) { return a.part[i] - b.part[i]; });
}

SAMEBITS_INLINE Lanes multiply(Lanes a, Lanes b) {
    return for_each_register([=](int i) { return a.part[i] * b.part[i]; });
}

SAMEBITS_INLINE Lanes divide(Lanes a, Lanes b) {
    return for_each_register([=](int i) { return a.part[i] / b.part[i]; });
}

// The larger of two values; a NaN in `candidate` is passed over, and `current` is never one.
SAMEBITS_INLINE Lanes maximum(Lanes current, Lanes candidate) {
    return for_each_register(
        [=](int i) { return candidate.part[i] > current.part[i] ? candidate.part[i] : current.part[i]; });
}

// `value` in lanes `begin` to `end` (exclusive), `otherwise` in the rest.
SAMEBITS_INLINE Lanes select_lanes(int begin, int end, Lanes value, Lanes otherwise) {
    return for_each_register([=](int i) {
        IntRegister lane;
        for (int j = 0; j < kRegisterLanes; ++j) lane[j] = i * kRegisterLanes + j;
        return ((lane >= begin) & (lane < end)) ? value.part[i] : otherwise.part[i];
    });
}

// Sum of all lanes, folded in halves: 8, 4, 2, 1.
SAMEBITS_INLINE float sum_of_lanes(Lanes value) {
    float lane[kLanes];
    store(lane, value);
    for (int half = kLanes / 2; half >= 1; half /= 2)
        for (int i = 0; i < half; ++i) lane[i] = lane[i] + lane[i + half];
    return lane[0];
}

SAMEBITS_INLINE float largest_lane(Lanes value) {
    float lane[kLanes];
    store(lane, value);
    for (int half = kLanes / 2; half >= 1; half /= 2)
        for (int i = 0; i < half; ++i) lane[i] = lane[i + half] > lane[i] ? lane[i + half] : lane[i];
    return lane[0];
}

#if defined(__AVX512F__)

#if defined(__clang__)
#define SAMEBITS_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SAMEBITS_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (IntRegister){__VA_ARGS__})
#endif

// Each pairs the sums that two registers hold in groups of lanes, one level of the fold further. The two operands of an
// addition may come in either order: it commutes.
SAMEBITS_INLINE FloatRegister fold_8(FloatRegister a, FloatRegister b) {
    return SAMEBITS_SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           SAMEBITS_SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}
SAMEBITS_INLINE FloatRegister fold_4(FloatRegister a, FloatRegister b) {
    return SAMEBITS_SHUFFLE(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
           SAMEBITS_SHUFFLE(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
}
SAMEBITS_INLINE FloatRegister fold_2(FloatRegister a, FloatRegister b) {
    return SAMEBITS_SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
           SAMEBITS_SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}
SAMEBITS_INLINE FloatRegister fold_1(FloatRegister a, FloatRegister b) {
    return SAMEBITS_SHUFFLE(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           SAMEBITS_SHUFFLE(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}

#endif

// Lane `i` of the result is `sum_of_lanes(values[i])`, by the same fold.
SAMEBITS_INLINE Lanes sums_of_lanes(const Lanes (&values)[kLanes]) {
#if defined(__AVX512F__)
    FloatRegister eight[8], four[4], two[2];
    for (int i = 0; i < 8; ++i) eight[i] = fold_8(values[i].part[0], values[i + 8].part[0]);
    for (int i = 0; i < 4; ++i) four[i] = fold_4(eight[i], eight[i + 4]);
    for (int i = 0; i < 2; ++i) two[i] = fold_2(four[i], four[i + 2]);
    return Lanes{{fold_1(two[0], two[1])}};
#else
    // Folding whole columns of the transposed block adds the same pairs, without shuffles between additions.
    float block[kLanes][kLanes];
    for (int i = 0; i < kLanes; ++i) {
        float lane[kLanes];
        store(lane, values[i]);
        for (int j = 0; j < kLanes; ++j) block[j][i] = lane[j];
    }
    for (int half = kLanes / 2; half >= 1; half /= 2)
        for (int j = 0; j < half; ++j) store(block[j], add(load(block[j]), load(block[j + half])));
    return load(block[0]);
#endif
}

}  // namespace samebits
