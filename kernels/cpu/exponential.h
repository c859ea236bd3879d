// exp and tanh without branches and without libm, whose results differ between versions.
#pragma once

#include "lanes.h"

namespace samebits {

// x = n ln2 + r with |r| <= ln2 / 2, and exp(r) - 1.
struct ReducedExponential {
    FloatRegister n;
    FloatRegister expm1_r;
};

// Argument reduction of Cody and Waite ("Software Manual for the Elementary Functions", 1980, chapter 6) with ln2 in
// two parts, then exp(r) = 1 + r + r^2 P(r). P is a least-maximum fit of degree 4 on |r| <= 0.3476 with coefficients
// rounded to float; its own error is 3.2e-9 of exp(r), 0.05 of a unit in the last place.
SAMEBITS_INLINE ReducedExponential reduce_exponential(FloatRegister x) {
    const FloatRegister round_to_integer = splat_register(0x1.8p23f);
    const FloatRegister n =
        fused_multiply_add(x, splat_register(0x1.715476p0f), round_to_integer) - round_to_integer;
    FloatRegister r = fused_multiply_add(n, splat_register(-0x1.62e4p-1f), x);
    r = fused_multiply_add(n, splat_register(-0x1.7f7d1cp-20f), r);
    FloatRegister p = splat_register(0x1.6db692p-10f);
    p = fused_multiply_add(p, r, splat_register(0x1.123d12p-7f));
    p = fused_multiply_add(p, r, splat_register(0x1.55545cp-5f));
    p = fused_multiply_add(p, r, splat_register(0x1.55548cp-3f));
    p = fused_multiply_add(p, r, splat_register(0.5f));
    return {n, fused_multiply_add(r * r, p, r)};
}

// 2^n for an integer n in [-126, 127].
SAMEBITS_INLINE FloatRegister power_of_two(FloatRegister n) {
    const IntRegister exponent = __builtin_convertvector(n, IntRegister);
    return (FloatRegister)((exponent + 127) << 23);
}

// exp(x) for x <= 0, -inf among them; NaN for NaN. At most 1.04 units in the last place off, subnormal results included
// (measured on every third float from -104 to 0).
SAMEBITS_INLINE Lanes exp_of_nonpositive(Lanes x) {
    return for_each_register([=](int i) {
        // exp(-104) rounds to 0, and below it the two factors would leave the range of power_of_two.
        const FloatRegister least = splat_register(-104.0f);
        const FloatRegister clamped = x.part[i] < least ? least : x.part[i];
        const ReducedExponential reduced = reduce_exponential(clamped);
        // A NaN would be converted to an integer that depends on the instruction set; it survives in expm1_r.
        const FloatRegister n = reduced.n == reduced.n ? reduced.n : splat_register(0.0f);
        // Two exact factors, so that a result below the least normal number is rounded once.
        const FloatRegister half = __builtin_convertvector(__builtin_convertvector(n, IntRegister) >> 1, FloatRegister);
        return ((reduced.expm1_r + 1.0f) * power_of_two(half)) * power_of_two(n - half);
    });
}

// tanh(x) = -sign(x) u / (2 + u) with u = exp(-2 |x|) - 1; NaN for NaN. At most 2.5 units in the last place off, small
// arguments included (measured on every third float from 2^-126 to 20).
SAMEBITS_INLINE Lanes tanh(Lanes x) {
    return for_each_register([=](int i) {
        const UintRegister sign = (UintRegister)x.part[i] & 0x80000000u;
        const FloatRegister magnitude = (FloatRegister)((UintRegister)x.part[i] & 0x7fffffffu);
        // tanh(10) rounds to 1.
        const FloatRegister largest = splat_register(10.0f);
        const FloatRegister clamped = magnitude > largest ? largest : magnitude;
        const ReducedExponential reduced = reduce_exponential(clamped * -2.0f);
        const FloatRegister n = reduced.n == reduced.n ? reduced.n : splat_register(0.0f);
        const FloatRegister power = power_of_two(n);
        const FloatRegister u = fused_multiply_add(power, reduced.expm1_r, power - 1.0f);
        const FloatRegister quotient = (-u) / (u + 2.0f);
        return (FloatRegister)(((UintRegister)quotient & 0x7fffffffu) | sign);
    });
}

}  // namespace samebits
