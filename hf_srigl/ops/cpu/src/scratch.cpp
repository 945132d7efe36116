#include "scratch.h"

#include <stdlib.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace srigl {
namespace {

constexpr size_t kHuge = size_t(2) << 20;

struct Arena {
    char* base = nullptr;
    char* aligned = nullptr;
    size_t size = 0;
    ~Arena() { free(base); }

    void* get(size_t bytes) {
        if (bytes <= size) return aligned;
        free(base);
        const size_t align = bytes >= kHuge / 2 ? kHuge : 64;
        bytes = (bytes + align - 1) / align * align;
        size = 0;
        base = (char*)malloc(bytes + align);
        if (!base) return nullptr;
        aligned = (char*)(((uintptr_t)base + align - 1) / align * align);
        size = bytes;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
        // Panels are read in random order: with 4 KB pages every other read would miss the first-level TLB.
        if (align == kHuge) madvise(aligned, bytes, MADV_HUGEPAGE);
#endif
        return aligned;
    }
};

thread_local Arena arena;

}  // namespace

void* scratch(size_t bytes) { return arena.get(bytes); }

}  // namespace srigl
