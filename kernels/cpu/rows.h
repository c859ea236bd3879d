// Rows of elements in tensors of any strides, and the choice of a kernel by their dtype.
#pragma once

#include <cstdint>
#include <type_traits>

#include "elements.h"

namespace samebits {

// Rounds `count` floats to the elements from index `first` on, and writes no other.
template <Element element>
SAMEBITS_INLINE void round_row(const float* source, int64_t count, void* target, int64_t first) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store_rounded<element>(target, first + i, load(source + i));
    for (; i < count; ++i) store_rounded(target, first + i, source[i], element);
}

// The same past the caches, for more than they hold: a line that is written whole need not be read first.
template <Element element>
SAMEBITS_INLINE void stream_row(const float* source, int64_t count, void* target, int64_t first) {
#if defined(__AVX512F__)
    constexpr int64_t kStoredBytes = kLanes * size_of(element);
    char* line = static_cast<char*>(target) + first * size_of(element);
    if (reinterpret_cast<uintptr_t>(line) % 64 == 0 && count % kLanes == 0) {
        for (int64_t i = 0; i < count; i += kLanes, line += kStoredBytes) {
            alignas(64) char rounded[kStoredBytes];
            store_rounded<element>(rounded, 0, load(source + i));
            if constexpr (kStoredBytes == 64)
                _mm512_stream_si512(reinterpret_cast<__m512i*>(line), _mm512_load_si512(rounded));
            else
                _mm256_stream_si256(reinterpret_cast<__m256i*>(line),
                                    _mm256_load_si256(reinterpret_cast<const __m256i*>(rounded)));
        }
        return;
    }
#endif
    round_row<element>(source, count, target, first);
}

// Streamed rows are ordered by nothing else; called before other threads may read them.
SAMEBITS_INLINE void finish_streams() {
#if defined(__AVX512F__)
    _mm_sfence();
#endif
}

SAMEBITS_INLINE const char* address(const void* tensor, int64_t index, int64_t element_size) {
    return static_cast<const char*>(tensor) + index * element_size;
}
SAMEBITS_INLINE char* address(void* tensor, int64_t index, int64_t element_size) {
    return static_cast<char*>(tensor) + index * element_size;
}

// Where the heads of `[num_tokens, num_heads, head_dim]` lie. Strides count elements.
struct Heads {
    void* elements;
    int64_t token_stride, head_stride;

    // Index of a head's first element.
    int64_t first_of(int64_t token, int64_t head) const { return token * token_stride + head * head_stride; }
};

// Where the heads of `[num_pages, page_size, num_heads, head_dim]` lie. Strides count elements.
struct Pages {
    void* elements;
    int64_t page_stride, slot_stride, head_stride;

    // Index of a head's first element.
    int64_t first_of(int64_t page, int64_t slot, int64_t head) const {
        return page * page_stride + slot * slot_stride + head * head_stride;
    }
};

// The dimensions before a tensor's last, filled up in front with sizes of 1. Strides count elements.
struct LeadingDimensions {
    int64_t sizes[3], strides[3];

    int64_t num_rows() const { return sizes[0] * sizes[1] * sizes[2]; }
    // Index of a row's first element, rows counted with the last of these dimensions innermost.
    int64_t first_of(int64_t row) const {
        const int64_t outer = row / sizes[2];
        return outer / sizes[1] * strides[0] + outer % sizes[1] * strides[1] + row % sizes[2] * strides[2];
    }
};

// Calls `body` with the element as a compile-time constant.
template <typename Body>
SAMEBITS_INLINE void with_element(int64_t element, Body body) {
    switch (static_cast<Element>(element)) {
        case Element::kFloat32:
            return body(std::integral_constant<Element, Element::kFloat32>{});
        case Element::kBfloat16:
            return body(std::integral_constant<Element, Element::kBfloat16>{});
        case Element::kFloat16:
            return body(std::integral_constant<Element, Element::kFloat16>{});
    }
}

}  // namespace samebits
