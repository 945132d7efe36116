// The same slots sorted by input instead of by neuron, for gx = gy W.
//
// Scattering into gx would cost a load and a store per multiply-add; read by input it is the forward kernel again, with
// gy for x. The sorted copy is made afresh in every backward call (a few cycles per slot, against hundreds of
// multiply-adds) and lives in scratch memory, so no layer pays for it in memory.
#pragma once
#include <stddef.h>

#include "isa.h"
#include "parallel.h"
#include "plan.h"

namespace srigl {

class Transposed {
public:
    // Bytes of scratch needed.
    static size_t bytes(const srigl_plan& plan, int threads);
    Transposed(const srigl_plan& plan, void* memory, int threads);
    // Sorts this thread's tiles; a barrier must follow.
    void build(const Slots& slots, const Team& team);

    int64_t size() const { return n_tiles; }
    Tile tile(int64_t t) const { return tiles[t]; }
    // The neuron (in place of the column) and value of each sorted slot.
    Slots slots() const;

private:
    template <typename I, typename F, typename R> void sort(const I* indices, const F* values, int64_t t, uint32_t* counts);

    const srigl_plan& plan;
    int64_t n_tiles;
    int row_bytes;
    float* values;
    void* rows;
    Tile* tiles;
    Segment* segments;
    Run* runs;
    uint32_t* counts;   // 2 per input and thread
};

}  // namespace srigl
