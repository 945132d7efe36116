// Picks the best instruction set this machine (and its operating system) supports.
#include <string.h>

#include <atomic>

#include "condensed.h"
#include "isa.h"

#if defined(_MSC_VER) && defined(_M_X64)
#include <immintrin.h>
#include <intrin.h>
#endif

namespace srigl {
namespace {

#if defined(_MSC_VER) && defined(_M_X64) && !defined(__clang__)
bool bit(int leaf, int reg, int n) {
    int r[4];
    __cpuidex(r, leaf, 0);
    return (r[reg] >> n) & 1;
}
bool os_saves(unsigned long long mask) { return bit(1, 2, 27) && (_xgetbv(0) & mask) == mask; }
bool has_avx2() { return os_saves(0x06) && bit(7, 1, 5) && bit(1, 2, 12); }
bool has_avx512() { return os_saves(0xe6) && has_avx2() && bit(7, 1, 16) && bit(7, 1, 17) && bit(7, 1, 30) && bit(7, 1, 31); }
#elif defined(__x86_64__) || defined(__i386__)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
#endif

// The check comes before the call: even building the table may use the instructions.
const Isa* find(const char* name) {
    const bool any = !name || !*name;
    const Isa* found = nullptr;
    if (!found && (any || !strcmp(name, "avx512")) && has_avx512()) found = avx512_isa();
    if (!found && (any || !strcmp(name, "avx2")) && has_avx2()) found = avx2_isa();
    if (!found && (any || !strcmp(name, "neon"))) found = neon_isa();
    if (!found && (any || !strcmp(name, "portable"))) found = portable_isa();
    return found;
}

std::atomic<const Isa*> current{nullptr};

}  // namespace

const Isa& isa() {
    const Isa* p = current.load(std::memory_order_acquire);
    if (!p) current.store(p = find(nullptr), std::memory_order_release);
    return *p;
}

}  // namespace srigl

extern "C" {

int srigl_abi(void) { return SRIGL_ABI; }
const char* srigl_isa(void) { return srigl::isa().name; }
int srigl_set_isa(const char* name) {
    const srigl::Isa* p = srigl::find(name);
    if (!p) return SRIGL_BAD_ARGUMENT;
    srigl::current.store(p, std::memory_order_release);
    return SRIGL_OK;
}
int srigl_has_threads(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

}  // extern "C"
