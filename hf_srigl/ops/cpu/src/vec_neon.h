// Four floats in a NEON register.
#pragma once
#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

namespace {

struct F4 {
    using T = float32x4_t;
    using Quad = F4;
    static constexpr int W = 4;
    static constexpr bool kPermutes = false;
    static T spread(T a, int) { return a; }   // not used
    static T zero() { return vdupq_n_f32(0); }
    static T set1(float a) { return vdupq_n_f32(a); }
    static T load(const float* p) { return vld1q_f32(p); }
    static void store(float* p, T a) { vst1q_f32(p, a); }
    static T add(T a, T b) { return vaddq_f32(a, b); }
    static T fma(T a, T b, T c) { return vfmaq_f32(c, a, b); }
    static T load(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
    static T set1(uint16_t a) { return vreinterpretq_f32_u32(vdupq_n_u32((uint32_t)a << 16)); }
    static void store(uint16_t* p, T a) {
        uint32x4_t b = vreinterpretq_u32_f32(a);
        uint32x4_t lsb = vandq_u32(vshrq_n_u32(b, 16), vdupq_n_u32(1));
        uint32x4_t r = vaddq_u32(b, vaddq_u32(lsb, vdupq_n_u32(0x7fff)));
        uint32x4_t ordered = vceqq_f32(a, a);
        vst1_u16(p, vshrn_n_u32(vbslq_u32(ordered, r, vdupq_n_u32(0x7fc00000u)), 16));
    }
    static uint16_t round_bf16(float f) {
        uint32_t b; memcpy(&b, &f, 4);
        if ((b & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
        return (uint16_t)((b + 0x7fffu + ((b >> 16) & 1)) >> 16);
    }
    static void transpose(T* r) {
        T a = vtrn1q_f32(r[0], r[1]), b = vtrn2q_f32(r[0], r[1]);
        T c = vtrn1q_f32(r[2], r[3]), d = vtrn2q_f32(r[2], r[3]);
        r[0] = vcombine_f32(vget_low_f32(a), vget_low_f32(c));
        r[1] = vcombine_f32(vget_low_f32(b), vget_low_f32(d));
        r[2] = vcombine_f32(vget_high_f32(a), vget_high_f32(c));
        r[3] = vcombine_f32(vget_high_f32(b), vget_high_f32(d));
    }
    static T sums(T a, T b, T c, T d) { return vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)); }
    template <typename I> static T gather(const float* x, const I* i) {
        T r = vld1q_dup_f32(x + i[0]);
        r = vld1q_lane_f32(x + i[1], r, 1);
        r = vld1q_lane_f32(x + i[2], r, 2);
        return vld1q_lane_f32(x + i[3], r, 3);
    }
};

}  // namespace
