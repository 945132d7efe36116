// The kernels on panels, written once over a vector type V (V::W floats) and compiled once per instruction set.
// A panel holds `lanes` rows of x transposed: feature f of row r at [f * lanes + r]. One slot then costs one broadcast of
// its value and lanes / W fused multiply-adds on contiguous memory.
//
// Everything is in an unnamed namespace on purpose: see isa.h.
#pragma once
#include <stdint.h>
#include <string.h>

#include "condensed.h"
#include "isa.h"

#if defined(_MSC_VER) && !defined(__clang__)
#define SRIGL_INLINE __forceinline
#define SRIGL_UNROLL
#if defined(_M_X64)
#include <immintrin.h>
#define SRIGL_PREFETCH(p) _mm_prefetch((const char*)(p), _MM_HINT_T0)
#else
#define SRIGL_PREFETCH(p) ((void)0)
#endif
#else
#define SRIGL_INLINE inline __attribute__((always_inline))
#define SRIGL_PREFETCH(p) __builtin_prefetch(p)
#if defined(__clang__)
#define SRIGL_UNROLL _Pragma("unroll")
#else
#define SRIGL_UNROLL _Pragma("GCC unroll 16")
#endif
#endif

namespace {

using srigl::Run;
using srigl::Segment;
using srigl::Slots;
using srigl::Tile;

// How many segments ahead the values and indices are prefetched: a tile visits slots of each row in turn, with a stride
// that hardware prefetchers do not follow.
constexpr int64_t kAhead = 12;

SRIGL_INLINE float scalar(float a) { return a; }
SRIGL_INLINE float scalar(uint16_t a) { uint32_t b = (uint32_t)a << 16; float f; memcpy(&f, &b, 4); return f; }

template <typename I> SRIGL_INLINE int64_t column(I i);
template <> SRIGL_INLINE int64_t column(int16_t i) { return (uint16_t)i; }
template <> SRIGL_INLINE int64_t column(int32_t i) { return (uint32_t)i; }

// How many slots ahead values and indices are prefetched where slots are read in order: hardware prefetchers stop at the
// end of each page, and behind a first page that is in no cache waits a walk through the page tables.
constexpr int64_t kSlotsAhead = 512;

template <typename I, typename F> SRIGL_INLINE void prefetch_slots(const I* indices, const F* values) {
    SRIGL_PREFETCH(values + kSlotsAhead);
    SRIGL_PREFETCH(indices + kSlotsAhead);
}

// acc[v] += sum of value * panel row, over `count` slots; panel rows are L apart. With few vectors a single chain of additions would wait for
// itself (4 cycles each), hence CHAINS independent ones.
template <typename V, int NV, int64_t L, typename I, typename F>
SRIGL_INLINE void accumulate(const I* ip, const F* vp, int64_t count, const float* src, typename V::T* acc) {
    constexpr int CHAINS = NV >= 4 ? 1 : 4 / NV;
    typename V::T more[CHAINS][NV];
    for (int c = 1; c < CHAINS; ++c)
        for (int v = 0; v < NV; ++v) more[c][v] = V::zero();
    int64_t j = 0;
    if constexpr (NV == 1 && V::kPermutes) {
        // One vector per slot makes the loads the bottleneck: take W values with one load and spread them by permuting.
        for (; j + V::W <= count; j += V::W) {
            const typename V::T w = V::load(vp + j);
            prefetch_slots(ip + j, vp + j);
            SRIGL_UNROLL
            for (int q = 0; q < V::W; ++q) {
                const float* x = src + column(ip[j + q]) * L;
                typename V::T* a = q % CHAINS ? more[q % CHAINS] : acc;
                a[0] = V::fma(V::spread(w, q), V::load(x), a[0]);
            }
        }
    }
    for (; j + 4 <= count; j += 4) {
        SRIGL_UNROLL
        for (int q = 0; q < 4; ++q) {
            typename V::T w = V::set1(vp[j + q]);
            const float* x = src + column(ip[j + q]) * L;
            typename V::T* a = q % CHAINS ? more[q % CHAINS] : acc;
            for (int v = 0; v < NV; ++v) a[v] = V::fma(w, V::load(x + v * V::W), a[v]);
        }
    }
    for (; j < count; ++j) {
        typename V::T w = V::set1(vp[j]);
        const float* x = src + column(ip[j]) * L;
        for (int v = 0; v < NV; ++v) acc[v] = V::fma(w, V::load(x + v * V::W), acc[v]);
    }
    for (int c = 1; c < CHAINS; ++c)
        for (int v = 0; v < NV; ++v) acc[v] = V::add(acc[v], more[c][v]);
}

// A run's share for one thread: the split is by run, so that all shares hold equally many slots.
SRIGL_INLINE void share(const Run& run, int part, int parts, int64_t* begin, int64_t* end) {
    *begin = (int64_t)run.segments * part / parts;
    *end = (int64_t)run.segments * (part + 1) / parts;
}

template <typename I, typename F>
SRIGL_INLINE void prefetch(const Tile& tile, int64_t at, const I* indices, const F* values) {
    const Segment& next = tile.segments[at + kAhead < tile.n_segments ? at + kAhead : tile.n_segments - 1];
    const char* v = (const char*)(values + next.start);
    SRIGL_PREFETCH(v);
    SRIGL_PREFETCH(v + 60);
    SRIGL_PREFETCH(indices + next.start);
    SRIGL_PREFETCH((const char*)(indices + next.start) + 60);
}

template <typename V, int NV, typename I, typename F>
void tile_panel(const Tile& tile, const I* indices, const F* values, const float* src, float* dst, int part, int parts) {
    constexpr int64_t L = (int64_t)NV * V::W;
    constexpr int G = NV < 8 ? NV : 8;   // as many sums as 16 registers hold
    int64_t first = 0;
    for (int64_t r = 0; r < tile.n_runs; ++r) {
        const Run run = tile.runs[r];
        int64_t begin, end;
        share(run, part, parts, &begin, &end);
        for (int64_t s = first + begin; s < first + end; ++s) {
            prefetch(tile, s, indices, values);
            const Segment seg = tile.segments[s];
            float* y = dst + (int64_t)seg.row * L;
            for (int64_t l = 0; l < L; l += G * V::W) {
                typename V::T acc[G];
                for (int v = 0; v < G; ++v) acc[v] = V::load(y + l + v * V::W);
                accumulate<V, G, L>(indices + seg.start, values + seg.start, run.count, src + l, acc);
                for (int v = 0; v < G; ++v) V::store(y + l + v * V::W, acc[v]);
            }
        }
        first += run.segments;
    }
}

template <typename V, int NV, typename I, typename F>
void whole_panel(const uint32_t* rows, int64_t i0, int64_t i1, int64_t fan_in, const I* indices, const F* values,
                 const F* bias, const float* src, float* dst) {
    constexpr int64_t L = (int64_t)NV * V::W;
    for (int64_t i = i0; i < i1; ++i) {
        typename V::T acc[NV];
        for (int v = 0; v < NV; ++v) acc[v] = bias ? V::set1(bias[rows[i]]) : V::zero();
        accumulate<V, NV, L>(indices + i * fan_in, values + i * fan_in, fan_in, src, acc);
        for (int v = 0; v < NV; ++v) V::store(dst + rows[i] * L + v * V::W, acc[v]);
    }
}

// gv[slot] += <panel row of the slot's column, panel row of its neuron>. The neuron's row stays in registers; four slots
// share one reduction over lanes.
template <typename V, int LANES, typename I>
void dot_panel(const Tile& tile, const I* indices, const float* src, const float* gy, float* gv, int part, int parts) {
    using Q = typename V::Quad;
    constexpr int64_t L = LANES;
    constexpr int H = LANES / V::W < 4 ? LANES / V::W : 4;   // vectors of the neuron's row held at a time
    int64_t first = 0;
    for (int64_t r = 0; r < tile.n_runs; ++r) {
        const Run run = tile.runs[r];
        int64_t begin, end;
        share(run, part, parts, &begin, &end);
        for (int64_t s = first + begin; s < first + end; ++s) {
            prefetch(tile, s, indices, gv);
            const Segment seg = tile.segments[s];
            const I* ip = indices + seg.start;
            float* out = gv + seg.start;
            for (int64_t l = 0; l < L; l += H * V::W) {
                typename V::T g[H];
                for (int v = 0; v < H; ++v) g[v] = V::load(gy + (int64_t)seg.row * L + l + v * V::W);
                int64_t j = 0;
                for (; j + 4 <= run.count; j += 4) {
                    typename V::T a[4];
                    SRIGL_UNROLL
                    for (int q = 0; q < 4; ++q) {
                        const float* x = src + column(ip[j + q]) * L + l;
                        a[q] = V::zero();
                        for (int v = 0; v < H; ++v) a[q] = V::fma(g[v], V::load(x + v * V::W), a[q]);
                    }
                    Q::store(out + j, Q::add(Q::load(out + j), V::sums(a[0], a[1], a[2], a[3])));
                }
                if (j < run.count) {
                    typename V::T a[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
                    for (int q = 0; q < 3; ++q) {
                        if (j + q >= run.count) break;
                        const float* x = src + column(ip[j + q]) * L + l;
                        for (int v = 0; v < H; ++v) a[q] = V::fma(g[v], V::load(x + v * V::W), a[q]);
                    }
                    float sum[4];
                    Q::store(sum, V::sums(a[0], a[1], a[2], a[3]));
                    for (int64_t q = 0; j + q < run.count; ++q) out[j + q] += sum[q];
                }
            }
        }
        first += run.segments;
    }
}

// One row of x: there is nothing to broadcast over, so the lanes are a neuron's own slots and x is gathered.
template <typename V, typename I, typename F>
void single_row(const uint32_t* rows, int64_t i0, int64_t i1, int64_t fan_in, const I* indices, const F* values,
                const F* bias, const float* x, F* y) {
    using Q = typename V::Quad;   // four lanes, for what is left of a neuron after its whole vectors
    for (int64_t i = i0; i < i1; i += 4) {
        typename V::T acc[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
        typename Q::T rest[4] = {Q::zero(), Q::zero(), Q::zero(), Q::zero()};
        float last[4] = {0, 0, 0, 0}, sum[4];
        const int n = i1 - i < 4 ? (int)(i1 - i) : 4;
        SRIGL_UNROLL
        for (int q = 0; q < 4; ++q) {
            if (q >= n) break;
            const I* ip = indices + (i + q) * fan_in;
            const F* vp = values + (i + q) * fan_in;
            int64_t j = 0;
            for (; j + V::W <= fan_in; j += V::W) acc[q] = V::fma(V::load(vp + j), V::gather(x, ip + j), acc[q]);
            for (; j + 4 <= fan_in; j += 4) rest[q] = Q::fma(Q::load(vp + j), Q::gather(x, ip + j), rest[q]);
            for (; j < fan_in; ++j) last[q] += scalar(vp[j]) * x[column(ip[j])];
        }
        Q::store(sum, Q::add(V::sums(acc[0], acc[1], acc[2], acc[3]), Q::sums(rest[0], rest[1], rest[2], rest[3])));
        for (int q = 0; q < n; ++q) {
            float s = sum[q] + last[q];
            if (bias) s += scalar(bias[rows[i + q]]);
            if (sizeof(F) == 4) {
                memcpy(y + rows[i + q], &s, sizeof(F));
            } else {
                const uint16_t h = V::round_bf16(s);
                memcpy(y + rows[i + q], &h, sizeof(F));
            }
        }
    }
}

}  // namespace
