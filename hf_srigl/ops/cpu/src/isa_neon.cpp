// Compiled with the flags for this instruction set where the target has it; empty elsewhere.
#if defined(__aarch64__) || defined(_M_ARM64)
#include "vec_neon.h"

#include "isa_table.h"

const srigl::Isa* srigl::neon_isa() {
    static const srigl::Isa table = Table<F4, F4>::table("neon");
    return &table;
}
#else
#include "isa.h"

const srigl::Isa* srigl::neon_isa() { return nullptr; }
#endif
