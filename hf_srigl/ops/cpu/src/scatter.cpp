// The dense matrix of a layer: each row is zeroed and written while it is in the first-level cache.
#include <string.h>

#include "condensed.h"
#include "parallel.h"
#include "plan.h"

namespace srigl {
namespace {

template <typename I, typename F> void scatter(const srigl_plan& p, const I* indices, const F* values, F* dense, int threads) {
    const int64_t active = (int64_t)p.active.size(), k = p.fan_in, width = p.n_in;
    run(threads, [&](const Team& team) {
        int64_t begin, end;
        team.share(active, 1, &begin, &end);
        for (int64_t i = begin; i < end; ++i) {
            F* row = dense + p.active[i] * width;
            memset(row, 0, sizeof(F) * (size_t)width);
            for (int64_t s = i * k; s < (i + 1) * k; ++s) row[indices[s]] = values[s];
        }
        team.share((int64_t)p.ablated.size(), 1, &begin, &end);
        for (int64_t i = begin; i < end; ++i) memset(dense + p.ablated[i] * width, 0, sizeof(F) * (size_t)width);
    });
}

}  // namespace
}  // namespace srigl

extern "C" int srigl_scatter(const srigl_plan* plan, const void* indices, const void* values, void* dense, int dtype,
                             int threads) {
    if (!plan || threads < 1 || (plan->slots && (!indices || !values))) return SRIGL_BAD_ARGUMENT;
    if (plan->n_out && plan->n_in && !dense) return SRIGL_BAD_ARGUMENT;
    if (dtype != SRIGL_F32 && dtype != SRIGL_BF16) return SRIGL_BAD_ARGUMENT;
    if (plan->index_bytes == 2) {
        if (dtype == SRIGL_F32) srigl::scatter(*plan, (const int16_t*)indices, (const float*)values, (float*)dense, threads);
        else srigl::scatter(*plan, (const int16_t*)indices, (const uint16_t*)values, (uint16_t*)dense, threads);
    } else {
        if (dtype == SRIGL_F32) srigl::scatter(*plan, (const int32_t*)indices, (const float*)values, (float*)dense, threads);
        else srigl::scatter(*plan, (const int32_t*)indices, (const uint16_t*)values, (uint16_t*)dense, threads);
    }
    return SRIGL_OK;
}
