// Sixteen floats in an AVX-512 register.
#pragma once
#include "vec_avx2.h"

namespace {

struct F16 {
    using T = __m512;
    using Quad = Q4;
    static constexpr int W = 16;
    static constexpr bool kPermutes = true;
    static T spread(T a, int lane) { return _mm512_permutexvar_ps(_mm512_set1_epi32(lane), a); }
    static T zero() { return _mm512_setzero_ps(); }
    static T set1(float a) { return _mm512_set1_ps(a); }
    static T load(const float* p) { return _mm512_loadu_ps(p); }
    static void store(float* p, T a) { _mm512_storeu_ps(p, a); }
    static T add(T a, T b) { return _mm512_add_ps(a, b); }
    static T fma(T a, T b, T c) { return _mm512_fmadd_ps(a, b, c); }
    static T load(const uint16_t* p) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
    }
    static T set1(uint16_t a) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_set1_epi16((short)a), 16)); }
    static void store(uint16_t* p, T a) {
        __m512i b = _mm512_castps_si512(a);
        __m512i lsb = _mm512_and_si512(_mm512_srli_epi32(b, 16), _mm512_set1_epi32(1));
        __m512i r = _mm512_add_epi32(b, _mm512_add_epi32(lsb, _mm512_set1_epi32(0x7fff)));
        r = _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
        _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16)));
    }
    static uint16_t round_bf16(float f) { return F8::round_bf16(f); }
    static void transpose(T* r) {
        T t[16], u[16];
        for (int i = 0; i < 16; i += 2) {
            t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
            t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
        }
        for (int g = 0; g < 16; g += 4) {
            u[g] = _mm512_shuffle_ps(t[g], t[g + 2], 0x44);
            u[g + 1] = _mm512_shuffle_ps(t[g], t[g + 2], 0xee);
            u[g + 2] = _mm512_shuffle_ps(t[g + 1], t[g + 3], 0x44);
            u[g + 3] = _mm512_shuffle_ps(t[g + 1], t[g + 3], 0xee);
        }
        for (int c = 0; c < 4; ++c) {
            T a = _mm512_shuffle_f32x4(u[c], u[4 + c], 0x88), b = _mm512_shuffle_f32x4(u[c], u[4 + c], 0xdd);
            T e = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0x88), f = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0xdd);
            r[c] = _mm512_shuffle_f32x4(a, e, 0x88);
            r[8 + c] = _mm512_shuffle_f32x4(a, e, 0xdd);
            r[4 + c] = _mm512_shuffle_f32x4(b, f, 0x88);
            r[12 + c] = _mm512_shuffle_f32x4(b, f, 0xdd);
        }
    }
    static __m128 sums(T a, T b, T c, T d) {
        T ab = add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        T cd = add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        T q = add(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
        __m256 h = _mm256_add_ps(_mm512_castps512_ps256(q), _mm512_extractf32x8_ps(q, 1));
        return _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    }
    template <typename I> static T gather(const float* x, const I* i) {
        return _mm512_insertf32x8(_mm512_castps256_ps512(F8::gather(x, i)), F8::gather(x, i + 8), 1);
    }
};

}  // namespace
