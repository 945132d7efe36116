#include "transposed.h"

#include <string.h>

#include "condensed.h"

namespace srigl {
namespace {

size_t round64(size_t n) { return (n + 63) / 64 * 64; }

int64_t count_tiles(const srigl_plan& p) { return ((int64_t)p.active.size() + kTile - 1) / kTile; }
int bytes_per_row(const srigl_plan& p) { return p.n_out <= 32768 ? 2 : 4; }
int64_t used(const srigl_plan& p) { return p.fan_in * (int64_t)p.active.size(); }

float value(float v) { return v; }
float value(uint16_t v) { const uint32_t b = (uint32_t)v << 16; float f; memcpy(&f, &b, 4); return f; }

}  // namespace

size_t Transposed::bytes(const srigl_plan& p, int threads) {
    const size_t t = (size_t)count_tiles(p), k = (size_t)p.n_in, b = (size_t)used(p);
    return round64(4 * b) + round64(bytes_per_row(p) * b) + round64(sizeof(Tile) * t) + round64(sizeof(Segment) * t * k) +
           round64(sizeof(Run) * t * kTile) + round64(8 * k * threads);
}

Transposed::Transposed(const srigl_plan& p, void* memory, int threads)
    : plan(p), n_tiles(count_tiles(p)), row_bytes(bytes_per_row(p)) {
    char* m = (char*)memory;
    const size_t t = (size_t)n_tiles, k = (size_t)p.n_in, b = (size_t)used(p);
    values = (float*)m;
    m += round64(4 * b);
    rows = m;
    m += round64(row_bytes * b);
    tiles = (Tile*)m;
    m += round64(sizeof(Tile) * t);
    segments = (Segment*)m;
    m += round64(sizeof(Segment) * t * k);
    runs = (Run*)m;
    m += round64(sizeof(Run) * t * kTile);
    counts = (uint32_t*)m;
    (void)threads;
}

template <typename I, typename F, typename R>
void Transposed::sort(const I* indices, const F* in, int64_t t, uint32_t* count) {
    const int64_t n = (int64_t)plan.active.size(), k = plan.fan_in, width = plan.n_in;
    const int64_t i0 = t * kTile, i1 = i0 + kTile < n ? i0 + kTile : n;
    uint32_t* start = count + width;
    memset(count, 0, 4 * (size_t)width);
    for (int64_t s = i0 * k; s < i1 * k; ++s) ++count[indices[s]];
    uint32_t next = (uint32_t)(i0 * k);
    for (int64_t f = 0; f < width; ++f) {
        start[f] = next;
        next += count[f];
    }
    R* row = (R*)rows;
    for (int64_t i = i0; i < i1; ++i) {
        const R neuron = (R)plan.active[i];
        for (int64_t s = i * k; s < (i + 1) * k; ++s) {
            const uint32_t to = start[indices[s]]++;
            row[to] = neuron;
            values[to] = value(in[s]);
        }
    }
    for (int64_t f = 0; f < width; ++f) start[f] -= count[f];
    Tile& tile = tiles[t];
    Segment* out = segments + t * width;
    Run* run = runs + t * kTile;
    sort_tile(start, count, nullptr, width, out, run, &tile.n_segments, &tile.n_runs);
    tile.segments = out;
    tile.runs = run;
}

void Transposed::build(const Slots& s, const Team& team) {
    uint32_t* count = counts + 2 * plan.n_in * team.id;
    for (int64_t t = team.id; t < n_tiles; t += team.size) {
        const int kind = (s.index_bytes == 4) * 4 + (s.dtype == SRIGL_BF16) * 2 + (row_bytes == 4);
        switch (kind) {
            case 0: sort<int16_t, float, int16_t>((const int16_t*)s.indices, (const float*)s.values, t, count); break;
            case 1: sort<int16_t, float, int32_t>((const int16_t*)s.indices, (const float*)s.values, t, count); break;
            case 2: sort<int16_t, uint16_t, int16_t>((const int16_t*)s.indices, (const uint16_t*)s.values, t, count); break;
            case 3: sort<int16_t, uint16_t, int32_t>((const int16_t*)s.indices, (const uint16_t*)s.values, t, count); break;
            case 4: sort<int32_t, float, int16_t>((const int32_t*)s.indices, (const float*)s.values, t, count); break;
            case 5: sort<int32_t, float, int32_t>((const int32_t*)s.indices, (const float*)s.values, t, count); break;
            case 6: sort<int32_t, uint16_t, int16_t>((const int32_t*)s.indices, (const uint16_t*)s.values, t, count); break;
            default: sort<int32_t, uint16_t, int32_t>((const int32_t*)s.indices, (const uint16_t*)s.values, t, count); break;
        }
    }
}

Slots Transposed::slots() const { return {rows, values, row_bytes, SRIGL_F32}; }

}  // namespace srigl
