// New keys and values copied to their slots of a page cache, byte by byte.

#include <cstdint>
#include <cstring>

#include "rows.h"

namespace samebits {
namespace {

constexpr int64_t kPadding = -1;

// Mirrored by the ctypes structure in cache_write.py.
struct CacheWriteCall {
    Heads key, value;
    Pages key_cache, value_cache;
    const int64_t* slot_mapping;
    int64_t num_tokens, num_kv_heads, page_size, head_bytes;
    int64_t element_size, num_threads;
};

void run(const CacheWriteCall& call) {
    const int64_t size = call.element_size;
#pragma omp parallel for schedule(static) num_threads(call.num_threads)
    for (int64_t token = 0; token < call.num_tokens; ++token) {
        const int64_t slot = call.slot_mapping[token];
        if (slot == kPadding) continue;
        const int64_t page = slot / call.page_size, offset = slot % call.page_size;
        const auto copy = [&](const Heads& heads, const Pages& pages, int64_t head) {
            std::memcpy(address(pages.elements, pages.first_of(page, offset, head), size),
                        address(heads.elements, heads.first_of(token, head), size), call.head_bytes);
        };
        for (int64_t head = 0; head < call.num_kv_heads; ++head) {
            copy(call.key, call.key_cache, head);
            copy(call.value, call.value_cache, head);
        }
    }
}

}  // namespace
}  // namespace samebits

extern "C" __attribute__((visibility("default"))) void samebits_cache_write(const samebits::CacheWriteCall* call) {
    samebits::run(*call);
}

extern "C" __attribute__((visibility("default"))) int64_t samebits_cache_write_call_size() {
    return sizeof(samebits::CacheWriteCall);
}
