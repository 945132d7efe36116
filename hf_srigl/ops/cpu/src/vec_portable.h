// Four floats in plain C++, for machines none of the other vector types fits.
#pragma once
#include <stdint.h>
#include <string.h>

namespace {

struct F4 {
    struct T { float v[4]; };
    using Quad = F4;
    static constexpr int W = 4;
    static constexpr bool kPermutes = false;
    static T spread(T a, int) { return a; }   // not used
    static T zero() { return {{0, 0, 0, 0}}; }
    static T set1(float a) { return {{a, a, a, a}}; }
    static T load(const float* p) { T r; memcpy(&r, p, sizeof r); return r; }
    static void store(float* p, T a) { memcpy(p, &a, sizeof a); }
    static T add(T a, T b) { for (int i = 0; i < 4; ++i) a.v[i] += b.v[i]; return a; }
    static T fma(T a, T b, T c) { for (int i = 0; i < 4; ++i) c.v[i] += a.v[i] * b.v[i]; return c; }
    static T load(const uint16_t* p) {
        T r;
        for (int i = 0; i < 4; ++i) { uint32_t b = (uint32_t)p[i] << 16; memcpy(&r.v[i], &b, 4); }
        return r;
    }
    static void store(uint16_t* p, T a) { for (int i = 0; i < 4; ++i) p[i] = round_bf16(a.v[i]); }
    static T set1(uint16_t a) { uint32_t b = (uint32_t)a << 16; float f; memcpy(&f, &b, 4); return set1(f); }
    static uint16_t round_bf16(float f) {
        uint32_t b; memcpy(&b, &f, 4);
        if ((b & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;   // NaN stays NaN
        return (uint16_t)((b + 0x7fffu + ((b >> 16) & 1)) >> 16);
    }
    static void transpose(T* r) {
        for (int i = 0; i < 4; ++i)
            for (int j = 0; j < i; ++j) { float t = r[i].v[j]; r[i].v[j] = r[j].v[i]; r[j].v[i] = t; }
    }
    // The four sums over lanes.
    static T sums(T a, T b, T c, T d) {
        const T* q[4] = {&a, &b, &c, &d};
        T out;
        for (int i = 0; i < 4; ++i) out.v[i] = (q[i]->v[0] + q[i]->v[1]) + (q[i]->v[2] + q[i]->v[3]);
        return out;
    }
    template <typename I> static T gather(const float* x, const I* i) { return {{x[i[0]], x[i[1]], x[i[2]], x[i[3]]}}; }
};

}  // namespace
