#include "plan.h"

#include <string.h>

#include <new>

#include "condensed.h"

namespace srigl {

void sort_tile(const uint32_t* start, const uint32_t* count, const uint32_t* row, int64_t rows, Segment* segments,
               Run* runs, int64_t* n_segments, int64_t* n_runs) {
    // Counting sort by length; rows of equal length stay in order.
    uint32_t at[kTile + 1] = {};
    for (int64_t i = 0; i < rows; ++i) ++at[count[i]];
    uint32_t next = 0;
    *n_runs = 0;
    for (uint32_t c = 1; c <= kTile; ++c) {
        const uint32_t n = at[c];
        if (n) runs[(*n_runs)++] = {c, n};
        at[c] = next;
        next += n;
    }
    *n_segments = next;
    for (int64_t i = 0; i < rows; ++i)
        if (count[i]) segments[at[count[i]]++] = {start[i], row ? row[i] : (uint32_t)i};
}

namespace {

// Whether `n` active rows own the same number of ascending columns below n_in each, with -1 in all slots after them.
template <typename I> bool valid(const I* indices, int64_t slots, int64_t n, int64_t n_in, int64_t* fan_in) {
    int64_t used = 0;
    while (used < slots && indices[used] >= 0) ++used;
    for (int64_t s = used; s < slots; ++s)
        if (indices[s] != -1) return false;
    *fan_in = 0;
    if (n == 0) return used == 0;
    if (used % n != 0) return false;
    const int64_t k = *fan_in = used / n;
    if (k > n_in) return false;
    for (int64_t i = 0; i < n; ++i) {
        int64_t last = -1;
        for (int64_t s = i * k; s < (i + 1) * k; ++s) {
            if (indices[s] <= last || indices[s] >= n_in) return false;
            last = indices[s];
        }
    }
    return true;
}

template <typename I> bool fits(const srigl_plan& p, const I* indices, const uint8_t* active) {
    int64_t fan_in, n = (int64_t)p.active.size();
    for (uint32_t row : p.active)
        if (!active[row]) return false;
    for (uint32_t row : p.ablated)
        if (active[row]) return false;
    return valid(indices, p.slots, n, p.n_in, &fan_in) && fan_in == p.fan_in;
}

template <typename I> int build(srigl_plan& p, const I* indices) {
    const int64_t n = (int64_t)p.active.size();
    if (!valid(indices, p.slots, n, p.n_in, &p.fan_in)) return SRIGL_BAD_TOPOLOGY;
    if (n == 0) return SRIGL_OK;
    const int64_t k = p.fan_in;
    std::vector<uint32_t> at(n), start(n), count(n);
    std::vector<Segment> segments(n);
    Run runs[kTile];
    Tiles& tiles = p.tiles;
    tiles.segment_begin.push_back(0);
    tiles.run_begin.push_back(0);
    for (int64_t i = 0; i < n; ++i) at[i] = (uint32_t)(i * k);
    for (int64_t edge = kTile; edge < p.n_in + kTile; edge += kTile) {
        for (int64_t i = 0; i < n; ++i) {
            const uint32_t end = (uint32_t)((i + 1) * k);
            uint32_t s = start[i] = at[i];
            while (s < end && indices[s] < edge) ++s;
            count[i] = s - at[i];
            at[i] = s;
        }
        int64_t n_segments, n_runs;
        sort_tile(start.data(), count.data(), p.active.data(), n, segments.data(), runs, &n_segments, &n_runs);
        tiles.segments.insert(tiles.segments.end(), segments.begin(), segments.begin() + n_segments);
        tiles.runs.insert(tiles.runs.end(), runs, runs + n_runs);
        tiles.segment_begin.push_back((int64_t)tiles.segments.size());
        tiles.run_begin.push_back((int64_t)tiles.runs.size());
    }
    tiles.segments.shrink_to_fit();
    tiles.runs.shrink_to_fit();
    return SRIGL_OK;
}

inline uint64_t mix(uint64_t h, uint64_t v) { return ((h ^ v) * 0x9e3779b97f4a7c15ull) ^ (h >> 29); }

uint64_t hash(const uint8_t* p, int64_t bytes, uint64_t h) {
    uint64_t lane[4] = {h, h + 1, h + 2, h + 3}, v;   // four chains: one multiplication a cycle instead of one in four
    int64_t i = 0;
    for (; i + 32 <= bytes; i += 32)
        for (int q = 0; q < 4; ++q) {
            memcpy(&v, p + i + 8 * q, 8);
            lane[q] = mix(lane[q], v);
        }
    for (; i < bytes; ++i) lane[0] = mix(lane[0], p[i]);
    return mix(mix(lane[0], lane[1]), mix(lane[2], lane[3]));
}

}  // namespace
}  // namespace srigl

