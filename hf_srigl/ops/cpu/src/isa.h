// What one instruction set has to offer, and the data it works on. This header is read by every translation unit,
// each compiled with other machine flags, so it holds plain data only: an inline function here could be emitted with
// AVX-512 instructions and then be picked by the linker for everybody.
#pragma once
#include <stdint.h>

namespace srigl {

// Inputs per tile. A tile of 64 rows x 256 inputs is 64 KB: half of its reads hit the first-level cache and the rest
// the second, which measured as fast as a smaller tile and leaves segments long enough to amortise their start.
constexpr int kTile = 256;
// Rows of x in the largest panel. A panel is x transposed: (features, lanes), lanes contiguous.
constexpr int kLanes = 64;

// One row's slots within one tile: `count` slots (kept in the run) from `start`.
struct Segment {
    uint32_t start;
    uint32_t row;
};
// Consecutive segments of equal length. Sorting a tile's segments by length makes the inner loop's trip count
// predictable; in natural order its misprediction costs as much as ten slots.
struct Run {
    uint32_t count;
    uint32_t segments;
};
struct Tile {
    const Segment* segments;
    const Run* runs;
    int64_t n_segments;
    int64_t n_runs;
};

// Values and their columns, in whatever types they came.
struct Slots {
    const void* indices;
    const void* values;
    int index_bytes;   // 2 or 4
    int dtype;         // srigl_dtype of values (and bias)
};

struct Isa {
    const char* name;
    // dst[(f - f0) * lanes + r] = x[r, f] for f in [f0, f1); lanes past `rows` are zero.
    void (*pack)(const void* x, int64_t stride, int dtype, int64_t rows, int64_t f0, int64_t f1, int lanes, float* dst);
    // y[r, n] = src[n * lanes + r] for n in [n0, n1), rounded to dtype.
    void (*unpack)(const float* src, int lanes, int64_t rows, int64_t n0, int64_t n1, void* y, int64_t stride, int dtype);
    // panel rows [n0, n1) of dst = bias (0 without one).
    void (*fill)(const void* bias, int dtype, int64_t n0, int64_t n1, int lanes, float* dst);
    // dst[row] += sum over the row's slots in this tile of value * src[column], for the `part`-th of `parts` shares.
    void (*tile)(const Tile& tile, const Slots& slots, const float* src, float* dst, int lanes, int part, int parts);
    // dst[rows[i]] = bias + the whole row i, for i in [i0, i1): no tiles, for few lanes.
    void (*whole)(const uint32_t* rows, int64_t i0, int64_t i1, int64_t fan_in, const Slots& slots, const void* bias,
                  const float* src, float* dst, int lanes);
    // y[rows[i]] = bias + row i times one x, for i in [i0, i1).
    void (*single)(const uint32_t* rows, int64_t i0, int64_t i1, int64_t fan_in, const Slots& slots, const void* bias,
                   const float* x, void* y);
    // gv[slot] += sum over lanes (16, 32 or 64) of src[column] * gy[row], for this tile's share.
    void (*dots)(const Tile& tile, const Slots& slots, const float* src, const float* gy, float* gv, int lanes, int part,
                 int parts);
    void (*to_float)(const void* src, int dtype, int64_t n, float* dst);
    void (*from_float)(const float* src, int64_t n, void* dst, int dtype);
};

// Null where the compiler or the target has no such instruction set.
const Isa* avx512_isa();
const Isa* avx2_isa();
const Isa* neon_isa();
const Isa* portable_isa();
// The one in use.
const Isa& isa();

}  // namespace srigl
