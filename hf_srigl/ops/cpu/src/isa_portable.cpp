// Plain C++: always there.
#include "vec_portable.h"

#include "isa_table.h"

const srigl::Isa* srigl::portable_isa() {
    static const srigl::Isa table = Table<F4, F4>::table("portable");
    return &table;
}
