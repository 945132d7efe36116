// gx = gy W and gv[slot] = <x column, gy row>, panel by panel of up to 64 rows.
//
// Each thread takes a range of rows for both, so that gy is packed once. The values' gradients are then sums over threads:
// every range but the first adds up its own copy (B floats), and the copies are added in order at the end. With many
// threads there are at most kRanges copies, and the threads of a range share its neurons.
#include <string.h>

#include "condensed.h"
#include "isa.h"
#include "parallel.h"
#include "plan.h"
#include "scratch.h"
#include "transposed.h"

namespace srigl {
namespace {

struct Call {
    const srigl_plan& plan;
    Slots slots;
    const char* gy;
    int64_t gy_stride;
    const char* x;
    int64_t x_stride;
    char* gx;
    char* gv;
    int64_t rows;
    int dtype;

    int64_t bytes() const { return dtype == SRIGL_F32 ? 4 : 2; }
};

constexpr int kRanges = 8;

int lanes_for(int64_t rows) { return rows <= 16 ? 16 : rows <= 48 ? 32 : kLanes; }

// Calls body(first row, rows, lanes) for the panels of [begin, end).
template <typename Body> void panels(int64_t begin, int64_t end, const Body& body) {
    while (begin < end) {
        const int lanes = lanes_for(end - begin);
        const int64_t rows = end - begin < lanes ? end - begin : lanes;
        body(begin, rows, lanes);
        begin += rows;
    }
}

void pack(const Call& c, const char* from, int64_t stride, int64_t width, int64_t r0, int64_t rows, int lanes, float* to) {
    isa().pack(from + r0 * stride * c.bytes(), stride, c.dtype, rows, 0, width, lanes, to);
}

void grad_x(const Call& c, const Transposed& w, int64_t r0, int64_t rows, int lanes, const float* gy, float* gx) {
    const Isa& k = isa();
    const int64_t width = c.plan.n_in;
    k.fill(nullptr, SRIGL_F32, 0, width, lanes, gx);
    for (int64_t t = 0; t < w.size(); ++t) k.tile(w.tile(t), w.slots(), gy, gx, lanes, 0, 1);
    k.unpack(gx, lanes, rows, 0, width, c.gx + r0 * width * c.bytes(), width, c.dtype);
}

int backward(const Call& c, int threads) {
    const srigl_plan& p = c.plan;
    const size_t size_g = (size_t)p.n_out * kLanes, size_x = (size_t)p.n_in * kLanes;
    const size_t size_sum = (size_t)(p.slots + 15) / 16 * 16;
    const int64_t work = p.fan_in * (int64_t)p.active.size() * ((c.rows + 15) / 16);
    if (threads > work / 20000 + 1) threads = (int)(work / 20000 + 1);

    const int64_t groups = (c.rows + 15) / 16;
    const int most = threads < kRanges ? threads : kRanges;
    const int copies = !c.gv ? 0 : (c.dtype == SRIGL_BF16 ? most : most - 1);
    const size_t floats = (size_g + size_x) * threads + size_sum * copies;
    char* memory = (char*)scratch(4 * floats + (c.gx ? Transposed::bytes(p, threads) : 0) + 64);
    if (!memory) return SRIGL_NO_MEMORY;
    float* panel_memory = (float*)memory;
    float* copy = panel_memory + (size_g + size_x) * threads;
    Transposed w(p, memory + 4 * floats, threads);
    // The r-th range's sums; the first range of float32 needs no copy.
    auto sums = [&](int r) { return c.dtype == SRIGL_F32 ? (r ? copy + size_sum * (r - 1) : (float*)c.gv) : copy + size_sum * r; };

    run(threads, [&](const Team& team) {
        const Isa& k = isa();
        float* gy = panel_memory + (size_g + size_x) * team.id;
        float* x = gy + size_g;
        const int64_t limit = groups < kRanges ? groups : kRanges;
        const int ranges = (int)(team.size < limit ? team.size : limit > 0 ? limit : 1);
        const int parts = team.size / ranges, r = team.id / parts, part = team.id % parts;
        int64_t begin, end;
        if (c.gx) {
            w.build(c.slots, team);
            team.barrier();
        }
        if (c.gx && !(c.gv && parts == 1)) {   // gx alone uses all threads
            team.share(c.rows, 16, &begin, &end);
            panels(begin, end, [&](int64_t r0, int64_t rows, int lanes) {
                pack(c, c.gy, c.gy_stride, p.n_out, r0, rows, lanes, gy);
                grad_x(c, w, r0, rows, lanes, gy, x);
            });
        }
        if (!c.gv) return;
        if (r < ranges) {
            float* sum = sums(r);
            if (part == 0) memset(sum, 0, 4 * (size_t)p.slots);
        }
        if (parts > 1) team.barrier();
        if (r < ranges) {
            float* sum = sums(r);
            Team{r, ranges}.share(c.rows, 16, &begin, &end);
            panels(begin, end, [&](int64_t r0, int64_t rows, int lanes) {
                pack(c, c.gy, c.gy_stride, p.n_out, r0, rows, lanes, gy);
                if (c.gx && parts == 1) grad_x(c, w, r0, rows, lanes, gy, x);
                pack(c, c.x, c.x_stride, p.n_in, r0, rows, lanes, x);
                for (int64_t t = 0; t < p.tiles.size(); ++t) {
                    k.dots(p.tiles.tile(t), c.slots, x, gy, sum, lanes, part, parts);
                }
            });
        }
        team.barrier();
        team.share(p.slots, 16, &begin, &end);
        float* total = sums(0);
        for (int q = 1; q < ranges; ++q) {
            const float* more = sums(q);
            for (int64_t s = begin; s < end; ++s) total[s] += more[s];
        }
        if (c.dtype == SRIGL_BF16) k.from_float(total + begin, end - begin, c.gv + begin * c.bytes(), c.dtype);
    });
    return SRIGL_OK;
}

}  // namespace
}  // namespace srigl

extern "C" int srigl_backward(const srigl_plan* plan, const void* indices, const void* values, const void* gy,
                              int64_t gy_stride, const void* x, int64_t x_stride, void* gx, void* gv, int64_t rows,
                              int dtype, int threads) {
    if (!plan || rows < 0 || (dtype != SRIGL_F32 && dtype != SRIGL_BF16) || threads < 1) return SRIGL_BAD_ARGUMENT;
    if (plan->slots && (!indices || (gx && !values))) return SRIGL_BAD_ARGUMENT;
    if (rows && ((plan->n_out && !gy) || (gv && plan->n_in && !x))) return SRIGL_BAD_ARGUMENT;
    const srigl::Call call{*plan, {indices, values, plan->index_bytes, dtype}, (const char*)gy, gy_stride, (const char*)x,
                           x_stride, (char*)gx, (char*)gv, rows, dtype};
    return srigl::backward(call, threads);
}
