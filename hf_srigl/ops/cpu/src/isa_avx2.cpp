// Compiled with the flags for this instruction set where the target has it; empty elsewhere.
#if defined(__AVX2__)
#include "vec_avx2.h"

#include "isa_table.h"

const srigl::Isa* srigl::avx2_isa() {
    static const srigl::Isa table = Table<F8, F8>::table("avx2");
    return &table;
}
#else
#include "isa.h"

const srigl::Isa* srigl::avx2_isa() { return nullptr; }
#endif
