// Compiled with the flags for this instruction set where the target has it; empty elsewhere.
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "vec_avx512.h"

#include "isa_table.h"

const srigl::Isa* srigl::avx512_isa() {
    static const srigl::Isa table = Table<F16, F8>::table("avx512");
    return &table;
}
#else
#include "isa.h"

const srigl::Isa* srigl::avx512_isa() { return nullptr; }
#endif
