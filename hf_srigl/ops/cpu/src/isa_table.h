// Turns the templates into the table of one instruction set: V is its vector type, V8 its type for 8 lanes.
#pragma once
#include "panel_kernels.h"
#include "transpose_kernels.h"

namespace {

template <typename V, typename V8> struct Table {
    template <typename I, typename F> struct Typed {
        static void tile(const Tile& t, const Slots& s, const float* src, float* dst, int lanes, int part, int parts) {
            const I* ip = (const I*)s.indices;
            const F* vp = (const F*)s.values;
            switch (lanes) {
                case 8: return tile_panel<V8, 8 / V8::W>(t, ip, vp, src, dst, part, parts);
                case 16: return tile_panel<V, 16 / V::W>(t, ip, vp, src, dst, part, parts);
                case 32: return tile_panel<V, 32 / V::W>(t, ip, vp, src, dst, part, parts);
                default: return tile_panel<V, 64 / V::W>(t, ip, vp, src, dst, part, parts);
            }
        }
        static void whole(const uint32_t* rows, int64_t i0, int64_t i1, int64_t k, const Slots& s, const void* bias,
                          const float* src, float* dst, int lanes) {
            const I* ip = (const I*)s.indices;
            const F* vp = (const F*)s.values;
            const F* b = (const F*)bias;
            if (lanes == 8) whole_panel<V8, 8 / V8::W>(rows, i0, i1, k, ip, vp, b, src, dst);
            else whole_panel<V, 16 / V::W>(rows, i0, i1, k, ip, vp, b, src, dst);
        }
        static void single(const uint32_t* rows, int64_t i0, int64_t i1, int64_t k, const Slots& s, const void* bias,
                           const float* x, void* y) {
            // V8 even where V is wider: half as much of each neuron is left for the narrow end.
            single_row<V8>(rows, i0, i1, k, (const I*)s.indices, (const F*)s.values, (const F*)bias, x, (F*)y);
        }
    };

// Calls Typed<I, F>::what for the types found in `s`.
#define SRIGL_TYPED(what, ...)                                                              \
    if (s.index_bytes == 2) {                                                               \
        if (s.dtype == SRIGL_F32) return Typed<int16_t, float>::what(__VA_ARGS__);          \
        return Typed<int16_t, uint16_t>::what(__VA_ARGS__);                                 \
    }                                                                                       \
    if (s.dtype == SRIGL_F32) return Typed<int32_t, float>::what(__VA_ARGS__);              \
    return Typed<int32_t, uint16_t>::what(__VA_ARGS__)

    static void tile(const Tile& t, const Slots& s, const float* src, float* dst, int lanes, int part, int parts) {
        SRIGL_TYPED(tile, t, s, src, dst, lanes, part, parts);
    }
    static void whole(const uint32_t* rows, int64_t i0, int64_t i1, int64_t k, const Slots& s, const void* bias,
                      const float* src, float* dst, int lanes) {
        SRIGL_TYPED(whole, rows, i0, i1, k, s, bias, src, dst, lanes);
    }
    static void single(const uint32_t* rows, int64_t i0, int64_t i1, int64_t k, const Slots& s, const void* bias,
                       const float* x, void* y) {
        SRIGL_TYPED(single, rows, i0, i1, k, s, bias, x, y);
    }
#undef SRIGL_TYPED
    template <typename I>
    static void typed_dots(const Tile& t, const I* ip, const float* src, const float* gy, float* gv, int lanes, int part, int parts) {
        switch (lanes) {
            case 16: return dot_panel<V, 16>(t, ip, src, gy, gv, part, parts);
            case 32: return dot_panel<V, 32>(t, ip, src, gy, gv, part, parts);
            default: return dot_panel<V, 64>(t, ip, src, gy, gv, part, parts);
        }
    }
    static void dots(const Tile& t, const Slots& s, const float* src, const float* gy, float* gv, int lanes, int part, int parts) {
        if (s.index_bytes == 2) typed_dots(t, (const int16_t*)s.indices, src, gy, gv, lanes, part, parts);
        else typed_dots(t, (const int32_t*)s.indices, src, gy, gv, lanes, part, parts);
    }
    static void pack(const void* x, int64_t stride, int dtype, int64_t rows, int64_t f0, int64_t f1, int lanes, float* dst) {
        if (lanes == 8) {
            if (dtype == SRIGL_F32) pack_panel<V8>((const float*)x, stride, rows, f0, f1, lanes, dst);
            else pack_panel<V8>((const uint16_t*)x, stride, rows, f0, f1, lanes, dst);
        } else {
            if (dtype == SRIGL_F32) pack_panel<V>((const float*)x, stride, rows, f0, f1, lanes, dst);
            else pack_panel<V>((const uint16_t*)x, stride, rows, f0, f1, lanes, dst);
        }
    }
    static void unpack(const float* src, int lanes, int64_t rows, int64_t n0, int64_t n1, void* y, int64_t stride, int dtype) {
        if (lanes == 8) {
            if (dtype == SRIGL_F32) unpack_panel<V8>(src, lanes, rows, n0, n1, (float*)y, stride);
            else unpack_panel<V8>(src, lanes, rows, n0, n1, (uint16_t*)y, stride);
        } else {
            if (dtype == SRIGL_F32) unpack_panel<V>(src, lanes, rows, n0, n1, (float*)y, stride);
            else unpack_panel<V>(src, lanes, rows, n0, n1, (uint16_t*)y, stride);
        }
    }
    static void fill(const void* bias, int dtype, int64_t n0, int64_t n1, int lanes, float* dst) {
        if (dtype == SRIGL_F32) fill_panel<V8>((const float*)bias, n0, n1, lanes, dst);
        else fill_panel<V8>((const uint16_t*)bias, n0, n1, lanes, dst);
    }
    static void to_float(const void* src, int dtype, int64_t n, float* dst) {
        if (dtype == SRIGL_F32) widen<V>((const float*)src, n, dst);
        else widen<V>((const uint16_t*)src, n, dst);
    }
    static void from_float(const float* src, int64_t n, void* dst, int dtype) {
        if (dtype == SRIGL_F32) narrow<V>(src, n, (float*)dst);
        else narrow<V>(src, n, (uint16_t*)dst);
    }
    static srigl::Isa table(const char* name) {
        return {name, pack, unpack, fill, tile, whole, single, dots, to_float, from_float};
    }
};

}  // namespace
