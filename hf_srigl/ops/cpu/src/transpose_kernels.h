// Between row-major tensors and panels, and between bf16 and float.
#pragma once
#include "panel_kernels.h"

namespace {

template <typename V> SRIGL_INLINE void store_one(float* p, float f) { *p = f; }
template <typename V> SRIGL_INLINE void store_one(uint16_t* p, float f) { *p = V::round_bf16(f); }

template <typename V, typename F>
void pack_panel(const F* x, int64_t stride, int64_t rows, int64_t f0, int64_t f1, int lanes, float* dst) {
    constexpr int W = V::W;
    constexpr int64_t kFar = 512 / sizeof(F);   // prefetch eight cache lines ahead
    // W rows at a time, all along: more streams than that are beyond what hardware prefetchers follow.
    for (int r = 0; r < lanes; r += W) {
        for (int64_t f = f0; f < f1; f += W) {
            const int64_t n = f1 - f < W ? f1 - f : W;
            typename V::T t[W];
            if (n == W && r + W <= rows) {
                const F* from = x + r * stride + f;
                SRIGL_UNROLL
                for (int i = 0; i < W; ++i) {
                    SRIGL_PREFETCH(from + i * stride + kFar);
                    t[i] = V::load(from + i * stride);
                }
            } else {   // never read past the last row or feature
                for (int i = 0; i < W; ++i) {
                    if (n == W) {
                        t[i] = r + i < rows ? V::load(x + (r + i) * stride + f) : V::zero();
                        continue;
                    }
                    float edge[W] = {};
                    for (int64_t c = 0; r + i < rows && c < n; ++c) edge[c] = scalar(x[(r + i) * stride + f + c]);
                    t[i] = V::load(edge);
                }
            }
            V::transpose(t);
            float* to = dst + (f - f0) * lanes + r;
            if (n == W) {
                SRIGL_UNROLL
                for (int i = 0; i < W; ++i) V::store(to + i * lanes, t[i]);
            } else {
                for (int64_t i = 0; i < n; ++i) V::store(to + i * lanes, t[i]);
            }
        }
    }
}

template <typename V, typename F>
void unpack_panel(const float* src, int lanes, int64_t rows, int64_t n0, int64_t n1, F* y, int64_t stride) {
    constexpr int W = V::W;
    for (int r = 0; r < lanes && r < rows; r += W) {
        const int height = rows - r < W ? (int)(rows - r) : W;
        for (int64_t n = n0; n < n1; n += W) {
            const int64_t width = n1 - n < W ? n1 - n : W;
            const float* from = src + n * lanes + r;
            F* to = y + r * stride + n;
            typename V::T t[W];
            if (width == W) {
                SRIGL_UNROLL
                for (int i = 0; i < W; ++i) t[i] = V::load(from + i * lanes);
            } else {
                for (int i = 0; i < W; ++i) t[i] = i < width ? V::load(from + i * lanes) : V::zero();
            }
            V::transpose(t);
            if (width == W && height == W) {
                SRIGL_UNROLL
                for (int i = 0; i < W; ++i) V::store(to + i * stride, t[i]);
            } else {
                for (int i = 0; i < height; ++i) {
                    float edge[W];
                    V::store(edge, t[i]);
                    for (int64_t c = 0; c < width; ++c) store_one<V>(to + i * stride + c, edge[c]);
                }
            }
        }
    }
}

template <typename V, typename F> void fill_panel(const F* bias, int64_t n0, int64_t n1, int lanes, float* dst) {
    for (int64_t n = n0; n < n1; ++n) {
        const typename V::T b = bias ? V::set1(bias[n]) : V::zero();
        for (int r = 0; r < lanes; r += V::W) V::store(dst + n * lanes + r, b);
    }
}

template <typename V, typename F> void widen(const F* src, int64_t n, float* dst) {
    int64_t i = 0;
    for (; i + V::W <= n; i += V::W) V::store(dst + i, V::load(src + i));
    for (; i < n; ++i) dst[i] = scalar(src[i]);
}

template <typename V, typename F> void narrow(const float* src, int64_t n, F* dst) {
    int64_t i = 0;
    for (; i + V::W <= n; i += V::W) V::store(dst + i, V::load(src + i));
    for (; i < n; ++i) store_one<V>(dst + i, src[i]);
}

}  // namespace
