// y = x W^T + bias, by number of rows:
//   1        one gathered dot product per neuron;
//   2 - 16   one panel of 8 or 16 lanes, walked neuron by neuron: it fits the second-level cache whole;
//   more     panels of up to 64 lanes, walked tile by tile.
// Threads never meet before the end (a barrier costs a scheduler's time slice when the machine has other work): each takes
// a range of rows, or, when there are too few rows for that, a range of neurons of one small panel, which it then packs for
// itself.
#include "condensed.h"
#include "isa.h"
#include "parallel.h"
#include "plan.h"
#include "scratch.h"

namespace srigl {
namespace {

struct Call {
    const srigl_plan& plan;
    Slots slots;
    const void* bias;
    const char* x;
    int64_t x_stride;
    char* y;
    int64_t rows;
    int dtype;

    int64_t bytes() const { return dtype == SRIGL_F32 ? 4 : 2; }
    const void* x_row(int64_t r) const { return x + r * x_stride * bytes(); }
    void* y_row(int64_t r) const { return y + r * plan.n_out * bytes(); }
};

// Lanes of the next panel when `rows` are left: 33 to 48 rows are better served by 32 and a smaller one than by 64.
int lanes_for(int64_t rows) { return rows <= 8 ? 8 : rows <= 16 ? 16 : rows <= 48 ? 32 : kLanes; }

void ablated_rows(const Call& c, int64_t n0, int64_t n1, int lanes, float* y) {
    for (uint32_t n : c.plan.ablated)
        if (n >= n0 && n < n1) isa().fill(c.bias, c.dtype, n, n + 1, lanes, y);
}

void single(const Call& c, float* x, const Team& team) {
    const Isa& k = isa();
    const srigl_plan& p = c.plan;
    const float* input = (const float*)c.x;
    if (c.dtype == SRIGL_BF16) {
        float* own = x + team.id * ((p.n_in + 15) / 16 * 16);
        k.to_float(c.x, c.dtype, p.n_in, own);
        input = own;
    }
    int64_t begin, end;
    team.share((int64_t)p.active.size(), 4, &begin, &end);
    k.single(p.active.data(), begin, end, p.fan_in, c.slots, c.bias, input, c.y);
    if (team.id == 0)
        for (uint32_t n : p.ablated) {
            float b = 0;
            if (c.bias) k.to_float((const char*)c.bias + n * c.bytes(), c.dtype, 1, &b);
            k.from_float(&b, 1, c.y + n * c.bytes(), c.dtype);
        }
}

// One small panel; of its neurons those of the `part`-th of `parts` shares.
void small_panel(const Call& c, int64_t r0, int64_t rows, float* x, float* y, int part, int parts) {
    const Isa& k = isa();
    const srigl_plan& p = c.plan;
    const int lanes = lanes_for(rows);
    const int64_t n = (int64_t)p.active.size(), i0 = n * part / parts, i1 = n * (part + 1) / parts;
    // The neurons from this share's first active row to the next share's.
    const int64_t n0 = part == 0 ? 0 : i0 < n ? p.active[i0] : p.n_out;
    const int64_t n1 = part + 1 == parts ? p.n_out : i1 < n ? p.active[i1] : p.n_out;
    if (n0 >= n1) return;
    k.pack(c.x_row(r0), c.x_stride, c.dtype, rows, 0, p.n_in, lanes, x);
    ablated_rows(c, n0, n1, lanes, y);
    k.whole(p.active.data(), i0, i1, p.fan_in, c.slots, c.bias, x, y, lanes);
    k.unpack(y, lanes, rows, n0, n1, c.y_row(r0), p.n_out, c.dtype);
}

void panel(const Call& c, int64_t r0, int64_t rows, int lanes, float* x, float* y) {
    const Isa& k = isa();
    const srigl_plan& p = c.plan;
    k.pack(c.x_row(r0), c.x_stride, c.dtype, rows, 0, p.n_in, lanes, x);
    k.fill(c.bias, c.dtype, 0, p.n_out, lanes, y);
    for (int64_t t = 0; t < p.tiles.size(); ++t) k.tile(p.tiles.tile(t), c.slots, x, y, lanes, 0, 1);
    k.unpack(y, lanes, rows, 0, p.n_out, c.y_row(r0), p.n_out, c.dtype);
}

int forward(const Call& c, int threads) {
    const srigl_plan& p = c.plan;
    if (c.rows == 0 || p.n_out == 0) return SRIGL_OK;
    // Starting a thread is not worth less than about 10 microseconds of work.
    const int64_t work = p.fan_in * (int64_t)p.active.size() * (c.rows == 1 ? 1 : 2 * ((c.rows + 7) / 8));
    if (threads > work / 40000 + 1) threads = (int)(work / 40000 + 1);
    if (c.rows == 1) {
        float* x = nullptr;
        if (c.dtype == SRIGL_BF16) {
            x = (float*)scratch(sizeof(float) * threads * ((p.n_in + 15) / 16 * 16));
            if (!x) return SRIGL_NO_MEMORY;
        }
        run(threads, [&](const Team& team) { single(c, x, team); });
        return SRIGL_OK;
    }
    const size_t size_x = (size_t)p.n_in * kLanes, size_y = (size_t)p.n_out * kLanes;
    float* memory = (float*)scratch(sizeof(float) * (size_x + size_y) * threads);
    if (!memory) return SRIGL_NO_MEMORY;
    run(threads, [&](const Team& team) {
        float* x = memory + team.id * (size_x + size_y);
        float* y = x + size_x;
        const int64_t groups = (c.rows + 15) / 16;
        if (groups < team.size || groups == 1) {   // threads share a group of 16 rows by neurons
            const int64_t parts = team.size / groups, g = team.id / parts, r0 = g * 16;
            if (g < groups) small_panel(c, r0, c.rows - r0 < 16 ? c.rows - r0 : 16, x, y, (int)(team.id % parts), (int)parts);
            return;
        }
        int64_t begin, end;
        team.share(c.rows, 16, &begin, &end);
        for (int64_t r0 = begin; r0 < end;) {
            const int lanes = lanes_for(end - r0);
            const int64_t rows = end - r0 < lanes ? end - r0 : lanes;
            if (lanes <= 16) small_panel(c, r0, rows, x, y, 0, 1);
            else panel(c, r0, rows, lanes, x, y);
            r0 += rows;
        }
    });
    return SRIGL_OK;
}

}  // namespace
}  // namespace srigl

extern "C" int srigl_forward(const srigl_plan* plan, const void* indices, const void* values, const void* bias,
                             const void* x, int64_t x_stride, void* y, int64_t rows, int dtype, int threads) {
    if (!plan || rows < 0 || (dtype != SRIGL_F32 && dtype != SRIGL_BF16) || threads < 1) return SRIGL_BAD_ARGUMENT;
    if (rows && plan->n_out && (!y || (plan->n_in && !x) || (plan->slots && (!values || !indices)))) return SRIGL_BAD_ARGUMENT;
    const srigl::Call call{*plan, {indices, values, plan->index_bytes, dtype}, bias, (const char*)x, x_stride, (char*)y, rows, dtype};
    return srigl::forward(call, threads);
}
