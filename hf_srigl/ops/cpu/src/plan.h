// The prepared topology.
#pragma once
#include <stdint.h>

#include <vector>

#include "isa.h"

namespace srigl {

// Segments of all tiles, one tile after the other, each sorted by length.
struct Tiles {
    std::vector<Segment> segments;
    std::vector<Run> runs;
    std::vector<int64_t> segment_begin, run_begin;   // per tile, plus one

    int64_t size() const { return run_begin.empty() ? 0 : (int64_t)run_begin.size() - 1; }
    Tile tile(int64_t t) const {
        return {segments.data() + segment_begin[t], runs.data() + run_begin[t], segment_begin[t + 1] - segment_begin[t],
                run_begin[t + 1] - run_begin[t]};
    }
};

// Sorts one tile: row i (named row[i], or i) has count[i] <= kTile slots from start[i]; rows without slots are left out.
// Writes at most `rows` segments and kTile runs, and says how many.
void sort_tile(const uint32_t* start, const uint32_t* count, const uint32_t* row, int64_t rows, Segment* segments,
               Run* runs, int64_t* n_segments, int64_t* n_runs);

}  // namespace srigl

struct srigl_plan {
    int64_t n_out = 0, n_in = 0, slots = 0, fan_in = 0;
    int index_bytes = 0;
    std::vector<uint32_t> active;    // neuron of the i-th active row
    std::vector<uint32_t> ablated;   // all other neurons
    srigl::Tiles tiles;              // by tiles of inputs
};
