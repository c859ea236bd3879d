// Rotary position embedding in place, of queries and keys.
//
// A pair of elements is turned by two products and a sum each, in float, and rounded once. Nothing else enters it, so
// neither the other tokens nor the way they are shared among threads can change it. The cosines and sines of a token
// are read from its row of the cache, in the cache's own dtype; no other row is touched.

#include <cstdint>

#include "elements.h"
#include "rows.h"
#include "threads.h"

namespace samebits {
namespace {

// Mirrored by the ctypes structure in rotary.py. Strides count elements.
struct RotaryCall {
    Heads query, key;
    const int64_t* positions;
    const void* cos_sin_cache;
    int64_t cache_stride, num_tokens, num_heads, num_kv_heads, rotary_dim;
    int64_t interleaved, inverse;
    int64_t element, cache_element, num_threads;
};

// Elements `2 i` and `2 i + 1` are a pair (GPT-J).
struct Interleaved {
    static int64_t first(int64_t pair, int64_t) { return 2 * pair; }
    static int64_t second(int64_t pair, int64_t) { return 2 * pair + 1; }
};

// Elements `i` and `i + rotary_dim / 2` are a pair (NeoX).
struct Halves {
    static int64_t first(int64_t pair, int64_t) { return pair; }
    static int64_t second(int64_t pair, int64_t num_pairs) { return num_pairs + pair; }
};

template <typename Pairing>
SAMEBITS_INLINE void rotate(float* head, const float* cosines, const float* sines, int64_t num_pairs) {
    for (int64_t i = 0; i < num_pairs; ++i) {
        float& first = head[Pairing::first(i, num_pairs)];
        float& second = head[Pairing::second(i, num_pairs)];
        const float turned = first * cosines[i] - second * sines[i];
        second = second * cosines[i] + first * sines[i];
        first = turned;
    }
}

template <Element element, typename Pairing>
void rotate_heads(const Heads& heads, int64_t token, int64_t num_heads, int64_t num_pairs, const float* cosines,
                  const float* sines, float* head) {
    for (int64_t i = 0; i < num_heads; ++i) {
        widen_row<element>(heads.elements, heads.first_of(token, i), 2 * num_pairs, head);
        rotate<Pairing>(head, cosines, sines, num_pairs);
        round_row<element>(head, 2 * num_pairs, heads.elements, heads.first_of(token, i));
    }
}

template <Element element, Element cache_element, typename Pairing>
void run(const RotaryCall& call) {
    const int64_t num_pairs = call.rotary_dim / 2;
#pragma omp parallel num_threads(call.num_threads)
    {
        const ThreadEnvironment environment;
        static thread_local ThreadRows memory;
        memory.fit(3, call.rotary_dim);
        float *cosines = memory.row(0), *sines = memory.row(1), *head = memory.row(2);
#pragma omp for schedule(static)
        for (int64_t token = 0; token < call.num_tokens; ++token) {
            const int64_t angles = call.positions[token] * call.cache_stride;
            widen_row<cache_element>(call.cos_sin_cache, angles, num_pairs, cosines);
            widen_row<cache_element>(call.cos_sin_cache, angles + num_pairs, num_pairs, sines);
            if (call.inverse)
                for (int64_t i = 0; i < num_pairs; ++i) sines[i] = -sines[i];
            rotate_heads<element, Pairing>(call.query, token, call.num_heads, num_pairs, cosines, sines, head);
            rotate_heads<element, Pairing>(call.key, token, call.num_kv_heads, num_pairs, cosines, sines, head);
        }
    }
}

template <Element element, Element cache_element>
void run_pairing(const RotaryCall& call) {
    return call.interleaved ? run<element, cache_element, Interleaved>(call) : run<element, cache_element, Halves>(call);
}

}  // namespace
}  // namespace samebits

extern "C" __attribute__((visibility("default"))) void samebits_rotary(const samebits::RotaryCall* call) {
    using samebits::Element;
    samebits::with_element(call->element, [&](auto element) {
        if (call->cache_element == call->element) {
            samebits::run_pairing<element.value, element.value>(*call);
        } else {
            samebits::run_pairing<element.value, Element::kFloat32>(*call);
        }
    });
}

extern "C" __attribute__((visibility("default"))) int64_t samebits_rotary_call_size() {
    return sizeof(samebits::RotaryCall);
}
