// New keys and values copied to their slots of a page cache, byte by byte.

#include <cstdint>
#include <cstring>

#include "rows.h"

namespace samebits {
namespace {

constexpr int64_t kPadding = -1;

// Mirrored by the ctypes structure in cache_write.py. Strides count elements.
struct CacheWriteCall {
    const void *key, *value;
    void *key_cache, *value_cache;
    const int64_t* slot_mapping;
    int64_t key_token_stride, key_head_stride, value_token_stride, value_head_stride;
    int64_t key_page_stride, key_slot_stride, key_cache_head_stride;
    int64_t value_page_stride, value_slot_stride, value_cache_head_stride;
    int64_t num_tokens, num_kv_heads, head_dim, num_pages, page_size;
    int64_t element_size, num_threads;
};

void run(const CacheWriteCall& call) {
    const int64_t size = call.element_size;
#pragma omp parallel for schedule(static) num_threads(call.num_threads)
    for (int64_t token = 0; token < call.num_tokens; ++token) {
        const int64_t slot = call.slot_mapping[token];
        if (slot == kPadding) continue;
        const int64_t page = slot / call.page_size, offset = slot % call.page_size;
        for (int64_t head = 0; head < call.num_kv_heads; ++head) {
            const int64_t key = token * call.key_token_stride + head * call.key_head_stride;
            const int64_t value = token * call.value_token_stride + head * call.value_head_stride;
            const int64_t key_slot = page * call.key_page_stride + offset * call.key_slot_stride;
            const int64_t value_slot = page * call.value_page_stride + offset * call.value_slot_stride;
            std::memcpy(address(call.key_cache, key_slot + head * call.key_cache_head_stride, size),
                        address(call.key, key, size), call.head_dim * size);
            std::memcpy(address(call.value_cache, value_slot + head * call.value_cache_head_stride, size),
                        address(call.value, value, size), call.head_dim * size);
        }
    }
}

}  // namespace
}  // namespace samebits

// Returns -1, or a token whose slot is neither in the cache nor padding; nothing has been written then.
extern "C" __attribute__((visibility("default"))) int64_t samebits_cache_write(const samebits::CacheWriteCall* call) {
    const int64_t num_slots = call->num_pages * call->page_size;
    for (int64_t token = 0; token < call->num_tokens; ++token)
        if (call->slot_mapping[token] < samebits::kPadding || call->slot_mapping[token] >= num_slots) return token;
    samebits::run(*call);
    return -1;
}

extern "C" __attribute__((visibility("default"))) int64_t samebits_cache_write_call_size() {
    return sizeof(samebits::CacheWriteCall);
}