extern "C" {

int srigl_plan_create(const void* indices, int index_bytes, const uint8_t* active, int64_t n_out, int64_t n_in,
                      int64_t slots, srigl_plan** plan) {
    if (!plan) return SRIGL_BAD_ARGUMENT;
    *plan = nullptr;
    // Slots and rows are addressed with 32 bits in a Segment.
    const int64_t limit = INT32_MAX - srigl::kTile;
    if (n_out < 0 || n_in < 0 || slots < 0 || n_out > limit || n_in > limit || slots > UINT32_MAX) return SRIGL_BAD_ARGUMENT;
    if ((slots && !indices) || (n_out && !active) || (index_bytes != 2 && index_bytes != 4)) return SRIGL_BAD_ARGUMENT;
    if (index_bytes == 2 && n_in > 32768) return SRIGL_BAD_ARGUMENT;
    try {
        srigl_plan* p = new srigl_plan;
        p->n_out = n_out;
        p->n_in = n_in;
        p->slots = slots;
        p->index_bytes = index_bytes;
        int status;
        try {
            for (int64_t n = 0; n < n_out; ++n) (active[n] ? p->active : p->ablated).push_back((uint32_t)n);
            status = index_bytes == 2 ? srigl::build(*p, (const int16_t*)indices) : srigl::build(*p, (const int32_t*)indices);
        } catch (...) {
            delete p;
            return SRIGL_NO_MEMORY;
        }
        if (status != SRIGL_OK) delete p;
        else *plan = p;
        return status;
    } catch (...) {
        return SRIGL_NO_MEMORY;
    }
}

void srigl_plan_free(srigl_plan* plan) { delete plan; }

int64_t srigl_plan_bytes(const srigl_plan* p) {
    return (int64_t)(sizeof *p + 4 * (p->active.capacity() + p->ablated.capacity()) +
                     sizeof(srigl::Segment) * p->tiles.segments.capacity() + sizeof(srigl::Run) * p->tiles.runs.capacity() +
                     8 * (p->tiles.run_begin.capacity() + p->tiles.segment_begin.capacity()));
}
int64_t srigl_plan_fan_in(const srigl_plan* p) { return p->fan_in; }
int64_t srigl_plan_active(const srigl_plan* p) { return (int64_t)p->active.size(); }

int srigl_plan_fits(const srigl_plan* p, const void* indices, const uint8_t* active) {
    if (!p || (p->slots && !indices) || (p->n_out && !active)) return 0;
    return p->index_bytes == 2 ? srigl::fits(*p, (const int16_t*)indices, active)
                               : srigl::fits(*p, (const int32_t*)indices, active);
}

uint64_t srigl_fingerprint(const void* indices, int index_bytes, const uint8_t* active, int64_t n_out, int64_t slots) {
    return srigl::hash((const uint8_t*)indices, slots * index_bytes, srigl::hash(active, n_out, (uint64_t)slots));
}

uint64_t srigl_sample(const void* values, int64_t slots, int value_bytes) {
    uint64_t h = (uint64_t)slots;
    const int64_t n = slots < 64 ? slots : 64;
    for (int64_t i = 0; i < n; ++i) {
        uint32_t v = 0;
        memcpy(&v, (const char*)values + (slots - 1) * i / (n > 1 ? n - 1 : 1) * value_bytes, value_bytes == 2 ? 2 : 4);
        h = srigl::mix(h, v);
    }
    return h;
}

}  // extern "C"
